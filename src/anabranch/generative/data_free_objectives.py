"""Objectives of distillation without data (FreeFlow, Tong et al., 2511.19428): all they need is the teacher and its source.

*Prediction* holds the student's own trajectory to the teacher's velocity at the place where the student has got to;
*correction* holds the law of the student's outputs, noised again, to the teacher's velocity field, by way of a critic that
learns the student's. The paper's time runs from data to noise; here it runs from noise, and its student ``U(z, t)`` is the
flow map ``u(z, 0, t)``, so that one jump samples.

Only gradients are the paper's: each loss is the square whose gradient with respect to the student's output is twice the
paper's over the number of entries, so that its value can be read. Both live on the linear path.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anabranch.generative._checks import check_count, check_share, expand, select, time_dtype
from anabranch.generative._fit_parts import world
from anabranch.generative.end_time_derivative import end_time_derivative
from anabranch.generative.fields import VelocityField
from anabranch.generative.flow_maps import FlowMap
from anabranch.generative.objectives import FlowMatching, Loss, check_interval, check_two_times
from anabranch.generative.sources import Source
from anabranch.generative.time_samplers import LogitNormal, TimeSampler, Uniform

Conditions = Callable[[int, torch.Generator], Mapping[str, Any]]
_BAD_STEPS = 10


@dataclass(frozen=True)
class UniformLabels:
    """Labels drawn uniformly: ``UniformLabels(10)(n, generator)`` is ``{"label": [n]}``.

    Args:
        classes: number of labels.
        name: of the condition.
    """

    classes: int
    name: str = "label"

    def __post_init__(self) -> None:
        check_count("classes", self.classes)

    def __call__(self, n: int, generator: torch.Generator) -> dict[str, Int[Tensor, " n"]]:
        return {self.name: torch.randint(self.classes, (n,), generator=generator, device=generator.device)}


def _kept(mismatch: Tensor) -> tuple[Tensor, Tensor]:
    """The mismatch with samples that are not finite set to 0, and which samples those are ``[B]``."""
    bad = ~torch.isfinite(mismatch.reshape(len(mismatch), -1)).all(1)
    return torch.where(expand(bad, mismatch), torch.zeros_like(mismatch), mismatch), bad


def _pulling(output: Tensor, mismatch: Tensor, weight: Tensor | None = None) -> Loss:
    """The loss whose gradient at ``output`` is ``2 weight mismatch / entries``, a mean over samples.

    ``per_sample`` is the mean square of the mismatch; ``parts``: mean norms of the mismatch and of what pulls (with weight).
    """
    mismatch, bad = _kept(mismatch.detach())
    error = torch.where(expand(bad, output), torch.zeros_like(output), output)
    error = (error - (error.detach() - mismatch)).reshape(len(output), -1).to(time_dtype(output))
    per_sample, norms = (error**2).mean(1), error.detach().norm(dim=1)
    pulls = norms if weight is None else torch.where(bad, torch.zeros_like(norms), weight) * norms
    value = per_sample if weight is None else torch.where(bad, torch.zeros_like(weight), weight) * per_sample
    good = (~bad).sum().clamp(min=1)
    parts = {"mismatch": norms.sum() / good, "pull": pulls.sum() / good, "dropped": bad.to(norms.dtype).mean()}
    return Loss(value.mean(), per_sample, parts)


@dataclass(frozen=True)
class TrajectoryPrediction:
    """The student's path must move with the teacher: ``u + (t - s) du/dt = v(x + (t - s) u, t)`` (FreeFlow, section 4.1).

    With s = 0 and x from the source this needs no data and holds at all t exactly for the teacher's flow map. ``du/dt`` is
    a partial derivative, where MeanFlow's is along the flow. Each sample is weighted by ``1 / (mean square of the mismatch
    + eps)^weight_power``, without gradient. A student pass with gradient, two without, and a teacher's a sample.

    ``parts`` of the loss: ``mismatch``, mean norm of ``u + (t - s) du/dt - v``; ``pull``, of that times the weight;
    ``dropped``, the share of samples left out because their mismatch is not finite.

    Args:
        teacher: ``v(x, t, **condition)``, guidance inside if it has any.
        times: law of t between s and 1.
        weight_power: the paper's k: 1 where a correction follows.
        derivative, h: see :func:`end_time_derivative`.
        starts: share of samples that begin at a uniform s > 0, at the state to which the student itself jumps from the
            source (ours: without them only jumps from 0 are learned, and two or four steps are not).

    Raises:
        ValueError: a share outside [0, 1], eps or h not above 0, an unknown derivative.
    """

    teacher: VelocityField
    times: TimeSampler = field(default_factory=Uniform)
    weight_power: float = 1.0
    eps: float = 1e-3
    derivative: Literal["central", "jvp"] = "central"
    h: float = 5e-3
    starts: float = 0.0

    def __post_init__(self) -> None:
        check_share("starts", self.starts)
        if self.derivative not in ("central", "jvp"):
            raise ValueError(f"derivative must be 'central' or 'jvp', got {self.derivative!r}")
        if not self.eps > 0 or not 0 < self.h <= 0.25:
            raise ValueError(f"eps = {self.eps}, h = {self.h}: expected eps > 0 and 0 < h <= 0.25")

    def __call__(self, net: FlowMap, x0: Tensor, *, generator: torch.Generator | None, **condition: Any) -> Loss:
        t = self.times.sample(len(x0), x0, generator)
        s = torch.zeros_like(t)
        if self.starts:
            draw = torch.rand(2, len(x0), generator=generator, dtype=t.dtype, device=t.device)
            rows = (draw[0] < self.starts).nonzero().squeeze(1)
            if len(rows):
                s[rows] = draw[1][rows]
                start = s[rows]
                with torch.no_grad():
                    u = net(x0[rows], torch.zeros_like(start), start, **select(condition, rows, len(x0)))
                x0 = x0.clone()
                x0[rows] += (expand(start, u) * u).to(x0.dtype)
                t = s + (1 - s) * t
        return self.at(net, x0, s, t, **condition)

    def at(
        self,
        net: FlowMap,
        x: Float[Tensor, "batch *shape"],
        s: Float[Tensor, " batch"],
        t: Float[Tensor, " batch"],
        **condition: Any,
    ) -> Loss:
        """The loss of jumps from the states ``x`` at ``s`` to ``t``.

        Raises:
            ValueError: t < s, a teacher of another shape. TypeError: a network without a second time.
        """
        check_two_times(net)
        check_interval(x, s, t)
        u = net(x, s, t, **condition)
        known = None if torch.is_autocast_enabled(x.device.type) else u
        slope = end_time_derivative(net, x, s, t, u=known, method=self.derivative, h=self.h, **condition)
        with torch.no_grad():
            span = expand(t - s, x)
            velocity = self.teacher((x + span * u.detach()).to(x.dtype), t, **condition)
            if velocity.shape != x.shape:
                raise ValueError(f"the teacher gives {tuple(velocity.shape)} for states {tuple(x.shape)}")
            mismatch = u.detach() + span * slope - velocity
            squares = _kept(mismatch)[0].reshape(len(x), -1).to(time_dtype(x)).square().mean(1)
            weight = (squares + self.eps) ** -self.weight_power
        return _pulling(u, mismatch, weight)


class CorrectionLosses(NamedTuple):
    """What the student and what the critic learns from."""

    student: Loss
    critic: Loss


@dataclass(frozen=True)
class DistributionCorrection:
    """The student's outputs, noised again, must have the teacher's velocity (FreeFlow, section 4.2).

    A critic learns the velocity ``g`` of ``(1 - t) noise + t output`` by flow matching; the student is pushed against ``g - v``,
    at the jump from 0 to 1. From a Gaussian source ``v - g`` is a positive multiple of the teacher's score minus the
    student's: variational score distillation, the gradient of an integral of Kullback-Leibler divergences. A student
    pass and a critic's with gradient, and a teacher's without, a sample; the critic's serves both losses.

    Args:
        teacher: ``v(x, t, **condition)``; guided, it wants a tighter interval than sampling: the paper's is noise up to
            0.7, times from 0.3.
        times: law of the level; the default is the paper's, ``1 - sigmoid(0.8 + z)``: towards the noise.
        interval: the draws of ``times`` are stretched over it; (0.4, 1.0) is noise up to 0.6 only.

    Raises:
        ValueError: an interval that is none.
    """

    teacher: VelocityField
    times: TimeSampler = field(default_factory=lambda: LogitNormal(-0.8, 1.0))
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"interval must be (low, high) with 0 <= low < high <= 1, got {self.interval}")

    def __call__(
        self,
        net: FlowMap,
        critic: VelocityField,
        x0: Tensor,
        noise: Tensor,
        *,
        generator: torch.Generator | None,
        **condition: Any,
    ) -> CorrectionLosses:
        low, high = self.interval
        t = low + (high - low) * self.times.sample(len(x0), x0, generator)
        return self.at(net, critic, x0, noise, t, **condition)

    def at(
        self,
        net: FlowMap,
        critic: VelocityField,
        x0: Float[Tensor, "batch *shape"],
        noise: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        **condition: Any,
    ) -> CorrectionLosses:
        """Both losses for source samples ``x0``, whose outputs are mixed with fresh ``noise`` of the source at levels ``t``.

        Raises:
            ValueError: a teacher of another shape. TypeError: a student without a second time.
        """
        check_two_times(net)
        u = net(x0, torch.zeros_like(t), torch.ones_like(t), **condition)
        output = (x0 + u).detach().to(x0.dtype)
        seen: list[Tensor] = []

        def watched(y: Tensor, time: Tensor, **extra: Any) -> Tensor:
            seen.extend([y, critic(y, time, **extra)])
            return seen[1]

        loss = FlowMatching().at(watched, noise, output, t, **condition)
        y, own = seen
        with torch.no_grad():
            velocity = self.teacher(y, t, **condition)
            if velocity.shape != x0.shape:
                raise ValueError(f"the teacher gives {tuple(velocity.shape)} for states {tuple(x0.shape)}")
            mismatch = own.detach() - velocity
        return CorrectionLosses(_pulling(u, mismatch), loss)


class StudentAndCritic(nn.Module):
    """The two networks that :class:`FreeFlow` trains together, with the counts that it goes on from after a checkpoint.

    Args:
        student: a flow map ``u(x, s, t, **condition)``.
        critic: a velocity network ``g(x, t, **condition)``.
    """

    def __init__(self, student: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        check_two_times(student)
        self.student, self.critic = student, critic
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("bad_steps", torch.zeros((), dtype=torch.int64))
        self.steps: Tensor
        self.bad_steps: Tensor

    def forward(self, x: Tensor, *times: Any, **condition: Any) -> Tensor:
        """The student for two times, the critic for one."""
        return (self.student if len(times) == 2 else self.critic)(x, *times, **condition)


@dataclass(frozen=True)
class FreeFlow:
    """Prediction and correction in one step, from batches of the source alone: ``fit(StudentAndCritic(...), FreeFlow(...))``.

    ``loss = prediction + balance correction + critic``, where ``balance = alpha E|weighted prediction mismatch| / E|correction
    mismatch|`` makes both pull equally (without gradient; the means are over all processes). Gradients do not mix: the
    student's terms give none to the critic, the critic's none to the student, and nothing reaches a teacher.

    ``parts`` of the loss: ``prediction`` and ``correction`` (mean norms of the mismatches: the curves to look at), ``critic``
    (its loss), ``balance``, ``dropped`` (share of samples whose mismatch was not finite; they are left out).

    Args:
        source: of the teacher.
        conditions: ``conditions(n, generator)`` gives the conditions of n samples by name; None is unconditional.
        batch_size: of each process.
        split: share of the batch that is prediction; 1 is prediction alone, 0 correction alone (its pull then has norm
            ``alpha``).
        alpha: pull of the correction over that of the prediction. The paper's 0.3 to 3 are stable for its large networks; our
            small ones, whose critic learns within hundreds of steps, drifted at 1 and at 0.3 and not at 0.1.
        warmup: steps before the correction acts, in which the critic learns (ours).

    Raises:
        ValueError: a split or an alpha out of range, a batch too small to be split.
        FloatingPointError: when called, if samples had to be dropped in 10 steps in a row.
    """

    prediction: TrajectoryPrediction
    correction: DistributionCorrection
    source: Source
    conditions: Conditions | None = None
    batch_size: int = 256
    split: float = 0.75
    alpha: float = 0.1
    warmup: int = 200

    def __post_init__(self) -> None:
        check_share("split", self.split)
        check_count("warmup", self.warmup, 0)
        mixed = 0 < self.split < 1
        check_count("batch_size", self.batch_size, 2 if mixed else 1)
        if not self.alpha > 0:
            raise ValueError(f"alpha must be > 0, got {self.alpha}")

    @property
    def rows(self) -> tuple[int, int]:
        """Samples of the prediction and of the correction, at least one of each that has a share."""
        ahead = round(self.split * self.batch_size)
        if 0 < self.split < 1:
            ahead = min(max(1, ahead), self.batch_size - 1)
        return ahead, self.batch_size - ahead

    def __call__(self, net: nn.Module, *, generator: torch.Generator) -> Loss:
        own = net.module if isinstance(net, nn.parallel.DistributedDataParallel) else net
        if not isinstance(own, StudentAndCritic):
            raise TypeError(f"FreeFlow trains a StudentAndCritic, got {type(own).__name__}")
        here = next(own.parameters())
        total = here.new_zeros(())
        per_sample, parts, dropped, pull = [], {}, here.new_zeros(()), here.new_ones(())
        ahead, behind = self.rows
        if ahead:
            x0, condition = self._draw(ahead, here, generator)
            loss = self.prediction(net, x0, generator=generator, **condition)
            total, dropped, pull = total + loss.value, dropped + loss.parts["dropped"], _common(loss.parts["pull"])
            per_sample.append(loss.per_sample)
            parts["prediction"] = loss.parts["mismatch"]
        if behind:
            x0, condition = self._draw(behind, here, generator)
            noise = self.source.sample(behind, generator=generator).to(here)
            student, critic = self.correction(net, net, x0, noise, generator=generator, **condition)
            balance = self.alpha * pull / (_common(student.parts["mismatch"]) + 1e-6)
            # Always part of the graph, so that every parameter has a gradient on every process.
            acting = float(int(own.steps) >= self.warmup)
            total = total + acting * balance * student.value + critic.value
            dropped = dropped + student.parts["dropped"]
            per_sample.append(critic.per_sample)
            parts |= {"correction": student.parts["mismatch"], "critic": critic.value.detach(), "balance": balance}
        own.steps += 1
        own.bad_steps.copy_(torch.where(dropped > 0, own.bad_steps + 1, torch.zeros_like(own.bad_steps)))
        if int(own.bad_steps) >= _BAD_STEPS:
            raise FloatingPointError(
                f"the mismatch was not finite for some samples in {_BAD_STEPS} steps in a row (step {int(own.steps)}): "
                "look at the teacher's values; the checkpoint is that of the last finite step written"
            )
        return Loss(total, torch.cat(per_sample), parts | {"dropped": dropped})

    def _draw(self, n: int, like: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        x0 = self.source.sample(n, generator=generator).to(like)
        drawn = {} if self.conditions is None else dict(self.conditions(n, generator))
        placed = {name: v.to(like.device) if isinstance(v, Tensor) else v for name, v in drawn.items()}
        return x0, placed


def _common(value: Tensor) -> Tensor:
    """Its mean over all processes."""
    workers = world()[1]
    if workers > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
        value = value / workers
    return value
