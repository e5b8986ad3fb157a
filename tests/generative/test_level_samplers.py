"""Laws of training times by levels."""

import pytest
import torch

from anabranch.generative import DDPM, Levels, Stratified


def test_levels_are_the_entries_of_a_table(generator: torch.Generator) -> None:
    path = DDPM(50).path
    t = Levels(50).sample(5000, torch.zeros(1, dtype=torch.float64), generator)
    index = path.index_of_t(t)
    assert torch.equal(index, index.round())
    assert torch.equal(torch.unique(index), torch.arange(50).double())
    counts = torch.bincount(index.long(), minlength=50)
    assert float(((counts - 100) ** 2 / 100).sum()) < 49 + 5 * (2 * 49) ** 0.5
    ends = Levels(10, 9).sample(500, torch.zeros(1), generator)
    assert (float(ends.min()), float(ends.max())) == (0.0, 1.0)


def test_stratified_takes_one_of_each_part(generator: torch.Generator) -> None:
    for dtype in (torch.float32, torch.float64):
        t = Stratified(0.2, 0.8).sample(64, torch.zeros(1, dtype=dtype), generator)
        parts = ((t.double() - 0.2) / 0.6 * 64).floor()
        assert t.dtype == dtype
        assert float(t.min()) >= 0.2 - 1e-7
        assert float(t.max()) < 0.8
        assert len(torch.unique(parts)) >= 63  # a time may round into the neighbouring part in float32
    means = [float(Stratified().sample(64, torch.zeros(1), generator).mean()) for _ in range(200)]
    assert abs(sum(means) / 200 - 0.5) < 1e-3
    assert max(means) - min(means) < 1 / 60


def test_bad_input() -> None:
    for make in (lambda: Levels(0), lambda: Levels(5, 3), lambda: Stratified(0.5, 0.5)):
        with pytest.raises(ValueError, match=r"count|spacing|start"):
            make()
