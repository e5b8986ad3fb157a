"""The committed results of all papers, read again as soon as one of their files has changed."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from anabranch.lab.discover import module_of, papers
from anabranch.lab.places import results_folder
from anabranch.lab.results import Result, is_stale, load_result

Stamps = tuple[int, ...]


class CommittedResults:
    """Results by slug with whether each is stale. Asking costs one ``stat`` for each paper that runs."""

    def __init__(self) -> None:
        folder = results_folder()
        paths = [folder, *(folder / f"{paper.slug}.json" for paper in papers() if paper.runnable), *_beside_plugins()]
        self._paths = paths
        self._lock = threading.Lock()
        self._read: tuple[Stamps, dict[str, tuple[Result, bool]]] | None = None

    def stamps(self) -> Stamps:
        """Times of change of the files and of their folder: differ whenever a result was written, replaced or removed."""
        return tuple(map(_stamp, self._paths))

    def all(self) -> dict[str, tuple[Result, bool]]:
        stamps, read = self.stamps(), self._read
        if read is None or read[0] != stamps:
            with self._lock:
                stamps = self.stamps()  # before the files: what is written meanwhile is read the next time
                if self._read is None or self._read[0] != stamps:
                    found = ((paper.slug, load_result(paper.slug)) for paper in papers())
                    self._read = (stamps, {slug: (r, is_stale(r)) for slug, r in found if r is not None})
                read = self._read
        return read[1]


def _beside_plugins() -> list[Path]:
    """Where plug-ins of other packages keep their results: beside their code."""
    modules = [sys.modules.get(module_of(paper.slug)) for paper in papers()]
    return [
        Path(place) / "results.json"
        for module in modules
        if module is not None and not module.__name__.startswith("anabranch.")
        for place in getattr(module, "__path__", [])
    ]


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
