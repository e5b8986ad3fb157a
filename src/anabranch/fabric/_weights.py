"""How the bytes between two leaves are best spread over the paths between them."""

import numpy as np

from anabranch.fabric import _lp
from anabranch.fabric._paths import fabric_links, living_paths
from anabranch.fabric.fat_tree import FatTree
from anabranch.fabric.topology import LeafSpine, Topology


def is_symmetric(topology: Topology) -> bool:
    """Equal shares on all paths are optimal: a leaf-spine or fat tree whose links are alike and alive."""
    return isinstance(topology, (LeafSpine, FatTree)) and topology.is_uniform


def even_paths(topology: Topology, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Paths that get equal shares in a symmetric fabric, per pair of leaves: CSR (indptr, path).

    All spines of a leaf-spine; all aggregation switches inside a pod; between pods, every (aggregation switch, core)
    with the way down over the switch of the same number, which loads every link as all paths together would.
    """
    if not isinstance(topology, FatTree):
        count = np.full(len(a), topology.n_spines if isinstance(topology, LeafSpine) else 0)
        indptr = np.concatenate([[0], np.cumsum(count)])
        return indptr, np.arange(indptr[-1]) - np.repeat(indptr[:-1], count)
    up, core = np.divmod(np.arange(topology.aggs_per_pod * topology.cores_per_plane), topology.cores_per_plane)
    between = topology.path_id(up, core, up % topology.aggs_per_plane)
    crosses = a // topology.tors_per_pod != b // topology.tors_per_pod
    count = np.where(crosses, len(between), topology.aggs_per_pod)
    indptr = np.concatenate([[0], np.cumsum(count)])
    rank = np.arange(indptr[-1]) - np.repeat(indptr[:-1], count)
    return indptr, np.where(np.repeat(crosses, count), between[np.minimum(rank, len(between) - 1)], rank)


def best_paths(
    topology: Topology, a: np.ndarray, b: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths and weights of least maximum congestion for ``size[i]`` bytes from leaf ``a[i]`` to ``b[i]``, pairs distinct.

    CSR (indptr, path, weight), weights of a pair adding up to 1. Equal weights where the fabric is symmetric, otherwise
    from the linear program.
    """
    if is_symmetric(topology):
        indptr, path = even_paths(topology, a, b)
        count = np.diff(indptr)
        return indptr, path, np.repeat(1.0 / count, count)
    if isinstance(topology, LeafSpine):
        shares = _lp.solve_leaf_spine(topology, a, b, size)
        per_spine = np.zeros((len(a), int(shares.of_spine.max()) + 1))
        width = np.bincount(shares.of_spine)[shares.spine_class]
        per_spine[shares.pair, shares.spine_class] = shares.load_bytes / width
        weight = per_spine[:, shares.of_spine]
        row, path = np.nonzero(weight)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(a)))])
        return indptr, path, _normalised(indptr, weight[row, path])
    arcs, routing = _lp.solve(topology, a, b, size)
    # Share of a commodity's bytes at the tail of a link that take this link; a path gets the product of its links'.
    out = np.zeros((topology.n_leaves, arcs.n_nodes))
    np.add.at(out, (routing.commodity, arcs.tail[routing.arc]), routing.load_bytes)
    ratio = np.zeros((topology.n_leaves, topology.n_links))
    total = out[routing.commodity, arcs.tail[routing.arc]]
    ratio[routing.commodity, arcs.link[routing.arc]] = routing.load_bytes / total
    indptr, path = living_paths(topology, a, b)
    owner = np.repeat(np.arange(len(a)), np.diff(indptr))
    starts, links = fabric_links(topology, a[owner], b[owner], path)
    weight = np.multiply.reduceat(ratio[np.repeat(b[owner], np.diff(starts)), links], starts[:-1])
    used = weight > 0
    indptr = np.concatenate([[0], np.cumsum(np.bincount(owner[used], minlength=len(a)))])
    return indptr, path[used], _normalised(indptr, weight[used])


def _normalised(indptr: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.asarray(weight / np.repeat(np.add.reduceat(weight, indptr[:-1]), np.diff(indptr)))


def wrap_around(
    group: np.ndarray, size: np.ndarray, indptr: np.ndarray, path: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flows of a group end to end on a line, cut at the shares of its paths (McNaughton): pieces (flow, path, bytes).

    Every path of a group gets its weight's share of the group's bytes, the remainder spread one byte at a time; at most
    n + s - 1 pieces for n flows and s paths. Pieces come group by group, flows in their order.

    Args:
        group: 0..G-1, per flow.
        size: bytes per flow.
        indptr, path, weight: CSR of paths per group, weights of a group adding up to 1.
    """
    order = np.argsort(group, kind="stable")
    flow_end = np.cumsum(size[order])
    total = np.zeros(len(indptr) - 1, dtype=np.int64)
    np.add.at(total, group, size)
    count = np.diff(indptr)
    share = (np.repeat(total, count) * (weight * (1 - 2.0**-50))).astype(np.int64)
    rest = total - np.add.reduceat(share, indptr[:-1])
    rank = np.arange(len(share)) - np.repeat(indptr[:-1], count)
    share += np.repeat(rest // count, count) + (rank < np.repeat(rest % count, count))
    path_end = np.cumsum(share)
    ends = np.union1d(flow_end, path_end)
    ends = ends[ends > 0]
    starts = np.concatenate([[0], ends[:-1]])
    flow = order[np.searchsorted(flow_end, starts, side="right")]
    return flow, path[np.searchsorted(path_end, starts, side="right")], ends - starts
