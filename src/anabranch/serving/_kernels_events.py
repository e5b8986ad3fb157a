"""A heap of events in arrays, and piecewise linear tables, for the event loops of this package.

The kernels are compiled without numba's runtime (``_nrt=False``): they allocate nothing, and without it the dozens of arrays that
each call takes are not counted up and down atomically, which took nine tenths of the time.
"""

import typing
from collections import namedtuple

import numpy as np
from numba import njit

Heap = namedtuple("Heap", "time order kind what size")  # size: [events in it, events ever pushed]


def new_heap(capacity: int) -> Heap:
    order, kind, what = (np.empty(capacity, np.int64) for _ in range(3))
    return Heap(np.empty(capacity, np.float64), order, kind, what, np.zeros(2, np.int64))


@njit(cache=True, _nrt=False)
@typing.no_type_check
def push(h, time, kind, what):
    """Events of one time come out in the order in which they went in."""
    i, order = h.size[0], h.size[1]
    h.size[0] += 1
    h.size[1] += 1
    while i > 0:
        up = (i - 1) >> 1
        if h.time[up] <= time:  # older ones of the same time stay above
            break
        h.time[i], h.order[i], h.kind[i], h.what[i] = h.time[up], h.order[up], h.kind[up], h.what[up]
        i = up
    h.time[i], h.order[i], h.kind[i], h.what[i] = time, order, kind, what


@njit(cache=True, _nrt=False)
@typing.no_type_check
def drop_first(h):
    """Removes the first event, which the caller has read at index 0."""
    h.size[0] -= 1
    n = h.size[0]
    time, order, kind, what = h.time[n], h.order[n], h.kind[n], h.what[n]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        right = child + 1
        if right < n and (
            h.time[right] < h.time[child] or (h.time[right] == h.time[child] and h.order[right] < h.order[child])
        ):
            child = right
        if time < h.time[child] or (time == h.time[child] and order < h.order[child]):
            break
        h.time[i], h.order[i], h.kind[i], h.what[i] = h.time[child], h.order[child], h.kind[child], h.what[child]
        i = child
    h.time[i], h.order[i], h.kind[i], h.what[i] = time, order, kind, what


@njit(cache=True, _nrt=False)
@typing.no_type_check
def interpolate(x, y, n, at):
    """Straight lines through the first ``n`` knots, the outer ones prolonged (SciPy's interp1d with extrapolation)."""
    if n == 1:
        return y[0]
    low = np.searchsorted(x[:n], at) - 1
    low = min(max(low, 0), n - 2)
    slope = (y[low + 1] - y[low]) / (x[low + 1] - x[low])
    return slope * (at - x[low]) + y[low]
