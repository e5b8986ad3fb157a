"""A real limit of memory: what is above it is refused and told by its stage, what is below trains."""

from __future__ import annotations

import itertools
import resource
import time
from functools import partial

import pipeline_ranks
import pytest
import torch
from torch import nn

from anabranch.distributed import (
    RankFailed,
    Ranks,
    StageOutOfMemory,
    deepest,
    depth_within,
    launch,
    memory_limit,
    train_within,
    vision_transformer_layers,
)
from anabranch.distributed.malloc import fill_holes
from anabranch.distributed.memory_limits import data_bytes

pytestmark = pytest.mark.xdist_group("distributed")
MIB = 2**20
cross_entropy = nn.functional.cross_entropy


def deep(blocks: int) -> partial[list[nn.Module]]:
    return partial(vision_transformer_layers, blocks=blocks, width=32)


def images(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(samples) % 10


def test_the_limit_is_real() -> None:
    with memory_limit(8 * MIB, above=data_bytes()):
        kept = [torch.empty(4 * MIB, dtype=torch.uint8)]
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            kept.append(torch.empty(64 * MIB, dtype=torch.uint8))
    assert torch.empty(64 * MIB, dtype=torch.uint8).numel() == 64 * MIB  # the limit is gone


def test_a_stage_without_memory_is_named_and_nobody_waits() -> None:
    x, y = images(64)
    options = {"balance": [2, 4], "loss_fn": cross_entropy, "micro_batches": 4, "checkpoint": "never"}
    begin = time.monotonic()
    with pytest.raises(
        StageOutOfMemory, match=r"^stage 1 (\(rank 1\) failed in its forward of micro-batch \d|died: native code)"
    ) as caught:
        train_within(deep(4), x, y, limit_bytes=15 * MIB, **options)  # type: ignore[arg-type]
    assert time.monotonic() - begin < 30
    assert (caught.value.stage, caught.value.limit_bytes) == (1, 15 * MIB)
    loss = train_within(deep(4), x, y, limit_bytes=200 * MIB, **options)  # type: ignore[arg-type]
    assert 0 < loss < 10
    assert train_within(deep(4), x, y, limit_bytes=15 * MIB, **{**options, "checkpoint": "always"}) > 0  # type: ignore[arg-type]


def left_after(before_bytes: int) -> tuple[int, int]:
    """In a process whose heap has holes of so many bytes: those taken, and by how much it grows for as many in small blocks."""
    kept = [bytearray(4000) for _ in range(2 * before_bytes // 4096)][::2]
    taken = fill_holes()
    begin = data_bytes()
    kept += [bytearray(4000) for _ in range(before_bytes // 4096)]
    return taken, data_bytes() - begin


def test_holes_of_the_heap_are_no_memory_to_train_in() -> None:
    ((taken, grown),) = launch(left_after, 1, 6 * MIB)
    assert taken >= 5.5 * MIB
    assert grown >= 5.5 * MIB


def new_pages(rounds: int) -> int:
    """That the process touches in the last of some rounds, each of 64 tensors of 1 MiB."""
    before = 0
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(1 << 18) for _ in range(64)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_processes_keep_the_memory_of_a_step_for_the_next() -> None:
    with Ranks(1) as ranks:
        assert ranks.call(new_pages, 4)[0] < 1000
    with Ranks(1, keep_memory=False) as ranks:
        assert ranks.call(new_pages, 4)[0] > 8000  # of 16,384: malloc gave them back


def fails() -> list[nn.Module]:
    return [nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), pipeline_ranks.Fails("raise", 0), nn.Linear(784, 10)]


def shares() -> list[nn.Module]:
    one = nn.Linear(784, 784)
    return [nn.Flatten(), one, nn.Linear(784, 10), one]


def test_a_library_that_faults_counts_as_refused() -> None:
    x, y = images(16)
    with pytest.raises(
        StageOutOfMemory, match=r"^stage 1 died: native code did not survive .* 209715200 bytes$"
    ) as caught:
        train_within(
            pipeline_ranks.faulting_layers, x, y, limit_bytes=200 * MIB, balance=[1, 2], loss_fn=cross_entropy,
            micro_batches=4, checkpoint="never",
        )  # fmt: skip
    assert caught.value.stage == 1


def test_other_failures_are_not_taken_for_a_lack_of_memory() -> None:
    x, y = images(4)
    with pytest.raises(RankFailed, match="a value that only this layer knows"):
        train_within(fails, x, y, limit_bytes=64 * MIB, balance=[1, 3], loss_fn=cross_entropy, micro_batches=2)
    with pytest.raises(RankFailed, match="layers of several stages share parameters"):
        train_within(shares, x, y, limit_bytes=64 * MIB, balance=[2, 2], loss_fn=cross_entropy, micro_batches=2)
    with pytest.raises(ValueError, match="limit_bytes must be > 0, got 0"):
        train_within(fails, x, y, limit_bytes=0, balance=[4], loss_fn=cross_entropy)


def test_recomputation_makes_deeper_models_fit() -> None:
    x, y = images(64)
    found = {
        way: depth_within(
            deep, x, y, stages=1, micro_batches=m, checkpoint=way, limit_bytes=44 * MIB, loss_fn=cross_entropy,
            tolerance=0.3,
        )
        for m, way in ((1, "never"), (4, "always"))
    }  # fmt: skip
    for one in found.values():
        assert one.measured < one.failed
        assert one.reason.startswith("stage 0")
        # nothing is trained in less than the model of memory counts; what it leaves out is not most of it
        assert 0.6 * one.predicted <= one.measured <= 1.05 * one.predicted
    assert found["always"].measured >= 2 * found["never"].measured


@pytest.mark.parametrize("most", [0, 1, 2, 5, 17, 40, 63])
def test_the_deepest_is_found_in_few_tries(most: int) -> None:
    for guess, stride, tolerance in itertools.product((1, 3, 16, 60, 64), (1, 4, 15), (0.0, 0.1, 1.0)):
        tried: list[int] = []

        def fits(n: int, tried: list[int] = tried) -> bool:
            tried.append(n)
            return n <= most

        found = deepest(fits, guess, stride=stride, tolerance=tolerance)
        assert found <= most
        assert most - found <= max(0, tolerance * found)
        assert 0 not in tried
        assert len(tried) == len(set(tried)) <= 14
    with pytest.raises(ValueError, match="guess=0, stride=1, tolerance=0"):
        deepest(bool, 0)
