"""Two nano-batches that run through a layer at the same time: the periodic schedule with the shortest period, with a proof.

NanoFlow (Zhu et al., 2408.12757) searches orders and constant shares by a heuristic two-stage programme. Here (ours) two lanes,
each a nano-batch in its cyclic chain of operations, share the machine; shares may change while operations run (a matrix product
is cut along its columns, attention along its requests: no weight is read twice). A schedule is a staircase in the grid
(operation of the first lane) x (operation of the second): one mixed-integer programme for each operation at which the second
lane may stand when the first begins its layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import coo_array

from anabranch.serving.interference import Interference
from anabranch.serving.overlap_schedule import NanoOperation, OverlapSchedule, Segment

Progress = Callable[[int, int, dict[str, float]], None]
_LEVELS = tuple(i / 10 for i in range(11))


def resource_bound(operations: Sequence[NanoOperation], interference: Interference) -> float:
    """Least seconds of the whole machine that the operations cost, however they overlap: each at its cheapest share."""
    return sum(one.seconds * min(1.0, interference.cheapest(one.kind)) for one in operations)


def search_overlap(
    first: Sequence[NanoOperation],
    second: Sequence[NanoOperation],
    interference: Interference,
    *,
    levels: Sequence[float] = _LEVELS,
    gap: float = 0.002,
    time_limit_s: float = 60.0,
    progress: Progress | None = None,
) -> OverlapSchedule:
    """The best periodic schedule of two lanes over the shares ``levels``.

    One programme of ``n (m + 1)`` binaries and as many times ``len(levels)`` numbers for each of the m operations of the second
    lane, by HiGHS. If the time runs out, the sequence (``status="fallback"``) or the best found so far.

    Raises:
        ValueError: empty lanes, levels outside [0, 1], a gap or a time limit that is not positive.
    """
    lanes = (tuple(first), tuple(second))
    if not all(lanes):
        raise ValueError("first and second need at least one operation each")
    if not all(0 <= level <= 1 for level in levels) or not levels:
        raise ValueError(f"levels must be in [0, 1], got {list(levels)}")
    for name, value in (("gap", gap), ("time_limit_s", time_limit_s)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")
    every = [*first, *second]
    sequential = sum(one.seconds for one in every)
    least = resource_bound(every, interference)
    best, bound, segments, timed_out = sequential, sequential, _one_by_one(lanes), False
    for start in range(len(second)):
        found = _staircase(lanes, start, interference, tuple(levels), gap, time_limit_s / len(second))
        timed_out |= found.timed_out
        bound = min(bound, found.bound)
        if found.segments is not None and found.period < best - 1e-12:
            best, segments = found.period, found.segments
        if progress is not None:
            progress(start + 1, len(second), {"period_s": best})
    overlaps = any(0 < segment.shares[0] < 1 for segment in segments)
    status = ("time limit" if overlaps else "fallback") if timed_out else "optimal"
    return OverlapSchedule(lanes, segments, best, min(bound, best), min(least, best), sequential, status)


def _one_by_one(lanes: tuple[tuple[NanoOperation, ...], ...]) -> tuple[Segment, ...]:
    first, second = lanes
    alone = [Segment((i, 0), (1.0, 0.0), one.seconds) for i, one in enumerate(first)]
    last = len(first) - 1
    return (*alone, *(Segment((last, j), (0.0, 1.0), one.seconds) for j, one in enumerate(second)))


@dataclass(frozen=True)
class _Found:
    period: float
    bound: float
    segments: tuple[Segment, ...] | None
    timed_out: bool


def _staircase(
    lanes: tuple[tuple[NanoOperation, ...], tuple[NanoOperation, ...]],
    start: int,
    interference: Interference,
    levels: tuple[float, ...],
    gap: float,
    time_limit_s: float,
) -> _Found:
    """The second lane stands at ``start`` when the first begins; its column there is split over both ends of the grid."""
    first, second = lanes
    n, m = len(first), len(second)
    columns = [(start + j) % m for j in range(m + 1)]
    cells, many = n * (m + 1), len(levels)
    size = cells * (1 + many)  # binaries of the cells, then seconds of cell and level
    most = sum(one.seconds for one in (*first, *second))
    row: list[int] = []
    column: list[int] = []
    value: list[float] = []
    low: list[float] = []
    high: list[float] = []

    def constrain(entries: list[tuple[int, float]], least: float, largest: float) -> None:
        for at, coefficient in entries:
            row.append(len(low))
            column.append(at)
            value.append(coefficient)
        low.append(least)
        high.append(largest)

    def cell(i: int, j: int) -> int:
        return i * (m + 1) + j

    def seconds(i: int, j: int, level: int) -> int:
        return cells + cell(i, j) * many + level

    constrain([(cell(0, 0), 1.0)], 1.0, 1.0)
    constrain([(cell(n - 1, m), 1.0)], 1.0, 1.0)
    for diagonal in range(n + m):
        constrain([(cell(i, diagonal - i), 1.0) for i in range(n) if 0 <= diagonal - i <= m], 1.0, 1.0)
    for i in range(n):
        for j in range(m + 1):
            if i or j:  # reached from the left or from above
                before = [(cell(a, b), -1.0) for a, b in ((i - 1, j), (i, j - 1)) if a >= 0 and b >= 0]
                constrain([(cell(i, j), 1.0), *before], -np.inf, 0.0)
            constrain([(seconds(i, j, k), 1.0) for k in range(many)] + [(cell(i, j), -most)], -np.inf, 0.0)
    for i, one in enumerate(first):
        speeds = interference(one.kind, np.array(levels))
        work = [(seconds(i, j, k), float(speeds[k])) for j in range(m + 1) for k in range(many)]
        constrain(work, one.seconds, one.seconds)
    for index, one in enumerate(second):
        speeds = interference(one.kind, 1 - np.array(levels))
        work = [
            (seconds(i, j, k), float(speeds[k]))
            for i in range(n) for j in range(m + 1) if columns[j] == index for k in range(many)
        ]  # fmt: skip
        constrain(work, one.seconds, one.seconds)
    cost = np.concatenate([np.zeros(cells), np.ones(cells * many)])
    matrix = coo_array((value, (row, column)), shape=(len(low), size)).tocsr()
    upper = np.concatenate([np.ones(cells), np.full(cells * many, np.inf)])
    done = milp(
        cost, constraints=LinearConstraint(matrix, low, high), bounds=(np.zeros(size), upper),
        integrality=np.concatenate([np.ones(cells), np.zeros(cells * many)]),
        options={"mip_rel_gap": gap, "time_limit": time_limit_s},
    )  # fmt: skip
    bound = float(done.mip_dual_bound) if done.mip_dual_bound is not None else 0.0
    if done.x is None:
        return _Found(np.inf, bound, None, True)
    segments, i, j = [], 0, 0
    while True:  # walk the staircase
        for k, level in enumerate(levels):
            if done.x[seconds(i, j, k)] > 1e-12:
                segments.append(Segment((i, columns[j]), (level, 1 - level), float(done.x[seconds(i, j, k)])))
        if (i, j) == (n - 1, m):
            break
        down = i + 1 < n and done.x[cell(i + 1, j)] > 0.5
        i, j = (i + 1, j) if down else (i, j + 1)
    return _Found(sum(s.seconds for s in segments), bound, tuple(segments), done.status == 1)
