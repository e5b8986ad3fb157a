"""What the experiment measures when numbers do not divide each other, fail, or data are missing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from anabranch.distributed import Ranks, TrainingBench, vision_transformer_layers
from anabranch.papers.gpipe import PAPER, Settings
from anabranch.papers.gpipe import experiment as gpipe

pytestmark = pytest.mark.xdist_group("distributed")


def settings(**changes: Any) -> Settings:
    return replace(PAPER.scales["smoke"], **changes)  # type: ignore[type-var]


def measures(lab: MagicMock) -> dict[str, float]:
    return {call.args[0]: call.args[1] for call in lab.measure.call_args_list}


def tables(lab: MagicMock) -> dict[str, list[dict[str, Any]]]:
    return {call.args[0]: call.args[1] for call in lab.table.call_args_list}


def data(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(samples) % 10


def test_no_nan_hides_in_the_exact_claim() -> None:
    for at in range(3):
        rows: list[dict[str, Any]] = [{"gpipe": 0.0, "1f1b": 0.0} for _ in range(3)]
        rows[at]["1f1b"] = float("nan")
        assert np.isnan(gpipe.largest_error(rows, ("gpipe", "1f1b")))
    assert gpipe.largest_error([{"a": 1.0}, {"a": 3.0}, {"a": 2.0}], ("a",)) == 3.0


def test_the_model_of_memory_is_held_against_a_batch_that_does_not_divide() -> None:
    lab = MagicMock()
    gpipe.memory(lab, settings(batch=11), data(11))
    assert 0 < measures(lab)["memory-model-error"] < 0.05


def test_plans_need_not_have_the_timed_numbers_of_micro_batches() -> None:
    lab, made = MagicMock(), partial(vision_transformer_layers, blocks=2, width=16)
    with Ranks(2) as ranks:
        gpipe.planning(lab, settings(micro_batches=(3,)), ranks, TrainingBench(ranks, made, *data(8)))
    rows = tables(lab)["plans"]
    assert [row["M"] for row in rows] == [1, 4, 8, 8]
    errors = [abs(row["predicted seconds"] - row["seconds"]) / row["seconds"] for row in rows]
    assert measures(lab)["plan-step-error"] == pytest.approx(max(errors))
    errors = [abs(row["predicted bytes"] - row["bytes"]) / row["bytes"] for row in rows]
    assert measures(lab)["plan-memory-error"] == pytest.approx(max(errors))


def test_missing_data_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpipe, "data_folder", lambda: tmp_path)
    lab = MagicMock()
    gpipe.fine_tuning(lab, settings(fine_tune_steps=2), MagicMock())
    assert "left out: the data set smollm2-135m is not here" in str(tables(lab)["fine-tuning"])
    assert "fine-tuning-difference" not in measures(lab)


def test_the_exact_cut_beside_the_least_variance() -> None:
    """3, 3, 2, 2, 2 on two stages: both cut 6 + 6. On three, 3+3 | 2+2 | 2 is 6; 3 | 3+2 | 2+2 is 5."""
    rows = gpipe.cuts(np.array([3.0, 3.0, 2.0, 2.0, 2.0]))
    assert [row["K"] for row in rows] == [2, 3, 4, 5]
    assert [row["exact"] for row in rows] == [6.0, 5.0, 4.0, 3.0]
    assert all(row["variance over exact"] >= 1 for row in rows)
