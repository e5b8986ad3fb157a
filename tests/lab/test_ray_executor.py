"""Runs on a real local Ray cluster: the same contract as in this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed")
from anabranch.lab import LabError, Request, executor_named, list_runs, read_run
from anabranch.lab.queued import queue
from anabranch.lab.ray_executor import RayCluster, _cluster, import_ray
from support import CommandLine

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local cluster that the tests share: runs join the one that is up."""
    with _cluster(import_ray(), None, 2):
        yield


def test_runs_come_back_in_order_and_share_their_machine(plugin: str, cluster: None) -> None:
    requests = [Request(plugin, "smoke", seed) for seed in range(3)]
    runs = list(RayCluster(2).run(requests))
    assert [run.seed for run in runs] == [0, 1, 2]
    assert {run.state for run in runs} == {"finished"}
    assert all(run.header["shares_machine"] and run.header["executor"] == "ray" for run in runs)
    assert all(run.measures for run in runs)


def test_a_worker_that_dies_is_replaced_once_and_reported(plugin: str, cluster: None) -> None:
    killed: list[int] = []

    def listener_for(request: Request) -> Any:
        def kill_at_the_start(event: dict[str, Any]) -> None:
            if event["type"] == "start" and not killed:
                killed.append(event["pid"])
                os.kill(event["pid"], signal.SIGKILL)

        return kill_at_the_start

    (run,) = RayCluster(2).run([Request(plugin, "smoke", 0, {"pause_s": 0.3})], listener_for=listener_for)
    assert run.state == "finished"
    died = next(other for other in list_runs() if other.id == run.header["resumes"])
    assert died.state == "interrupted"
    assert any(died.id in text and "died" in text for text in run.warnings)


def test_a_worker_that_dies_twice_leaves_its_run_interrupted(plugin: str, cluster: None) -> None:
    def listener_for(request: Request) -> Any:
        return lambda event: os.kill(event["pid"], signal.SIGKILL) if event["type"] == "start" else None

    requests = [Request(plugin, "smoke", 0, {"pause_s": 0.3}), Request(plugin, "smoke", 1)]
    runs = RayCluster(2).run(requests, listener_for=lambda r: listener_for(r) if r.seed == 0 else None)
    first, second = runs
    assert first.state == "interrupted"
    assert second.state == "finished"
    assert len(list_runs()) == 3


def test_leaving_early_cancels_what_still_runs(plugin: str, cluster: None) -> None:
    runs = RayCluster(2).run([Request(plugin, "smoke", 0), Request(plugin, "smoke", 1, {"pause_s": 3.0})])
    assert next(iter(runs)).state == "finished"
    runs.close()
    other = next(run for run in list_runs() if run.seed == 1)
    deadline = time.monotonic() + 60  # the word goes to another process, which is in the middle of something
    while (state := read_run(other.folder).state) == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert state in ("cancelled", "queued")


def test_a_worker_that_was_started_in_the_background_can_be_cancelled(plugin: str) -> None:
    """Scripts have what they start in the background ignore SIGINT; Ray cancels by what Python makes of that signal."""
    folder = queue(Request(plugin, "smoke", 0, {"rounds": 400, "pause_s": 0.05}), "ray", True)
    code = (
        "import sys, threading, _thread\n"
        "from anabranch.lab.ray_executor import _work\n"
        "threading.Timer(1.5, _thread.interrupt_main).start()\n"
        "_work(sys.argv[1])\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        timeout=60,
    )
    assert process.returncode == 0
    assert read_run(folder).state == "cancelled"


def test_bad_input_is_found_before_a_folder_is_made(plugin: str, cluster: None) -> None:
    with pytest.raises(LabError, match="flips=-1"):
        list(RayCluster(2).run([Request(plugin, "smoke", 0, {"flips": -1})]))
    assert not list_runs()


def test_words_of_the_command_line() -> None:
    assert executor_named("ray") == RayCluster()
    assert executor_named("ray:3") == RayCluster(3)
    assert executor_named("ray:auto") == RayCluster(address="auto")
    assert executor_named("ray:10.0.0.1:6379") == RayCluster(address="10.0.0.1:6379")
    assert executor_named("ray://head:10001") == RayCluster(address="ray://head:10001")
    with pytest.raises(LabError, match="ray:0"):
        executor_named("ray:0")


def test_from_the_command_line(plugin: str, anabranch: CommandLine) -> None:
    done = anabranch("run", plugin, "--scale", "smoke", "--on", "ray:1")
    assert done.returncode == 0, done.stderr
    assert list_runs()[-1].state == "finished"
