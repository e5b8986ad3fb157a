"""Objectives and evaluation of sequence models, for ``anabranch.generative.fit`` with ``data=None``."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from anabranch.generative import Loss


def _cut(inputs: Tensor, mask: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Without the columns that no row of the batch uses, and without a mask where all is real."""
    if mask is None:
        return inputs.to(device), None
    longest = int(mask.sum(1).max()) if bool(mask[:, 0].all()) else mask.shape[1]
    if not bool(mask[:, :longest].sum() == mask.sum()):  # not padded at the end
        longest = mask.shape[1]
    inputs, mask = inputs[:, :longest], mask[:, :longest]
    return inputs.to(device), None if bool(mask.all()) else mask.to(device)


@dataclass(frozen=True, eq=False)
class SequenceClassification:
    """Cross-entropy on batches of sequences: ``(net, *, generator) -> Loss``, with ``net(x, mask)``.

    Every row comes once an epoch. Padding at the end that no row of a batch needs is cut off.

    Args:
        inputs: ``[N, n]`` tokens or ``[N, n, channels]``.
        labels: ``[N]``.
        mask: ``[N, n]``, True for a real token.
        batch_size: rows of a batch.

    Raises:
        ValueError: numbers of rows that differ.
    """

    inputs: Tensor
    labels: Int64[Tensor, " rows"]
    batch_size: int
    mask: Bool[Tensor, "rows n"] | None = None

    def __post_init__(self) -> None:
        for name, x in (("labels", self.labels), ("mask", self.mask)):
            if x is not None and len(x) != len(self.inputs):
                raise ValueError(f"{name} has {len(x)} rows and inputs {len(self.inputs)}: expected as many")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: expected at least 1")
        object.__setattr__(self, "_order", torch.empty(0, dtype=torch.int64))

    def __call__(self, net: nn.Module, *, generator: torch.Generator | None) -> Loss:
        waiting: Tensor = self._order  # type: ignore[attr-defined]
        if not len(waiting):
            waiting = torch.randperm(len(self.inputs), generator=generator)
        rows, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
        object.__setattr__(self, "_order", waiting)
        device = next(net.parameters()).device
        x, mask = _cut(self.inputs[rows], None if self.mask is None else self.mask[rows], device)
        per_sample = nn.functional.cross_entropy(net(x, mask), self.labels[rows].to(device), reduction="none")
        return Loss(per_sample.mean(), per_sample.detach())


@dataclass(frozen=True, eq=False)
class NextToken:
    """Cross-entropy of the next token on random windows of one long text: ``(net, *, generator) -> Loss``.

    Args:
        tokens: ``[N]``.
        length: tokens of a window.
        batch_size: windows of a batch.

    Raises:
        ValueError: a text shorter than a window and its next token.
    """

    tokens: Int[Tensor, " tokens"]
    length: int
    batch_size: int

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.length:
            raise ValueError(f"a text of {len(self.tokens)} tokens: expected more than length={self.length}")

    def __call__(self, net: nn.Module, *, generator: torch.Generator | None) -> Loss:
        device = next(net.parameters()).device
        starts = torch.randint(len(self.tokens) - self.length, (self.batch_size, 1), generator=generator)
        rows = self.tokens[starts + torch.arange(self.length + 1)].long().to(device)
        losses = nn.functional.cross_entropy(net(rows[:, :-1]).transpose(1, 2), rows[:, 1:], reduction="none")
        per_sample = losses.mean(1)
        return Loss(per_sample.mean(), per_sample.detach())


class LearningCurve:
    """Looks at a score now and then during training; the clock stands still while it looks.

    Pass ``progress`` to ``fit``.

    Args:
        every: steps between looks; the last step is looked at too.
        look: gives the score.

    Attributes:
        points: ``(steps, seconds, score)`` of every look; the seconds are those of training after the first step, which is
            slow for reasons of its own.
    """

    def __init__(self, every: int, look: Callable[[], float]) -> None:
        self.every, self._look = max(1, every), look
        self.points: list[tuple[float, float, float]] = []
        self._begin: float | None = None

    def progress(self, done: int | float, total: int | float | None, metrics: Mapping[str, Any] | None = None) -> None:
        """The callback."""
        now = time.perf_counter()
        if self._begin is None:
            self._begin = now
        if done % self.every == 0 or done == total:
            self.points.append((done, now - self._begin, self._look()))
            self._begin += time.perf_counter() - now


@torch.no_grad()
def classify(
    net: nn.Module, inputs: Tensor, mask: Bool[Tensor, "rows n"] | None = None, *, batch_size: int = 128
) -> Int64[Tensor, " rows"]:
    """The class of every row, in evaluation mode; the rows are batched by length."""
    training, device = net.training, next(net.parameters()).device
    order = torch.arange(len(inputs)) if mask is None else torch.argsort(mask.sum(1), stable=True)
    found = torch.empty(len(inputs), dtype=torch.int64)
    net.eval()
    for rows in order.split(batch_size):
        x, part = _cut(inputs[rows], None if mask is None else mask[rows], device)
        found[rows] = net(x, part).argmax(1).cpu()
    net.train(training)
    return found


@torch.no_grad()
def next_token_bits(
    net: nn.Module, tokens: Int[Tensor, " tokens"], *, length: int, batch_size: int = 16
) -> Float[Tensor, "windows length"]:
    """``-log2 p`` of every next token in windows of ``length`` side by side; what does not fill a window is left out.

    Raises:
        ValueError: fewer tokens than a window and its next token.
    """
    count = (len(tokens) - 1) // length
    if count < 1:
        raise ValueError(f"{len(tokens)} tokens: expected more than length={length}")
    training, device = net.training, next(net.parameters()).device
    net.eval()
    rows = tokens[: count * length + 1].long().unfold(0, length + 1, length)
    bits = []
    for part in rows.split(batch_size):
        part = part.to(device)
        losses = nn.functional.cross_entropy(net(part[:, :-1]).transpose(1, 2), part[:, 1:], reduction="none")
        bits.append(losses.cpu() / torch.tensor(2.0).log())
    net.train(training)
    return torch.cat(bits)
