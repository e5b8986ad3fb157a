"""The event log of a run: append-only JSON lines, one flushed line an event.

The log is the only truth about a run; the terminal, the report and the page are folds over it. A line is written by one
``write`` call on a descriptor opened for appending, so a reader sees whole lines and at most one torn last line.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anabranch.lab.errors import LabError

Event = dict[str, Any]
Listener = Callable[[Event], None]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RESERVE_BYTES = 16384
_RESERVED = frozenset({"n", "at_s", "type"})
_SYNCED = frozenset({"start", "measure", "verdict", "end"})


class DamagedLog(LabError):
    """A line in the middle of the log is not an event."""


def to_jsonable(value: Any) -> Any:
    """``value`` with numpy scalars and arrays, paths, tuples and non-finite floats made fit for JSON."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return to_jsonable(value.tolist())
    return str(value)


class EventLog:
    """Appends events to ``events.jsonl`` of a run folder.

    A small reserve file lies beside the log; when the disk is full it is given back so that the end of the run can still
    be written down.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"
        self._reserve = folder / ".reserve"
        with self._reserve.open("wb") as reserve:
            reserve.write(os.urandom(_RESERVE_BYTES))
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._lock = threading.Lock()
        self._begin = time.monotonic()
        self._count = self._continue()
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with every later event of this process."""
        self._listeners.append(listener)

    def write(self, type_: str, **fields: Any) -> Event:
        """Append one event; it is in the file when this returns."""
        if _RESERVED & fields.keys():
            raise ValueError(f"event fields may not be called {', '.join(sorted(_RESERVED & fields.keys()))}")
        with self._lock:
            event: Event = {
                "n": self._count,
                "at_s": round(time.monotonic() - self._begin, 4),
                "type": type_,
                **to_jsonable(fields),
            }
            line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            self._append(line)
            if type_ in _SYNCED:
                os.fsync(self._fd)
            self._count += 1
        for listener in self._listeners:
            listener(event)
        return event

    def release_reserve(self) -> None:
        """Give the reserved bytes back to the disk."""
        self._reserve.unlink(missing_ok=True)

    def close(self) -> None:
        self.release_reserve()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _continue(self) -> int:
        """Events that are there (a run may be queued with a word about why); a torn last line is taken back."""
        before = self._path.read_bytes()
        os.ftruncate(self._fd, before.rfind(b"\n") + 1)
        return before.count(b"\n")

    def _append(self, line: bytes) -> None:
        start = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, "no space left on device")
        except OSError:
            # A half-written line would damage the log for the lines that follow.
            os.ftruncate(self._fd, start)
            raise


def read_events(path: Path, after: int = -1) -> list[Event]:
    """Events of a log with number above ``after``; a torn last line is dropped.

    Raises:
        DamagedLog: a line before the last is not an event.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = raw.split(b"\n")
    lines.pop()  # what follows the last newline: nothing, or a torn line
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            if event["n"] > after:
                events.append(event)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedLog(f"{path}: line {number} is not an event") from error
    return events
