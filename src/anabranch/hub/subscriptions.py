"""Who wants the digest: asked for, confirmed by a link in a mail, ended by a link in every mail."""

from __future__ import annotations

import re
import secrets
import sqlite3
import threading
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from anabranch.hub.signing import sign, signed

Cadence = Literal["daily", "weekly"]
State = Literal["asked", "confirmed", "ended"]
SEND_FROM_HOUR = 8  # local time of the subscriber
LOOKS_BACK = timedelta(days=14)
ASKED_FOR = timedelta(days=7)  # a wish that nobody has confirmed by then is forgotten
_PART = r"[^@\s<>,;:\"()\[\]\\]+"
_ADDRESS = re.compile(f"{_PART}@{_PART}")
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
        """The name of the period whose digest is due (``2026-11-27``, ``2026-W48``), None before eight and on days without.

        A weekly one that did not go out on Monday is due on the other days of the week, too, to whom had asked by then."""
        local = now.astimezone(ZoneInfo(self.zone))
        if local.hour < SEND_FROM_HOUR:
            return None
        if self.cadence == "daily":
            return local.date().isoformat() if local.weekday() < 5 else None
        monday = (local - timedelta(days=local.weekday())).replace(
            hour=SEND_FROM_HOUR, minute=0, second=0, microsecond=0
        )
        year, week, _ = local.date().isocalendar()
        return f"{year}-W{week:02d}" if local.weekday() == 0 or self.asked <= monday else None

    def covers(self, day: date, told: date | None = None) -> tuple[date, date]:
        """First and last day that the digest sent on ``day`` tells of: from the one before, at most 14 days back, until
        yesterday, or, weekly, Sunday.

        Args:
            told: last day of the one before; without one it begins where the reader asked, and is no shorter than usual.
        """
        if self.cadence == "weekly":
            day -= timedelta(days=day.weekday())
            usual = 7
        else:
            usual = 3 if day.weekday() == 0 else 1
        asked = self.asked.astimezone(ZoneInfo(self.zone)).date()
        first = told + timedelta(days=1) if told else min(asked, day - timedelta(days=usual))
        return max(first, day - LOOKS_BACK), day - timedelta(days=1)


def last_day(period: str) -> date:
    """The last day that the digest of a period (:meth:`Subscription.due`) tells of."""
    return date.fromisoformat(period) - timedelta(days=1)  # of a week that is its Monday


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
        """A wish, to be confirmed by mail; asking again gives the same one. It is given back as it was wished: what a
        confirmed reader gets changes only when the link in the mail is followed.

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
        asked, address = (now or datetime.now(UTC)).astimezone(UTC), address.casefold()
        with self._lock:
            self._db.execute(  # numbers by chance: none comes a second time, as in keys of mails, after a wish is forgotten
                "INSERT INTO subscription (id, address, topic, cadence, zone, state, asked) VALUES (?, ?, ?, ?, ?, 'asked', ?) "
                "ON CONFLICT (address, topic, cadence) DO UPDATE SET zone = excluded.zone, asked = excluded.asked, "
                "state = 'asked' WHERE state <> 'confirmed'",
                (secrets.randbelow(2**46), address, topic, cadence, zone, asked.isoformat(timespec="seconds")),
            )
            row = self._db.execute(
                f"SELECT {_COLUMNS} FROM subscription WHERE address = ? AND topic = ? AND cadence = ?",
                (address, topic, cadence),
            ).fetchone()
        return replace(_read(row), zone=zone, asked=asked)

    def forget(self, now: datetime | None = None) -> int:
        """Drop wishes that nobody has confirmed for a week; how many."""
        before = ((now or datetime.now(UTC)) - ASKED_FOR).astimezone(UTC).isoformat(timespec="seconds")
        with self._lock:
            return self._db.execute("DELETE FROM subscription WHERE state = 'asked' AND asked < ?", (before,)).rowcount

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
        """What the link in a mail carries; the one that confirms also the time zone that was wished."""
        if purpose == "unsubscribe":
            return f"{subscription.id}.{sign(self._secret, purpose, self._text(subscription))}"
        signature = sign(self._secret, purpose, f"{self._text(subscription)} {subscription.zone}")
        return f"{subscription.id}.{subscription.zone.encode().hex()}.{signature}"

    def confirm(self, token: str) -> Subscription:
        """Raises ValueError for a token that was not ours, or is another link's."""
        number, _, rest = token.partition(".")
        hexed, _, signature = rest.partition(".")
        try:
            zone = bytes.fromhex(hexed).decode()
        except ValueError:  # not hexadecimal, not UTF-8
            zone = ""
        found = self._signed(number, "confirm", f" {zone}", signature)
        with self._lock:
            self._db.execute("UPDATE subscription SET state = 'confirmed', zone = ? WHERE id = ?", (zone, found.id))
        return replace(found, state="confirmed", zone=zone)

    def unsubscribe(self, token: str) -> Subscription:
        """Raises ValueError for a token that was not ours, or is another link's."""
        number, _, signature = token.partition(".")
        found = self._signed(number, "unsubscribe", "", signature)
        with self._lock:
            self._db.execute("UPDATE subscription SET state = 'ended' WHERE id = ?", (found.id,))
        return replace(found, state="ended")

    def _signed(self, number: str, purpose: str, more: str, signature: str) -> Subscription:
        known = number.isascii() and number.isdigit() and len(number) < 15
        found = self.get(int(number)) if known else None
        if found is None or not signed(self._secret, purpose, self._text(found) + more, signature):
            raise ValueError("this link is not one of ours, or is no longer whole: copy all of it from the mail")
        return found

    @staticmethod
    def _text(subscription: Subscription) -> str:
        return f"{subscription.id} {subscription.address}"


def _read(row: tuple[int, str, str, str, str, str, str]) -> Subscription:
    number, address, topic, cadence, zone, state, asked = row
    return Subscription(number, address, topic, cadence, zone, state, datetime.fromisoformat(asked))  # type: ignore[arg-type]
