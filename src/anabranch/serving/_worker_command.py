"""What ``anabranch serving worker`` does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path


def run(
    role: str,
    listen: str,
    *,
    model: str | None,
    threads: int,
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
        try:
            key = bytes.fromhex(key_file.read_text(encoding="ascii").strip())
        except ValueError as error:
            raise ValueError(f"--key-file {key_file}: {error}") from error
    worker = WorkerListener(role, host.strip("[]"), int(port), model=model, threads=threads, key=key)
    # A key that was given is known to who gave it, and need not stand in a log.
    say(worker.address if key is None else worker.address.rpartition("/")[0] + "/KEY")
    with contextlib.suppress(KeyboardInterrupt):
        worker.serve(tell)
    worker.close()
