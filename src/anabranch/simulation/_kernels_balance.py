"""Contiguous partitions: the dynamic programme."""

import typing

import numpy as np
from numba import njit


@njit(cache=True)
@typing.no_type_check
def bottleneck(prefix, cut, memory, cap, k):
    """``best[j]``: least bottleneck of the first j items in s stages, for s = 1 .. k; ``choice[s, j]``: where the last began."""
    n = len(prefix) - 1
    best, choice = np.full(n + 1, np.inf), np.zeros((k + 1, n + 1), np.int64)
    best[0] = 0.0
    for s in range(1, k + 1):
        new = np.full(n + 1, np.inf)
        for j in range(s, n - (k - s) + 1):
            for i in range(j - 1, s - 2, -1):
                own = prefix[j] - prefix[i]
                if own >= new[j]:  # longer stages only cost more, whatever their cuts
                    break
                if memory[j] - memory[i] > cap:
                    break
                value = max(best[i], own + cut[i] + cut[j])
                if value < new[j]:
                    new[j], choice[s, j] = value, i
        best = new
    return best[n], choice
