"""Lanes of a machine that run at the same time: threads pinned to cores, or streams of a GPU. They execute schedules for real."""

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, runtime_checkable

import torch

Row = tuple[str, float, float, str]


@dataclass(frozen=True)
class Piece:
    """Something to run in a lane, after the lane's pieces before it and the pieces ``after`` (their places in the list)."""

    lane: int
    run: Callable[[], object]
    after: tuple[int, ...] = ()
    kind: str = ""


@runtime_checkable
class Lanes(Protocol):
    """What executes :class:`Piece` s: each lane in order, lanes at the same time."""

    count: int

    def run(self, pieces: Sequence[Piece]) -> list[Row]:
        """Execute; rows ``(lane, start_s, end_s, kind)`` in the order of the pieces."""

    def close(self) -> None:
        """Let the lanes go."""


def usable_cores() -> tuple[int, ...]:
    """Cores that this process may run on, ascending."""
    return tuple(sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)))


class CpuLanes:
    """One thread a core, pinned to it, whose torch operations use that thread alone. Torch and numba let each other run.

    Args:
        cores: the cores of the lanes; all that this process may use if not given.

    Raises:
        ValueError: no cores, one twice, or one that this process may not use.
    """

    def __init__(self, cores: Sequence[int] | None = None) -> None:
        usable = usable_cores()
        self.cores = usable if cores is None else tuple(cores)
        if not self.cores or len(set(self.cores)) < len(self.cores) or set(self.cores) - set(usable):
            raise ValueError(f"cores={list(self.cores)}: expected different ones of {list(usable)}")
        self.count = len(self.cores)
        self._work: list[queue.SimpleQueue[tuple[_Batch, list[int]] | None]] = [queue.SimpleQueue() for _ in self.cores]
        threads = torch.get_num_threads()
        ready = threading.Barrier(self.count + 1)
        self._threads = [
            threading.Thread(target=self._serve, args=(lane, ready), daemon=True, name=f"lane-{lane}")
            for lane in range(self.count)
        ]
        for thread in self._threads:
            thread.start()
        ready.wait()
        torch.set_num_threads(threads)  # the lanes' own setting is theirs alone

    def __enter__(self) -> "CpuLanes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        for work in self._work:
            work.put(None)
        for thread in self._threads:
            thread.join()

    def run(self, pieces: Sequence[Piece]) -> list[Row]:
        """Execute the pieces; gives ``(lane, start_s, end_s, kind)`` of each, from the start of the run.

        Raises:
            ValueError: a lane that is not there, a piece that waits for itself or a later one.
            Exception: what a piece raised; the pieces not yet begun are left out.
        """
        check_pieces(pieces, self.count)
        batch = _Batch(pieces)
        for lane, work in enumerate(self._work):
            work.put((batch, [i for i, piece in enumerate(pieces) if piece.lane == lane]))
        for _ in self._work:
            batch.finished.acquire()
        if batch.error is not None:
            raise batch.error
        return [(f"core {self.cores[p.lane]}", a, b, p.kind) for p, (a, b) in zip(pieces, batch.times, strict=True)]

    def _serve(self, lane: int, ready: threading.Barrier) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {self.cores[lane]})  # of this thread
        torch.set_num_threads(1)
        ready.wait()
        with torch.inference_mode():
            while (item := self._work[lane].get()) is not None:
                batch, mine = item
                for i in mine:
                    batch.execute(i)
                batch.finished.release()


class _Batch:
    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self.awaited = {i for piece in pieces for i in piece.after}
        self.done = {i: threading.Event() for i in self.awaited}
        self.times = [(0.0, 0.0)] * len(pieces)
        self.begun = time.perf_counter()
        self.error: Exception | None = None
        self.finished = threading.Semaphore(0)

    def execute(self, i: int) -> None:
        piece = self.pieces[i]
        for other in piece.after:
            self.done[other].wait()
        try:
            if self.error is None:
                start = time.perf_counter()
                piece.run()
                self.times[i] = start - self.begun, time.perf_counter() - self.begun
        except Exception as error:
            self.error = error
        finally:
            if i in self.awaited:
                self.done[i].set()


class CudaLanes:
    """Streams of one GPU: pieces are launched in order, and wait for each other by events.

    Raises:
        ValueError: fewer than one lane. RuntimeError: no GPU.
    """

    def __init__(self, count: int, device: str | torch.device = "cuda") -> None:
        if count < 1:
            raise ValueError(f"count must be >= 1, got {count}")
        if not torch.cuda.is_available():
            raise RuntimeError("CudaLanes needs a GPU; CpuLanes runs on cores")
        self.count = count
        self.device = torch.device(device)
        self._streams = [torch.cuda.Stream(self.device) for _ in range(count)]

    def run(self, pieces: Sequence[Piece]) -> list[Row]:
        """Execute the pieces; gives ``(lane, start_s, end_s, kind)`` of each. Raises as :class:`CpuLanes` does."""
        check_pieces(pieces, self.count)
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in pieces]
        begun = torch.cuda.Event(enable_timing=True)
        begun.record(torch.cuda.current_stream(self.device))
        for piece, (start, end) in zip(pieces, marks, strict=True):
            stream = self._streams[piece.lane]
            stream.wait_event(begun)
            for other in piece.after:
                stream.wait_event(marks[other][1])
            with torch.cuda.stream(stream), torch.inference_mode():
                start.record(stream)
                piece.run()
                end.record(stream)
        torch.cuda.synchronize(self.device)
        return [
            (f"stream {piece.lane}", begun.elapsed_time(a) / 1e3, begun.elapsed_time(b) / 1e3, piece.kind)
            for piece, (a, b) in zip(pieces, marks, strict=True)
        ]

    def close(self) -> None:
        """Nothing to let go of."""


def check_pieces(pieces: Sequence[Piece], lanes: int) -> None:
    """Lanes that exist, and only pieces before to wait for: no order of execution can then stand still.

    Raises:
        ValueError: the first piece that breaks a rule.
    """
    for i, piece in enumerate(pieces):
        if not 0 <= piece.lane < lanes:
            raise ValueError(f"piece {i} is for lane {piece.lane}: there are {lanes}")
        late = [other for other in piece.after if not 0 <= other < i]
        if late:
            raise ValueError(f"piece {i} waits for {late}: expected pieces before it")
