"""The least maximum congestion of symmetric fabrics, in closed form."""

import numpy as np

from anabranch.fabric.fat_tree import FatTree
from anabranch.fabric.topology import LeafSpine


def closed_form_s(topology: LeafSpine | FatTree, a: np.ndarray, b: np.ndarray, size: np.ndarray) -> float:
    """Seconds of congestion for ``size[i]`` bytes from leaf ``a[i]`` to ``b[i] != a[i]`` on a symmetric fabric.

    Every cut around a leaf (or a pod) is shared evenly by equal links at best, and an even spread over all paths attains
    this for all cuts at once: max over leaves of out and in over S links; for a FatTree also over pods and A C/G links.
    """
    if not len(a):
        return 0.0

    def heaviest(left: np.ndarray, right: np.ndarray, weight: np.ndarray) -> float:
        return max(float(np.bincount(end, weight).max(initial=0.0)) for end in (left, right))

    if isinstance(topology, LeafSpine):
        return heaviest(a, b, size) / topology.n_spines / float(topology.up_bytes_per_s[0, 0])
    pod_a, pod_b = a // topology.tors_per_pod, b // topology.tors_per_pod
    crosses = pod_a != pod_b
    cores = topology.aggs_per_pod * topology.cores_per_plane
    return max(
        heaviest(a, b, size) / topology.aggs_per_pod / topology.tor_bytes_per_s,
        heaviest(pod_a[crosses], pod_b[crosses], size[crosses]) / cores / topology.core_bytes_per_s,
    )
