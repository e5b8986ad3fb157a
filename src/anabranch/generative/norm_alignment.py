"""Sources whose norm is chosen: as the data's, or that of a Gaussian of another dimension.

In training, multiply every draw of the source by ``c = E||x1|| / E||x0||`` (:func:`norm_alignment`); a network then does not
spend capacity on shrinking its input (2512.18184). A network that was trained from the plain Gaussian is moved to the
aligned source by :class:`NormAlignedField`, exactly and without training: what changes is the discretisation.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import as_time, check_count, expand
from anabranch.generative._spheres import chi_mean, draw_chi, draw_directions, log_sphere_area
from anabranch.generative.fields import VelocityField, calls_per_evaluation
from anabranch.generative.paths import LinearPath
from anabranch.generative.sources import Source


def norm_alignment(data: Float[Tensor, "n *shape"], source: Source) -> float:
    """``c = E||x1|| / E||x0||``: the scale that gives the source the data's mean norm.

    Raises:
        ValueError: no data, values that are not finite, only zeros, another shape than the source's, a source
            that does not know its mean norm.
    """
    if data.ndim < 2 or len(data) == 0 or tuple(data.shape[1:]) != tuple(source.shape):
        raise ValueError(f"data has shape {tuple(data.shape)}: expected [N, {', '.join(map(str, source.shape))}]")
    norms = torch.linalg.vector_norm(data.reshape(len(data), -1), dim=1, dtype=torch.float64)
    mean = float(norms.mean())
    if not 0 < mean < math.inf:
        raise ValueError(f"data has mean norm {mean}: expected finite values that are not all zero")
    try:
        own = source.mean_norm
    except NotImplementedError as error:
        raise ValueError(f"the source does not know its mean norm: {error}") from error
    if not 0 < own < math.inf:
        raise ValueError(f"the source has mean norm {own}: expected a source that knows it")
    return mean / own


@dataclass(frozen=True)
class NormAlignedSource:
    """Draws of a source times ``scale``.

    Args:
        source: any.
        scale: as :func:`norm_alignment` gives it.

    Raises:
        ValueError: a scale that is not a positive number.
    """

    source: Source
    scale: float

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be > 0, got {self.scale}")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def isotropic(self) -> bool:
        """Whether directions are uniform and independent of norms."""
        return is_isotropic(self.source)

    @property
    def mean_norm(self) -> float:
        return self.scale * self.source.mean_norm

    def sample(self, n: int, *, generator: torch.Generator | None, condition: Any = None) -> Float[Tensor, "n *shape"]:
        return self.scale * self.source.sample(n, generator=generator, condition=condition)

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        return self.source.log_prob(x / self.scale) - math.prod(self.shape) * math.log(self.scale)


@dataclass(frozen=True)
class ChiSphereSource:
    """A uniform direction times a chi-distributed norm.

    With ``degrees`` = D this is the standard Gaussian. With more degrees than dimensions it has the geometry of a Gaussian
    in as many dimensions: norms concentrate, directions stay free (the source of the paper's simulation in the plane).

    Args:
        shape: of one sample, D entries.
        degrees: of freedom of the norm; None is D.
        dtype, device: of the draws.

    Raises:
        ValueError: an empty shape, degrees that are not > 0.
    """

    shape: tuple[int, ...]
    degrees: float | int | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    isotropic = True

    def __post_init__(self) -> None:
        if math.prod(self.shape) < 1:
            raise ValueError(f"shape = {self.shape}: expected positive sizes")
        if self.degrees is not None and not 0 < self.degrees < math.inf:
            raise ValueError(f"degrees must be > 0, got {self.degrees}")

    @property
    def degrees_of_freedom(self) -> float:
        return float(math.prod(self.shape) if self.degrees is None else self.degrees)

    @property
    def mean_norm(self) -> float:
        return chi_mean(self.degrees_of_freedom)

    def sample(self, n: int, *, generator: torch.Generator | None, condition: Any = None) -> Float[Tensor, "n *shape"]:
        check_count("n", n)
        d = math.prod(self.shape)
        direction = draw_directions(n, d, generator=generator, dtype=self.dtype, device=self.device)
        radius = draw_chi(self.degrees_of_freedom, n, generator=generator, device=self.device).to(self.dtype)
        return (radius[:, None] * direction).reshape(n, *self.shape)

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        return radial_log_density(x.reshape(len(x), -1).norm(dim=1), x[0].numel(), self.degrees_of_freedom)


def radial_log_density(radius: Tensor, d: int, degrees: float) -> Tensor:
    """Log density in ``d`` dimensions of a uniform direction times a chi law, at points of norm ``radius`` ``[B]``."""
    # In the Gaussian case the powers of the radius cancel, also at 0.
    norm = (degrees / 2 - 1) * math.log(2) + math.lgamma(degrees / 2) + log_sphere_area(d)
    power = 0.0 if degrees == d else (degrees - d) * torch.log(radius)
    return power - radius**2 / 2 - norm


def project_to_chi_sphere(
    x: Float[Tensor, "batch *shape"], *, generator: torch.Generator | None, degrees: float | int | None = None
) -> Float[Tensor, "batch *shape"]:
    """The directions of ``x`` with fresh norms of the chi law: the authors' variant that gives data the norms of noise.

    Raises:
        ValueError: a sample of norm 0.
    """
    flat = x.reshape(len(x), -1)
    norms = flat.norm(dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise ValueError(f"x[{int((norms == 0).squeeze(1).nonzero()[0])}] has norm 0: it has no direction")
    freedom = float(flat.shape[1] if degrees is None else degrees)
    radius = draw_chi(freedom, len(x), generator=generator, device=x.device).to(x.dtype)
    return (flat / norms * radius[:, None]).reshape(x.shape)


def is_isotropic(source: Any) -> bool:
    """Whether the source says that its directions are uniform and independent of its norms (attribute ``isotropic``)."""
    known = getattr(source, "isotropic", None)
    return bool(known) if known is not None else getattr(source, "mean", None) == 0 and hasattr(source, "scale")


@dataclass(frozen=True)
class NormAlignedField:
    """The velocity field of the source ``scale * x0`` made of a field that was trained from ``x0`` Gaussian (ours).

    ``x_t = (1 - t) c x0 + t x1`` is ``r = t + c (1 - t)`` times the trained path's point at time ``t / r``, so
    ``v(x, t) = (1 - c) y + (c / r) v_trained(y, t / r)`` with ``y = x / r``: exact at every t, for any data. Samples of
    the exact flow are the same; those of a few steps differ, since even steps here are uneven steps there. One call
    of the trained field a call.

    Args:
        field: trained on the linear path.
        scale: of the new source, as :func:`norm_alignment` gives it.

    Raises:
        ValueError: a scale that is not > 0, a field on another path.
    """

    field: VelocityField
    scale: float

    path = LinearPath()

    def calls_at(self, t: float | Tensor) -> int:
        """Network calls a sample at time ``t``."""
        time = torch.as_tensor(t, dtype=torch.float64)
        return calls_per_evaluation(self.field, time / (time + self.scale * (1 - time)))

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be > 0, got {self.scale}")
        own = getattr(self.field, "path", None)
        if own is not None and own != LinearPath():
            raise ValueError(f"the field is one of {own}: expected the linear path (change_path moves it there)")

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        **condition: Any,
    ) -> Float[Tensor, "batch *shape"]:
        time = as_time(t, x)
        ratio = time + self.scale * (1 - time)
        y = x / expand(ratio, x).to(x.dtype)
        factor = expand(self.scale / ratio, x).to(x.dtype)
        return (1 - self.scale) * y + factor * self.field(y, time / ratio, **condition)
