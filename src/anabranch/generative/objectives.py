"""Training objectives: frozen dataclasses called ``(net, x0, x1, *, generator, **condition) -> Loss``.

Each has ``at(...)``, the same loss at times that are given: exact, and what the tests compare. ``per_sample`` is the mean
squared error over a sample's entries; ``value`` its mean over the batch, each sample weighted by
``1 / (||error||^2 + 1e-3)^p`` without gradient (MeanFlow's adaptive weight, 2505.13447, equation 22; p = ``weight_power``,
0 by default), where ``||error||^2`` is the sum over entries.

Flow maps take the state at the START of the interval (see :mod:`anabranch.generative.flow_maps`).
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anabranch.generative._checks import check_pair, expand, time_dtype
from anabranch.generative.fields import VelocityField
from anabranch.generative.flow_maps import FlowMap
from anabranch.generative.paths import GaussianPath, LinearPath
from anabranch.generative.time_samplers import TimeSampler, TwoTimes, Uniform


@dataclass(frozen=True)
class Loss:
    """``value``: what to differentiate. ``per_sample``: ``[B]``, unweighted. ``parts``: means of named shares of it."""

    value: Float[Tensor, ""]
    per_sample: Float[Tensor, " batch"]
    parts: Mapping[str, Tensor] = field(default_factory=dict)


def squared_error_loss(error: Tensor, power: float, parts: Mapping[str, Tensor] | None = None) -> Loss:
    """The loss of an error ``[B, ...]``; ``parts`` are masks over samples."""
    squares = error.reshape(len(error), -1).to(time_dtype(error)) ** 2
    per_sample = squares.mean(1)
    value = per_sample.mean() if power == 0 else (per_sample / (squares.sum(1).detach() + 1e-3) ** power).mean()
    plain = per_sample.detach()
    means = {name: (plain * mask).sum() / mask.sum().clamp(min=1) for name, mask in (parts or {}).items()}
    return Loss(value, per_sample, means)


def check_two_times(net: Any) -> None:
    """``net`` takes a second time.

    Raises:
        TypeError: it does not.
    """
    try:
        signature = inspect.signature(net.forward if isinstance(net, nn.Module) else net)
    except (TypeError, ValueError):
        return
    kinds = [p.kind for p in signature.parameters.values()]
    positional = sum(
        kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds
    )
    if positional < 3 and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise TypeError(
            f"{type(net).__name__} takes {positional} positional arguments: this objective trains a flow map, "
            "net(x, s, t); FlowMapModel.from_velocity(net) makes one of a velocity network"
        )


def check_interval(x: Tensor, s: Tensor, t: Tensor, split: Tensor | None = None) -> None:
    if s.shape != (len(x),) or t.shape != (len(x),):
        raise ValueError(f"s and t have shapes {tuple(s.shape)} and {tuple(t.shape)}: expected [{len(x)}] each")
    if bool((t < s).any()):
        i = int((t < s).nonzero()[0])
        raise ValueError(f"t[{i}] = {float(t[i])} is before s[{i}] = {float(s[i])}: s is the start of the interval")
    if split is not None and not bool(((split >= 0) & (split <= 1)).all()):
        raise ValueError(f"split must be in [0, 1], got {split.tolist()}")


@dataclass(frozen=True)
class FlowMatching:
    """Regression of the conditional velocity (Lipman et al., 2210.02747; Liu et al., 2209.03003; Tong et al., 2302.00482).

    With a coupling's pairs as ``(x0, x1)`` it is OT flow matching; with a teacher's pairs it is reflow.

    Args:
        weight: ``weight(t) -> [B]`` on each sample, as :func:`loss_weight` gives it; None is 1.
    """

    path: GaussianPath = field(default_factory=LinearPath)
    times: TimeSampler = field(default_factory=Uniform)
    weight: Callable[[Tensor], Tensor] | None = None
    weight_power: float = 0.0

    def __call__(
        self, net: VelocityField, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None, **condition: Any
    ) -> Loss:
        return self.at(net, x0, x1, self.times.sample(len(x1), x1, generator), **condition)

    def at(
        self,
        net: VelocityField,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        **condition: Any,
    ) -> Loss:
        """The loss at times ``t``.

        Raises:
            ValueError: shapes that differ.
        """
        point = self.path.sample(x0, x1, t)
        error = net(point.x_t, point.t, **condition) - point.velocity
        if self.weight is not None:
            error = expand(self.weight(t).sqrt(), error) * error
        return squared_error_loss(error, self.weight_power)


@dataclass(frozen=True)
class MeanFlow:
    """The differential identity ``u = v + (t - s) du/ds`` along the flow (Geng et al., 2505.13447, in our direction).

    One forward-mode derivative of the network per step, inside reverse mode; computed without autocast.

    Args:
        velocity: the marginal velocity of a teacher; None takes the conditional one of the pair.
    """

    path: GaussianPath = field(default_factory=LinearPath)
    times: TwoTimes = field(default_factory=lambda: TwoTimes(boundary_fraction=0.75))
    velocity: VelocityField | None = None
    weight_power: float = 0.0

    def __call__(
        self, net: FlowMap, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None, **condition: Any
    ) -> Loss:
        check_pair(x0, x1)
        return self.at(net, x0, x1, *self.times.sample_pair(len(x1), x1, generator), **condition)

    def at(
        self,
        net: FlowMap,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        s: Float[Tensor, " batch"],
        t: Float[Tensor, " batch"],
        **condition: Any,
    ) -> Loss:
        """The loss on the intervals from ``s`` to ``t``.

        Raises:
            ValueError: shapes that differ, t < s. TypeError: a network without a second time.
            NotImplementedError: a kernel of the network has no forward-mode derivative.
        """
        check_two_times(net)
        check_interval(x1, s, t)
        point = self.path.sample(x0, x1, s)
        velocity = point.velocity
        if self.velocity is not None:
            with torch.no_grad():
                velocity = self.velocity(point.x_t, s, **condition)
        tangents = (velocity, torch.ones_like(s), torch.zeros_like(t))
        try:
            # Casts of autocast do not reach every kernel's tangents (torch 2.13 on the CPU fails): full precision here.
            with torch.autocast(x1.device.type, enabled=False):
                pair: Any = torch.func.jvp(lambda x, a, b: net(x, a, b, **condition), (point.x_t, s, t), tangents)
        except (NotImplementedError, RuntimeError) as error:
            if not any(word in str(error).lower() for word in ("forward ad", "forward-mode", "forward mode", "jvp")):
                raise
            raise NotImplementedError(
                f"MeanFlow needs the forward-mode derivative of the network, which one of its kernels does not have "
                f"({str(error).splitlines()[0]}). Fused attention is the usual one: run it under "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), or use SplitMeanFlow, which needs no derivative"
            ) from error
        u, du = pair
        target = (velocity + expand(t - s, u) * du).detach()
        return squared_error_loss(u - target, self.weight_power, {"boundary": s == t, "interval": s != t})
