"""``anabranch generative times``: a model in, the times of its best few steps out."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from anabranch.generative import (
    FlowMapModel,
    PixelUNet,
    load_network,
    optimal_frontier,
    save_network,
    step_costs,
    times_from_diffusers,
)
from anabranch.generative._times_command import times

from .test_commands import pipeline  # noqa: F401 (a fixture)

APP = typer.Typer()
APP.command()(times)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = PixelUNet(1, 8, classes=3)
    torch.nn.init.normal_(net.leave.weight, std=0.05)
    return save_network(net, tmp_path / "teacher.safetensors")


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(APP, [*arguments, "--json"])
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def test_the_optimum_for_a_model_of_ours(teacher: Path, tmp_path: Path) -> None:
    said = run("-m", str(teacher), "--steps", "2,4", "--anchors", "8", "-n", "5", "--out", str(tmp_path / "t.json"))
    assert said == json.loads((tmp_path / "t.json").read_text())
    assert said["sha256"] == hashlib.sha256(teacher.read_bytes()).hexdigest()
    x0 = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    costs = step_costs(load_network(teacher), x0, 8, label=torch.arange(5) % 3)
    frontier = optimal_frontier(costs, 4)
    assert [row["steps"] for row in said["choices"]] == [2, 4]
    for row, found in zip(said["choices"], (frontier[1], frontier[3]), strict=True):
        assert row["times"] == found.times.tolist()
        assert row["cost"] == pytest.approx(found.cost, rel=1e-6)
        assert row["cost"] <= row["uniform_cost"]
        assert row["sigmas"] == pytest.approx([1 - t for t in row["times"][:-1]])


@pytest.mark.parametrize("solver", ["euler", "ab2", "heun"])
def test_a_pipeline_of_diffusers(pipeline: Path, solver: str) -> None:  # noqa: F811
    """With guidance; the sigmas make the pipeline's own scheduler, shifted too, step through the times."""
    diffusers = pytest.importorskip("diffusers")
    for shift in (1.0, 3.0):
        diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(pipeline / "scheduler")
        said = run("-m", str(pipeline), "--steps", "3", "--anchors", "6", "-n", "2", "--solver", solver,
                   "--guidance", "2", "--null-label", "3")  # fmt: skip
        (row,) = said["choices"]
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(pipeline / "scheduler")
        scheduler.set_timesteps(sigmas=row["sigmas"])
        assert times_from_diffusers(scheduler).tolist() == pytest.approx(row["times"], abs=1e-6)


def test_in_words(teacher: Path) -> None:
    done = CliRunner().invoke(APP, ["-m", str(teacher), "--steps", "2", "--anchors", "4", "-n", "2"])
    assert done.exit_code == 0
    assert done.stdout.split()[:4] == ["steps", "cost", "uniform", "times"]
    assert len(done.stdout.splitlines()) == 2


def test_bad_input(teacher: Path, tmp_path: Path) -> None:
    student = tmp_path / "student.safetensors"
    save_network(FlowMapModel.from_velocity(load_network(teacher)), student)
    for arguments, message in (
        (["-m", str(teacher), "--steps", "4,x"], "--steps 4,x: expected whole numbers"),
        (["-m", str(teacher), "--steps", "0"], "expected numbers from 1 to --anchors, 100"),
        (["-m", str(teacher), "--steps", "9", "--anchors", "8"], "expected numbers from 1 to --anchors, 8"),
        (["-m", str(teacher), "--solver", "eulr"], "solver 'eulr' is unknown"),
        (["-m", str(teacher), "-n", "2", "--solver", "ancestral"], "is stochastic"),
        (["-m", str(teacher), "-o", "times.txt"], "expected a name that ends in .json"),
        (["-m", str(teacher), "--label", "3"], "--label 3: the model has classes 0 to 2"),
        (["-m", str(student)], "is a flow map"),
    ):
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            run(*arguments)
