"""Distillation by trajectories: two-time consistency, progressive halving, and reflow from a teacher's pairs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_count, check_pair, check_share, expand, time_dtype
from anabranch.generative.couplings import Fixed
from anabranch.generative.fields import VelocityField
from anabranch.generative.flow_maps import FlowMap, flow_map_from_field
from anabranch.generative.loss_weights import error_ratio
from anabranch.generative.objectives import FlowMatching, Loss, check_interval, check_two_times, squared_error_loss
from anabranch.generative.parametrization import Prediction, check_prediction, convert
from anabranch.generative.paths import GaussianPath, LinearPath
from anabranch.generative.solve import solve
from anabranch.generative.solvers import get_solver
from anabranch.generative.sources import Source
from anabranch.generative.time_samplers import TwoTimes


@dataclass(frozen=True)
class ConsistencyTrajectory:
    """Two-time consistency (CTM, Kim et al., 2310.02279): jumping from s to t agrees with moving to m, then jumping.

    ``x_s + (t - s) u(x_s, s, t)`` is held to ``x_m + (t - m) u(x_m, m, t)`` without gradient, ``s < m <= t``; ``x_m`` is
    ``solver_steps`` steps of the teacher from ``x_s``, or without a teacher the same pair's point at m (consistency
    training, exact on every path as m tends to s). Boundary samples (t = s) regress the velocity, as CTM's denoising term.
    The error is that of the state at t (CTM maps both states on to the data first; ours does not). With ``t = 1`` and one
    Euler step it is :class:`Consistency`.

    Args:
        times: law of (s, t); its boundary share trains the velocity itself.
        velocity: the teacher; None is teacher-free.
        solver: of the teacher, a deterministic velocity solver ("heun": CTM's and EDM's choice).
        reach: m is uniform in the first ``reach`` of the interval.
        target: the network that gives the targets; None is the trained one.

    Raises:
        ValueError: a share outside [0, 1], a solver that is not deterministic.
    """

    path: GaussianPath = field(default_factory=LinearPath)
    times: TwoTimes = field(default_factory=TwoTimes)
    velocity: VelocityField | None = None
    solver: Any = "heun"
    solver_steps: int = 1
    reach: float = 1.0
    target: FlowMap | None = None
    weight_power: float = 0.0

    def __post_init__(self) -> None:
        check_share("reach", self.reach)
        check_count("solver_steps", self.solver_steps)
        if not get_solver(self.solver).reversible:
            raise ValueError(f"solver {self.solver!r} is no deterministic velocity solver: take 'heun' or 'euler'")

    def __call__(
        self, net: FlowMap, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None, **condition: Any
    ) -> Loss:
        check_pair(x0, x1)
        s, t = self.times.sample_pair(len(x1), x1, generator)
        share = torch.rand(s.shape, generator=generator, dtype=s.dtype, device=s.device)
        return self.at(net, x0, x1, s, torch.lerp(s, t, self.reach * share), t, **condition)

    def at(
        self,
        net: FlowMap,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        s: Float[Tensor, " batch"],
        m: Float[Tensor, " batch"],
        t: Float[Tensor, " batch"],
        **condition: Any,
    ) -> Loss:
        """The loss for jumps from ``s`` to ``t`` by way of ``m``.

        Raises:
            ValueError: shapes that differ, not s <= m <= t. TypeError: a network without a second time.
        """
        check_two_times(net)
        check_interval(x1, s, m)
        check_interval(x1, m, t)
        point, boundary = self.path.sample(x0, x1, s), s == t
        with torch.no_grad():
            if self.velocity is None:
                velocity, middle = point.velocity, self.path.sample(x0, x1, m).x_t
            else:
                velocity = self.velocity(point.x_t, s, **condition)
                teacher = flow_map_from_field(self.velocity, self.solver, self.solver_steps)
                middle = point.x_t + expand(m - s, x1) * teacher(point.x_t, s, m, **condition)
                middle = middle.to(x1.dtype)
            end = middle + expand(t - m, x1) * (self.target or net)(middle, m, t, **condition)
        u = net(point.x_t, s, t, **condition)
        error = point.x_t + expand(t - s, x1) * u - end
        error = torch.where(expand(boundary, x1), u - velocity, error)
        return squared_error_loss(error, self.weight_power, {"boundary": boundary, "consistency": ~boundary})


@dataclass(frozen=True)
class ProgressiveDistillation:
    """One DDIM step of the student does two of the teacher's (Salimans and Ho, 2202.00512, algorithm 2).

    The student takes ``steps`` uniform steps from 0 to 1, the teacher twice as many; both are velocity fields on ``path``.
    The target is the one prediction whose DDIM step lands where the teacher's two do.

    Args:
        teacher: the field to distil, often the student of the round before.
        steps: of the student.
        measured_in: the kind whose squared error is the loss: "velocity" is, on variance-preserving paths, their
            "SNR + 1" weighting up to the speed of the path; "denoised" and "noise" are the plain losses of those.

    Raises:
        ValueError: steps < 1, an unknown kind.
    """

    teacher: VelocityField
    steps: int
    path: GaussianPath = field(default_factory=LinearPath)
    measured_in: Prediction = "velocity"
    weight_power: float = 0.0

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_prediction("measured_in", self.measured_in)

    def __call__(
        self, net: VelocityField, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None, **condition: Any
    ) -> Loss:
        index = torch.randint(self.steps, (len(x1),), generator=generator, device=x1.device)
        return self.at(net, x0, x1, (index.to(torch.float64) / self.steps).to(time_dtype(x1)), **condition)

    def at(
        self,
        net: VelocityField,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        s: Float[Tensor, " batch"],
        **condition: Any,
    ) -> Loss:
        """The loss for student steps that begin at ``s``.

        Raises:
            ValueError: shapes that differ.
        """
        point = self.path.sample(x0, x1, s)
        error = net(point.x_t, s, **condition) - self.goal(point.x_t, s, **condition)
        if self.measured_in != "velocity":
            error = expand(error_ratio(self.path, "velocity", self.measured_in, s), error) * error
        return squared_error_loss(error, self.weight_power)

    def goal(
        self, x: Float[Tensor, "batch *shape"], s: Float[Tensor, " batch"], **condition: Any
    ) -> Float[Tensor, "batch *shape"]:
        """The velocity whose one DDIM step from ``s`` ends where the teacher's two steps do. No gradient."""
        half = 0.5 / self.steps
        middle, end = s + half, (s + 2 * half).clamp(max=1)
        with torch.no_grad():
            state = x
            for a, b in ((s, middle), (middle, end)):
                v = self.teacher(state, a, **condition)
                denoised = convert(v, state, a, self.path, "velocity", "denoised")
                keep, add = self._ddim(a, b, x)
                state = keep * state + add * denoised
            keep, add = self._ddim(s, end, x)
            wanted = (state - keep * x) / add
            return convert(wanted.to(x.dtype), x, s, self.path, "denoised", "velocity")

    def _ddim(self, a: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        keep = self.path.sigma(b) / self.path.sigma(a)
        return expand(keep, x), expand(self.path.alpha(b) - self.path.alpha(a) * keep, x)


def teacher_pairs(
    field: VelocityField,
    source: Source,
    n: int,
    times: Float[Tensor, " points"],
    *,
    generator: torch.Generator | None,
    solver: Any = "heun",
    batch_size: int = 1024,
    label: Tensor | None = None,
    **condition: Any,
) -> Fixed:
    """``n`` pairs (source sample, where the field carries it), for reflow (Liu et al., 2209.03003).

    Cost: ``n`` solves in batches; both ends of all pairs are kept.

    Args:
        label: ``[n]``, given to the field as ``label`` and kept with the pairs.

    Raises:
        ValueError: n or batch_size < 1, a stochastic solver, labels of another number.
    """
    check_count("n", n)
    check_count("batch_size", batch_size)
    if getattr(get_solver(solver), "stochastic", False):
        raise ValueError(f"solver {solver!r} is stochastic: its ends do not belong to their starts")
    if label is not None and label.shape != (n,):
        raise ValueError(f"label has shape {tuple(label.shape)}: expected [{n}]")
    starts, ends = [], []
    for first in range(0, n, batch_size):
        rows = slice(first, min(n, first + batch_size))
        extra: dict[str, Any] = {} if label is None else {"label": label[rows]}
        x0 = source.sample(rows.stop - first, generator=generator)
        starts.append(x0)
        ends.append(solve(field, x0, times, solver, **{**condition, **extra}))
    return Fixed(torch.cat(starts), torch.cat(ends), label)


@dataclass(frozen=True)
class Reflow:
    """An objective on stored pairs that draws its own batches: ``reflow(net, generator=generator) -> Loss``.

    Args:
        pairs: as :func:`teacher_pairs` makes them.
        objective: any that is called ``(net, x0, x1, generator=...)``; flow matching is reflow proper.
    """

    pairs: Fixed
    batch_size: int = 128
    objective: Callable[..., Loss] = field(default_factory=FlowMatching)

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)

    def __call__(self, net: VelocityField, *, generator: torch.Generator | None) -> Loss:
        x0, x1, label = self.pairs.draw(self.batch_size, generator=generator)
        extra = {} if label is None else {"label": label}
        return self.objective(net, x0, x1, generator=generator, **extra)
