"""Baselines (hashing, greedy, spraying), and moving a plan off failed links."""

import numpy as np
from scipy.sparse import csr_matrix

from anabranch.fabric import _kernels_planners
from anabranch.fabric._checks import integers, positive_int
from anabranch.fabric._paths import check_reachable, fabric_links, living_paths
from anabranch.fabric._weights import even_paths, is_symmetric
from anabranch.fabric.plan import Plan, SprayPlan, sum_loads
from anabranch.fabric.topology import LeafSpine, Topology
from anabranch.fabric.traffic import Traffic


def plan_ecmp(topology: Topology, traffic: Traffic, *, split: int = 1, seed: int) -> Plan:
    """Hashing: each of ``split`` equal parts of a flow takes path hash(seed, src, dst, port) mod (number of living paths).

    The hash is splitmix64 over the four words. Parts have ports 0, 1, ... of their pair of NICs; several flows of a step
    between the same NICs go on counting, and later steps use the same ports, hence the same paths, again. ``split`` = x
    is the paper's MP-RDMA-x. Parts of a flow of fewer than x bytes that would be empty are left out.

    Args:
        split: parts per flow, >= 1.
        seed: of the hash, >= 0; the same seed gives the same plan.

    Raises:
        ValueError, TypeError: split < 1, a negative seed, a NIC outside the fabric, NIC pairs without a path.

    Cost: O(F log F + F split).
    """
    split = positive_int("split", split)
    seed = int(integers("seed", seed, low=0))
    check_reachable(topology, traffic)
    flow = np.repeat(np.arange(traffic.n_flows), split)
    part = np.tile(np.arange(split), traffic.n_flows)
    size = traffic.size_bytes[flow] // split + (part < traffic.size_bytes[flow] % split)
    some = size > 0
    flow, part, size = flow[some], part[some], size[some]
    port = connection_numbers(traffic)[flow] * split + part
    src, dst = traffic.src[flow], traffic.dst[flow]
    mixed = _kernels_planners.hash_flows(src, dst, port, np.uint64(seed))
    pair, of_piece, between = _leaf_pairs(topology, src, dst)
    path = np.zeros(len(flow), dtype=np.int64)
    if not topology.is_failed[topology.is_fabric_link].any():
        count = topology.n_paths(src[between], dst[between])
        path[between] = (mixed[between] % count.astype(np.uint64)).astype(np.int64)
    else:
        indptr, living = living_paths(topology, *pair)
        count = np.diff(indptr)[of_piece]
        path[between] = living[indptr[of_piece] + (mixed[between] % count.astype(np.uint64)).astype(np.int64)]
    return Plan(topology, traffic, flow, path, size)


def connection_numbers(traffic: Traffic) -> np.ndarray:
    """Number of each flow among those of its step with the same source and destination, in their order. O(F log F)."""
    order = np.lexsort((traffic.dst, traffic.src, traffic.step))
    keys = np.stack([traffic.step[order], traffic.src[order], traffic.dst[order]])
    new = (np.diff(keys, axis=1, prepend=-1) != 0).any(axis=0)
    heads = np.flatnonzero(new)
    number = np.empty(traffic.n_flows, dtype=np.int64)
    number[order] = np.arange(traffic.n_flows) - np.repeat(heads, np.diff(heads, append=traffic.n_flows))
    return number


def plan_greedy(topology: Topology, traffic: Traffic) -> Plan:
    """Flows in their order, each whole on the path whose most congested fabric link is least after it; ties: lowest path.

    With equal links that is the spine with the smallest max(uplink load, downlink load). Every step starts empty.

    Raises:
        ValueError: a NIC outside the fabric, NIC pairs without a path.

    Cost: O(F S) on a LeafSpine, O(F paths hops) elsewhere.
    """
    check_reachable(topology, traffic)
    everything = np.arange(traffic.n_flows)
    loads = np.zeros(topology.n_links)
    path = np.zeros(traffic.n_flows, dtype=np.int64)
    chooser = _Greedy(topology, traffic.src, traffic.dst)
    for _, flows in traffic.flows_by_step():
        path[flows] = chooser.choose(flows, traffic.size_bytes[flows], loads.copy())
    return Plan(topology, traffic, everything, path, traffic.size_bytes)


class _Greedy:
    """Greedy choice among living paths for pieces with the given ends, on top of given loads."""

    def __init__(self, topology: Topology, src: np.ndarray, dst: np.ndarray) -> None:
        self.topology = topology
        self.a, self.b = topology.leaf_of(src), topology.leaf_of(dst)
        if isinstance(topology, LeafSpine):
            return
        pair, of_flow, between = _leaf_pairs(topology, src, dst)
        self.pair = np.zeros(len(self.a), dtype=np.int64)
        self.pair[between] = of_flow
        self.indptr, self.path = living_paths(topology, *pair)
        owner = np.repeat(np.arange(len(pair[0])), np.diff(self.indptr))
        self.starts, self.links = fabric_links(topology, pair[0][owner], pair[1][owner], self.path)

    def choose(self, piece: np.ndarray, size: np.ndarray, loads: np.ndarray) -> np.ndarray:
        """Paths of the pieces in their order; ``loads`` [n_links] of the fabric links grow by them."""
        chosen = np.zeros(len(piece), dtype=np.int64)
        between = self.a[piece] != self.b[piece]
        own, bytes_ = piece[between], size[between].astype(np.float64)
        topology = self.topology
        if isinstance(topology, LeafSpine):
            shape = topology.n_leaves, topology.n_spines
            up, down = (half.reshape(shape) for half in np.split(loads[2 * topology.n_nics :], 2))
            chosen[between] = _kernels_planners.greedy_leaf_spine(
                self.a[own], self.b[own], bytes_, topology.up_bytes_per_s, topology.down_bytes_per_s, up, down
            )
            return chosen
        rates = topology.capacity_bytes_per_s
        best = _kernels_planners.greedy_paths(
            self.pair[own], bytes_, self.indptr, self.starts[:-1], self.starts[1:], self.links, rates, loads
        )
        chosen[between] = self.path[best]
        return chosen


def _leaf_pairs(
    topology: Topology, src: np.ndarray, dst: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """Distinct pairs of leaves, the pair of each inter-leaf item, and which items those are."""
    a, b = topology.leaf_of(src).astype(np.int64), topology.leaf_of(dst).astype(np.int64)
    between = np.flatnonzero(a != b)
    pair, of_item = np.unique(a[between] * topology.n_leaves + b[between], return_inverse=True)
    first, second = np.divmod(pair, topology.n_leaves)
    return (first, second), of_item, between


def plan_spray(topology: Topology, traffic: Traffic) -> SprayPlan:
    """Ideal packet spraying: every flow spread evenly over all its living paths, as loads.

    On a symmetric fabric this is the optimum; with links down or unequal it is what spraying does, which may be worse.

    Raises:
        ValueError: a NIC outside the fabric, NIC pairs without a path.

    Cost: O(F + steps L S) on a symmetric LeafSpine, O(pairs of leaves x paths x hops + F) elsewhere.
    """
    check_reachable(topology, traffic)
    links = np.concatenate([traffic.src, topology.n_nics + traffic.dst])
    step = np.tile(traffic.step, 2)
    parts = [(step, links, np.tile(traffic.size_bytes, 2).astype(np.float64))]
    pair, of_flow, between = _leaf_pairs(topology, traffic.src, traffic.dst)
    if len(between):
        own_step, own_size = traffic.step[between], traffic.size_bytes[between].astype(np.float64)
        if isinstance(topology, LeafSpine) and topology.is_uniform:
            parts += _spray_leaf_spine(topology, own_step, pair[0][of_flow], pair[1][of_flow], own_size)
        else:
            spread = _spread_matrix(topology, *pair)
            steps, row = np.unique(own_step, return_inverse=True)
            demand = csr_matrix((own_size, (row, of_flow)), shape=(len(steps), len(pair[0])))
            loads = (demand @ spread).tocoo()
            parts.append((steps[loads.row], loads.col, loads.data))
    step, links, load = (np.concatenate(column) for column in zip(*parts, strict=True))
    return SprayPlan(topology, traffic, *sum_loads(step, links, load, topology.n_links))


def _spray_leaf_spine(
    topology: LeafSpine, step: np.ndarray, a: np.ndarray, b: np.ndarray, size: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    S, first = topology.n_spines, 2 * topology.n_nics
    parts = []
    for end, begin in ((a, first), (b, first + topology.n_leaves * S)):
        key, of_flow = np.unique(step.astype(np.int64) * topology.n_leaves + end, return_inverse=True)
        total = np.bincount(of_flow, size) / S
        steps, leaf = np.divmod(key, topology.n_leaves)
        links = begin + leaf[:, None] * S + np.arange(S)
        parts.append((np.repeat(steps, S), links.ravel(), np.repeat(total, S)))
    return parts


def _spread_matrix(topology: Topology, a: np.ndarray, b: np.ndarray) -> csr_matrix:
    """Share of a pair's bytes on every link when all its living paths get the same [pairs, n_links]."""
    paths = even_paths if is_symmetric(topology) else living_paths
    indptr, path = paths(topology, a, b)
    count = np.diff(indptr)
    owner = np.repeat(np.arange(len(a)), count)
    starts, links = fabric_links(topology, a[owner], b[owner], path)
    row = np.repeat(owner, np.diff(starts))
    return csr_matrix((1.0 / count[row], (row, links)), shape=(len(a), topology.n_links))


def replan(plan: Plan, topology: Topology) -> Plan:
    """The plan on ``topology``, the same fabric with other links down: only pieces on dead paths move (ours).

    Such a piece moves whole, as its queue pair does after a timeout, to the living path whose most congested link is least
    after it, given the loads of the pieces that stay; in the order of the pieces.

    Raises:
        ValueError: another fabric; NIC pairs without a path.

    Cost: O(pieces + moved pieces x paths).
    """
    before = plan.topology
    if (topology.n_nics, topology.n_links) != (before.n_nics, before.n_links):
        raise ValueError(
            f"topology must have the plan's {before.n_nics} NICs and {before.n_links} links, "
            f"got {topology.n_nics} and {topology.n_links}"
        )
    traffic = plan.traffic
    check_reachable(topology, traffic)
    src, dst = traffic.src[plan.parent], traffic.dst[plan.parent]
    dead = np.flatnonzero(~topology.alive(src, dst, plan.path))
    path = plan.path.copy()
    if len(dead):
        stays = np.ones(plan.n_pieces, dtype=bool)
        stays[dead] = False
        indptr, links = plan.piece_links()
        hops = np.diff(indptr)
        chooser = _Greedy(topology, src[dead], dst[dead])
        step = traffic.step[plan.parent]
        for now in np.unique(step[dead]):
            there = np.repeat(stays & (step == now), hops)
            sizes = np.repeat(plan.size_bytes, hops)[there].astype(np.float64)
            loads = np.bincount(links[there], sizes, topology.n_links)
            mine = np.flatnonzero(step[dead] == now)
            path[dead[mine]] = chooser.choose(mine, plan.size_bytes[dead[mine]], loads)
    return Plan(topology, traffic, plan.parent, path, plan.size_bytes)
