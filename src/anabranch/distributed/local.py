"""A pipeline in one process: the same schedule, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.distributed._partition import Partition, Prefixes, named_schedule
from anabranch.distributed._stage import Layout, LossFunction, flatten, unflatten
from anabranch.distributed._steps import weighted_targets
from anabranch.distributed.micro_batches import Value, split_batch
from anabranch.distributed.saved import SavedTensors
from anabranch.distributed.schedules import Checkpoint

_Row = tuple[Tensor, ...]


class LocalPipeline:
    """:class:`Pipeline` in one process, on one device or one for each stage: for tests, and to save memory on one GPU.

    The arguments are those of :class:`Pipeline`. The actions run one after the other, in an order that keeps the schedule.

    Args:
        stages: how many, if no ``balance`` says so.
        devices: one for each stage; where the layers are, if not given.

    Raises:
        ValueError: settings that do not fit each other.
    """

    def __init__(
        self,
        layers: nn.Sequential | Sequence[nn.Module],
        balance: Sequence[int] | None = None,
        *,
        stages: int | None = None,
        micro_batches: int = 8,
        schedule: str = "gpipe",
        checkpoint: Checkpoint = "except_last",
        devices: Sequence[torch.device | str] | None = None,
        batchnorm: str = "deferred",
        loss_reduction: str = "mean",
        prefixes: Prefixes | None = None,
    ) -> None:
        if loss_reduction not in ("mean", "sum"):
            raise ValueError(f"loss_reduction must be 'mean' or 'sum', got {loss_reduction!r}")
        if stages is None:
            stages = len(balance) if balance is not None else 1
        self._parts = Partition(layers, stages, balance, batchnorm, prefixes)
        if devices is not None and len(devices) != stages:
            raise ValueError(f"devices has {len(devices)} entries: expected one a stage, {stages}")
        if devices is not None and len(set(map(str, devices))) > 1 and self._parts.shared_parameters():
            raise ValueError("devices: stages that share a parameter must be on one device in one process")
        self.devices = list(devices) if devices is not None else [None] * stages
        for k, device in enumerate(self.devices):
            for layer in self._parts.stage_layers(k) if device is not None else ():
                layer.to(device)
        self.schedule = named_schedule(schedule, stages, micro_batches, checkpoint)
        self.micro_batches, self._mean = self.schedule.micro_batches, loss_reduction == "mean"
        self._stages = [self._parts.make_stage(k) for k in range(stages)]
        self._order = _playable_order(
            [[(a.kind, a.micro_batch) for a in self.schedule.actions(k)] for k in range(stages)]
        )
        self._again = {(k, m) for k, kind, m in self._order if kind == "R"}

    @property
    def balance(self) -> list[int]:
        """Layers of every stage."""
        return list(self._parts.balance)

    @property
    def modules(self) -> list[nn.ModuleList]:
        """The layers of every stage."""
        return [stage.layers for stage in self._stages]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of all stages, each once."""
        return nn.ModuleList(self.modules).parameters()

    def train(self, mode: bool = True) -> LocalPipeline:
        """Training mode of all layers."""
        for layers in self.modules:
            layers.train(mode)
        return self

    def eval(self) -> LocalPipeline:
        """Evaluation mode of all layers."""
        return self.train(False)

    def state_dict_full(self) -> dict[str, Tensor]:
        """The whole model's ``state_dict`` under its usual names."""
        return {name: t.detach() for k in range(len(self._stages)) for name, t in self._parts.full_names(k)}

    def load_full(self, state: Mapping[str, Tensor]) -> None:
        """Take the whole model's ``state_dict``.

        Raises:
            ValueError: a name that is missing, or a tensor of another shape.
        """
        for k in range(len(self._stages)):
            self._parts.load(k, state)

    def step(self, x: Value, target: Any, loss_fn: LossFunction) -> Tensor:
        """Forward and backward of a mini-batch; gradients are added to ``grad``. The loss of the mini-batch.

        Raises:
            ValueError: numbers of samples that do not fit.
        """
        parts = split_batch(x, self.micro_batches)
        samples = len(x if isinstance(x, Tensor) else x[0])
        targets = weighted_targets(target, samples, self.micro_batches, mean=self._mean)
        losses = []
        outputs: dict[tuple[int, int, int], Value] = {}  # (channel, target stage, micro-batch)
        gradients: dict[tuple[int, int, int], list[Tensor]] = {}  # (channel, source stage, micro-batch)
        layouts: dict[tuple[int, int], tuple[_Row, Layout, Layout]] = {}
        for stage in self._stages:
            stage.loss_fn = loss_fn
            stage.kept.clear()
        for k, kind, m in self._order:
            stage = self._stages[k]
            if kind == "F":
                row, layout = self._gather(
                    k, parts[m], {c.index: outputs.pop((c.index, k, m), None) for c in stage.sources}
                )
                made, shape = stage.forward(
                    m, row, layout, again=(k, m) in self._again, target=targets[m] if stage.last else None
                )
                layouts[k, m] = (tuple(t.new_empty(0) for t in made), layout, shape)
                if stage.last:
                    losses.append(made[0])
                for channel, value in zip(stage.sinks, unflatten(made, shape), strict=True) if stage.sinks else ():
                    outputs[channel.index, channel.target, m] = value
            elif kind == "R":
                stage.recompute(m)
            else:
                types, layout, _ = layouts.pop((k, m))
                come = [g for c in stage.sinks for g in gradients.pop((c.index, k, m))]
                come = (
                    [g.to(t.device) for g, t in zip(come, (t for t in types if t.is_floating_point()), strict=True)]
                    if come
                    else []
                )
                inputs = stage.kept[m].inputs
                sent = iter(stage.backward(m, tuple(come)))
                at = 0
                for channel, count in zip(stage.sources, layout.counts, strict=True) if stage.sources else ():
                    own = inputs[at : at + (count or 1)]
                    at += count or 1
                    gradients[channel.index, channel.source, m] = [next(sent) for t in own if t.is_floating_point()]
        for stage in self._stages:
            stage.finish()
        return torch.stack(losses).sum()

    def kept_bytes(self, x: Value, target: Any, loss_fn: LossFunction) -> list[int]:
        """Most bytes that every stage keeps for its backwards at any time, measured in a step; gradients stay as they are."""
        before = [(p, p.grad) for p in self.parameters()]
        for stage in self._stages:
            stage.saved = SavedTensors([*stage.layers.parameters(), *stage.layers.buffers()])
        try:
            self.step(x, target, loss_fn)
            return [stage.saved.peak_bytes for stage in self._stages if stage.saved is not None]
        finally:
            for stage in self._stages:
                stage.saved = None
            for parameter, gradient in before:
                parameter.grad = gradient

    def predict(self, x: Value) -> Value:
        """The model's output without gradients, micro-batch by micro-batch."""
        samples = len(x if isinstance(x, Tensor) else x[0])
        found, layout = [], Layout(())
        for part in split_batch(x, max(1, min(self.micro_batches, samples))):
            waiting: dict[tuple[int, int], Value] = {}
            for k, stage in enumerate(self._stages):
                come = {c.index: waiting.pop((c.index, k)) for c in stage.sources}
                made, layout = stage.predict(*self._gather(k, part, come))
                for channel, value in zip(stage.sinks, unflatten(made, layout), strict=True) if stage.sinks else ():
                    waiting[channel.index, channel.target] = value
            found.append(made)
        return unflatten([torch.cat(parts) for parts in zip(*found, strict=True)], layout)[0]

    def _gather(self, k: int, part: Value, come: Mapping[int, Value | None]) -> tuple[_Row, Layout]:
        values = [value for value in come.values() if value is not None] if k else [part]
        row, layout = flatten(values)
        device = self.devices[k]
        return (row if device is None else tuple(t.to(device) for t in row)), layout


def _playable_order(rows: list[list[tuple[str, int]]]) -> list[tuple[int, str, int]]:
    """All actions in one order: each stage's own, and nothing before its inputs."""
    at, done, order = [0] * len(rows), set(), list[tuple[int, str, int]]()
    while len(order) < sum(map(len, rows)):
        for k, row in enumerate(rows):
            while at[k] < len(row):
                kind, m = row[at[k]]
                if kind == "F" and k > 0 and ("F", k - 1, m) not in done:
                    break
                if kind == "B" and k < len(rows) - 1 and ("B", k + 1, m) not in done:
                    break
                done.add((kind, k, m))
                order.append((k, kind, m))
                at[k] += 1
    return order
