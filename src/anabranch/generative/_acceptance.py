"""The share of directions that keep clear of given axes: ``P(max_i a_i . u <= c)`` for u uniform on the unit sphere."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, ndtri
from scipy.stats import qmc

from anabranch.generative._spheres import cap_probability

_LEAST_D = 16  # below, the integrand of the inversion falls too slowly
_POINTS = 2**14


def clear_share(axes: NDArray[np.float64], cosine: float) -> tuple[float, bool]:
    """The share and whether it is exact (to about 1e-10).

    Exact in the plane (arcs), for disjoint caps (their areas), and for axes of an orthonormal basis with signs in 16 or more
    dimensions (:func:`orthonormal_share`). Otherwise 16,384 points of a Sobol sequence, the same every time. Cost: O(M^2 D)
    for M axes in D dimensions.
    """
    m, d = axes.shape
    if m == 0 or cosine >= 1:
        return 1.0, True
    if cosine < -1:
        return 0.0, True
    if d == 2:
        return _plane(axes, cosine), True
    gram = axes @ axes.T
    off = gram[~np.eye(m, dtype=bool)]
    if m == 1 or (cosine >= 0 and off.max(initial=-1.0) < 2 * cosine**2 - 1):  # angles above twice the caps'
        return 1 - m * cap_probability(cosine, d), True
    opposite = off < -1 + 1e-4
    if d >= _LEAST_D and bool((opposite | (np.abs(off) < 1e-4)).all()):
        both = int(opposite.sum()) // 2
        return orthonormal_share(d, m - 2 * both, both, cosine), True
    if cosine >= 0 and m == 2 and bool(opposite.all()):
        return 1 - 2 * cap_probability(cosine, d), True
    return _quasi_random(axes, cosine), False


def orthonormal_share(d: int, single: int, both: int, cosine: float) -> float:
    """``P(u_i <= c for i in S1, |u_i| <= c for i in S2)`` for u uniform on the sphere in ``d`` >= 16 dimensions (ours).

    Given ``|z|^2 = R^2`` a Gaussian z has a uniform direction, so the share is the density at R^2 of the sum of squares
    restricted to ``z_i <= cR``, over that of chi^2. Squares of independent entries: a product of one-dimensional
    characteristic functions, inverted by the trapezoid rule (exponentially accurate; tests reach 1e-11 absolute).
    """
    square = float(d - 2)  # any R gives the same share; at chi^2's mode the phase is flattest
    b = cosine * math.sqrt(square)
    if both and b <= 0:
        return 0.0
    step = 2 * math.pi / (60 + 20 * math.sqrt(2 * d))  # images of the density, shifted by 2 pi / step, are 0 at R^2
    end = 0.5 * math.sqrt(10 ** (64 / d) - 1)
    t = np.arange(0.0, end + step, step)
    inner = 0.5 - 1j * t
    log_free = -1j * t * square - 0.5 * d * np.log(2 * inner)
    bounded = erf(b * np.sqrt(inner))
    with np.errstate(divide="ignore"):  # log 0 where nothing is kept: its exponential is 0 again
        log_kept = both * np.log(bounded) if both else 0.0
        if single:
            log_kept = log_kept + single * np.log(0.5 * (1 + bounded))
    weight = np.where(t == 0, 0.5, 1.0)
    free = (weight * np.exp(log_free)).real.sum()
    kept = (weight * np.exp(log_free + log_kept)).real.sum()
    return float(min(max(kept / free, 0.0), 1.0))


def _plane(axes: NDArray[np.float64], cosine: float) -> float:
    """One minus the union of arcs."""
    half = math.acos(min(max(cosine, -1.0), 1.0))
    begin = np.sort((np.arctan2(axes[:, 1], axes[:, 0]) - half) % (2 * math.pi))
    turned = np.append(begin, begin[0] + 2 * math.pi)
    return float(np.maximum(np.diff(turned) - 2 * half, 0).sum() / (2 * math.pi))


def _quasi_random(axes: NDArray[np.float64], cosine: float) -> float:
    d = axes.shape[1]
    sequence = qmc.Sobol(d, scramble=False)
    clear = 0
    block = 2048
    for _ in range(_POINTS // block):
        points = (sequence.random(block) + 0.5 / _POINTS).clip(1e-12, 1 - 1e-12)
        z = ndtri(points)
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        clear += int(((z @ axes.T).max(1) <= cosine).sum())
    return clear / _POINTS
