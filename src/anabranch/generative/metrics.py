"""Distances between samples, all on float64 statistics.

Samples are ``[n, ...]`` and are flattened to ``[n, d]``. A distance is a plain float; its name never says which features it was
taken on ("FID" is ``frechet_distance`` on Inception features only), and n belongs beside every number.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from anabranch.generative._checks import check_count
from anabranch.generative.couplings import squared_distances
from anabranch.generative.fields import VelocityField
from anabranch.generative.solve import solve

_CHUNK = 2048


def frechet_distance(a: Float[Tensor, "n ..."], b: Float[Tensor, "m ..."]) -> float:
    """Squared Frechet (2-Wasserstein) distance between the Gaussians with the samples' means and unbiased covariances.

    ``|ma - mb|^2 + tr(Ca + Cb - 2 (Ca^1/2 Cb Ca^1/2)^1/2)`` (Dowson and Landau 1982; Heusel et al. 2017). Its bias falls like
    1/n; see :func:`frechet_infinity`. Cost: O((n + m) d^2 + d^3).

    Raises:
        ValueError: fewer than two samples, or different dimensions.
    """
    x, y = _samples(a, b, least=2)
    difference = x.mean(0) - y.mean(0)
    return _frechet(difference, torch.cov(x.T).reshape(x.shape[1], -1), torch.cov(y.T).reshape(x.shape[1], -1))


def frechet_infinity(
    a: Float[Tensor, "n ..."], b: Float[Tensor, "m ..."], *, generator: torch.Generator, subsets: int = 5
) -> float:
    """:func:`frechet_distance` of ``a`` to ``b`` extrapolated to infinitely many ``a`` (Chong and Forsyth 2020).

    The intercept of a least-squares line in 1/n over ``subsets`` random subsets of ``a``, of n/subsets, 2 n/subsets, ..., n.

    Raises:
        ValueError: fewer than two subsets, or subsets of fewer than two samples.
    """
    check_count("subsets", subsets, 2)
    if len(a) // subsets < 2:
        raise ValueError(f"a has {len(a)} samples: expected at least {2 * subsets} for {subsets} subsets")
    sizes = [len(a) * (i + 1) // subsets for i in range(subsets)]
    values = [frechet_distance(a[torch.randperm(len(a), generator=generator)[:n]], b) for n in sizes]
    design = torch.tensor([[1.0, 1.0 / n] for n in sizes], dtype=torch.float64)
    solution = torch.linalg.lstsq(design, torch.tensor(values, dtype=torch.float64)[:, None]).solution
    return float(solution[0, 0])


def sliced_wasserstein(
    a: Float[Tensor, "n ..."],
    b: Float[Tensor, "m ..."],
    *,
    generator: torch.Generator,
    projections: int = 512,
    p: float = 2.0,
) -> float:
    """p-Wasserstein distance averaged over random directions: (mean over directions of W_p^p)^(1/p).

    One-dimensional distances are exact, also for different sizes (integral of the difference of the quantile functions).
    Cost: O(projections (n + m)(d + log(n + m))).

    Raises:
        ValueError: no samples, different dimensions, no projections, p < 1.
    """
    x, y = _samples(a, b, least=1)
    check_count("projections", projections)
    if not p >= 1:
        raise ValueError(f"p must be >= 1, got {p}")
    directions = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64, device=generator.device)
    directions = (directions / directions.norm(dim=0)).to(x.device)
    u, v = (x @ directions).sort(dim=0).values, (y @ directions).sort(dim=0).values
    if len(u) == len(v):
        return float(((u - v).abs() ** p).mean() ** (1 / p))
    # Both quantile functions are steps: between two neighbouring edges i/n, j/m they are constant.
    edges = torch.cat([torch.arange(1, len(u) + 1) * len(v), torch.arange(1, len(v) + 1) * len(u)]).unique()
    width = torch.diff(edges, prepend=edges.new_zeros(1)).to(torch.float64) / (len(u) * len(v))
    at_u, at_v = (edges - 1) // len(v), (edges - 1) // len(u)
    cost = (u[at_u] - v[at_v]).abs() ** p
    return float((width[:, None].to(cost.device) * cost).sum(0).mean() ** (1 / p))


def mmd(
    a: Float[Tensor, "n ..."],
    b: Float[Tensor, "m ..."],
    *,
    kernel: str = "rbf",
    bandwidths: Sequence[float] | None = None,
) -> float:
    """Squared maximum mean discrepancy, unbiased (Gretton et al. 2012, eq. 3); may be below zero.

    "rbf" sums ``exp(-|x - y|^2 / (2 h^2))`` over the bandwidths h, by default the median distance in ``b`` times 0.5, 1 and 2;
    "poly3" is ``(x.y/d + 1)^3``, with Inception features the kernel distance KID. Cost: O((n + m)^2 d).

    Raises:
        ValueError: fewer than two samples, different dimensions, another kernel, bandwidths that are not > 0.
    """
    x, y = _samples(a, b, least=2)
    if kernel == "poly3":
        grams = [(s @ t.T / x.shape[1] + 1) ** 3 for s, t in ((x, x), (y, y), (x, y))]
    elif kernel == "rbf":
        square = [torch.cdist(s, t) ** 2 for s, t in ((x, x), (y, y), (x, y))]
        if bandwidths is None:
            rows, columns = torch.triu_indices(len(y), len(y), 1)
            median = float(square[1][rows, columns].median().sqrt())
            bandwidths = [0.5 * median, median, 2 * median]
        if not bandwidths or not all(h > 0 for h in bandwidths):
            raise ValueError(f"bandwidths must be > 0, got {list(bandwidths)}")
        grams = [torch.stack([torch.exp(-s / (2 * h * h)) for h in bandwidths]).sum(0) for s in square]
    else:
        raise ValueError(f"kernel={kernel!r}: expected 'rbf' or 'poly3'")
    inner = [(g.sum() - g.diagonal().sum()) / (len(g) * (len(g) - 1)) for g in grams[:2]]
    return float(inner[0] + inner[1] - 2 * grams[2].mean())


def wasserstein2(a: Float[Tensor, "n ..."], b: Float[Tensor, "m ..."]) -> float:
    """Exact 2-Wasserstein distance between two equally large sets, by assignment. Cost: O(n^2 d + n^3).

    Raises:
        ValueError: no samples, different sizes or dimensions.
    """
    x, y = _samples(a, b, least=1)
    if len(x) != len(y):
        raise ValueError(f"a has {len(x)} samples and b {len(y)}: expected equally many")
    cost = squared_distances(x, y)
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    return math.sqrt(float(cost[rows, columns].mean()))


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1], density may exceed 1: how far generated samples lie among real ones, and the other way round."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(generated: Float[Tensor, "n ..."], real: Float[Tensor, "m ..."], *, k: int = 5) -> PrecisionRecall:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), by k nearest neighbors.

    A sample's ball reaches to its k-th nearest neighbor of its own set. Cost: O((n + m)^2 d), memory in blocks of 2,048 rows.

    Raises:
        ValueError: k < 1, sets of k samples or fewer, different dimensions.
    """
    check_count("k", k)
    x, y = _samples(generated, real, least=k + 1)
    radius_x, radius_y = _kth_distance(x, k), _kth_distance(y, k)
    in_real = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    recalled = torch.zeros(len(y), dtype=torch.bool, device=x.device)
    covered = torch.zeros(len(y), dtype=torch.bool, device=x.device)
    for begin in range(0, len(x), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        distance = torch.cdist(x[part], y)
        inside = distance <= radius_y
        in_real[part] = inside.sum(1).to(torch.float64)
        covered |= inside.any(0)
        recalled |= (distance <= radius_x[part, None]).any(0)
    return PrecisionRecall(
        float((in_real > 0).double().mean()),
        float(recalled.double().mean()),
        float(in_real.mean() / k),
        float(covered.double().mean()),
    )


def straightness(
    field: VelocityField, x0: Float[Tensor, "batch *shape"], times: Float[Tensor, " points"], **condition: Any
) -> Float[Tensor, " batch"]:
    """Per sample the mean over time of ``|x(1) - x(0) - v(x(t), t)|^2`` along its trajectory (Liu et al. 2023, eq. 3).

    0 for straight paths at constant speed. The trajectory is solved by RK4 over ``times`` from 0 to 1, and the mean is taken by
    the trapezoid rule. Cost: five calls of the field a step.

    Raises:
        ValueError: times that do not go from 0 to 1.
    """
    if float(times[0]) != 0 or float(times[-1]) != 1:
        raise ValueError(f"times go from {float(times[0])} to {float(times[-1])}: expected 0 to 1")
    path = solve(field, x0, times, "rk4", return_trajectory=True, **condition)
    chord = path.states[-1] - path.states[0]
    with torch.no_grad():
        speeds = [field(state, time, **condition) for state, time in zip(path.states, times.to(x0.dtype), strict=True)]
    errors = torch.stack([((chord - v) ** 2).flatten(1).sum(1) for v in speeds])
    return torch.trapezoid(errors, times.to(errors), dim=0)


def _samples(a: Tensor, b: Tensor, *, least: int) -> tuple[Tensor, Tensor]:
    for name, value in (("the first", a), ("the second", b)):
        if len(value) < least:
            raise ValueError(f"{name} set has {len(value)} samples: expected at least {least}")
    x, y = a.reshape(len(a), -1).to(torch.float64), b.reshape(len(b), -1).to(torch.float64)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"samples have {x.shape[1]} and {y.shape[1]} dimensions: expected equally many")
    return x, y


def _frechet(difference: Tensor, first: Tensor, second: Tensor) -> float:
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return max(0.0, float(difference @ difference + first.trace() + second.trace() - 2 * cross))


def _kth_distance(x: Tensor, k: int) -> Tensor:
    """Distance of each sample to its k-th nearest other."""
    found = []
    for begin in range(0, len(x), _CHUNK):
        distance = torch.cdist(x[begin : begin + _CHUNK], x)
        # itself, at distance 0 up to rounding, must not count as a neighbor
        distance[torch.arange(len(distance)), torch.arange(begin, begin + len(distance))] = -1.0
        found.append(distance.kthvalue(k + 1, dim=1).values)
    return torch.cat(found)
