"""The linear stochastic equation of a Gaussian path, and the path of a linear stochastic equation.

Noise is added in ``tau = 1 - t``, from the data to the source: ``dx = f x dtau + g dW``. With ``x_t = alpha x_1 + sigma
x_0`` the two descriptions determine each other (Lai et al., 2510.21890, section 4.4, in our time):

- ``f = -d_alpha / alpha`` and ``g^2 = 2 sigma w / alpha`` with ``w = d_alpha sigma - alpha d_sigma``;
- ``alpha = exp(int_t^1 f)`` and ``sigma^2 = alpha^2 (sigma(1)^2 + int_t^1 g^2 / alpha^2)``.

Where the path starts from the exact source (``alpha = 0`` at t = 0) f and g are infinite there: on LinearPath
``g^2 = 2 (1 - t) / t``. No finite equation reaches its prior in finite time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import as_time, check_count, expand
from anabranch.generative.paths import GaussianPath

Coefficient = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearSDE:
    """``dx = drift(t) x dtau + sqrt(diffusion_squared(t)) dW`` in ``tau = 1 - t``, from the data at t = 1.

    Args:
        drift: f, elementwise over times in [0, 1], units 1 / time. Zero or negative where noise is added by shrinking.
        diffusion_squared: g^2, elementwise, >= 0.
        data_variance: of the noise that is in the data already, ``sigma(1)^2`` (0 unless the path stops before clean
            data).

    Raises:
        ValueError: a negative data_variance.
    """

    drift: Coefficient
    diffusion_squared: Coefficient
    data_variance: float = 0.0

    def __post_init__(self) -> None:
        if not self.data_variance >= 0:
            raise ValueError(f"data_variance must be >= 0, got {self.data_variance}")

    @classmethod
    def from_path(cls, path: GaussianPath) -> "LinearSDE":
        """The equation whose marginals given the data are the path's. Infinite where ``alpha`` is 0."""
        end = path.sigma(torch.ones((), dtype=torch.float64)) / path.alpha(torch.ones((), dtype=torch.float64))
        return cls(
            lambda t: -path.d_alpha(t) / path.alpha(t),
            lambda t: 2 * path.sigma_wronskian(t) / path.alpha(t),
            float(end) ** 2,
        )

    @classmethod
    def vp(cls, beta_min: float = 0.1, beta_max: float = 20.0) -> "LinearSDE":
        """``f = -beta / 2``, ``g^2 = beta`` with ``beta`` linear in tau (Song et al., 2011.13456, equation 11)."""

        def beta(t: Tensor) -> Tensor:
            return beta_min + (1 - t) * (beta_max - beta_min)

        return cls(lambda t: -beta(t) / 2, beta)

    @classmethod
    def sub_vp(cls, beta_min: float = 0.1, beta_max: float = 20.0) -> "LinearSDE":
        """``f = -beta / 2``, ``g^2 = beta (1 - exp(-2 int beta))`` (Song et al., 2011.13456, equation 12)."""
        vp = cls.vp(beta_min, beta_max)

        def diffusion_squared(t: Tensor) -> Tensor:
            tau = 1 - t
            return -vp.diffusion_squared(t) * torch.expm1(-tau * (2 * beta_min + tau * (beta_max - beta_min)))

        return cls(vp.drift, diffusion_squared)

    @classmethod
    def ve(cls, sigma_min: float = 0.01, sigma_max: float = 50.0) -> "LinearSDE":
        """``f = 0``, ``g^2 = 2 log(sigma_max / sigma_min) sigma^2``, sigma geometric (Song et al., 2011.13456, equation 30)."""
        log_ratio = float(np.log(sigma_max / sigma_min))

        def diffusion_squared(t: Tensor) -> Tensor:
            return 2 * log_ratio * sigma_min**2 * torch.exp(2 * log_ratio * (1 - t))

        return cls(torch.zeros_like, diffusion_squared, sigma_min**2)

    def path(self, nodes: int = 48) -> "IntegratedPath":
        """The Gaussian path of this equation, by quadrature (see :class:`IntegratedPath`)."""
        return IntegratedPath(self, nodes)

    def forward_drift(
        self, x: Float[Tensor, "batch *shape"], t: float | Float[Tensor, ""] | Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """``f x``, the drift in tau of the equation that adds noise."""
        return expand(self.drift(as_time(t, x)), x) * x

    def velocity(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        score: Float[Tensor, "batch *shape"],
    ) -> Float[Tensor, "batch *shape"]:
        """Our velocity ``-(f x - g^2 score / 2)``: the probability-flow equation, in t."""
        return self._towards_data(x, t, score, 0.5)

    def reverse_drift(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        score: Float[Tensor, "batch *shape"],
    ) -> Float[Tensor, "batch *shape"]:
        """``-(f x - g^2 score)``: the drift, in t, of the reverse-time equation ``dx = ... dt + g dW`` (Anderson, 1982)."""
        return self._towards_data(x, t, score, 1.0)

    def _towards_data(self, x: Tensor, t: float | Tensor, score: Tensor, share: float) -> Tensor:
        time = as_time(t, x)
        drift, diffusion = expand(self.drift(time), x), expand(self.diffusion_squared(time), x)
        return (share * diffusion * score - drift * x).to(x.dtype)


@dataclass(frozen=True)
class IntegratedPath(GaussianPath):
    """The path of any :class:`LinearSDE`: both integrals by Gauss-Legendre quadrature in float64.

    The error falls geometrically with ``nodes`` for smooth coefficients (1e-12 with the default for those of Song et al.;
    piecewise ones, as of ScheduledPath, converge slowly). Cost: ``nodes^2`` evaluations of the coefficients per time,
    and 60 times that for ``t_from_lambda``: to train on a path with a closed form, use that.
    """

    sde: LinearSDE
    nodes: int = 48
    _rule: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_count("nodes", self.nodes, 2)
        points, weights = np.polynomial.legendre.leggauss(self.nodes)
        object.__setattr__(self, "_rule", (torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)))

    def _integral(self, function: Coefficient, t: Tensor) -> Tensor:
        """``int_t^1 function``, elementwise."""
        points, weights = (part.to(t.device) for part in self._rule)
        span = (1 - t)[..., None]
        return (function(t[..., None] + span * points) * weights).sum(-1) * span[..., 0]

    def _log_alpha(self, t: Tensor) -> Tensor:
        return self._integral(self.sde.drift, t)

    def _ratio_squared(self, t: Tensor) -> Tensor:
        """``sigma^2 / alpha^2``."""
        added = self._integral(lambda s: self.sde.diffusion_squared(s) * torch.exp(-2 * self._log_alpha(s)), t)
        return self.sde.data_variance + added

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t.to(torch.float64))).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        time = t.to(torch.float64)
        return (torch.exp(self._log_alpha(time)) * torch.sqrt(self._ratio_squared(time))).to(t.dtype)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self.sde.drift(t) * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.sigma_d_sigma(t) / self.sigma(t)

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        return -(self.sde.drift(t) * self.sigma(t) ** 2 + self.sde.diffusion_squared(t) / 2)

    def log_snr_half(self, t: Tensor) -> Tensor:
        return (-torch.log(self._ratio_squared(t.to(torch.float64))) / 2).to(t.dtype)

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        wanted = lam.to(torch.float64)
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(60):  # lambda grows with t: halving is enough, and cannot fail
            middle = (low + high) / 2
            above = self.log_snr_half(middle) > wanted
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return ((low + high) / 2).to(lam.dtype)
