"""Daily Papers in, on a schedule: while the page is served, every so many hours, by one server at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from anabranch.hub.catalogue import Catalogue
from anabranch.hub.daily_papers import DailyPapers
from anabranch.hub.importers import import_page
from anabranch.lab.discover import papers
from anabranch.lab.errors import LabError

LEAST_S, MOST_S = 600.0, 7 * 86_400.0
_FIRST_RETRY_S = 300.0
_DAYS_BACK = 13  # what is caught up with after a long absence, beside today
_UNITS = {"min": 60.0, "h": 3600.0, "d": 86_400.0}
_log = logging.getLogger(__name__)


def interval_s(text: str) -> float:
    """Seconds of ``30min``, ``6h`` or ``1d``.

    Raises:
        LabError: it is no such time, or less than ten minutes, or more than a week.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(min|h|d)", text.strip())
    seconds = float(match.group(1)) * _UNITS[match.group(2)] if match else 0.0
    if not LEAST_S <= seconds <= MOST_S:
        raise LabError(f"--import-every {text}: expected a time from 10min to 7d, such as 30min, 6h or 1d")
    return seconds


@dataclass(frozen=True)
class ImportState:
    """What the catalogue's file says of the schedule.

    Args:
        due: when the next import may begin.
        day: the last day of Daily Papers that was read; it is read again, as its list may have grown.
        failures: in a row, up to now.
        ended: when the last import ended; None before the first.
        words: what it brought, or why it failed.
    """

    due: datetime
    day: date | None = None
    failures: int = 0
    ended: datetime | None = None
    words: str = ""


class ImportSchedule:
    """Imports the days since the last import, today included, every ``every_s`` seconds.

    When the next import is due stands in the catalogue's file, so a restart imports neither again nor too late, and servers
    of one data folder take turns: one of them imports, under a lock that dies with its process. A failure is tried again
    after 5 min, 10 min, 20 min and so on, up to ``every_s``; days that were read before it are kept.

    Args:
        path: the catalogue's file.
        db: a connection to it in autocommit mode, for the schedule's own table.
        every_s: pause between two imports.
        reader: reads the service; replaced in tests.
        now, jitter: replaced in tests.
        poll_s: how often it looks.
    """

    def __init__(
        self,
        path: Path,
        db: sqlite3.Connection,
        every_s: float,
        *,
        reader: DailyPapers | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.2),
        poll_s: float = 15.0,
    ) -> None:
        self.every_s = every_s
        self._path, self._db, self._now, self._jitter, self._poll_s = path, db, now, jitter, poll_s
        self._stop = threading.Event()
        self._reader = reader or DailyPapers(sleep=self._rest)
        self._thread: threading.Thread | None = None
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS import_schedule (id INTEGER PRIMARY KEY CHECK (id = 1), due TEXT NOT NULL, "
            "day TEXT, failures INTEGER NOT NULL, ended TEXT, words TEXT NOT NULL)"
        )

    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._loop, name="import-schedule", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more; what is being read is read again after the next start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def state(self) -> ImportState | None:
        """Where the schedule is; None before its first look."""
        row = self._db.execute("SELECT due, day, failures, ended, words FROM import_schedule").fetchone()
        if row is None:
            return None
        due, day, failures, ended, words = row
        return ImportState(
            datetime.fromisoformat(due), date.fromisoformat(day) if day else None, failures,
            datetime.fromisoformat(ended) if ended else None, words,
        )  # fmt: skip

    def run_due(self) -> bool:
        """Import if it is time and no other server is at it; whether this one has."""
        if not self._is_due(self.state()):
            return False
        with self._alone() as mine:
            before = self.state()  # another server may have been at it since
            if not mine or not self._is_due(before):
                return False
            self._import(before or ImportState(self._now()))
            return True

    def _is_due(self, state: ImportState | None) -> bool:
        now = self._now()
        if state is None or state.due <= now:
            return True
        # Written under a longer interval, or before the clock was put back: it would rest for long.
        if state.due > now + timedelta(seconds=1.5 * self.every_s):
            return True
        if state.ended is None or state.failures:
            return False
        return state.ended + timedelta(seconds=self.every_s) <= now or state.ended > now + timedelta(seconds=LEAST_S)

    def _import(self, before: ImportState) -> None:
        today = self._now().date()
        first = max(before.day or today - timedelta(days=1), today - timedelta(days=_DAYS_BACK))
        # A server that is killed in the middle leaves this behind: tried again as after a failure.
        state = replace(before, due=self._after_failure(before.failures + 1), failures=before.failures + 1)
        self._write(state)
        listed = added = filled = 0
        try:
            for n in range(max(0, (today - first).days) + 1):
                day = min(first, today) + timedelta(days=n)
                items = list(self._reader.listed("day", day.isoformat()))
                if items:  # none on weekends
                    with Catalogue(self._path, papers()) as catalogue:
                        report = import_page(catalogue, json.dumps(items))
                    listed, added, filled = listed + report.found, added + report.added, filled + report.updated
                state = replace(state, day=day)
        except (ValueError, OSError, ImportError, sqlite3.Error) as error:
            if self._stop.is_set():  # its waits were cut short: no fault of the service
                self._write(replace(before, day=state.day))
                return
            words = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            _log.warning("the import of Daily Papers failed: %s", words)
            self._write(replace(state, ended=self._now(), words=words, due=self._after_failure(state.failures)))
            return
        words = f"{added:,} new and {filled:,} filled in, of {listed:,} listed"
        due = self._now() + timedelta(seconds=self.every_s)
        self._write(replace(state, due=due, failures=0, ended=self._now(), words=words))

    def _after_failure(self, failures: int) -> datetime:
        wait = min(self.every_s, _FIRST_RETRY_S * 2.0 ** min(failures - 1, 20)) * self._jitter()
        return self._now() + timedelta(seconds=wait)

    def _write(self, state: ImportState) -> None:
        values = (
            state.due.isoformat(), state.day and state.day.isoformat(), state.failures,
            state.ended and state.ended.isoformat(), state.words,
        )  # fmt: skip
        self._db.execute("INSERT OR REPLACE INTO import_schedule VALUES (1, ?, ?, ?, ?, ?)", values)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether this process has the lock of all servers of the data folder."""
        import fcntl

        with self._path.with_name("import.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _rest(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                self.run_due()
            except Exception:  # the thread goes on: the next look may be better
                if not self._stop.is_set():
                    _log.exception("the schedule of imports failed")
            self._stop.wait(self._poll_s)
