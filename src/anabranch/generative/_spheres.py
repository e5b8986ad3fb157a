"""Spheres in high dimensions: areas, caps, Bessel functions of large order, draws of chi and Gamma laws.

Special functions take and give plain numbers or float64 arrays of the CPU; draws take a generator.
"""

import math
from typing import Any

import numpy as np
import torch
from scipy.special import betainc, gammaln, ive
from torch import Tensor

_TINY = 1e-280


def log_sphere_area(d: int) -> float:
    """Log of the area of the unit sphere in ``d`` dimensions, ``2 pi^(d/2) / Gamma(d/2)``."""
    return math.log(2) + 0.5 * d * math.log(math.pi) - math.lgamma(d / 2)


def chi_mean(degrees: float) -> float:
    """Mean of the chi law, ``sqrt(2) Gamma((k + 1) / 2) / Gamma(k / 2)``."""
    return math.sqrt(2) * math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))


def chi_log_density(r: Tensor, degrees: float) -> Tensor:
    """Log density of the chi law at ``r``, in ``r``'s dtype; -inf below 0."""
    norm = (degrees / 2 - 1) * math.log(2) + math.lgamma(degrees / 2)
    value = (degrees - 1) * torch.log(r.clamp(min=0)) - r**2 / 2 - norm
    return torch.where(r < 0, -math.inf, value)


def cap_probability(cosine: float, d: int) -> float:
    """Share of the unit sphere in ``d`` >= 2 dimensions with ``u_1 > cosine`` (a regularised incomplete beta function)."""
    if cosine >= 1:
        return 0.0
    if cosine <= -1:
        return 1.0
    tail = 0.5 * float(betainc((d - 1) / 2, 0.5, 1 - cosine**2))
    return tail if cosine >= 0 else 1 - tail


def log_bessel_i(order: float, x: float) -> float:
    """``log I_order(x)`` for order >= 0 and x > 0, also where the function itself under- or overflows.

    SciPy's scaled function where it is not tiny; else the power series (x^2 < 4 (order + 1)) or the uniform expansion for
    large order with four terms (DLMF 10.41.3), there with a relative error below 1e-12 of the function.
    """
    scaled = float(ive(order, x))
    if scaled > _TINY:
        return math.log(scaled) + x
    quarter = x * x / 4
    if quarter < order + 1:
        term = total = 1.0
        for k in range(1, 200):
            term *= quarter / (k * (order + k))
            total += term
            if term < 1e-17 * total:
                break
        return order * math.log(x / 2) - float(gammaln(order + 1)) + math.log(total)
    z = x / order
    root = math.sqrt(1 + z * z)
    p = 1 / root
    eta = root + math.log(z / (1 + root))
    u = (
        (3 * p - 5 * p**3) / 24,
        (81 * p**2 - 462 * p**4 + 385 * p**6) / 1152,
        (30375 * p**3 - 369603 * p**5 + 765765 * p**7 - 425425 * p**9) / 414720,
        (4465125 * p**4 - 94121676 * p**6 + 349922430 * p**8 - 446185740 * p**10 + 185910725 * p**12) / 39813120,
    )
    series = 1 + sum(value / order ** (k + 1) for k, value in enumerate(u))
    return order * eta - 0.5 * math.log(2 * math.pi * order) - 0.5 * math.log(root) + math.log(series)


def bessel_ratio(order: float, x: float) -> float:
    """``I_(order+1)(x) / I_order(x)`` for order >= 0 and x >= 0, in [0, 1)."""
    if x == 0:
        return 0.0
    above, here = float(ive(order + 1, x)), float(ive(order, x))
    if above > _TINY and here > _TINY:
        return above / here
    # I_(n-1) = I_(n+1) + (2n / x) I_n downwards: every step shrinks the error of the first guess.
    n = order + 400
    ratio = x / (n + 1 + math.hypot(n + 1, x))
    while n > order:
        n -= 1
        ratio = 1 / (2 * (n + 1) / x + ratio)
    return ratio


def gaussian_mean_norm(eigenvalues: Any, mean_squares: Any = 0.0) -> float:
    """``E ||x||`` of a Gaussian whose covariance has ``eigenvalues`` ``[D]`` and whose mean has ``mean_squares`` ``[D]`` as
    squared coordinates in the eigenvectors' basis.

    ``E sqrt(Q) = (1 / (2 sqrt(pi))) int (1 - E e^{-sQ}) s^{-3/2} ds``, by the trapezoid rule in log s, whose error
    falls exponentially: tests reach 1e-10 relative. Cost: 600 passes over the eigenvalues.
    """
    values = np.asarray(eigenvalues, np.float64).clip(min=0)
    squares = np.broadcast_to(np.asarray(mean_squares, np.float64), values.shape)
    second = float(values.sum() + squares.sum())
    if second == 0:
        return 0.0
    step = 0.2
    s = np.exp(np.arange(-75.0, 75.0, step)) / second
    total = 0.0
    for value in s:
        grown = 2 * value * values
        log_laplace = -0.5 * np.log1p(grown).sum() - value * (squares / (1 + grown)).sum()
        total += -math.expm1(log_laplace) / math.sqrt(value)
    return step * total / (2 * math.sqrt(math.pi))


def draw_gamma(
    shape: float, n: int, *, generator: torch.Generator | None, device: torch.device | str = "cpu"
) -> Tensor:
    """``n`` draws of Gamma(shape, 1), float64 (Marsaglia and Tsang 2000; torch's own sampler takes no generator)."""

    def uniform(count: int) -> Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64, device=device)

    if shape < 1:
        boosted = draw_gamma(shape + 1, n, generator=generator, device=device)
        return boosted * uniform(n) ** (1 / shape)
    d = shape - 1 / 3
    parts: list[Tensor] = []
    missing = n
    while missing > 0:
        count = missing + missing // 8 + 8
        z = torch.randn(count, generator=generator, dtype=torch.float64, device=device)
        v = (1 + z / math.sqrt(9 * d)) ** 3
        good = (v > 0) & (torch.log(uniform(count)) < 0.5 * z**2 + d - d * v + d * torch.log(v.clamp(min=1e-300)))
        parts.append((d * v)[good][:missing])
        missing -= len(parts[-1])
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=device)


def draw_chi(
    degrees: float, n: int, *, generator: torch.Generator | None, device: torch.device | str = "cpu"
) -> Tensor:
    """``n`` draws of the chi law, float64."""
    return (2 * draw_gamma(degrees / 2, n, generator=generator, device=device)).sqrt()


def draw_directions(
    n: int, d: int, *, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """``[n, d]`` uniform on the unit sphere."""
    z = torch.randn(n, d, generator=generator, dtype=dtype, device=device)
    return z / z.norm(dim=1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
