"""Splitting batches, and batch norm over the parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anabranch.distributed import DeferredBatchNorm, convert_batchnorm, split_batch, split_sizes


def test_sizes_differ_by_at_most_one() -> None:
    for samples in range(1, 40):
        for parts in range(1, samples + 1):
            sizes = split_sizes(samples, parts)
            assert sum(sizes) == samples
            assert len(sizes) == parts
            assert max(sizes) - min(sizes) <= 1
            assert sizes == sorted(sizes, reverse=True)


def test_batches_are_split_along_the_first_axis() -> None:
    x = torch.arange(22).view(11, 2)
    assert torch.equal(torch.cat(split_batch(x, 4)), x)  # type: ignore[arg-type]
    pairs = split_batch((x, x[:, 0]), 4)
    assert [len(part[0]) for part in pairs] == [3, 3, 3, 2] == [len(part[1]) for part in pairs]
    with pytest.raises(ValueError, match=r"one number of samples on the first axis, got \[11, 3\]"):
        split_batch((x, x[:3]), 2)
    with pytest.raises(ValueError, match="micro_batches=12: expected 1 to the number of samples, 11"):
        split_batch(x, 12)
    with pytest.raises(ValueError, match="on the first axis"):
        split_batch(torch.tensor(1.0), 1)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("micro_batches", [1, 3, 5])
def test_deferred_statistics_are_those_of_one_forward(momentum: float | None, micro_batches: int) -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = nn.BatchNorm2d(3, momentum=momentum)
    ours = convert_batchnorm(nn.Sequential(nn.BatchNorm2d(3, momentum=momentum)))
    assert isinstance(ours[0], DeferredBatchNorm)
    for _ in range(3):
        x = 4 + 2 * torch.randn(11, 3, 4, 5, generator=generator)
        theirs(x)
        for part in split_batch(x, micro_batches):
            assert torch.allclose(ours(part), nn.functional.batch_norm(part, None, None, training=True), atol=1e-5)  # type: ignore[arg-type]
        assert ours[0].count == 11 * 20
        ours[0].update_running()
        assert torch.allclose(ours[0].running_mean, theirs.running_mean, atol=1e-6)
        assert torch.allclose(ours[0].running_var, theirs.running_var, rtol=1e-5)
    assert ours[0].num_batches_tracked == 3
    assert list(ours.state_dict()) == [f"0.{name}" for name in theirs.state_dict()]
    y = torch.randn(4, 3, 2, 2, generator=generator)
    assert torch.allclose(ours.eval()(y), theirs.eval()(y), atol=1e-5)


def test_the_gradient_is_that_of_torch() -> None:
    torch.manual_seed(0)
    theirs, x = nn.BatchNorm1d(4).double(), torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    ours = convert_batchnorm(nn.BatchNorm1d(4).double())
    for norm in (theirs, ours):
        (norm(x) ** 3).sum().backward()
    assert torch.allclose(ours.weight.grad, theirs.weight.grad)
    assert torch.autograd.gradcheck(ours, (x,))


def test_batch_norm_bad_input() -> None:
    with pytest.raises(ValueError, match="holds SyncBatchNorm: expected BatchNorm1d"):
        convert_batchnorm(nn.Sequential(nn.SyncBatchNorm(3)))
    with pytest.raises(ValueError, match="expected 3 on the second axis"):
        DeferredBatchNorm(3)(torch.ones(2, 4))
    with pytest.raises(ValueError, match="more than one value a channel"):
        DeferredBatchNorm(3)(torch.ones(1, 3))
