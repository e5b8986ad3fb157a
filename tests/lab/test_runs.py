"""Run folders: what a crash at any moment leaves, and what readers make of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from anabranch.lab import LabError, Request, UnknownName, execute, find_run, list_runs, read_run
from anabranch.lab.runs import RunFolder, active_runs, remove_leftovers, runs_folder, write_atomically


def make_header(slug: str = "coin-flips") -> dict:
    return {"slug": slug, "scale": "smoke", "seed": 0, "settings": {}, "overrides": {}, "device": "cpu"}


def test_a_run_is_finished_only_with_its_end_line(home: Path) -> None:
    with RunFolder.create(make_header()) as folder:
        folder.log.write("start")
        assert read_run(folder.folder).state == "running"
        folder.log.write("measure", name="a", value=1.5, unit="x")
    run = read_run(folder.folder)
    assert run.state == "interrupted"
    assert run.measures["a"].value == 1.5


def test_a_queued_run_stays_queued_without_a_process(home: Path) -> None:
    with RunFolder.create(make_header(), queued=True) as folder:
        pass
    assert read_run(folder.folder).state == "queued"
    with RunFolder.adopt(folder.folder) as adopted:
        adopted.log.write("start")
        assert read_run(folder.folder).state == "running"
        with pytest.raises(LabError, match="another process"):
            RunFolder.adopt(folder.folder)
    with pytest.raises(LabError, match="started before"):
        RunFolder.adopt(folder.folder)


def test_the_header_is_whole_and_the_name_sorts_by_time(home: Path) -> None:
    names = []
    for _ in range(3):
        with RunFolder.create(make_header()) as folder:
            names.append(folder.folder.name)
            assert json.loads((folder.folder / "run.json").read_text())["id"] == folder.folder.name
    assert names == sorted(names)


def test_a_torn_last_line_is_dropped(home: Path) -> None:
    with RunFolder.create(make_header()) as folder:
        for value in range(3):
            folder.log.write("measure", name=f"m{value}", value=value)
    log = folder.folder / "events.jsonl"
    whole = log.read_bytes()
    last = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for cut in range(last, len(whole)):
        log.write_bytes(whole[:cut])
        assert list(read_run(folder.folder).measures) == ["m0", "m1"]


def test_one_damaged_folder_is_skipped_with_a_warning(home: Path) -> None:
    folders = []
    for _ in range(3):
        with RunFolder.create(make_header()) as folder:
            folder.log.write("end", state="finished")
            folders.append(folder.folder)
    (folders[0] / "run.json").write_text("{")
    (folders[1] / "events.jsonl").write_text("not json\n{}\n")
    with pytest.warns(UserWarning, match="skipped") as warned:
        runs = list_runs()
    assert [run.folder for run in runs] == [folders[2]]
    assert len(warned) == 2
    assert any("line 1" in str(w.message) for w in warned)


def test_find_run(home: Path) -> None:
    with pytest.raises(LabError, match="no runs yet"):
        find_run("latest")
    with RunFolder.create(make_header("a")) as first, RunFolder.create(make_header("b")) as second:
        pass
    assert find_run("latest").folder == second.folder
    assert find_run("a").folder == first.folder
    assert find_run(first.folder.name[10:]).folder == first.folder
    assert find_run(str(second.folder)).folder == second.folder
    with pytest.raises(LabError, match="matches 2 runs"):
        find_run("20")
    with pytest.raises(UnknownName, match="unknown run"):
        find_run("nothing-like-it")


def test_a_forked_child_does_not_hold_the_lock_after_its_parent(home: Path) -> None:
    with RunFolder.create(make_header()) as folder:
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(tell, b".")
            time.sleep(30)
            os._exit(0)
        assert os.read(ready, 1) == b"."
        assert active_runs() == [folder.folder.name]
    try:
        assert read_run(folder.folder).state == "interrupted"
        assert active_runs() == []
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_leftovers_of_a_crash_are_not_seen_and_are_removed(home: Path) -> None:
    half = runs_folder() / ".new-half"
    half.mkdir(parents=True)
    (half / "lock").touch()
    assert list_runs() == []
    remove_leftovers()
    assert half.exists()  # it may be another process's, made just now
    remove_leftovers(older_than_s=-1)
    assert not half.exists()


def test_write_atomically_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == ["file"]


def acknowledge(pipe: int, event: dict) -> None:
    os.write(pipe, f"{event['n']}\n".encode())


def test_kill_at_100_random_moments(plugin: str, home: Path) -> None:
    """Every folder stays readable, nothing that was acknowledged is lost, the state is *interrupted*."""
    request = Request(plugin, "smoke", settings={"rounds": 40, "pause_s": 0.002})
    execute(request)  # fills the cache, so that every child does the same work
    rng = random.Random(20240629)
    seen = {run.id for run in list_runs()}
    states = []
    for _ in range(100):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read_end)
            try:
                execute(request, listener=partial(acknowledge, write_end))
            finally:
                os._exit(0)
        os.close(write_end)
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(read_end, "rb") as pipe:
            acknowledged = {int(line) for line in pipe.read().split(b"\n")[:-1]}
        run = next((r for r in list_runs() if r.id not in seen), None)
        if run is None:
            assert not acknowledged  # killed before the folder existed
            continue
        assert acknowledged <= {event["n"] for event in run.events}
        assert run.state == ("finished" if run.end else "interrupted")
        seen.add(run.id)
        states.append(run.state)
    assert states.count("interrupted") >= 20
    assert active_runs() == []


def test_two_runs_at_once_lose_nothing(plugin: str, home: Path, plugin_path: Path) -> None:
    code = (
        "from anabranch.lab import Request, execute\n"
        "for _ in range(3):\n"
        "    execute(Request('coin-flips', 'smoke', settings={'rounds': 100, 'pause_s': 0.001}))\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    runs = list_runs()
    assert len(runs) == 6
    for run in runs:
        assert run.state == "finished"
        assert [event["n"] for event in run.events] == list(range(len(run.events)))
        assert len(run.series["heads"]) == 100
    # each saw that the other was running: a time taken then judges nothing
    assert any(run.verdicts["vector-speed"]["verdict"]["reason"] == "smoke scale" for run in runs)
    assert any(run.measures["speedup"].details["disturbed"] == "another run was active" for run in runs)


def test_cancelling_keeps_what_was_measured(plugin: str, home: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "anabranch.cli",
            "run",
            plugin,
            "--scale",
            "smoke",
            "--set",
            "rounds=400",
            "--set",
            "pause_s=0.05",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Where this suite runs in the background, its shell has told it to ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not any(run.series for run in list_runs()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "cancelled" in error
    (run,) = list_runs()
    assert run.state == "cancelled"
    assert run.series["heads"]


def test_sigterm_cancels_too(plugin: str, home: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            execute(Request(plugin, "smoke", settings={"rounds": 400, "pause_s": 0.05}))
        except KeyboardInterrupt:
            os._exit(7)
        os._exit(0)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not any(run.series for run in list_runs()):
        time.sleep(0.02)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    (run,) = list_runs()
    assert run.state == "cancelled"


def test_a_log_goes_on_where_it_stopped(home: Path) -> None:
    """A queued run may hold a word already: numbers go on, and a torn line is taken back."""
    with RunFolder.create(make_header(), queued=True) as queued:
        queued.log.write("warning", text="the first")
    with (queued.folder / "events.jsonl").open("ab") as log:
        log.write(b'{"n": 1, "type": "war')
    assert read_run(queued.folder).state == "queued"
    with RunFolder.adopt(queued.folder) as adopted:
        adopted.log.write("start")
        adopted.log.write("end", state="finished", error=None)
    run = read_run(queued.folder)
    assert [(event["n"], event["type"]) for event in run.events] == [(0, "warning"), (1, "start"), (2, "end")]
    assert run.warnings == ["the first"]
