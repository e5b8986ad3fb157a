"""The layers of one stage, and what it keeps of a micro-batch between its forward and its backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anabranch.distributed.batch_norm import deferred_of
from anabranch.distributed.micro_batches import Value
from anabranch.distributed.saved import SavedTensors
from anabranch.distributed.skips import Channel, run_layers

LossFunction = Callable[..., Tensor]


class Layout(NamedTuple):
    """How a flat row of tensors is spread over channels: the number of tensors of each, 0 for one bare tensor."""

    counts: tuple[int, ...]


def flatten(values: Sequence[Value]) -> tuple[tuple[Tensor, ...], Layout]:
    """Values of channels as one row of tensors."""
    row: list[Tensor] = []
    counts = []
    for value in values:
        if isinstance(value, Tensor):
            row.append(value)
            counts.append(0)
        else:
            row.extend(value)
            counts.append(len(value))
    return tuple(row), Layout(tuple(counts))


def unflatten(row: Sequence[Tensor], layout: Layout) -> list[Value]:
    """The inverse of :func:`flatten`."""
    values: list[Value] = []
    at = 0
    for count in layout.counts:
        values.append(tuple(row[at : at + count]) if count else row[at])
        at += count or 1
    return values


@dataclass
class Kept:
    """Of one micro-batch: inputs (leaves), where the backward begins, and for a recomputation the random state."""

    inputs: tuple[Tensor, ...]
    layout: Layout
    target: Any = None
    roots: tuple[Any, ...] | None = None  # None while only the inputs are kept
    wanted: tuple[bool, ...] = ()  # of the floating outputs, which have a gradient to take
    versions: tuple[int, ...] = ()
    random: tuple[Tensor, Tensor | None] | None = None
    held: Any = None


class Stage:
    """Runs the parts of a schedule on its layers.

    Args:
        index: of the stage.
        layers: its layers, on their device.
        sources, sinks: channels that end and begin here.
        last: here the loss is computed.
    """

    def __init__(
        self, index: int, layers: Sequence[nn.Module], sources: list[Channel], sinks: list[Channel], *, last: bool
    ) -> None:
        self.index, self.sources, self.sinks, self.last = index, sources, sinks, last
        self.layers = nn.ModuleList(layers)
        self._run = list(layers)
        self.kept: dict[int, Kept] = {}
        self.loss_fn: LossFunction | None = None
        self.saved: SavedTensors | None = None  # counts what is kept, if somebody wants to know
        self._buffers = list(self.layers.buffers())
        self._changing: list[Tensor] | None = None if self._buffers else []  # buffers that a forward changes
        self._deferred = deferred_of(self.layers)
        self._cuda = next((t.device for t in (*self.layers.parameters(), *self._buffers) if t.is_cuda), None)

    def forward(
        self, m: int, inputs: tuple[Tensor, ...], layout: Layout, *, again: bool, target: Any = None
    ) -> tuple[tuple[Tensor, ...], Layout]:
        """Outputs of micro-batch ``m``, detached; on the last stage its weighted loss. ``again``: it will be recomputed.

        Args:
            inputs: of all channels in order; floating ones become leaves whose gradient the backward gives.
            target: (target, weight) on the last stage.
        """
        if self.sources:
            inputs = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in inputs)
        kept = self.kept[m] = Kept(inputs, layout, target)
        if self.saved is not None:
            kept.held = self.saved.hold(inputs)
        learning = self._changing is None
        before = [b._version for b in self._buffers] if learning else []
        if again:
            kept.versions = tuple(t._version for t in inputs)
            kept.random = self._random_state()
            with torch.no_grad():
                outputs, shape = self._compute(kept)
        else:
            outputs, shape = self._compute(kept)
            self._set_roots(kept, outputs)
        if learning:
            self._changing = [b for b, old in zip(self._buffers, before, strict=True) if b._version != old]
        return tuple(t.detach() for t in outputs), shape

    def predict(self, inputs: tuple[Tensor, ...], layout: Layout) -> tuple[tuple[Tensor, ...], Layout]:
        """Outputs without gradients; on the last stage what the model gives, not a loss."""
        with torch.no_grad():
            return self._outputs(inputs, layout)

    def recompute(self, m: int) -> None:
        """Compute micro-batch ``m`` again with the same random numbers; buffers stay as they are.

        Raises:
            ValueError: a layer changed the input in place.
        """
        kept = self.kept[m]
        if tuple(t._version for t in kept.inputs) != kept.versions:
            raise ValueError(
                f"stage {self.index} changed its input in place: it cannot be recomputed; use inplace=False in its first "
                "layers"
            )
        now, saved = self._random_state(), [b.clone() for b in self._changing or ()]
        assert kept.random is not None
        self._set_random_state(kept.random)
        outputs, _ = self._compute(kept)
        self._set_random_state(now)
        for buffer, value in zip(self._changing or (), saved, strict=True):
            buffer.copy_(value)
        self._set_roots(kept, outputs)

    def backward(self, m: int, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gradients of the floating inputs (zeros where there is none), from those of the floating outputs."""
        kept = self.kept.pop(m)
        assert kept.roots is not None
        if kept.roots:
            wanted = [g for g, needed in zip(gradients, kept.wanted, strict=True) if needed] if gradients else None
            torch.autograd.backward(kept.roots, wanted)
        if not self.sources:
            return ()
        return tuple(torch.zeros_like(t) if t.grad is None else t.grad for t in kept.inputs if t.requires_grad)

    def finish(self) -> None:
        """After the last backward of a mini-batch."""
        for norm in self._deferred:
            norm.update_running()

    def _compute(self, kept: Kept) -> tuple[tuple[Tensor, ...], Layout]:
        if self.saved is None:
            return self._with_loss(kept)
        with self.saved.watch():
            return self._with_loss(kept)

    def _with_loss(self, kept: Kept) -> tuple[tuple[Tensor, ...], Layout]:
        outputs, layout = self._outputs(kept.inputs, kept.layout)
        if not self.last:
            return outputs, layout
        target, weight = kept.target
        assert self.loss_fn is not None
        (result,) = unflatten(outputs, layout)
        loss = self.loss_fn(result, target)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ValueError(f"loss_fn must give one number, got {getattr(loss, 'shape', type(loss))}")
        return (loss if weight == 1 else loss * weight,), Layout((0,))

    def _outputs(self, inputs: tuple[Tensor, ...], layout: Layout) -> tuple[tuple[Tensor, ...], Layout]:
        main, *others = unflatten(inputs, layout)
        skips = {channel.name: value for channel, value in zip(self.sources[1:], others, strict=True)}
        out = run_layers(self._run, main, skips)
        return flatten([out, *(skips.pop(channel.name) for channel in self.sinks if channel.name)])

    def _set_roots(self, kept: Kept, outputs: tuple[Tensor, ...]) -> None:
        """Keep where gradients enter, not the outputs themselves: nobody here needs their values."""
        floating = [t for t in outputs if t.is_floating_point()]
        kept.wanted = tuple(t.requires_grad for t in floating)
        edge = torch.autograd.graph.get_gradient_edge
        kept.roots = tuple(edge(t) for t in floating if t.requires_grad)

    def _random_state(self) -> tuple[Tensor, Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._cuda) if self._cuda is not None else None

    def _set_random_state(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None and self._cuda is not None:
            torch.cuda.set_rng_state(state[1], self._cuda)
