"""Gaussian mixtures: laws whose flow is known exactly.

With ``x_t = alpha x_1 + sigma x_0``, ``x_0 ~ N(0, c^2 I)`` and component k of the data N(m_k, C_k), the state at t given
k is Gaussian with mean ``alpha m_k`` and covariance ``V_k = alpha^2 C_k + sigma^2 c^2 I``. Given k the velocity is affine,
``d_alpha m_k + (dV_k/dt / 2) V_k^-1 (x - alpha m_k)``, and the field is its mean under the responsibilities of the
components: no training, no error. All is computed in the mixture's own dtype (float64) and given back in the state's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anabranch.generative import FlowMap, GaussianPath, LinearPath, SingularTimeError, flow_map_from_field

Array = Tensor | Sequence[Any] | float


class GaussianMixture:
    """A mixture of K Gaussians in D dimensions, with its exact velocity, score, flow map and density along any path.

    Args:
        weights: ``[K]``, positive; scaled to sum to 1.
        means: ``[K, D]``.
        covariances: a number (one variance for all), ``[K]`` (one each), ``[K, D]`` (diagonals), ``[K, D, D]`` (full), or
            a pair ``(factors [K, D, R], noise [K])`` for ``factors factors^T + noise I``.
        classes: ``[K]`` integers, the class of each component (default: its index). The fields take ``label`` ``[B]``
            and are then those of that class alone; a label of -1 means all.

    Cost: a call is O(B K D) for diagonal, O(B K D R) for low-rank covariances and R = D for full ones, which are
    diagonalised once.

    Raises:
        ValueError: shapes that do not fit, weights that are not positive, covariances that are not positive
            (semi)definite or symmetric. Singular covariances are allowed; at sigma = 0 they raise SingularTimeError.
    """

    def __init__(
        self,
        *,
        weights: Array,
        means: Array,
        covariances: Array | tuple[Array, Array],
        classes: Tensor | Sequence[int] | None = None,
    ) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.ndim != 2:
            raise ValueError(f"means has shape {tuple(self.means.shape)}: expected [K, D]")
        k, d = self.means.shape
        w = torch.as_tensor(weights, dtype=torch.float64)
        if w.shape != (k,) or not bool((torch.isfinite(w) & (w > 0)).all()):
            raise ValueError(f"weights must be {k} positive numbers (one per row of means), got {w.tolist()}")
        self.weights = w / w.sum()
        self.classes = torch.arange(k) if classes is None else torch.as_tensor(classes, dtype=torch.int64)
        if self.classes.shape != (k,) or bool((self.classes < 0).any()):
            raise ValueError(f"classes must be {k} integers >= 0, got {self.classes.tolist()}")
        # eigenvalues [K, R] along basis [K, D, R] (None: the axes), and rest [K] on what the basis does not span.
        self._basis: Tensor | None = None
        self._rest: Tensor | None = None
        self._eigenvalues: Tensor
        self._decompose(covariances, k, d)
        self._to_device(self.means.device)

    def _decompose(self, covariances: Any, k: int, d: int) -> None:
        if isinstance(covariances, tuple):
            factors, noise = (torch.as_tensor(part, dtype=torch.float64) for part in covariances)
            if factors.ndim != 3 or factors.shape[:2] != (k, d) or noise.shape != (k,) or factors.shape[2] > d:
                raise ValueError(
                    f"covariances is a pair of shapes {tuple(factors.shape)} and {tuple(noise.shape)}: expected "
                    f"[{k}, {d}, R] with R <= {d}, and [{k}]"
                )
            self._basis, singular, _ = torch.linalg.svd(factors, full_matrices=False)
            self._eigenvalues, self._rest = singular**2 + noise[:, None], noise
        else:
            given = torch.as_tensor(covariances, dtype=torch.float64)
            shapes = {(): "a number", (k,): "[K]", (k, d): "[K, D]", (k, d, d): "[K, D, D]"}
            if tuple(given.shape) not in shapes:
                raise ValueError(
                    f"covariances has shape {tuple(given.shape)}: expected a number, [{k}], [{k}, {d}], [{k}, {d}, {d}] or "
                    "a pair (factors, noise)"
                )
            if given.ndim == 3:
                if not torch.allclose(given, given.mT, rtol=1e-9, atol=1e-12):
                    raise ValueError("covariances must be symmetric")
                values, self._basis = torch.linalg.eigh(given)
                floor = -1e-12 * values.abs().amax(1, keepdim=True)
                self._eigenvalues = torch.where((values < 0) & (values >= floor), 0.0, values)
            else:
                self._eigenvalues = given.expand(k, d) if given.ndim == 2 else given.expand(k)[:, None].expand(k, d)
        if not bool((self._eigenvalues >= 0).all()) or (self._rest is not None and not bool((self._rest >= 0).all())):
            raise ValueError("covariances must be finite and positive semidefinite")
        parts = [self._eigenvalues] if self._rest is None else [self._eigenvalues, self._rest]
        self._degenerate = any(bool((part == 0).any()) for part in parts)

    def _to_device(self, device: torch.device) -> None:
        for name in ("means", "weights", "classes", "_basis", "_rest", "_eigenvalues"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.to(device))

    @property
    def dim(self) -> int:
        """D."""
        return self.means.shape[1]

    @property
    def mean(self) -> Float[Tensor, " dim"]:
        """Mean of the mixture."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        """Covariance of the mixture."""
        if self._basis is None:
            inner = torch.diag(self.weights @ self._eigenvalues)
        else:
            rest = torch.zeros_like(self.weights) if self._rest is None else self._rest
            scaled = self._basis * (self._eigenvalues - rest[:, None])[:, None]
            inner = torch.einsum("k,kdr,ker->de", self.weights, scaled, self._basis)
            inner = inner + (self.weights @ rest) * torch.eye(self.dim, dtype=inner.dtype, device=inner.device)
        centred = self.means - self.mean
        return inner + (self.weights[:, None] * centred).T @ centred

    def velocity(self, path: GaussianPath | None = None, *, source_scale: float = 1.0) -> "MixtureField":
        """The exact velocity field of ``path`` (default linear) from N(0, source_scale^2 I) to the mixture."""
        return MixtureField(self, path or LinearPath(), "velocity", source_scale)

    def score(self, path: GaussianPath | None = None, *, source_scale: float = 1.0) -> "MixtureField":
        """The exact score: the gradient of :meth:`log_density` at t."""
        return MixtureField(self, path or LinearPath(), "score", source_scale)

    def flow_map(self, path: GaussianPath | None = None, *, source_scale: float = 1.0, steps: int = 64) -> FlowMap:
        """The average velocity ``u(x, s, t)``: in closed form for one component, else by ``steps`` steps of rk4.

        For one component ``x_t = alpha_t m + V_t^(1/2) V_s^(-1/2) (x_s - alpha_s m)``.
        """
        field = self.velocity(path, source_scale=source_scale)
        return GaussianFlowMap(field) if len(self.weights) == 1 else flow_map_from_field(field, "rk4", steps)

    def log_density(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Tensor = 1.0,
        path: GaussianPath | None = None,
        *,
        source_scale: float = 1.0,
        label: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Log density in nats of the state at ``t`` (default: of the data); with ``label`` that of the class alone."""
        joint, weights = self._joint(x, t, path or LinearPath(), source_scale, label)
        return (torch.logsumexp(joint, 1) - weights).to(x.dtype)

    def class_log_prob(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Tensor,
        label: Int[Tensor, " batch"],
        path: GaussianPath | None = None,
        *,
        source_scale: float = 1.0,
    ) -> Float[Tensor, " batch"]:
        """``log p(label | x_t)``: the exact classifier of the noisy states."""
        joint, _ = self._joint(x, t, path or LinearPath(), source_scale, label)
        every, _ = self._joint(x, t, path or LinearPath(), source_scale, None)
        return (torch.logsumexp(joint, 1) - torch.logsumexp(every, 1)).to(x.dtype)

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator | None,
        t: float = 1.0,
        path: GaussianPath | None = None,
        source_scale: float = 1.0,
    ) -> Float[Tensor, "n dim"]:
        """``n`` exact draws of the state at ``t`` (default: of the data), float64."""
        return self.sample_labelled(n, generator=generator, t=t, path=path, source_scale=source_scale)[0]

    def sample_labelled(
        self,
        n: int,
        *,
        generator: torch.Generator | None,
        t: float = 1.0,
        path: GaussianPath | None = None,
        source_scale: float = 1.0,
    ) -> tuple[Float[Tensor, "n dim"], Int[Tensor, " n"]]:
        """:meth:`sample`, with the class of each draw."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        place: dict[str, Any] = {"dtype": torch.float64, "device": self.means.device}
        path, time = path or LinearPath(), torch.tensor(float(t), **place)
        alpha, sigma = path.alpha(time), path.sigma(time)
        z = torch.randn(n, self.dim, generator=generator, **place)

        def variance(values: Tensor) -> Tensor:
            return alpha**2 * values + (sigma * source_scale) ** 2

        along = torch.sqrt(variance(self._eigenvalues))
        noise = torch.empty_like(z)
        for k in torch.unique(component):
            rows = component == k
            if self._basis is None:
                noise[rows] = z[rows] * along[k]
                continue
            rest = torch.zeros_like(alpha) if self._rest is None else torch.sqrt(variance(self._rest[k]))
            noise[rows] = rest * z[rows] + (z[rows] @ self._basis[k] * (along[k] - rest)) @ self._basis[k].T
        return alpha * self.means[component] + noise, self.classes[component]

    def _joint(
        self, x: Tensor, t: float | Tensor, path: GaussianPath, scale: float, label: Tensor | None
    ) -> tuple[Tensor, Tensor | float]:
        """log(w_k N(x; k)) ``[B, K]`` with other classes at -inf, and the log weight of the class."""
        prior = self.log_prior(label)
        joint = _State.at(self, x, t, path, scale).log_gaussian() + prior
        return joint, 0.0 if label is None else torch.logsumexp(prior, 1)

    def log_prior(self, label: Int[Tensor, " batch"] | None) -> Float[Tensor, "rows components"]:
        """Log weights ``[1, K]``; with labels ``[B, K]``, -inf for components of other classes.

        Raises:
            ValueError: a label that no component has.
        """
        weights = torch.log(self.weights)[None]
        if label is None:
            return weights
        member = (label[:, None] == self.classes) | (label[:, None] < 0)
        if not bool(member.any(1).all()):
            wrong = int(label[~member.any(1)][0])
            raise ValueError(f"label {wrong} is no class: expected -1 or one of {torch.unique(self.classes).tolist()}")
        return weights.masked_fill(~member, -math.inf)


@dataclass(frozen=True)
class _State:
    """A batch seen from every component at one time: ``y = x - alpha m_k`` split into eigendirections."""

    mixture: GaussianMixture
    y: Tensor  # [B, K, D]
    along: Tensor  # [B, K, R] coordinates of y in the eigenbasis
    weights: dict[str, Tensor]  # alpha, sigma and products, each broadcasting over [B, K, 1]
    scale: float

    @classmethod
    def at(cls, mixture: GaussianMixture, x: Tensor, t: float | Tensor, path: GaussianPath, scale: float) -> "_State":
        flat = x.reshape(len(x), -1).to(mixture.means)
        if flat.shape[1] != mixture.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}: expected {mixture.dim} numbers per sample")
        time = torch.as_tensor(t, dtype=mixture.means.dtype, device=mixture.means.device).reshape(-1, 1, 1)
        if time.shape[0] not in (1, len(x)):
            raise ValueError(f"t has {time.shape[0]} entries for a batch of {len(x)}")
        weights = {name: getattr(path, name)(time) for name in ("alpha", "sigma", "d_alpha", "sigma_d_sigma")}
        y = flat[:, None] - weights["alpha"] * mixture.means
        along = y if mixture._basis is None else torch.einsum("bkd,kdr->bkr", y, mixture._basis)
        return cls(mixture, y, along, weights, scale)

    def variance(self, values: Tensor) -> Tensor:
        """Eigenvalues of V_k, from those of C_k."""
        variance = self.weights["alpha"] ** 2 * values + (self.weights["sigma"] * self.scale) ** 2
        # Looked at only where it can happen: a look at values waits for the device and stops vmap.
        if self.mixture._degenerate and not bool((variance > 0).all()):
            raise SingularTimeError("a covariance is singular at this time (sigma = 0): stop at an earlier time")
        return variance

    def apply(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """``f(C_k) y`` ``[B, K, D]`` for a function of the eigenvalues (given ``[1, K, R]``, gives ``[B or 1, K, R]``)."""
        mixture, inner = self.mixture, function(self.mixture._eigenvalues[None])
        if mixture._basis is None:
            return inner * self.along
        if mixture._rest is None:
            return torch.einsum("bkr,kdr->bkd", inner * self.along, mixture._basis)
        outer = function(mixture._rest[None, :, None])
        return outer * self.y + torch.einsum("bkr,kdr->bkd", (inner - outer) * self.along, mixture._basis)

    def log_gaussian(self) -> Tensor:
        variance = self.variance(self.mixture._eigenvalues[None])
        quadratic, logdet = (self.along**2 / variance).sum(2), torch.log(variance).sum(2)
        dim = self.mixture.dim
        if self.mixture._rest is not None and self.along.shape[2] < dim:
            rest = self.variance(self.mixture._rest[None, :, None])[..., 0]
            outside = self.y - torch.einsum("bkr,kdr->bkd", self.along, self.mixture._basis)
            quadratic = quadratic + (outside**2).sum(2) / rest
            logdet = logdet + (dim - self.along.shape[2]) * torch.log(rest)
        return -0.5 * (quadratic + logdet + dim * math.log(2 * math.pi))

    def velocity_of_component(self) -> Tensor:
        """``[B, K, D]``; ``alpha d_alpha C + sigma d_sigma c^2`` is half the derivative of V."""
        w = self.weights

        def rate(values: Tensor) -> Tensor:
            half = w["alpha"] * w["d_alpha"] * values + w["sigma_d_sigma"] * self.scale**2
            return half / self.variance(values)

        return w["d_alpha"] * self.mixture.means + self.apply(rate)


@dataclass(frozen=True)
class MixtureField:
    """The exact velocity or score of a :class:`GaussianMixture`: ``field(x, t, label=None)``."""

    mixture: GaussianMixture
    path: GaussianPath
    kind: str
    source_scale: float

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        /,
        label: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        mixture = self.mixture
        state = _State.at(mixture, x, t, self.path, self.source_scale)
        joint = state.log_gaussian() + mixture.log_prior(label)
        if self.kind == "velocity":
            of_component = state.velocity_of_component()
        else:
            of_component = state.apply(lambda e: -1 / state.variance(e))
        return torch.einsum("bk,bkd->bd", torch.softmax(joint, 1), of_component).reshape(x.shape).to(x.dtype)


@dataclass(frozen=True)
class GaussianFlowMap:
    """The flow map of a single Gaussian in closed form."""

    field: MixtureField

    def __call__(
        self, x: Float[Tensor, "batch *shape"], s: float | Tensor, t: float | Tensor, /
    ) -> Float[Tensor, "batch *shape"]:
        mixture, path, scale = self.field.mixture, self.field.path, self.field.source_scale
        start = _State.at(mixture, x, s, path, scale)
        end = _State.at(mixture, x, t, path, scale)  # only its weights
        moved = start.apply(lambda e: torch.sqrt(end.variance(e) / start.variance(e)))
        moved = moved + end.weights["alpha"] * mixture.means
        flat = x.reshape(len(x), -1).to(mixture.means)
        from_, to = (torch.as_tensor(time, dtype=flat.dtype, device=flat.device).reshape(-1, 1) for time in (s, t))
        h = to - from_
        average = (moved[:, 0] - flat) / torch.where(h == 0, 1.0, h)
        still = (
            self.field(flat, from_.squeeze(1) if len(from_) > 1 else from_.squeeze())
            if bool((h == 0).any())
            else average
        )
        return torch.where(h == 0, still, average).reshape(x.shape).to(x.dtype)
