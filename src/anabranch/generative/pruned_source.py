"""A source without the draws that point where no data lie (2512.18184): better samples of a finished model, no training."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from torch import Tensor

from anabranch.generative._acceptance import clear_share
from anabranch.generative._checks import check_count
from anabranch.generative.norm_alignment import is_isotropic
from anabranch.generative.sources import Source
from anabranch.generative.sparse_axes import Axes

LEAST_ACCEPTANCE = 1e-4
AUTO_DEVIATIONS = 2.66  # the paper's 0.048 in 3,072 dimensions, in standard deviations of a random cosine


class PruningError(ValueError):
    """Almost no draw would be kept. ``acceptance``: the expected share."""

    def __init__(self, acceptance: float, words: str) -> None:
        super().__init__(words)
        self.acceptance = acceptance


@dataclass(frozen=True, eq=False)
class PrunedSource:
    """Draws of ``base`` whose cosine to every axis is at most ``max_cosine``; their norms are left as they are.

    For a model trained from the unpruned base (and, by the norm's independence, before or after :class:`NormAlignedSource`).
    Cost: O(M D) a proposal, 1 / acceptance proposals a draw.

    Args:
        base: any source of the axes' dimension. Its draws' device is the axes' device while sampling.
        axes: as :func:`sparse_axes` or :func:`mean_direction_axes` gives them.
        max_cosine: "auto" is 2.66 / sqrt(D), which is the paper's 0.048 in its 3,072 dimensions.
        accept: instead of ``max_cosine``: the share of draws to keep; the threshold that gives it is computed (ours).
        max_tries: proposals a draw, on average, before giving up.

    Raises:
        ValueError: axes of another dimension, max_cosine outside [-1, 1] or given beside ``accept``, no axes.
        PruningError: the expected acceptance is below 1e-4, before any draw (isotropic bases; others when sampling).
    """

    base: Source
    axes: Axes
    max_cosine: float | str = "auto"
    accept: float | None = None
    max_tries: int = 10_000

    def __post_init__(self) -> None:
        d = math.prod(self.base.shape)
        if self.axes.vectors.shape[1] != d:
            raise ValueError(
                f"axes have {self.axes.vectors.shape[1]} dimensions and the base {d} ({self.base.shape}): expected the same"
            )
        check_count("max_tries", self.max_tries)
        if self.accept is not None:
            if self.max_cosine != "auto":
                raise ValueError(f"max_cosine={self.max_cosine} and accept={self.accept}: give one of them")
            if not LEAST_ACCEPTANCE <= self.accept < 1:
                raise ValueError(f"accept must be in [{LEAST_ACCEPTANCE}, 1), got {self.accept}")
            if not self.base_isotropic or not len(self.axes.vectors):
                raise ValueError("accept needs an isotropic base and at least one axis: give max_cosine instead")
        elif isinstance(self.max_cosine, str):
            if self.max_cosine != "auto":
                raise ValueError(f"max_cosine must be 'auto' or a number, got {self.max_cosine!r}")
        elif not -1 <= self.max_cosine <= 1:
            raise ValueError(f"max_cosine must be in [-1, 1], got {self.max_cosine}")
        if self.base_isotropic and self.acceptance_rate < LEAST_ACCEPTANCE:
            raise self._error(self.acceptance_rate)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    isotropic = False  # its own draws avoid directions

    @property
    def base_isotropic(self) -> bool:
        """Whether the base has uniform directions, so that the acceptance and the mean norm are known."""
        return is_isotropic(self.base)

    @property
    def mean_norm(self) -> float:
        """That of the base; nan where the base's norms may depend on the direction."""
        return self.base.mean_norm if self.base_isotropic else math.nan

    @cached_property
    def threshold(self) -> float:
        """The largest cosine kept."""
        d = self.axes.vectors.shape[1]
        if self.accept is not None:
            vectors, wanted = self._vectors, self.accept
            return float(brentq(lambda c: clear_share(vectors, c)[0] - wanted, -1.0, 1.0, xtol=1e-10))
        return AUTO_DEVIATIONS / math.sqrt(d) if isinstance(self.max_cosine, str) else float(self.max_cosine)

    @property
    def acceptance_rate(self) -> float:
        """Expected share of the base's draws that are kept.

        Raises:
            NotImplementedError: a base whose directions are not uniform (see :meth:`estimate_acceptance`).
        """
        return self._acceptance[0]

    @property
    def acceptance_is_exact(self) -> bool:
        """Whether :attr:`acceptance_rate` is exact to rounding, or by 16,384 quasi-random points."""
        return self._acceptance[1]

    @cached_property
    def _acceptance(self) -> tuple[float, bool]:
        if not self.base_isotropic:
            raise NotImplementedError("the acceptance is known for uniform directions only: use estimate_acceptance")
        return clear_share(self._vectors, self.threshold)

    @cached_property
    def _vectors(self) -> Any:
        return self.axes.vectors.double().cpu().numpy()

    def estimate_acceptance(self, n: int, *, generator: torch.Generator | None) -> float:
        """Share of ``n`` draws of the base that are kept."""
        return float(self.keeps(self.base.sample(n, generator=generator)).double().mean())

    def keeps(self, x: Float[Tensor, "batch *shape"]) -> Bool[Tensor, " batch"]:
        """Which of ``x`` the source could have drawn: for draws that come from elsewhere."""
        if not len(self.axes.vectors):
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        flat = x.reshape(len(x), -1)
        vectors = self.axes.vectors.to(flat.device, flat.dtype)
        return (flat @ vectors.T).amax(1) <= self.threshold * flat.norm(dim=1)

    def sample(self, n: int, *, generator: torch.Generator | None, condition: Any = None) -> Float[Tensor, "n *shape"]:
        """``n`` draws.

        Raises:
            PruningError: fewer than n were kept of ``n max_tries`` proposals, or of the first 100,000 fewer than 1e-4.
        """
        check_count("n", n)
        if isinstance(condition, Tensor) and condition.ndim > 0 and len(condition) == n:
            return self._by_rows(n, generator, condition)
        rate = self.acceptance_rate if self.base_isotropic else 1.0
        kept: list[Tensor] = []
        missing, tried = n, 0
        while missing > 0:
            wanted = math.ceil(missing / rate + 2 * math.sqrt(missing) / rate)
            proposals = min(max(wanted, 1), max(1024, 2**26 // math.prod(self.shape)))
            drawn = self.base.sample(proposals, generator=generator, condition=condition)
            drawn = drawn[self.keeps(drawn)]
            kept.append(drawn[:missing])
            missing -= len(kept[-1])
            tried += proposals
            rate = max((n - missing) / tried, LEAST_ACCEPTANCE)
            self._check(n - missing, tried, n)
        return torch.cat(kept)

    def _by_rows(self, n: int, generator: torch.Generator | None, condition: Tensor) -> Tensor:
        """Rows that are rejected are drawn again with their own condition."""
        result = self.base.sample(n, generator=generator, condition=condition)
        rejected, tried = (~self.keeps(result)).nonzero().squeeze(1), n
        while len(rejected):
            self._check(n - len(rejected), tried, n)
            again = self.base.sample(
                len(rejected), generator=generator, condition=condition[rejected.to(condition.device)]
            )
            result[rejected] = again
            tried += len(rejected)
            rejected = rejected[~self.keeps(again)]
        return result

    def _check(self, kept: int, tried: int, n: int) -> None:
        if kept < n and (tried >= n * self.max_tries or (tried >= 100_000 and kept < LEAST_ACCEPTANCE * tried)):
            raise self._error(kept / tried)

    def _error(self, acceptance: float) -> PruningError:
        return PruningError(
            acceptance,
            f"{acceptance:.3g} of the draws would be kept with {len(self.axes.vectors)} axes and max_cosine = "
            f"{self.threshold:.4g}: expected at least {LEAST_ACCEPTANCE}; raise max_cosine, give accept=, or take fewer axes",
        )

    def log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """The base's minus the log acceptance where the draw is kept, -inf elsewhere.

        Raises:
            NotImplementedError: a base without density, or whose directions are not uniform.
        """
        return torch.where(self.keeps(x), self.base.log_prob(x) - math.log(self.acceptance_rate), -math.inf)
