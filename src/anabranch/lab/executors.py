"""Where runs take place: this process, or a pool of processes. Both give runs back as folders, in the order asked for."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from anabranch.lab.environment import cores
from anabranch.lab.errors import LabError
from anabranch.lab.events import Listener, read_events
from anabranch.lab.execution import Request, execute, execute_queued, header_for
from anabranch.lab.runs import Run, RunFolder, read_run

ListenerFor = Callable[[Request], Listener]


class Executor(Protocol):
    """Runs requests; yields their runs in order. ``shares_machine`` refuses timing claims."""

    name: str
    shares_machine: bool

    def run(self, requests: Sequence[Request], *, listener_for: ListenerFor | None = None) -> Iterator[Run]: ...


@dataclass
class ThisProcess:
    """One run after another in this process."""

    name: str = "here"
    shares_machine: bool = False

    def run(self, requests: Sequence[Request], *, listener_for: ListenerFor | None = None) -> Iterator[Run]:
        for request in requests:
            yield execute(request, listener=listener_for(request) if listener_for else None)


@dataclass
class ProcessPool:
    """Several runs at once, each in a process of its own. A process that dies leaves its run *interrupted*, and no other."""

    workers: int = 2
    name: str = "pool"
    shares_machine: bool = True
    poll_s: float = 0.05

    def run(self, requests: Sequence[Request], *, listener_for: ListenerFor | None = None) -> Iterator[Run]:
        folders = [queue(request, self.name, self.shares_machine) for request in requests]
        waiting = [_process(folder, self.workers) for folder in folders]
        processes = dict(zip(folders, waiting, strict=True))
        try:
            for request, folder in zip(requests, folders, strict=True):
                listener, seen = listener_for(request) if listener_for else None, -1
                while True:
                    active = sum(process.is_alive() for process in processes.values())
                    for process in waiting[: max(0, self.workers - active)]:
                        waiting.remove(process)
                        process.start()
                    ended = processes[folder].exitcode is not None
                    seen = follow(folder, listener, seen)
                    if ended:
                        break
                    time.sleep(self.poll_s)
                yield read_run(folder)
        finally:
            for process in processes.values():
                if process.is_alive():
                    process.terminate()
            for process in processes.values():
                if process.pid is not None:
                    process.join()


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


def _process(folder: Path, workers: int) -> BaseProcess:
    threads = max(1, cores() // workers)
    return multiprocessing.get_context("spawn").Process(target=_work, args=(str(folder), threads))


def _work(folder: str, threads: int) -> None:
    for name, value in thread_limits(threads).items():
        os.environ.setdefault(name, value)
    with contextlib.suppress(KeyboardInterrupt):  # the run's folder says that it was cancelled
        execute_queued(Path(folder))


def executor_named(text: str) -> Executor:
    """``here``, ``pool`` (one worker a core), ``pool:N``, ``ray`` (a local cluster), ``ray:N`` or ``ray:ADDRESS``.

    Raises:
        LabError: there is no such executor.
    """
    kind, _, count = text.partition(":")
    if kind == "here" and not count:
        return ThisProcess()
    if kind == "pool":
        if count and (not count.isdigit() or int(count) < 1):
            raise LabError(f"--on {text}: expected pool:N with N of at least 1")
        return ProcessPool(int(count) if count else cores())
    if kind == "ray":
        from anabranch.lab.ray_executor import RayCluster

        if not count:
            return RayCluster()
        if not count.isdigit():  # "ray://host:port" is an address as it stands
            return RayCluster(address=text if count.startswith("//") else count)
        if int(count) < 1:
            raise LabError(f"--on {text}: expected ray:N with N of at least 1")
        return RayCluster(int(count))
    raise LabError(f"--on {text}: expected here, pool, pool:N, ray, ray:N or ray:ADDRESS")
