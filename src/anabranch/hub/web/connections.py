"""Connections that give up on clients who are too slow: at sending their request, or at reading the answer."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_PATIENCE_S, READ_PATIENCE_S = 10.0, 30.0
_LOOK_EVERY_S = 2.0


class PatientProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn, which itself waits for ever in both cases.

    A connection is closed when the head of a request has not come whole within ``HEADER_PATIENCE_S`` after its first
    byte, or after the connection was made; and is cut off when the client takes nothing of what waits for it for
    ``READ_PATIENCE_S``. The stream of events ends with it and can be taken up again from its last event. Costs a timer
    of two seconds for each connection.
    """

    _head_since: float | None = None
    _unread, _unread_since = 0, 0.0
    _look_again: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_since = self.loop.time()
        self._look_again = self.loop.call_later(_LOOK_EVERY_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        if self._head_since is None and (before is None or before.response_complete):
            self._head_since = self.loop.time()  # the first byte of the next request
        super().data_received(data)
        if self.cycle is not None and self.cycle is not before:
            self._head_since = None  # the head has come

    def _look(self) -> None:
        now, transport = self.loop.time(), self.transport
        waits = transport.get_write_buffer_size()
        if waits == 0 or waits < self._unread:
            self._unread_since = now
        elif self._unread == 0:
            self._unread_since = now  # it has just begun to wait
        self._unread = waits
        if waits and now - self._unread_since >= READ_PATIENCE_S:
            peer = transport.get_extra_info("socket")  # without lingering: else the kernel keeps what nobody reads
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()  # close() would wait for the client to read
            return
        if self._head_since is not None and now - self._head_since >= HEADER_PATIENCE_S and self._is_idle():
            transport.close()
            return
        self._look_again = self.loop.call_later(_LOOK_EVERY_S, self._look)

    def _is_idle(self) -> bool:
        cycle: Any = self.cycle
        return cycle is None or bool(cycle.response_complete)
