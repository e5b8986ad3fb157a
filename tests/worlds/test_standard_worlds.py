"""The law and the images that experiments share."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from anabranch.worlds import DataMissing, eight_modes, garments


def test_eight_modes_lie_where_they_should() -> None:
    law = eight_modes()
    angles = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    assert torch.allclose(law.means, 2 * torch.stack([angles.cos(), angles.sin()], 1), atol=1e-15)
    assert torch.allclose(law.weights, torch.arange(1, 9, dtype=torch.float64) / 36, atol=1e-15)
    x = torch.cat([law.means[:1] + torch.tensor([[r, 0.0]]) for r in (0.0, 0.15)])
    fall = law.log_density(x.double())
    assert float(fall[0] - fall[1]) == pytest.approx(0.5, abs=1e-6)  # one standard deviation away


def test_drawn_garments_are_the_same_each_time_and_balanced(tmp_path: Path) -> None:
    x, label = garments("teacher", tmp_path, drawn=20)
    again, _ = garments("teacher", tmp_path, drawn=20)
    assert x.shape == (20, 1, 28, 28)
    assert torch.equal(x, again)
    assert label.bincount().tolist() == [2] * 10


def test_real_garments_are_the_training_images(fashion_root: Path) -> None:
    x, label = garments("fashion-mnist", fashion_root)
    assert x.shape == (60_000, 1, 28, 28)
    assert label.bincount().tolist() == [6_000] * 10
    assert float(x.min()) == -1
    assert float(x.max()) == 1


def test_bad_input_names_the_argument(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images_from='cifar'"):
        garments("cifar", tmp_path)
    with pytest.raises(ValueError, match="drawn=0"):
        garments("teacher", tmp_path, drawn=0)
    with pytest.raises(DataMissing, match="fashion-mnist"):
        garments("fashion-mnist", tmp_path)
