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


@pytest.mark.parametrize("broken", ["gradient_error", "relative_gradient_error"])
def test_no_nan_hides_in_the_exact_claim(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """The last of all errors is a NaN; Python's ``max`` would keep the 0 before it."""
    lab, calls = MagicMock(), list[float]()

    def last_is_nan(*_: Any, **__: Any) -> float:
        calls.append(0.0)
        return float("nan") if len(calls) == (60 if broken == "gradient_error" else 15) else 0.0

    for name in ("gradient_error", "relative_gradient_error"):
        monkeypatch.setattr(gpipe.pp, name, last_is_nan if name == broken else lambda *_, **__: 0.0)
    monkeypatch.setattr(gpipe, "Bench", MagicMock())
    lab.seed = 0
    gpipe.exactness(lab, MagicMock())
    assert len(calls) == (60 if broken == "gradient_error" else 15)
    assert np.isnan(measures(lab)["gradient-error"])


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
