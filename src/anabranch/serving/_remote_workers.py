"""Workers on other hosts: a process that listens for servers, and the server's end of the connection.

Both sides prove that they know the key of the worker's address (``multiprocessing.connection``'s challenge) before anything else
is read. Messages are pickled then: whoever has the key may run code on the worker's host, as with every such system.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from anabranch.serving._worker_handles import OnEvent
from anabranch.serving._worker_loops import STOP, Message, WorkerSpec, work
from anabranch.serving.streams import ServingError
from anabranch.serving.transports import parse_tcp

ROLES = ("prefill", "decode")


def _prompt(connection: Connection) -> None:
    """Small messages go off at once, and a host that is gone is noticed."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


class RemoteHandle:
    """A worker that is addressed by ``tcp://HOST:PORT/KEY``; it is not started here, and not ended here.

    Raises:
        ValueError: another form of address. ServingError: no answer, the wrong key, or it works for another server.
    """

    def __init__(self, url: str) -> None:
        host, port, key = parse_tcp(url)
        self.name = f"{host}:{port}"
        self.host = host
        try:
            self._connection: Any = Client((host, port), authkey=key)
            kind, self.role = self._connection.recv()
        except AuthenticationError as error:
            raise ServingError(f"worker at {self.name}: the key of the address is not its own") from error
        except (OSError, EOFError) as error:
            raise ServingError(f"worker at {self.name} does not answer: {error}") from error
        if kind == "busy":
            self._connection.close()
            raise ServingError(f"worker at {self.name} works for another server")
        self._lock = threading.Lock()

    def start(self, spec: WorkerSpec, on_event: OnEvent) -> None:
        """Tell it what it is to serve, and listen to it."""
        _prompt(self._connection)
        self.send(("spec", spec))
        threading.Thread(target=self._listen, args=(on_event,), daemon=True).start()

    def _listen(self, on_event: OnEvent) -> None:
        while True:
            try:
                event = self._connection.recv()
            except (EOFError, OSError, TypeError):  # TypeError: closed here while it was waited for
                break
            on_event(event)
        on_event(("dead", f"{self.role} worker at {self.name} is gone: its connection ended"))

    def send(self, message: Message) -> None:
        with contextlib.suppress(OSError), self._lock:
            self._connection.send(message)

    def stop(self) -> None:
        """End the connection; the worker waits for another server."""
        self.send(STOP)
        with contextlib.suppress(OSError):
            self._connection.close()


class WorkerListener:
    """The worker's side: serves one server after another, until :meth:`close`.

    Args:
        role: "prefill" or "decode".
        host: to listen on; also where a decode worker takes caches, so that prefill workers must reach it by this name.
        port: 0 for a free one.
        model: its own copy of the model; else the path that the server names.
        threads: of the processor.
        key: 16 bytes; a random one if not given.

    Raises:
        ValueError: another role, a host that stands for all of them, a key of another length. OSError: a port that is taken.
    """

    def __init__(
        self,
        role: str,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        model: str | Path | None = None,
        threads: int = 1,
        key: bytes | None = None,
    ) -> None:
        if role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
        if host in ("", "0.0.0.0", "::"):
            raise ValueError(f"host={host!r}: expected the name or address by which the other workers reach this one")
        self._key = secrets.token_bytes(16) if key is None else key
        if len(self._key) != 16:
            raise ValueError(f"key must have 16 bytes, got {len(self._key)}")
        self.role, self._host, self._model, self._threads = role, host, model, threads
        self._listener = Listener((host, port), backlog=16)
        self.address = f"tcp://{host}:{self._listener.address[1]}/{self._key.hex()}"
        self._busy, self._closed = threading.Lock(), False
        self._servers: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection = self._listener.accept()
            except OSError:
                continue  # closed, or a connection that ended at once
            threading.Thread(target=self._greet, args=(connection,), daemon=True).start()

    def _greet(self, connection: Any) -> None:
        """A stranger is hung up on; one that says nothing keeps nobody else waiting."""
        try:
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            if not self._busy.acquire(blocking=False):
                connection.send(("busy", self.role))
                connection.close()
                return
        except (AuthenticationError, OSError, EOFError):
            connection.close()
            return
        self._servers.put(connection)

    def serve(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Work for one server after another; returns after :meth:`close`."""
        while (connection := self._servers.get()) is not None:
            try:
                connection.send(("hello", self.role))
                kind, *rest = connection.recv()
                if kind == "spec":  # else it has gone already
                    _prompt(connection)
                    say("a server is there")
                    work(self._own(rest[0]), connection, queue.Queue())
                    say("it is gone")
            except (EOFError, OSError):
                say("a server was lost")
            finally:
                connection.close()
                self._busy.release()

    def _own(self, spec: WorkerSpec) -> WorkerSpec:
        path = spec.path if self._model is None else str(self._model)
        return replace(spec, role=self.role, path=path, host=self._host, threads=self._threads, transport="tcp")

    def close(self) -> None:
        self._closed = True
        self._servers.put(None)
        self._listener.close()


def connect_workers(urls: list[str]) -> list[RemoteHandle]:
    """Connections to all, or to none.

    Raises:
        ValueError: an address of another form, or no worker of one of the roles. ServingError: a worker that does not answer.
    """
    found: list[RemoteHandle] = []
    try:
        for url in urls:
            found.append(RemoteHandle(url))
        for role in ROLES:
            if not any(one.role == role for one in found):
                raise ValueError(f"workers has no {role} worker: expected at least one of {' and '.join(ROLES)}")
    except BaseException:
        for one in found:
            one.stop()
        raise
    return found
