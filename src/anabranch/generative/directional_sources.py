"""Sources that point in given directions: von Mises-Fisher and uniform caps, with the norm of a Gaussian.

Both are mixtures over K directions with a norm that is independent of the direction. With a chi-distributed norm they have
a density in the whole space: that of the direction, times the chi density of the norm r, over r^(D-1).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from scipy.special import betaincinv
from torch import Tensor

from anabranch.generative._checks import check_count, check_pair
from anabranch.generative._spheres import (
    cap_probability,
    chi_log_density,
    chi_mean,
    draw_chi,
    draw_directions,
    draw_gamma,
    log_bessel_i,
    log_sphere_area,
)
from anabranch.generative.couplings import Pairs
from anabranch.generative.spherical_clusters import SphericalKMeans, concentration, unit_rows


@dataclass(frozen=True, eq=False, kw_only=True)
class _Directional:
    """Mixture over directions: what both laws share. ``directions`` are ``[K, *shape]`` of any positive norm."""

    directions: Float[Tensor, "k *shape"]
    weights: Float[Tensor, " k"] | None = None
    radius: float | Literal["chi"] = "chi"
    degrees: float | int | None = None

    def __post_init__(self) -> None:
        if self.directions.ndim < 2 or self.directions[0].numel() < 2 or not self.directions.is_floating_point():
            raise ValueError(
                f"directions is {self.directions.dtype} {tuple(self.directions.shape)}: expected floats [K, *shape] with at "
                "least two entries a direction"
            )
        unit_rows(self.directions.reshape(len(self.directions), -1), "directions")
        if self.weights is not None:
            right = self.weights.shape == (len(self.directions),)
            if not right or not bool((self.weights >= 0).all()) or not float(self.weights.sum()) > 0:
                raise ValueError(f"weights must be {len(self.directions)} numbers >= 0, not all 0, got {self.weights}")
        if self.radius != "chi" and (isinstance(self.radius, str) or not 0 < self.radius < math.inf):
            raise ValueError(f"radius must be 'chi' or a norm > 0, got {self.radius!r}")
        if self.degrees is not None and not self.degrees > 0:
            raise ValueError(f"degrees must be > 0, got {self.degrees}")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.directions.shape[1:])

    @property
    def degrees_of_freedom(self) -> float:
        """Of the chi-distributed norm; default the dimension."""
        return float(self._unit.shape[1] if self.degrees is None else self.degrees)

    @property
    def mean_norm(self) -> float:
        return chi_mean(self.degrees_of_freedom) if self.radius == "chi" else float(self.radius)

    @cached_property
    def _unit(self) -> Tensor:
        return unit_rows(self.directions.reshape(len(self.directions), -1), "directions")

    @cached_property
    def _shares(self) -> Tensor:
        weights = torch.ones(len(self.directions)) if self.weights is None else self.weights
        weights = weights.to(self.directions.device, torch.float64)
        return weights / weights.sum()

    def _cosines(self, cluster: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def _log_direction(self, cosines: Tensor) -> Tensor:
        raise NotImplementedError

    def sample(self, n: int, *, generator: torch.Generator | None, condition: Any = None) -> Float[Tensor, "n *shape"]:
        check_count("n", n)
        device, dtype = self._unit.device, self._unit.dtype
        cluster = torch.multinomial(self._shares, n, replacement=True, generator=generator)
        cosine = self._cosines(cluster, generator)
        points = around(self._unit[cluster], cosine.to(dtype), generator)
        if self.radius == "chi":
            radius = draw_chi(self.degrees_of_freedom, n, generator=generator, device=device).to(dtype)
        else:
            radius = torch.full((n,), self.radius, dtype=dtype, device=device)
        return (radius[:, None] * points).reshape(n, *self.shape)

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Log density in nats.

        Raises:
            NotImplementedError: a fixed radius, whose law lives on a sphere (see :meth:`log_prob_direction`).
        """
        if self.radius != "chi":
            raise NotImplementedError(
                "a law of fixed norm has no density in space: log_prob_direction is that on its sphere"
            )
        flat = x.reshape(len(x), -1)
        r = flat.norm(dim=1)
        d = flat.shape[1]
        return self.log_prob_direction(x) + chi_log_density(r, self.degrees_of_freedom) - (d - 1) * torch.log(r)

    def log_prob_direction(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Log density of the directions of ``x`` on the unit sphere."""
        flat = x.reshape(len(x), -1)
        cosines = (flat / flat.norm(dim=1, keepdim=True)) @ self._unit.T.to(flat)
        return torch.logsumexp(self._log_direction(cosines) + self._shares.log().to(flat), 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class VonMisesFisherSource(_Directional):
    """Directions of density ``exp(kappa mu.u)`` up to a constant around each of K mean directions (Banerjee et al. 2005).

    Wood's rejection (1994) for the cosine, exact in any dimension.

    Args:
        directions: mean directions ``[K, *shape]``, of any positive norm; the draws have their dtype and device.
        kappa: concentration >= 0, one or K of them; 0 is uniform.
        weights: of the K, default equal.
        radius: "chi" for the norm of a standard Gaussian, or a fixed norm.
        degrees: of freedom of the chi law, default the dimension.

    Raises:
        ValueError: a direction of norm 0, kappa < 0, weights or radius out of their range.
    """

    kappa: float | Float[Tensor, " k"]

    def __post_init__(self) -> None:
        super().__post_init__()
        kappa = torch.as_tensor(self.kappa)
        if kappa.ndim > 1 or (kappa.ndim and len(kappa) != len(self.directions)):
            raise ValueError(f"kappa has shape {tuple(kappa.shape)}: expected a number or [{len(self.directions)}]")
        if not bool(((kappa >= 0) & torch.isfinite(kappa)).all()):
            raise ValueError(f"kappa must be >= 0 and finite, got {self.kappa}")

    @classmethod
    def fit(
        cls,
        data: Float[Tensor, "n *shape"],
        k: int,
        *,
        generator: torch.Generator | None,
        kappa: float | None = None,
        radius: float | Literal["chi"] = "chi",
    ) -> "VonMisesFisherSource":
        """Around the spherical k-means centers of ``data`` (the paper: k = 3), weighted by their shares.

        Args:
            kappa: None takes the maximum-likelihood concentration of every cluster.

        Raises:
            ValueError: fewer rows than k, a row of norm 0.
        """
        clusters = SphericalKMeans(k).fit(data, generator=generator)
        mean, fitted = concentration(data, clusters.label, k)
        return cls(
            directions=mean.to(data).reshape(k, *data.shape[1:]),
            kappa=torch.tensor(fitted, dtype=torch.float64, device=data.device) if kappa is None else kappa,
            weights=torch.bincount(clusters.label, minlength=k).double(),
            radius=radius,
        )

    @cached_property
    def _kappas(self) -> Tensor:
        kappa = torch.as_tensor(self.kappa, dtype=torch.float64, device=self.directions.device)
        return kappa.expand(len(self.directions))

    def _cosines(self, cluster: Tensor, generator: torch.Generator | None) -> Tensor:
        return vmf_cosines(self._kappas[cluster], self._unit.shape[1], generator)

    def _log_direction(self, cosines: Tensor) -> Tensor:
        d = self._unit.shape[1]
        constants = [log_vmf_constant(float(kappa), d) for kappa in self._kappas]
        return self._kappas.to(cosines) * cosines + torch.tensor(constants, dtype=torch.float64).to(cosines)


@dataclass(frozen=True, eq=False, kw_only=True)
class CapSource(_Directional):
    """Directions uniform on caps: those whose cosine to the mean direction is at least ``min_cosine``.

    The directional source of the paper's simulation (0.9 loose, 0.98 tight).

    Args:
        min_cosine: in [-1, 1).
        directions, weights, radius, degrees: as in :class:`VonMisesFisherSource`.

    Raises:
        ValueError: min_cosine out of its range, and as there.
    """

    min_cosine: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.min_cosine < 1:
            raise ValueError(f"min_cosine must be in [-1, 1), got {self.min_cosine}")

    def _cosines(self, cluster: Tensor, generator: torch.Generator | None) -> Tensor:
        d, device = self._unit.shape[1], self._unit.device
        share = torch.rand(len(cluster), generator=generator, dtype=torch.float64, device=device)
        if d == 2:
            return torch.cos(share * math.acos(self.min_cosine))
        # (1 + u_1) / 2 is Beta((d - 1) / 2, (d - 1) / 2); its upper tail, by symmetry, is the lower tail of 1 minus it.
        tail = cap_probability(self.min_cosine, d) * share.cpu().numpy()
        half = (d - 1) / 2
        return torch.from_numpy(1 - 2 * betaincinv(half, half, tail)).to(device)

    def _log_direction(self, cosines: Tensor) -> Tensor:
        d = self._unit.shape[1]
        inside = -math.log(cap_probability(self.min_cosine, d)) - log_sphere_area(d)
        return torch.full_like(cosines, inside).masked_fill(cosines < self.min_cosine, -math.inf)


@dataclass(frozen=True)
class OracleVMF:
    """Every draw of the source is turned to its own target: a von Mises-Fisher direction around x1, with x0's norm.

    The paper's oracle (kappa 3000 or 1500 on CIFAR-10): a bound on what directions can give, not a sampler, since it needs the
    target.

    Args:
        kappa: concentration >= 0.

    Raises:
        ValueError: kappa < 0; when pairing, a target of norm 0.
    """

    kappa: float

    def __post_init__(self) -> None:
        if not 0 <= self.kappa < math.inf:
            raise ValueError(f"kappa must be >= 0, got {self.kappa}")

    def pair(
        self,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        label: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        """The batch with turned sources."""
        check_pair(x0, x1)
        unit = unit_rows(x1.reshape(len(x1), -1), "x1")
        kappa = torch.full((len(x1),), self.kappa, dtype=torch.float64, device=x1.device)
        cosine = vmf_cosines(kappa, unit.shape[1], generator).to(x0.dtype)
        norm = x0.reshape(len(x0), -1).norm(dim=1, keepdim=True)
        return Pairs((norm * around(unit, cosine, generator)).reshape(x0.shape), x1, label)


def around(center: Tensor, cosine: Tensor, generator: torch.Generator | None) -> Tensor:
    """Unit vectors ``[n, d]`` at the given cosines to unit vectors ``center``, otherwise uniform."""
    n, d = center.shape
    z = draw_directions(n, d, generator=generator, dtype=center.dtype, device=center.device)
    tangent = z - (z * center).sum(1, keepdim=True) * center
    tangent = tangent / tangent.norm(dim=1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
    sine = (1 - cosine**2).clamp(min=0).sqrt()
    return cosine[:, None] * center + sine[:, None] * tangent


def vmf_cosines(kappa: Tensor, d: int, generator: torch.Generator | None) -> Tensor:
    """Cosines to the mean direction, one for each concentration ``[n]`` (Wood 1994), float64."""
    half = (d - 1) / 2
    b = (d - 1) / (2 * kappa + torch.sqrt(4 * kappa**2 + (d - 1) ** 2))
    top = (1 - b) / (1 + b)
    level = kappa * top + (d - 1) * torch.log(1 - top**2)
    result = torch.empty_like(kappa)
    open_ = torch.arange(len(kappa), device=kappa.device)
    while len(open_):
        m = len(open_)
        first, second = draw_gamma(half, 2 * m, generator=generator, device=kappa.device).chunk(2)
        z = first / (first + second)
        w = (1 - (1 + b[open_]) * z) / (1 - (1 - b[open_]) * z)
        coin = torch.rand(m, generator=generator, dtype=torch.float64, device=kappa.device)
        value = kappa[open_] * w + (d - 1) * torch.log(1 - top[open_] * w) - level[open_]
        taken = value >= torch.log(coin)
        result[open_[taken]] = w[taken]
        open_ = open_[~taken]
    return result


def log_vmf_constant(kappa: float, d: int) -> float:
    """Log of the von Mises-Fisher law's normalising constant on the unit sphere in ``d`` dimensions."""
    if kappa == 0:
        return -log_sphere_area(d)
    order = d / 2 - 1
    return order * math.log(kappa) - d / 2 * math.log(2 * math.pi) - log_bessel_i(order, kappa)
