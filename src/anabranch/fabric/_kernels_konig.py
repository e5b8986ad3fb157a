"""Compiled kernels: regular bipartite multigraphs into perfect matchings."""

import typing

import numpy as np
from numba import njit


@njit(cache=True)
@typing.no_type_check
def contract(degree, limit):
    """Puts vertices in groups of total degree <= limit, next fit: at most 2 sum(degree) / limit + 1 groups.

    A matching of the contracted graph is one of the graph, and the graph padded to ``limit`` stays of the size of its edges.
    """
    group = np.empty(len(degree), np.int32)
    current, used = 0, 0
    for vertex in range(len(degree)):
        if used + degree[vertex] > limit:
            current += 1
            used = 0
        used += degree[vertex]
        group[vertex] = current
    return group, current + 1


@njit(cache=True)
@typing.no_type_check
def _euler_split(left, right, n, partner_left, partner_right, side):
    """Halves a multigraph of even degrees: side[e] in {0, 1}, every vertex has as many of each. O(edges).

    Edges are paired at every vertex; each edge then has a partner at either end, so the edges fall in even cycles, which
    are colored alternately.
    """
    m = len(left)
    open_left = np.full(n, -1, np.int32)
    open_right = np.full(n, -1, np.int32)
    for e in range(m):
        f = open_left[left[e]]
        if f < 0:
            open_left[left[e]] = e
        else:
            partner_left[e], partner_left[f] = f, e
            open_left[left[e]] = -1
        f = open_right[right[e]]
        if f < 0:
            open_right[right[e]] = e
        else:
            partner_right[e], partner_right[f] = f, e
            open_right[right[e]] = -1
        side[e] = -1
    for first in range(m):
        e = first
        while side[e] < 0:
            side[e] = 0
            e = partner_right[e]
            side[e] = 1
            e = partner_left[e]


@njit(cache=True)
@typing.no_type_check
def _perfect_matching(left, right, n, degree, matched):
    """Marks a perfect matching of a regular multigraph. O(edges) to index it and O(n log n) expected for the walks.

    From every free left vertex a random walk over edges out and matched edges back, until a free right vertex is met; the
    walk without its loops is the augmenting path (Goel, Kapralov, Khanna 2010). Chance decides the time, not whether it
    succeeds, so the generator is a fixed one and the same graph always gives the same matching.
    """
    m = len(left)
    edges = np.empty(m, np.int32)
    filled = np.zeros(n, np.int32)
    for e in range(m):
        u = left[e]
        edges[u * degree + filled[u]] = e
        filled[u] += 1
    match_left = np.full(n, -1, np.int32)
    match_right = np.full(n, -1, np.int32)
    leaving = np.empty(n, np.int32)
    state = np.uint64(0x9E3779B97F4A7C15)
    for start in range(n):
        u = start
        while True:
            e = match_left[u]
            while e == match_left[u]:
                state ^= state << np.uint64(13)
                state ^= state >> np.uint64(7)
                state ^= state << np.uint64(17)
                e = edges[u * degree + np.int64((state >> np.uint64(33)) % np.uint64(degree))]
            leaving[u] = e
            back = match_right[right[e]]
            if back < 0:
                break
            u = left[back]
        u = start
        while True:
            e = leaving[u]
            back = match_right[right[e]]
            match_left[u] = e
            match_right[right[e]] = e
            if back < 0:
                break
            u = left[back]
    matched[:] = 0
    for u in range(n):
        matched[match_left[u]] = 1


@njit(cache=True)
@typing.no_type_check
def color_regular(left, right, n, degree):
    """Colors the edges of a ``degree``-regular bipartite multigraph with n + n vertices so that each color is a perfect matching.

    Even degrees are halved by an Euler split, odd ones first lose one perfect matching. O(E log D + n log n log D), E = nD.
    """
    m = n * degree
    color = np.empty(m, np.int32)
    ids = np.arange(m).astype(np.int32)
    new_ids = np.empty(m, np.int32)
    own_left, own_right = left.copy(), right.copy()
    new_l, new_r = np.empty(m, np.int32), np.empty(m, np.int32)
    partner_left, partner_right = np.empty(m, np.int32), np.empty(m, np.int32)
    side = np.empty(m, np.int8)
    stack = [(0, degree, 0)]
    while stack:
        low, d, first = stack.pop()
        high = low + n * d
        if d == 1:
            for i in range(low, high):
                color[ids[i]] = first
            continue
        part = slice(low, high)
        if d % 2:
            _perfect_matching(own_left[part], own_right[part], n, d, side[part])
            ahead, behind = low + n * (d - 1), low
            stack.append((low, d - 1, first))
            stack.append((ahead, 1, first + d - 1))
        else:
            _euler_split(own_left[part], own_right[part], n, partner_left[part], partner_right[part], side[part])
            ahead, behind = low + n * (d // 2), low
            stack.append((low, d // 2, first))
            stack.append((ahead, d // 2, first + d // 2))
        for i in range(low, high):
            if side[i] == 1:
                j = ahead
                ahead += 1
            else:
                j = behind
                behind += 1
            new_ids[j], new_l[j], new_r[j] = ids[i], own_left[i], own_right[i]
        ids[part], own_left[part], own_right[part] = new_ids[part], new_l[part], new_r[part]
    return color


@njit(cache=True)
@typing.no_type_check
def _augment(row, start, stop, col, row_of_col, at, came_from, queue, seen, mark):
    """Shortest augmenting path from a free row; ``at[row]`` is the position of its matched entry or -1."""
    queue[0] = row
    head, tail = 0, 1
    while head < tail:
        u = queue[head]
        head += 1
        for p in range(start[u], stop[u]):
            c = col[p]
            if seen[c] == mark:
                continue
            seen[c] = mark
            came_from[c] = u
            if row_of_col[c] < 0:
                while True:
                    u = came_from[c]
                    previous = at[u]
                    for p2 in range(start[u], stop[u]):
                        if col[p2] == c:
                            at[u] = p2
                            break
                    row_of_col[c] = u
                    if u == row:
                        return True
                    c = col[previous]
            queue[tail] = row_of_col[c]
            tail += 1
    return False


@njit(cache=True)
@typing.no_type_check
def decompose_matrix(n, start, stop, col, count):
    """Birkhoff: a matrix with equal row and column sums into perfect matchings with multiplicities.

    Rows are CSR (``start``, ``stop``, ``col``, ``count`` > 0); entries of one row that share a column are allowed. Each
    matching is taken as often as its smallest entry allows; entries that are used up leave, and only their rows look for
    a new partner, first the next entry of the row, then along a shortest augmenting path. Returns (multiplicity
    [matchings], entry [matchings, n]), entries as positions in ``col`` on input. At most nnz - 2n + 2 matchings; an entry
    that leaves costs O(nnz) at worst, a matching of all-to-all O(n).
    """
    start, stop, col, count = start.copy(), stop.copy(), col.copy(), count.copy()
    name = np.arange(len(col))
    at = np.full(n, -1, np.int64)
    row_of_col = np.full(n, -1, np.int64)
    came_from = np.empty(n, np.int64)
    queue = np.empty(n + 1, np.int64)
    seen = np.zeros(n, np.int64)
    mark = 0
    room = 64
    multiplicity = np.empty(room, np.int64)
    entry = np.empty((room, n), np.int32)
    found = 0
    while start[0] < stop[0]:
        for row in range(n):  # the next entry of the row, where its column is free
            if at[row] < 0:
                p = start[row]
                if row_of_col[col[p]] < 0:
                    at[row] = p
                    row_of_col[col[p]] = row
        for row in range(n):
            if at[row] < 0:
                mark += 1
                if not _augment(row, start, stop, col, row_of_col, at, came_from, queue, seen, mark):
                    raise ValueError("rows and columns must have equal sums")
        least = count[at[0]]
        for row in range(1, n):
            least = min(least, count[at[row]])
        if found == room:
            room *= 2
            wider, longer = np.empty((room, n), np.int32), np.empty(room, np.int64)
            wider[:found], longer[:found] = entry, multiplicity
            entry, multiplicity = wider, longer
        multiplicity[found] = least
        for row in range(n):
            p = at[row]
            entry[found, row] = name[p]
            count[p] -= least
            if count[p] == 0:
                row_of_col[col[p]] = -1
                at[row] = -1
                for i in range(p, start[row], -1):  # closes the gap in order, so that all-to-all stays a rotation
                    col[i], count[i], name[i] = col[i - 1], count[i - 1], name[i - 1]
                start[row] += 1
        found += 1
    return multiplicity[:found], entry[:found]
