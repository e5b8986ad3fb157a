"""Laws of training times that are stated in noise levels, and one of little variance."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_count, time_dtype
from anabranch.generative.paths import GaussianPath


@dataclass(frozen=True)
class Levels:
    """One of ``count`` equally spaced times ``0, 1 / spacing, ...``, each as likely.

    ``Levels(K)`` are the entries of a :class:`ScheduledPath` of K levels; ``Levels(L, L - 1)`` includes t = 1.

    Raises:
        ValueError: count < 1, or times that pass 1.
    """

    count: int
    spacing: int | None = None

    def __post_init__(self) -> None:
        check_count("count", self.count)
        if self.spacing is not None and check_count("spacing", self.spacing) < self.count - 1:
            raise ValueError(f"spacing = {self.spacing} with count = {self.count}: the last time would pass 1")

    def sample(self, n: int, like: Tensor, generator: torch.Generator | None) -> Float[Tensor, " n"]:
        index = torch.randint(self.count, (n,), generator=generator, device=like.device)
        return (index.to(torch.float64) / (self.spacing or self.count)).to(time_dtype(like))


@dataclass(frozen=True)
class LogNormalLevel:
    """``log(sigma / alpha) ~ N(mean, std^2)`` (Karras et al., 2206.00364, table 1), as a time of ``path``.

    Levels that the path does not reach become its ends.
    """

    path: GaussianPath
    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std must be > 0, got {self.std}")

    def sample(self, n: int, like: Tensor, generator: torch.Generator | None) -> Float[Tensor, " n"]:
        z = torch.randn(n, generator=generator, dtype=time_dtype(like), device=like.device)
        return self.path.t_from_lambda(-(self.mean + self.std * z)).clamp(0, 1)


@dataclass(frozen=True)
class Stratified:
    """Uniform on ``[start, end)``, one time in each of n equal parts (Kingma et al., 2107.00630, appendix I.1).

    Each time alone is uniform; a batch's mean varies far less than with independent draws.
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(f"start = {self.start}, end = {self.end}: expected 0 <= start < end <= 1")

    def sample(self, n: int, like: Tensor, generator: torch.Generator | None) -> Float[Tensor, " n"]:
        first = torch.rand(1, generator=generator, dtype=torch.float64, device=like.device)
        u = (first + torch.arange(n, dtype=torch.float64, device=like.device) / n) % 1
        times = (self.start + (self.end - self.start) * u).to(time_dtype(like))
        below = torch.nextafter(torch.tensor(self.end, dtype=times.dtype), torch.tensor(0.0, dtype=times.dtype))
        return times.clamp(max=float(below))  # the rounding to float32 must not reach the end
