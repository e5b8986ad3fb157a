"""Fixtures of the hub's tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from .daily_papers_server import Original, OriginalHandler, item


@pytest.fixture
def original() -> Iterator[Original]:
    server = Original(("127.0.0.1", 0), OriginalHandler)
    server.items, server.faults, server.asked = [item(n) for n in range(250)], [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
