"""Votes of readers, and what is trending: votes, runs and confirmed claims of a window, over age."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

Window = Literal["day", "week", "month"]
_TABLE = """
CREATE TABLE IF NOT EXISTS vote (
    entry INTEGER NOT NULL, voter TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (entry, voter)
)
"""


class Votes:
    """One vote a reader and paper, in the catalogue's file; a second one takes the first back.

    Args:
        db: a connection to the file, in autocommit mode.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._db.execute(_TABLE)

    def toggle(self, entry: int, voter: str, *, now: datetime | None = None) -> bool:
        """Vote for the entry, or take the vote back; whether it counts now."""
        if self._db.execute("DELETE FROM vote WHERE entry = ? AND voter = ?", (entry, voter)).rowcount:
            return False
        at = (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")
        self._db.execute("INSERT OR IGNORE INTO vote VALUES (?, ?, ?)", (entry, voter, at))
        return True

    def count(self, *, since: datetime | None = None) -> dict[int, int]:
        """Votes by entry, of all time or since a moment."""
        after = "" if since is None else since.astimezone(UTC).isoformat(timespec="seconds")
        rows = self._db.execute("SELECT entry, count(*) FROM vote WHERE at >= ? GROUP BY entry", (after,))
        return dict(rows.fetchall())

    def has(self, entry: int, voter: str) -> bool:
        row = self._db.execute("SELECT 1 FROM vote WHERE entry = ? AND voter = ?", (entry, voter)).fetchone()
        return row is not None


@dataclass(frozen=True)
class Activity:
    """What happened to an entry in a window.

    Args:
        entry: its id.
        day: when it was listed, or published.
        votes, runs, confirmed: votes, finished runs and claims that a run or result confirmed, in the window.
    """

    entry: int
    day: date
    votes: int = 0
    runs: int = 0
    confirmed: int = 0


def trending_score(activity: Activity, now: datetime) -> float:
    """``(votes + 2 runs + 3 confirmed claims) / (age in hours + 2) ** 1.5``, the age counted from the day's midnight UTC."""
    born = datetime.combine(activity.day, time(), UTC)
    hours = max(0.0, (now - born).total_seconds() / 3600)
    points = float(activity.votes + 2 * activity.runs + 3 * activity.confirmed)
    return points / math.pow(hours + 2, 1.5)


def trending(activities: Iterable[Activity], now: datetime) -> list[Activity]:
    """Best first; ties go to the newer, then to the lower id."""
    return sorted(activities, key=lambda a: (-trending_score(a, now), -a.day.toordinal(), a.entry))


def window_of(kind: Window, text: str) -> tuple[date, date]:
    """First day and the day after the last of ``2026-11-28``, ``2026-W48`` or ``2026-11``.

    Raises:
        ValueError: it is no such day, ISO week or month.
    """
    try:
        if kind == "day":
            first = date.fromisoformat(text)
            if first.isoformat() != text:
                raise ValueError
            return first, first + timedelta(days=1)
        if kind == "week":
            year, _, week = text.partition("-W")
            first = date.fromisocalendar(int(year), int(week), 1)
            return first, first + timedelta(days=7)
        first = date.fromisoformat(f"{text}-01")
        return first, date(first.year + first.month // 12, first.month % 12 + 1, 1)
    except (ValueError, OverflowError):
        form = {"day": "2026-11-28", "week": "2026-W48", "month": "2026-11"}[kind]
        raise ValueError(f"{kind}={text!r}: expected a {kind} such as {form}") from None


def name_of(kind: Window, day: date) -> str:
    """The window that holds ``day``, as :func:`window_of` reads it."""
    if kind == "day":
        return day.isoformat()
    if kind == "week":
        year, week, _ = day.isocalendar()
        return f"{year}-W{week:02d}"
    return f"{day:%Y-%m}"
