"""Runs that the page sends to a real local Ray cluster: queued, live, cancelled."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("starlette", reason="the extra hub is not installed")
from anabranch.hub.run_queue import RunQueue
from anabranch.lab import Run, list_runs

from .page_server import Browser, page_server

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture
def page(home: Path, plugin: str) -> Iterator[Browser]:
    queue = RunQueue(where="ray:1", poll_s=0.05)
    with page_server(queue=queue) as browser:
        yield browser
        queue.stop(cancel=True)


def until(what: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def run_of(run_id: str) -> Run:
    return next(run for run in list_runs() if run.id == run_id)


def start(page: Browser, **settings: str) -> str:
    fields = {"slug": "coin-flips", "scale": "smoke", **{f"set.{name}": value for name, value in settings.items()}}
    return page.submit("/papers/coin-flips", "/runs", **fields).headers["location"].rpartition("/")[2]


def test_a_run_goes_to_the_cluster_and_its_events_come_live(page: Browser) -> None:
    run_id = start(page, rounds="6", pause_s="0.5")
    came: list[tuple[float, str]] = []

    def listen() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=120)
        connection.request("GET", f"/api/runs/{run_id}/events")
        for line in connection.getresponse():
            if line.startswith(b"event: "):
                came.append((time.monotonic(), line[7:].decode().strip()))

    listener = threading.Thread(target=listen)
    listener.start()
    listener.join(timeout=150)
    assert not listener.is_alive()
    kinds = [kind for _, kind in came]
    assert (kinds[0], kinds[-1]) == ("start", "over")
    assert {"series", "measure", "verdict", "end"} <= set(kinds)
    steps = [at for at, kind in came if kind == "series"]
    assert steps[-1] - steps[0] > 1.5  # 2.5 s apart in the run: they came while it went on, not at its end
    run = run_of(run_id)
    assert run.state == "finished"
    assert run.header["executor"] == "page"
    worker = next(event["pid"] for event in run.events if event["type"] == "start")
    assert not Path(f"/proc/{worker}").exists() or "ray" in Path(f"/proc/{worker}/cmdline").read_text().lower()
    assert "finished" in page.get(f"/runs/{run_id}").text


def test_cancelling_ends_the_task_and_keeps_what_was_measured(page: Browser) -> None:
    run_id = start(page, rounds="200", pause_s="0.5")
    until(lambda: bool(run_of(run_id).series))
    worker = next(event["pid"] for event in run_of(run_id).events if event["type"] == "start")
    page.submit(f"/runs/{run_id}", f"/runs/{run_id}/cancel")
    until(lambda: run_of(run_id).state == "cancelled", 90)
    assert run_of(run_id).series
    until(lambda: not _is_at_work(worker), 30)  # no process of it is left
    another = start(page)  # and the queue goes on
    until(lambda: run_of(another).state == "finished")


def test_cancelling_before_the_cluster_is_up_stays_cancelled(page: Browser) -> None:
    run_id = start(page, rounds="200", pause_s="0.5")
    until(lambda: bool(re.search("queued|running", run_of(run_id).state)))
    page.submit(f"/runs/{run_id}", f"/runs/{run_id}/cancel")
    until(lambda: run_of(run_id).state == "cancelled", 90)
    another = start(page)
    until(lambda: run_of(another).state == "finished")
    assert run_of(run_id).state == "cancelled"
    assert not run_of(run_id).series


def _is_at_work(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
