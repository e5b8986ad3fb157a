"""Compiled kernel: cutting a weighted bipartite multigraph in two parts, few edges divided."""

import typing

import numpy as np
from numba import njit

# A part below half a byte is no part: sizes are rounded to whole bytes afterwards.
_NOTHING = 0.5


@njit(cache=True)
@typing.no_type_check
def cancel_cycles(left, right, weight, part, n):
    """Makes the divided edges (0 < part < weight) a forest without changing the sum of ``part`` at any vertex. In place.

    ``left`` and ``right`` name disjoint sets of the vertices 0..n-1. Edges enter one by one. One that closes a cycle moves
    weight round it, + and - in turn (cycles are even), until an edge is wholly in or out and leaves; so at most n - 1
    edges stay divided. The forest is kept as parent pointers: O(edges x depth of the forest).
    """
    parent = np.full(n, -1, np.int64)
    up = np.full(n, -1, np.int64)
    seen = np.zeros(n, np.int64)
    now = 0
    for e in range(len(left)):
        while part[e] > _NOTHING and part[e] < weight[e] - _NOTHING:
            now += 1
            x = left[e]
            while x >= 0:
                seen[x] = now
                x = parent[x]
            meet = right[e]
            while meet >= 0 and seen[meet] != now:
                meet = parent[meet]
            if meet < 0:  # two trees: turn the left one so that it hangs under the right end
                child, above, edge = left[e], right[e], np.int64(e)
                while child >= 0:
                    next_child, next_edge = parent[child], up[child]
                    parent[child], up[child] = above, edge
                    above, edge, child = child, next_edge, next_child
                break
            grow, shrink = weight[e] - part[e], part[e]
            for end in (left[e], right[e]):
                x, adds = end, False
                while x != meet:
                    f = up[x]
                    rest, own = weight[f] - part[f], part[f]
                    grow, shrink = min(grow, rest if adds else own), min(shrink, own if adds else rest)
                    x, adds = parent[x], not adds
            # Either way frees an edge; better the one that makes e itself whole.
            shift = -shrink if shrink >= part[e] and grow < weight[e] - part[e] else grow
            part[e] += shift
            for end in (left[e], right[e]):
                x, adds = end, False
                while x != meet:
                    f, above = up[x], parent[x]
                    part[f] += shift if adds else -shift
                    if part[f] <= _NOTHING or part[f] >= weight[f] - _NOTHING:
                        parent[x], up[x] = -1, -1
                    x, adds = above, not adds
