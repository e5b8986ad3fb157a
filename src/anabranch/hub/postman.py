"""A thread that queues due digests and sends what is in the outbox."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

from anabranch.hub.digest import Digest


class Postman:
    """Looks once a minute, and at once when it is woken."""

    def __init__(self, digest: Digest, *, every_s: float = 60.0) -> None:
        self._digest, self._every_s = digest, every_s
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._loop, name="postman", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def wake(self) -> None:
        self._wake.set()

    def _loop(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(sqlite3.Error, OSError, ValueError):  # the next minute may be better
                self._digest.queue_due()
                self._digest.outbox.send(self._digest.mailer)
            self._wake.wait(self._every_s)
            self._wake.clear()
