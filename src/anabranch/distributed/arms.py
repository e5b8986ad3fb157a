"""One training step in all the ways that a pipeline is compared with, behind one face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anabranch.distributed._stage import LossFunction
from anabranch.distributed.pipeline import Pipeline

ARMS = ("one process", "ddp", "naive", "gpipe", "gpipe-recompute", "1f1b", "torch gpipe", "torch 1f1b")


@dataclass(frozen=True)
class TrainingArm:
    """``step(x, target)`` adds gradients to the ``parameters`` of this process, and gives the loss where it is known.

    Attributes:
        pipeline: ours, for its timeline; None for a peer.
    """

    step: Callable[[Any, Any], Tensor | None]
    parameters: list[nn.Parameter]
    pipeline: Pipeline | None = None


def training_arm(
    name: str, layers: Sequence[nn.Module], balance: Sequence[int], micro_batches: int, loss_fn: LossFunction
) -> TrainingArm:
    """The layers, trained over all processes by the named arm; every process calls it with the same layers.

    "one process" works on rank 0 alone; "ddp" gives every rank its part of the batch; "torch gpipe" and "torch 1f1b" are
    ``torch.distributed.pipelining`` (equal micro-batches only); the others are :class:`Pipeline`.

    Raises:
        ValueError: another name.
    """
    if name not in ARMS:
        raise ValueError(f"name must be one of {ARMS}, got {name!r}")
    rank, world = dist.get_rank(), dist.get_world_size()
    if name in ("naive", "gpipe", "gpipe-recompute", "1f1b"):
        recompute = name.endswith("recompute")
        pipeline = Pipeline(
            layers, balance, micro_batches=micro_batches, schedule=name.removesuffix("-recompute"),
            checkpoint="except_last" if recompute else "never",
        )  # fmt: skip
        return TrainingArm(lambda x, y: pipeline.step(x, y, loss_fn), list(pipeline.parameters()), pipeline)
    if name in ("one process", "ddp"):
        model: nn.Module = nn.Sequential(*layers)
        alone = name == "one process"
        model = model if alone else nn.parallel.DistributedDataParallel(model)

        def whole(x: Tensor, y: Tensor) -> Tensor | None:
            if alone and rank:
                return None
            if not alone:
                x, y = x.chunk(world)[rank], y.chunk(world)[rank]
            loss = loss_fn(model(x), y)
            loss.backward()
            return loss.detach()

        return TrainingArm(whole, list(model.parameters()))
    from torch.distributed import pipelining

    first = sum(balance[:rank])
    own = nn.Sequential(*layers[first : first + balance[rank]])
    stage = pipelining.PipelineStage(own, rank, world, torch.device("cpu"))
    kind = pipelining.ScheduleGPipe if name == "torch gpipe" else pipelining.Schedule1F1B
    schedule = kind(stage, n_microbatches=micro_batches, loss_fn=loss_fn)

    def theirs(x: Tensor, y: Tensor) -> Tensor | None:
        losses: list[Tensor] = []
        last: dict[str, Any] = {"target": y, "losses": losses} if rank == world - 1 else {}
        schedule.step(*((x,) if rank == 0 else ()), **last)
        return torch.stack(losses).mean().detach() if losses else None

    return TrainingArm(theirs, list(own.parameters()))
