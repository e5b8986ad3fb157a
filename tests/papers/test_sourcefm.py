"""The experiment's own parts: settings, sets of kept noises, training, colour data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra generative is not installed")

from anabranch.generative import (  # noqa: E402
    PLANE_SCENARIOS,
    GaussianSource,
    PrunedSource,
    mean_direction_axes,
    solve,
    uniform_times,
)
from anabranch.papers.sourcefm import PAPER, SCENARIOS, experiment  # noqa: E402
from anabranch.worlds import balanced_labels, load_fashion_teacher  # noqa: E402
from anabranch.worlds import photographs as pictures  # noqa: E402

SMOKE = PAPER.scales["smoke"]


def test_every_published_claim_is_kept() -> None:
    published = {claim.name: claim.published for claim in PAPER.claims}
    assert published["pruning-few-steps"] == "19.80 to 17.24"
    assert published["pruning-many-steps"] == "4.40 to 4.15"
    assert published["pruning-independent-coupling"] == "34.49 to 28.78 at 5 calls, 4.35 to 3.97 at 100"
    assert published["pruning-imagenet"] == "53.95 to 49.56 at 5 calls, 9.10 to 8.78 at 100"
    assert published["both-best-at-many-steps"] == "3.88 (OT-CFM 4.40), 3.64 (I-CFM 4.35)"
    assert published["alignment-hurts-few-steps"] == "21.52 (OT-CFM 19.80), 48.10 (I-CFM 34.49)"
    assert all(claim.origin == "paper" and not claim.same_setting for claim in PAPER.claims)
    assert [claim.name for claim in PAPER.claims if not claim.checked] == ["pruning-imagenet"]


def test_thresholds_follow_from_the_published_values() -> None:
    """A claim asks for the sign that the paper reports, and for no more than its own tables give."""
    paper = {
        "pruning-few-steps": 17.24 / 19.80,
        "pruning-many-steps": 4.15 / 4.40,
        "pruning-independent-coupling": (28.78 / 34.49 * 3.97 / 4.35 / (17.24 / 19.80 * 4.15 / 4.40)) ** 0.5,
        "both-best-at-many-steps": 3.88 / 4.40,
        "alignment-hurts-few-steps": 21.52 / 19.80,
    }
    for claim in PAPER.claims:
        if claim.name in paper:
            assert claim.threshold is not None
            here = paper[claim.name]
            assert here <= claim.threshold if claim.comparison == "<=" else here >= claim.threshold, claim.name


def test_the_scenarios_are_those_of_the_library() -> None:
    assert set(PLANE_SCENARIOS) == set(SCENARIOS)
    assert PAPER.scales["laptop"].density == "density-10000"


def test_sets_of_kept_noises_are_the_pruned_sources_draws() -> None:
    """A sampler maps noise to image: the images of kept noises are those that the pruned source would have given."""
    x = torch.rand(300, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 0.5
    source = PrunedSource(GaussianSource((1, 28, 28)), mean_direction_axes(x), accept=0.5)
    noises = torch.randn(40, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    rows, n = experiment.share_out(noises, {"mean direction": source})
    kept = rows["mean direction"]
    assert n == len(kept) < 40 == len(rows[experiment.NONE])
    again = source.sample(40, generator=torch.Generator().manual_seed(1), condition=balanced_labels(40))
    assert torch.equal(again[kept], noises[kept])  # drawn from the same seed: what is kept stays in its place
    drawn = experiment.draw(load_fashion_teacher(), noises, 2, balanced_labels(40))
    alone = solve(load_fashion_teacher(), noises[kept], uniform_times(2), label=balanced_labels(40)[kept])
    torch.testing.assert_close(drawn[kept], alone, rtol=0, atol=1e-4)
    assert [part.tolist() for part in experiment.sets(torch.arange(7), 3)] == [[0, 1, 2], [3, 4, 5]]


def test_samples_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x0, label = torch.randn(10, 1, 28, 28, generator=torch.Generator().manual_seed(0)), balanced_labels(10)
    whole = experiment.draw(load_fashion_teacher(), x0, 2, label)
    monkeypatch.setattr(experiment, "CHUNK", 3)
    torch.testing.assert_close(experiment.draw(load_fashion_teacher(), x0, 2, label), whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("arm", ["aligned", "patches-ot"])
def test_training_lowers_the_loss_and_repeats(arm: str) -> None:
    settings = dataclasses.replace(SMOKE, train_steps=40, patch_steps=40)
    kept = experiment.train(arm, settings, 0)
    losses = [entry["loss"] for entry in kept["history"]]
    assert losses[-1] < 0.93 * losses[0]
    net = experiment.network(arm)
    net.load_state_dict(kept["weights"])
    again = experiment.train(arm, dataclasses.replace(SMOKE, train_steps=2, patch_steps=2), 0)
    assert again["history"][0]["loss"] == pytest.approx(losses[0], rel=1e-6)


def test_both_sources_start_from_the_same_weights() -> None:
    first = {arm: experiment.train(arm, SMOKE, 3)["weights"]["enter.weight"] for arm in ("gaussian", "aligned")}
    assert float((first["gaussian"] - first["aligned"]).abs().max()) < 1e-3  # one step apart, at a rate that warms up


def test_the_users_pictures_are_patches(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 256, (300, 280, 3), dtype=np.uint8)
        image.fromarray(noise).save(tmp_path / f"{i}.png")
    settings = dataclasses.replace(SMOKE, patches_from=str(tmp_path), patches=500)
    x = experiment.colour_data(settings)
    assert x.shape == (1000, 3, 16, 16)
    assert torch.equal(x[500:], x[:500].flip(-1))
    assert torch.equal(x, experiment.colour_data(settings))  # the same for every seed


def test_without_photographs_the_stage_is_skipped_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    told: dict[str, list[dict[str, str]]] = {}

    class Told:
        def table(self, name: str, rows: list[dict[str, str]], *, caption: str = "") -> None:
            told[name] = rows

    experiment.colour_patches(Told(), dataclasses.replace(SMOKE, patches_from="photographs"))
    assert "scikit-learn" in told["patches-skipped"][0]["reason"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": 0}, "runs=0"),
        ({"images": 5}, "images=5"),
        ({"calls": (5,)}, "calls="),
        ({"calls": (10, 5)}, "increasing"),
        ({"scenarios": ("ot", "cubic")}, "'cubic'"),
        ({"scenarios": ("ot", "independent")}, "expected also aligned"),
        ({"images_from": "mnist"}, "images_from='mnist'"),
    ],
)
def test_bad_settings_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMOKE, **change)
    assert SMOKE.density == "density-20"
