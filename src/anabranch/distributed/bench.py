"""The same training in several ways over the same processes: steps to be timed, loss curves, gradients, measured costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from anabranch.distributed._stage import LossFunction
from anabranch.distributed._steps import Did
from anabranch.distributed.arms import TrainingArm, training_arm
from anabranch.distributed.launching import Ranks
from anabranch.distributed.pipeline_times import PipelineTimeline, measured_timeline
from anabranch.distributed.profile import COLUMNS, LayerProfile, profile_layers
from anabranch.distributed.schedules import PipelineSchedule

Layers = Callable[[], Sequence[nn.Module]]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
_ADAM: MakeOptimizer = partial(torch.optim.Adam, lr=1e-3)  # type: ignore[assignment]


@dataclass(frozen=True)
class TrainingRun:
    """What some training steps gave.

    Attributes:
        losses: of the mini-batches, one a step.
        state: the whole model's ``state_dict`` after the last step, under its usual names.
    """

    losses: list[float]
    state: dict[str, Tensor]


class TrainingBench:
    """A model and data that are held by all processes of a :class:`Ranks`, trained there by any :func:`training_arm`.

    Use it to learn which way trains *your* layers fastest on your devices, and whether all ways train the same. An arm is
    built once for :meth:`run`, :meth:`gradients` and :meth:`timelines`, whose weights never change, and anew for
    :meth:`train`. All arms begin with the weights that ``make`` gives after ``torch.manual_seed(seed)``.

    Args:
        make: gives the layers; a function of a module, or a ``functools.partial`` of one.
        x, target: samples, on the first axis.
        batch: samples of a mini-batch; all of them if not given. Mini-batches follow each other and begin anew at the end.
        balance: layers of every stage; as even as possible if not given.
        loss_fn: a mean over samples.
        batchnorm: of our pipelines, "deferred" or "micro".

    Raises:
        ValueError: numbers of samples that do not fit.
    """

    def __init__(
        self,
        ranks: Ranks,
        make: Layers,
        x: Tensor,
        target: Tensor,
        *,
        batch: int | None = None,
        balance: Sequence[int] | None = None,
        loss_fn: LossFunction = nn.functional.cross_entropy,
        seed: int = 0,
        batchnorm: str = "deferred",
    ) -> None:
        size = len(x) if batch is None else batch
        if len(x) != len(target) or not 1 <= size <= len(x):
            raise ValueError(f"x has {len(x)} samples, target {len(target)}, batch={size}: expected a batch among them")
        self.ranks = ranks
        self._held = ranks.keep(_Held, make, x, target, size, balance, loss_fn, seed, batchnorm)

    def run(self, arm: str, micro_batches: int = 1) -> float:
        """One step of the first mini-batch, gradients from zero, weights as they were; its loss."""
        return _loss(self.ranks.call(_Held.run, self._held, arm, micro_batches))

    def gradients(self, arm: str, micro_batches: int = 1) -> dict[str, Tensor]:
        """Of the first mini-batch, by the names of the whole model's parameters."""
        return _merged(self.ranks.call(_Held.gradients, self._held, arm, micro_batches))

    def timelines(self, arm: str, micro_batches: int, *, repeats: int = 5) -> list[PipelineTimeline]:
        """When every action of ``repeats`` steps of our pipeline ran, by the clocks of all processes, after one to warm up.

        Raises:
            ValueError: an arm that is no pipeline of ours.
        """
        found: list[PipelineTimeline] = []
        for _ in range(repeats + 1):
            told = self.ranks.call(_Held.timeline, self._held, arm, micro_batches)
            schedule: PipelineSchedule = told[0][0]
            found.append(measured_timeline(schedule, [[(did.begin_s, did.end_s) for did in row] for _, row in told]))
        return found[1:]

    def train(
        self, arm: str, micro_batches: int = 1, *, steps: int, make_optimizer: MakeOptimizer = _ADAM
    ) -> TrainingRun:
        """``steps`` steps from the first weights; ``make_optimizer`` (Adam at 1e-3) is given each process's parameters."""
        told = self.ranks.call(_Held.train, self._held, arm, micro_batches, steps, make_optimizer)
        losses = [_loss([rank[0][i] for rank in told]) for i in range(steps)]
        return TrainingRun(losses, _merged([rank[1] for rank in told]))

    def profile(self, samples: int, *, repeats: int = 5) -> LayerProfile:
        """Costs of the layers for ``samples`` samples, measured by all processes at once, as they will train; medians over them.

        Raises:
            ValueError: more samples than there are.
        """
        found: list[LayerProfile] = self.ranks.call(_Held.profile, self._held, samples, repeats)
        middle = {name: np.median([getattr(one, name) for one in found], axis=0) for name in COLUMNS[1:]}
        first = found[0]
        return LayerProfile(
            first.names, **middle, input_bytes=first.input_bytes, samples=samples, only_next=first.only_next
        )


class _Held:
    """What one process holds of a bench."""

    def __init__(
        self, make: Layers, x: Tensor, target: Tensor, batch: int, balance: Sequence[int] | None, loss_fn: LossFunction,
        seed: int, batchnorm: str,
    ) -> None:  # fmt: skip
        self.make, self.x, self.target, self.batch, self.balance = make, x, target, batch, balance
        self.loss_fn, self.seed, self.batchnorm = loss_fn, seed, batchnorm
        self.arms: dict[tuple[str, int], TrainingArm] = {}

    def layers(self) -> list[nn.Module]:
        torch.manual_seed(self.seed)
        return list(self.make())

    def arm(self, name: str, micro_batches: int) -> TrainingArm:
        return training_arm(
            name, self.layers(), self.balance, micro_batches, self.loss_fn, batchnorm=self.batchnorm
        )  # fmt: skip

    def step(self, arm: TrainingArm, number: int) -> float | None:
        rows = torch.arange(number * self.batch, (number + 1) * self.batch) % len(self.x)
        loss = arm.step(self.x[rows], self.target[rows])
        return None if loss is None else float(loss)

    def ready(self, name: str, micro_batches: int) -> TrainingArm:
        key = name, micro_batches
        if key not in self.arms:
            self.arms[key] = self.arm(*key)
        for parameter in self.arms[key].parameters:
            parameter.grad = None
        return self.arms[key]

    def run(self, name: str, micro_batches: int) -> float | None:
        return self.step(self.ready(name, micro_batches), 0)

    def gradients(self, name: str, micro_batches: int) -> dict[str, Tensor]:
        arm = self.ready(name, micro_batches)
        self.step(arm, 0)
        return {name: t.grad.clone() for name, t in arm.tensors.items() if t.grad is not None}

    def timeline(self, name: str, micro_batches: int) -> tuple[PipelineSchedule, list[Did]]:
        arm = self.ready(name, micro_batches)
        if arm.pipeline is None:
            raise ValueError(f"arm must be a pipeline of ours to have a timeline, got {name!r}")
        self.step(arm, 0)
        return arm.pipeline.schedule, arm.pipeline.timeline

    def train(
        self, name: str, micro_batches: int, steps: int, make_optimizer: MakeOptimizer
    ) -> tuple[list[float | None], dict[str, Tensor]]:
        arm = self.arm(name, micro_batches)
        optimizer = make_optimizer(arm.parameters)
        losses = []
        for number in range(steps):
            optimizer.zero_grad()
            losses.append(self.step(arm, number))
            optimizer.step()
        return losses, {name: t.detach().clone() for name, t in arm.tensors.items()}

    def profile(self, samples: int, repeats: int) -> LayerProfile:
        if not 1 <= samples <= len(self.x):
            raise ValueError(f"samples must be between 1 and {len(self.x)}, got {samples}")
        x, y = self.x[:samples].contiguous(), self.target[:samples]
        dist.barrier()  # all at once: processes share the memory's bandwidth
        return profile_layers(self.layers(), x, target=y, loss_fn=self.loss_fn, repeats=repeats)


def _loss(told: Sequence[float | None]) -> float:
    """Of those who know it: one, or every rank its equal share."""
    return fmean(loss for loss in told if loss is not None)


def _merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}
