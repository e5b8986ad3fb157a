"""One run from end to end: what is measured, what goes wrong, how it is written down."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.lab import Claim, Lab, LabError, Request, execute, list_runs, read_run
from anabranch.lab.figures import new_figure

ALWAYS = Claim(
    name="always", says="Always so.", measure="a", at_least=1, kind="exact", origin="ours", same_setting=True
)


def test_everything_an_experiment_can_say(register: Callable[..., Any], home: Path) -> None:
    def experiment(lab: Lab, settings: Any) -> None:
        with lab.stage("work", total=3) as stage:
            for index in range(3):
                stage.advance(loss=1 / (1 + index))
                lab.series("loss", index, loss=1 / (1 + index))
        lab.measure("a", 2, unit="x")
        lab.table("numbers", [{"n": 1, "text": "a,b"}, {"n": 2, "more": None}], caption="Numbers")
        figure, axes = new_figure()
        axes.plot([0, 1], [0, 1])
        lab.figure("line", figure, caption="A line")
        (lab.folder / "own.txt").write_text("kept")
        warnings.warn("watch out", UserWarning, stacklevel=1)

    register(experiment, claims=(ALWAYS,))
    seen: list[dict] = []
    run = execute(Request("test-paper", seed=5), listener=seen.append)
    assert run.state == "finished"
    assert [dict(event) for event in run.events] == seen
    assert [stage.name for stage in run.stages] == ["work"]
    assert (run.stages[0].done, run.stages[0].total) == (3, 3)
    assert run.measures["a"].value == 2
    assert [point["values"]["loss"] for point in run.series["loss"]] == [1, 1 / 2, 1 / 3]
    assert (run.folder / "artefacts" / "numbers.csv").read_text() == 'n,text,more\n1,"a,b",\n2,,\n'
    assert (run.folder / run.figures["line"]["files"]["png"]).read_bytes().startswith(b"\x89PNG")
    assert (run.folder / run.figures["line"]["files"]["svg"]).read_text().lstrip().startswith("<?xml")
    assert run.warnings == ["UserWarning: watch out"]
    assert run.verdicts["always"]["outcome"] == "holds"
    assert run.header["seed"] == 5
    assert not (run.folder / ".reserve").exists()


def test_the_seed_makes_the_generator(register: Callable[..., Any]) -> None:
    def experiment(lab: Lab, settings: Any) -> None:
        lab.measure("draw", lab.generator.random())

    register(experiment)
    first, again, other = (execute(Request("test-paper", seed=seed)) for seed in (3, 3, 4))
    assert first.measures["draw"].value == again.measures["draw"].value == np.random.default_rng(3).random()
    assert first.measures["draw"].value != other.measures["draw"].value


def test_a_crash_keeps_what_was_measured(register: Callable[..., Any]) -> None:
    def experiment(lab: Lab, settings: Any) -> None:
        lab.measure("a", 1)
        with lab.stage("work", total=2):
            raise RuntimeError("no more")

    register(experiment, claims=(ALWAYS,))
    run = execute(Request("test-paper"))
    assert run.state == "failed"
    assert run.error == "RuntimeError: no more"
    assert run.measures["a"].value == 1
    assert run.stages[0].seconds is None
    assert "RuntimeError" in (run.folder / "artefacts" / "traceback.txt").read_text()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_measure_is_finite(register: Callable[..., Any], value: float) -> None:
    register(lambda lab, settings: lab.measure("a", value) and None)
    run = execute(Request("test-paper"))
    assert run.state == "failed"
    assert "'a'" in (run.error or "")


@pytest.mark.parametrize("name", ["", "Upper", "../up", "a b", "a/b"])
def test_names_cannot_leave_the_folder(register: Callable[..., Any], name: str) -> None:
    register(lambda lab, settings: lab.table(name, [{"a": 1}]))
    run = execute(Request("test-paper"))
    assert run.state == "failed"
    assert "lower-case words" in (run.error or "")


def test_a_run_that_takes_much_longer_than_stated_says_so(register: Callable[..., Any]) -> None:
    register(lambda lab, settings: None, seconds={"laptop": 1e-9})
    assert any("more than 1.5 times" in text for text in execute(Request("test-paper")).warnings)


def test_bad_input_is_found_before_a_folder_is_made(register: Callable[..., Any], home: Path) -> None:
    register(lambda lab, settings: None)
    for request, message in (
        (Request("test-papr"), "did you mean test-paper"),
        (Request("test-paper", "lptop"), "did you mean laptop"),
        (Request("test-paper", settings={"sise": "2"}), "did you mean size"),
        (Request("test-paper", settings={"size": "two"}), "size='two': expected a whole number"),
        (Request("test-paper", seed=-1), "seed=-1"),
    ):
        with pytest.raises(LabError, match=message):
            execute(request)
    assert not (home / "runs").exists()


def test_an_unwritable_data_folder_is_named(register: Callable[..., Any], home: Path) -> None:
    register(lambda lab, settings: None)
    home.write_text("a file where the folder should be")
    with pytest.raises(LabError, match=r"cannot write runs to .*ANABRANCH_HOME"):
        execute(Request("test-paper"))


def _large(lab: Lab, settings: Any) -> None:
    lab.measure("before", 1)
    lab.table("large", [{"text": "x" * 200_000}])
    lab.measure("after", 2)


def test_a_disk_that_is_full_for_an_artefact(register: Callable[..., Any], home: Path) -> None:
    """A limit on the size of files stands in for the full disk: it needs no rights."""
    register(_large)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, 64 * 1024))
        try:
            execute(Request("test-paper"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    (run,) = list_runs()
    _assert_full(run)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 128 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("mounting a small file system needs rights this user does not have")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full(
    register: Callable[..., Any], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one byte is left, so that even the end line needs the reserve."""

    def experiment(lab: Lab, settings: Any) -> None:
        lab.measure("before", 1)
        with (lab.folder / "filler").open("wb", buffering=0) as filler:
            with contextlib.suppress(OSError):
                while True:
                    filler.write(b"x" * 512)
            with pytest.raises(OSError, match="No space") as refused:
                filler.write(b"x")
            assert refused.value.errno == errno.ENOSPC
        lab.table("large", [{"text": "x" * 200_000}])

    register(experiment)
    monkeypatch.setenv("ANABRANCH_HOME", str(small_disk))
    run = execute(Request("test-paper"))
    _assert_full(run)
    assert read_run(run.folder).state == "failed"


def _assert_full(run: Any) -> None:
    assert run.state == "failed"
    assert "disk" in run.error
    assert "is full" in run.error
    assert run.measures["before"].value == 1
    assert "after" not in run.measures
    assert not list((run.folder / "artefacts").glob("*large*"))
