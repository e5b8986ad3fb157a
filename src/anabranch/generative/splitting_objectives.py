"""Objectives of flow maps by splitting intervals: algebraic identities, forward passes only."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_count, check_pair, check_share, expand, select, time_dtype
from anabranch.generative.fields import VelocityField
from anabranch.generative.flow_maps import FlowMap
from anabranch.generative.objectives import Loss, check_interval, check_two_times, squared_error_loss
from anabranch.generative.paths import GaussianPath, LinearPath, PathSample
from anabranch.generative.time_samplers import TimeSampler, TwoTimes, Uniform


def interval_split_target(
    u: FlowMap,
    x: Float[Tensor, "batch *shape"],
    s: Float[Tensor, " batch"],
    t: Float[Tensor, " batch"],
    split: Float[Tensor, " batch"],
    **condition: Any,
) -> Float[Tensor, "batch *shape"]:
    """``split u(x_s, s, m) + (1 - split) u(x_m, m, t)``, ``m = s + split (t - s)``, ``x_m = x_s + (m - s) u(x_s, s, m)``.

    Interval Splitting Consistency (SplitMeanFlow, 2507.16884, in our direction): of a true flow map this is
    ``u(x_s, s, t)`` for every split. Two calls.

    Raises:
        ValueError: t < s or a split outside [0, 1].
    """
    check_interval(x, s, t, split)
    return _split_target(u, x, s, t, split, condition)


def _split_target(u: Any, x: Tensor, s: Tensor, t: Tensor, split: Tensor, condition: Mapping[str, Any]) -> Tensor:
    m = torch.lerp(s, t, split)
    first = u(x, s, m, **condition)
    second = u((x + expand(m - s, x) * first).to(x.dtype), m, t, **condition)
    weight = expand(split, x)
    return (weight * first + (1 - weight) * second).to(x.dtype)


def interval_split_residual(
    u: FlowMap,
    x: Float[Tensor, "batch *shape"],
    s: Float[Tensor, " batch"],
    m: Float[Tensor, " batch"],
    t: Float[Tensor, " batch"],
    **condition: Any,
) -> Float[Tensor, " batch"]:
    """Norm per sample of ``(t - s) u(x_s, s, t) - (m - s) u(x_s, s, m) - (t - m) u(x_m, m, t)``: 0 for a true flow map.

    Raises:
        ValueError: not s <= m <= t.
    """
    check_interval(x, s, m)
    check_interval(x, m, t)
    first = expand(m - s, x) * u(x, s, m, **condition)
    second = expand(t - m, x) * u(x + first, m, t, **condition)
    whole = expand(t - s, x) * u(x, s, t, **condition)
    return torch.linalg.vector_norm((whole - first - second).reshape(len(x), -1), dim=1)


def _split_loss(
    net: FlowMap,
    target_net: FlowMap,
    point: PathSample,
    s: Tensor,
    t: Tensor,
    split: Tensor,
    velocity: VelocityField | None,
    power: float,
    condition: dict[str, Any],
) -> Loss:
    """Boundary samples (t = s) against the velocity, the others against the split target; each target on its rows only."""
    x, batch = point.x_t, len(s)
    boundary = s == t
    target = point.velocity.clone()
    with torch.no_grad():
        rows = boundary.nonzero().squeeze(1)
        if velocity is not None and len(rows):
            target[rows] = velocity(x[rows], s[rows], **select(condition, rows, batch))
        rows = (~boundary).nonzero().squeeze(1)
        if len(rows):
            target[rows] = _split_target(
                target_net, x[rows], s[rows], t[rows], split[rows], select(condition, rows, batch)
            )
    return squared_error_loss(
        net(x, s, t, **condition) - target, power, {"boundary": boundary, "consistency": ~boundary}
    )


@dataclass(frozen=True)
class SplitMeanFlow:
    """Interval Splitting Consistency with a boundary term (SplitMeanFlow, 2507.16884, algorithm 1).

    Three forward passes and one backward for consistency samples, one and one for boundary samples; no derivative of the
    network with respect to its input.

    Args:
        times: both times' law.
        flow_ratio: the share of boundary samples (t := s). Without them every constant satisfies the identity; the
            paper asks for at least 0.5.
        split: where intervals are split: "uniform", "half", or ``(a, b)`` of a Beta law.
        velocity: the teacher at the boundary, with guidance inside if it has any; None takes the pair's own velocity.
        target: the network that gives the targets (an average of the weights, say); None is the trained one.
    """

    path: GaussianPath = field(default_factory=LinearPath)
    times: TimeSampler = field(default_factory=Uniform)
    flow_ratio: float = 0.5
    split: Literal["uniform", "half"] | tuple[float, float] = "uniform"
    velocity: VelocityField | None = None
    target: FlowMap | None = None
    weight_power: float = 0.0

    def __post_init__(self) -> None:
        check_share("flow_ratio", self.flow_ratio)
        if isinstance(self.split, str) and self.split not in ("uniform", "half"):
            raise ValueError(f"split must be 'uniform', 'half' or (a, b) of a Beta law, got {self.split!r}")
        if isinstance(self.split, tuple) and not (len(self.split) == 2 and min(self.split) > 0):
            raise ValueError(f"split as a Beta law needs two positive numbers, got {self.split}")
        if self.flow_ratio < 0.5:
            warnings.warn(
                f"flow_ratio = {self.flow_ratio}: the identity alone has constant solutions; below 0.5 training may "
                "collapse to one",
                stacklevel=2,
            )

    def __call__(
        self, net: FlowMap, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None, **condition: Any
    ) -> Loss:
        check_pair(x0, x1)
        s, t = TwoTimes(self.times, self.flow_ratio).sample_pair(len(x1), x1, generator)
        return self.at(net, x0, x1, s, t, self._splits(s, generator), **condition)

    def _splits(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.split == "half":
            return torch.full_like(like, 0.5)
        if self.split == "uniform":
            return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
        # Of a and b standard gamma variables; torch's gamma sampler takes the generator, its Beta class does not.
        shapes = torch.tensor(self.split, dtype=like.dtype, device=like.device)[:, None].expand(2, len(like))
        a, b = torch._standard_gamma(shapes.contiguous(), generator=generator)
        return a / (a + b)

    def at(
        self,
        net: FlowMap,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        s: Float[Tensor, " batch"],
        t: Float[Tensor, " batch"],
        split: Float[Tensor, " batch"],
        **condition: Any,
    ) -> Loss:
        """The loss on the intervals from ``s`` to ``t`` (``t = s`` is a boundary sample) with these splits.

        Raises:
            ValueError: shapes that differ, t < s, a split outside [0, 1]. TypeError: a network without a second time.
        """
        check_two_times(net)
        check_interval(x1, s, t, split)
        point = self.path.sample(x0, x1, s)
        target = net if self.target is None else self.target
        return _split_loss(net, target, point, s, t, split, self.velocity, self.weight_power, condition)


@dataclass(frozen=True)
class Shortcut:
    """Shortcut models (Frans et al., 2410.12557): halves only, on dyadic intervals ``2^-k``, k < ``levels``.

    The interval's start is a multiple of its length. Boundary samples have length 0 (the authors give theirs the
    smallest length).
    """

    path: GaussianPath = field(default_factory=LinearPath)
    times: TimeSampler = field(default_factory=Uniform)
    levels: int = 7
    flow_ratio: float = 0.75
    velocity: VelocityField | None = None
    target: FlowMap | None = None
    weight_power: float = 0.0

    def __post_init__(self) -> None:
        check_share("flow_ratio", self.flow_ratio)
        check_count("levels", self.levels)

    def __call__(
        self, net: FlowMap, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None, **condition: Any
    ) -> Loss:
        check_pair(x0, x1)
        n = len(x1)
        boundary = torch.rand(n, generator=generator, device=x1.device) < self.flow_ratio
        pieces = 2 ** torch.randint(self.levels, (n,), generator=generator, device=x1.device)
        where = torch.rand(n, generator=generator, dtype=torch.float64, device=x1.device)
        length = 1 / pieces.to(time_dtype(x1))
        start = (where * pieces).floor().to(length.dtype) * length
        s = torch.where(boundary, self.times.sample(n, x1, generator), start)
        return self.at(net, x0, x1, s, torch.where(boundary, s, s + length), **condition)

    def at(
        self,
        net: FlowMap,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        s: Float[Tensor, " batch"],
        t: Float[Tensor, " batch"],
        **condition: Any,
    ) -> Loss:
        """The loss on the intervals from ``s`` to ``t`` (``t = s`` is a boundary sample).

        Raises:
            ValueError: shapes that differ, t < s. TypeError: a network without a second time.
        """
        check_two_times(net)
        check_interval(x1, s, t)
        point, half = self.path.sample(x0, x1, s), torch.full_like(s, 0.5)
        target = net if self.target is None else self.target
        return _split_loss(net, target, point, s, t, half, self.velocity, self.weight_power, condition)


@dataclass(frozen=True)
class Consistency:
    """Consistency models (Song et al., 2303.01469): the map to the data end agrees at neighbouring times of a grid.

    ``f(x, s) = x + (1 - s) u(x, s, 1)``; ``f(x_s, s)`` is held to ``f(x_m, m)`` without gradient, ``x_m`` one Euler step of
    the teacher's velocity ahead. At the last step ``f(x_1, 1) = x_1``, so the boundary condition holds by construction. The
    error is that of the end point, ``(1 - s) (u - target)``.

    Args:
        intervals: of the uniform grid on [0, 1].
        velocity: the teacher's (distillation); None takes the pair's own (consistency training).
        target: the network that gives the targets; None is the trained one.
    """

    path: GaussianPath = field(default_factory=LinearPath)
    intervals: int = 32
    velocity: VelocityField | None = None
    target: FlowMap | None = None
    weight_power: float = 0.0

    def __post_init__(self) -> None:
        check_count("intervals", self.intervals)

    def __call__(
        self, net: FlowMap, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None, **condition: Any
    ) -> Loss:
        check_pair(x0, x1)
        index = torch.randint(self.intervals, (len(x1),), generator=generator, device=x1.device)
        s, m = (i.to(torch.float64).div(self.intervals).to(time_dtype(x1)) for i in (index, index + 1))
        return self.at(net, x0, x1, s, m, **condition)

    def at(
        self,
        net: FlowMap,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        s: Float[Tensor, " batch"],
        m: Float[Tensor, " batch"],
        **condition: Any,
    ) -> Loss:
        """The loss at the pairs of times ``s < m``.

        Raises:
            ValueError: shapes that differ, m < s. TypeError: a network without a second time.
        """
        check_two_times(net)
        check_interval(x1, s, m)
        point, end = self.path.sample(x0, x1, s), torch.ones_like(s)
        with torch.no_grad():
            velocity = point.velocity if self.velocity is None else self.velocity(point.x_t, s, **condition)
            ahead = (point.x_t + expand(m - s, x1) * velocity).to(x1.dtype)
            target = ahead + expand(1 - m, x1) * (self.target or net)(ahead, m, end, **condition)
        here = point.x_t + expand(1 - s, x1) * net(point.x_t, s, end, **condition)
        return squared_error_loss(here - target, self.weight_power)
