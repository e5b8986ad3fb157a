"""Gaussian probability paths: ``x_t = sigma(t) x_0 + alpha(t) x_1`` from the source at t = 0 to the data at t = 1.

A path is two functions of time and their exact derivatives. Everything else (targets, log signal-to-noise ratio,
conversions between predictions, changes of path) follows from the four.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from anabranch.generative._checks import as_time, check_pair, expand


class PathSample(NamedTuple):
    """A point of the conditional path and the velocity through it: ``x_t`` ``[B, ...]``, ``t`` ``[B]``, ``velocity``."""

    x_t: Tensor
    t: Tensor
    velocity: Tensor


class GaussianPath(ABC):
    """Two scalar functions of time with exact derivatives, elementwise over a tensor of times in [0, 1].

    ``alpha`` grows and ``sigma`` falls, so ``log_snr_half`` grows strictly. A new path needs the four functions and
    ``t_from_lambda``; override ``sigma_d_sigma`` where ``d_sigma`` is infinite at an end.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the source."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """Derivative of ``alpha``."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """Derivative of ``sigma``."""

    @abstractmethod
    def t_from_lambda(self, lam: Tensor) -> Tensor:
        """Inverse of ``log_snr_half``."""

    def log_snr_half(self, t: Tensor) -> Tensor:
        """``lambda(t) = log(alpha / sigma)``; -inf where alpha is 0, +inf where sigma is 0."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        """``sigma * d_sigma``, half the derivative of the source's variance: finite also where ``d_sigma`` is not."""
        return self.sigma(t) * self.d_sigma(t)

    def wronskian(self, t: Tensor) -> Tensor:
        """``w = d_alpha sigma - alpha d_sigma``; ``w / (alpha sigma)`` is the derivative of ``log_snr_half``."""
        return self.d_alpha(t) * self.sigma(t) - self.alpha(t) * self.d_sigma(t)

    def sigma_wronskian(self, t: Tensor) -> Tensor:
        """``sigma * w``, finite at both ends of every path here."""
        return self.d_alpha(t) * self.sigma(t) ** 2 - self.alpha(t) * self.sigma_d_sigma(t)

    def sample(
        self,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
    ) -> PathSample:
        """The point at ``t`` between the pairs and its velocity ``d_alpha x1 + d_sigma x0``.

        Raises:
            ValueError: shapes or dtypes differ.
        """
        check_pair(x0, x1)
        time = as_time(t, x1)
        alpha, sigma, d_alpha, d_sigma = (
            expand(f(time), x1) for f in (self.alpha, self.sigma, self.d_alpha, self.d_sigma)
        )
        x_t, velocity = sigma * x0 + alpha * x1, d_alpha * x1 + d_sigma * x0
        return PathSample(x_t.to(x1.dtype), time.expand(len(x1)), velocity.to(x1.dtype))


@dataclass(frozen=True)
class LinearPath(GaussianPath):
    """``alpha = t``, ``sigma = 1 - (1 - sigma_floor) t``: straight lines (Lipman et al., 2210.02747, with their floor).

    With a floor the path ends at a distribution blurred by ``sigma_floor``, and ``log_snr_half`` ends at
    ``log(1 / sigma_floor)``.
    """

    sigma_floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_floor < 1:
            raise ValueError(f"sigma_floor must be in [0, 1), got {self.sigma_floor}")

    def alpha(self, t: Tensor) -> Tensor:
        return t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - t if self.sigma_floor == 0 else 1 - (1 - self.sigma_floor) * t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_floor - 1)

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(lam) if self.sigma_floor == 0 else 1 / (torch.exp(-lam) + 1 - self.sigma_floor)

    def sample(
        self,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
    ) -> PathSample:
        check_pair(x0, x1)
        time = as_time(t, x1)
        velocity = x1 - x0 if self.sigma_floor == 0 else x1 - (1 - self.sigma_floor) * x0
        # The sum of two products, not torch.lerp: the two round differently, and the peers use the sum.
        x_t = expand(self.sigma(time), x1) * x0 + expand(time, x1) * x1
        return PathSample(x_t.to(x1.dtype), time.expand(len(x1)), velocity)


@dataclass(frozen=True)
class TrigPath(GaussianPath):
    """``alpha = sin(pi t / 2)``, ``sigma = cos(pi t / 2)``: variance preserving, of constant angular speed.

    The cosine is computed as a sine of ``1 - t``, so that ``sigma(1)`` is 0 and not 6e-17.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t))

    def d_alpha(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.alpha(t)

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(lam))


@dataclass(frozen=True)
class VPPath(GaussianPath):
    """The variance-preserving diffusion with ``beta(tau) = beta_min + tau (beta_max - beta_min)``, ``tau = 1 - t``.

    Song et al. (2011.13456), equation 32. ``alpha(0)`` is small but not 0 (0.0066 by default), and ``d_sigma(1)`` is
    -inf: predictions cannot be converted there, although the marginal velocity of a smooth law is finite.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(
                f"beta_min = {self.beta_min}, beta_max = {self.beta_max}: expected 0 < beta_min <= beta_max"
            )

    def _log_alpha(self, t: Tensor) -> Tensor:
        tau = 1 - t
        return -tau * (tau * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2)

    def _half_beta(self, t: Tensor) -> Tensor:
        return 0.5 * (self.beta_min + (1 - t) * (self.beta_max - self.beta_min))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        return self._half_beta(t) * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.sigma_d_sigma(t) / self.sigma(t)

    def sigma_d_sigma(self, t: Tensor) -> Tensor:
        return -self._half_beta(t) * torch.exp(2 * self._log_alpha(t))

    def log_snr_half(self, t: Tensor) -> Tensor:
        return self._log_alpha(t) - torch.log(self.sigma(t))

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        minus_log_alpha = softplus(-2 * lam) / 2
        # The root of tau^2 slope + tau b = -log alpha in the form that does not cancel.
        b, slope = self.beta_min / 2, (self.beta_max - self.beta_min) / 4
        return 1 - 2 * minus_log_alpha / (b + torch.sqrt(b * b + 4 * slope * minus_log_alpha))


@dataclass(frozen=True)
class VEPath(GaussianPath):
    """``alpha = 1``; ``sigma`` falls from ``sigma_max`` to ``sigma_min`` as a power ``rho`` (Karras et al., 2206.00364).

    The state at t = 0 is data plus noise of ``sigma_max``, close to ``sigma_max`` times a standard source; at t = 1
    noise of ``sigma_min`` is left.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (0 < self.sigma_min < self.sigma_max and self.rho > 0):
            raise ValueError(
                f"sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}, rho = {self.rho}: expected "
                "0 < sigma_min < sigma_max and rho > 0"
            )

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        high, low = self._ends
        return (high + t * (low - high)) ** self.rho

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        high, low = self._ends
        return self.rho * (low - high) * (high + t * (low - high)) ** (self.rho - 1)

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        high, low = self._ends
        return (torch.exp(-lam / self.rho) - high) / (low - high)


@dataclass(frozen=True, eq=False)
class ScheduledPath(GaussianPath):
    """The variance-preserving path through a table of discrete noise levels (the ``alphas_cumprod`` of a scheduler).

    Entry k (0 the cleanest) lies at ``t = 1 - (k + 1) / K``, so the noisiest is at t = 0 and the clean data at t = 1.
    Between entries ``log_snr_half`` is linear in t; in the last interval (where it ends at infinity) ``sigma / alpha``
    is, and in the first one ``alpha / sigma``, if the table starts from pure noise (ours).

    Args:
        alphas_cumprod: ``[K]``, K >= 2, strictly falling in [0, 1); only the last may be 0.

    Raises:
        ValueError: anything else.
    """

    alphas_cumprod: Float[Tensor, " levels"]
    _knots: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.alphas_cumprod).detach().to("cpu", torch.float64)
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(f"alphas_cumprod has shape {tuple(table.shape)}: expected one axis, two entries or more")
        if not bool((table.diff() < 0).all()) or float(table[-1]) < 0 or float(table[0]) >= 1:
            raise ValueError("alphas_cumprod must fall strictly, within [0, 1)")
        object.__setattr__(self, "alphas_cumprod", table)
        object.__setattr__(self, "_knots", torch.log(table / (1 - table)).flip(0) / 2)  # lambda at t = i / K

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScheduledPath) and torch.equal(self.alphas_cumprod, other.alphas_cumprod)

    def __hash__(self) -> int:
        return hash((len(self.alphas_cumprod), float(self.alphas_cumprod[-1])))

    def t_of_index(self, index: Tensor) -> Tensor:
        """Time of table entry ``index`` (0 the cleanest), float64."""
        return 1 - (index.to(torch.float64) + 1) / len(self.alphas_cumprod)

    def index_of_t(self, t: Tensor) -> Tensor:
        """The table's (fractional) index at ``t``: what a network trained on the table takes as its time step."""
        return self._snapped(len(self.alphas_cumprod) * (1 - t.to(torch.float64)) - 1)

    def _snapped(self, place: Tensor) -> Tensor:
        """Places in the table, those within float32's rounding of an entry moved onto it."""
        nearest = place.round()
        return torch.where((place - nearest).abs() < 2e-7 * len(self.alphas_cumprod), nearest, place)

    def _weights(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        levels, u = len(self.alphas_cumprod), t.to(torch.float64)
        knots = self._knots.to(u.device)
        # The slope jumps at entries, where steps are taken: a time that went through float32 must stay on its side.
        place = self._snapped(u * levels)
        u, i = place / levels, place.floor().clamp(0, levels - 1).long()
        last = i == levels - 1
        low, high = knots[i], knots[(i + 1).clamp(max=levels - 1)]
        low = torch.where(torch.isinf(low), high - 1, low)  # any finite number: the first interval is set below
        slope = (high - low) * levels
        lam = low + slope * (u - i.to(torch.float64) / levels)
        r = torch.where(last, torch.exp(-low) * levels * (1 - u), torch.exp(-lam))  # sigma / alpha
        dr = torch.where(last, -torch.exp(-low) * levels, -slope * r)
        alpha = 1 / torch.sqrt(1 + r * r)
        weights = [alpha, r * alpha, -r * dr * alpha**3, dr * alpha**3]
        if bool(torch.isinf(knots[0])):  # zero terminal signal: alpha / sigma is linear in the first interval
            dq = torch.exp(knots[1]) * levels
            q = dq * u
            sigma = 1 / torch.sqrt(1 + q * q)
            first = (q * sigma, sigma, dq * sigma**3, -q * dq * sigma**3)
            weights = [torch.where(i == 0, a, b) for a, b in zip(first, weights, strict=True)]
        a, s, da, ds = (weight.to(t.dtype) for weight in weights)
        return a, s, da, ds

    def alpha(self, t: Tensor) -> Tensor:
        return self._weights(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self._weights(t)[1]

    def d_alpha(self, t: Tensor) -> Tensor:
        return self._weights(t)[2]

    def d_sigma(self, t: Tensor) -> Tensor:
        return self._weights(t)[3]

    def t_from_lambda(self, lam: Tensor) -> Tensor:
        levels, value = len(self.alphas_cumprod), lam.to(torch.float64)
        knots = self._knots.to(value.device)
        i = (torch.searchsorted(knots, value.contiguous(), right=True) - 1).clamp(0, levels - 2)
        low, high = knots[i], knots[i + 1]
        inner = (i.to(torch.float64) + (value - low) / (high - low)) / levels
        inner = torch.where(torch.isinf(low), torch.exp(value - high) / levels, inner)
        end = 1 - torch.exp(knots[-1] - value) / levels
        return torch.where(value >= knots[-1], end, inner).to(lam.dtype)
