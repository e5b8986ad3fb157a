"""What every layer of a model costs: time, parameters, activations."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from anabranch.distributed.micro_batches import Value
from anabranch.distributed.saved import SavedTensors
from anabranch.distributed.skips import PopSkip, StashSkip, run_layers

COLUMNS = ("name", "forward_s", "backward_s", "params", "activation_bytes", "output_bytes")


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """Costs of every layer for ``samples`` samples.

    Args:
        forward_s, backward_s: seconds.
        params: numbers of parameters.
        activation_bytes: what the layer keeps for its backward, without its input (its output, if it or the next layer keeps it).
        output_bytes: what goes to the next layer.
        input_bytes: what goes into the first layer.
        samples: the size of the batch that all this is for.
        only_next: bytes of ``activation_bytes`` that only the next layer keeps, so that a stage that ends here need not.

    Raises:
        ValueError: columns of different lengths, or negative numbers.
    """

    names: tuple[str, ...]
    forward_s: Float64[np.ndarray, " layers"]
    backward_s: Float64[np.ndarray, " layers"]
    params: Float64[np.ndarray, " layers"]
    activation_bytes: Float64[np.ndarray, " layers"]
    output_bytes: Float64[np.ndarray, " layers"]
    input_bytes: float = 0.0
    samples: float | int = 1
    only_next: Float64[np.ndarray, " layers"] | None = None

    def __post_init__(self) -> None:
        for name in COLUMNS[1:]:
            values = getattr(self, name)
            if values.shape != (len(self.names),):
                raise ValueError(f"{name} has shape {values.shape}: expected one number a layer, {len(self.names)}")
            if not (np.isfinite(values) & (values >= 0)).all():
                raise ValueError(f"{name} must be finite and >= 0, got {values.tolist()[:10]}")
        if not self.names:
            raise ValueError("a profile needs at least one layer")
        if self.samples < 1:
            raise ValueError(f"samples={self.samples}: expected at least 1")

    @property
    def layers(self) -> int:
        """How many."""
        return len(self.names)

    def repeated(self, layer: int, times: int) -> LayerProfile:
        """The model whose inner layers are ``times`` copies of one of them, between its first and its last layer."""
        rows = [0, *([layer] * times), self.layers - 1]
        columns = {name: getattr(self, name)[rows] for name in COLUMNS[1:]}
        names = tuple(f"{i} {self.names[row]}" for i, row in enumerate(rows))
        return LayerProfile(names, **columns, input_bytes=self.input_bytes, samples=self.samples)

    def to_csv(self, path: str | Path) -> None:
        """One line a layer: ``name,forward_s,backward_s,params,activation_bytes,output_bytes``."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            columns = [getattr(self, name) for name in COLUMNS[1:]]
            for name, *numbers in zip(self.names, *columns, strict=True):
                writer.writerow([name, *(f"{number:.9g}" for number in numbers)])

    @classmethod
    def from_csv(cls, path: str | Path, *, samples: int = 1, input_bytes: float = 0.0) -> LayerProfile:
        """What :meth:`to_csv` writes, measured on ``samples`` samples.

        Raises:
            ValueError: another header or a bad number, with its line.
        """
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        if not rows or tuple(rows[0]) != COLUMNS:
            raise ValueError(f"{path}, line 1: header must be {','.join(COLUMNS)}")
        names, numbers = [], []
        for line, row in enumerate(rows[1:], 2):
            if len(row) != len(COLUMNS):
                raise ValueError(f"{path}, line {line}: expected {len(COLUMNS)} fields, got {len(row)}")
            try:
                values = [float(text) for text in row[1:]]
            except ValueError:
                raise ValueError(f"{path}, line {line}: expected numbers after the name, got {row[1:]}") from None
            if not all(math.isfinite(v) and v >= 0 for v in values):
                raise ValueError(f"{path}, line {line}: numbers must be finite and >= 0, got {row[1:]}")
            names.append(row[0])
            numbers.append(values)
        if not names:
            raise ValueError(f"{path}: no layers")
        columns = dict(zip(COLUMNS[1:], np.array(numbers).T.copy(), strict=True))
        return cls(tuple(names), **columns, input_bytes=input_bytes, samples=samples)


def profile_at(profiles: LayerProfile | Sequence[LayerProfile], samples: float | int) -> LayerProfile:
    """The costs for ``samples`` samples: in proportion to one profile, or on straight lines between profiles of several sizes.

    With several sizes what a layer takes whatever its batch is not taken for a share of every sample, so small micro-batches
    are not thought too fast. Beyond the sizes the nearest line goes on, never below 0.

    Raises:
        ValueError: no profiles, other layers, or a size twice.
    """
    known = [profiles] if isinstance(profiles, LayerProfile) else sorted(profiles, key=lambda one: one.samples)
    if not known or len({one.names for one in known}) != 1 or len({one.samples for one in known}) < len(known):
        raise ValueError("profiles must be of the same layers, at least one, each for another number of samples")
    upper = next((i for i, one in enumerate(known) if one.samples >= samples), len(known) - 1)
    right = known[max(upper, 1)] if len(known) > 1 else known[0]
    left = known[max(upper, 1) - 1] if len(known) > 1 else None
    share = samples / right.samples if left is None else (samples - left.samples) / (right.samples - left.samples)

    def between(name: str) -> Any:
        low = 0.0 if left is None else getattr(left, name)
        return np.maximum(low + (getattr(right, name) - low) * share, 0.0)

    columns = {name: right.params if name == "params" else between(name) for name in COLUMNS[1:]}
    only_next = None if any(one.only_next is None for one in known) else between("only_next")
    return LayerProfile(
        right.names, **columns, input_bytes=float(between("input_bytes")), samples=samples, only_next=only_next
    )


def profile_layers(
    layers: nn.Sequential | Sequence[nn.Module],
    sample: Value,
    *,
    repeats: int = 5,
    target: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    names: Sequence[str] | None = None,
) -> LayerProfile:
    """Run the layers as a training step does and note what each costs: medians of ``repeats``.

    All forwards come first, then the backwards from the last layer to the first, and gradients are added to those of the run
    before, as a micro-batch does. (A backward straight after its forward would find in the caches, and in memory that the
    process has just used, what in training has long made room for the layers between.) Takes the memory of a training step.

    Args:
        sample: a (micro-)batch of the size that will be run.
        target, loss_fn: count the loss with the last layer.
        names: of the layers; their numbers and types if not given.

    Raises:
        ValueError: no layers, or no repeats.
    """
    run = list(layers)
    if not run:
        raise ValueError("layers must not be empty")
    if repeats < 1:
        raise ValueError(f"repeats must be >= 1, got {repeats}")
    titles = tuple(names) if names is not None else tuple(f"{i} {type(layer).__name__}" for i, layer in enumerate(run))
    n = len(run)
    times = np.zeros((repeats, 2, n))
    before = [(p, p.grad) for layer in run for p in layer.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    for repeat in range(repeats + 1):  # the first is for warming up
        seconds = layer_seconds(run, sample, target, loss_fn)
        if repeat:
            times[repeat - 1] = seconds
    for parameter, gradient in before:
        parameter.grad = gradient
    forward, backward = ([median(times[:, way, i]) for i in range(n)] for way in (0, 1))
    kept, only_next, outputs = _bytes(run, sample, target, loss_fn)
    params = [float(sum(p.numel() for p in layer.parameters())) for layer in run]
    given = (forward, backward, params, kept, outputs)
    columns = {name: np.array(values, np.float64) for name, values in zip(COLUMNS[1:], given, strict=True)}
    first = sample if isinstance(sample, Tensor) else sample[0]
    return LayerProfile(
        titles,
        **columns,
        input_bytes=float(_size(sample)),
        samples=len(first),
        only_next=np.array(only_next, np.float64),
    )


def _size(value: Value) -> int:
    tensors = (value,) if isinstance(value, Tensor) else value
    return sum(t.numel() * t.element_size() for t in tensors)


def _leaves(value: Value) -> Value:
    def leaf(t: Tensor) -> Tensor:
        return t.detach().requires_grad_(t.is_floating_point())

    return leaf(value) if isinstance(value, Tensor) else tuple(leaf(t) for t in value)


def _now(value: Value) -> float:
    first = value if isinstance(value, Tensor) else value[0]
    if first.is_cuda:
        torch.cuda.synchronize(first.device)
    return time.perf_counter()


def layer_seconds(
    run: Sequence[nn.Module], sample: Value, target: Any = None, loss_fn: Callable[..., Tensor] | None = None
) -> Float64[np.ndarray, "2 layers"]:
    """Forward and backward seconds of every layer, which shares no graph with its neighbours; gradients are added."""
    seconds = np.zeros((2, len(run)))
    x, skips = sample, dict[str, Value]()
    done: list[tuple[int, list[Tensor]]] = []
    for i, layer in enumerate(run):
        given = _leaves(x) if i else x
        begin = _now(x)
        out = run_layers([layer], given, skips)
        end: Any = loss_fn(out, target) if loss_fn is not None and i == len(run) - 1 else out
        seconds[0, i] = _now(x) - begin
        roots = [t for t in ([end] if isinstance(end, Tensor) else end) if t.requires_grad]
        if roots and not isinstance(layer, StashSkip):
            done.append((i, roots))
        x = _leaves(out)
        skips = {name: _leaves(value) for name, value in skips.items()}
    while done:
        i, roots = done.pop()
        ones = [torch.ones_like(t) for t in roots]
        begin = _now(x)
        torch.autograd.backward(roots, ones)
        seconds[1, i] = _now(x) - begin
    return seconds


def _bytes(
    run: Sequence[nn.Module], sample: Value, target: Any, loss_fn: Callable[..., Tensor] | None
) -> tuple[list[float], list[float], list[float]]:
    """(kept without the input, of it what only the next layer keeps, output) of every layer, in one forward through all."""
    parameters = [p for layer in run for p in (*layer.parameters(), *layer.buffers())]
    saved = SavedTensors(parameters)
    x, skips = sample, dict[str, Value]()
    seen = set(_addresses(sample))
    kept, only_next, outputs = [0.0] * len(run), [0.0] * len(run), [0.0] * len(run)
    alive: list[Any] = []
    before: set[int] = set()
    with saved.watch():
        for i, layer in enumerate(run):
            own_input = _addresses(x)
            came_from_last = {a: s for a, s in own_input.items() if a not in seen}
            size = saved.bytes
            out = run_layers([layer], x, skips)
            if loss_fn is not None and i == len(run) - 1:
                alive.append(loss_fn(out, target))
            now = set(saved.storages())
            counted_here = saved.bytes - size
            # The input counts with the layer before, which gave it.
            late = sum(s for a, s in came_from_last.items() if a in now and a not in before)
            if i and not isinstance(layer, PopSkip | StashSkip):
                kept[i - 1] += late
                only_next[i - 1] = float(late)
            kept[i] += counted_here - late if i else counted_here - sum(s for a, s in own_input.items() if a in now)
            seen |= now | set(own_input)
            before = now
            outputs[i] = float(_size(out))
            alive.append(out)
            x = out
    return kept, only_next, outputs


def _addresses(value: Value) -> dict[int, int]:
    tensors = (value,) if isinstance(value, Tensor) else value
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
