"""Leaf-level matchings laid on a line and cut at the spines (Konig and McNaughton).

Inter-leaf flows of one size are the edges of a bipartite multigraph source leaf -> destination leaf of maximum degree D.
Padded to degree D it falls apart into D perfect matchings, which lie on the line [0, D), one unit each. With D = qS + r,
spine k takes the units [kq, (k+1)q) of the first qS, and the stretch [k r/S, (k+1) r/S) of the last r. A stretch of
length x puts at most x flows on each leaf and side, so every leaf link carries at most D/S flows: the optimum.

Only flows on the last r units are cut, and leaves with fewer than D flows need not have any there: a maximum flow first
moves as many flows as possible to the whole units.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow

from anabranch.fabric import _kernels_konig

# Above so many flows per pair of leaves, matchings of the count matrix are cheaper than colors of the single flows.
_FLOWS_PER_PAIR = 4


@dataclass(frozen=True)
class Runs:
    """Where flows lie on the line: ``length`` flows from leaf ``a`` to leaf ``b`` on the units from ``start`` on."""

    a: np.ndarray
    b: np.ndarray
    start: np.ndarray
    length: np.ndarray


def degree_of(a: np.ndarray, b: np.ndarray, n_leaves: int) -> int:
    """The most flows that one leaf sends or receives."""
    return int(max(np.bincount(a, minlength=n_leaves).max(), np.bincount(b, minlength=n_leaves).max()))


def flow_positions(a: np.ndarray, b: np.ndarray, n_leaves: int, degree: int, spines: int) -> np.ndarray:
    """Unit of the line of each flow (leaf ``a[i]`` to leaf ``b[i] != a[i]``); at most one flow per leaf, side and unit."""
    pair = a.astype(np.int64) * n_leaves + b
    counts = _pair_counts(pair, n_leaves) if len(pair) > _FLOWS_PER_PAIR * n_leaves else None
    if counts is not None and len(pair) > _FLOWS_PER_PAIR * np.count_nonzero(counts):
        return _expand(matrix_runs(counts, degree, spines)[0], pair, n_leaves)
    position = _color_positions(a, b, n_leaves, degree, spines)
    whole = degree - degree % spines
    stays = position < whole
    if not 0 < whole < degree or stays.all():
        return position
    used, where = np.unique(pair, return_inverse=True)
    count = np.bincount(where)
    start = np.bincount(where[stays], minlength=len(used))
    grown = _most_whole(*np.divmod(used, n_leaves), count, start, n_leaves, whole)
    if (grown == start).all():
        return position
    order = np.argsort(where, kind="stable")
    rank = np.empty(len(pair), dtype=np.int64)
    rank[order] = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)
    stays = rank < grown[where]
    cut = ~stays
    position[stays] = _color_positions(a[stays], b[stays], n_leaves, whole, spines)
    position[cut] = whole + _color_positions(a[cut], b[cut], n_leaves, degree - whole, spines)
    return position


def _color_positions(a: np.ndarray, b: np.ndarray, n_leaves: int, degree: int, spines: int) -> np.ndarray:
    color = _color(a, b, n_leaves, degree)
    fullness = np.bincount(color, minlength=degree)
    matching, start, _ = _place(np.ones(degree, dtype=np.int64), fullness, degree, spines)
    place = np.empty(degree, dtype=np.int64)
    place[matching] = start
    return np.asarray(place[color])


def _most_whole(
    a: np.ndarray, b: np.ndarray, count: np.ndarray, start: np.ndarray, n_leaves: int, whole: int
) -> np.ndarray:
    """The most flows per pair (a, b) that can stay whole: at most ``whole`` per leaf and side, at most ``count`` per pair.

    A maximum flow on top of ``start``, which leaves at most degree - whole flows at every leaf; a flow that is augmented
    never takes one away from a leaf, so that bound stays.
    """
    leaf = np.arange(n_leaves)
    source, sink = 2 * n_leaves, 2 * n_leaves + 1
    room = [
        np.minimum(np.bincount(x, count, n_leaves), whole).astype(np.int64)
        - np.bincount(x, start, n_leaves).astype(int)
        for x in (a, b)
    ]
    tail = np.concatenate([np.full(n_leaves, source), a, n_leaves + b, n_leaves + leaf])
    head = np.concatenate([leaf, n_leaves + b, a, np.full(n_leaves, sink)])
    capacity = np.minimum(np.concatenate([room[0], count - start, start, room[1]]), 2**31 - 1).astype(np.int32)
    network = csr_matrix((capacity, (tail, head)), shape=(sink + 1, sink + 1))
    network.eliminate_zeros()
    flow = maximum_flow(network, source, sink).flow.tocsr()
    return np.asarray(start + np.asarray(flow[a, n_leaves + b]).ravel())


def _pair_counts(pair: np.ndarray, n_leaves: int) -> np.ndarray | None:
    """Flows per pair of leaves as a dense matrix, unless that is far larger than the flows."""
    if n_leaves * n_leaves > 4 * len(pair) + 4096:
        return None
    return np.bincount(pair, minlength=n_leaves * n_leaves).reshape(n_leaves, n_leaves)


def _color(a: np.ndarray, b: np.ndarray, n_leaves: int, degree: int) -> np.ndarray:
    """A matching for each edge of the multigraph, padded to ``degree`` after small leaves were put together."""
    sides = []
    for leaf in (a, b):
        counts = np.bincount(leaf, minlength=n_leaves)
        group, n = _kernels_konig.contract(counts, degree)
        sides.append((group[leaf].astype(np.int32), int(n)))
    n = max(sides[0][1], sides[1][1])
    padded = []
    for group, _ in sides:
        missing = degree - np.bincount(group, minlength=n)
        padded.append(np.concatenate([group, np.repeat(np.arange(n, dtype=np.int32), missing)]))
    return np.asarray(_kernels_konig.color_regular(padded[0], padded[1], n, degree)[: len(a)])


def matrix_runs(counts: np.ndarray, degree: int, spines: int) -> tuple[Runs, int]:
    """The line for a count matrix with zero diagonal, and the number of matchings that it took."""
    runs, matchings = _matrix_runs(counts, degree, spines)
    whole = degree - degree % spines
    if not 0 < whole < degree or (runs.start < whole).all():
        return runs, matchings
    rows, cols = np.nonzero(counts)
    stays = runs.start < whole
    kept = np.zeros_like(counts)
    np.add.at(kept, (runs.a[stays], runs.b[stays]), runs.length[stays])
    start = kept[rows, cols]
    grown = _most_whole(rows, cols, counts[rows, cols], start, len(counts), whole)
    if (grown == start).all():
        return runs, matchings
    kept[rows, cols] = grown
    first, more = _matrix_runs(kept, whole, spines)
    second, even_more = _matrix_runs(counts - kept, degree - whole, spines)
    joined = Runs(
        np.concatenate([first.a, second.a]),
        np.concatenate([first.b, second.b]),
        np.concatenate([first.start, whole + second.start]),
        np.concatenate([first.length, second.length]),
    )
    return joined, more + even_more


def _matrix_runs(counts: np.ndarray, degree: int, spines: int) -> tuple[Runs, int]:
    n = len(counts)
    rows, cols = np.nonzero(counts)
    values = counts[rows, cols]
    # Entries in the order of rotations (a, a + 1), (a, a + 2), ..., in which all-to-all needs no search; padding last.
    order = np.lexsort(((cols - rows - 1) % n, rows))
    spare_row, spare_col, spare = _north_west(degree - counts.sum(axis=1), degree - counts.sum(axis=0))
    all_rows = np.concatenate([rows[order], spare_row])
    behind = np.argsort(all_rows, kind="stable")
    all_cols = np.concatenate([cols[order], spare_col])[behind]
    all_values = np.concatenate([values[order], spare])[behind]
    real = np.concatenate([np.ones(len(rows), dtype=bool), np.zeros(len(spare), dtype=bool)])[behind]
    stop = np.cumsum(np.bincount(all_rows, minlength=n))
    start = np.concatenate([[0], stop[:-1]])
    multiplicity, entry = _kernels_konig.decompose_matrix(n, start, stop, all_cols, all_values)
    fullness = real[entry].sum(axis=1)
    matching, begin, length = _place(multiplicity, fullness, degree, spines)
    used = entry[matching]
    piece, row = np.nonzero(real[used])
    return Runs(row, all_cols[used[piece, row]], begin[piece], length[piece]), len(multiplicity)


def _north_west(row_room: np.ndarray, col_room: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most 2n - 1 entries with the given row and column sums: both laid on one line, cut at either's ends."""
    ends = np.union1d(np.cumsum(row_room), np.cumsum(col_room))
    ends = ends[ends > 0]
    value = np.diff(ends, prepend=0)
    row = np.searchsorted(np.cumsum(row_room), ends - 1, side="right")
    col = np.searchsorted(np.cumsum(col_room), ends - 1, side="right")
    return row, col, value


def _place(
    multiplicity: np.ndarray, fullness: np.ndarray, degree: int, spines: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order of the matchings on the line as runs (matching, start, length): the fullest stay whole, the emptiest are cut.

    Units of the last r = degree mod spines that are cut most often get the emptiest matchings.
    """
    order = np.argsort(-fullness, kind="stable")
    ends = np.cumsum(multiplicity[order])
    begins = ends - multiplicity[order]
    r = degree % spines
    whole = degree - r
    keep = begins < whole
    matching, start, length = order[keep], begins[keep], np.minimum(ends[keep], whole) - begins[keep]
    if r:
        tail = order[np.searchsorted(ends, np.arange(whole, degree), side="right")]
        unit = np.arange(r)
        cuts = -(-(unit + 1) * spines // r) - 1 - unit * spines // r
        matching = np.concatenate([matching, tail])
        start = np.concatenate([start, whole + np.argsort(cuts, kind="stable")])
        length = np.concatenate([length, np.ones(r, dtype=np.int64)])
    return matching, start, length


def _expand(runs: Runs, pair: np.ndarray, n_leaves: int) -> np.ndarray:
    """Deals the units of each pair of leaves to its flows, in their order."""
    run_pair = runs.a.astype(np.int64) * n_leaves + runs.b
    order = np.lexsort((runs.start, run_pair))
    length, start = runs.length[order], runs.start[order]
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    position = np.empty(len(pair), dtype=np.int64)
    position[np.argsort(pair, kind="stable")] = np.repeat(start, length) + within
    return position


def cut_units(position: np.ndarray, degree: int, spines: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pieces of flows that occupy one unit of the line each.

    Returns (flow, spine, low, high), ascending by flow: the piece is the part [low, high) / spines of its flow.
    """
    q, r = divmod(degree, spines)
    unit = position - q * spines
    whole = unit < 0
    if not r:
        return np.arange(len(position)), position // q, np.zeros_like(position), np.full_like(position, spines)
    first = np.where(whole, position // max(q, 1), unit * spines // r)
    last = np.where(whole, first, -(-(unit + 1) * spines // r) - 1)
    pieces = last - first + 1
    flow = np.repeat(np.arange(len(position)), pieces)
    spine = np.arange(len(flow)) - np.repeat(np.cumsum(pieces) - pieces - first, pieces)
    low = np.where(whole[flow], 0, np.maximum(spine * r - unit[flow] * spines, 0))
    high = np.where(whole[flow], spines, np.minimum((spine + 1) * r - unit[flow] * spines, spines))
    return flow, spine, low, high


def cut_runs(runs: Runs, degree: int, spines: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Shares (run, spine, units of 1/spines flow) of runs, and the number of pieces that their flows fall in."""
    q = degree // spines
    whole = np.flatnonzero(runs.start < q * spines)
    start, end = runs.start[whole], runs.start[whole] + runs.length[whole]
    first = start // max(q, 1)
    count = (end - 1) // max(q, 1) - first + 1
    run = np.repeat(whole, count)
    spine = np.arange(len(run)) - np.repeat(np.cumsum(count) - count - first, count)
    overlap = np.minimum(np.repeat(end, count), (spine + 1) * q) - np.maximum(np.repeat(start, count), spine * q)
    single = np.flatnonzero(runs.start >= q * spines)  # the last r units lie one by one
    flow, cut_spine, low, high = cut_units(runs.start[single], degree, spines)
    return (
        np.concatenate([run, single[flow]]),
        np.concatenate([spine, cut_spine]),
        np.concatenate([overlap * spines, high - low]),
        int(runs.length[whole].sum()) + len(flow),
    )


def part_of(size: np.ndarray, numerator: np.ndarray, denominator: int | np.ndarray) -> np.ndarray:
    """floor(size * numerator / denominator) for 0 <= numerator <= denominator, without overflow."""
    return np.asarray(size // denominator * numerator + size % denominator * numerator // denominator)
