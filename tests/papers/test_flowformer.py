"""What the experiment of flowformer builds its numbers from: tasks, arms, scores; and the paper's settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the extra attention is not installed")

from anabranch.attention import FlowformerEncoder  # noqa: E402
from anabranch.papers.flowformer import PAPER, Settings  # noqa: E402
from anabranch.papers.flowformer import experiment as own  # noqa: E402

SMOKE: Settings = PAPER.scales["smoke"]


def test_published_values_stay() -> None:
    published = {claim.name: claim.published for claim in PAPER.claims if claim.origin == "paper"}
    assert published["long-range-arena"].startswith("56.48 % (Transformer 54.39")
    assert published["language-modelling"].startswith("perplexity 30.8")
    assert published["time-series"].startswith("73.0 %")
    assert published["japanese-vowels"].startswith("98.9 %")
    assert published["image-classification"].startswith("80.6 % top-1")
    assert published["offline-control"].startswith("73.5 +- 2.9")
    assert len(published) == 8


def test_every_arm_starts_from_the_same_weights() -> None:
    states = []
    for arm, options in own.ARMS.items():
        torch.manual_seed(3)
        net = FlowformerEncoder(
            3,
            channels=2,
            max_length=9,
            width=16,
            depth=1,
            heads=2,
            generator=torch.Generator().manual_seed(0),
            **options,
        )
        states.append({name: value for name, value in net.state_dict().items() if "projection" not in name})
        assert all(torch.equal(states[0][name], value) for name, value in states[-1].items()), arm


@pytest.mark.parametrize("task", ["listops", "pixels", "generated"])
def test_training_and_test_parts_differ_and_fit_the_model(task: str) -> None:
    parts, sizes = own.read_task(task, SMOKE, seed=1)
    (x, y, mask), (x_test, y_test, _) = parts
    assert len(x) == len(y)
    assert len(x_test) == len(y_test)
    assert x.shape[1] <= sizes["max_length"]
    assert mask is None or mask.any(1).all()
    rows = {row.numpy().tobytes() for row in x}
    assert not rows & {row.numpy().tobytes() for row in x_test}


def test_text_is_split_by_file(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i:02}.py").write_bytes(bytes([65 + i]) * (i + 1))
    train, test = own.read_text(str(tmp_path))
    assert bytes(test.tolist()) == b"J" * 10 + b"T" * 20
    assert len(train) == sum(range(1, 21)) - 30
    with pytest.raises(ValueError, match="0 files"):
        own.read_text(str(tmp_path / "none"))


def test_users_series_are_read_by_their_path(tmp_path: Path) -> None:
    head = "@classLabel true a b\n@data\n"
    (tmp_path / "mine_TRAIN.ts").write_text(head + "1,2,3:a\n3,4:b\n")
    (tmp_path / "mine_TEST.ts").write_text(head + "2,2:b\n")
    train, test = own.read_series_set(f"{tmp_path}/mine", seed=0)
    assert train.classes == test.classes == ("a", "b")
    assert test.labels.tolist() == [1]
    with pytest.raises(FileNotFoundError, match="anabranch data japanese-vowels"):
        own.read_series_set(f"{tmp_path}/other", seed=0)


def test_an_arm_is_deterministic() -> None:
    first, second = (own.train_classifier("generated", "flow", SMOKE, 0) for _ in range(2))
    assert (first["points"][:, [0, 2]] == second["points"][:, [0, 2]]).all()
    assert first["evenness"] == second["evenness"]
    assert 0 < first["evenness"] <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 12}, "width=12: expected a multiple of 8"),
        ({"lengths": (64,)}, "expected at least two"),
        ({"series": ()}, "at least one set"),
        ({"contexts": (10, 10)}, "contexts="),
        ({"epochs": 0}, "epochs=0"),
        ({"listops": 3}, "listops=3"),
    ],
)
def test_bad_settings(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMOKE, **change)  # type: ignore[arg-type]


def test_a_plan_needs_no_data() -> None:
    for scale in PAPER.scales.values():
        assert dict(own.plan(scale))["ListOps"].endswith("parameters")
