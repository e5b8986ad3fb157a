"""A field of one Gaussian path as the field of another."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import as_time, expand, time_dtype
from anabranch.generative.fields import VelocityField, calls_per_evaluation
from anabranch.generative.paths import GaussianPath


@dataclass(frozen=True)
class ChangedPath:
    """A field of one path, evaluated as the field of another (see :func:`change_path`)."""

    field: VelocityField
    old: GaussianPath
    path: GaussianPath

    def _times(self, time: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        # In float64 throughout: the two terms of the velocity cancel like 1 / sqrt(1 - t) at the data end of VPPath.
        time = time.to(torch.float64).clamp(eps, 1 - eps)
        return time, self.old.t_from_lambda(self.path.log_snr_half(time)).clamp(eps, 1 - eps)

    def calls_at(self, t: float | Tensor) -> int:
        return calls_per_evaluation(self.field, self._times(torch.as_tensor(t, dtype=torch.float64), 1e-9)[1])

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        **condition: Any,
    ) -> Float[Tensor, "batch *shape"]:
        eps = 1e-9 if x.dtype == torch.float64 else 1e-5
        time, old_time = self._times(as_time(t, x), eps)
        a_new, a_old = self.path.alpha(time), self.old.alpha(old_time)
        s_new, s_old = self.path.sigma(time), self.old.sigma(old_time)
        rate = (self.path.wronskian(time) / (a_new * s_new)) / (self.old.wronskian(old_time) / (a_old * s_old))
        signal = a_new > s_new  # both quotients are equal; the larger weights are the better conditioned ones
        scale = torch.where(signal, a_new / a_old, s_new / s_old)
        growth = torch.where(
            signal,
            self.path.d_alpha(time) / a_new - self.old.d_alpha(old_time) / a_old * rate,
            self.path.d_sigma(time) / s_new - self.old.d_sigma(old_time) / s_old * rate,
        )
        scale, growth, rate = (expand(value, x) for value in (scale, growth, rate))
        x_old = (x / scale).to(x.dtype)
        velocity = self.field(x_old, old_time.to(time_dtype(x)), **condition)
        return (scale * (growth * x_old + rate * velocity)).to(x.dtype)


def change_path(field: VelocityField, old: GaussianPath, new: GaussianPath) -> ChangedPath:
    """A field trained on path ``old`` as the field of path ``new``: the same marginals up to scale.

    At ``t'`` the old time has the same signal-to-noise ratio, ``lambda_old(t) = lambda_new(t')``; with
    ``c = sigma_new(t') / sigma_old(t)`` the velocity is ``c' x / c + c (dt/dt') v_old(x / c, t)``. Only for a standard
    Gaussian source (or one whose scaled sum with the data depends on the ratio alone). Where the ratio is infinite the
    nearest time at a distance of 1e-9 (1e-5 below float64) is taken.

    Where the new path starts at a ratio the old one has at ``t > 0`` (VPPath does), its start is the old path's state
    there, scaled; the exact source of ``new`` differs from it by ``alpha_new(0)`` times the data.
    """
    return ChangedPath(field, old, new)
