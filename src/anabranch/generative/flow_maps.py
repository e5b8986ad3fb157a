"""Flow maps: the average velocity ``u(x, s, t)`` from the state at the START s to the end t, and jumps along it.

``x_t = x_s + (t - s) u(x_s, s, t)`` and ``u(x, s, s) = v(x, s)``. Most papers give the state at the noisy end with time
reversed; their ``u`` is minus ours, their later time our ``1 - s``.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anabranch.generative._checks import as_time, check_count, check_times, expand, time_dtype
from anabranch.generative.fields import VelocityField
from anabranch.generative.solve import Progress, solve
from anabranch.generative.solvers import get_solver
from anabranch.generative.times import uniform_times


@runtime_checkable
class FlowMap(Protocol):
    """An average velocity."""

    def __call__(self, *x_s_t: Any, **condition: Any) -> Tensor:
        """``u(x, s, t, **condition)``, shaped like ``x``.

        ``x`` ``[B, ...]`` is the state at ``s``, ``t`` the end; both times are numbers, 0-d or ``[B]``.
        """


def jump(
    flow_map: FlowMap,
    x: Float[Tensor, "batch *shape"],
    times: Float[Tensor, " points"],
    *,
    differentiable: bool = False,
    progress: Progress | None = None,
    **condition: Any,
) -> Float[Tensor, "batch *shape"]:
    """Samples with one call of ``flow_map`` per interval of ``times``: ``uniform_times(1)`` is one-step generation.

    Raises:
        ValueError: times that are not strictly increasing in [0, 1].
        FloatingPointError: the result is not finite.
    """
    grid = check_times(times)
    at, steps = grid.to(x.device, time_dtype(x)).unbind(), grid.diff().tolist()
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        for i, step in enumerate(steps):
            x = torch.add(x, flow_map(x, at[i], at[i + 1], **condition), alpha=step)
            if progress is not None:
                progress(i + 1, len(steps), {})
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError("the flow map's result is not finite")
    return x


@dataclass(frozen=True)
class SolvedFlowMap:
    """The flow map of a field by a solver (see :func:`flow_map_from_field`)."""

    field: VelocityField
    solver: Any
    n: int

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        s: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        /,
        **condition: Any,
    ) -> Float[Tensor, "batch *shape"]:
        start = as_time(s, x)
        span = as_time(t, x) - start

        # z = (x_r - x_s) / (t - s) solves dz/dr = v(x_s + (t - s) z, s + r (t - s)): u is z(1), also where t = s.
        def scaled(z: Tensor, r: Tensor, **extra: Any) -> Tensor:
            return self.field((x + expand(span, x) * z).to(x.dtype), start + r * span, **extra)

        return solve(scaled, torch.zeros_like(x), uniform_times(self.n), self.solver, differentiable=True, **condition)


def flow_map_from_field(field: VelocityField, solver: Any = "rk4", n: int = 64) -> SolvedFlowMap:
    """The average velocity of ``field``, solved with ``n`` steps over any interval, each sample its own.

    Raises:
        ValueError: n < 1, or a solver that is not a deterministic velocity solver.
    """
    check_count("n", n)
    if not get_solver(solver).reversible:
        raise ValueError(f"solver {solver!r} is no deterministic velocity solver: take 'rk4' or 'midpoint'")
    return SolvedFlowMap(field, solver, n)


class IntervalEmbedding(nn.Module):
    """Features of an interval's length ``[B]`` in ``[B, width]``; zero at first, because the last layer starts at 0."""

    def __init__(self, width: int, *, octaves: int = 2, hidden: int = 128) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(octaves), persistent=False)
        self.frequencies: Tensor
        self.hidden = nn.Linear(2 * octaves + 1, hidden)
        self.out = nn.Linear(hidden, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, interval: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        interval = interval.to(self.hidden.weight.dtype)
        phases = interval[:, None] * self.frequencies.to(interval.dtype)
        features = torch.cat([interval[:, None], torch.sin(phases), torch.cos(phases)], 1)
        return self.out(nn.functional.silu(self.hidden(features)))


class FlowMapModel(nn.Module):
    """A velocity network with a second time: ``u(x, s, t)`` is the network at ``(x, s)`` whose time embedding has the
    embedding of ``t - s`` added. At initialisation it equals the velocity exactly, for every t.

    Args:
        net: ``net(x, t, **condition)`` with ``t`` ``[B]``.
        embedding: dotted name of the submodule whose output ``[B, width]`` is the time embedding.
        width: of that output.

    Raises:
        ValueError: no submodule of that name.
    """

    def __init__(self, net: nn.Module, *, embedding: str, width: int) -> None:
        super().__init__()
        names = dict(net.named_modules())
        if not embedding or embedding not in names:
            raise ValueError(f"embedding {embedding!r} is no submodule of the network: {', '.join(list(names)[1:])}")
        self.net = net
        self.interval = IntervalEmbedding(width)
        self.embedding = embedding
        self._now: Tensor | None = None
        submodule = net.get_submodule(embedding)
        self._hook = submodule.register_forward_hook(lambda module, given, out: self._add(out)).id

    def _add(self, out: Tensor) -> Tensor:
        if self._now is None:
            return out
        if out.ndim != 2 or out.shape[1] != self.interval.out.out_features:
            raise ValueError(
                f"submodule {self.embedding!r} gives {tuple(out.shape)}: expected a time embedding "
                f"[B, {self.interval.out.out_features}]"
            )
        return out + self.interval(self._now).to(out.dtype)

    @classmethod
    def from_velocity(cls, net: nn.Module, *, embedding: str = "time_embedding") -> "FlowMapModel":
        """A flow map that starts as a copy of the velocity network ``net``; its weights are copied, not shared.

        The width is that of the embedding's last linear layer.

        Raises:
            ValueError: no such submodule, or no linear layer in it to read the width from.
        """
        module = dict(net.named_modules()).get(embedding)
        linears = [] if module is None else [part for part in module.modules() if isinstance(part, nn.Linear)]
        if module is not None and not linears:
            raise ValueError(f"embedding {embedding!r} has no linear layer: use FlowMapModel(net, embedding=, width=)")
        model = cls(copy.deepcopy(net), embedding=embedding, width=linears[-1].out_features if linears else 1)
        reference = next(net.parameters())
        model.interval.to(reference.device, reference.dtype)
        return model.train(net.training)

    def forward(
        self,
        x: Float[Tensor, "batch *shape"],
        s: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        **condition: Any,
    ) -> Float[Tensor, "batch *shape"]:
        start = as_time(s, x).expand(len(x))
        self._now = as_time(t, x).expand(len(x)) - start
        try:
            return self.net(x, start, **condition)
        finally:
            self._now = None

    def velocity(self) -> Callable[..., Tensor]:
        """The instantaneous velocity ``u(x, t, t)`` as a field."""
        return lambda x, t, **condition: self(x, t, t, **condition)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FlowMapModel":
        """A copy whose hook is its own (the copied one would add the original's interval)."""
        net = copy.deepcopy(self.net, memo)
        del net.get_submodule(self.embedding)._forward_hooks[self._hook]
        twin = type(self)(net, embedding=self.embedding, width=self.interval.out.out_features)
        twin.interval = copy.deepcopy(self.interval, memo)
        return twin.train(self.training)
