"""Workers as actors of Ray: messages, events and the layers of caches are remote calls, on one machine or many."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

from anabranch.serving._worker_loops import STOP, Message, WorkerSpec, work
from anabranch.serving.kv_buffers import Assembler, KvBuffers, LayerBuffer, pack_header, unpack_header


class RaySender:
    """Layers as arguments of remote calls: Ray puts large ones into its object store and ships them between machines."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def send(self, request: int, layer: int, layers: int, buffer: LayerBuffer) -> None:
        keys, values = (part.view(torch.uint8).numpy() for part in (buffer.keys, buffer.values))
        self._actor.receive.remote(pack_header(request, layer, layers, buffer), keys, values)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Receiver:
    """Where an actor's ``receive`` puts layers."""

    def __init__(self) -> None:
        self.assembler = Assembler()
        self.deliver: Callable[[int, KvBuffers], None] = lambda request, buffers: None
        self._lock = threading.Lock()

    def receive(self, header: bytes, keys: Any, values: Any) -> None:
        request, layer, layers, buffer = unpack_header(header)
        for part, raw in ((buffer.keys, keys), (buffer.values, values)):
            part.view(torch.uint8).numpy()[...] = raw  # Ray's arrays are read-only and belong to its store
        with self._lock:
            whole = self.assembler.add(request, layer, layers, buffer)
        if whole is not None:
            self.deliver(request, whole)

    def close(self) -> None:
        pass


class _Channel:
    """Messages and events in queues of the actor."""

    def __init__(self) -> None:
        self.messages: queue.Queue[Message] = queue.Queue()
        self.events: queue.Queue[Message] = queue.Queue()

    def recv(self) -> Message:
        return self.messages.get()

    def send(self, event: Message) -> None:
        self.events.put(event)


class InOrder:
    """Gives numbered messages on by their numbers, from 0, in whatever order they come."""

    def __init__(self, give: Callable[[Message], None]) -> None:
        self._give, self._next = give, 0
        self._early: dict[int, Message] = {}
        self._lock = threading.Lock()

    def put(self, number: int, message: Message) -> None:
        with self._lock:
            self._early[number] = message
            while self._next in self._early:
                self._give(self._early.pop(self._next))
                self._next += 1


class Worker:
    """The actor: its loop runs in a thread beside the remote calls."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._channel, self._receiver = _Channel(), _Receiver()
        self._messages = InOrder(self._channel.messages.put)
        arguments: Any = (spec, self._channel, queue.Queue(), self._receiver)
        self._thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._thread.start()

    def post(self, number: int, message: Message) -> None:
        """Calls of one caller run side by side, so a later one may come first: hence the number."""
        self._messages.put(number, message)

    def receive(self, header: bytes, keys: Any, values: Any) -> None:
        self._receiver.receive(header, keys, values)

    def events(self) -> list[Message]:
        """Those that are there; waits up to a second for the first."""
        found: list[Message] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._channel.events.get(timeout=1.0))
            while True:
                found.append(self._channel.events.get_nowait())
        if not found and not self._thread.is_alive():
            found.append(("dead", "its loop has ended"))
        return found


def connect_ray() -> None:
    """Join the cluster that is there, or start one on this machine, whose workers run in this environment."""
    # Under `uv run` Ray would build another environment for its workers, unless told not to before it is imported.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, ignore_reinit_error=True)


class ActorHandle:
    """An actor, and a thread that waits for its events."""

    def __init__(self, spec: WorkerSpec, name: str, on_event: Callable[[Message], None]) -> None:
        connect_ray()
        import ray

        self._name, self._stopped, self._numbers = name, threading.Event(), itertools.count()
        options = {"max_concurrency": 8, "num_cpus": 0, "max_restarts": 0}
        self.actor: Any = ray.remote(Worker).options(**options).remote(spec)
        threading.Thread(target=self._listen, args=(on_event,), daemon=True).start()

    def _listen(self, on_event: Callable[[Message], None]) -> None:
        import ray

        while not self._stopped.is_set():
            try:
                for event in ray.get(self.actor.events.remote()):
                    on_event(event)
                    if event[0] == "dead":
                        return
            except Exception as error:  # Ray has many: the actor died, its machine left, the cluster shut down
                on_event(("dead", f"{self._name} ended: {str(error).strip().splitlines()[0]}"))
                return

    def send(self, message: Message) -> None:
        self.actor.post.remote(next(self._numbers), message)

    def stop(self) -> None:
        import ray

        self._stopped.set()
        with contextlib.suppress(Exception):
            self.send(STOP)
            ray.kill(self.actor)
