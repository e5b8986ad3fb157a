"""Sources: the law at t = 0."""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_count


@runtime_checkable
class Source(Protocol):
    """A law of states at t = 0."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""

    @property
    def mean_norm(self) -> float:
        """Mean Euclidean norm of a sample."""

    def sample(self, n: int, *, generator: torch.Generator | None, condition: Any = None) -> Tensor:
        """``n`` draws ``[n, *shape]``."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Log density ``[B]`` in nats.

        Raises:
            NotImplementedError: the law has no density.
        """


@dataclass(frozen=True)
class GaussianSource:
    """``N(mean, scale^2 I)``.

    Args:
        shape: of one sample.
        dtype, device: of the draws.

    Raises:
        ValueError: an empty shape or a scale that is not positive.
    """

    shape: tuple[int, ...]
    scale: float = 1.0
    mean: float = 0.0
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if math.prod(self.shape) < 1 or not self.scale > 0:
            raise ValueError(f"shape = {self.shape}, scale = {self.scale}: expected positive sizes and scale > 0")

    @property
    def mean_norm(self) -> float:
        """``scale sqrt(2) Gamma((D + 1) / 2) / Gamma(D / 2)`` for mean 0.

        Raises:
            NotImplementedError: another mean.
        """
        if self.mean:
            raise NotImplementedError("the mean norm of a Gaussian is in closed form only for mean 0")
        d = math.prod(self.shape)
        return self.scale * math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))

    def sample(self, n: int, *, generator: torch.Generator | None, condition: Any = None) -> Float[Tensor, "n *shape"]:
        check_count("n", n)
        z = torch.randn(n, *self.shape, generator=generator, dtype=self.dtype, device=self.device)
        return z if self.scale == 1 and self.mean == 0 else self.mean + self.scale * z

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        z = ((x - self.mean) / self.scale).reshape(len(x), -1)
        return -0.5 * (z**2).sum(1) - z.shape[1] * (math.log(self.scale) + 0.5 * math.log(2 * math.pi))


@dataclass(frozen=True, eq=False)
class EmpiricalSource:
    """Draws with replacement from given samples.

    Args:
        data: ``[N, ...]``.

    Raises:
        ValueError: no data.
    """

    data: Float[Tensor, "n *shape"]

    def __post_init__(self) -> None:
        if self.data.ndim < 2 or len(self.data) == 0:
            raise ValueError(f"data has shape {tuple(self.data.shape)}: expected [N, ...] with N >= 1")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape[1:])

    @property
    def mean_norm(self) -> float:
        return float(torch.linalg.vector_norm(self.data.reshape(len(self.data), -1), dim=1).mean())

    def sample(self, n: int, *, generator: torch.Generator | None, condition: Any = None) -> Float[Tensor, "m *shape"]:
        check_count("n", n)
        device = self.data.device
        return self.data[torch.randint(len(self.data), (n,), generator=generator, device=device)]

    def log_prob(self, x: Tensor) -> Tensor:
        """No density: raises NotImplementedError."""
        raise NotImplementedError("a finite set of samples has no density")
