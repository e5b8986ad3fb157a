"""Processes that train together on this machine: started, watched, and stopped together."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from anabranch.distributed.errors import PipelineError, RankFailed
from anabranch.distributed.malloc import keep_freed_memory

# After it what torch imports in the first backward that is given gradients and in the first optimizer: seconds each.
_PRELOADED = ["anabranch.distributed", "torch.fx.experimental.symbolic_shapes", "torch._dynamo"]
_GRACE_S = 5.0  # for the others to say what they saw, after one has failed


@dataclass(frozen=True)
class Kept:
    """Stands for what every process of a :class:`Ranks` keeps under this number; in a call each process sees its own.

    Attributes:
        owner: a token of the :class:`Ranks`, so that no other takes it for its own.
    """

    number: int
    owner: str


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Inside, torch computes with so many threads in this process; also a decorator.

    Raises:
        ValueError: fewer than one.
    """
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _context(preload: Sequence[str]) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED, *preload])
    return context


def prepare_ranks(preload: Sequence[str] = ()) -> None:
    """Have the server that processes are forked from import what they need, while this process goes on.

    Only saves time, of a program that has something else to do before its first :class:`Ranks`.

    Args:
        preload: as in :class:`Ranks`.
    """
    _context(preload)
    forkserver.ensure_running()


class Ranks:
    """Processes with ``torch.distributed`` set up between them, which call functions until the ``with`` block ends.

    They are forked from a server that has imported torch once, so starting some takes a fraction of a second. Whatever one of
    them does, nobody waits for ever: when a process raises or dies the others are told, given a few seconds to account for
    themselves, and stopped.

    Args:
        nproc: how many.
        backend: "gloo" or "nccl".
        threads: of each process; every call sets it.
        preload: modules that the server imports too, if it has not started yet.
        keep_memory: have processes keep what they free (:func:`keep_freed_memory`), so that the next step need not ask for it.

    Raises:
        ValueError: fewer than one process or thread.
    """

    def __init__(
        self, nproc: int, *, backend: str = "gloo", threads: int = 1, preload: Sequence[str] = (),
        keep_memory: bool = True,
    ) -> None:  # fmt: skip
        for name, value in (("nproc", nproc), ("threads", threads)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        self.nproc = nproc
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = _context(preload)
        self._kept = 0
        self._owner, self._held = uuid.uuid4().hex, set[int]()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(nproc):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, nproc, backend, threads, self._store.port, keep_memory)
            process = context.Process(target=_serve, args=arguments, daemon=True, name=f"rank {rank}")
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        """Process numbers, by rank."""
        return [process.pid or 0 for process in self._processes]

    def call(self, fn: Callable[..., Any], *arguments: Any) -> list[Any]:
        """``fn(*arguments)`` in every process at once; what each returned, by rank. ``fn`` must be a module's own name.

        An argument that is a :class:`Kept` is, in each process, what that process keeps.

        Raises:
            ValueError: what other processes keep, or what has been forgotten.
            RankFailed: a process raised or died; all are stopped then.
        """
        return self._call(fn, arguments, None)

    def keep(self, fn: Callable[..., Any], *arguments: Any) -> Kept:
        """As :meth:`call`, but what ``fn`` returns stays in the processes, for later calls: a model, data, a pipeline.

        Raises:
            RankFailed: a process raised or died; all are stopped then.
        """
        self._kept += 1
        number = self._kept
        self._call(fn, arguments, number)
        self._held.add(number)
        return Kept(number, self._owner)

    def forget(self, kept: Kept) -> None:
        """Let the processes free what they keep under ``kept``, unless something else that they keep needs it.

        Raises:
            ValueError: what other processes keep, or what has been forgotten.
            RankFailed: a process raised or died; all are stopped then.
        """
        self._call(None, (kept,), None)
        self._held.remove(kept.number)

    def _call(self, fn: Callable[..., Any] | None, arguments: tuple[Any, ...], keep: int | None) -> list[Any]:
        if not self._processes:
            raise ValueError("the processes have been stopped")
        for kept in arguments:
            if isinstance(kept, Kept) and (kept.owner != self._owner or kept.number not in self._held):
                owner = "other processes" if kept.owner != self._owner else "nobody: it has been forgotten"
                raise ValueError(f"what number {kept.number} stands for is kept by {owner}")
        begun = False
        try:
            for pipe in self._pipes:
                with contextlib.suppress(OSError):  # found below
                    pipe.send((fn, arguments, keep))
                begun = True
            return self._answers()
        except BaseException as error:
            # Left alone, the next call would take the answers to this one for its own. What cannot be sent has begun nothing.
            if begun or not isinstance(error, Exception):
                self.stop()
            raise

    def _answers(self) -> list[Any]:
        """Of every process, to one call."""
        results: dict[int, Any] = {}
        failed: dict[int, Any] = {}  # how it died, or (saw another fail, trace)
        first: int | None = None
        deadline = float("inf")
        while len(results) + len(failed) < self.nproc and time.monotonic() < deadline:
            left = {self._pipes[r]: r for r in range(self.nproc) if r not in results and r not in failed}
            for ready in wait(list(left), timeout=0.5):
                rank = next(r for pipe, r in left.items() if pipe is ready)
                try:
                    good, value = self._pipes[rank].recv()
                except (EOFError, OSError):
                    good, value = False, self._death(rank)
                (results if good else failed)[rank] = value
                if not good and first is None:
                    deadline, first = time.monotonic() + _GRACE_S, rank
        if first is None:
            return [results[rank] for rank in range(self.nproc)]
        self.stop()
        reports = {rank: text if isinstance(text, str) else text[1] for rank, text in failed.items()}
        reports |= {r: "stopped while it waited" for r in range(self.nproc) if r not in results and r not in reports}
        # Whoever was killed began it; whoever only saw another stage fail did not.
        first = min(failed, key=lambda rank: 0 if isinstance(failed[rank], str) else 1 + failed[rank][0])
        others = "".join(
            f"\n\nrank {rank}: {text.strip().splitlines()[-1]}"
            for rank, text in sorted(reports.items())
            if rank != first
        )
        raise RankFailed(first, f"rank {first} of {self.nproc} failed: {reports[first].strip()}{others}", reports)

    def stop(self) -> None:
        """End all processes, at once if they do not listen."""
        for pipe in self._pipes:
            pipe.close()  # a process that waits for work ends when its pipe does
        until = time.monotonic() + 1.0
        for process in self._processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes, self._processes = [], []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _death(self, rank: int) -> str:
        self._processes[rank].join(1.0)
        code = self._processes[rank].exitcode
        if code is not None and code < 0:
            return f"ended by signal {-code} ({signal.Signals(-code).name})"
        return f"ended with exit code {code} before it had an answer"


def launch(fn: Callable[..., Any], nproc: int, *arguments: Any, backend: str = "gloo", threads: int = 1) -> list[Any]:
    """``fn(*arguments)`` in ``nproc`` new processes with ``torch.distributed`` set up; what each returned, by rank.

    Raises:
        RankFailed: a process raised or died; the others are stopped within seconds and the message says what each saw.
    """
    with Ranks(nproc, backend=backend, threads=threads) as ranks:
        return ranks.call(fn, *arguments)


def _serve(pipe: Connection, rank: int, nproc: int, backend: str, threads: int, port: int, keep_memory: bool) -> None:
    """The life of a process: join the group, then answer calls until the pipe is closed."""
    code = 0
    kept: dict[int, Any] = {}
    if keep_memory:
        keep_freed_memory()
    gc.freeze()  # a collection would read, and so copy, all that the processes share since they were forked
    try:
        torch.set_num_threads(threads)
        store = TCPStore("127.0.0.1", port, is_master=False)
        dist.init_process_group(backend, store=store, rank=rank, world_size=nproc, timeout=timedelta(minutes=30))
        while True:
            try:
                fn, arguments, keep = pipe.recv()
            except EOFError:
                break
            torch.set_num_threads(threads)
            if fn is None:
                del kept[arguments[0].number]
                pipe.send((True, None))
                continue
            found = fn(*(kept[a.number] if isinstance(a, Kept) else a for a in arguments))
            if keep is not None:
                kept[keep], found = found, None
            pipe.send((True, found))
            del found  # nothing of a call outlives it, unless it is kept
    except BaseException as error:
        code = 1
        text = "".join(traceback.format_exception(error))
        pipe.send((False, (isinstance(error, PipelineError), text)))
    finally:
        pipe.close()
        os._exit(code)  # no destructors: those of a broken process group may wait
