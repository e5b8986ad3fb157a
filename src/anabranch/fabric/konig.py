"""Exact plans with few pieces: matchings of leaves on a line, cut at the spines (ours; see ``_konig`` for the proof)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64

from anabranch.fabric import _balance, _konig, _lp
from anabranch.fabric._checks import ArrayLike, integers, positive_int
from anabranch.fabric._closed_form import closed_form_s
from anabranch.fabric._stepwise import Pieces, plan_by_step
from anabranch.fabric._weights import best_paths, is_symmetric, wrap_around
from anabranch.fabric.fat_tree import FatTree
from anabranch.fabric.plan import Plan
from anabranch.fabric.topology import LeafSpine, Topology
from anabranch.fabric.traffic import LeafDemand, Traffic


def plan_konig(topology: Topology, traffic: Traffic, *, degree: int | None = None) -> Plan:
    """A plan of optimal maximum congestion with few pieces, step by step (ours).

    Equal sizes, symmetric leaf-spine, S spines, D = the most flows that a leaf sends or receives: every leaf link carries
    at most D/S flows, the optimum, in both directions; a leaf has at most S - gcd(D mod S, S) pieces more than flows on
    either side, none when S divides D, and exactly so many if it has D flows, which is the least possible there.

    Elsewhere, also optimal up to the rounding to bytes:

    - other sizes, same fabric: halving of the spines with cycle cancelling, at most (S - 1)(2L + 1) cuts in all;
    - unequal rates or failed links: the linear program for the bytes between two leaves per class of equal spines, then
      the same inside each class;
    - FatTree without failures: over aggregation switches as if they were spines, then each switch's flows between
      pods over its cores. Where the cores have less rate than the ToRs, flows inside and between pods are balanced
      leaf by leaf, which costs more cuts;
    - other graphs, FatTree with failures: as :func:`plan_split` with pairs.

    Args:
        degree: plan for D' = ``degree`` >= D flows per leaf instead (equal sizes on a symmetric leaf-spine only): load
            D'/S flows, at most S - gcd(D' mod S, S) extra pieces; see :func:`konig_tradeoff`.

    Raises:
        ValueError: a NIC outside the fabric, NIC pairs without a path, a degree that is too small or not applicable.

    Cost: for equal sizes O(E log D + L log L log D) expected, E inter-leaf flows, and a maximum flow over the pairs of
    leaves when S does not divide D; many flows per pair of leaves are planned through their counts.
    """
    if degree is not None:
        degree = positive_int("degree", degree)

    def plan_step(a: np.ndarray, b: np.ndarray, size: np.ndarray) -> Pieces:
        equal = bool((size == size[0]).all())
        if degree is not None and not (isinstance(topology, LeafSpine) and topology.is_uniform and equal):
            raise ValueError(f"degree needs equal sizes and a LeafSpine of equal living links, got degree={degree}")
        if is_symmetric(topology):
            if isinstance(topology, FatTree):
                return _plan_fat_tree(topology, a, b, size, equal)
            assert isinstance(topology, LeafSpine)
            if equal:
                return _plan_equal(a, b, size, topology.n_leaves, topology.n_spines, degree)
            return _plan_sizes(a, b, size, topology.n_leaves, topology.n_spines)
        if isinstance(topology, LeafSpine):
            return _plan_uneven(topology, a, b, size)
        pair, of_flow = np.unique(a * topology.n_leaves + b, return_inverse=True)
        ends = np.divmod(pair, topology.n_leaves)
        return wrap_around(of_flow, size, *best_paths(topology, *ends, np.bincount(of_flow, size)))

    return plan_by_step(topology, traffic, plan_step)


def _plan_equal(
    a: np.ndarray, b: np.ndarray, size: np.ndarray, n_leaves: int, spines: int, degree: int | None = None
) -> Pieces:
    least = _konig.degree_of(a, b, n_leaves)
    if degree is not None and degree < least:
        raise ValueError(f"degree must be >= {least}, the most flows of one leaf, got {degree}")
    degree = degree or least
    position = _konig.flow_positions(a, b, n_leaves, degree, spines)
    flow, spine, low, high = _konig.cut_units(position, degree, spines)
    own = size[flow]
    piece = _konig.part_of(own, high, spines) - _konig.part_of(own, low, spines)
    some = piece > 0
    return flow[some], spine[some], piece[some]


def _plan_sizes(a: np.ndarray, b: np.ndarray, size: np.ndarray, n_leaves: int, spines: int) -> Pieces:
    most = max(np.bincount(a, size, n_leaves).max(), np.bincount(b, size, n_leaves).max())
    share = np.full(n_leaves, most / spines)
    return _balance.deal(a, b, size, spines, share, share)


def _plan_uneven(topology: LeafSpine, a: np.ndarray, b: np.ndarray, size: np.ndarray) -> Pieces:
    L = topology.n_leaves
    key, of_flow = np.unique(a * L + b, return_inverse=True)
    shares = _lp.solve_leaf_spine(topology, *np.divmod(key, L), np.bincount(of_flow, size))
    order = np.lexsort((shares.spine_class, shares.pair))
    pair, load = shares.pair[order], shares.load_bytes[order]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(pair, minlength=len(key)))])
    weight = load / np.bincount(pair, load)[pair]
    flow, of_class, part = wrap_around(of_flow, size, indptr, shares.spine_class[order], weight)
    pieces = []
    for c in np.unique(of_class):
        spines = np.flatnonzero(shares.of_spine == c)
        mine = of_class == c
        ends, bytes_ = (a[flow[mine]], b[flow[mine]]), part[mine]
        limits = [
            np.maximum(shares.value_s * rates[:, spines[0]], np.bincount(end, bytes_, L) / len(spines))
            for end, rates in zip(ends, (topology.up_bytes_per_s, topology.down_bytes_per_s), strict=True)
        ]
        own, spine, piece = _balance.deal(*ends, bytes_, len(spines), *limits)
        pieces.append((flow[mine][own], spines[spine], piece))
    flow, path, piece = (np.concatenate(column) for column in zip(*pieces, strict=True))
    return flow, path, piece


def _plan_fat_tree(topology: FatTree, a: np.ndarray, b: np.ndarray, size: np.ndarray, equal: bool) -> Pieces:
    """Two stages. With A switches a pod, T ToRs a pod and C cores a switch, in seconds of congestion t = the optimum:

    stage 1 gives each switch at most t of every ToR's link. If T ToR links are no faster than C core links, what all
    ToRs of a pod send over one switch is then at most C core links for t; otherwise balancing every leaf's own bytes,
    inside and between pods apart, gives each switch exactly 1/A of what its pod exchanges with others. Either way an
    even spread over the cores (stage 2) loads no core link above t.
    """
    T, A, C = topology.tors_per_pod, topology.aggs_per_pod, topology.cores_per_plane
    n = topology.n_leaves
    core_rate = topology.core_bytes_per_s
    pod_a, pod_b = a // T, b // T
    crosses = pod_a != pod_b
    if T * topology.tor_bytes_per_s <= C * core_rate or not crosses.any():
        planner = _plan_equal if equal else _plan_sizes
        flow, switch, piece = planner(a, b, size, n, A)
    else:
        parts = []
        for mask in (crosses, ~crosses):
            own = np.flatnonzero(mask)
            shares = (np.bincount(end[own], size[own], n) / A for end in (a, b))
            flow, switch, piece = _balance.deal(a[own], b[own], size[own], A, *shares)
            parts.append((own[flow], switch, piece))
        flow, switch, piece = (np.concatenate(column) for column in zip(*parts, strict=True))
    inside = ~crosses[flow]
    result = [(flow[inside], switch[inside], piece[inside])]
    optimum_s = closed_form_s(topology, a, b, size)
    for j in range(A):
        own = np.flatnonzero((switch == j) & ~inside)
        ends = pod_a[flow[own]], pod_b[flow[own]]
        shares = (np.maximum(optimum_s * core_rate, np.bincount(end, piece[own], topology.n_pods) / C) for end in ends)
        part, core, bytes_ = _balance.deal(*ends, piece[own], C, *shares)
        path = topology.path_id(np.full(len(core), j), core, np.full(len(core), j % topology.aggs_per_plane))
        result.append((flow[own][part], path, bytes_))
    flow, path, piece = (np.concatenate(column) for column in zip(*result, strict=True))
    return flow, path, piece


@dataclass(frozen=True, eq=False)
class LeafPlan:
    """Shares of the flows between two leaves per spine, for flows that are counted and not listed.

    Attributes:
        counts: flows per pair of leaves, as given.
        spines: S.
        degree: D; every leaf link carries at most D/S flows.
        src_leaf, dst_leaf, spine: which shares are not zero, each once.
        share: flows on this spine in units of 1/S flow, > 0.
        n_pieces: pieces of all inter-leaf flows.
        n_matchings: matchings of the decomposition.
    """

    counts: Int64[np.ndarray, "leaves leaves"]
    spines: int
    degree: int
    src_leaf: Int32[np.ndarray, "shares"]
    dst_leaf: Int32[np.ndarray, "shares"]
    spine: Int32[np.ndarray, "shares"]
    share: Int64[np.ndarray, "shares"]
    n_pieces: int
    n_matchings: int

    @property
    def n_flows(self) -> int:
        """Inter-leaf flows."""
        return int(self.counts.sum() - np.trace(self.counts))

    def loads(self) -> tuple[Int64[np.ndarray, "leaves spines"], Int64[np.ndarray, "leaves spines"]]:
        """Load of the links up and down, in units of 1/S flow; at most ``degree``."""
        up, down = (np.zeros((len(self.counts), self.spines), dtype=np.int64) for _ in range(2))
        np.add.at(up, (self.src_leaf, self.spine), self.share)
        np.add.at(down, (self.dst_leaf, self.spine), self.share)
        return up, down


def konig_matrix(counts: ArrayLike | LeafDemand, spines: int) -> LeafPlan:
    """:func:`plan_konig` for equal flows given as counts per pair of leaves; nothing is listed flow by flow.

    Perfect matchings of the padded count matrix are taken as often as their smallest entry allows (Birkhoff), L - 1 of
    them for all-to-all, and laid on the same line.

    Args:
        counts: flows per (source leaf, destination leaf) or a :class:`LeafDemand`; the diagonal uses no spine.
        spines: S, equal and all alive.

    Raises:
        ValueError, TypeError: not a square matrix of integers >= 0, spines < 1.

    Cost: O(L) per matching of all-to-all, O(nnz) per used-up entry at worst; O(nnz S) for the shares.
    """
    spines = positive_int("spines", spines)
    demand = counts if isinstance(counts, LeafDemand) else LeafDemand(counts, 1)
    matrix = demand.counts
    inter = matrix - np.diag(np.diag(matrix))
    degree = demand.degree
    if not degree:
        none = np.zeros(0, dtype=np.int32)
        return LeafPlan(matrix, spines, 0, none, none, none, np.zeros(0, dtype=np.int64), 0, 0)
    runs, matchings = _konig.matrix_runs(inter, degree, spines)
    run, spine, share, pieces = _konig.cut_runs(runs, degree, spines)
    key = (runs.a[run].astype(np.int64) * len(matrix) + runs.b[run]) * spines + spine
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    pair, spine = np.divmod(key[order][starts], spines)
    a, b = np.divmod(pair, len(matrix))
    share = np.add.reduceat(share[order], starts)
    a, b, spine = (column.astype(np.int32) for column in (a, b, spine))
    return LeafPlan(matrix, spines, degree, a, b, spine, share, pieces, matchings)


@dataclass(frozen=True, eq=False)
class KonigTradeoff:
    """What planning for a higher degree costs and saves; one entry per degree that no other beats on both counts.

    Attributes:
        degree: D' from D to the next multiple of S.
        congestion_ratio: D'/D, at most so much above the optimum.
        extra_pieces: most extra pieces of a leaf and side, S - gcd(D' mod S, S).
    """

    degree: Int64[np.ndarray, "choices"]
    congestion_ratio: Float64[np.ndarray, "choices"]
    extra_pieces: Int64[np.ndarray, "choices"]


def konig_tradeoff(degree: int, spines: int) -> KonigTradeoff:
    """Degrees D' >= D worth planning for: more load, fewer pieces (ours). D is ``LeafDemand.degree``.

    Raises:
        ValueError, TypeError: a degree or a number of spines below 1.
    """
    degree, spines = positive_int("degree", degree), positive_int("spines", spines)
    choices = np.arange(degree, -(-degree // spines) * spines + 1)
    extra = spines - np.gcd(choices % spines, spines)
    best_before = np.minimum.accumulate(np.concatenate([[spines], extra[:-1]]))
    kept = choices[extra < best_before]
    return KonigTradeoff(kept, kept / degree, integers("extra", spines - np.gcd(kept % spines, spines), low=0))
