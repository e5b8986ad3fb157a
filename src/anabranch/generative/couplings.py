"""Couplings: which source sample is paired with which data sample of a batch.

``pair(x0, x1, label=None, *, generator=None) -> (x0, x1, label)``. The data and their labels keep their order; the source
is permuted (or drawn from).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from anabranch.generative._checks import check_pair
from anabranch.generative._extra import missing

Label = Int[Tensor, " batch"] | None


class Pairs(NamedTuple):
    """A paired batch."""

    x0: Tensor
    x1: Tensor
    label: Tensor | None


@runtime_checkable
class Coupling(Protocol):
    """Pairs a batch."""

    def pair(
        self, x0: Tensor, x1: Tensor, label: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Pairs:
        """The batch, paired."""


def squared_distances(x0: Tensor, x1: Tensor) -> Tensor:
    """Squared Euclidean distances ``[B, B]``, float64."""
    a, b = x0.reshape(len(x0), -1).to(torch.float64), x1.reshape(len(x1), -1).to(torch.float64)
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") ** 2


def _assignment(x0: Tensor, x1: Tensor) -> Tensor:
    """``index`` such that ``x0[index]`` paired with ``x1`` has the least total squared distance."""
    rows, columns = linear_sum_assignment(squared_distances(x0, x1).cpu().numpy().T)
    order = torch.empty(len(x0), dtype=torch.int64)
    order[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return order.to(x0.device)


@dataclass(frozen=True)
class Independent:
    """The batch as it comes."""

    def pair(
        self,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        label: Label = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        check_pair(x0, x1)
        return Pairs(x0, x1, label)


@dataclass(frozen=True)
class MinibatchOT:
    """Optimal transport inside the batch, squared Euclidean cost (Pooladian et al., 2304.14772; Tong et al., 2302.00482).

    "exact" is the assignment problem, whose solution is a permutation: deterministic, every sample used once. Cost
    O(B^3), about 10 ms at B = 256. "sinkhorn" is entropic with regularisation ``reg`` times the mean cost (POT): each
    data sample draws its source from its column of the plan.

    Raises:
        ValueError: an unknown method, reg <= 0.
    """

    method: Literal["exact", "sinkhorn"] = "exact"
    reg: float = 0.05

    def __post_init__(self) -> None:
        if self.method not in ("exact", "sinkhorn"):
            raise ValueError(f"method must be 'exact' or 'sinkhorn', got {self.method!r}")
        if not self.reg > 0:
            raise ValueError(f"reg must be > 0, got {self.reg}")

    def pair(
        self,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        label: Label = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        check_pair(x0, x1)
        if self.method == "exact":
            return Pairs(x0[_assignment(x0, x1)], x1, label)
        plan = self.plan(x0, x1)
        return Pairs(x0[torch.multinomial(plan.T.to(x0.device), 1, generator=generator).squeeze(1)], x1, label)

    def plan(
        self, x0: Float[Tensor, "batch *shape"], x1: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch batch"]:
        """The entropic plan ``[B, B]`` (rows x0), float64, sums to 1."""
        try:
            from ot.bregman import sinkhorn_log
        except ModuleNotFoundError:
            raise ModuleNotFoundError(missing("pot", "MinibatchOT(method='sinkhorn')")) from None
        cost = squared_distances(x0, x1).cpu()
        mass = torch.full((len(x0),), 1 / len(x0), dtype=torch.float64)
        plan: Tensor = sinkhorn_log(
            mass, mass, cost, float(self.reg * cost.mean()), numItermax=2000, stopThr=1e-9, warn=False
        )
        return plan


@dataclass(frozen=True)
class ClasswiseOT:
    """Exact transport inside each label only, so that every class keeps the whole source (ours).

    Transport over the batch ties a part of the source to a class, and a conditional model sampled from the whole source
    then meets noise it never saw with that label.
    """

    def pair(
        self,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        label: Label = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Pairs:
        check_pair(x0, x1)
        if label is None or label.shape != (len(x1),):
            raise ValueError(f"label must hold one class per sample, [{len(x1)}]: ClasswiseOT pairs inside classes")
        order = torch.arange(len(x0), device=x0.device)
        for value in torch.unique(label):
            rows = (label == value).nonzero().squeeze(1)
            order[rows] = rows[_assignment(x0[rows], x1[rows])]
        return Pairs(x0[order], x1, label)


@dataclass(frozen=True, eq=False)
class Fixed:
    """Pairs made beforehand, as a teacher's (noise, sample) for reflow (Liu et al., 2209.03003).

    Args:
        x0, x1: ``[N, ...]``, row i of one belongs to row i of the other.
        label: ``[N]``.
    """

    x0: Float[Tensor, "n *shape"]
    x1: Float[Tensor, "n *shape"]
    label: Int[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        check_pair(self.x0, self.x1)

    def draw(self, n: int, *, generator: torch.Generator | None) -> Pairs:
        """``n`` of the pairs, with replacement."""
        rows = torch.randint(len(self.x0), (n,), generator=generator, device=self.x0.device)
        return Pairs(self.x0[rows], self.x1[rows], None if self.label is None else self.label[rows])

    def pair(
        self, x0: Tensor, x1: Tensor, label: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Pairs:
        """As many stored pairs as ``x1`` has rows; the batch itself is not used."""
        return self.draw(len(x1), generator=generator)
