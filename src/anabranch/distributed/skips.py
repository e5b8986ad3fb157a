"""Skip connections between layers of a sequential model that may lie on different stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.distributed.micro_batches import Value

Combine = Callable[[Any, Any], Value]


class StashSkip(nn.Module):
    """Passes its input on and keeps it for the :class:`PopSkip` of the same name, on whatever stage that is."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Value) -> Value:
        """The identity: the pipeline that runs the layers does the keeping."""
        return x


class PopSkip(nn.Module):
    """Joins its input with what the :class:`StashSkip` of the same name kept; the sum, if no ``combine(x, kept)`` is given.

    The tensor goes from the stage of the one to the stage of the other directly, not through the stages between.
    """

    def __init__(self, name: str, combine: Combine | None = None) -> None:
        super().__init__()
        self.name = name
        self.combine: Combine = torch.add if combine is None else combine

    def forward(self, x: Value, kept: Value | None = None) -> Value:
        """``combine(x, kept)``."""
        if kept is None:
            raise ValueError(f"skip {self.name!r}: nothing was stashed; run the layers in a pipeline or run_layers")
        return self.combine(x, kept)


@dataclass(frozen=True)
class Channel:
    """A tensor, or a tuple of them, that goes from one stage to another in every micro-batch. Channel 0 is the main one."""

    index: int
    name: str
    source: int
    target: int


def find_channels(layers: Sequence[nn.Module], balance: Sequence[int]) -> list[Channel]:
    """What crosses stages: between neighbours the main channel, and skips from where they are stashed to where they are popped.

    Raises:
        ValueError: a skip that is stashed or popped twice, popped without being stashed before, or never popped.
    """
    stage_of = [stage for stage, count in enumerate(balance) for _ in range(count)]
    stashed: dict[str, int] = {}
    popped: dict[str, int] = {}
    for layer, stage in zip(layers, stage_of, strict=True):
        if isinstance(layer, StashSkip | PopSkip):
            own, word = (stashed, "stashed") if isinstance(layer, StashSkip) else (popped, "popped")
            if layer.name in own:
                raise ValueError(f"skip {layer.name!r} is {word} twice")
            if word == "popped" and layer.name not in stashed:
                raise ValueError(f"skip {layer.name!r} is popped before it is stashed")
            own[layer.name] = stage
    for name in stashed:
        if name not in popped:
            raise ValueError(f"skip {name!r} is stashed but never popped")
    main = [Channel(0, "", stage, stage + 1) for stage in range(len(balance) - 1)]
    names = [name for name in stashed if stashed[name] != popped[name]]
    return main + [Channel(i, name, stashed[name], popped[name]) for i, name in enumerate(names, 1)]


def run_layers(layers: Sequence[nn.Module], x: Value, skips: dict[str, Value] | None = None) -> Value:
    """Layers one after the other; ``skips`` is taken from and added to."""
    kept = {} if skips is None else skips
    for layer in layers:
        if isinstance(layer, PopSkip):
            x = layer(x, kept.pop(layer.name))
        else:
            if isinstance(layer, StashSkip):
                kept[layer.name] = x
            x = layer(x)
        if not isinstance(x, Tensor) and not (isinstance(x, tuple) and all(isinstance(t, Tensor) for t in x)):
            raise TypeError(
                f"layer {type(layer).__name__} gave {type(x).__name__}: expected a tensor or a tuple of tensors"
            )
    return x
