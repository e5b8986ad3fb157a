"""The linear program of ideal routing: bytes between leaves over shortest paths, least maximum congestion.

Bytes for one destination leaf are one commodity that flows over the links that lie on shortest paths to that leaf. Any
such flow is a mixture of shortest paths, and the other way round, so the program has one variable per (destination,
link) instead of one per (pair of leaves, path), with the same optimum.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from anabranch.fabric.fat_tree import FatTree
from anabranch.fabric.graph import GraphTopology
from anabranch.fabric.topology import LeafSpine, Topology, with_failed

# Above so many variables the interior point method was 10 to 50 times faster than the dual simplex method.
_SIMPLEX_VARIABLES = 2_000


@dataclass(frozen=True)
class Arcs:
    """Living fabric links as a directed graph; nodes 0..n_leaves-1 are the leaves."""

    n_nodes: int
    n_leaves: int
    tail: np.ndarray
    head: np.ndarray
    capacity: np.ndarray
    link: np.ndarray


@dataclass(frozen=True)
class Routing:
    """Solution: bytes of commodity ``commodity[i]`` (a destination leaf) over arc ``arc[i]``; prices of the arcs."""

    value_s: float
    commodity: np.ndarray
    arc: np.ndarray
    load_bytes: np.ndarray
    price: np.ndarray


def arcs_of(topology: Topology) -> Arcs:
    """The switch graph without its failed links."""
    if isinstance(topology, LeafSpine):
        leaf, spine = np.divmod(np.arange(topology.n_leaves * topology.n_spines), topology.n_spines)
        spine = topology.n_leaves + spine
        n_nodes = topology.n_leaves + topology.n_spines
        tail, head = np.concatenate([leaf, spine]), np.concatenate([spine, leaf])
    elif isinstance(topology, FatTree):
        n_nodes, tail, head = _fat_tree_ends(topology)
    elif isinstance(topology, GraphTopology):
        n_nodes, tail, head = topology.switch_graph()
    else:
        raise TypeError(f"topology must be LeafSpine, FatTree or GraphTopology, got {type(topology).__name__}")
    link = np.flatnonzero(topology.is_fabric_link)
    alive = ~topology.is_failed[link]
    link = link[alive]
    return Arcs(n_nodes, topology.n_leaves, tail[alive], head[alive], topology.capacity_bytes_per_s[link], link)


def _fat_tree_ends(topology: FatTree) -> tuple[int, np.ndarray, np.ndarray]:
    P, T, A = topology.n_pods, topology.tors_per_pod, topology.aggs_per_pod
    C = topology.cores_per_plane
    pod, tor, agg = (x.ravel() for x in np.indices((P, T, A)))
    tor, agg = pod * T + tor, P * T + pod * A + agg
    pod, top, core = (x.ravel() for x in np.indices((P, A, C)))
    core = P * (T + A) + top // topology.aggs_per_plane * C + core
    top = P * T + pod * A + top
    return (
        P * (T + A) + topology.n_cores,
        np.concatenate([tor, agg, top, core]),
        np.concatenate([agg, tor, core, top]),
    )


def merge_spines(topology: LeafSpine) -> tuple[Arcs, np.ndarray]:
    """The switch graph with spines of equal links taken together, and the class of every spine.

    The merged program has the same optimum: the mean of a solution over the spines of a class is a solution.
    """
    columns = np.concatenate([topology.up_bytes_per_s, topology.down_bytes_per_s])
    _, of_spine = np.unique(columns, axis=1, return_inverse=True)
    of_spine = of_spine.ravel()
    L, classes = topology.n_leaves, int(of_spine.max()) + 1
    parts = []
    for rates in (topology.up_bytes_per_s, topology.down_bytes_per_s):
        merged = rates @ (of_spine[:, None] == np.arange(classes))
        leaf, spine = np.nonzero(merged)
        parts.append((leaf, L + spine, merged[leaf, spine]))
    (leaf_up, spine_up, rate_up), (leaf_down, spine_down, rate_down) = parts
    merged_arcs = Arcs(
        L + classes,
        L,
        np.concatenate([leaf_up, spine_down]),
        np.concatenate([spine_up, leaf_down]),
        np.concatenate([rate_up, rate_down]),
        np.full(len(rate_up) + len(rate_down), -1),
    )
    return merged_arcs, of_spine


def route(arcs: Arcs, hops: np.ndarray, a: np.ndarray, b: np.ndarray, size: np.ndarray) -> Routing:
    """Solves the program for ``size[i]`` bytes from leaf ``a[i]`` to leaf ``b[i]``, pairs distinct (HiGHS).

    Args:
        hops: number of links from every node to every leaf [nodes, leaves] on the fabric without failures.
    """
    goals, commodity_of = np.unique(b, return_inverse=True)
    # Variables: (commodity, arc) for arcs one link nearer to the goal, then the congestion, in units that keep it near 1.
    nearer = hops[arcs.tail][:, goals] == hops[arcs.head][:, goals] + 1
    nearer &= hops[arcs.head][:, goals] >= 0
    arc, commodity = np.nonzero(nearer)
    n = len(arc)
    unit = float(size.sum()) / len(goals)
    rate = float(arcs.capacity.max())
    variable = np.arange(n)
    node_row = commodity * arcs.n_nodes
    balance = coo_matrix(
        (
            np.concatenate([np.ones(n), -np.ones(n)]),
            (np.concatenate([node_row + arcs.tail[arc], node_row + arcs.head[arc]]), np.tile(variable, 2)),
        ),
        shape=(len(goals) * arcs.n_nodes, n + 1),
    ).tocsr()
    supply = np.zeros(len(goals) * arcs.n_nodes)
    np.add.at(supply, commodity_of * arcs.n_nodes + a, size / unit)
    keep = np.ones(len(supply), dtype=bool)
    keep[np.arange(len(goals)) * arcs.n_nodes + goals] = False  # what reaches the goal follows from the other nodes
    empty = np.diff(balance.indptr) == 0
    keep &= ~(empty & (supply == 0))
    limit = coo_matrix((np.ones(n), (arc, variable)), shape=(len(arcs.tail), n + 1))
    congestion = coo_matrix(
        (-arcs.capacity / rate, (np.arange(len(arcs.tail)), np.full(len(arcs.tail), n))), shape=limit.shape
    )
    cost = np.zeros(n + 1)
    cost[n] = 1.0
    solution = linprog(
        cost,
        A_ub=(limit + congestion).tocsr(),
        b_ub=np.zeros(len(arcs.tail)),
        A_eq=balance[keep],
        b_eq=supply[keep],
        method="highs-ds" if n < _SIMPLEX_VARIABLES else "highs-ipm",  # both end in a vertex
    )
    if solution.status != 0:
        raise ValueError(f"topology has no routing for the traffic: {solution.message}")
    load = solution.x[:n] * unit
    used = load > 0
    return Routing(
        float(solution.x[n]) * unit / rate,
        goals[commodity[used]],
        arc[used],
        load[used],
        np.maximum(-solution.ineqlin.marginals, 0.0) / rate,
    )


def hops_to_leaves(arcs: Arcs) -> np.ndarray:
    """Links on a shortest path from every node to every leaf [nodes, leaves], -1 where there is none. O(L (nodes + arcs))."""
    order = np.argsort(arcs.head, kind="stable")
    into = np.split(arcs.tail[order], np.searchsorted(arcs.head[order], np.arange(1, arcs.n_nodes)))
    hops = np.full((arcs.n_nodes, arcs.n_leaves), -1)
    for leaf in range(arcs.n_leaves):
        hops[leaf, leaf] = 0
        ring, distance = np.array([leaf]), 0
        while len(ring):
            distance += 1
            near = np.unique(np.concatenate([into[node] for node in ring]))
            ring = near[hops[near, leaf] < 0]
            hops[ring, leaf] = distance
    return hops


def solve(topology: Topology, a: np.ndarray, b: np.ndarray, size: np.ndarray) -> tuple[Arcs, Routing]:
    """The program of a fabric link by link, for distinct pairs of leaves."""
    hops = hops_to_leaves(arcs_of(with_failed(topology, ())))
    arcs = arcs_of(topology)
    return arcs, route(arcs, hops, a, b, size)


@dataclass(frozen=True)
class SpineShares:
    """Solution with equal spines merged: bytes ``load_bytes[i]`` of pair ``pair[i]`` over the spines of ``spine_class[i]``."""

    value_s: float
    of_spine: np.ndarray
    pair: np.ndarray
    spine_class: np.ndarray
    load_bytes: np.ndarray
    price: np.ndarray


def solve_leaf_spine(topology: LeafSpine, a: np.ndarray, b: np.ndarray, size: np.ndarray) -> SpineShares:
    """The program with equal spines merged, for distinct pairs of leaves; prices are those of all links [n_links].

    The price of a merged link holds for each link in it: the sum of price times capacity stays, and so does the cheapest
    path between two leaves.
    """
    arcs, of_spine = merge_spines(topology)
    L = topology.n_leaves
    hops = np.ones((arcs.n_nodes, L), dtype=np.int64)
    hops[:L] = 2 - 2 * np.eye(L, dtype=np.int64)
    routing = route(arcs, hops, a, b, size)
    rises = arcs.tail < L
    leaf, spine_class = np.where(rises, arcs.tail, arcs.head), np.where(rises, arcs.head, arcs.tail) - L
    merged = np.zeros((2, L, int(of_spine.max()) + 1))
    merged[np.where(rises, 0, 1), leaf, spine_class] = routing.price
    price = np.zeros(topology.n_links)
    price[2 * topology.n_nics :] = merged[:, :, of_spine].ravel()
    price[topology.is_failed] = 0.0
    up = rises[routing.arc]
    pair = a.astype(np.int64) * L + b
    order = np.argsort(pair)
    found = order[np.searchsorted(pair[order], leaf[routing.arc[up]] * L + routing.commodity[up])]
    return SpineShares(routing.value_s, of_spine, found, spine_class[routing.arc[up]], routing.load_bytes[up], price)
