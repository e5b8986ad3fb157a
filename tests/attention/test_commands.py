"""``anabranch attention``: the user's own series, the user's own sizes."""

import json
from pathlib import Path

import pytest
import torch

from anabranch.attention import FlowformerEncoder, classify, median_seconds, peak_memory_bytes, read_series, tone_series
from support import CommandLine


def write_tones(path: Path, n: int) -> None:
    data = tone_series(n, seed=0)
    lines = ["series,time,channel,value,label"]
    for i, (x, mask, label) in enumerate(zip(data.values, data.mask, data.labels.tolist(), strict=True)):
        for t, row in enumerate(x[mask].tolist()):
            lines += [f"s{i},{t},{c},{value:.4f},tone {label}" for c, value in enumerate(row)]
    path.write_text("\n".join(lines))


def test_classify(anabranch: CommandLine, tmp_path: Path) -> None:
    write_tones(tmp_path / "tones.csv", 60)
    done = anabranch(
        "attention", "classify", "tones.csv", "-a", "flow,linear", "--epochs", "50", "--width", "16", "--depth", "1",
        "--heads", "2", "--lr", "0.01", "-o", "models", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["train"], found["test"], found["channels"]) == (48, 12, 2)
    assert found["classes"] == ["tone 0", "tone 1", "tone 2"]
    assert [row["attention"] for row in found["results"]] == ["flow", "linear"]
    assert found["results"][0]["accuracy"] > 0.8
    net = FlowformerEncoder.load(tmp_path / "models" / "flow")
    data = read_series(tmp_path / "tones.csv")
    held = torch.arange(60) % 5 == 4
    train, test = data.rows((~held).nonzero()[:, 0]), data.rows(held.nonzero()[:, 0])
    right = classify(net, test.normalized(train).values, test.mask) == test.labels
    assert float(right.float().mean()) == pytest.approx(found["results"][0]["accuracy"])


def test_speed(anabranch: CommandLine) -> None:
    done = anabranch("attention", "speed", "128", "-a", "all", "--heads", "2", "--width", "8", "--causal", "--train")
    assert done.returncode == 0, done.stderr
    for name in ("flow", "softmax", "linear", "performer", "cosformer", "local"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("classify", "none.ts"), "there is no file none.ts"),
        (("speed", "64", "-a", "spline"), "unknown spline; there are softmax"),
        (("classify", "few.csv"), "expected at least 5"),
    ],
)
def test_errors_are_one_line(anabranch: CommandLine, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    write_tones(tmp_path / "few.csv", 3)
    done = anabranch("attention", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_costs() -> None:
    kept = []
    _, peak = peak_memory_bytes(lambda: kept.append(torch.ones(30_000_000)))
    assert 100e6 < peak < 200e6
    calls = []
    assert median_seconds(lambda: calls.append(0), 5) < 0.1
    assert len(calls) == 6
