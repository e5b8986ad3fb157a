"""Tensors between the stage of this process and its neighbours: buffers posted ahead, sends that nobody waits for."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anabranch.distributed._stage import Layout
from anabranch.distributed.skips import Channel

_TENSORS, _PARTS = 16, 1 << 14  # most tensors of a channel and micro-batches, for tags
_BACK, _SUM = 1 << 30, 1 << 29  # added to the tags of gradients; tag of the sum of shared ones
_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
_DESCRIPTION = 160  # numbers that describe what a channel sends
_UNFINISHED = 3  # sends to a peer under way before one is waited for, so that outputs do not pile up
AHEAD = 2  # gradients for which buffers wait


class Lost(RuntimeError):
    """The connection to another stage broke."""

    def __init__(self, stage: int, error: Exception) -> None:
        super().__init__(f"stage {stage} does not answer: {str(error).splitlines()[0] if str(error) else error!r}")
        self.stage = stage


class Spec(NamedTuple):
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Specs = tuple[Spec, ...]


def specs_of(row: Sequence[Tensor]) -> Specs:
    """Of each tensor."""
    return tuple(Spec(tuple(t.shape), t.dtype) for t in row)


def floating(specs: Specs) -> Specs:
    """Those that have gradients."""
    return tuple(spec for spec in specs if spec.dtype.is_floating_point)


class Links:
    """Messages of one stage.

    Args:
        forward, backward: process groups of all stages for either direction. One and the same will do where messages are told
            apart by tags (gloo); where they keep their order (NCCL) it takes two.
    """

    def __init__(self, sources: list[Channel], sinks: list[Channel], forward: Any, backward: Any, device: Any) -> None:
        self.sources, self.sinks = sources, sinks
        self._forward, self._backward, self._device = forward, backward, device
        # A queue for each peer and direction: who waits for one stage must not keep another from its tensors.
        self._sends: defaultdict[tuple[bool, int], deque[tuple[Any, Tensor]]] = defaultdict(deque)
        self._buffers: dict[Any, list[Tensor]] = {}
        self._posted: dict[tuple[int, int], list[tuple[Any, Tensor, int]]] = {}  # by direction and micro-batch

    # Headers: what the next stages must know of a step before its first tensor comes.

    def send_header(self, numbers: list[int]) -> None:
        """To the next stage."""
        if self.sinks:
            self._send(self._forward, torch.tensor(numbers, device=self._device), self.sinks[0].target, 0)

    def receive_header(self, length: int) -> list[int]:
        """From the stage before."""
        buffer = torch.empty(length, dtype=torch.int64, device=self._device)
        self._wait(self._receive(self._forward, buffer, self.sources[0].source, 0), self.sources[0].source)
        return buffer.tolist()

    # Shapes are told once, with the first micro-batches that have them.

    def describe(self, row: Sequence[Tensor], layout: Layout) -> None:
        """Tell every sink what it will get."""
        at = 0
        for channel, count in zip(self.sinks, layout.counts, strict=True):
            part = row[at : at + (count or 1)]
            at += count or 1
            numbers = [count]
            for tensor in part:
                numbers += [_DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape]
            if len(part) > _TENSORS or len(numbers) > _DESCRIPTION:
                raise ValueError(f"a stage gives {len(part)} tensors to another: expected at most {_TENSORS}")
            numbers += [0] * (_DESCRIPTION - len(numbers))
            message = torch.tensor(numbers, device=self._device)
            self._send(self._forward, message, channel.target, 1 + channel.index)

    def learn(self) -> tuple[Specs, Layout]:
        """Be told by every source what it will send."""
        specs: list[Spec] = []
        counts = []
        for channel in self.sources:
            buffer = torch.empty(_DESCRIPTION, dtype=torch.int64, device=self._device)
            self._wait(self._receive(self._forward, buffer, channel.source, 1 + channel.index), channel.source)
            numbers = iter(buffer.tolist())
            counts.append(next(numbers))
            for _ in range(counts[-1] or 1):
                dtype, axes = _DTYPES[next(numbers)], next(numbers)
                specs.append(Spec(tuple(next(numbers) for _ in range(axes)), dtype))
        return tuple(specs), Layout(tuple(counts))

    # Activations and their gradients.

    def post_inputs(self, m: int, slot: int, specs: Specs, layout: Layout) -> None:
        """Have buffers ready for the inputs of micro-batch ``m``."""
        if self.sources:
            self._post(0, self.sources, [c.source for c in self.sources], m, slot, specs, layout)

    def post_gradients(self, m: int, slot: int, specs: Specs, layout: Layout) -> None:
        """Have buffers ready for the gradients of the outputs of micro-batch ``m``."""
        if self.sinks:
            self._post(_BACK, self.sinks, [c.target for c in self.sinks], m, slot, specs, layout)

    def inputs(self, m: int) -> tuple[Tensor, ...]:
        """What was posted for micro-batch ``m``, when it is there."""
        return self._take(0, m)

    def gradients(self, m: int) -> tuple[Tensor, ...]:
        """Gradients of the floating outputs of micro-batch ``m``, when they are there."""
        return self._take(_BACK, m) if self.sinks else ()

    def send_outputs(self, m: int, row: Sequence[Tensor], layout: Layout) -> None:
        """To the sinks."""
        flags = [True] * len(row)
        self._spread(0, self.sinks, [c.target for c in self.sinks], m, row, layout, flags)

    def send_gradients(self, m: int, row: Sequence[Tensor], specs: Specs, layout: Layout) -> None:
        """Gradients of the floating inputs to the sources."""
        flags = [spec.dtype.is_floating_point for spec in specs]
        self._spread(_BACK, self.sources, [c.source for c in self.sources], m, row, layout, flags)

    def add_up(self, gradient: Tensor, owners: Sequence[int], own: int) -> None:
        """Sum of a shared parameter's gradients over its owners, in place: the first of them adds, and tells the others."""
        gathers, others = owners[0], owners[1:]
        if own == gathers:
            for stage in others:
                part = torch.empty_like(gradient)
                self._wait(self._receive(self._backward, part, stage, _BACK), stage)
                gradient += part
            for stage in others:
                self._send(self._forward, gradient, stage, _SUM)
        else:
            self._send(self._backward, gradient, gathers, _BACK)
            self.flush()
            self._wait(self._receive(self._forward, gradient, gathers, _SUM), gathers)
        self.flush()

    def flush(self) -> None:
        """Wait for all sends."""
        for (_, peer), sends in self._sends.items():
            while sends:
                self._wait(sends.popleft()[0], peer)

    def free_buffers(self) -> None:
        """Give back the buffers of shapes that may not come again."""
        self._buffers.clear()

    def drop(self) -> None:
        """Forget everything that is under way."""
        self._sends.clear()
        self._posted.clear()
        self._buffers.clear()

    # Inside.

    def _walk(self, channels: list[Channel], peers: list[int], m: int, layout: Layout, flags: Sequence[bool]) -> Any:
        """(position among the flagged, peer, tag) of every flagged tensor."""
        at = found = 0
        for channel, peer, count in zip(channels, peers, layout.counts, strict=True):
            for index in range(count or 1):
                if flags[at]:
                    yield found, peer, ((1 + channel.index) * _TENSORS + index) * _PARTS + m
                    found += 1
                at += 1

    def _post(
        self, back: int, channels: list[Channel], peers: list[int], m: int, slot: int, specs: Specs, layout: Layout
    ) -> None:
        key = (back, slot, specs)
        if key not in self._buffers:
            chosen = floating(specs) if back else specs
            self._buffers[key] = [torch.empty(s.shape, dtype=s.dtype, device=self._device) for s in chosen]
        buffers = self._buffers[key]
        flags = [not back or spec.dtype.is_floating_point for spec in specs]
        group = self._backward if back else self._forward
        self._posted[back, m] = [
            (self._receive(group, buffers[i], peer, back + tag), buffers[i], peer)
            for i, peer, tag in self._walk(channels, peers, m, layout, flags)
        ]

    def _take(self, back: int, m: int) -> tuple[Tensor, ...]:
        posted = self._posted.pop((back, m))
        for work, _, peer in posted:
            self._wait(work, peer)
        return tuple(buffer for _, buffer, _ in posted)

    def _spread(
        self, back: int, channels: list[Channel], peers: list[int], m: int, row: Sequence[Tensor], layout: Layout,
        flags: Sequence[bool],
    ) -> None:  # fmt: skip
        group = self._backward if back else self._forward
        for i, peer, tag in self._walk(channels, peers, m, layout, flags):
            self._send(group, row[i].contiguous(), peer, back + tag)

    def _send(self, group: Any, tensor: Tensor, peer: int, tag: int) -> None:
        sends = self._sends[tag >= _BACK, peer]
        while len(sends) > _UNFINISHED:
            self._wait(sends.popleft()[0], peer)
        try:
            sends.append((group.send([tensor], peer, tag), tensor))
        except RuntimeError as error:
            raise Lost(peer, error) from error

    def _receive(self, group: Any, buffer: Tensor, peer: int, tag: int) -> Any:
        try:
            return group.recv([buffer], peer, tag)
        except RuntimeError as error:
            raise Lost(peer, error) from error

    @staticmethod
    def _wait(work: Any, peer: int) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise Lost(peer, error) from error
