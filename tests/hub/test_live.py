"""Server-sent events: every listener gets every event once, whatever happens to its connection."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra hub is not installed")
from anabranch.hub import run_queue
from anabranch.hub.run_index import RunIndex
from anabranch.hub.run_queue import RunQueue
from anabranch.hub.web.live import Tails
from anabranch.lab import LabError, find_run
from anabranch.lab.execution import execute_queued
from anabranch.lab.runs import RunFolder, list_runs, read_run

from .page_server import HEADER, Browser, page_server


def numbers(raw: bytes) -> list[int]:
    return [int(line[4:]) for line in raw.split(b"\n") if line.startswith(b"id: ")]


def test_twenty_disconnects_lose_and_repeat_nothing(home: Path) -> None:
    """10,000 events, written while they are read; the connection is cut at random places and taken up again."""
    chance = random.Random(0)
    with RunFolder.create(HEADER) as folder:

        def write() -> None:
            for i in range(10_000):
                folder.log.write("series", name="a", x=i, values={"y": i})
            folder.log.write("end", state="finished", error=None)

        writer = threading.Thread(target=write)

        async def listen() -> list[int]:
            tails, seen, cuts = Tails(), [], 0
            writer.start()
            while True:
                stop_after = chance.randint(50, 900) if cuts < 20 else 10**9
                stream = tails.follow(folder.folder, seen[-1] if seen else -1)
                async for piece in stream:
                    seen += numbers(piece)
                    if len(seen) % 10_002 >= stop_after + (cuts * 450):
                        break
                else:
                    return seen
                await stream.aclose()
                cuts += 1

        seen = asyncio.run(listen())
        writer.join()
    assert seen == list(range(10_002))  # the 10,000, the end, and the word that it is over


def test_a_thousand_listeners_at_once(home: Path) -> None:
    with RunFolder.create(HEADER) as folder:

        async def main() -> list[list[int]]:
            tails = Tails()

            async def listener() -> list[int]:
                return [n async for piece in tails.follow(folder.folder, -1) for n in numbers(piece)]

            tasks = [asyncio.create_task(listener()) for _ in range(1000)]
            for i in range(50):
                folder.log.write("measure", name=f"m{i}", value=i)
                await asyncio.sleep(0.01)
            folder.log.write("end", state="finished", error=None)
            return await asyncio.gather(*tasks)

        for seen in asyncio.run(main()):
            assert seen == list(range(52))


def test_a_run_that_died_ends_its_stream(home: Path) -> None:
    folder = RunFolder.create(HEADER)
    folder.log.write("start")
    folder.close()  # no end, no lock: interrupted

    async def listen() -> bytes:
        return b"".join([piece async for piece in Tails().follow(folder.folder, -1)])

    text = asyncio.run(asyncio.wait_for(listen(), 20))
    assert b'"state": "interrupted"' in text


@pytest.fixture
def page(home: Path, plugin: str) -> Iterator[Browser]:
    with page_server(queue=RunQueue(poll_s=0.05)) as browser:
        yield browser


def wait_for(what: object, seconds: float = 60) -> object:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():  # type: ignore[operator]
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come")


def test_a_run_from_the_page_to_its_verdicts(page: Browser) -> None:
    answer = page.submit(
        "/papers/coin-flips", "/runs", slug="coin-flips", scale="smoke", seed="3", **{"set.rounds": "4"}
    )
    assert answer.status == 303
    address = answer.headers["location"]
    run_id = address.rpartition("/")[2]
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=60)
    connection.request("GET", f"/api/runs/{run_id}/events", headers={"accept": "text/event-stream"})
    stream = connection.getresponse()
    assert stream.getheader("content-type", "").startswith("text/event-stream")
    text = stream.read().decode()  # ends with the run
    kinds = [line[7:] for line in text.splitlines() if line.startswith("event: ")]
    assert kinds[0] == "start"
    assert kinds[-1] == "over"
    assert {"stage", "measure", "verdict", "end"} <= set(kinds)
    run = next(run for run in list_runs() if run.id == run_id)
    assert (run.state, run.seed, run.header["settings"]["rounds"]) == ("finished", 3, 4)
    shown = page.get(address).text
    assert "smoke scale" in shown
    assert "finished" in shown
    for event in run.figures.values():
        assert page.get(f"/runs/{run_id}/{event['files']['svg']}").status == 200
    resumed = page.get(f"/api/runs/{run_id}/events", **{"last-event-id": "2"}).text
    assert resumed.split("id: ")[1].startswith("3\n")
    assert json.loads(page.get(f"/api/runs/{run_id}").text)["state"] == "finished"
    assert page.get(f"/compare?runs={run_id},{run_id}").status == 200
    assert "report" in page.get(f"/runs/{run_id}/report").text.lower()


def test_only_valid_settings_of_catalogue_papers_are_run(page: Browser) -> None:
    for fields in (
        {"slug": "no-such-paper", "scale": "smoke"},
        {"slug": "coin-flips", "scale": "huge"},
        {"slug": "coin-flips", "scale": "smoke", "set.flips": "-1"},
        {"slug": "coin-flips", "scale": "smoke", "set.nothing": "1"},
        {"slug": "coin-flips", "scale": "smoke", "seed": "-1"},
        {"slug": "../../etc", "scale": "smoke"},
    ):
        answer = page.submit("/papers/coin-flips", "/runs", **fields)
        assert answer.status == 400, fields
        assert "Traceback" not in answer.text
    assert not list_runs()


def test_one_at_a_time_cancel_and_start_again(page: Browser) -> None:
    slow = {"slug": "coin-flips", "scale": "smoke", "set.pause_s": "0.5", "set.rounds": "60"}
    ids = [page.submit("/papers/coin-flips", "/runs", **slow).headers["location"].rpartition("/")[2] for _ in range(2)]

    def state(run_id: str) -> str:
        return next(run.state for run in list_runs() if run.id == run_id)

    wait_for(lambda: state(ids[0]) == "running")
    assert state(ids[1]) == "queued"
    assert "behind 1 other" in page.get(f"/runs/{ids[1]}").text
    page.submit(f"/runs/{ids[1]}", f"/runs/{ids[1]}/cancel")
    assert state(ids[1]) == "cancelled"
    wait_for(lambda: any(event["type"] == "series" for event in run_of(ids[0]).events))
    page.submit(f"/runs/{ids[0]}", f"/runs/{ids[0]}/cancel")
    wait_for(lambda: state(ids[0]) == "cancelled", 20)
    assert run_of(ids[0]).series  # what was measured is kept
    answer = page.submit(f"/runs/{ids[1]}", f"/runs/{ids[1]}/again")
    again = answer.headers["location"].rpartition("/")[2]
    assert run_of(again).header["resumes"] == ids[1]
    page.submit(f"/runs/{again}", f"/runs/{again}/cancel")
    wait_for(lambda: state(again) == "cancelled", 20)


def run_of(run_id: str):
    return next(run for run in list_runs() if run.id == run_id)


def test_the_queue_goes_on_after_a_restart(home: Path, plugin: str) -> None:
    queue = RunQueue(poll_s=0.05)
    slow = queue.submit(plugin, "smoke", settings={"pause_s": 0.3, "rounds": 8})
    waiting = queue.submit(plugin, "smoke")
    queue.start()
    wait_for(lambda: run_of(slow).state == "running")
    queue.stop()  # the server ends; the run does not
    assert run_of(slow).state == "running"
    assert run_of(waiting).state == "queued"
    later = RunQueue(poll_s=0.05)
    later.start()
    try:
        time.sleep(0.3)
        assert run_of(waiting).state == "queued"  # one at a time counts runs of the earlier server, too
        wait_for(lambda: run_of(waiting).state == "finished")
        assert run_of(slow).state == "finished"
        assert run_of(waiting).header["created"] > run_of(slow).header["created"]
        assert RunIndex().expected_seconds(plugin, "smoke") == pytest.approx(
            sorted(read_run(run.folder).elapsed_s for run in list_runs())[0] / 2
            + sorted(r.elapsed_s for r in list_runs())[1] / 2
        )
    finally:
        later.stop()


def test_runs_of_the_command_line_are_not_cancelled_from_the_page(page: Browser) -> None:
    with RunFolder.create({**HEADER, "executor": "here"}) as folder:
        folder.log.write("start", pid=1)
        run_id = folder.folder.name
        answer = page.submit("/papers/udc", f"/runs/{run_id}/cancel")
        assert answer.status == 400
        assert "not started from the page" in answer.text


def test_a_later_server_cancels_what_an_earlier_one_began(home: Path, plugin: str) -> None:
    queue = RunQueue(poll_s=0.05)
    run_id = queue.submit(plugin, "smoke", settings={"pause_s": 0.5, "rounds": 60})
    queue.start()
    wait_for(lambda: bool(run_of(run_id).series))
    queue.stop()
    RunQueue().cancel(run_id)
    wait_for(lambda: run_of(run_id).state == "cancelled", 20)


def test_a_number_that_went_to_another_process_is_not_killed(home: Path, plugin: str) -> None:
    """A run that another machine's task does: its folder names a process that here is somebody else's."""
    with RunFolder.create({**HEADER, "executor": "page"}) as folder:
        folder.log.write("start", pid=1)
        innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        try:
            (folder.folder / "worker.pid").write_text(str(innocent.pid))
            with pytest.raises(LabError, match="nothing to cancel"):
                RunQueue().cancel(folder.folder.name)
            assert innocent.poll() is None
        finally:
            innocent.kill()
            innocent.wait()


def test_a_worker_that_dies_before_its_run_ends_the_run(
    home: Path, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_queue, "_WORKER", "raise SystemExit('no cluster there')")
    queue = RunQueue(poll_s=0.05)
    queue.start()
    try:
        run_id = queue.submit(plugin, "smoke")
        deadline = time.monotonic() + 60
        while (run := find_run(run_id)).state == "queued" and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        queue.stop()
    assert run.state == "failed"
    assert "before it began" in str(run.error)
    assert "no cluster there" in str(run.error)


def test_two_servers_start_a_run_once(home: Path, plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the start of a worker and its lock on the run lie seconds of imports."""
    monkeypatch.setattr(run_queue, "_WORKER", "import time; time.sleep(60)")
    queues = [RunQueue(poll_s=0.02) for _ in range(2)]
    run_id = queues[0].submit(plugin, "smoke")
    for queue in queues:
        queue.start()
    time.sleep(1.0)
    for queue in queues:
        queue.stop()
    workers = [process for queue in queues for process in queue._processes.values()]
    assert [list(queue._processes) for queue in queues].count([run_id]) == 1
    for worker in workers:
        worker.kill()
        worker.wait()


def test_a_run_says_which_code_did_it(home: Path, plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has run for days knows the code of days ago."""
    queue = RunQueue()
    run_id = queue.submit(plugin, "smoke")
    folder = find_run(run_id).folder
    header = json.loads((folder / "run.json").read_bytes())
    (folder / "run.json").write_text(json.dumps({**header, "code": "0" * 16, "commit": "of old"}))
    run = execute_queued(folder)
    assert run.header["code"] == header["code"]
    assert run.header["commit"] == header["commit"]


def test_runs_that_have_ended_are_not_read_again(home: Path, plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = RunQueue()
    ended = execute_queued(find_run(queue.submit(plugin, "smoke")).folder).id
    waiting = queue.submit(plugin, "smoke")
    assert [run.id for run in queue._open_runs()] == [waiting]
    read: list[str] = []
    monkeypatch.setattr(run_queue, "read_run", lambda folder: (read.append(folder.name), read_run(folder))[1])
    assert [run.id for run in queue._open_runs()] == [waiting]
    assert read == [waiting]
    assert ended not in read
