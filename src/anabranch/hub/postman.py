"""Threads that queue due digests and send what is in the outbox."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from anabranch.hub.digest import Digest

_log = logging.getLogger(__name__)


class Postman:
    """Looks once a minute, and at once when it is woken.

    One thread queues and another sends: a link to confirm does not wait while the index of a topic is being built. Whatever
    fails is logged and tried again the next minute.

    Args:
        digest: what is sent.
        every_s: pause.
    """

    def __init__(self, digest: Digest, *, every_s: float = 60.0) -> None:
        self._digest, self._every_s = digest, every_s
        self._stop, self._wake = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._error: tuple[datetime, str] | None = None

    @property
    def last_error(self) -> tuple[datetime, str] | None:
        """When something last failed, and what; None where nothing has."""
        return self._error

    def start(self) -> None:
        self._stop.clear()
        self._threads = [
            threading.Thread(target=loop, name=f"postman-{loop.__name__.strip('_')}", daemon=True)
            for loop in (self._queueing, self._sending)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=5)

    def wake(self) -> None:
        """Send now what is queued."""
        self._wake.set()

    def queue(self, now: datetime | None = None) -> None:
        """Queue what is due."""
        if not self._tried("queueing", lambda: self._digest.queue_due(now)):
            return
        for number, reason in list(self._digest.faults.items()):
            self._error = datetime.now(UTC), f"subscription {number}: {reason}"

    def send(self, now: datetime | None = None) -> None:
        """Send what waits."""
        self._tried("sending", lambda: self._digest.outbox.send(self._digest.mailer, now=now, said=self._failed))

    def _queueing(self) -> None:
        while not self._stop.is_set():
            self.queue()
            self._wake.set()
            self._stop.wait(self._every_s)

    def _sending(self) -> None:
        while not self._stop.is_set():
            self.send()
            self._wake.wait(self._every_s)
            self._wake.clear()

    def _tried(self, what: str, work: Callable[[], object]) -> bool:
        try:
            work()
            return True
        except Exception as error:  # the thread goes on: the next minute may be better
            if not self._stop.is_set():
                _log.exception("%s mail failed", what)
            self._error = datetime.now(UTC), f"{what}: {type(error).__name__}: {error}"
            return False

    def _failed(self, text: str) -> None:
        _log.warning("mail %s", text)
        self._error = datetime.now(UTC), text
