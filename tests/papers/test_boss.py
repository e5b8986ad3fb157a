"""The experiment's own parts: rows of costs, trajectories shared by the students, the students, the settings."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra generative is not installed")

from anabranch.generative import StepCosts, optimal_frontier, solve, step_costs, uniform_times  # noqa: E402
from anabranch.papers.boss import PAPER, experiment  # noqa: E402
from anabranch.worlds import load_fashion_teacher  # noqa: E402

SMOKE = PAPER.scales["smoke"]
TIMES = (0.0, 0.25, 0.6, 1.0)


class Recorder:
    """A lab that keeps what it is told."""

    seed = 3

    def __init__(self) -> None:
        self.measures: dict[str, float] = {}
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def measure(self, name: str, value: float, **details: Any) -> float:
        self.measures[name] = value
        return value

    def table(self, name: str, rows: list[dict[str, Any]], **details: Any) -> None:
        self.tables[name] = rows

    @contextmanager
    def stage(self, name: str, total: float | None = None) -> Any:
        yield self

    def advance(self, by: float = 1, **metrics: Any) -> None:
        pass


def test_every_published_claim_is_kept_and_judged() -> None:
    published = {claim.name: claim.published for claim in PAPER.claims if claim.origin == "paper"}
    assert published["bellman-beats-uniform"].startswith("CIFAR-10 51.95 to 47.57")
    assert published["gain-shrinks-with-steps"].startswith("CIFAR-10 16.82 to 15.74")
    assert published["straightening-beats-reflow"].endswith("CIFAR-10 4.80 (4.35, 4.33)")
    assert published["search-is-cheap"] == "about 115 s"
    assert published["steps-look-alike"] == ".02 .05 .11 .17 .21 .20 .16 .08"
    assert published["steps-transfer"].startswith("FID 132.04")
    assert published["low-rank-is-enough"].startswith("FID 36.70")
    assert published["close-to-adaptive-solver"].startswith("within about 1 %")
    assert len(PAPER.claims) == 8
    assert all(claim.checked for claim in PAPER.claims)


def test_what_the_paper_printed_would_meet_the_thresholds() -> None:
    """The published values, as the quantities that are judged here; uniform steps would not pass for chosen ones."""
    threshold = {claim.name: claim.threshold for claim in PAPER.claims}
    assert 0.91 < 47.57 / 51.95 <= threshold["bellman-beats-uniform"] < 1
    assert max(15.74 / 16.82, 33.22 / 34.74, 25.80 / 32.15) <= threshold["gain-shrinks-with-steps"] < 1
    assert 132.04 / 158.95 <= threshold["steps-transfer"] <= 1
    assert threshold["low-rank-is-enough"] >= 36.70 / 33.86
    printed = torch.tensor([0.02, 0.05, 0.11, 0.17, 0.21, 0.20, 0.16, 0.08])
    assert 1 < threshold["steps-look-alike"] <= float(printed[2:6].min() / printed[[0, -1]].max())


def test_a_row_says_what_chosen_and_uniform_steps_cost() -> None:
    table = torch.full((5, 5), 1.0, dtype=torch.float64)
    table[0, 1] = table[1, 4] = 0.25
    costs = StepCosts(table, uniform_times(4), 1)
    row = experiment.frontier_row(costs, optimal_frontier(costs, 2)[-1])
    assert (row["chosen"], row["uniform"], row["ratio"]) == (0.5, 2.0, 0.25)
    assert row["times"] == "0 0.25 1"


def test_the_mixture_is_measured_against_its_exact_flow() -> None:
    lab = Recorder()
    costs = experiment.mixture(lab, dataclasses.replace(SMOKE, trajectories=16, points=256))
    field = experiment.eight_modes().velocity()
    fresh = torch.randn(256, 2, generator=torch.Generator().manual_seed(3002)).double()
    end = solve(field, fresh, uniform_times(400), "rk4")
    for row in lab.tables["mixture-errors"]:
        off = solve(field, fresh, uniform_times(row["steps"]), row["solver"]) - end
        assert row["uniform"] == pytest.approx(float(off.square().sum(1).mean().sqrt()), rel=0.05)
    train = torch.randn(64, 2, generator=torch.Generator().manual_seed(3001)).double()
    own = step_costs(field, train, SMOKE.anchors)
    assert torch.allclose(costs.costs[0, 1:], own.costs[0, 1:])
    worst = max(row["ratio"] for row in lab.tables["mixture-costs"] if row["steps"] in (4, 6, 8, 10))
    assert lab.measures["mixture-cost-over-uniform"] == worst <= 1


def test_all_students_learn_from_the_same_trajectories() -> None:
    kept = experiment.teacher_states(SMOKE, TIMES, 1)
    source = torch.randn(SMOKE.sources, 1, 28, 28, generator=torch.Generator().manual_seed(1007))
    fine = solve(
        load_fashion_teacher(), source, uniform_times(SMOKE.anchors), return_trajectory=True, label=kept["label"]
    )
    places = [round(time * SMOKE.anchors) for time in TIMES]
    torch.testing.assert_close(kept["states"], fine.states[places].transpose(0, 1), rtol=1e-4, atol=1e-4)


def test_students_make_as_many_steps_and_end_as_networks_of_the_teachers_kind() -> None:
    kept = experiment.teacher_states(SMOKE, TIMES, 0)
    teacher = load_fashion_teacher().state_dict()
    settings = dataclasses.replace(SMOKE, student_steps=3)
    students = {}
    for arm in experiment.RATES:
        arguments = (arm, settings, TIMES, kept["states"].numpy(), kept["label"].numpy(), 0)
        made = experiment.train_student(*arguments)
        assert made["history"][-1]["step"] == 2
        assert made["weights"].keys() == teacher.keys()
        assert any(not torch.equal(made["weights"][name], teacher[name]) for name in teacher)
        again = experiment.train_student(*arguments)["weights"]
        assert all(torch.equal(again[name], value) for name, value in made["weights"].items())
        students[arm] = made["weights"]
    low = students["low rank"]["enter.weight"] - teacher["enter.weight"]
    assert torch.linalg.matrix_rank(low.flatten(1), rtol=1e-3) <= experiment.RANK
    assert torch.equal(students["low rank"]["enter.bias"], teacher["enter.bias"])
    assert not torch.equal(students["straightened"]["enter.bias"], teacher["enter.bias"])


def test_the_share_of_low_rank_parameters() -> None:
    layers = [part for part in load_fashion_teacher().modules() if isinstance(part, (torch.nn.Linear, torch.nn.Conv2d))]
    size, low = experiment.sizes()
    assert size == sum(p.numel() for p in load_fashion_teacher().parameters())
    assert low == sum(experiment.RANK * (part.weight.shape[0] + part.weight[0].numel()) for part in layers)
    assert low / size <= 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anchors": 10}, "anchors=10: expected at least 20"),
        ({"images": 9}, "images=9: expected at least 10"),
        ({"timing_pairs": 2}, "timing_pairs=2: expected at least 3"),
        ({"student_steps": 0}, "student_steps=0"),
        ({"trajectories": 1}, "trajectories=1"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMOKE, **change)
