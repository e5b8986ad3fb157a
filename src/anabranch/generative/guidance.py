"""Guidance: velocity fields that wrap velocity fields."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import SingularTimeError, as_time, expand
from anabranch.generative.fields import VelocityField, calls_per_evaluation
from anabranch.generative.paths import GaussianPath


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """``v_null + scale (v_cond - v_null)`` inside ``interval``, the conditional field outside it (Ho and Salimans,
    2207.12598; the interval of Kynkaanniemi et al., 2404.07724).

    Args:
        scale: 1 is the conditional field (one call), 0 the unconditional one; a number or one per sample.
        interval: the times, ends included, where guidance acts. Outside it one call is made.
        null_condition: what the unconditional branch gets, by name: a number, a tensor ``[1, ...]`` or one row per
            sample. Names it does not hold are given to both branches.
        rescale: 0 to 1, how far to bring the guided prediction's standard deviation per sample back to the conditional
            one's (Lin et al., 2305.08891, section 3.4; applied to the velocity, ours).
        batched: both branches in one call of 2 B rows; else two calls of B.

    Raises:
        ValueError: an interval that is no interval, a name in ``null_condition`` that the call does not give, rows that
            do not match the batch.
    """

    field: VelocityField
    scale: float | Float[Tensor, " batch"]
    interval: tuple[float, float] = (0.0, 1.0)
    null_condition: Mapping[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)
    rescale: float = dataclasses.field(default=0.0, kw_only=True)
    batched: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval must be (low, high) with 0 <= low <= high <= 1, got {self.interval}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {self.rescale}")
        if not self.null_condition:
            raise ValueError("null_condition is empty: name what the unconditional branch gets, as {'label': 10}")

    @property
    def path(self) -> Any:
        """The guided field's path, where it has one."""
        return self.field.path  # type: ignore[attr-defined]

    def _active(self, t: float | Tensor) -> bool | Tensor:
        """Whether guidance acts: one answer, or one per sample."""
        if isinstance(self.scale, (int, float)) and self.scale == 1 and self.rescale == 0:
            return False
        low, high = self.interval
        if (low, high) == (0.0, 1.0):
            return True
        if isinstance(t, Tensor) and t.ndim:
            return (t >= low) & (t <= high)
        return low <= float(t) <= high

    def calls_at(self, t: float | Tensor) -> int:
        active = self._active(t)
        both = bool(active.any()) if isinstance(active, Tensor) else active
        return (2 if both else 1) * calls_per_evaluation(self.field, t)

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        /,
        **condition: Any,
    ) -> Float[Tensor, "batch *shape"]:
        active = self._active(t)
        if active is False or (isinstance(active, Tensor) and not bool(active.any())):
            return self.field(x, t, **condition)
        missing = [name for name in self.null_condition if name not in condition]
        if missing:
            raise ValueError(f"null_condition names {missing[0]!r}, which the call does not give: {sorted(condition)}")
        null = {name: self._null(name, condition[name], len(x)) for name in self.null_condition}
        if self.batched:
            both = {name: self._twice(name, value, null, len(x)) for name, value in condition.items()}
            time = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
            conditional, unconditional = self.field(torch.cat([x, x]), time, **both).chunk(2)
        else:
            conditional = self.field(x, t, **condition)
            unconditional = self.field(x, t, **{**condition, **null})
        scale = self.scale if isinstance(self.scale, (int, float)) else expand(self.scale.to(x), x)
        guided = unconditional + scale * (conditional - unconditional)
        if self.rescale:
            axes = tuple(range(1, x.ndim))
            ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
            guided = guided * (1 + self.rescale * (ratio - 1))
        return guided if active is True else torch.where(expand(active, x), guided, conditional)

    def _null(self, name: str, like: Any, batch: int) -> Any:
        value = self.null_condition[name]
        if not isinstance(like, Tensor):
            return value
        value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
        if value.ndim == 0:
            return value.expand(like.shape)
        if value.shape[0] not in (1, batch):
            raise ValueError(f"null_condition[{name!r}] has {value.shape[0]} rows: expected 1 or {batch}")
        return value.expand(batch, *value.shape[1:])

    @staticmethod
    def _twice(name: str, value: Any, null: Mapping[str, Any], batch: int) -> Any:
        other = null.get(name, value)
        if isinstance(value, Tensor) and value.ndim:
            if value.shape[0] != batch:
                raise ValueError(
                    f"condition {name!r} has {value.shape[0]} rows for a batch of {batch}: give one row per sample, or "
                    "batched=False"
                )
            return torch.cat([value, other])
        if name in null:
            raise ValueError(f"condition {name!r} is not a tensor with one row per sample: pass batched=False")
        return value


@dataclass(frozen=True)
class ClassifierGuidance:
    """Adds ``scale (w sigma / alpha) grad_x log p(y | x_t)`` to a field (Dhariwal and Nichol, 2105.05233, in ODE form).

    With the exact classifier of the noisy states and scale 1 this is the conditional field (Bayes).

    Args:
        log_prob: ``log_prob(x, t, **condition) -> [B]``, differentiable in ``x``. It gets the condition, the field does
            not.
        clamp: smallest ``t`` at which ``w sigma / alpha`` is evaluated; without it ``alpha = 0`` raises.
    """

    field: VelocityField
    log_prob: Callable[..., Tensor]
    scale: float
    path: GaussianPath
    clamp: float | None = None

    def calls_at(self, t: float | Tensor) -> int:
        return calls_per_evaluation(self.field, t)

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        /,
        **condition: Any,
    ) -> Float[Tensor, "batch *shape"]:
        time = as_time(t, x)
        weights_at = time if self.clamp is None else time.clamp(min=self.clamp)
        alpha = self.path.alpha(weights_at)
        if self.clamp is None and bool((alpha == 0).any()):
            raise SingularTimeError(
                f"classifier guidance divides by alpha = 0 at t = 0 on {self.path}: pass clamp=1e-3"
            )
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(point, t, **condition).sum(), point)
        weight = expand(self.path.sigma_wronskian(weights_at) / alpha, x)
        return self.field(x, t) + self.scale * weight * gradient
