"""Many listeners, slow clients and deaf ones, over raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra hub is not installed")
from anabranch.hub.web import connections
from anabranch.lab.runs import RunFolder

from .page_server import HEADER, Browser, page_server

LISTENERS, EVENTS = 1000, 30


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * LISTENERS:
        pytest.skip("the system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * LISTENERS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_listeners_of_a_real_server_lose_nothing(home: Path, many_files: None) -> None:
    """Each on a socket of its own to ``anabranch serve`` in a process whose limit of open files was too low."""
    command = [sys.executable, "-m", "anabranch.cli", "serve", "--port", "0"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=dict(os.environ),
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        ),
    )  # fmt: skip
    try:
        port = int(re.search(r":(\d+)/", server.stdout.readline()).group(1))
        with RunFolder.create(HEADER) as folder:
            folder.log.write("start", slug="udc", scale="smoke", seed=0, pid=1)
            asyncio.run(_listen_all(port, folder))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)


async def _listen_all(port: int, folder: RunFolder) -> None:
    connected, gate = 0, asyncio.Semaphore(100)
    request = (
        f"GET /api/runs/{folder.folder.name}/events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )

    async def listener() -> list[int]:
        nonlocal connected
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            head = await reader.readuntil(b"id: 0\n")
        assert head.startswith(b"HTTP/1.1 200")
        connected += 1
        rest = await reader.read()
        writer.close()
        return [0, *(int(n) for n in re.findall(rb"^id: (\d+)$", rest, re.MULTILINE))]

    tasks = [asyncio.create_task(listener()) for _ in range(LISTENERS)]
    deadline = time.monotonic() + 60
    while connected < LISTENERS and time.monotonic() < deadline:
        for task in tasks:
            if task.done():
                task.result()
        await asyncio.sleep(0.05)
    assert connected == LISTENERS  # all at once
    for i in range(EVENTS):
        folder.log.write("series", name="a", x=i, values={"y": i})
        await asyncio.sleep(0.01)
    folder.log.write("end", state="finished", error=None)
    found = await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert all(numbers == list(range(EVENTS + 3)) for numbers in found)  # the start, the events, the end, "over"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of seconds instead of tens of them."""
    monkeypatch.setattr(connections, "HEADER_PATIENCE_S", 1.0)
    monkeypatch.setattr(connections, "READ_PATIENCE_S", 1.5)
    monkeypatch.setattr(connections, "_LOOK_EVERY_S", 0.2)


@pytest.fixture
def page(home: Path, hasty: None) -> Iterator[Browser]:
    with page_server() as browser:
        yield browser


def _read_all(client: socket.socket) -> None:
    while client.recv(1 << 20):
        pass


def _closed_after(client: socket.socket) -> float:
    begin = time.monotonic()
    client.settimeout(20)
    with contextlib.suppress(ConnectionError):
        _read_all(client)
    return time.monotonic() - begin


def test_a_head_byte_by_byte_is_given_up(page: Browser) -> None:
    clients = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(20)]
    sent, open_ = b"GET /papers HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 200, set(clients)
    begin = time.monotonic()
    for i in range(len(sent)):
        for client in list(open_):
            try:
                client.send(sent[i : i + 1])
            except ConnectionError:
                open_.discard(client)
        if not open_:
            break
        if i == 10:
            assert page.get("/health").text == "ok"  # others are served
        time.sleep(0.1)
    assert not open_
    assert time.monotonic() - begin < 15
    for client in clients:
        client.close()


def test_the_second_head_of_a_connection_is_watched_too(page: Browser) -> None:
    with socket.create_connection(("127.0.0.1", page.port)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.settimeout(10)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        for _ in range(100):
            try:
                client.send(b"G")
            except ConnectionError:
                break
            time.sleep(0.1)
        else:
            pytest.fail("it was never closed")


def test_who_says_nothing_is_let_go(page: Browser) -> None:
    with socket.create_connection(("127.0.0.1", page.port)) as client:
        assert _closed_after(client) < 10


def test_a_slow_but_steady_answer_is_not_cut_off(page: Browser) -> None:
    """Streams without news are quiet for longer than any patience."""
    with RunFolder.create(HEADER) as folder:
        folder.log.write("start", slug="udc", scale="smoke", seed=0, pid=1)
        with socket.create_connection(("127.0.0.1", page.port)) as client:
            client.sendall(f"GET /api/runs/{folder.folder.name}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            time.sleep(4)
            folder.log.write("end", state="finished", error=None)
            client.settimeout(10)
            text = b""
            while b"event: over" not in text:
                text += client.recv(65536)


def test_a_listener_that_reads_nothing_is_cut_off_and_harms_nobody(
    home: Path, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anabranch.hub.web.live import Tail

    tails: list[Tail] = []
    true = Tail.__init__
    monkeypatch.setattr(Tail, "__init__", lambda self, folder: (true(self, folder), tails.append(self))[0])
    with RunFolder.create(HEADER) as folder, page_server() as page:
        folder.log.write("start", slug="udc", scale="smoke", seed=0, pid=1)
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", page.port))
        deaf.sendall(f"GET /api/runs/{folder.folder.name}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        deadline = time.monotonic() + 20
        while not any(tail.listeners for tail in tails) and time.monotonic() < deadline:
            time.sleep(0.02)
        for i in range(600):
            folder.log.write("series", name="a" * 20_000, x=i, values={"y": i})  # 12 MB: more than any buffer
        slowest = 0.0
        while any(tail.listeners for tail in tails) and time.monotonic() < deadline:
            begin = time.monotonic()
            assert page.get("/health").text == "ok"
            slowest = max(slowest, time.monotonic() - begin)
            time.sleep(0.05)
        assert not any(tail.listeners for tail in tails)  # its place is free
        assert slowest < 5
        deaf.settimeout(10)
        with pytest.raises(ConnectionError):
            _read_all(deaf)
        deaf.close()
