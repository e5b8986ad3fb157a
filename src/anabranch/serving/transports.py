"""How the layers of a cache go from one process to another: a ring in shared memory, or TCP.

A sender has ``send(request, layer, layers, buffer)``; a receiver gives whole caches to ``deliver(request, buffers)`` from a
thread of its own. Both sides name a receiver by an address: ``shm:NAME`` or ``tcp://HOST:PORT/KEY``.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from typing import Protocol, runtime_checkable

from anabranch.serving.kv_buffers import (
    HEADER_BYTES,
    Assembler,
    KvBuffers,
    LayerBuffer,
    as_bytes,
    pack_header,
    unpack_header,
)

Deliver = Callable[[int, KvBuffers], None]
_COUNTERS = 64  # bytes at the head of a ring: written, read, closed
_WRITTEN, _READ, _CLOSED = 0, 8, 16
_IDLE_S = 0.0005


class TransportClosed(OSError):
    """The other side is gone."""


@runtime_checkable
class KvSender(Protocol):
    """One end of a transport."""

    def send(self, request: int, layer: int, layers: int, buffer: LayerBuffer) -> None: ...

    def flush(self) -> None:
        """Return when all that was sent has left."""

    def close(self) -> None: ...


class ShmRing:
    """A ring of bytes in shared memory for one writer and one reader.

    Two counters, bytes ever written and ever read, are each advanced by one side only, and after the bytes themselves: what a
    writer had half written when it died is never seen.

    Args:
        name: of an existing ring; None makes a new one, of ``size_bytes``, which :meth:`unlink` removes.
    """

    def __init__(self, name: str | None = None, size_bytes: int = 2**26) -> None:
        if name is None and size_bytes < 2**12:
            raise ValueError(f"size_bytes must be >= {2**12}, got {size_bytes}")
        self._memory = SharedMemory(name=name, create=name is None, size=_COUNTERS + size_bytes if name is None else 0)
        assert self._memory.buf is not None
        self._counters = self._memory.buf[:_COUNTERS].cast("q")
        self._bytes = self._memory.buf[_COUNTERS:]
        self.size_bytes = len(self._bytes)

    @property
    def name(self) -> str:
        return self._memory.name

    def write(self, *parts: bytes | memoryview) -> None:
        """All ``parts`` as one record; waits for room.

        Raises:
            ValueError: a record larger than the ring. TransportClosed: the reader is gone.
        """
        total = sum(len(part) for part in parts)
        if total > self.size_bytes:
            raise ValueError(
                f"a layer of {total} bytes does not fit in the ring of {self.size_bytes}: use a larger ring_bytes"
            )
        while self._counters[_WRITTEN // 8] - self._counters[_READ // 8] + total > self.size_bytes:
            if self._counters[_CLOSED // 8]:
                raise TransportClosed("the reader of the ring is gone")
            time.sleep(_IDLE_S)
        at = self._counters[_WRITTEN // 8]
        for part in parts:
            begin = at % self.size_bytes
            first = min(len(part), self.size_bytes - begin)
            self._bytes[begin : begin + first] = part[:first]
            self._bytes[: len(part) - first] = part[first:]
            at += len(part)
        self._counters[_WRITTEN // 8] = at

    @property
    def waiting_bytes(self) -> int:
        return self._counters[_WRITTEN // 8] - self._counters[_READ // 8]

    def read_into(self, *parts: memoryview) -> None:
        """The next bytes; they must be there, see :attr:`waiting_bytes`. Frees their room."""
        at = self._counters[_READ // 8]
        for part in parts:
            begin = at % self.size_bytes
            first = min(len(part), self.size_bytes - begin)
            part[:first] = self._bytes[begin : begin + first]
            part[first:] = self._bytes[: len(part) - first]
            at += len(part)
        self._counters[_READ // 8] = at

    def shut(self) -> None:
        """Tell a waiting writer that nobody reads any more."""
        self._counters[_CLOSED // 8] = 1

    def close(self) -> None:
        self._counters.release()
        self._bytes.release()
        self._memory.close()

    def unlink(self) -> None:
        self._memory.unlink()


class ShmSender:
    """Writes layers to a ring in the thread that computes them: a copy in memory."""

    def __init__(self, ring: ShmRing) -> None:
        self._ring = ring

    def send(self, request: int, layer: int, layers: int, buffer: LayerBuffer) -> None:
        header = pack_header(request, layer, layers, buffer)
        self._ring.write(header, as_bytes(buffer.keys), as_bytes(buffer.values))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._ring.close()


class ShmReceiver:
    """Reads rings, one a sender, in one thread."""

    def __init__(self, rings: list[ShmRing], deliver: Deliver) -> None:
        self._rings, self._deliver, self.assembler = rings, deliver, Assembler()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            idle = True
            for ring in self._rings:
                while ring.waiting_bytes:  # a record is written whole
                    idle = False
                    header = bytearray(HEADER_BYTES)
                    ring.read_into(memoryview(header))
                    request, layer, layers, buffer = unpack_header(bytes(header))
                    ring.read_into(as_bytes(buffer.keys), as_bytes(buffer.values))
                    whole = self.assembler.add(request, layer, layers, buffer)
                    if whole is not None:
                        self._deliver(request, whole)
            if idle:
                time.sleep(_IDLE_S)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        for ring in self._rings:
            ring.close()


_KEY_BYTES = 16


class TcpReceiver:
    """Listens for senders; every connection begins with the key of the address.

    Args:
        host: to listen on, and to put into the address.
    """

    def __init__(self, deliver: Deliver, host: str = "127.0.0.1", port: int = 0) -> None:
        self._deliver, self.assembler = deliver, Assembler()
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._lock = threading.Lock()
        self._listener = socket.create_server((host, port))
        self._open: list[socket.socket] = []
        self.address = f"tcp://{host}:{self._listener.getsockname()[1]}/{self._key.hex()}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            self._open.append(connection)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with connection:
            try:
                key = _exactly(connection, _KEY_BYTES)
                if not secrets.compare_digest(bytes(key), self._key):
                    return
                while True:
                    request, layer, layers, buffer = unpack_header(bytes(_exactly(connection, HEADER_BYTES)))
                    for part in (buffer.keys, buffer.values):
                        _receive_into(connection, as_bytes(part))
                    with self._lock:
                        whole = self.assembler.add(request, layer, layers, buffer)
                    if whole is not None:
                        self._deliver(request, whole)
            except (OSError, ValueError, struct.error):  # the sender is gone, or it does not speak this protocol
                return

    def close(self) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):  # closed by the other side already
                one.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits on it
            one.close()


class TcpSender:
    """Sends layers from a thread of its own, so that the next layer is computed meanwhile."""

    def __init__(self, address: str) -> None:
        host, port, key = parse_tcp(address)
        try:
            self._socket = socket.create_connection((host, port), timeout=30)
        except OSError as error:
            raise TransportClosed(f"{host}:{port} does not answer: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(key)
        self._queue: queue.Queue[tuple[bytes, LayerBuffer] | None] = queue.Queue()
        self._failed: OSError | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            work = self._queue.get()
            try:
                if work is None:
                    return
                if self._failed is None:
                    header, buffer = work
                    for part in (header, as_bytes(buffer.keys), as_bytes(buffer.values)):
                        self._socket.sendall(part)
            except OSError as error:
                self._failed = error
            finally:
                self._queue.task_done()

    def send(self, request: int, layer: int, layers: int, buffer: LayerBuffer) -> None:
        if self._failed is not None:
            raise TransportClosed(f"the connection is lost: {self._failed}")
        self._queue.put((pack_header(request, layer, layers, buffer), buffer))

    def flush(self) -> None:
        self._queue.join()
        if self._failed is not None:
            raise TransportClosed(f"the connection is lost: {self._failed}")

    def close(self) -> None:
        self._queue.put(None)
        self._socket.close()


def parse_tcp(address: str) -> tuple[str, int, bytes]:
    """Host, port and key of ``tcp://HOST:PORT/KEY``.

    Raises:
        ValueError: anything else.
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(address)
        port, host, key = parts.port, parts.hostname, bytes.fromhex(parts.path.strip("/"))
    except ValueError:
        port, host, key = None, None, b""
    if not address.startswith("tcp://") or not host or port is None or len(key) != _KEY_BYTES:
        # Part of it may be a key: it is not shown.
        raise ValueError(f"address: expected tcp://HOST:PORT/KEY with a key of {2 * _KEY_BYTES} hex digits")
    return host, port, key


def _exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    _receive_into(connection, memoryview(data))
    return data


def _receive_into(connection: socket.socket, view: memoryview) -> None:
    while len(view):
        got = connection.recv_into(view)
        if got == 0:
            raise TransportClosed("the connection was closed")
        view = view[got:]
