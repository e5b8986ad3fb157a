"""The committed results of all papers, read again as soon as one of their files has changed."""

from __future__ import annotations

import logging
import sys
import threading
from datetime import datetime
from pathlib import Path

from anabranch.lab import LabError
from anabranch.lab.code import CodeWatch
from anabranch.lab.discover import module_of, papers
from anabranch.lab.places import results_folder
from anabranch.lab.results import Result, is_stale, load_result, result_verdicts

Stamps = tuple[int, ...]
_log = logging.getLogger(__name__)


class CommittedResults:
    """Results by slug with whether each is stale. Asking costs one ``stat`` for each paper that runs, and once a second one
    for each source file that a result depends on.

    A file that cannot be read is left out, and told of in :meth:`faults`: the other papers are shown.
    """

    def __init__(self) -> None:
        folder = results_folder()
        paths = [folder, *(folder / f"{paper.slug}.json" for paper in papers() if paper.runnable), *_beside_plugins()]
        self._paths = paths
        self._code = CodeWatch(module_of(paper.slug) for paper in papers() if paper.runnable)
        self._lock = threading.Lock()
        self._read: tuple[Stamps, dict[str, tuple[Result, bool]], dict[str, str]] | None = None

    def stamps(self) -> Stamps:
        """Times of change of the files and of their folder, and the code's edition: differ whenever a result was written,
        replaced or removed, or the code that results depend on has changed."""
        return (self._code.edition(), *map(_stamp, self._paths))

    def all(self) -> dict[str, tuple[Result, bool]]:
        return self._now()[1]

    def faults(self) -> dict[str, str]:
        """Why a paper's result is left out, by slug."""
        return self._now()[2]

    def _now(self) -> tuple[Stamps, dict[str, tuple[Result, bool]], dict[str, str]]:
        stamps, read = self.stamps(), self._read
        if read is None or read[0] != stamps:
            with self._lock:
                stamps = self.stamps()  # before the files: what is written meanwhile is read the next time
                if self._read is None or self._read[0] != stamps:
                    self._read = (stamps, *self._all(self._read[2] if self._read else {}))
                read = self._read
        return read

    def _all(self, known: dict[str, str]) -> tuple[dict[str, tuple[Result, bool]], dict[str, str]]:
        found, faults = {}, {}
        for paper in papers():
            try:
                if (result := load_result(paper.slug)) is not None:
                    found[paper.slug] = _whole(result), _is_stale(result)
            except (LabError, LookupError, TypeError, ValueError, AttributeError) as error:
                reason = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
                faults[paper.slug] = reason
                if known.get(paper.slug) != reason:
                    _log.warning("the result of %s is left out: %s", paper.slug, reason)
        return found, faults


def _is_stale(result: Result) -> bool:
    try:
        return is_stale(result)
    except (SyntaxError, OSError):  # code that is being written is not the code that was measured
        return True


def _whole(result: Result) -> Result:
    """``result``, after everything that the page reads of it has been read once."""
    result_verdicts(result)
    if datetime.fromisoformat(result["date"]).tzinfo is None:
        raise ValueError(f"date={result['date']!r}: expected a time zone")
    return result


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
    except OSError:
        return 0
