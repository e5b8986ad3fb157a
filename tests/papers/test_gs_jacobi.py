"""The experiment's own parts: data, training, tolerance, strategies."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra generative is not installed")

from anabranch.generative import SamplingPlan, invert_autoregressive  # noqa: E402
from anabranch.papers.gs_jacobi import PAPER, experiment  # noqa: E402

SMOKE = PAPER.scales["smoke"]


def test_every_published_claim_is_kept_and_judged() -> None:
    published = {claim.name: claim.published for claim in PAPER.claims if claim.origin == "paper"}
    assert published["speed-up-img128"].startswith("4.53x")
    assert published["speed-up-afhq"].startswith("5.32x")
    assert published["speed-up-img64-uncond"].startswith("2.96x")
    assert published["speed-up-img64-cond"].startswith("2.51x")
    assert "42.60" in published["few-blocks-are-tough"]
    assert all(claim.checked for claim in PAPER.claims)


def test_training_lowers_the_loss_and_is_read_back() -> None:
    kept = experiment.train(dataclasses.replace(SMOKE, noise=0.2), 2, 1.5, 0)
    losses = [point["loss"] for point in kept["history"]]
    assert losses[-1] < losses[0] - 0.2
    flow = experiment.gen.TarFlow(**kept["config"])
    flow.load_state_dict(kept["state"])
    assert flow.tokens == 16


def test_without_training_the_weights_are_random_and_repeat() -> None:
    states = [experiment.train(SMOKE, 1, 0, seed)["state"] for seed in (0, 0, 1)]
    name = "blocks.0.proj_out.weight"
    assert states[0][name].abs().min() > 0
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_a_users_images_are_read_and_split(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", x=x, y=np.arange(40) % 3)
    train, label = experiment.read_images(str(tmp_path / "mine.npz"), "train", 0)
    test, test_label = experiment.read_images(str(tmp_path / "mine.npz"), "test", 0)
    assert train.shape == (36, 1, 12, 12)
    assert test.shape == (4, 1, 12, 12)
    assert label.max() == test_label.max() == 2
    assert torch.allclose(test[1, 0], torch.from_numpy(x[10]).float() / 127.5 - 1)


def test_the_tolerance_is_halved_until_the_error_is_small() -> None:
    flow = experiment.gen.TarFlow(**experiment.train(SMOKE, 2, 0, 0)["config"])
    flow.load_state_dict(experiment.train(SMOKE, 2, 0, 0)["state"])
    generator = torch.Generator().manual_seed(0)
    maps, batches = flow.inverse_maps(), experiment.noises(flow, 2, 1, generator)
    tol, error = experiment.tolerance(dataclasses.replace(SMOKE, tol=0.4), maps, batches, "jacobi")
    assert tol < 0.4
    assert error <= experiment.ERROR
    exact = [invert_autoregressive(maps, z, "sequential", tol=tol)[0] for z in batches]
    found = [invert_autoregressive(maps, z, "jacobi", tol=2 * tol)[0] for z in batches]
    assert max(float((x - y).abs().max()) for x, y in zip(exact, found, strict=True)) > experiment.ERROR


def test_the_papers_recipe_is_modules_on_the_tough_block() -> None:
    flow = experiment.gen.TarFlow(8, 1, 1, 16, 4, 1, head_size=16)
    plan = SamplingPlan(("jacobi",) * 4, (1.0,) * 4, ({},) * 4, 1, 1e-3, 1, "here")
    arms = experiment.strategies(flow, 2, plan)
    assert arms["paper"] == ["jacobi", "jacobi", "gs-jacobi-8", "jacobi"]
    assert arms["selective"] == ["sequential", "jacobi", "jacobi", "jacobi"]
    assert arms["plan"] == plan.strategies


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": (4, 1)}, "the first one 1"),
        ({"patch": 0}, "patch=0"),
        ({"draws": 1}, "draws=1"),
        ({"train_seconds": -1}, "train_seconds=-1"),
    ],
)
def test_bad_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMOKE, **change)
