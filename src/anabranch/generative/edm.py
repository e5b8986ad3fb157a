"""Preconditioned denoising (Karras et al., 2206.00364), finite at both ends of every path."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import as_time, expand
from anabranch.generative.fields import VelocityField, calls_per_evaluation
from anabranch.generative.level_samplers import LogNormalLevel
from anabranch.generative.objectives import Loss, squared_error_loss
from anabranch.generative.paths import GaussianPath, VEPath


@dataclass(frozen=True)
class EDMPreconditioned:
    """A raw network F with the preconditioning of Karras et al. (2206.00364, table 1) as a velocity field on any path.

    With ``y = x / alpha``, ``s = sigma / alpha``: ``D = c_skip y + c_out F(c_in y, log(s) / 4)``. In our variables ``rho =
    sqrt(sigma^2 + data_std^2 alpha^2)`` divides, never alpha or sigma, so denoised, noise and (wherever ``d_sigma`` is
    finite) velocity are finite at both ends of every path (ours).

    Args:
        net: ``net(x, level, **condition)`` with unit-variance ``x`` and ``level`` ``[B]`` = ``log(sigma / alpha) / 4``.
        data_std: standard deviation of the data's entries.
        levels: smallest and largest ``sigma / alpha`` the network is told; beyond them it is told the nearer one.
    """

    net: VelocityField
    path: GaussianPath = field(default_factory=VEPath)
    data_std: float = 0.5
    levels: tuple[float, float] = (0.002, 80.0)

    def __post_init__(self) -> None:
        if not self.data_std > 0:
            raise ValueError(f"data_std must be > 0, got {self.data_std}")
        if not 0 < self.levels[0] < self.levels[1]:
            raise ValueError(f"levels must be (low, high) with 0 < low < high, got {self.levels}")

    def calls_at(self, t: float | Tensor) -> int:
        return calls_per_evaluation(self.net, t)

    def network(
        self, x: Float[Tensor, "batch *shape"], t: float | Tensor, **condition: Any
    ) -> Float[Tensor, "batch *shape"]:
        """F at the preconditioned state and level of ``(x, t)``."""
        time = as_time(t, x)
        _, _, rho = self._weights(time, x)
        ends = torch.log(torch.tensor(self.levels, dtype=torch.float64)).tolist()
        level = (-self.path.log_snr_half(time)).clamp(*ends) / 4
        return self.net((x / rho).to(x.dtype), level.expand(len(x)), **condition)

    def denoised(
        self, x: Float[Tensor, "batch *shape"], t: float | Tensor, **condition: Any
    ) -> Float[Tensor, "batch *shape"]:
        """The denoiser ``D(x / alpha; sigma / alpha)``."""
        return self.ends(x, t, **condition)[1]

    def ends(
        self, x: Float[Tensor, "batch *shape"], t: float | Tensor, **condition: Any
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """Noise and denoised, one call."""
        noise, denoised = self._ends(x, t, self.network(x, t, **condition))
        return noise.to(x.dtype), denoised.to(x.dtype)

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        **condition: Any,
    ) -> Float[Tensor, "batch *shape"]:
        time = as_time(t, x)
        noise, denoised = self._ends(x, t, self.network(x, t, **condition))
        d_alpha, d_sigma = expand(self.path.d_alpha(time), x), expand(self.path.d_sigma(time), x)
        return (d_alpha * denoised + d_sigma * noise).to(x.dtype)

    def target(
        self, x0: Float[Tensor, "batch *shape"], x1: Float[Tensor, "batch *shape"], t: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """What F is to predict for a pair, ``(sigma x1 - data_std^2 alpha x0) / (data_std rho)``: of variance 1."""
        alpha, sigma, rho = self._weights(t, x1)
        return ((sigma * x1 - self.data_std**2 * alpha * x0) / (self.data_std * rho)).to(x1.dtype)

    def _weights(self, time: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = expand(self.path.alpha(time), x), expand(self.path.sigma(time), x)
        return alpha, sigma, torch.sqrt(sigma**2 + (self.data_std * alpha) ** 2)

    def _ends(self, x: Tensor, t: float | Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and denoised of F's output: D = (data_std^2 alpha x + sigma data_std rho F) / rho^2, and its complement."""
        alpha, sigma, rho = self._weights(as_time(t, x), x)
        y, step = x / rho**2, self.data_std * raw / rho
        return sigma * y - alpha * step, self.data_std**2 * alpha * y + sigma * step


@dataclass(frozen=True)
class EDMDenoising:
    """Denoising in EDM's form: the squared error of F itself, which is their weight ``(s^2 + sd^2) / (s sd)^2`` on
    ``|D - x1|^2`` (Karras et al., 2206.00364, section 5), at log-normal noise levels.

    The objective takes the raw network; ``preconditioned(net)`` is the velocity field to sample with.

    Args:
        data_std: of the data's entries (0.5 in the paper; measure it for other data).
        mean, std: of ``log(sigma / alpha)`` in training.
    """

    path: GaussianPath = field(default_factory=VEPath)
    data_std: float = 0.5
    mean: float = -1.2
    std: float = 1.2
    levels: tuple[float, float] = (0.002, 80.0)
    weight_power: float = 0.0

    @property
    def times(self) -> LogNormalLevel:
        """The law of training times."""
        return LogNormalLevel(self.path, self.mean, self.std)

    def preconditioned(self, net: VelocityField) -> EDMPreconditioned:
        """The velocity field of the raw network."""
        return EDMPreconditioned(net, self.path, self.data_std, self.levels)

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
        wrapped, point = self.preconditioned(net), self.path.sample(x0, x1, t)
        error = wrapped.network(point.x_t, t, **condition) - wrapped.target(x0, x1, t)
        return squared_error_loss(error, self.weight_power)
