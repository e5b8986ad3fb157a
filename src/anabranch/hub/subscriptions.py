"""Who wants the digest: asked for, confirmed by a link in a mail, ended by a link in every mail."""

from __future__ import annotations

import re
import sqlite3
import threading
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from anabranch.hub.signing import sign, signed

Cadence = Literal["daily", "weekly"]
State = Literal["asked", "confirmed", "ended"]
SEND_FROM_HOUR = 8  # local time of the subscriber
_ADDRESS = re.compile(r"[^@\s<>,;\"()\[\]\\]+@[^@\s<>,;\"()\[\]\\]+\.?[^@\s<>,;\"()\[\]\\]*")
_TABLE = """
CREATE TABLE IF NOT EXISTS subscription (
    id INTEGER PRIMARY KEY, address TEXT NOT NULL, topic TEXT NOT NULL, cadence TEXT NOT NULL, zone TEXT NOT NULL,
    state TEXT NOT NULL, asked TEXT NOT NULL, UNIQUE (address, topic, cadence)
)
"""
_COLUMNS = "id, address, topic, cadence, zone, state, asked"


@dataclass(frozen=True)
class Subscription:
    """One reader's wish.

    Args:
        topic: a saved query; empty takes everything.
        cadence: "daily" (Monday to Friday) or "weekly" (Monday).
        zone: the reader's time zone.
    """

    id: int
    address: str
    topic: str
    cadence: Cadence
    zone: str
    state: State
    asked: datetime

    def due(self, now: datetime) -> str | None:
        """The name of the period whose digest is due (``2026-11-27``, ``2026-W48``), None on other days and before eight."""
        local = now.astimezone(ZoneInfo(self.zone))
        if local.hour < SEND_FROM_HOUR:
            return None
        if self.cadence == "daily":
            return local.date().isoformat() if local.weekday() < 5 else None
        year, week, _ = local.date().isocalendar()
        return f"{year}-W{week:02d}" if local.weekday() == 0 else None

    def covers(self, day: date) -> tuple[date, date]:
        """First and last day that the digest sent on ``day`` tells of: since the one before."""
        if self.cadence == "weekly":
            return day - timedelta(days=7), day - timedelta(days=1)
        return day - timedelta(days=3 if day.weekday() == 0 else 1), day - timedelta(days=1)


class Subscriptions:
    """Kept in the catalogue's file.

    Args:
        db: a connection in autocommit mode.
        secret: signs the links in mails.
    """

    def __init__(self, db: sqlite3.Connection, secret: bytes) -> None:
        self._db, self._secret, self._lock = db, secret, threading.Lock()
        with self._lock:
            self._db.execute(_TABLE)

    def ask(
        self, address: str, *, topic: str = "", cadence: str = "daily", zone: str = "UTC", now: datetime | None = None
    ) -> Subscription:
        """A wish, to be confirmed by mail; asking again gives the same one.

        Raises:
            ValueError: no address, cadence or time zone.
        """
        address, topic = address.strip(), " ".join(topic.split())
        if len(address) > 254 or not _ADDRESS.fullmatch(address) or not address.isprintable():
            raise ValueError(f"address={address[:80]!r}: expected an e-mail address")
        if cadence not in get_args(Cadence):
            raise ValueError(f"cadence={cadence!r}: expected daily or weekly")
        if len(topic) > 200:
            raise ValueError(f"topic has {len(topic)} characters: expected at most 200")
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"zone={zone!r}: expected a time zone such as Europe/Berlin") from error
        asked = (now or datetime.now(UTC)).isoformat(timespec="seconds")
        with self._lock:
            self._db.execute(
                "INSERT INTO subscription (address, topic, cadence, zone, state, asked) VALUES (?, ?, ?, ?, 'asked', ?) "
                "ON CONFLICT DO UPDATE SET zone = excluded.zone, asked = excluded.asked, "
                "state = CASE state WHEN 'confirmed' THEN 'confirmed' ELSE 'asked' END",
                (address.casefold(), topic, cadence, zone, asked),
            )
            row = self._db.execute(
                f"SELECT {_COLUMNS} FROM subscription WHERE address = ? AND topic = ? AND cadence = ?",
                (address.casefold(), topic, cadence),
            ).fetchone()
        return _read(row)

    def get(self, number: int) -> Subscription | None:
        with self._lock:
            row = self._db.execute(f"SELECT {_COLUMNS} FROM subscription WHERE id = ?", (number,)).fetchone()
        return _read(row) if row else None

    def confirmed(self) -> list[Subscription]:
        """All who are to get mail."""
        with self._lock:
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM subscription WHERE state = 'confirmed' ORDER BY id"
            ).fetchall()
        return [_read(row) for row in rows]

    def token(self, subscription: Subscription, purpose: Literal["confirm", "unsubscribe"]) -> str:
        """What the link in a mail carries."""
        return f"{subscription.id}.{sign(self._secret, purpose, self._text(subscription))}"

    def confirm(self, token: str) -> Subscription:
        """Raises ValueError for a token that was not ours, or is another link's."""
        return self._follow(token, "confirm", "confirmed")

    def unsubscribe(self, token: str) -> Subscription:
        """Raises ValueError for a token that was not ours, or is another link's."""
        return self._follow(token, "unsubscribe", "ended")

    def _follow(self, token: str, purpose: str, state: State) -> Subscription:
        number, _, signature = token.partition(".")
        found = self.get(int(number)) if number.isdigit() and len(number) < 15 else None
        if found is None or not signed(self._secret, purpose, self._text(found), signature):
            raise ValueError("this link is not one of ours, or is no longer whole: copy all of it from the mail")
        with self._lock:
            self._db.execute("UPDATE subscription SET state = ? WHERE id = ?", (state, found.id))
        return Subscription(**{**found.__dict__, "state": state})

    @staticmethod
    def _text(subscription: Subscription) -> str:
        return f"{subscription.id} {subscription.address}"


def _read(row: tuple[int, str, str, str, str, str, str]) -> Subscription:
    number, address, topic, cadence, zone, state, asked = row
    return Subscription(number, address, topic, cadence, zone, state, datetime.fromisoformat(asked))  # type: ignore[arg-type]
