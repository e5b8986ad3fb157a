"""Schedules of nano-operations executed on the lanes of a machine, and what has to be measured to search one for it.

On a CPU a lane is a core. A share of half of two cores is one of them; operations are cut along tokens, requests or prompt rows.
"""

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from anabranch.serving.interference import Interference
from anabranch.serving.lanes import Lanes, Piece, Row
from anabranch.serving.layer_graph import NanoGraph
from anabranch.serving.llama_layers import KINDS, OPERATIONS, LayerWork
from anabranch.serving.overlap_schedule import NanoOperation, OverlapSchedule

Part = Callable[[float, float], object]  # does the work between two fractions of an operation


def graph_pieces(
    graph: NanoGraph, works: Sequence[LayerWork], lanes: int, order: Sequence[float] | None = None
) -> list[Piece]:
    """All nano-operations of ``graph`` for every layer of ``works``: a lane takes the next one in turn when it comes free.

    Args:
        order: a number for each node by which they are taken, such as the starts of a searched schedule; nodes keep what they
            depend on before them. As in the graph without.

    Raises:
        ValueError: a node that starts before one it needs, operations the layers do not have (collectives), other batches.
    """
    for node in graph.nodes:
        if node.operation not in OPERATIONS:
            raise ValueError(f"the layers have {', '.join(OPERATIONS)}, got {node.operation}: leave out collectives")
    for work in works:
        if graph.layer.batch != work.batch.tokens or graph.layer.decode_tokens != work.batch.decodes:
            raise ValueError(
                f"the graph is for {graph.layer.decode_tokens} decoding of {graph.layer.batch} tokens, the layers have "
                f"{work.batch.decodes} of {work.batch.tokens}"
            )
    n = len(graph.nodes)
    turn = sorted(range(n), key=lambda i: (float(i) if order is None else order[i], i))
    place = {node: at for at, node in enumerate(turn)}
    pieces: list[Piece] = []
    load = [0.0] * lanes
    for layer, work in enumerate(works):
        for i in turn:
            after = [(layer - lag) * n + place[j] for j, k, lag in graph.edges if k == i and layer - lag >= 0]
            node = graph.nodes[i]
            lane = load.index(min(load))
            load[lane] += node.seconds
            pieces.append(Piece(lane, _call(work, node.operation, node.start, node.end), tuple(after), node.operation))
    return pieces


def overlap_pieces(
    schedule: OverlapSchedule,
    interference: Interference,
    first: Sequence[LayerWork],
    second: Sequence[LayerWork],
    lanes: int,
) -> list[Piece]:
    """A two-lane schedule for two nano-batches, period after period, one for each layer.

    In every segment the first nano-batch has ``share * lanes`` of the lanes (whole ones) and the second the others; what it does
    there is its speed times the time. The last segment of an operation takes what is left.

    Raises:
        ValueError: a schedule of other than two lanes, lists of layers that differ in length, other operations than the
            schedule's, a share that is no whole number of lanes.
    """
    if len(schedule.lanes) != 2:
        raise ValueError(f"the schedule has {len(schedule.lanes)} lanes: expected two, one for each nano-batch")
    if len(first) != len(second):
        raise ValueError(f"first has {len(first)} layers and second {len(second)}: expected as many")
    for lane in schedule.lanes:
        if [one.name for one in lane] != list(OPERATIONS):
            raise ValueError(f"the schedule has {', '.join(o.name for o in lane)}: expected {', '.join(OPERATIONS)}")
    streams = [
        _Stream(works, [one.seconds for one in lane])
        for works, lane in zip((first, second), schedule.lanes, strict=True)
    ]
    pieces: list[Piece] = []
    for _ in first:
        for segment in schedule.segments:
            mine = segment.shares[0] * lanes
            if abs(mine - round(mine)) > 1e-9:
                raise ValueError(f"a segment has share {segment.shares[0]}: expected whole numbers of {lanes} lanes")
            split = round(mine)
            for stream, index, share, where in zip(
                streams, segment.at, segment.shares, (range(split), range(split, lanes)), strict=True
            ):
                if share > 0:
                    kind = schedule.lanes[0][index].kind
                    stream.advance(index, segment.seconds * float(interference(kind, share)), where, pieces)
    for stream in streams:
        stream.finish(range(lanes), pieces)
    return pieces


class _Stream:
    """A nano-batch on its way through the layers."""

    def __init__(self, works: Sequence[LayerWork], seconds: Sequence[float]) -> None:
        self.works, self.seconds = works, seconds
        self.at, self.operation, self.done = 0, 0, 0.0  # layer, operation, fraction of it
        self.before: tuple[int, ...] = ()
        self.now: list[int] = []

    def advance(self, index: int, work_s: float, lanes: Sequence[int], pieces: list[Piece]) -> None:
        while self.at < len(self.works) and self.operation != index:
            # The segments before have rounded the operation down: end it here.
            self._cut(1.0, lanes, pieces)
        if self.at == len(self.works):
            return
        whole = self.seconds[index]
        to = min(1.0, self.done + work_s / whole) if whole else 1.0
        self._cut(1.0 if to > 1 - 1e-6 else to, lanes, pieces)

    def finish(self, lanes: Sequence[int], pieces: list[Piece]) -> None:
        while self.at < len(self.works):
            self._cut(1.0, lanes, pieces)

    def _cut(self, to: float, lanes: Sequence[int], pieces: list[Piece]) -> None:
        name, work = OPERATIONS[self.operation], self.works[self.at]
        low, high = work.span(name)
        start, end = low + round(self.done * (high - low)), low + round(to * (high - low))
        edges = [start + (end - start) * k // len(lanes) for k in range(len(lanes) + 1)]
        for k, lane in enumerate(lanes):
            if edges[k] < edges[k + 1]:
                self.now.append(len(pieces))
                pieces.append(Piece(lane, _call(work, name, edges[k], edges[k + 1]), self.before, name))
        self.done = to
        if to >= 1.0:
            if self.now:
                self.before, self.now = tuple(self.now), []
            self.done, self.operation = 0.0, self.operation + 1
            if self.operation == len(OPERATIONS):
                self.operation, self.at = 0, self.at + 1


def even_pieces(works: Sequence[LayerWork], lanes: int) -> list[Piece]:
    """Every operation on all lanes at once, one operation after the other: the sequence on lanes."""
    stream = _Stream(works, [1.0] * len(OPERATIONS))
    pieces: list[Piece] = []
    stream.finish(range(lanes), pieces)
    return pieces


def _call(work: LayerWork, name: str, start: int, end: int) -> Callable[[], None]:
    return lambda: work.run(name, start, end)


@dataclass(frozen=True)
class MeasuredInterference:
    """Seconds of each kind of work alone on the lanes and beside the other kinds, and the table that follows.

    Attributes:
        alone_s: of each kind on 1, 2, ... all lanes.
        beside_s: of each kind on 1, 2, ... all but one lanes, the slowest beside another kind on the rest.
    """

    table: Interference
    alone_s: Mapping[str, tuple[float, ...]]
    beside_s: Mapping[str, tuple[float, ...]]


def measure_interference(lanes: Lanes, kinds: Mapping[str, Part], *, repeats: int = 5) -> MeasuredInterference:
    """Run each kind on some lanes while another kind keeps the rest busy: what is left of its speed on all lanes.

    A share of i of n lanes; medians of ``repeats``; made monotone. What falls is pooled (:meth:`Interference.monotone`).

    Args:
        kinds: for each kind a function that does the part of a fixed work between two fractions.

    Raises:
        ValueError: fewer than two lanes or kinds, no repeats.
    """
    if lanes.count < 2 or len(kinds) < 2 or repeats < 1:
        raise ValueError(
            f"lanes={lanes.count}, kinds={list(kinds)}, repeats={repeats}: expected at least two, two and one"
        )
    alone, beside, points = {}, {}, {}
    for kind, part in kinds.items():
        times = [
            statistics.median(_seconds(lanes, _shared(part, many)) for _ in range(repeats))
            for many in range(1, lanes.count + 1)
        ]
        slow = []
        for many in range(1, lanes.count):
            with_others = [
                statistics.median(_beside(lanes, part, many, other) for _ in range(repeats))
                for name, other in kinds.items() if name != kind
            ]  # fmt: skip
            slow.append(max(with_others))
        alone[kind], beside[kind] = tuple(times), tuple(slow)
        points[kind] = [((i + 1) / lanes.count, times[-1] / seconds) for i, seconds in enumerate(slow)]
    return MeasuredInterference(Interference.monotone(points), alone, beside)


def measure_operations(works: Sequence[LayerWork], lanes: Lanes, *, repeats: int = 5) -> tuple[NanoOperation, ...]:
    """Seconds of each operation of a layer on all lanes, alone: medians over layers and repeats."""
    found: dict[str, list[float]] = {name: [] for name in OPERATIONS}
    for _ in range(repeats):
        rows: list[tuple[Piece, Row]] = []
        pieces = even_pieces(works, lanes.count)
        rows = list(zip(pieces, lanes.run(pieces), strict=True))
        groups: dict[tuple[int, ...], list[Row]] = {}
        names: dict[tuple[int, ...], str] = {}
        last = 0.0
        for piece, row in rows:
            groups.setdefault(piece.after, []).append(row)
            names[piece.after] = piece.kind
        for key, group in groups.items():  # in order of execution; an operation takes until its last piece has ended
            end = max(row[2] for row in group)
            found[names[key]].append(end - last)
            last = end
    return tuple(
        NanoOperation(name, KINDS[name], statistics.median(times) if times else 0.0) for name, times in found.items()
    )


def _seconds(lanes: Lanes, pieces: Sequence[Piece]) -> float:
    start = time.perf_counter()
    lanes.run(pieces)
    return time.perf_counter() - start


def _shared(part: Part, many: int) -> list[Piece]:
    return [Piece(i, lambda i=i: part(i / many, (i + 1) / many)) for i in range(many)]  # type: ignore[misc]


def _beside(lanes: Lanes, part: Part, many: int, other: Part) -> float:
    """Seconds of ``part`` on the first lanes while ``other`` runs again and again on the rest."""
    rest, ended, running = lanes.count - many, threading.Event(), threading.Barrier(lanes.count)
    left, guard, times = [many], threading.Lock(), []

    def measured(i: int) -> None:
        running.wait()
        start = time.perf_counter()
        part(i / many, (i + 1) / many)
        with guard:
            times.append(time.perf_counter() - start)
            left[0] -= 1
            if not left[0]:
                ended.set()

    def busy(i: int) -> None:
        running.wait()
        while not ended.is_set():
            other(i / rest, (i + 1) / rest)

    pieces = [Piece(i, lambda i=i: measured(i)) for i in range(many)]  # type: ignore[misc]
    pieces += [Piece(many + i, lambda i=i: busy(i)) for i in range(rest)]  # type: ignore[misc]
    lanes.run(pieces)
    return max(times)
