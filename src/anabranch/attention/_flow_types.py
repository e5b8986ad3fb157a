"""What the forms of Flow-Attention hand to one another: heads are flattened, ``[L, n, ...]`` sinks, ``[L, m, ...]`` sources."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from anabranch.attention.features import Derivative, FeatureMap

Sums = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Options:
    """How flows are turned into weights."""

    feature_map: FeatureMap
    derivative: Derivative | None
    clamp: tuple[float, float] | None
    eps: float
    competition: bool
    allocation: bool
    norm_eps: float = 0.0  # added to the incoming flow


class Conserved(NamedTuple):
    """Flows of every sink ``[L, n]`` and source ``[L, m]``, in the words of :class:`Flows`."""

    incoming: Tensor
    outgoing: Tensor
    conserved_incoming: Tensor
    conserved_outgoing: Tensor
    competition: Tensor
    allocation: Tensor
    sums: Sums  # [L, d] + eps: of w K, u Q, w K / outgoing, u Q / incoming
