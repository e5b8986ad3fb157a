"""Layers on stages: what is common to pipelines of one process and of many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from anabranch.distributed._stage import Stage
from anabranch.distributed.batch_norm import convert_batchnorm
from anabranch.distributed.schedules import Checkpoint, PipelineSchedule, fill_drain, one_forward_one_backward
from anabranch.distributed.skips import find_channels

Prefixes = Sequence[Mapping[str, str]]  # of every layer: beginnings of its own names -> beginnings of the full names


def named_schedule(name: str, stages: int, micro_batches: int, checkpoint: Checkpoint) -> PipelineSchedule:
    """The schedule of that name; "naive" is one micro-batch, which nothing overlaps.

    Raises:
        ValueError: another name.
    """
    if name == "gpipe":
        return fill_drain(stages, micro_batches, checkpoint=checkpoint)
    if name == "1f1b":
        return one_forward_one_backward(stages, micro_batches, checkpoint=checkpoint)
    if name == "naive":
        return fill_drain(stages, 1, checkpoint=checkpoint)
    raise ValueError(f"schedule must be 'gpipe', '1f1b' or 'naive', got {name!r}")


def even_cut(layers: int, stages: int) -> list[int]:
    """Layers of every stage, as even as can be: numbers that differ by at most one, the larger ones first."""
    return [layers // stages + (k < layers % stages) for k in range(stages)]


class Partition:
    """The layers of a model, cut in stages.

    Raises:
        ValueError: more stages than layers, or a balance that does not fit.
    """

    def __init__(
        self,
        layers: nn.Sequential | Sequence[nn.Module],
        stages: int,
        balance: Sequence[int] | None,
        batchnorm: str,
        prefixes: Prefixes | None,
    ) -> None:
        if batchnorm not in ("deferred", "micro"):
            raise ValueError(f"batchnorm must be 'deferred' or 'micro', got {batchnorm!r}")
        self.layers = list(layers)
        if not 1 <= stages <= len(self.layers):
            raise ValueError(f"{stages} stages need at least as many layers, got {len(self.layers)}")
        if batchnorm == "deferred":
            self.layers = [convert_batchnorm(layer) for layer in self.layers]
        self.balance = even_cut(len(self.layers), stages) if balance is None else [int(b) for b in balance]
        if len(self.balance) != stages or sum(self.balance) != len(self.layers) or min(self.balance) < 1:
            raise ValueError(
                f"balance={self.balance}: expected {stages} numbers >= 1 that sum to {len(self.layers)}, the layers"
            )
        self.prefixes = [{"": f"{i}."} for i in range(len(self.layers))] if prefixes is None else list(prefixes)
        if len(self.prefixes) != len(self.layers):
            raise ValueError(f"prefixes has {len(self.prefixes)} entries: expected one a layer, {len(self.layers)}")
        self.channels = find_channels(self.layers, self.balance)
        self.first = [sum(self.balance[:k]) for k in range(stages)]

    def stage_layers(self, stage: int) -> list[nn.Module]:
        """Of one stage, in order."""
        begin = self.first[stage]
        return self.layers[begin : begin + self.balance[stage]]

    def make_stage(self, index: int) -> Stage:
        """Ready to run."""
        sources = [c for c in self.channels if c.target == index]
        sinks = [c for c in self.channels if c.source == index]
        return Stage(index, self.stage_layers(index), sources, sinks, last=index == len(self.balance) - 1)

    def shared_parameters(self) -> list[list[tuple[int, Tensor]]]:
        """Parameters that layers of several stages share: (stage, parameter), the same tensor in each list."""
        owners: dict[int, dict[int, Tensor]] = {}
        for stage in range(len(self.balance)):
            for layer in self.stage_layers(stage):
                for parameter in layer.parameters():
                    owners.setdefault(id(parameter), {})[stage] = parameter
        return [list(found.items()) for found in owners.values() if len(found) > 1]

    def full_names(self, stage: int) -> Iterator[tuple[str, Tensor]]:
        """(name in the whole model, tensor) of everything that the stage's ``state_dict`` holds."""
        for offset, layer in enumerate(self.stage_layers(stage)):
            renames = self.prefixes[self.first[stage] + offset]
            for name, tensor in layer.state_dict(keep_vars=True).items():
                old = next((own for own in renames if name.startswith(own)), None)
                if old is None:
                    raise ValueError(f"prefixes name nothing for {name!r} of layer {self.first[stage] + offset}")
                yield renames[old] + name[len(old) :], tensor

    @torch.no_grad()
    def load(self, stage: int, state: Mapping[str, Tensor]) -> None:
        """Copy what belongs to the stage.

        Raises:
            ValueError: a name that is missing, or a tensor of another shape.
        """
        for name, tensor in self.full_names(stage):
            if name not in state:
                raise ValueError(f"state has no {name!r}, which stage {stage} needs")
            if state[name].shape != tensor.shape:
                raise ValueError(f"{name!r} has shape {tuple(state[name].shape)}: expected {tuple(tensor.shape)}")
            tensor.copy_(state[name])
