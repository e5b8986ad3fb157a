"""`anabranch serving` through the real command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch import cli
from anabranch.serving import (
    Batching,
    Cluster,
    Load,
    Pool,
    ProfileTable,
    SloLimits,
    Transfers,
    published_performance,
    read_requests,
    simulate_cluster,
    slo_report,
)
from anabranch.serving._serving_words import numbers, table_text, watts
from anabranch.simulation import BLOOM_176B, DGX_A100, DGX_H100, Machine
from support import ROOT, CommandLine

MACHINES = str(ROOT / "examples" / "machines.json")


@pytest.fixture
def refused(monkeypatch: Any, capsys: Any) -> Any:
    """The entry point in this process on bad input: exit code 2 and one line, which is given back."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["anabranch", "serving", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert stopped.value.code == 2, out + err
        assert err.startswith("anabranch: error: ")
        assert err.count("\n") == 1
        return str(err.removeprefix("anabranch: error: ").rstrip())

    return run


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    path = tmp_path / "trace.csv"
    lines = [
        f"{t:.3f},{p},{d}"
        for t, p, d in zip(
            np.cumsum(generator.exponential(0.25, 200)),
            generator.integers(50, 1500, 200),
            generator.integers(2, 120, 200),
            strict=True,
        )
    ]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]))
    return path


def test_a_trace_and_a_budget(anabranch: CommandLine, trace: Path, tmp_path: Path) -> None:
    done = anabranch(
        "serving", "provision", "--trace", str(trace), "--budget-power", "45kW", "--seconds", "10", "--json", "--out",
        str(tmp_path / "found"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rates = [one["rate_per_s"] for one in found["designs"]]
    assert rates == sorted(rates, reverse=True)
    assert all(0 < one["power_w"] <= 45_000 for one in found["designs"])
    assert {one["design"] for one in found["designs"]} | set(found["failed"]) == {
        "AA", "HH", "HA", "HHcap", "A100 mixed", "H100 mixed",
    }  # fmt: skip
    with (tmp_path / "found" / "provision.csv").open(newline="") as file:
        assert [float(row["rate_per_s"]) for row in csv.DictReader(file)] == pytest.approx(rates)
    assert (tmp_path / "found" / "provision.svg").stat().st_size > 5000


def test_prompts_in_chunks_beside_the_other_designs(anabranch: CommandLine, trace: Path, tmp_path: Path) -> None:
    rate, seconds, sizes = 9.0, 5.0, (256, 512)
    command = ("serving", "provision", "--trace", str(trace), "--rate", str(rate), "--seconds", str(seconds))
    done = anabranch(*command, "--chunk-tokens", "256,512", "--json", "--out", str(tmp_path / "found"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == {}
    designs = {one["design"]: one for one in found["designs"]}
    whole = {"AA", "HH", "HA", "HHcap", "A100 mixed", "H100 mixed"}
    assert set(designs) == whole | {f"{kind} chunks of {size}" for kind in ("A100", "H100") for size in sizes}
    costs = [one["cost_per_hour"] for one in found["designs"]]
    assert costs == sorted(costs)
    # The same clusters by hand: each keeps the limits, and with a machine fewer does not.
    times = {one.name: published_performance("bloom-176b", one.device.name) for one in (DGX_A100, DGX_H100)}
    requests = Load(read_requests(trace), seconds, rate * 1.01, np.random.default_rng(0)).at(rate)
    layers = BLOOM_176B.layers

    def keeps(machine: Machine, count: int, chunk: int | None) -> bool:
        cluster = Cluster(
            (Pool(machine, count, "mixed"),), times, BLOOM_176B.kv_bytes_per_token(), 329 * 10**9, "join_shortest_queue",
            Batching(chunk_tokens=chunk), Transfers(layers=layers),
        )  # fmt: skip
        report = slo_report(simulate_cluster(cluster, requests), requests, times[DGX_A100.name], SloLimits())
        return report.holds

    for machine, kind in ((DGX_A100, "A100"), (DGX_H100, "H100")):
        for chunk in (None, *sizes):
            one = designs[f"{kind} mixed" if chunk is None else f"{kind} chunks of {chunk}"]
            assert (one["chunk_tokens"], one["token_machines"]) == (chunk, 0)
            assert keeps(machine, one["prompt_machines"], chunk)
            assert one["prompt_machines"] == 1 or not keeps(machine, one["prompt_machines"] - 1, chunk)
    assert all(designs[name]["chunk_tokens"] is None for name in whole)
    with (tmp_path / "found" / "provision.csv").open(newline="") as file:
        rows = {row["design"]: row["chunk_tokens"] for row in csv.DictReader(file)}
    assert rows == {name: str(one["chunk_tokens"] or "") for name, one in designs.items()}
    assert (tmp_path / "found" / "provision.svg").stat().st_size > 5000
    # What was there without the option stays as it is.
    plain = json.loads(anabranch(*command, "--json").stdout)["designs"]
    assert {one["design"] for one in plain} == whole
    assert all({**one, "chunk_tokens": None} == designs[one["design"]] for one in plain)
    told = anabranch(*command, "--chunk-tokens", "512").stdout
    assert "H100 chunks of 512" in told
    assert "reading caches again is not charged" in told


def test_a_rate_with_machines_of_ones_own(anabranch: CommandLine, trace: Path) -> None:
    done = anabranch(
        "serving", "provision", "--trace", str(trace), "--machines", MACHINES, "--seconds", "10", "--minimise", "power"
    )
    assert done.returncode == 0, done.stderr
    assert "goal      the least power for 3" in done.stdout  # the trace's own rate
    for design in ("large + large", "small + large", "small mixed"):
        assert design in done.stdout
    assert "result    " in done.stdout


def test_without_a_trace_or_a_profile(anabranch: CommandLine) -> None:
    done = anabranch("serving", "provision", "--rate", "2", "--seconds", "5", "--service", "code", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    costs = [one["cost_per_hour"] for one in found["designs"]]
    assert costs == sorted(costs)
    assert len(costs) >= 4


def test_a_profile_measured_here_goes_into_provisioning(anabranch: CommandLine, trace: Path, tmp_path: Path) -> None:
    import torch

    from anabranch.language import tiny_causal

    tiny_causal(generator=torch.Generator().manual_seed(0)).model.save_pretrained(tmp_path / "tiny")
    profile = tmp_path / "profile.csv"
    done = anabranch(
        "serving", "profile", str(tmp_path / "tiny"), "-o", str(profile), "--prompt-sizes", "8,32", "--batch-sizes", "1,2",
        "--repeats", "1", "--hardware", "this",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "prefill, ms" in done.stdout
    assert ProfileTable.read(profile).entries == [("tiny", "this", 1)]
    machine = {
        "name": "mine", "hardware": "this", "tensor_parallel": 1, "memory_gib": 8, "network_gbit_per_s": 10, "power_w": 100,
        "cost_per_hour": 0.2,
    }  # fmt: skip
    (tmp_path / "machines.json").write_text(json.dumps([machine]))
    done = anabranch(
        "serving", "provision", "--trace", str(trace), "--profile", str(profile), "--machines", str(tmp_path / "machines.json"),
        "--config", str(tmp_path / "tiny" / "config.json"), "--rate", "3", "--seconds", "5", "--ttft", "20,30,60", "--tbt",
        "20,30,60", "--e2e", "20,30,60", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {one["design"] for one in json.loads(done.stdout)["designs"]} == {"mine + mine", "mine mixed"}


def test_serving_lines(smollm2: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "anabranch.cli", "serving", "serve", str(smollm2), "--tokens", "6"],
        input="The capital of France is\n", capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("> The capital of France is\n")
    assert "Paris" in done.stdout
    assert "6 tokens; first after" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give --rate, --budget-power or --budget-cost"),
        (("--rate", "2", "--budget-power", "1kW"), "--budget-power and --rate exclude each other"),
        (("--budget-power", "much"), "--budget-power much: expected a power such as 200kW"),
        (("--rate", "2", "--tbt", "1,x"), "--tbt 1,x: expected numbers above 0"),
        (("--rate", "2", "--tbt", "1,2"), "tbt has 2 limits for 3 percentiles"),
        (("--rate", "-1"), "--rate -1.0: expected more than 0"),
        (("--rate", "2", "--minimise", "space"), "--minimise space: expected cost or power"),
        (("--rate", "2", "--service", "mail"), "service must be one of conversation, code"),
        (("--rate", "2", "--model", "gpt"), "model gpt: its cache and weights are not known"),
        (("--rate", "2", "--out", "no/where"), "--out no/where: there is no folder no"),
        (("--rate", "2", "--chunk-tokens", "0"), "--chunk-tokens 0: expected numbers above 0, separated by commas"),
        (("--rate", "2", "--chunk-tokens", "256,many"), "--chunk-tokens 256,many: expected numbers above 0"),
        (("--rate", "2", "--chunk-tokens", "nan"), "--chunk-tokens nan: expected whole numbers of tokens"),
        (("--rate", "2", "--chunk-tokens", "1e400"), "--chunk-tokens 1e400: expected whole numbers of tokens"),
        (("--rate", "2", "--chunk-tokens", "0.5"), "--chunk-tokens 0.5: expected whole numbers of tokens"),
        (("--rate", "2", "--chunk-tokens", "512,512"), "--chunk-tokens 512,512: a number is there twice"),
    ],
)
def test_bad_jobs(refused: Any, arguments: tuple[str, ...], words: str) -> None:
    assert words in refused("provision", *arguments)


def test_a_worker_on_a_device_that_is_not_there(refused: Any) -> None:
    arguments = ("worker", "--role", "decode", "--listen", "127.0.0.1:0", "--device")
    assert "device='tpu': expected cpu, cuda or cuda:INDEX" in refused(*arguments, "tpu")
    import torch

    if not torch.cuda.is_available():
        assert "device='cuda:0'" in refused(*arguments, "cuda:0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "Expecting value"),
        ("{}", "expected a list of 1 to 4 machines"),
        ('[{"name": "a"}]', "machine 0: there is no hardware, tensor_parallel"),
        (
            '[{"name": "a", "hardware": "h100-80gb", "tensor_parallel": 8, "memory_gib": 640, "network_gbit_per_s": 0, '
            '"power_w": 1, "cost_per_hour": 1}]',
            "machine 0: nic_bytes_per_s must be > 0",
        ),
    ],
)
def test_bad_machines(refused: Any, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "machines.json"
    path.write_text(text)
    assert words in refused("provision", "--rate", 2, "--machines", path)


def test_a_model_that_is_not_there(refused: Any, tmp_path: Path) -> None:
    assert "there is no such file" in refused("profile", tmp_path / "none.gguf")
    assert "there is no folder" in refused("profile", "x", "-o", tmp_path / "no" / "profile.csv")


def test_words() -> None:
    assert watts("--budget-power", "1.5 MW") == 1.5e6
    assert watts("--budget-power", "250") == 250
    assert numbers("--ttft", "2,3") == [2, 3]
    assert table_text([{"a": 1, "bb": 22}]) == "a  bb\n-----\n1  22"


def test_published_times_are_the_profiles_medians(shared_data: Path) -> None:
    table = ProfileTable.read(shared_data / "splitwise-profiles" / "perf_model.csv")
    for model in ("bloom-176b", "llama2-70b"):
        for hardware in ("a100-80gb", "h100-80gb", "h100-80gb-pcap"):
            ours, theirs = published_performance(model, hardware), table.model(model, hardware, 8)
            for curve in ("prompt", "decode", "prompt_power"):
                assert np.array_equal(getattr(ours, curve).x, getattr(theirs, curve).x)
                np.testing.assert_allclose(getattr(ours, curve).y, getattr(theirs, curve).y, rtol=1e-3)
    with pytest.raises(ValueError, match="no published times of gpt on tpu; there are bloom-176b on a100-80gb"):
        published_performance("gpt", "tpu")
