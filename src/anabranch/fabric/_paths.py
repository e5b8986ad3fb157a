"""Paths between leaves: which are alive, and refusing traffic that has none."""

import numpy as np

from anabranch.fabric.topology import LeafSpine, Topology
from anabranch.fabric.traffic import Traffic

_CHUNK = 1 << 20
_LISTED = 10


def representatives(topology: Topology) -> np.ndarray:
    """One NIC of every leaf."""
    leaf, nic = np.unique(topology.leaf_of(np.arange(topology.n_nics)), return_index=True)
    found = np.zeros(topology.n_leaves, dtype=np.int64)
    found[leaf] = nic
    return found


def fabric_links(topology: Topology, a: np.ndarray, b: np.ndarray, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fabric links (CSR) of paths from leaf ``a`` to leaf ``b != a``."""
    nic = representatives(topology)
    indptr, links = topology.paths(nic[a], nic[b], path)
    inner = np.ones(len(links), dtype=bool)
    inner[indptr[:-1]] = inner[indptr[1:] - 1] = False
    return indptr - 2 * np.arange(len(indptr)), links[inner]


def living_paths(topology: Topology, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Paths without a failed fabric link for each pair of leaves ``a != b``: CSR (indptr, path), paths ascending."""
    if isinstance(topology, LeafSpine):
        alive = (topology.up_bytes_per_s > 0)[a] & (topology.down_bytes_per_s > 0)[b]
        indptr = np.concatenate([[0], np.cumsum(alive.sum(axis=1))])
        return indptr, np.nonzero(alive)[1]
    nic = representatives(topology)
    count = topology.n_paths(nic[a], nic[b])
    indptr = np.concatenate([[0], np.cumsum(count)])
    path = np.arange(indptr[-1]) - np.repeat(indptr[:-1], count)
    if not topology.is_failed[topology.is_fabric_link].any():
        return indptr, path
    alive = np.empty(len(path), dtype=bool)
    owner = np.repeat(np.arange(len(a)), count)
    for low in range(0, len(path), _CHUNK):
        part = slice(low, low + _CHUNK)
        starts, links = fabric_links(topology, a[owner[part]], b[owner[part]], path[part])
        dead_before = np.concatenate([[0], np.cumsum(topology.is_failed[links])])
        alive[part] = dead_before[starts[1:]] == dead_before[starts[:-1]]
    living = np.bincount(owner[alive], minlength=len(a))
    return np.concatenate([[0], np.cumsum(living)]), path[alive]


def check_reachable(topology: Topology, traffic: Traffic) -> None:
    """Raises ValueError naming the pairs of NICs between which no path is alive, or NICs outside the fabric."""
    traffic.check_fits(topology)
    if not traffic.n_flows or not len(topology.failed):
        return
    _, links = topology.paths(traffic.src, traffic.dst, 0)
    nic_link = links[~topology.is_fabric_link[links]].reshape(-1, 2)
    lost = topology.is_failed[nic_link].any(axis=1)
    a, b = topology.leaf_of(traffic.src), topology.leaf_of(traffic.dst)
    between = np.flatnonzero(a != b)
    pair, where = np.unique(a[between].astype(np.int64) * topology.n_leaves + b[between], return_inverse=True)
    indptr, _ = living_paths(topology, *np.divmod(pair, topology.n_leaves))
    lost[between] |= (np.diff(indptr) == 0)[where]
    if lost.any():
        ends = np.unique(np.stack([traffic.src[lost], traffic.dst[lost]]), axis=1).T
        listed = ", ".join(f"{s} -> {d}" for s, d in ends[:_LISTED].tolist())
        more = f" and {len(ends) - _LISTED} more" if len(ends) > _LISTED else ""
        raise ValueError(f"topology has no path left for the NIC pairs {listed}{more}")
