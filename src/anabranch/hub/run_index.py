"""What lists of runs show, of every run, without its log being read again: what pages list and trending counts."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import statistics
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path

from anabranch.lab import Run, find_paper, read_run
from anabranch.lab.locks import is_locked
from anabranch.lab.places import cache_folder, runs_folder
from anabranch.lab.runs import DamagedRun

_FORMAT = 1  # of what is kept; another is not read
Stamp = tuple[int, int]  # size and time of change of a log


@dataclass(frozen=True)
class RunSummary:
    """A run in a list; ``held`` are the claims that it found to hold."""

    id: str
    slug: str
    scale: str
    seed: int
    state: str
    created: str
    seconds: float
    figures: bool
    held: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Run) -> RunSummary:
        held = tuple(claim for claim, event in run.verdicts.items() if event["outcome"] == "holds")
        created = datetime.fromisoformat(run.header["created"]).isoformat()
        return cls(run.id, run.slug, run.scale, run.seed, run.state, created, run.elapsed_s, bool(run.figures), held)

    @property
    def begun(self) -> datetime:
        return datetime.fromisoformat(self.created)

    @property
    def finished(self) -> bool:
        return self.state == "finished"


@dataclass
class _Open:
    """A run that has not ended, as it was at the last look."""

    stamp: Stamp | None = None
    locked: bool = False
    summary: RunSummary | None = None


@dataclass
class RunIndex:
    """Follows a folder of runs. A look costs one ``stat`` for the folder and one for each run that has not ended; a log is
    read when it has grown, and once after its run has ended: what it said is then kept in the cache folder, between processes.

    Args:
        root: default is the folder of runs.
    """

    root: Path | None = None
    _seen: tuple[Path, int] | None = field(default=None, init=False, repr=False)
    _names: list[str] = field(default_factory=list, init=False, repr=False)  # oldest first
    _open: dict[str, _Open] = field(default_factory=dict, init=False, repr=False)
    _ended: dict[str, RunSummary] = field(default_factory=dict, init=False, repr=False)
    _edition: int = field(default=0, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def edition(self) -> int:
        """Changes when a run has ended or was removed since the last look."""
        with self._lock:
            self._look()
            return self._edition

    def ended(self) -> list[RunSummary]:
        with self._lock:
            self._look()
            return list(self._ended.values())

    def active(self) -> list[RunSummary]:
        """Runs that wait or run, oldest first."""
        with self._lock:
            self._look()
            found = [self._open[name].summary for name in sorted(self._open)]
            return [run for run in found if run is not None and run.state in ("queued", "running")]

    def latest(self, slug: str | None = None, *, most: int | None = None, finished: bool = False) -> list[RunSummary]:
        """Runs, or those of a paper, newest first; damaged ones are left out."""
        with self._lock:
            self._look()
            found = (r for r in self._newest() if slug in (None, r.slug) and (r.finished or not finished))
            return list(islice(found, most))

    def expected_seconds(self, slug: str, scale: str) -> float | None:
        """The median time of finished runs of the paper at that scale; what the paper states where there are none."""
        took = [run.seconds for run in self.latest(slug, finished=True) if run.scale == scale]
        return statistics.median(took) if took else find_paper(slug).seconds.get(scale)

    def _newest(self) -> Iterator[RunSummary]:
        for name in reversed(self._names):
            summary = self._ended.get(name) or self._open[name].summary
            if summary is not None:
                yield summary

    def _look(self) -> None:
        root = self.root or runs_folder()
        try:
            seen = (root, root.stat().st_mtime_ns)
        except FileNotFoundError:
            seen = (root, 0)
        first = self._seen is None or self._seen[0] != root
        if seen != self._seen:
            here = sorted(f.name for f in root.iterdir() if not f.name.startswith(".")) if seen[1] else []
            gone = self._ended.keys() - {*here}
            for name in gone:
                del self._ended[name]
            self._edition += bool(gone)
            self._open = {name: self._open.get(name) or _Open() for name in here if name not in self._ended}
            self._names, self._seen = here, seen
        kept = self._load() if first else {}
        new: dict[str, Stamp] = {}
        for name in list(self._open):
            with contextlib.suppress(OSError, DamagedRun, ValueError, KeyError):
                stamp = self._look_at(root / name, kept.get(name))
                if name in self._ended and (name not in kept or kept[name][0] != stamp):
                    new[name] = stamp
        if new:
            self._keep(new)

    def _look_at(self, folder: Path, kept: tuple[Stamp, RunSummary] | None) -> Stamp:
        known, stamp = self._open[folder.name], _stamp(folder / "events.jsonl")
        if kept is not None and kept[0] == stamp:
            self._end(folder.name, kept[1])
            return stamp
        waits = known.summary is None or known.summary.state in ("queued", "running")
        locked = is_locked(folder) if waits else known.locked
        if (stamp, locked) == (known.stamp, known.locked):
            return stamp
        known.stamp, known.locked = stamp, locked
        run = read_run(folder)
        known.summary = RunSummary.of(run)
        if run.end is not None:
            self._end(folder.name, known.summary)
        return stamp

    def _end(self, name: str, summary: RunSummary) -> None:
        self._ended[name] = summary
        del self._open[name]
        self._edition += 1

    # What was read of ended runs, in a file that may be lost

    @contextlib.contextmanager
    def _file(self) -> Iterator[sqlite3.Connection]:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(cache_folder() / f"runs-{_FORMAT}.sqlite", timeout=5)) as db:
            db.execute("CREATE TABLE IF NOT EXISTS run (name TEXT PRIMARY KEY, size INT, changed INT, summary TEXT)")
            with db:
                yield db

    def _load(self) -> dict[str, tuple[Stamp, RunSummary]]:
        found = {}
        with contextlib.suppress(OSError, sqlite3.Error, ValueError, TypeError), self._file() as db:
            for name, size, changed, text in db.execute("SELECT name, size, changed, summary FROM run"):
                facts = json.loads(text)
                found[name] = (size, changed), RunSummary(**{**facts, "held": tuple(facts["held"])})
        return found

    def _keep(self, stamps: dict[str, Stamp]) -> None:
        rows = [(name, *stamp, json.dumps(asdict(self._ended[name]))) for name, stamp in stamps.items()]
        with contextlib.suppress(OSError, sqlite3.Error), self._file() as db:
            db.executemany("INSERT OR REPLACE INTO run VALUES (?, ?, ?, ?)", rows)


def _stamp(log: Path) -> Stamp:
    try:
        stat = log.stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
