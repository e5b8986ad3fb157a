"""Every paper that runs, at smoke scale, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anabranch.lab import Paper, find_run, papers
from support import CommandLine

RUNNABLE = [paper for paper in papers() if paper.runnable]


@pytest.mark.parametrize("paper", RUNNABLE, ids=lambda paper: paper.slug)
def test_smoke(anabranch: CommandLine, paper: Paper, home: Path) -> None:
    done = anabranch("run", paper.slug, "--scale", "smoke", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    run = find_run("latest")
    assert run.state == "finished"
    assert {claim.measure for claim in paper.claims if claim.measure} <= set(run.measures), "a claim has no measure"
    assert all(event["outcome"] == "not checked" for event in run.verdicts.values())
    assert run.figures
    assert (run.folder / "report.html").stat().st_size > 20_000


@pytest.mark.parametrize("paper", RUNNABLE, ids=lambda paper: paper.slug)
@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_dry_run(anabranch: CommandLine, paper: Paper, scale: str, home: Path) -> None:
    done = anabranch("run", paper.slug, "--scale", scale, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"at scale {scale}" in done.stdout
    assert not (home / "runs").exists()


def test_flow_splitting_takes_the_users_model_and_placement(anabranch: CommandLine, tmp_path: Path) -> None:
    placement = tmp_path / "placement.csv"
    placement.write_text("rank,nic\n" + "".join(f"{rank},{(rank * 5) % 64}\n" for rank in range(64)))
    done = anabranch(
        "run",
        "flow-splitting",
        "--scale=smoke",
        "--set=model=mixtral-8x7b",
        f"--set=placement={placement}",
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = find_run("latest")
    assert run.measures["job-ecmp-over-split"].details["model"] == "Mixtral-8x7B"
    assert json.loads((run.folder / "run.json").read_text())["settings"]["placement"] == str(placement)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank,nic\n0,0\n1,0\n", "line 3"),
        ("rank,nic\n0,0\n1,x\n", "line 3"),
        ("rank,nic\n0,0\n1,64\n", "line 3"),
        ("rank,nic\n" + "".join(f"{r},{r}\n" for r in range(12)), "expected a multiple of"),
        ("", "header"),
    ],
)
def test_a_placement_with_errors_fails_before_any_work(
    anabranch: CommandLine, tmp_path: Path, text: str, message: str
) -> None:
    placement = tmp_path / "placement.csv"
    placement.write_text(text)
    done = anabranch(
        "run", "flow-splitting", "--scale=smoke", "--set=model=llama-2-70b", f"--set=placement={placement}"
    )
    assert done.returncode == 1
    assert message in done.stdout
    run = find_run("latest")
    assert run.state == "failed"
    assert not run.stages
