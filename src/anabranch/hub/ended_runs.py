"""Runs that have ended, each read once: what trending counts, and a number that changes when one more has ended."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from anabranch.lab import read_run
from anabranch.lab.places import runs_folder
from anabranch.lab.runs import DamagedRun

_TAIL_BYTES = 4096


@dataclass(frozen=True)
class EndedRun:
    """What is counted of a run."""

    slug: str
    created: datetime
    finished: bool
    held: frozenset[str]


class EndedRuns:
    """Follows a folder of runs. A look costs one ``stat`` for the folder and one for each run that has not ended.

    Args:
        root: default is the folder of runs.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root
        self._seen: tuple[Path, int] | None = None
        self._open: dict[Path, int] = {}  # with the length of its log at the last look
        self._ended: dict[Path, EndedRun] = {}
        self._edition = 0
        self._lock = threading.Lock()

    def edition(self) -> int:
        """Changes when a run has ended or was removed since the last look."""
        with self._lock:
            self._look()
            return self._edition

    def all(self) -> list[EndedRun]:
        with self._lock:
            self._look()
            return list(self._ended.values())

    def _look(self) -> None:
        root = self._root or runs_folder()
        try:
            seen = (root, root.stat().st_mtime_ns)
        except FileNotFoundError:
            seen = (root, 0)
        if seen != self._seen:
            here = {f for f in root.iterdir() if not f.name.startswith(".")} if seen[1] else set()
            gone = [folder for folder in self._ended if folder not in here]
            for folder in gone:
                del self._ended[folder]
            self._edition += bool(gone)
            self._open = {folder: self._open.get(folder, -1) for folder in here if folder not in self._ended}
            self._seen = seen
        for folder in list(self._open):
            self._look_at(folder)

    def _look_at(self, folder: Path) -> None:
        log = folder / "events.jsonl"
        try:
            size = log.stat().st_size
            if size == self._open[folder]:
                return
            self._open[folder] = size
            with log.open("rb") as file:
                file.seek(max(0, size - _TAIL_BYTES))
                if b'"end"' not in file.read():
                    return
            run = read_run(folder)
        except (OSError, DamagedRun):
            return
        if run.end is None:
            return
        held = frozenset(claim for claim, event in run.verdicts.items() if event["outcome"] == "holds")
        created = datetime.fromisoformat(run.header["created"])
        self._ended[folder] = EndedRun(run.slug, created, run.state == "finished", held)
        del self._open[folder]
        self._edition += 1
