"""Paths of two diffusions beside VPPath: sub-VP and geometric VE (Song et al., 2011.13456, appendix B)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anabranch.generative.paths import GaussianPath, VPPath


@dataclass(frozen=True)
class SubVPPath(VPPath):
    """``alpha`` of :class:`VPPath` with ``sigma = 1 - alpha^2``: less noise at every time, and ``d_sigma`` finite at t = 1.

    Song et al. (2011.13456), equation 29 (the sub-VP diffusion).
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self._log_alpha(t))

    def d_sigma(self, t: Tensor) -> Tensor:
        return -2 * self._half_beta(t) * torch.exp(2 * self._log_alpha(t))

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        return self.sigma(t) * self.d_sigma(t)

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        # alpha / (1 - alpha^2) = e^lam is a quadratic in alpha whose root is exp(-asinh(e^-lam / 2)).
        minus_log_alpha = torch.asinh(torch.exp(-lam) / 2)
        b, slope = self.beta_min / 2, (self.beta_max - self.beta_min) / 4
        return 1 - 2 * minus_log_alpha / (b + torch.sqrt(b * b + 4 * slope * minus_log_alpha))


@dataclass(frozen=True)
class GeometricVEPath(GaussianPath):
    """``alpha = 1``; ``sigma = sigma_max^(1 - t) sigma_min^t``: equal ratios, as the levels of NCSN and the VE diffusion.

    Song et al. (2011.13456), equation 31, with the noise ``sigma_min`` that is left in the data counted in. At t = 0 the
    state is data plus noise of ``sigma_max``.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}: expected 0 < sigma_min < sigma_max"
            )

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.exp(math.log(self.sigma_max) - t * self._log_ratio)

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -self._log_ratio * self.sigma(t)

    def log_snr_half(self, t: Tensor) -> Tensor:
        return t * self._log_ratio - math.log(self.sigma_max)

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        return (lam + math.log(self.sigma_max)) / self._log_ratio
