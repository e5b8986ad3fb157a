"""The lock of a run's folder: held by the process that does the run, and let go by the kernel when that dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

_held: set[int] = set()


def _forget_locks_in_child() -> None:
    # A forked child shares the lock's open file: without this it would hold the lock after its parent has died.
    for fd in _held:
        with contextlib.suppress(OSError):
            os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks_in_child)


def take_lock(path: Path, wait_s: float = 0.0) -> int:
    """The open file of the lock.

    Raises:
        BlockingIOError: another process has it, also after ``wait_s``.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            # A reader that looks whether the lock is held holds it itself for a moment.
            if time.monotonic() >= deadline:
                os.close(fd)
                raise
            time.sleep(0.01)
    _held.add(fd)
    return fd


def release_lock(fd: int) -> None:
    _held.discard(fd)
    os.close(fd)


def is_locked(folder: Path) -> bool:
    """Whether some process is running the run in ``folder`` now."""
    try:
        fd = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
