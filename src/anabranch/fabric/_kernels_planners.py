"""Compiled kernels of the baselines."""

import typing

import numpy as np
from numba import njit


@njit(cache=True)
@typing.no_type_check
def splitmix64(x):
    """The 64-bit mixer of Steele, Lea, Flood (2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True)
@typing.no_type_check
def hash_flows(src, dst, port, seed):
    """splitmix64 over (seed, src, dst, port), word by word."""
    result = np.empty(len(src), np.uint64)
    start = splitmix64(np.uint64(seed))
    for i in range(len(src)):
        x = splitmix64(start ^ np.uint64(src[i]))
        x = splitmix64(x ^ np.uint64(dst[i]))
        result[i] = splitmix64(x ^ np.uint64(port[i]))
    return result


@njit(cache=True)
@typing.no_type_check
def greedy_leaf_spine(a, b, size, up_rate, down_rate, up, down):
    """Each flow to the living spine with the least max of uplink and downlink congestion; loads are updated. O(F S)."""
    path = np.empty(len(a), np.int64)
    spines = up.shape[1]
    for i in range(len(a)):
        best, least = -1, np.inf
        for k in range(spines):
            if up_rate[a[i], k] > 0 and down_rate[b[i], k] > 0:
                cost = max((up[a[i], k] + size[i]) / up_rate[a[i], k], (down[b[i], k] + size[i]) / down_rate[b[i], k])
                if cost < least:
                    best, least = k, cost
        path[i] = best
        up[a[i], best] += size[i]
        down[b[i], best] += size[i]
    return path


@njit(cache=True)
@typing.no_type_check
def greedy_paths(pair, size, indptr, start, stop, links, rate, load):
    """The same over listed paths: path p of a pair uses links[start[p]:stop[p]]. O(F paths hops)."""
    chosen = np.empty(len(pair), np.int64)
    for i in range(len(pair)):
        best, least = -1, np.inf
        for p in range(indptr[pair[i]], indptr[pair[i] + 1]):
            cost = 0.0
            for j in range(start[p], stop[p]):
                cost = max(cost, (load[links[j]] + size[i]) / rate[links[j]])
                if cost >= least:
                    break
            if cost < least:
                best, least = p, cost
        chosen[i] = best
        for j in range(start[best], stop[best]):
            load[links[j]] += size[i]
    return chosen
