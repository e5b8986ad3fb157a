"""The experiment's own parts: world, changed data, budgets, arms, verdicts' inputs; and the published values."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra generative is not installed")
pytest.importorskip("sklearn", reason="the mixture is fitted with scikit-learn")

from anabranch.papers.freeflow import PAPER, Settings, experiment  # noqa: E402

SMOKE: Settings = PAPER.scales["smoke"]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return experiment.fit_world("digits", SMOKE.dim, SMOKE.components)


def test_every_published_claim_is_kept_and_all_but_one_are_judged() -> None:
    published = {claim.name: claim.published for claim in PAPER.claims if claim.origin == "paper"}
    assert published["one-step-256"].startswith("FID 1.45 (teacher 1.37 with 434 calls")
    assert published["one-step-512"].startswith("FID 1.49")
    assert published["better-than-its-teacher"].startswith("FID 1.69")
    assert published["fast-training"].startswith("FID 1.84")
    assert "5.58 with correction" in published["both-signals-needed"]
    assert published["correct-at-high-noise"].startswith("FID 91.82")
    assert published["search-for-noise"] == "80 calls against 128"
    assert [claim.name for claim in PAPER.claims if not claim.checked] == ["one-step-512"]
    assert len(PAPER.claims) == 8


def test_images_are_turned_by_plus_or_minus_the_angle() -> None:
    x = torch.zeros(200, 1, 9, 9)
    x[:, :, 4, 8] = 1.0  # to the right of the middle
    assert torch.allclose(experiment.rotated(x, 0), x, atol=1e-5)
    turned = experiment.rotated(x, 90)
    up, down = (turned[:, 0, row, 4] > 0.9 for row in (0, 8))
    assert bool((up ^ down).all())
    assert 70 < int(up.sum()) < 130


def test_the_world_has_the_moments_of_the_codes(made: dict[str, Any]) -> None:
    world, codes = experiment.mixture_of(made), torch.as_tensor(made["data"]["degrees-0"])
    assert torch.allclose(world.mean, codes.double().mean(0), atol=0.02)
    assert float((world.covariance - torch.cov(codes.double().T)).norm() / world.covariance.norm()) < 0.05
    assert len(made["data"]["classes"]) < len(codes)
    away = [float((torch.as_tensor(made["data"][f"degrees-{d}"]) - codes).norm()) for d in experiment.DEGREES]
    assert away == sorted(away)
    assert away[0] < 1e-2


def test_coverage_is_full_for_the_world_and_one_for_one_component(made: dict[str, Any]) -> None:
    world = experiment.mixture_of(made)
    fresh = world.sample(2000, generator=torch.Generator().manual_seed(0)).float()
    assert experiment.covered(world, fresh) == 1.0
    alone = world.means[:1].expand(500, -1).float()
    assert experiment.covered(world, alone) <= 2 / SMOKE.components


def test_every_arm_has_the_same_cost_in_passes(made: dict[str, Any]) -> None:
    settings = dataclasses.replace(SMOKE, steps=24)
    budget = settings.steps * experiment.PASSES["FreeFlow"]
    for name in ("FreeFlow", "prediction only", "MeanFlow", "SplitMeanFlow", "MeanFlow, 5 degrees"):
        kept = experiment.train(name, made, settings, 0)
        each = next(cost for part, cost in experiment.PASSES.items() if name.startswith(part))
        assert abs(kept["steps"] * each - budget) <= each
    assert experiment.train("FreeFlow, a quarter", made, settings, 0)["steps"] == 6
    assert abs(experiment.train("reflow", made, settings, 0)["steps"] * 3.0 - budget / 2) <= 3.0


def test_arms_differ_and_repeat(made: dict[str, Any]) -> None:
    def weights(name: str, seed: int = 0) -> Any:
        kept = experiment.train(name, made, SMOKE, seed)["weights"]
        return torch.cat([value.flatten() for value in kept.values()])

    first = weights("FreeFlow")
    assert torch.equal(first, weights("FreeFlow"))
    assert not torch.equal(first, weights("FreeFlow", 1))
    names = ("FreeFlow", "prediction only", "correction only", "FreeFlow, k = 0", "all noise", "noise up to 0.6",
             "FreeFlow, any start")  # fmt: skip
    every = [weights(name) for name in names]
    assert all(not torch.equal(a, b) for i, a in enumerate(every) for b in every[:i])


def test_students_are_read_back_and_jump(made: dict[str, Any]) -> None:
    x0 = torch.randn(5, SMOKE.dim, generator=torch.Generator().manual_seed(0))
    for name in ("FreeFlow", "reflow", "SplitMeanFlow"):
        student = experiment.student_of(name, experiment.train(name, made, SMOKE, 0)["weights"], SMOKE)
        assert experiment.ge.jump(student, x0, experiment.uniform_times(1)).shape == x0.shape


class Recorder:
    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def measure(self, name: str, value: float, **more: Any) -> float:
        self.values[name] = value
        return value


def test_measures_are_the_ratios_they_say() -> None:
    def row(name: str, steps: int, value: float) -> dict[str, Any]:
        return {"student": name, "steps": steps, "Frechet": value, "RMSE / std": 0.1, "modes": 1.0}

    names = [*experiment.FREE, *experiment.WITH_DATA, "reflow"]
    rows = [row(name, n, 2.0 + i) for i, name in enumerate(names) for n in (1, 2, 4)]
    rows += [row("Euler", n, 16.0 / n) for n in (1, 2, 4, 8, 16, 64)] + [row("fresh samples of the teacher", 0, 0.01)]
    lab = Recorder()
    experiment.judge(lab, rows)  # type: ignore[arg-type]
    at = {name: 2.0 + i for i, name in enumerate(names)}
    found = lab.values
    assert found["frechet-over-best-with-data"] == 2.0 / min(at["MeanFlow"], at["SplitMeanFlow"])
    assert found["frechet-over-eight-steps"] == 1.0
    assert found["prediction-only-over-both"] == at["prediction only"] / 2.0
    assert found["low-noise-over-all-noise"] == at["noise up to 0.6"] / at["all noise"]
    assert found["mismatch-order"] == pytest.approx(1.0)
    assert found["euler-steps-surpassed"] == 4
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 1}, "steps=1"),
        ({"data": "cifar"}, "data='cifar'"),
        ({"images": 10}, "images=10"),
        ({"guidance": 1.0}, "guidance=1.0"),
        ({"slow_steps": 0}, "slow_steps=0"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMOKE, **change)
