"""Laws of training times."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_share, time_dtype


@runtime_checkable
class TimeSampler(Protocol):
    """Draws training times in [0, 1]."""

    def sample(self, n: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """``[n]`` times on ``like``'s device, in its dtype but at least float32."""


@dataclass(frozen=True)
class Uniform:
    """Uniform on [0, 1)."""

    def sample(self, n: int, like: Tensor, generator: torch.Generator | None) -> Float[Tensor, " n"]:
        return torch.rand(n, generator=generator, dtype=time_dtype(like), device=like.device)


@dataclass(frozen=True)
class LogitNormal:
    """``sigmoid(mean + std z)`` (Esser et al., 2403.03206); ``mean`` > 0 favours the data end."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std must be > 0, got {self.std}")

    def sample(self, n: int, like: Tensor, generator: torch.Generator | None) -> Float[Tensor, " n"]:
        z = torch.randn(n, generator=generator, dtype=time_dtype(like), device=like.device)
        return torch.sigmoid(self.mean + self.std * z)


@dataclass(frozen=True)
class TwoTimes:
    """Two independent draws of ``base``, sorted to ``s <= t``; a share of the pairs is set to the boundary ``t := s``.

    The share is a coin per sample, not per batch.
    """

    base: TimeSampler = field(default_factory=Uniform)
    boundary_fraction: float = 0.5

    def __post_init__(self) -> None:
        check_share("boundary_fraction", self.boundary_fraction)

    def sample_pair(
        self, n: int, like: Tensor, generator: torch.Generator | None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """``(s, t)``, each ``[n]``."""
        first, second = self.base.sample(n, like, generator), self.base.sample(n, like, generator)
        s, t = torch.minimum(first, second), torch.maximum(first, second)
        coin = torch.rand(n, generator=generator, dtype=time_dtype(like), device=like.device)
        return s, torch.where(coin < self.boundary_fraction, s, t)
