"""A schedule of lanes that share the machine in changing shares: its rules, its replay with noise, its file."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.serving.interference import Interference


@dataclass(frozen=True)
class NanoOperation:
    """An operation of one nano-batch: ``seconds`` alone on the machine, ``kind`` of :class:`Interference`."""

    name: str
    kind: str
    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"seconds of {self.name} must be >= 0, got {self.seconds}")


@dataclass(frozen=True)
class Segment:
    """For ``seconds``, each lane is at one of its operations (``at``) with a share of the machine; one without a share waits."""

    at: tuple[int, ...]
    shares: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class OverlapSchedule:
    """A period of lanes that each take a nano-batch through its cyclic chain of operations.

    Attributes:
        period_s: of a layer of all nano-batches, in steady state.
        bound_s: proven least period of so many lanes. resource_bound_s: of any number of lanes.
        sequential_s: one operation after the other.
        status: "optimal" within the gap asked for, "time limit", or "fallback" (sequential: no overlap was found in time).
    """

    lanes: tuple[tuple[NanoOperation, ...], ...]
    segments: tuple[Segment, ...]
    period_s: float
    bound_s: float
    resource_bound_s: float
    sequential_s: float
    status: str

    @property
    def gap(self) -> float:
        return 1 - self.bound_s / self.period_s if self.period_s else 0.0

    @property
    def gain(self) -> float:
        """Throughput over that of the sequence."""
        return self.sequential_s / self.period_s if self.period_s else 1.0

    def validate(self, interference: Interference, tolerance: float = 1e-6) -> None:
        """Replay the segments: lanes advance in order, shares fit, every operation gets its work.

        Raises:
            ValueError: the first rule that is broken.
        """
        done = [np.zeros(len(lane)) for lane in self.lanes]
        before: tuple[int, ...] | None = None
        for segment in self.segments:
            here, shares = segment.at, segment.shares
            if not len(here) == len(shares) == len(self.lanes):
                raise ValueError(f"a segment is at {here} with shares {shares}: there are {len(self.lanes)} lanes")
            if min(shares) < 0 or sum(shares) > 1 + 1e-9 or segment.seconds < -tolerance:
                raise ValueError(f"a segment has shares {shares} and {segment.seconds} s")
            if before is not None:
                steps = [(b - a) % len(lane) for a, b, lane in zip(before, here, self.lanes, strict=True)]
                if max(steps) > 1:
                    raise ValueError(f"the lanes go from {before} to {here}: an operation is skipped")
            before = here
            for lane, index, share, work in zip(self.lanes, here, shares, done, strict=True):
                work[index] += segment.seconds * float(interference(lane[index].kind, share))
        for lane, work in zip(self.lanes, done, strict=True):
            for one, got in zip(lane, work, strict=True):
                if abs(got - one.seconds) > tolerance * max(1.0, one.seconds):
                    raise ValueError(f"{one.name} gets {got} s of work, needs {one.seconds}")
        if abs(sum(s.seconds for s in self.segments) - self.period_s) > tolerance * max(1.0, self.period_s):
            raise ValueError("the segments do not add up to the period")

    def simulate(
        self, layers: int = 64, *, jitter: float = 0.0, generator: np.random.Generator | None = None
    ) -> np.ndarray:
        """Seconds of following layers when every operation varies by ``1 + jitter * normal`` (at least 0), new in each layer.

        A segment ends when all of its operations have done their part, so what is late delays every lane.

        Returns:
            ``layers`` seconds, each the period without jitter.

        Raises:
            ValueError: jitter without a generator, or negative; no layers.
        """
        if jitter < 0 or (jitter > 0 and generator is None):
            raise ValueError(f"jitter={jitter}: expected >= 0, and a generator where it is above 0")
        if layers < 1:
            raise ValueError(f"layers must be >= 1, got {layers}")
        factors = [np.ones((layers, len(lane))) for lane in self.lanes]
        if jitter and generator is not None:
            factors = [np.maximum(0.0, 1 + jitter * generator.standard_normal(one.shape)) for one in factors]
        total = np.zeros(layers)
        for segment in self.segments:
            running = [
                of_lane[:, index]
                for of_lane, index, share in zip(factors, segment.at, segment.shares, strict=True)
                if share > 0
            ]
            total += segment.seconds * np.max(running, axis=0)
        return total

    def timed_segments(self) -> Iterator[tuple[float, float, Segment]]:
        """Every segment with its start and end in the period, seconds."""
        at = 0.0
        for segment in self.segments:
            yield at, at + segment.seconds, segment
            at += segment.seconds

    @property
    def names(self) -> tuple[str, ...]:
        """What :meth:`rows` calls the lanes."""
        return tuple(f"lane {k + 1}" if k > 2 else ("first", "second", "third")[k] for k in range(len(self.lanes)))

    def rows(self) -> list[tuple[str, float, float, str]]:
        """``(lane, start_s, end_s, kind)`` of the period: what runs in each lane; an operation that waits has no row."""
        found: list[tuple[str, float, float, str]] = []
        for which, (name, lane) in enumerate(zip(self.names, self.lanes, strict=True)):
            at: int | None = None
            for start, end, segment in self.timed_segments():
                index = segment.at[which]
                if segment.shares[which] <= 0:
                    at = None
                elif index == at:
                    found[-1] = (name, found[-1][1], end, lane[index].kind)
                else:
                    found.append((name, start, end, lane[index].kind))
                    at = index
        return found

    def rows_in_turn(self) -> list[tuple[str, float, float, str]]:
        """The same rows without overlap: one lane's layer after the other's."""
        found, at = [], 0.0
        for name, lane in zip(self.names, self.lanes, strict=True):
            for one in lane:
                found.append((name, at, at + one.seconds, one.kind))
                at += one.seconds
        return found

    def utilisation(self, interference: Interference) -> list[dict[str, float]]:
        """``start_s, end_s`` of each segment and, for each kind, the speed at which it runs (1: as if alone)."""
        kinds = sorted({one.kind for lane in self.lanes for one in lane})
        found = []
        for start, end, segment in self.timed_segments():
            row = {"start_s": start, "end_s": end, **dict.fromkeys(kinds, 0.0)}
            for lane, index, share in zip(self.lanes, segment.at, segment.shares, strict=True):
                row[lane[index].kind] += float(interference(lane[index].kind, share))
            found.append(row)
        return found

    def to_json(self, path: str | Path | None = None) -> str:
        """One JSON object: lanes, segments with shares, period and bounds in seconds."""
        text = json.dumps(asdict(self), indent=1)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | Path, interference: Interference) -> "OverlapSchedule":
        """From the text of :meth:`to_json`, or from a file of it; validated against ``interference``.

        Raises:
            ValueError: a field that is missing, or a schedule that breaks a rule.
        """
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        try:
            found: dict[str, Any] = json.loads(text)
            lanes = tuple(tuple(NanoOperation(**one) for one in lane) for lane in found["lanes"])
            segments = tuple(
                Segment(tuple(one["at"]), tuple(one["shares"]), one["seconds"]) for one in found["segments"]
            )
            schedule = cls(**{**found, "lanes": lanes, "segments": segments})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the file is no schedule of lanes: {type(error).__name__} {error}") from error
        schedule.validate(interference)
        return schedule
