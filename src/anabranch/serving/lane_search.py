"""Any number of nano-batches that run through a layer at the same time: a short period by local search, with a proven bound.

NanoFlow (Zhu et al., 2408.12757) overlaps three kinds of operations; two lanes run two at once. The formulation is ours: lanes
advance one operation at a time, so a period is a closed path through the grid of their operations, a word in which each lane's
letter stands once for each of its operations. What runs at each place of the path, how long and in which shares, is a linear
programme. The search exchanges neighbouring letters.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from jaxtyping import Float64
from scipy.optimize import OptimizeResult, linprog
from scipy.spatial import ConvexHull

from anabranch.serving.interference import Interference
from anabranch.serving.overlap import resource_bound
from anabranch.serving.overlap_schedule import NanoOperation, OverlapSchedule, Segment

Progress = Callable[[int, int, dict[str, float]], None]
_Place = tuple[int, ...]  # the operation at which each lane is


@dataclass(frozen=True, eq=False)
class Modes:
    """Ways to share the machine between operations of some kinds, without those that others make up for.

    Attributes:
        shares, speeds: ``[modes, lanes]``.
    """

    shares: Float64[np.ndarray, "modes lanes"]
    speeds: Float64[np.ndarray, "modes lanes"]


def sharing_modes(kinds: Sequence[str], interference: Interference) -> Modes:
    """The corners of all that operations of these kinds can do at once, shares of any size.

    Speeds are straight between the points of the table, so at a corner all shares but one are at points, and that one is what
    they leave. Waiting for another mode in turn gives everything between corners.
    """
    points = [[share for share, _ in interference.points[kind]] for kind in kinds]
    found: set[tuple[float, ...]] = set()
    for rest in range(len(kinds)):
        for others in product(*(points[k] for k in range(len(kinds)) if k != rest)):
            left = 1 - sum(others)
            if left >= -1e-9:
                found.add(tuple(round(share, 12) for share in (*others[:rest], max(0.0, left), *others[rest:])))
    shares = np.array(sorted(found), np.float64)
    speeds = np.stack([interference(kind, shares[:, k]) for k, kind in enumerate(kinds)], 1)
    corners = _corners(speeds)
    return Modes(shares[corners], speeds[corners])


def _corners(speeds: Float64[np.ndarray, "modes lanes"]) -> list[int]:
    """Rows that are corners of the hull of all rows and the origin, and that no row is at least as fast in everything."""
    hull = range(len(speeds)) if speeds.shape[1] == 1 else ConvexHull(np.vstack([speeds, 0 * speeds[:1]])).vertices
    kept: list[int] = []
    for i in sorted(int(i) for i in hull if i < len(speeds)):
        better = (speeds >= speeds[i] - 1e-12).all(1) & (speeds > speeds[i] + 1e-12).any(1)
        if not better.any() and not any(np.abs(speeds[i] - speeds[j]).max() <= 1e-12 for j in kept):
            kept.append(i)
    return kept


def lanes_bound(lanes: Sequence[Sequence[NanoOperation]], interference: Interference) -> float:
    """Least period of so many lanes, whatever order they keep: what can run at once is shared, and each lane does one thing at a
    time. A linear programme over the modes of every combination of kinds; at least :func:`resource_bound`.

    Raises:
        ValueError: no lanes, or an empty one.
    """
    _check(lanes)
    work: dict[tuple[int, str], float] = {}
    for k, lane in enumerate(lanes):
        for one in lane:
            work[k, one.kind] = work.get((k, one.kind), 0.0) + one.seconds
    row = {key: i for i, key in enumerate(work)}
    columns = []
    for kinds in product(*(sorted({one.kind for one in lane}) for lane in lanes)):
        speeds = sharing_modes(kinds, interference).speeds
        block = np.zeros((len(speeds), len(row)))
        for k, kind in enumerate(kinds):
            block[:, row[k, kind]] = speeds[:, k]
        columns.append(block)
    least = float(_least_time(np.vstack(columns), np.array(list(work.values()))).fun)
    return max(least, resource_bound([one for lane in lanes for one in lane], interference))  # equal but for rounding


def search_lanes(
    lanes: Sequence[Sequence[NanoOperation]],
    interference: Interference,
    *,
    generator: np.random.Generator,
    gap: float = 0.002,
    time_limit_s: float = 60.0,
    most_programmes: int = 20_000,
    progress: Progress | None = None,
) -> OverlapSchedule:
    """A short period of two lanes or more, by restarts of a local search; stops within ``gap`` of :func:`lanes_bound`.

    For two lanes :func:`search_overlap` proves more. Cost: some milliseconds for each linear programme, of which there is one for
    each place of the path whose exchange the dual prices do not rule out.

    Args:
        most_programmes: to solve; a limit that does not depend on how fast the machine is.

    Returns:
        a schedule; ``status`` is "optimal" within the gap, else "time limit", or "fallback" where no overlap was found.

    Raises:
        ValueError: fewer than two lanes, an empty one, a limit that is not positive.
    """
    _check(lanes)
    if len(lanes) < 2:
        raise ValueError(f"lanes: expected at least 2, got {len(lanes)}")
    for name, value in (("gap", gap), ("time_limit_s", time_limit_s), ("most_programmes", most_programmes)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")
    stop = time.monotonic() + time_limit_s
    every = [one for lane in lanes for one in lane]
    bound, sequential = lanes_bound(lanes, interference), sum(one.seconds for one in every)
    search = _Search(tuple(tuple(lane) for lane in lanes), interference, generator)
    best: tuple[float, list[int], _Place] | None = None
    enough = bound / (1 - gap)

    def over() -> bool:
        return search.programmes >= most_programmes or time.monotonic() >= stop

    while not over() and not (best is not None and best[0] <= enough):
        if best is None or generator.random() < 0.3:
            word, start = search.even_word()
        else:
            word, start = search.shaken(best[1], best[2])
        word, start, value = search.descend(word, start, over, enough)
        if best is None or value < best[0] * (1 - 1e-9):
            best = value, word, start
        if progress is not None:
            progress(min(search.programmes, most_programmes), most_programmes, {"period_s": best[0]})
    if best is None or best[0] >= sequential * (1 - 1e-9):
        done = best is not None and bound >= sequential * (1 - gap)
        segments, period, status = search.one_by_one(), sequential, "optimal" if done else "fallback"
    else:
        segments = search.segments(best[1], best[2])
        period = sum(one.seconds for one in segments)
        status = "optimal" if period <= enough * (1 + 1e-9) else "time limit"
    least = resource_bound(every, interference)
    return OverlapSchedule(search.lanes, segments, period, min(bound, period), min(least, period), sequential, status)


def _check(lanes: Sequence[Sequence[NanoOperation]]) -> None:
    if not lanes or not all(lanes):
        raise ValueError("lanes: expected at least one operation in each")


def _least_time(speeds: Float64[np.ndarray, "columns rows"], work: Float64[np.ndarray, " rows"]) -> OptimizeResult:
    return linprog(np.ones(len(speeds)), A_ub=-speeds.T, b_ub=-work, method="highs")


@dataclass(eq=False)
class _Search:
    """A word and the places at which it starts describe a closed path: before each letter the lanes are at one place."""

    lanes: tuple[tuple[NanoOperation, ...], ...]
    interference: Interference
    generator: np.random.Generator
    programmes: int = 0
    _modes: dict[tuple[str, ...], Modes] = field(default_factory=dict)
    _columns: dict[_Place, Float64[np.ndarray, "modes operations"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first = np.concatenate([[0], np.cumsum([len(lane) for lane in self.lanes])])
        self.work = np.array([one.seconds for lane in self.lanes for one in lane])

    def modes(self, place: _Place) -> Modes:
        kinds = tuple(lane[i].kind for lane, i in zip(self.lanes, place, strict=True))
        if kinds not in self._modes:
            self._modes[kinds] = sharing_modes(kinds, self.interference)
        return self._modes[kinds]

    def columns(self, place: _Place) -> Float64[np.ndarray, "modes operations"]:
        """Speeds of every operation in each mode of a place."""
        if place not in self._columns:
            speeds = self.modes(place).speeds
            block = np.zeros((len(speeds), len(self.work)))
            for k, i in enumerate(place):
                block[:, self.first[k] + i] = speeds[:, k]
            self._columns[place] = block
        return self._columns[place]

    def path(self, word: Sequence[int], start: _Place) -> list[_Place]:
        at, found = list(start), []
        for letter in word:
            found.append(tuple(at))
            at[letter] = (at[letter] + 1) % len(self.lanes[letter])
        return found

    def solve(self, places: Sequence[_Place]) -> OptimizeResult:
        self.programmes += 1
        return _least_time(np.vstack([self.columns(place) for place in places]), self.work)

    def even_word(self) -> tuple[list[int], _Place]:
        """Lanes at random phases that advance at even speed, each by its seconds alone."""
        start = tuple(int(self.generator.integers(len(lane))) for lane in self.lanes)
        events = []
        for k, (lane, at) in enumerate(zip(self.lanes, start, strict=True)):
            seconds = np.array([lane[(at + i) % len(lane)].seconds for i in range(len(lane))])
            ends = np.cumsum(seconds) / max(float(seconds.sum()), 1e-300)
            events += [(float(end), float(self.generator.random()), k) for end in ends]
        return [k for _, _, k in sorted(events)], start

    def shaken(self, word: Sequence[int], start: _Place) -> tuple[list[int], _Place]:
        """Letters moved by a few places, here and there."""
        word = list(word)
        for _ in range(int(self.generator.integers(2, 7))):
            word, start = self.turned(word, start, int(self.generator.integers(len(word))))
            for _ in range(int(self.generator.integers(1, 5))):
                i = int(self.generator.integers(len(word) - 1))
                word[i], word[i + 1] = word[i + 1], word[i]
        return word, start

    def turned(self, word: Sequence[int], start: _Place, by: int) -> tuple[list[int], _Place]:
        """The same closed path, begun ``by`` letters later."""
        at = list(start)
        for letter in word[:by]:
            at[letter] = (at[letter] + 1) % len(self.lanes[letter])
        return [*word[by:], *word[:by]], tuple(at)

    def descend(
        self, word: list[int], start: _Place, over: Callable[[], bool], enough: float
    ) -> tuple[list[int], _Place, float]:
        """Exchange neighbouring letters while that shortens the period.

        An exchange replaces one place of the path. At the dual prices of the programme, a place whose modes all earn no more than
        the second they take cannot shorten it.
        """
        found = self.solve(self.path(word, start))
        improved = True
        while improved:
            improved = False
            prices = -found.ineqlin.marginals
            for turn in self.generator.permutation(len(word)).tolist():
                new, begin = self.turned(word, start, turn)
                if new[0] == new[1]:
                    continue
                new[0], new[1] = new[1], new[0]
                places = self.path(new, begin)
                if float((self.columns(places[1]) @ prices).max()) <= 1 + 1e-9:
                    continue
                if over():
                    return word, start, float(found.fun)
                other = self.solve(places)
                if other.fun < found.fun * (1 - 1e-9):
                    word, start, found, improved = new, begin, other, True
                    prices = -found.ineqlin.marginals
                    if found.fun <= enough:
                        return word, start, float(found.fun)
        return word, start, float(found.fun)

    def segments(self, word: Sequence[int], start: _Place) -> tuple[Segment, ...]:
        """The schedule of a path, from where the first lane begins its layer; no operation runs longer than its work asks for."""
        begin = next(
            turn + 1 for turn, place in enumerate(self.path(word, start))
            if word[turn] == 0 and place[0] == len(self.lanes[0]) - 1
        )  # fmt: skip
        word, start = self.turned(word, start, begin)
        places = self.path(word, start)
        taken = self.solve(places).x
        found: list[Segment] = []
        at = 0
        for place in places:
            modes = self.modes(place)
            for shares, seconds in zip(modes.shares.tolist(), taken[at : at + len(modes.shares)], strict=True):
                if seconds > 1e-12 * self.work.sum():
                    found.append(Segment(place, tuple(shares), float(seconds)))
            at += len(modes.shares)
        for k, lane in enumerate(self.lanes):
            for i, one in enumerate(lane):
                found = self._trimmed(found, k, i, one)
        return tuple(found)

    def _trimmed(self, segments: list[Segment], k: int, i: int, one: NanoOperation) -> list[Segment]:
        """Let operation ``i`` of lane ``k`` wait where it has done its work."""
        left, found = one.seconds, []
        for segment in segments:
            if segment.at[k] != i or segment.shares[k] <= 0:
                found.append(segment)
                continue
            speed = float(self.interference(one.kind, segment.shares[k]))
            needed = min(segment.seconds, max(0.0, left) / speed)
            left -= needed * speed
            waiting = tuple(0.0 if lane == k else share for lane, share in enumerate(segment.shares))
            parts = ((segment.shares, needed), (waiting, segment.seconds - needed))
            found += [Segment(segment.at, shares, s) for shares, s in parts if s > 1e-12 * self.work.sum()]
        return found

    def one_by_one(self) -> tuple[Segment, ...]:
        """Without overlap: each lane's layer in turn, while the others stand at the ends of theirs."""
        found: list[Segment] = []
        for k, lane in enumerate(self.lanes):
            for i, one in enumerate(lane):
                at = tuple(i if m == k else len(other) - 1 if m < k else 0 for m, other in enumerate(self.lanes))
                found.append(Segment(at, tuple(float(m == k) for m in range(len(self.lanes))), one.seconds))
        return tuple(found)
