"""Shipped weights: whole, as good as their cards say, and rebuilt by their recipes."""

import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra generative is not installed")

from anabranch.generative import solve, uniform_times  # noqa: E402
from anabranch.worlds import (  # noqa: E402
    CARDS,
    FASHION_CLASSIFIER,
    FASHION_MNIST,
    FASHION_TEACHER,
    FashionJudge,
    Weights,
    balanced_labels,
    fashion_tensors,
    load_fashion_classifier,
    load_fashion_teacher,
)
from support import CommandLine  # noqa: E402

SHIPPED = [card for card in CARDS.values() if isinstance(card, Weights)]


@pytest.mark.parametrize("weights", SHIPPED, ids=lambda weights: weights.name)
def test_shipped_and_as_the_card_says(weights: Weights) -> None:
    assert weights.checked().stat().st_size == weights.size_bytes <= 6e6
    assert weights.card["gates"]
    assert len(weights.recipe) > 40


def test_a_damaged_or_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anabranch.worlds import shared_weights

    monkeypatch.setattr(shared_weights, "SHIPPED", tmp_path)
    broken = Weights("fashion-teacher", "", "")
    with pytest.raises(ValueError, match="missing from this installation"):
        broken.checked()
    (tmp_path / "fashion-teacher.safetensors").write_bytes(b"x")
    (tmp_path / "fashion-teacher.json").write_text(json.dumps({"sha256": "0", "recipe": "", "size_bytes": 1}))
    with pytest.raises(ValueError, match="is damaged"):
        broken.checked()


def test_the_teacher_draws_the_class_that_is_asked_for() -> None:
    """Needs no data set: the classifier judges. The card says 88 %; three standard errors of 100 images below it."""
    labels = balanced_labels(100)
    noise = torch.randn(100, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images = solve(load_fashion_teacher(), noise, uniform_times(6), "ab2", label=labels)
    gate = FASHION_TEACHER.card["gates"]["accuracy_euler_10"]
    share = float((load_fashion_classifier().classes(images) == labels).float().mean())
    assert share > gate - 3 * math.sqrt(gate * (1 - gate) / 100)


def test_the_classifier_and_the_floor_of_its_distance(fashion_root: Path) -> None:
    x, label = fashion_tensors(fashion_root, "test")
    assert x.shape == (10_000, 1, 28, 28)
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    # facts of the data set: mean and standard deviation of its training pixels
    train, _ = fashion_tensors(fashion_root)
    assert float(train.mean()) == pytest.approx(-0.4279, abs=1e-4)
    assert float(train.std()) == pytest.approx(0.7060, abs=1e-4)
    judge = FashionJudge(train)
    scores = judge(x, label)
    gates = FASHION_CLASSIFIER.card["gates"]
    assert scores.accuracy == pytest.approx(gates["test_accuracy"], abs=1e-3)
    assert scores.ffd == pytest.approx(gates["ffd_of_10000_test_images"], abs=0.01)
    assert judge.distance(x, x) == pytest.approx(0, abs=1e-6)
    assert judge.pair_distance(x[:9], x[:9]) == 0


def test_the_command_names_what_is_shipped(anabranch: CommandLine) -> None:
    done = anabranch("data", "fashion-teacher")
    assert done.stdout.strip() == str(FASHION_TEACHER.path)
    card = json.loads(anabranch("data", "fashion-classifier", "--json").stdout)[0]
    assert card["gates"]["test_accuracy"] > 0.85
    refused = anabranch("data", "fashion-mnist", "--build")
    assert refused.returncode == 2
    assert "--build trains shared weights" in refused.stderr
    taken = anabranch("data", "fashion-teacher", "--from", ".")
    assert taken.returncode == 2
    assert "shipped with the package" in taken.stderr


def test_a_build_goes_on_where_it_stopped(fashion_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short recipe, stopped by its note and started again: the same file as a build in one go."""
    from anabranch.worlds import fashion_classifier as module

    monkeypatch.setattr(module, "_STEPS", 500)
    monkeypatch.setattr(module, "_BATCH", 8)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    def stop(text: str) -> None:
        if text.startswith("step 250"):
            raise KeyboardInterrupt

    for place in ("a", "b"):
        (tmp_path / place / "fashion-mnist").symlink_to(FASHION_MNIST.folder(fashion_root), target_is_directory=True)
    with pytest.raises(KeyboardInterrupt):
        FASHION_CLASSIFIER.build(tmp_path / "a", note=stop)
    said: list[str] = []
    again = FASHION_CLASSIFIER.build(tmp_path / "a", note=said.append)
    whole = FASHION_CLASSIFIER.build(tmp_path / "b")
    assert said == ["step 500 of 500"]
    assert again.read_bytes() == whole.read_bytes()
    card = json.loads(again.with_suffix(".json").read_text())
    assert card["gates"]["test_accuracy"] > 0.5
    assert card["size_bytes"] == again.stat().st_size
