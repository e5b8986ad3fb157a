"""One training step in all the ways that a pipeline is compared with, behind one face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anabranch.distributed._partition import even_cut
from anabranch.distributed._stage import LossFunction
from anabranch.distributed.pipeline import Pipeline
from anabranch.distributed.schedules import Checkpoint

ARMS = (
    "one process",
    "ddp",
    "naive",
    "gpipe",
    "gpipe-recompute",
    "1f1b",
    "1f1b-recompute",
    "torch gpipe",
    "torch 1f1b",
)


@dataclass(frozen=True)
class TrainingArm:
    """``step(x, target)`` adds gradients to the ``parameters`` of this process, and gives the loss where it is known.

    Attributes:
        pipeline: ours, for its timeline; None for a peer.
        tensors: parameters and buffers that this process trains, by their names in the whole model.
    """

    step: Callable[[Any, Any], Tensor | None]
    parameters: list[nn.Parameter]
    pipeline: Pipeline | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)


def training_arm(
    name: str,
    layers: Sequence[nn.Module],
    balance: Sequence[int] | None,
    micro_batches: int,
    loss_fn: LossFunction,
    *,
    batchnorm: str = "deferred",
    checkpoint: Checkpoint | None = None,
) -> TrainingArm:
    """The layers, trained over all processes by the named arm; every process calls it with the same layers.

    "one process" works on rank 0 alone; "ddp" gives every rank its part of the batch, weighted by its samples;
    "torch gpipe" and "torch 1f1b" are ``torch.distributed.pipelining`` (equal micro-batches only);
    the others are :class:`Pipeline`.

    Args:
        balance: layers of every stage; as even as possible if not given.
        batchnorm: of a :class:`Pipeline`.
        checkpoint: of a :class:`Pipeline`, instead of what its name says ("-recompute" is "except_last", else "never").

    Raises:
        ValueError: another name, or a checkpoint for an arm that is no :class:`Pipeline`. The step of "ddp" raises it for a
            batch with fewer samples than processes.
    """
    if name not in ARMS:
        raise ValueError(f"name must be one of {ARMS}, got {name!r}")
    rank, world = dist.get_rank(), dist.get_world_size()
    if name in ("naive", "gpipe", "gpipe-recompute", "1f1b", "1f1b-recompute"):
        named = "except_last" if name.endswith("recompute") else "never"
        pipeline = Pipeline(
            layers, balance, micro_batches=micro_batches, schedule=name.removesuffix("-recompute"),
            checkpoint=named if checkpoint is None else checkpoint, batchnorm=batchnorm,
        )  # fmt: skip
        tensors = dict(pipeline._parts.full_names(rank))
        return TrainingArm(lambda x, y: pipeline.step(x, y, loss_fn), list(pipeline.parameters()), pipeline, tensors)
    if checkpoint not in (None, "never"):
        raise ValueError(f"checkpoint must not be given for {name!r}, which recomputes nothing, got {checkpoint!r}")
    if name in ("one process", "ddp"):
        model: nn.Module = nn.Sequential(*layers)
        alone = name == "one process"
        tensors = {} if alone and rank else dict(model.state_dict(keep_vars=True))
        model = model if alone else nn.parallel.DistributedDataParallel(model)

        def whole(x: Tensor, y: Tensor) -> Tensor | None:
            if alone and rank:
                return None
            weight = 1.0
            if not alone:
                if len(x) < world:
                    raise ValueError(f"batch has {len(x)} samples: {world} processes need at least one each")
                samples = len(x)
                x, y = x.tensor_split(world)[rank], y.tensor_split(world)[rank]
                weight = len(x) * world / samples  # processes are averaged alike, whatever the sizes of their parts
            loss = loss_fn(model(x), y) * weight
            loss.backward()
            return loss.detach()

        return TrainingArm(whole, list(model.parameters()), tensors=tensors)
    from torch.distributed import pipelining

    cut = even_cut(len(layers), world) if balance is None else balance
    first = sum(cut[:rank])
    own = nn.Sequential(*layers[first : first + cut[rank]])
    stage = pipelining.PipelineStage(own, rank, world, torch.device("cpu"))
    kind = pipelining.ScheduleGPipe if name == "torch gpipe" else pipelining.Schedule1F1B
    schedule = kind(stage, n_microbatches=micro_batches, loss_fn=loss_fn)

    def theirs(x: Tensor, y: Tensor) -> Tensor | None:
        losses: list[Tensor] = []
        last: dict[str, Any] = {"target": y, "losses": losses} if rank == world - 1 else {}
        schedule.step(*((x,) if rank == 0 else ()), **last)
        return torch.stack(losses).mean().detach() if losses else None

    tensors = {
        f"{first + i}.{name}": tensor
        for i, layer in enumerate(own)
        for name, tensor in layer.state_dict(keep_vars=True).items()
    }
    return TrainingArm(theirs, list(own.parameters()), tensors=tensors)
