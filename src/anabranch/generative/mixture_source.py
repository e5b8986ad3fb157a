"""Sources that imitate the data's density: Gaussian mixtures with full covariances, masked DCT noise, another flow.

The paper finds that the closer such a source comes to the data, the worse the flow from it (2512.18184); they are here to be
compared with.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_count, check_share
from anabranch.generative._spheres import gaussian_mean_norm
from anabranch.generative.fields import VelocityField
from anabranch.generative.likelihood import log_likelihood
from anabranch.generative.solve import solve
from anabranch.generative.sources import Source
from anabranch.generative.spherical_clusters import KMeans
from anabranch.generative.times import uniform_times


@dataclass(frozen=True, eq=False, kw_only=True)
class GaussianMixtureSource:
    """A mixture of Gaussians with full covariances; one component is the Gaussian of the data's mean and covariance.

    Args:
        weights: ``[K]``, normalised here.
        means: ``[K, *shape]``; the draws have their dtype and device.
        covariances: ``[K, D, D]``, positive definite.

    Raises:
        ValueError: shapes that do not fit, weights below 0, a covariance that is not positive definite.
    """

    weights: Float[Tensor, " k"]
    means: Float[Tensor, "k *shape"]
    covariances: Float[Tensor, "k d d"]

    def __post_init__(self) -> None:
        k, d = len(self.means), self.means[0].numel() if len(self.means) else 0
        if self.weights.shape != (k,) or self.covariances.shape != (k, d, d) or k == 0:
            raise ValueError(
                f"weights {tuple(self.weights.shape)}, means {tuple(self.means.shape)}, covariances "
                f"{tuple(self.covariances.shape)}: expected [K], [K, *shape] and [K, D, D]"
            )
        if not bool((self.weights >= 0).all()) or not float(self.weights.sum()) > 0:
            raise ValueError(f"weights must be >= 0 and not all 0, got {self.weights.tolist()}")
        failed = torch.linalg.cholesky_ex(self.covariances).info
        if bool(failed.any()):
            raise ValueError(f"covariances[{int(failed.nonzero()[0])}] is not positive definite")

    @classmethod
    def fit(
        cls,
        data: Float[Tensor, "n *shape"],
        k: int = 1,
        *,
        generator: torch.Generator | None,
        shrinkage: float = 0.0,
        floor: float = 1e-6,
        iterations: int = 100,
        tolerance: float = 1e-3,
    ) -> "GaussianMixtureSource":
        """Maximum likelihood by expectation-maximization from k-means clusters.

        Cost: O(N k D^2 + k D^3) an iteration.

        Args:
            shrinkage: share of ``tr(C) / D I`` in every covariance, between the full one (0) and an isotropic one (1) (ours).
            floor: added to the covariances' diagonals.
            tolerance: it ends when the mean log likelihood rises by less.

        Raises:
            ValueError: fewer rows than k, values that are not finite, shrinkage outside [0, 1], floor <= 0.
        """
        check_count("k", k)
        check_count("iterations", iterations)
        check_share("shrinkage", shrinkage)
        if not floor > 0:
            raise ValueError(f"floor must be > 0, got {floor}")
        flat = data.reshape(len(data), -1).double()
        if not bool(torch.isfinite(flat).all()):
            raise ValueError("data has values that are not finite")
        label = KMeans(k).fit(flat, generator=generator).label
        share = torch.nn.functional.one_hot(label, k).to(flat)
        before = -math.inf
        for _ in range(iterations):
            weights, means, covariances = _maximization(flat, share, shrinkage, floor)
            if k == 1:
                break
            logits = _component_log_prob(flat, means, torch.linalg.cholesky(covariances)) + weights.log()
            total = torch.logsumexp(logits, 1)
            share = torch.exp(logits - total[:, None])
            if float(total.mean()) - before < tolerance:
                break
            before = float(total.mean())
        shaped = means.reshape(k, *data.shape[1:])
        return cls(weights=weights.to(data), means=shaped.to(data), covariances=covariances.to(data))

    def standardized(self) -> "GaussianMixtureSource":
        """The mixture shifted to mean 0 and scaled to mean variance 1: the paper's normalisation, exact here, not estimated."""
        shares, flat = self._shares.to(self.means), self.means.reshape(len(self.means), -1)
        center = shares @ flat
        spread = (flat - center).square().mean(1) + self.covariances.diagonal(dim1=1, dim2=2).mean(1)
        scale = float((shares * spread).sum().sqrt())
        means = ((flat - center) / scale).reshape(self.means.shape)
        return GaussianMixtureSource(weights=self.weights, means=means, covariances=self.covariances / scale**2)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    @property
    def mean_norm(self) -> float:
        """By quadrature, to 1e-10 of the Laplace transform."""
        values, vectors = torch.linalg.eigh(self.covariances.double())
        turned = (vectors.mT @ self.means.reshape(len(self.means), -1, 1).double()).squeeze(2)
        norms = [gaussian_mean_norm(v.cpu().numpy(), (m**2).cpu().numpy()) for v, m in zip(values, turned, strict=True)]
        return float(sum(float(w) * norm for w, norm in zip(self._shares, norms, strict=True)))

    @cached_property
    def _shares(self) -> Tensor:
        weights = self.weights.double()
        return weights / weights.sum()

    @cached_property
    def _factors(self) -> Tensor:
        return torch.linalg.cholesky(self.covariances)

    def sample(self, n: int, *, generator: torch.Generator | None, condition: Any = None) -> Float[Tensor, "n *shape"]:
        check_count("n", n)
        component = torch.multinomial(self._shares, n, replacement=True, generator=generator)
        flat = self.means.reshape(len(self.means), -1)
        z = torch.randn(n, flat.shape[1], generator=generator, dtype=flat.dtype, device=flat.device)
        x = flat[component]
        for k in range(len(flat)):
            rows = component == k
            x[rows] += z[rows] @ self._factors[k].T
        return x.reshape(n, *self.shape)

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        flat = x.reshape(len(x), -1)
        means = self.means.reshape(len(self.means), -1).to(flat)
        return torch.logsumexp(
            _component_log_prob(flat, means, self._factors.to(flat)) + self._shares.log().to(flat), 1
        )


@dataclass(frozen=True, eq=False)
class LearnedSource:
    """The samples of a flow as the source of another (the paper: FFJORD; here any velocity field).

    Args:
        field: from ``base`` at t = 0 to these samples at t = 1.
        base: its source.
        times: of the solve, default 20 even steps.
        solver: of the samples.
        mean_norm: of the samples, if you know it; it has no closed form.
    """

    field: VelocityField
    base: Source
    times: Tensor = field(default_factory=lambda: uniform_times(20))
    solver: Any = "midpoint"
    mean_norm: float = math.nan

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    def sample(self, n: int, *, generator: torch.Generator | None, condition: Any = None) -> Float[Tensor, "n *shape"]:
        x0 = self.base.sample(n, generator=generator, condition=condition)
        given = {} if condition is None else {"label": condition}
        result = solve(self.field, x0, self.times, self.solver, generator=generator, **given)
        assert isinstance(result, Tensor)
        return result

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """By the change of variables along the flow, with the exact divergence: D backward passes an evaluation."""
        return log_likelihood(self.field, x, self.times, self.base, solver="rk4")


def _maximization(flat: Tensor, share: Tensor, shrinkage: float, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    count = share.sum(0).clamp(min=1e-10)
    means = share.T @ flat / count[:, None]
    d = flat.shape[1]
    covariances = flat.new_empty(len(means), d, d)
    eye = torch.eye(d, dtype=flat.dtype, device=flat.device)
    for k, mean in enumerate(means):  # over components, not data
        centered = flat - mean
        covariance = (share[:, k, None] * centered).T @ centered / count[k]
        covariance = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / d * eye
        covariances[k] = covariance + floor * eye
    return count / len(flat), means, covariances


def _component_log_prob(flat: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    """``[B, K]``."""
    columns = []
    for mean, factor in zip(means, factors, strict=True):
        z = torch.linalg.solve_triangular(factor, (flat - mean).T, upper=False)
        columns.append(-0.5 * (z**2).sum(0) - factor.diagonal().log().sum())
    return torch.stack(columns, 1) - 0.5 * flat.shape[1] * math.log(2 * math.pi)
