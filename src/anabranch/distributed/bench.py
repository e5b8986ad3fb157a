"""The same training in several ways over the same processes: steps to be timed, loss curves, gradients, measured costs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from anabranch.distributed._stage import LossFunction
from anabranch.distributed._steps import Did
from anabranch.distributed.arms import TrainingArm, training_arm
from anabranch.distributed.launching import Kept, Ranks
from anabranch.distributed.local import LocalPipeline
from anabranch.distributed.pipeline_times import PipelineTimeline, measured_timeline
from anabranch.distributed.planning import PipelinePlan
from anabranch.distributed.profile import LayerProfile, layer_seconds, profile_layers
from anabranch.distributed.schedules import PipelineSchedule
from anabranch.distributed.training_memory import training_bytes

MakeLayers = Callable[[], Sequence[nn.Module]]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Balance = tuple[int, ...] | None
Recompute = str | tuple[str, ...] | None
_ADAM: MakeOptimizer = partial(torch.optim.Adam, lr=1e-3)
_WARM_UPS = (
    3  # steps of a new process that take up to half as long again: malloc learns what to keep of the memory it got
)


@dataclass(frozen=True)
class TrainingRun:
    """What some training steps gave.

    Attributes:
        losses: of the mini-batches, one a step.
        state: the whole model's ``state_dict`` after the last step, under its usual names; empty if it was not asked for.
    """

    losses: list[float]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class PlanOutcome:
    """What a plan really took, in time; and what its stages hold.

    Attributes:
        seconds: of some steps.
        memory_bytes: of every stage, as :func:`training_bytes` counts them for Adam: in a step of the same stages, schedule and
            recomputation, taken by one process after the timed steps, not in the processes that were timed. Buffers of
            tensors under way are not among them.
    """

    seconds: list[float]
    memory_bytes: list[int]

    @property
    def step_s(self) -> float:
        """The median step."""
        return median(self.seconds)


class TrainingBench:
    """A model and data that are held by all processes of a :class:`Ranks`, trained there by any :func:`training_arm`.

    Use it to learn which way trains *your* layers fastest on your devices, and whether all ways train the same. An arm is
    built once for :meth:`run`, :meth:`gradients` and :meth:`timelines`, whose weights never change, and anew for
    :meth:`train`, from copies of the layers. Every process must have the same layers.

    Args:
        layers: gives the layers after ``torch.manual_seed(seed)``, a function of a module or a ``functools.partial`` of one;
            or layers that the processes have kept.
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
        layers: MakeLayers | Kept,
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
        self.ranks, self.batch, self._samples = ranks, size, len(x)
        self._held = ranks.keep(_Held, layers, x, target, size, balance, loss_fn, seed, batchnorm)

    def run(self, arm: str, micro_batches: int = 1) -> float:
        """One step of the first mini-batch, gradients from zero, weights as they were; its loss."""
        return _loss(self.ranks.call(_Held.run, self._held, arm, micro_batches))

    def carry_out(self, plan: PipelinePlan, *, repeats: int = 5) -> PlanOutcome:
        """Steps of a plan: the one of :meth:`outcomes`."""
        return self.outcomes([plan], repeats=repeats)[0]

    def outcomes(self, plans: Sequence[PipelinePlan], *, repeats: int = 5) -> list[PlanOutcome]:
        """Steps of plans, with their own balances, and the bytes that they hold: to be compared with what the plans predict.

        Plans take turns, so that a slow while of the machine hits all of them and none alone.

        Raises:
            ValueError: a plan for another mini-batch or number of processes, or one of stages with replicas, or with replicas
                or one stage that cuts the mini-batch further or recomputes.
        """
        for plan in plans:
            self._check(plan)
        seconds: list[list[float]] = [[] for _ in plans]
        for _ in range(_WARM_UPS + repeats):
            for row, plan in zip(seconds, plans, strict=True):
                options = (plan.balance, plan.checkpoint) if plan.stages > 1 else (None, None)
                begin = time.perf_counter()
                self.ranks.call(_Held.run, self._held, plan.arm, plan.micro_batches, *options)
                row.append(time.perf_counter() - begin)
        return [
            PlanOutcome(row[_WARM_UPS:], self.ranks.call(_Held.memory, self._held, plan)[0])
            for row, plan in zip(seconds, plans, strict=True)
        ]

    def _check(self, plan: PipelinePlan) -> None:
        if plan.batch != self.batch:
            raise ValueError(f"plan is for batch={plan.batch}, expected {self.batch}, the samples of a mini-batch here")
        devices = plan.stages * plan.replicas
        if (
            devices not in (1, self.ranks.nproc)
            or plan.stages not in (1, devices)
            or (plan.stages == 1 and (plan.micro_batches > 1 or plan.recomputed("always")))
        ):
            raise ValueError(
                f"plan has {plan.stages} stages, {plan.replicas} replicas, {plan.micro_batches} micro-batches and "
                f"checkpoint={plan.checkpoint!r}: expected one stage and the whole mini-batch without recomputation, or "
                f"{self.ranks.nproc} stages"
            )

    def release(self) -> None:
        """Free what the processes hold of it, arms and their weights included; calls raise ``ValueError`` after it."""
        self.ranks.forget(self._held)

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
        self,
        arm: str,
        micro_batches: int = 1,
        *,
        steps: int,
        make_optimizer: MakeOptimizer = _ADAM,
        with_state: bool = False,
    ) -> TrainingRun:
        """``steps`` steps from the first weights; ``make_optimizer`` (Adam at 1e-3) is given each process's parameters."""
        told = self.ranks.call(_Held.train, self._held, arm, micro_batches, steps, make_optimizer, with_state)
        losses = [_loss([rank[0][i] for rank in told]) for i in range(steps)]
        return TrainingRun(losses, _merged([rank[1] for rank in told]))

    def profile(self, samples: int, *, repeats: int = 5) -> LayerProfile:
        """Costs of the layers for ``samples`` samples: the one of :meth:`profiles`."""
        return self.profiles([samples], repeats=repeats)[0]

    def profiles(self, sizes: Sequence[int], *, repeats: int = 5) -> list[LayerProfile]:
        """Costs of the layers for several numbers of samples, measured by all processes at once, as they will train.

        Sizes take turns, so that a slow while of the machine hits all of them and none alone; medians over turns and processes.

        Raises:
            ValueError: more samples than there are, or no repeats.
        """
        for samples in sizes:
            if not 1 <= samples <= self._samples:
                raise ValueError(f"samples must be between 1 and {self._samples}, got {samples}")
        if repeats < 1:
            raise ValueError(f"repeats must be >= 1, got {repeats}")
        found: list[list[np.ndarray]] = [[] for _ in sizes]
        for _ in range(_WARM_UPS):
            self.ranks.call(_Held.seconds, self._held, max(sizes))
        for _ in range(repeats):
            for row, samples in zip(found, sizes, strict=True):
                row.extend(self.ranks.call(_Held.seconds, self._held, samples))
        # Counting bytes comes last: it leaves holes in the heap, after which a forward takes up to twice as long.
        profiles = [self.ranks.call(_Held.profile, self._held, samples)[0] for samples in sizes]
        middle = [np.median(row, axis=0) for row in found]
        return [
            replace(one, forward_s=times[0], backward_s=times[1]) for one, times in zip(profiles, middle, strict=True)
        ]


class _Held:
    """What one process holds of a bench."""

    def __init__(
        self, layers: MakeLayers | Sequence[nn.Module], x: Tensor, target: Tensor, batch: int,
        balance: Sequence[int] | None, loss_fn: LossFunction, seed: int, batchnorm: str,
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.layers = list(layers() if callable(layers) else layers)
        self.x, self.target, self.batch, self.balance = x, target, batch, balance
        self.loss_fn, self.batchnorm = loss_fn, batchnorm
        self.arms: dict[tuple[str, int, Balance, Recompute], TrainingArm] = {}

    def arm(self, name: str, micro_batches: int, balance: Balance = None, checkpoint: Recompute = None) -> TrainingArm:
        layers = copy.deepcopy(self.layers)
        cut = self.balance if balance is None else balance
        options: dict[str, Any] = {"batchnorm": self.batchnorm, "checkpoint": checkpoint}
        return training_arm(name, layers, cut, micro_batches, self.loss_fn, **options)

    def step(self, arm: TrainingArm, number: int) -> float | None:
        rows = torch.arange(number * self.batch, (number + 1) * self.batch) % len(self.x)
        loss = arm.step(self.x[rows], self.target[rows])
        return None if loss is None else float(loss)

    def ready(
        self, name: str, micro_batches: int, balance: Balance = None, checkpoint: Recompute = None
    ) -> TrainingArm:
        key = name, micro_batches, balance, checkpoint
        if key not in self.arms:
            self.arms[key] = self.arm(*key)
        for parameter in self.arms[key].parameters:
            parameter.grad = None
        return self.arms[key]

    def run(self, name: str, micro_batches: int, balance: Balance = None, checkpoint: Recompute = None) -> float | None:
        return self.step(self.ready(name, micro_batches, balance, checkpoint), 0)

    def memory(self, plan: PipelinePlan) -> list[int]:
        if dist.get_rank():
            return []
        pipeline = LocalPipeline(
            copy.deepcopy(self.layers), plan.balance, micro_batches=plan.micro_batches, schedule=plan.schedule,
            checkpoint=plan.checkpoint, batchnorm=self.batchnorm,
        )  # fmt: skip
        samples = self.batch // plan.replicas
        x, target = self.x[:samples].clone(), self.target[:samples].clone()  # a view would hold all samples
        return training_bytes(pipeline, x, target, self.loss_fn, torch.optim.Adam)

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
        self, name: str, micro_batches: int, steps: int, make_optimizer: MakeOptimizer, with_state: bool
    ) -> tuple[list[float | None], dict[str, Tensor]]:
        arm = self.arm(name, micro_batches)
        optimizer = make_optimizer(arm.parameters)
        losses = []
        for number in range(steps):
            optimizer.zero_grad()
            losses.append(self.step(arm, number))
            optimizer.step()
        return losses, {name: t.detach().clone() for name, t in arm.tensors.items() if with_state}

    def seconds(self, samples: int) -> np.ndarray:
        layers, x, y = self._copies(samples)
        dist.barrier()  # all at once: processes share the memory's bandwidth
        return [layer_seconds(layers, x, y, self.loss_fn) for _ in range(2)][-1]

    def profile(self, samples: int) -> LayerProfile:
        layers, x, y = self._copies(samples)
        return profile_layers(layers, x, target=y, loss_fn=self.loss_fn, repeats=1)

    def _copies(self, samples: int) -> tuple[list[nn.Module], Tensor, Tensor]:
        return copy.deepcopy(self.layers), self.x[:samples].contiguous(), self.target[:samples]


def _loss(told: Sequence[float | None]) -> float:
    """Of those who know it: one, or every rank its equal share."""
    return fmean(loss for loss in told if loss is not None)


def _merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}
