"""Mails that are to go out, each once: written down before they are sent, marked when the server has taken them."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage

from anabranch.hub.mail import POLICY, Mailer, Refused, Unreached

KEPT = timedelta(days=3)  # what could not be sent in this time is old news
_WAITS_MIN = (1, 4, 16, 64, 256)  # after the first, second, ... failure
_LEASE = timedelta(minutes=30)  # longer than a sender may wait for a slow server
_NOTES = "CREATE TABLE IF NOT EXISTS outbox_note (name TEXT PRIMARY KEY, value TEXT NOT NULL)"
_ADDED = {"expires": "TEXT", "upto": "INTEGER"}  # columns of later versions
_TABLE = """
CREATE TABLE IF NOT EXISTS outbox (
    key TEXT PRIMARY KEY, message BLOB NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL, next_try TEXT NOT NULL,
    reason TEXT NOT NULL
)
"""


class Outbox:
    """The queue of mails, in the catalogue's file.

    A mail is marked as sent once the server's 250 is here. A sender that dies before that leaves it in the queue; one that
    dies between the server's 250 and the mark sends it again, with the same Message-ID, by which receivers know it.

    Args:
        db: a connection in autocommit mode.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db, self._lock = db, threading.Lock()
        with self._lock:
            self._db.execute(_TABLE)
            self._db.execute(_NOTES)
            there = {row[1] for row in self._db.execute("PRAGMA table_info(outbox)")}
            for name, kind in _ADDED.items():
                if name not in there:
                    with contextlib.suppress(sqlite3.OperationalError):  # another process was faster
                        self._db.execute(f"ALTER TABLE outbox ADD COLUMN {name} {kind}")

    def put(
        self,
        key: str,
        message: EmailMessage,
        *,
        now: datetime | None = None,
        keep: timedelta = KEPT,
        upto: int | None = None,
    ) -> bool:
        """Queue a mail; False where one with this key was queued before, sent or not.

        Args:
            keep: it is tried for so long.
            upto: a number of the sender's that is written down in the same step; see :meth:`told`.
        """
        at = now or datetime.now(UTC)
        with self._lock:
            done = self._db.execute(
                "INSERT OR IGNORE INTO outbox (key, message, state, attempts, next_try, reason, expires, upto) "
                "VALUES (?, ?, 'queued', 0, ?, '', ?, ?)",
                (key, message.as_bytes(), _text(at), _text(at + keep), upto),
            )
            return done.rowcount == 1

    def holds(self, key: str) -> bool:
        with self._lock:
            return self._db.execute("SELECT 1 FROM outbox WHERE key = ?", (key,)).fetchone() is not None

    def told(self, prefix: str) -> list[tuple[str, int | None]]:
        """Key and ``upto`` of mails whose key begins so; those that never arrived (refused, expired) are left out."""
        with self._lock:
            return self._db.execute(
                "SELECT key, upto FROM outbox WHERE key >= ? AND key < ? AND state IN ('queued', 'sent')",
                (prefix, prefix + "\uffff"),
            ).fetchall()

    def count(self, prefix: str) -> int:
        """Number of mails, whatever became of them, whose key begins so."""
        with self._lock:
            found = self._db.execute(
                "SELECT count(*) FROM outbox WHERE key >= ? AND key < ?", (prefix, prefix + "\uffff")
            ).fetchone()
        return int(found[0])

    def note(self, name: str, value: str | None = None) -> str:
        """What was noted under a name, in the file, last; ``value`` replaces it. Empty where nothing was."""
        with self._lock:
            if value is not None:
                self._db.execute("INSERT OR REPLACE INTO outbox_note VALUES (?, ?)", (name, value))
            row = self._db.execute("SELECT value FROM outbox_note WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def states(self) -> dict[str, int]:
        """Number of mails by state: queued, sent, refused, expired."""
        with self._lock:
            return dict(self._db.execute("SELECT state, count(*) FROM outbox GROUP BY state").fetchall())

    def send(
        self, mailer: Mailer, *, now: datetime | None = None, said: Callable[[str], None] = lambda text: None
    ) -> int:
        """Send what is due, one after another; how many were taken. After a failure a mail waits 1, 4, 16, ... minutes; one
        that is refused (5xx) is never tried again, nor one whose time is over. Two senders on one file take turns."""
        sent = 0
        while (found := self._take(now or datetime.now(UTC))) is not None:
            key, raw, attempts = found
            message = message_from_bytes(raw, policy=POLICY)
            try:
                mailer.send(message)
            except Refused as error:
                self._mark(key, "refused", str(error))
                said(f"{key}: refused, {error}")
            except Unreached as error:
                wait = timedelta(minutes=_WAITS_MIN[min(attempts, len(_WAITS_MIN) - 1)])
                self._mark(key, "queued", str(error), (now or datetime.now(UTC)) + wait)
                said(f"{key}: not reached, {error}; again in {wait}")
            except Exception as error:  # one mail that cannot be sent holds up no other
                self._mark(key, "queued", repr(error), (now or datetime.now(UTC)) + timedelta(minutes=_WAITS_MIN[-1]))
                said(f"{key}: {error!r}")
            else:
                self._mark(key, "sent", "")
                sent += 1
        return sent

    def _take(self, now: datetime) -> tuple[str, bytes, int] | None:
        """The next mail that is due. It is put half an hour ahead in the same step, so that a second sender leaves it alone,
        and a sender that dies delays it by no more."""
        at, later = _text(now), _text(now + _LEASE)
        with self._lock:
            self._db.execute(
                "UPDATE outbox SET state = 'expired' WHERE state = 'queued' AND next_try <= ? AND expires <= ?",
                (at, at),
            )
            row = self._db.execute(
                "UPDATE outbox SET next_try = ?, attempts = attempts + 1 WHERE key = ("
                "SELECT key FROM outbox WHERE state = 'queued' AND next_try <= ? ORDER BY next_try, key LIMIT 1) "
                "RETURNING key, message, attempts - 1",
                (later, at),
            ).fetchone()
        return tuple(row) if row else None

    def _mark(self, key: str, state: str, reason: str, next_try: datetime | None = None) -> None:
        with self._lock:
            self._db.execute(
                "UPDATE outbox SET state = ?, reason = ?, next_try = coalesce(?, next_try) WHERE key = ?",
                (state, reason, _text(next_try) if next_try else None, key),
            )


def _text(at: datetime) -> str:
    """In UTC, so that the order of texts is that of times."""
    return at.astimezone(UTC).isoformat(timespec="seconds")
