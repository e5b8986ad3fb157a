"""The pieces of some flows, with their links, as the simulators take them."""

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64

from anabranch.fabric._kernels_refine import label_pairs, quotient, refine
from anabranch.fabric._paths import check_reachable, fabric_links, living_paths
from anabranch.fabric.plan import Plan, SprayPlan
from anabranch.fabric.topology import Topology


@dataclass(frozen=True, eq=False)
class Pieces:
    """Pieces of some flows, flow by flow: those of flow ``f`` are ``flow_indptr[f]:flow_indptr[f + 1]``.

    ``links`` are those of the fabric, or classes of links that carry the same parts of the same pieces: then ``link_class`` is
    the class of each link of the fabric, and ``weight`` is what a piece puts on each link of the class.
    """

    capacity: Float64[np.ndarray, "classes"]
    link_class: Int64[np.ndarray, "links"] | None
    indptr: Int64[np.ndarray, "pieces_plus_1"]
    links: Int32[np.ndarray, "touches"]
    weight: Float64[np.ndarray, "touches"]
    size_bytes: Float64[np.ndarray, "pieces"]
    latency_s: Float64[np.ndarray, "pieces"]
    flow_indptr: Int64[np.ndarray, "flows_plus_1"]

    @property
    def flow_of(self) -> Int64[np.ndarray, "pieces"]:
        """The flow of each piece."""
        return np.repeat(np.arange(len(self.flow_indptr) - 1), np.diff(self.flow_indptr))

    def add_bytes(self, moved: Float64[np.ndarray, "links"], times: int = 1) -> None:
        """Adds the bytes that the pieces put on each link."""
        carried = self.weight * np.repeat(self.size_bytes * times, np.diff(self.indptr))
        each = np.bincount(self.links, weights=carried, minlength=len(self.capacity))
        moved += each if self.link_class is None else each[self.link_class]


class PieceSource:
    """Lists the pieces of chosen flows of a plan on a fabric. O(pieces) to make, then O(touches) of what is asked for.

    Args:
        merge: list links that all sprayed flows use alike, as all uplinks of a leaf, as one class.

    Raises:
        ValueError: a NIC outside the fabric, NIC pairs without a path.
    """

    def __init__(self, topology: Topology, plan: Plan | SprayPlan, *, merge: bool = False) -> None:
        check_reachable(topology, plan.traffic)
        self._topology, self._plan, self._merge = topology, plan, merge
        # A copy that may be written, as numba compiles anew for arrays that may not.
        self._capacity = topology.capacity_bytes_per_s.copy()
        if isinstance(plan, Plan):
            self._first = np.searchsorted(plan.parent, np.arange(plan.traffic.n_flows + 1))

    def __call__(self, flows: Int64[np.ndarray, "flows"]) -> Pieces:
        """The pieces of these flows.

        Raises:
            ValueError: a piece on a failed link.
        """
        return self._planned(flows) if isinstance(self._plan, Plan) else self._sprayed(flows)

    def digest(self, flows: Int64[np.ndarray, "flows"], *more: np.ndarray) -> bytes:
        """Equal for flows with equal pieces and equal ``more``. O(pieces)."""
        traffic = self._plan.traffic
        columns = [traffic.src[flows], traffic.dst[flows], traffic.size_bytes[flows], *more]
        if isinstance(self._plan, Plan):
            chosen, flow_indptr = self._chosen(flows)
            columns += [flow_indptr, self._plan.path[chosen], self._plan.size_bytes[chosen]]
        digest = hashlib.blake2b(digest_size=32)
        for column in columns:
            digest.update(np.ascontiguousarray(column).data)
        return digest.digest()

    def _chosen(self, flows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pieces of these flows, flow by flow, and where those of each start."""
        first, n = self._first[flows], self._first[flows + 1] - self._first[flows]
        flow_indptr = offsets(n)
        return np.arange(flow_indptr[-1]) + np.repeat(first - flow_indptr[:-1], n), flow_indptr

    def _planned(self, flows: np.ndarray) -> Pieces:
        plan, topology = self._plan, self._topology
        assert isinstance(plan, Plan)
        chosen, flow_indptr = self._chosen(flows)
        parent = plan.parent[chosen]
        indptr, links = topology.paths(plan.traffic.src[parent], plan.traffic.dst[parent], plan.path[chosen])
        if len(topology.failed) and topology.is_failed[links].any():
            dead = np.unique(np.repeat(chosen, np.diff(indptr))[topology.is_failed[links]])
            raise ValueError(
                f"plan must use no failed link, but {len(dead)} of its pieces do, the first {dead[:5].tolist()}; "
                "replan(plan, topology) moves them"
            )
        latency = segment_sums(topology.latency_s[links], indptr)
        size = plan.size_bytes[chosen].astype(np.float64)
        return Pieces(
            self._capacity, None, indptr.astype(np.int64), links, np.ones(len(links)), size, latency, flow_indptr
        )

    def _sprayed(self, flows: np.ndarray) -> Pieces:
        traffic, topology = self._plan.traffic, self._topology
        src, dst = traffic.src[flows], traffic.dst[flows]
        _, nic_links = topology.paths(src, dst, 0)
        nic_links = nic_links[~topology.is_fabric_link[nic_links]].reshape(-1, 2)
        nic_latency = topology.latency_s[nic_links].sum(axis=1)
        a, b = topology.leaf_of(src).astype(np.int64), topology.leaf_of(dst)
        pairs, pair = np.unique(np.where(a == b, -1, a * topology.n_leaves + b), return_inverse=True)
        inside = int(len(pairs) and pairs[0] < 0)
        first, path = living_paths(topology, *np.divmod(pairs[inside:], topology.n_leaves))
        owner = np.repeat(np.arange(len(first) - 1), np.diff(first))
        starts, links = fabric_links(topology, *np.divmod(pairs[inside:][owner], topology.n_leaves), path)
        weight = np.repeat((1.0 / np.diff(first))[owner], np.diff(starts))
        latency = np.zeros(len(pairs))
        if len(owner):
            latency[inside:] = np.maximum.reduceat(segment_sums(topology.latency_s[links], starts), first[:-1])
        between = starts[first]
        capacity, link_class = self._capacity, None
        if self._merge and len(links):
            capacity, link_class, between, links, weight = merge_links(
                capacity, topology.is_fabric_link, between, links, weight
            )
            nic_links = link_class[nic_links]
        # The pairs of leaves, those inside a leaf first, with the links between them; then the same for the flows.
        fabric = np.concatenate([np.zeros(inside, dtype=np.int64), between])
        n_touches = np.diff(fabric)[pair] + 2
        indptr = offsets(n_touches)
        take = np.arange(indptr[-1]) + np.repeat(fabric[pair] - indptr[:-1] - 2, n_touches)
        take[indptr[:-1]] = take[indptr[:-1] + 1] = 0
        touched = links[take] if len(links) else np.empty(len(take), dtype=np.int32)
        weights = weight[take] if len(links) else np.empty(len(take))
        for k in range(2):
            touched[indptr[:-1] + k] = nic_links[:, k]
            weights[indptr[:-1] + k] = 1.0
        latency = nic_latency + latency[pair]
        size = traffic.size_bytes[flows].astype(np.float64)
        return Pieces(capacity, link_class, indptr, touched, weights, size, latency, np.arange(len(flows) + 1))


def merge_links(
    capacity: np.ndarray, mergeable: np.ndarray, indptr: np.ndarray, links: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Merges links of equal capacity that carry the same parts of the same pieces. O(touches).

    Returns:
        Capacity of each class, class of each link, and the touches between pieces and classes (indptr, links, weight).
    """
    n_pieces = len(indptr) - 1
    own = np.where(mergeable, -1.0, np.arange(len(capacity)))
    color = np.concatenate([np.arange(n_pieces), n_pieces + label_pairs(capacity, own)])
    n_colors, _ = refine(indptr.astype(np.int64), links, weight, *[np.zeros(0, dtype=np.int64)] * 3, color, n_pieces)
    merged = quotient(indptr.astype(np.int64), links, weight, color, n_pieces, n_colors - n_pieces)
    return capacity[merged[5]], color[n_pieces:] - n_pieces, *merged[:3]


def living_nic_paths(
    topology: Topology, src: np.ndarray, dst: np.ndarray
) -> tuple[Int64[np.ndarray, "paths"], Int64[np.ndarray, "paths_plus_1"], Int32[np.ndarray, "hops"]]:
    """All living paths of each (src, dst), pair by pair: (pair of each path, indptr, links). O(hops)."""
    pair, indptr, links = nic_paths(topology, src, dst)
    if not len(topology.failed):
        return pair, indptr, links
    alive = segment_sums(topology.is_failed[links].astype(np.float64), indptr) == 0
    hops = np.diff(indptr)
    return pair[alive], offsets(hops[alive]), links[np.repeat(alive, hops)]


def nic_paths(
    topology: Topology, src: np.ndarray, dst: np.ndarray
) -> tuple[Int64[np.ndarray, "paths"], Int64[np.ndarray, "paths_plus_1"], Int32[np.ndarray, "hops"]]:
    """All paths of each (src, dst), dead ones included, in the order of their numbers: (pair of each path, indptr, links)."""
    n = topology.n_paths(src, dst) if len(src) else np.zeros(0, dtype=np.int64)
    pair = np.repeat(np.arange(len(src)), n)
    path = np.arange(len(pair)) - np.repeat(offsets(n)[:-1], n)
    indptr, links = topology.paths(src[pair], dst[pair], path)
    return pair, indptr.astype(np.int64), links


def offsets(counts: np.ndarray) -> Int64[np.ndarray, "n_plus_1"]:
    """Where each of ``counts`` consecutive segments starts, and the end of the last."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def segment_sums(values: np.ndarray, indptr: np.ndarray) -> Float64[np.ndarray, "segments"]:
    """Sum of each segment, added up on its own so that equal segments have equal sums; no segment may be empty."""
    return np.add.reduceat(values, indptr[:-1]) if len(indptr) > 1 else np.zeros(0)
