"""Clusters of points and of directions, and how concentrated directions are."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anabranch.generative._checks import check_count
from anabranch.generative._spheres import bessel_ratio


@dataclass(frozen=True, eq=False)
class Clusters:
    """``centers`` ``[K, D]`` (unit vectors if spherical), the cluster of every row ``[N]``, the ``inertia``: mean squared
    distance to the nearest center."""

    centers: Tensor
    label: Tensor
    inertia: float


@dataclass(frozen=True)
class KMeans:
    """Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii 2007).

    Cost: O(N k D) an iteration.

    Args:
        k: clusters.
        iterations: at most; it ends when no row changes its cluster.
        spherical: rows and centers are unit vectors, so that the nearest center has the largest cosine (Dhillon and Modha
            2001).

    Raises:
        ValueError: a count below 1.
    """

    k: int
    iterations: int = 100
    spherical: bool = False

    def __post_init__(self) -> None:
        check_count("k", self.k)
        check_count("iterations", self.iterations)

    def fit(self, x: Float[Tensor, "n *shape"], *, generator: torch.Generator | None) -> Clusters:
        """The clusters of rows ``x``.

        Raises:
            ValueError: fewer rows than clusters, a row of norm 0 (spherical).
        """
        if len(x) < self.k:
            raise ValueError(f"x has {len(x)} rows: expected at least k = {self.k}")
        flat = x.reshape(len(x), -1)
        if self.spherical:
            flat = unit_rows(flat, "x")
        centers = self._seeds(flat, generator)
        label = torch.full((len(flat),), -1, device=flat.device)
        for _ in range(self.iterations):
            nearest = torch.cdist(flat, centers).argmin(1)
            if torch.equal(nearest, label):
                break
            label = nearest
            sums = torch.zeros_like(centers).index_add_(0, label, flat)
            count = torch.bincount(label, minlength=self.k).to(flat)[:, None]
            centers = torch.where(count > 0, sums / count.clamp(min=1), centers)  # an empty cluster stays where it is
            if self.spherical:
                centers = centers / centers.norm(dim=1, keepdim=True).clamp(min=1e-12)
        distance, label = torch.cdist(flat, centers).min(1)
        return Clusters(centers, label, float((distance.double() ** 2).mean()))

    def _seeds(self, flat: Tensor, generator: torch.Generator | None) -> Tensor:
        first = int(torch.randint(len(flat), (), generator=generator, device=flat.device))
        rows = [first]
        nearest = (flat - flat[first]).square().sum(1)
        for _ in range(self.k - 1):
            weight = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
            rows.append(int(torch.multinomial(weight.double(), 1, generator=generator)))
            nearest = torch.minimum(nearest, (flat - flat[rows[-1]]).square().sum(1))
        return flat[rows].clone()


def SphericalKMeans(  # noqa: N802 - it makes a KMeans, and reads as one
    k: int, iterations: int = 100
) -> KMeans:
    """:class:`KMeans` of directions."""
    return KMeans(k, iterations, spherical=True)


def unit_rows(flat: Tensor, name: str) -> Tensor:
    """Rows over their norms.

    Raises:
        ValueError: a row of norm 0 or with values that are not finite.
    """
    norms = flat.norm(dim=1, keepdim=True)
    bad = ~((norms > 0) & torch.isfinite(norms)).squeeze(1)
    if bool(bad.any()):
        raise ValueError(f"{name}[{int(bad.nonzero()[0])}] has norm {float(norms[bad][0])}: it has no direction")
    return flat / norms


def vmf_kappa(mean_resultant: float, d: int) -> float:
    """The concentration whose von Mises-Fisher law in ``d`` dimensions has this mean cosine (maximum likelihood).

    Banerjee et al. (2005), ``r (d - r^2) / (1 - r^2)``, then Newton's steps on ``I_{d/2} / I_{d/2-1} = r`` (Sra 2012) to
    rounding.

    Args:
        mean_resultant: norm of the mean of unit vectors, in [0, 1).

    Raises:
        ValueError: outside [0, 1), d < 2.
    """
    check_count("d", d, 2)
    r = mean_resultant
    if not 0 <= r < 1:
        raise ValueError(f"mean_resultant must be in [0, 1), got {r}")
    if r == 0:
        return 0.0
    kappa = r * (d - r**2) / (1 - r**2)
    for _ in range(50):
        a = bessel_ratio(d / 2 - 1, kappa)
        slope = 1 - a**2 - (d - 1) / kappa * a
        change = (a - r) / slope if slope > 0 else 0.0
        kappa = max(kappa - change, kappa / 10)
        if abs(change) <= 1e-12 * kappa:
            break
    return kappa


def concentration(
    x: Float[Tensor, "n *shape"], label: Int[Tensor, " n"], k: int
) -> tuple[Float[Tensor, "k d"], list[float]]:
    """Mean direction and concentration of every cluster's directions, by maximum likelihood.

    Raises:
        ValueError: an empty cluster, a row of norm 0.
    """
    unit = unit_rows(x.reshape(len(x), -1), "x").double()
    count = torch.bincount(label, minlength=k)
    if bool((count == 0).any()):
        raise ValueError(f"cluster {int((count == 0).nonzero()[0])} is empty")
    mean = torch.zeros(k, unit.shape[1], dtype=torch.float64, device=unit.device).index_add_(0, label, unit)
    mean = mean / count[:, None]
    norms = mean.norm(dim=1)
    kappa = [vmf_kappa(min(float(r), 1 - 1e-12), unit.shape[1]) for r in norms]
    return mean / norms.clamp(min=1e-300)[:, None], kappa
