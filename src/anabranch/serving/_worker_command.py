"""What ``anabranch serving worker`` does."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path


def run(
    role: str,
    listen: str,
    *,
    model: str | None,
    threads: int,
    device: str,
    key_file: Path | None,
    say: Callable[[str], None],
    tell: Callable[[str], None],
) -> None:
    from anabranch.serving._remote_workers import WorkerListener

    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--listen {listen}: expected HOST:PORT")
    key = None
    if key_file is not None:
        key = _key(key_file)
    worker = WorkerListener(role, host.strip("[]"), int(port), model=model, threads=threads, device=device, key=key)
    # A key that was given is known to who gave it, and need not stand in a log.
    say(worker.address if key is None else worker.address.rpartition("/")[0] + "/KEY")
    with contextlib.suppress(KeyboardInterrupt):
        worker.serve(tell)
    worker.close()


def _key(path: Path) -> bytes:
    """
    Raises:
        ValueError: no such file, no 32 hex digits, or others may read it; does not show what is in it.
    """
    try:
        if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ValueError(
                f"--key-file {path}: others than its owner may use it, and with it run code here: chmod 600"
            )
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise ValueError(f"--key-file {path}: {error.strerror}") from error
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 16:
        raise ValueError(f"--key-file {path}: expected 32 hex digits")
    return key
