"""A periodic schedule of nano-operations with constant shares: its rules, its replay with noise, its file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.serving.interference import Interference
from anabranch.serving.layer_graph import LayerGraph, LayerOperation, NanoGraph, NanoNode

STAGES = ("structure", "resources")


@dataclass(frozen=True)
class PeriodicSchedule:
    """Every ``period_s`` each nano-operation of a :class:`NanoGraph` starts once, for the next layer.

    Attributes:
        start_s: of the first layer; durations follow from the shares.
        share: of the machine, constant; 1 in the structure stage.
        stage: "structure" (operations of a kind exclude each other, nothing else interferes) or "resources" (shares add up to at
            most 1, speed by the interference).
        bound_s: proven least period. resource_bound_s: from resources and recurrence alone (:func:`period_bound`).
        status: "optimal" (in whole units of time), "time limit", or "fallback" (in sequence: nothing was found in time).
    """

    graph: NanoGraph
    interference: Interference
    stage: str
    start_s: tuple[float, ...]
    share: tuple[float, ...]
    period_s: float
    bound_s: float
    resource_bound_s: float
    status: str

    @property
    def duration_s(self) -> tuple[float, ...]:
        if self.stage == "structure":
            return tuple(node.seconds for node in self.graph.nodes)
        return tuple(
            node.seconds / float(self.interference(node.kind, share))
            for node, share in zip(self.graph.nodes, self.share, strict=True)
        )

    @property
    def makespan_s(self) -> float:
        """From the first start of a layer to its last end."""
        ends = [a + d for a, d in zip(self.start_s, self.duration_s, strict=True)]
        return max(ends) - min(self.start_s)

    @property
    def gap(self) -> float:
        return 1 - self.bound_s / self.period_s if self.period_s else 0.0

    @property
    def gain(self) -> float:
        """Throughput over that of the whole operations in sequence."""
        return self.graph.layer.sequential_s / self.period_s

    def validate(self, tolerance: float = 1e-6) -> None:
        """Check coverage of the batch, dependencies, and what the machine can do at one time.

        Raises:
            ValueError: the first rule that is broken.
        """
        slack = tolerance * max(self.period_s, 1e-9)
        layer = self.graph.layer
        for one in layer.operations:
            low, high = layer.span(one.part)
            parts = sorted((n.start, n.end) for n in self.graph.nodes if n.operation == one.name)
            at = low
            for a, b in parts:
                if a != at or b <= a:
                    raise ValueError(f"{one.name} has tokens {parts}: they do not cover [{low}, {high}) once")
                at = b
            if at != high:
                raise ValueError(f"{one.name} has tokens {parts}: they do not cover [{low}, {high}) once")
        lasts = self.duration_s
        for i, j, lag in self.graph.edges:
            if self.start_s[j] + lag * self.period_s < self.start_s[i] + lasts[i] - slack:
                raise ValueError(f"{_name(self.graph.nodes[j])} starts before {_name(self.graph.nodes[i])} has ended")
        for node, last in zip(self.graph.nodes, lasts, strict=True):
            if last > self.period_s + slack:
                raise ValueError(f"{_name(node)} takes {last} s, longer than the period: it would meet itself")
        for begin, end, active in self._moments(lasts):
            if end - begin <= slack:
                continue
            if self.stage == "structure":
                kinds = [self.graph.nodes[i].kind for i in active]
                if len(set(kinds)) < len(kinds):
                    raise ValueError(f"at {begin} s two operations of one kind overlap: {self._names(active)}")
            elif sum(self.share[i] for i in active) > 1 + 1e-9:
                raise ValueError(f"at {begin} s the shares of {self._names(active)} add up to more than 1")

    def utilisation(self) -> list[dict[str, float]]:
        """Over one period ``start_s, end_s`` and, for each kind, the speed at which it runs then (1: as if alone)."""
        kinds = sorted({node.kind for node in self.graph.nodes})
        rows = []
        for begin, end, active in self._moments(self.duration_s):
            row = {"start_s": begin, "end_s": end, **dict.fromkeys(kinds, 0.0)}
            for i in active:
                node = self.graph.nodes[i]
                row[node.kind] += node.seconds / self.duration_s[i]
            rows.append(row)
        return rows

    def lanes(self) -> list[tuple[str, float, float, str]]:
        """Rows ``(lane, start_s, end_s, kind)`` of a layer, a lane for each operation."""
        return [
            (node.operation, start, start + last, node.kind)
            for node, start, last in zip(self.graph.nodes, self.start_s, self.duration_s, strict=True)
        ]

    def simulate(
        self, layers: int = 64, *, jitter: float = 0.0, generator: np.random.Generator | None = None
    ) -> np.ndarray:
        """Seconds between the ends of following layers when every duration varies by ``1 + jitter * normal`` (at least 0).

        Operations keep the planned order: each waits for its dependencies, for its own last turn, and for all whose planned end
        is not after its planned start. Without jitter every entry is the period.

        Returns:
            ``layers - 1`` seconds.

        Raises:
            ValueError: jitter without a generator, or negative; fewer than 2 layers.
        """
        if jitter < 0 or (jitter > 0 and generator is None):
            raise ValueError(f"jitter={jitter}: expected >= 0, and a generator where it is above 0")
        if layers < 2:
            raise ValueError(f"layers must be >= 2, got {layers}")
        n, lasts = len(self.graph.nodes), np.array(self.duration_s)
        wanted, layers = (
            layers,
            layers + ceil(self.makespan_s / self.period_s) + 1,
        )  # the last ones miss what overtakes them
        start, slack = np.array(self.start_s) - min(self.start_s), 1e-9 * self.period_s
        # Everything that ends before i starts within the period before it keeps the resources as planned.
        before = []
        for i in range(n):
            found = [(j, 1) for j in range(n) if j == i]
            for j in range(n):
                lag = int(np.ceil((start[j] + lasts[j] - start[i] - slack) / self.period_s))
                found.append((j, lag))
            before.append(found)
        ends = np.full((layers, n), -np.inf)
        order = sorted((layer * self.period_s + start[i], layer, i) for layer in range(layers) for i in range(n))
        for planned, layer, i in order:
            ready = planned if layer == 0 else start[i]
            for j, lag in before[i]:
                if 0 <= layer - lag < layers:
                    ready = max(ready, ends[layer - lag, j])
            noise = 1.0 if generator is None or not jitter else max(0.0, 1 + jitter * generator.standard_normal())
            ends[layer, i] = ready + lasts[i] * noise
        done = ends.max(axis=1)
        return np.diff(done[:wanted])

    def to_json(self, path: str | Path | None = None) -> str:
        """One JSON object: the layer, and nodes ``(op, start_token, end_token, start_ms, duration_ms, share)``."""
        nodes = [
            {"op": node.operation, "start_token": node.start, "end_token": node.end, "alone_ms": 1e3 * node.seconds,
             "start_ms": 1e3 * start, "duration_ms": 1e3 * last, "share": share}
            for node, start, last, share in zip(
                self.graph.nodes, self.start_s, self.duration_s, self.share, strict=True
            )
        ]  # fmt: skip
        layer = self.graph.layer
        text = json.dumps({
            "stage": self.stage, "status": self.status, "period_ms": 1e3 * self.period_s, "bound_ms": 1e3 * self.bound_s,
            "resource_bound_ms": 1e3 * self.resource_bound_s,
            "interference": {kind: list(map(list, pairs)) for kind, pairs in self.interference.points.items()},
            "layer": {**asdict(layer)}, "nodes": nodes, "edges": [list(edge) for edge in self.graph.edges],
        }, indent=1)  # fmt: skip
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> "PeriodicSchedule":
        """From the text of :meth:`to_json`, or from a file of it; validated.

        Raises:
            ValueError: a field that is missing, or a schedule that breaks a rule.
        """
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        try:
            found: dict[str, Any] = json.loads(text)
            layer = LayerGraph(
                tuple(
                    LayerOperation(**_with_tuples(one))
                    for one in found["layer"]["operations"]
                ),
                found["layer"]["decode_tokens"], found["layer"]["prefill_tokens"], tuple(found["layer"]["prompts"]),
            )  # fmt: skip
            kinds = {one.name: one.kind for one in layer.operations}
            nodes = tuple(
                NanoNode(one["op"], kinds[one["op"]], one["start_token"], one["end_token"], one["alone_ms"] / 1e3)
                for one in found["nodes"]
            )
            edges = tuple((int(i), int(j), int(lag)) for i, j, lag in found["edges"])
            table = Interference({k: [(float(r), float(p)) for r, p in v] for k, v in found["interference"].items()})
            schedule = cls(
                NanoGraph(layer, nodes, edges), table, found["stage"], tuple(one["start_ms"] / 1e3 for one in found["nodes"]),
                tuple(one["share"] for one in found["nodes"]), found["period_ms"] / 1e3, found["bound_ms"] / 1e3,
                found["resource_bound_ms"] / 1e3, found["status"],
            )  # fmt: skip
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"the file is no schedule: {type(error).__name__} {error}") from error
        schedule.validate()
        return schedule

    def _moments(self, lasts: Sequence[float]) -> list[tuple[float, float, list[int]]]:
        """The period cut where something starts or ends, and what runs in each part."""
        period = self.period_s
        marks = {0.0, period}
        for start, last in zip(self.start_s, lasts, strict=True):
            marks |= {start % period, (start + last) % period}
        edges = sorted(marks)
        found = []
        for begin, end in pairwise(edges):
            middle = (begin + end) / 2
            active = [
                i
                for i, (start, last) in enumerate(zip(self.start_s, lasts, strict=True))
                if (middle - start) % period < last
            ]
            found.append((begin, end, active))
        return found

    def _names(self, active: Sequence[int]) -> str:
        return ", ".join(_name(self.graph.nodes[i]) for i in active)


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _name(node: NanoNode) -> str:
    return f"{node.operation}[{node.start}:{node.end}]"


def sequential(graph: NanoGraph, interference: Interference) -> PeriodicSchedule:
    """All nano-operations one after the other, the whole machine to each: nano-batches without overlap."""
    starts, at = [], 0.0
    for node in graph.nodes:
        starts.append(at)
        at += node.seconds
    ones = (1.0,) * len(starts)
    return PeriodicSchedule(graph, interference, "resources", tuple(starts), ones, at, 0.0, 0.0, "fallback")
