"""``anabranch distributed plan`` through the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anabranch.distributed.commands import _recomputation, parse_quantity, read_model
from support import CommandLine

CONFIG = {
    "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
PROFILE = "name,forward_s,backward_s,params,activation_bytes,output_bytes\n" + "".join(
    f"layer{i},0.01,0.02,1e6,5e6,1e5\n" for i in range(8)
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG))
    return file


def test_plan_of_a_model(anabranch: CommandLine, config: Path) -> None:
    options = ("--devices", "4", "--memory", "4GB", "--bandwidth", "12GB/s", "--batch", "32")
    done = anabranch("distributed", "plan", "--model", str(config), *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["layers"] == 32
    best = found["plans"][0]
    assert sum(best["balance"]) == 32
    assert max(best["memory_bytes"]) <= 4e9
    assert best["stages"] * best["replicas"] == 4
    assert [p["step_s"] for p in found["plans"]] == sorted(p["step_s"] for p in found["plans"])


def test_plan_of_a_profile_as_a_table(anabranch: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "layers.csv"
    file.write_text(PROFILE)
    options = ("--devices", "2", "--memory", "90MB", "--bandwidth", "1GB/s", "--batch", "16")
    done = anabranch("distributed", "plan", "--profile", str(file), *options)
    assert done.returncode == 0, done.stderr
    assert "8 layers, 8,000,000 parameters" in done.stdout
    assert "balance   4 4 layers" in done.stdout  # 128 MB of parameters and optimizer do not fit on one
    assert "one device does not hold the model" in done.stdout
    assert "\x1b" not in done.stdout


def test_figure_and_layers_are_written_and_read_again(anabranch: CommandLine, config: Path, tmp_path: Path) -> None:
    figure, layers = tmp_path / "plan.svg", tmp_path / "layers.csv"
    options = ("--devices", "4", "--memory", "2GB", "--bandwidth", "12GB/s", "--top", "1000", "--json")
    done = anabranch(
        "distributed", "plan", "--model", str(config), *options, "--out", str(figure), "--profile-out", str(layers)
    )
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)
    assert first["written"] == [str(layers), str(figure)]
    best = first["plans"][0]
    assert best["stages"] > 1  # 2.6 GB of parameters and optimizer
    drawn = figure.read_text()
    assert drawn.startswith("<?xml")
    assert drawn.count("<path") > 2 * best["stages"] * best["micro_batches"]  # at least a bar for each action
    rows = layers.read_text().splitlines()
    assert rows[0] == "name,forward_s,backward_s,params,activation_bytes,output_bytes"
    assert [row.split(",")[0] for row in rows[1:]] == ["embedding", *(f"layer {i}" for i in range(30)), "head"]
    done = anabranch("distributed", "plan", "--profile", str(layers), *options)
    again = json.loads(done.stdout)
    assert again["fitting"] == first["fitting"]
    assert again["plans"][0]["step_s"] == pytest.approx(best["step_s"], rel=1e-6)
    ways = ("stages", "replicas", "micro_batches", "schedule", "checkpoint")
    known = {tuple(str(plan[way]) for way in ways): plan for plan in again["plans"]}
    assert len(known) == first["fitting"]
    for plan in first["plans"]:
        other = known[tuple(str(plan[way]) for way in ways)]
        assert other["balance"] == plan["balance"]
        assert other["step_s"] == pytest.approx(plan["step_s"], rel=1e-6)
        # the file does not tell what goes into the first layer: 8 bytes a token
        assert other["memory_bytes"] == pytest.approx(plan["memory_bytes"], abs=32 * 8 * 2048 + 1)


def test_layers_measured_at_several_sizes(anabranch: CommandLine, tmp_path: Path) -> None:
    """A layer takes 10 ms whatever the batch: then one micro-batch a device is best, and small ones are not thought fast."""
    small, large = tmp_path / "small.csv", tmp_path / "large.csv"
    head = "name,forward_s,backward_s,params,activation_bytes,output_bytes\n"
    small.write_text(head + "".join(f"layer{i},0.01,0.02,1e6,5e6,1e5\n" for i in range(8)))
    large.write_text(head + "".join(f"layer{i},0.0115,0.023,1e6,8e7,1.6e6\n" for i in range(8)))
    options = ("--devices", "1", "--memory", "1TB", "--bandwidth", "1GB/s", "--batch", "16", "--top", "100", "--json")
    sizes = ("--samples", "1", "--profile", str(large), "--samples", "16")
    done = anabranch("distributed", "plan", "--profile", str(small), *sizes, *options)
    assert done.returncode == 0, done.stderr
    plans = json.loads(done.stdout)["plans"]
    assert (plans[0]["micro_batches"], plans[0]["checkpoint"]) == (1, "never")
    assert plans[0]["step_s"] == pytest.approx(8 * 0.0345)
    many = next(p for p in plans if (p["micro_batches"], p["checkpoint"]) == (16, "never"))
    assert many["step_s"] == pytest.approx(16 * 8 * 0.03)
    half = next(p for p in plans if (p["micro_batches"], p["checkpoint"]) == (2, "never"))
    assert half["step_s"] == pytest.approx(2 * 8 * 3 * (0.01 + 0.0015 * 7 / 15))
    done = anabranch("distributed", "plan", "--profile", str(small), "--profile", str(large), *options)
    assert done.returncode == 2
    assert done.stderr == "anabranch: error: give --samples once a profile: 2 profiles, --samples 1 times\n"


def test_bad_input_is_one_line(anabranch: CommandLine, tmp_path: Path) -> None:
    done = anabranch("distributed", "plan")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "anabranch: error: give exactly one of --model, --profile, got none\n"
    file = tmp_path / "layers.csv"
    file.write_text(PROFILE)
    done = anabranch("distributed", "plan", "--profile", str(file), "--devices", "2", "--memory", "1MB")
    assert done.returncode == 2
    assert "nothing fits on 2 devices" in done.stderr
    for extra, message in (
        (("--out", str(tmp_path / "plan.pdf")), "expected .svg or .png"),
        (("--out", str(tmp_path / "no" / "plan.svg")), "there is no folder"),
        (("--profile-out", str(tmp_path / "again.csv")), "use it with --model"),
    ):
        done = anabranch("distributed", "plan", "--profile", str(file), *extra)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr


def test_recomputations_in_words() -> None:
    assert _recomputation("except_last") == "except last"
    assert _recomputation(("always", "always", "except_last", "never")) == "2 always, 1 except last, 1 never"


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [("16GB", "B", 16e9), ("16GiB", "B", 16 * 2**30), ("12 GB/s", "B/s", 12e9), ("100TFLOP/s", "FLOP/s", 1e14), ("5B", "B", 5.0)],
)  # fmt: skip
def test_quantities(text: str, unit: str, value: float) -> None:
    assert parse_quantity("x", text, unit) == value


@pytest.mark.parametrize("text", ["", "16", "16G", "-4GB", "lots", "nanB", "0GB", "4iB", "16GB/h"])
def test_wrong_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="memory must be a number above 0 with the unit B"):
        parse_quantity("memory", text, "B")


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "expected an object"), ("{", "line 1, column 2"), ("{}", "config must have num_hidden")],
)
def test_wrong_models(tmp_path: Path, text: str, message: Any) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_model(file, 16, 1e12)
