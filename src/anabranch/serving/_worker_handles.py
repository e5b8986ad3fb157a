"""The server's end of a worker: a process of this machine, or an actor of Ray."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol, runtime_checkable

from anabranch.serving._worker_context import worker_context
from anabranch.serving._worker_loops import STOP, Message, WorkerSpec, work

OnEvent = Callable[[Message], None]  # "dead" with a reason is the last one


@runtime_checkable
class Handle(Protocol):
    """A worker as the server sees it."""

    def send(self, message: Message) -> None:
        """Raises nothing: a worker that is gone says so by its last event."""

    def stop(self) -> None: ...


def _process(spec: WorkerSpec, connection: Connection) -> None:
    work(spec, connection, queue.Queue())


class ProcessHandle:
    """A process of its own, into which no thread or lock of the server is copied."""

    def __init__(self, spec: WorkerSpec, name: str, on_event: OnEvent) -> None:
        context = worker_context()
        self._connection, theirs = context.Pipe()
        self._lock = threading.Lock()
        self.process = context.Process(target=_process, args=(spec, theirs), name=name, daemon=True)
        self.process.start()
        theirs.close()  # so that its death is the end of the pipe
        threading.Thread(target=self._listen, args=(on_event,), daemon=True).start()

    def _listen(self, on_event: OnEvent) -> None:
        while True:
            try:
                event = self._connection.recv()
            except (EOFError, OSError):
                break
            on_event(event)
        self.process.join(timeout=10)
        on_event(("dead", f"{self.process.name} ended with exit code {self.process.exitcode}"))

    def send(self, message: Message) -> None:
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            return

    def stop(self) -> None:
        self.send(STOP)
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(timeout=5)
        self._connection.close()


def start_worker(spec: WorkerSpec, name: str, on_event: OnEvent) -> Any:
    """Start a worker of the kind that its transport asks for."""
    if spec.transport == "ray":
        from anabranch.serving._ray_workers import ActorHandle

        return ActorHandle(spec, name, on_event)
    return ProcessHandle(spec, name, on_event)
