"""Workers on other hosts: a process that listens for servers, and the server's end of the connection.

Both sides prove that they know the key of the worker's address (``multiprocessing.connection``'s challenge) before anything else
is read. Messages are pickled then, neither encrypted nor authenticated: whoever has the key, or can change what goes over the
network, may run code on the worker's host.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from anabranch.serving._worker_handles import OnEvent
from anabranch.serving._worker_loops import STOP, Message, WorkerSpec, work
from anabranch.serving.streams import ServingError
from anabranch.serving.transports import parse_tcp
from anabranch.serving.workers import usable_device

ROLES = ("prefill", "decode")
HANDSHAKE_S, STRANGERS = 10.0, 16  # of those that have not shown the key yet: time, and how many at once
STOP_S = 10.0


def _set_socket_options(same: socket.socket) -> None:
    """Small messages go off at once, and a host that is gone is noticed within about 30 s."""
    same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
    for name, value in wanted.items():
        if hasattr(socket, name):  # not on every platform
            same.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _shut(connection: Any) -> None:
    """Both sides hear of the end at once, a thread of this process that waits on the connection as well."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _within(seconds: float, connection: Any) -> Iterator[None]:
    """What reads or writes on the connection fails (``EOFError``, ``OSError``) when the time is up."""
    timer = threading.Timer(seconds, _shut, (connection,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class RemoteHandle:
    """A worker that is addressed by ``tcp://HOST:PORT/KEY``; it is not started here, and not ended here.

    Raises:
        ValueError: another form of address. ServingError: no answer within ``timeout_s``, the wrong key, or it works for another
            server.
    """

    def __init__(self, url: str, timeout_s: float = 300.0) -> None:
        host, port, key = parse_tcp(url)
        self.name = f"{host}:{port}"
        self.host = host
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        stop = time.monotonic() + timeout_s
        try:
            same = socket.create_connection((host, port), timeout=max(0.001, timeout_s))
        except OSError as error:
            raise ServingError(f"worker at {self.name} does not answer: {error}") from error
        same.settimeout(None)
        _set_socket_options(same)
        self._connection: Any = Connection(same.detach())
        try:
            with _within(max(0.001, stop - time.monotonic()), self._connection):
                answer_challenge(self._connection, key)
                deliver_challenge(self._connection, key)
                kind, self.role = self._connection.recv()
        except AuthenticationError as error:
            self._connection.close()
            raise ServingError(f"worker at {self.name}: the key of the address is not its own") from error
        except (OSError, EOFError) as error:
            self._connection.close()
            why = f"nothing within {timeout_s:.3g} s" if time.monotonic() >= stop else error or "it hung up"
            raise ServingError(f"worker at {self.name} does not answer: {why}") from error
        if kind == "busy":
            self._connection.close()
            raise ServingError(f"worker at {self.name} works for another server")

    def start(self, spec: WorkerSpec, on_event: OnEvent) -> None:
        """Tell it what it is to serve, and listen to it."""
        self.send(("spec", spec))
        self._thread = threading.Thread(target=self._listen, args=(on_event,), daemon=True)
        self._thread.start()

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
        """End the connection, when the worker has ended it or after 10 s; the worker waits for another server."""
        self.send(STOP)
        if self._thread is not None:
            self._thread.join(timeout=STOP_S)
        else:
            with contextlib.suppress(OSError, EOFError), _within(STOP_S, self._connection):
                self._connection.recv()
        _shut(self._connection)
        with contextlib.suppress(OSError):
            self._connection.close()


def _address_of(host: str) -> str:
    """
    Raises:
        ValueError: no name or IPv4 address of one interface.
    """
    if ":" in host:
        raise ValueError(
            f"host={host!r}: expected an IPv4 address or a name that has one, workers do not listen on IPv6"
        )
    try:
        found = socket.getaddrinfo(host or "0", None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise ValueError(f"host={host!r}: {error}") from error
    if ipaddress.ip_address(found).is_unspecified:
        raise ValueError(f"host={host!r}: expected the name or address by which the other workers reach this one")
    return str(found)


class WorkerListener:
    """The worker's side: serves one server after another, until :meth:`close`.

    Args:
        role: "prefill" or "decode".
        host: to listen on; also where a decode worker takes caches, so that prefill workers must reach it by this name.
        port: 0 for a free one.
        model: its own copy of the model; else the path that the server names.
        threads: of the processor.
        device: for the model: "cpu", "cuda" or "cuda:1".
        key: 16 bytes; a random one if not given.

    Raises:
        ValueError: another role, a device that is not there, a host that stands for all of them, IPv6, a key of another length.
        OSError: a port that is taken.
    """

    def __init__(
        self,
        role: str,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        model: str | Path | None = None,
        threads: int = 1,
        device: str = "cpu",
        key: bytes | None = None,
    ) -> None:
        if role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
        usable_device(device)
        _address_of(host)
        self._key = secrets.token_bytes(16) if key is None else key
        if len(self._key) != 16:
            raise ValueError(f"key must have 16 bytes, got {len(self._key)}")
        self.role, self._host, self._model, self._threads, self._device = role, host, model, threads, device
        self._listener = socket.create_server((host, port), backlog=16)
        self.address = f"tcp://{host}:{self._listener.getsockname()[1]}/{self._key.hex()}"
        self._strangers = threading.Semaphore(STRANGERS)
        self._busy, self._closed = threading.Lock(), False
        self._servers: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                same, _ = self._listener.accept()
            except (
                OSError
            ):  # closed, a connection that ended at once, or no file is left for it: not to be asked all the time
                if not self._closed:
                    time.sleep(0.1)
                continue
            if not self._strangers.acquire(blocking=False):
                same.close()
                continue
            threading.Thread(target=self._meet, args=(same,), daemon=True).start()

    def _meet(self, same: socket.socket) -> None:
        try:
            _set_socket_options(same)
            self._greet(Connection(same.detach()))
        except OSError:
            same.close()
        finally:
            self._strangers.release()

    def _greet(self, connection: Any) -> None:
        """A stranger is hung up on; one that says nothing keeps nobody else waiting, and is hung up on as well in the end."""
        try:
            with _within(HANDSHAKE_S, connection):
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
        """Work for one server after another, whatever becomes of each; returns after :meth:`close`."""
        while (connection := self._servers.get()) is not None:
            try:
                connection.send(("hello", self.role))
                kind, *rest = connection.recv()
                if kind == "spec":  # else it has gone already
                    say("a server is there")
                    work(self._own(rest[0]), connection, queue.Queue())
                    say("it is gone")
            except (EOFError, OSError):
                say("a server was lost")
            except Exception as error:
                say(f"a server was lost: {type(error).__name__}: {error}")
            finally:
                self._busy.release()  # before the server hears of the end: it may ask again at once
                _shut(connection)
                connection.close()

    def _own(self, spec: WorkerSpec) -> WorkerSpec:
        path = spec.path if self._model is None else str(self._model)
        return replace(
            spec,
            role=self.role,
            path=path,
            host=self._host,
            threads=self._threads,
            device=self._device,
            transport="tcp",
        )

    def close(self) -> None:
        self._closed = True
        self._servers.put(None)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits on it
        self._listener.close()


def connect_workers(urls: list[str], timeout_s: float = 300.0) -> list[RemoteHandle]:
    """Connections to all within ``timeout_s``, or to none.

    Raises:
        ValueError: an address of another form, or no worker of one of the roles. ServingError: a worker that does not answer.
    """
    found: list[RemoteHandle] = []
    stop = time.monotonic() + timeout_s
    try:
        for url in urls:
            found.append(RemoteHandle(url, stop - time.monotonic()))
        for role in ROLES:
            if not any(one.role == role for one in found):
                raise ValueError(f"workers has no {role} worker: expected at least one of {' and '.join(ROLES)}")
    except BaseException:
        for one in found:
            one.stop()
        raise
    return found
