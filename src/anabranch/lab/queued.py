"""Runs that wait for a worker, and what every executor of such runs needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from anabranch.lab.events import Listener, read_events
from anabranch.lab.execution import Request, header_for
from anabranch.lab.runs import RunFolder

ListenerFor = Callable[[Request], Listener]


def queue(request: Request, executor: str, shares_machine: bool) -> Path:
    """A run folder for ``request`` that waits for a worker."""
    header = header_for(request, executor=executor, shares_machine=shares_machine)
    with RunFolder.create(header, queued=True) as queued:
        return queued.folder


def follow(folder: Path, listener: Listener | None, seen: int) -> int:
    """Passes on the events of a run after event ``seen``; gives the number of the last one."""
    if listener is not None:
        for event in read_events(folder / "events.jsonl", after=seen):
            seen = event["n"]
            listener(event)
    return seen


def thread_limits(threads: int) -> dict[str, str]:
    """The environment that keeps a worker's libraries to so many threads."""
    return dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
