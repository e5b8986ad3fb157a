"""What a stage notes of a step."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from anabranch.distributed._links import Specs
from anabranch.distributed._stage import Layout
from anabranch.distributed.micro_batches import split_batch, split_sizes


class Did(NamedTuple):
    """An action of a step and when it ran, on the clock that all processes of one machine share."""

    kind: str
    micro_batch: int
    begin_s: float
    end_s: float


class Shapes(NamedTuple):
    """What arrives and leaves in every micro-batch."""

    inputs: dict[int, tuple[Specs, Layout]]
    outputs: dict[int, tuple[Specs, Layout]]


class Begun(NamedTuple):
    """What a stage knows of a step: its inputs on the first stage, whether shapes are new, sizes, shapes."""

    parts: list[tuple[tuple[Tensor, ...], Layout]]
    new: bool
    micro_batches: int
    samples: int
    shapes: Shapes


def weighted_targets(target: Any, samples: int, micro_batches: int, *, mean: bool) -> list[tuple[Any, float]]:
    """(target, weight of its loss) of every micro-batch: weights that make the sum of mean losses that of the mini-batch.

    Raises:
        ValueError: a target of another number of samples.
    """
    found = len(target if isinstance(target, Tensor) else target[0])
    if found != samples:
        raise ValueError(f"target has {found} samples, but x has {samples}")
    weights = [n / samples if mean else 1.0 for n in split_sizes(samples, micro_batches)]
    return list(zip(split_batch(target, micro_batches), weights, strict=True))
