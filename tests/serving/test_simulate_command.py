"""Clusters from files, `anabranch serving simulate`, and rates over several seeds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.lab.statistics import t_interval
from anabranch.serving import (
    Batching,
    Cluster,
    Load,
    Pool,
    RequestTable,
    max_rate,
    published_performance,
    rate_interval,
    read_requests,
    simulate_cluster,
    slo_report,
)
from anabranch.serving._cluster_files import read_cluster, read_machines
from anabranch.serving._provision_command import Job
from anabranch.serving._simulate_command import serve
from anabranch.simulation import BLOOM_176B, DGX_A100, DGX_H100
from support import ROOT, CommandLine

EXAMPLE = ROOT / "examples" / "cluster.toml"
MIXED = """
decode_by = "requests"
[[pools]]
machine = "dgx-h100"
count = 3
role = "mixed"
[batching]
chunk_tokens = 512
"""
OWN = """
[[machines]]
name = "own"
hardware = "h100-80gb"
tensor_parallel = 8
memory_gib = 640
network_gbit_per_s = 400
power_w = 10200
cost_per_hour = 38.0
"""
LIMITS = ("2,3,6", "1.25,1.5,5", "1.25,1.5,5")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    path = tmp_path / "trace.csv"
    columns = (
        np.cumsum(generator.exponential(0.2, 120)),
        generator.integers(50, 1500, 120),
        generator.integers(1, 90, 120),
    )
    lines = [f"{t:.3f},{p},{d}" for t, p, d in zip(*columns, strict=True)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]))
    return path


def by_hand() -> Cluster:
    times = {DGX_H100.name: published_performance("bloom-176b", "h100-80gb", by="requests")}
    kv = BLOOM_176B.kv_bytes_per_token()
    return Cluster(
        (Pool(DGX_H100, 3, "mixed"),), times, kv, 329 * 10**9, "join_shortest_queue", Batching(chunk_tokens=512)
    )


def test_a_file_is_the_cluster_it_describes(tmp_path: Path, trace: Path) -> None:
    (tmp_path / "cluster.toml").write_text(MIXED)
    requests = read_requests(trace)
    one, two = (simulate_cluster(c, requests) for c in (read_cluster(tmp_path / "cluster.toml"), by_hand()))
    assert np.array_equal(one.e2e_s, two.e2e_s)
    example = read_cluster(EXAMPLE)
    assert [(pool.machine.name, pool.count, pool.role) for pool in example.pools] == [
        ("large", 3, "prompt"), ("dgx-a100", 2, "token"),
    ]  # fmt: skip
    assert example.transfers.layers == BLOOM_176B.layers
    assert example.pools[0].machine.device_power_w == pytest.approx(5600)
    assert example.provisioned_w == 3 * 10_200 + 2 * DGX_A100.provisioned_w
    assert [machine.name for machine in read_machines(EXAMPLE)] == ["large"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("count = 3", "count = 2.5"), "pool 0: count = 2.5: expected a whole number"),
        (("count = 3", "count = 0"), "pool 0: count of the mixed pool must be >= 1"),
        (('role = "mixed"', 'role = "decode"'), "pool 0: role must be one of prompt, mixed, token"),
        (('role = "mixed"', ""), "pool 0: there is no role"),
        (("dgx-h100", "dgx-b200"), "pool 0: machine = 'dgx-b200' is none of dgx-a100, dgx-h100"),
        (("chunk_tokens = 512", "chunks = 512"), "batching: chunks is no key here: expected max_requests"),
        (("chunk_tokens = 512", "chunk_tokens = 'all'"), "batching: chunk_tokens = 'all': expected int"),
        (("chunk_tokens = 512", "chunk_tokens = true"), "batching: chunk_tokens = True: expected int"),
        (("chunk_tokens = 512", "chunk_tokens = 0"), "batching: chunk_tokens must be >= 1"),
        (("[batching]", "[transfers]\nlayers = 1.5\n[batching]"), "transfers: layers = 1.5: expected int"),
        (("[batching]", "[transfers]\noverlap = 'eager'\n[batching]"), "transfers: overlap must be"),
        (('"requests"', '"tokens"'), "decode_by = 'tokens': expected 'context' or 'requests'"),
        (("decode_by", "decode"), "decode is no key here: expected model"),
        (("decode_by", "model = 'gpt-5'\ndecode_by"), "model gpt-5: its cache and weights are not known"),
        (("decode_by", "profile = 'none.csv'\ndecode_by"), "profile = 'none.csv': there is no such file"),
        (("[[pools]]", "[[machines]]\nname = 'a'\n[[pools]]"), "machine 0: there is no hardware, tensor_parallel"),
        (("[[pools]]", "[pools]"), r"pools must be tables, written as \[\[pools\]\]"),
        (("[[pools]]", OWN.replace("640", '"640"') + "[[pools]]"), "machine 0: memory_gib = '640': expected a number"),
        (("[[pools]]", OWN.replace("640", "true") + "[[pools]]"), "machine 0: memory_gib = True: expected a number"),
        (
            ("[[pools]]", OWN.replace("= 8", "= 8.5") + "[[pools]]"),
            "machine 0: tensor_parallel = 8.5: expected a whole number",
        ),
        (("[[pools]]", OWN.replace("power_w", "watts = 1\npower_w") + "[[pools]]"), "machine 0: watts is no key here"),
        (("[[pools]]", OWN + OWN + "[[pools]]"), "machine 1: name = 'own' is there twice"),
        (("count = 3", "count = "), "Invalid value"),
    ],
)
def test_errors_name_the_key(change: tuple[str, str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    assert change[0] in MIXED
    path.write_text(MIXED.replace(*change))
    with pytest.raises(ValueError, match=words) as refused:
        read_cluster(path)
    assert str(path) in str(refused.value)


def test_the_table_is_that_of_the_requests(anabranch: CommandLine, trace: Path, tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(MIXED)
    each = tmp_path / "requests.csv"
    command = (
        "serving",
        "simulate",
        "--cluster",
        str(tmp_path / "cluster.toml"),
        "--trace",
        str(trace),
        "--fail",
        "5:1",
    )
    done = anabranch(*command, "--out", str(each), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    requests = read_requests(trace).at_speed(1.0)
    result = simulate_cluster(by_hand(), requests, failures=[(5.0, 1)])
    rows = {row["time"]: row for row in found["latency"]}
    for name, values in (("ttft", result.ttft_s), ("e2e", result.e2e_s), ("tbt", result.tbt_s)):
        known = values[np.isfinite(values)]
        assert rows[name]["mean"] == pytest.approx(known.mean())
        for p in (50, 90, 99):
            assert rows[name][f"P{p}"] == pytest.approx(np.percentile(known, p))
    reference = published_performance("bloom-176b", "h100-80gb", by="requests")
    report = slo_report(result, requests, reference)
    assert found["limits_hold"] == report.holds
    assert [rows["tbt"][f"slowdown P{p}"] for p in (50, 90, 99)] == pytest.approx(report.slowdowns["tbt"])
    assert found["restarts"] == result.restarts.sum() > 0
    assert found["idle"][0]["idle"] == pytest.approx(1 - result.busy_s.sum() / (3 * result.end_s))
    assert found["drawn_w"] == pytest.approx(result.energy_j.sum() / result.end_s)
    assert found["cost_per_hour"] == 3 * DGX_H100.cost_per_hour
    with each.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["e2e_s"]) for row in written] == result.e2e_s.tolist()
    assert [row["tbt_s"] == "" for row in written] == (requests.output_tokens == 1).tolist()
    plain = anabranch(*command)
    assert plain.returncode == 0, plain.stderr
    for words in ("to the first token", "slowdown P99", "kW provisioned", "$/h", "idle  ", "begun again"):
        assert words in plain.stdout


def test_requests_that_do_not_end_are_told(trace: Path, tmp_path: Path) -> None:
    from anabranch.serving._simulate_command import as_json, words

    (tmp_path / "cluster.toml").write_text(MIXED)
    options: dict[str, Any] = {"speed": 2.0, "limits": LIMITS, "max_time": None, "drop": False, "out": None}
    fails = ["0:0", "0:1", "6:2"]
    served = serve(tmp_path / "cluster.toml", trace, failures=fails, **options)
    assert not served.report.holds
    left = int((~served.result.finished).sum())
    assert 0 < left < len(served.requests)
    assert f"left out  {left} requests did not end" in words(served, [])
    assert json.loads(as_json(served, []))["finished"] == len(served.requests) - left
    none = serve(tmp_path / "cluster.toml", trace, failures=["0:0", "0:1", "0:2"], **options)
    assert json.loads(as_json(none, []))["finished"] == 0
    assert "limits    not kept" in words(none, [])
    for wrong, said in (
        ({"failures": ["now"]}, "--fail now: expected SECONDS:MACHINE"), ({"speed": 0.0}, "--speed 0"),
        ({"failures": ["1:7"]}, "--fail has machine 7 at 1.0 s"), ({"failures": ["inf:0"]}, "--fail has machine 0 at inf"),
        ({"max_time": -1.0}, "--max-time -1.0: expected 0 or more"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            serve(tmp_path / "cluster.toml", trace, **{**options, "failures": [], **wrong})


def test_a_rate_over_seeds_is_the_mean_and_the_interval_of_the_lab() -> None:
    generator = np.random.default_rng(0)
    lengths = RequestTable(np.arange(300.0), generator.integers(50, 2000, 300), generator.integers(2, 100, 300))
    loads = [Load(lengths, 10.0, 60.0, child) for child in generator.spawn(3)]
    reference = published_performance("bloom-176b", "a100-80gb")
    found = rate_interval(by_hand(), loads, reference)
    rates = [max_rate(by_hand(), load, reference).rate_per_s for load in loads]
    assert list(found.rates) == rates
    assert len(set(rates)) > 1
    wanted = t_interval(rates)
    assert (found.mean_per_s, found.low_per_s, found.high_per_s) == pytest.approx(
        (wanted.value, wanted.low, wanted.high + 0.02 * wanted.value)
    )
    assert found.capped == 0
    twice = rate_interval(by_hand(), [loads[0], loads[0]], reference)
    assert (twice.low_per_s, twice.high_per_s) == pytest.approx((rates[0], 1.02 * rates[0]))
    with pytest.raises(ValueError, match="needs at least 2, got 1"):
        rate_interval(by_hand(), loads[:1], reference)


def test_an_interval_says_when_it_is_capped_and_is_not_below_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    from anabranch.serving import MaxRate, slo

    loads = [Load(RequestTable.of([0.0], [10], [2]), 10.0, 8.0, np.random.default_rng(i)) for i in range(2)]
    for rates, wanted in (((0.0, 4.0), (0.0, False)), ((8.0, 8.0), (8.0, True)), ((7.0, 8.0), (1.146898, True))):
        rest = iter(rates)
        monkeypatch.setattr(slo, "max_rate", lambda *_, rest=rest, **__: MaxRate(next(rest), None, 1))
        found = rate_interval(by_hand(), loads, published_performance("bloom-176b", "a100-80gb"))
        assert found.low_per_s == pytest.approx(wanted[0])
        assert (found.high_per_s == np.inf) == wanted[1] == (found.capped > 0)
    assert found.capped == 1


def test_power_that_is_drawn_is_that_of_the_devices(trace: Path, tmp_path: Path) -> None:
    from anabranch.serving._simulate_command import as_json, facts, words

    options: dict[str, Any] = {
        "failures": [],
        "speed": 1.0,
        "limits": LIMITS,
        "max_time": None,
        "drop": False,
        "out": None,
    }
    path, own = tmp_path / "cluster.toml", MIXED.replace("dgx-h100", "own")
    drawn = []
    for more in ("", "device_power_w = 5600\n", "device_power_w = 2800\n"):
        path.write_text(own.replace("[[pools]]", OWN + more + "[[pools]]"))
        served = serve(path, trace, **options)
        assert facts(served)["provisioned_w"] == 3 * 10_200
        drawn.append(json.loads(as_json(served, []))["drawn_w"])
        said = "device_power_w not given" if not more else "on average drawn by devices, while busy"
        assert said in words(served, [])
    assert drawn[0] is None
    assert drawn[1] == pytest.approx(2 * drawn[2])
    assert 0 < drawn[1] < 3 * 5600


def test_times_are_of_requests_that_ended(trace: Path, tmp_path: Path) -> None:
    from anabranch.serving._simulate_command import latency_rows

    path = tmp_path / "cluster.toml"
    path.write_text(MIXED)
    served = serve(path, trace, speed=1.0, failures=[], limits=LIMITS, max_time=6.0, drop=False, out=None)
    ended = served.result.finished
    assert np.isfinite(served.result.ttft_s[~ended]).any()  # begun, and left at the limit
    for row, name in zip(latency_rows(served)[:1], ("ttft_s",), strict=True):
        assert row["mean"] == pytest.approx(getattr(served.result, name)[ended].mean())
    assert served.result.end_s == 6.0


def test_provision_over_seeds(anabranch: CommandLine, trace: Path) -> None:
    machines = str(ROOT / "examples" / "cluster.toml")
    command = ("serving", "provision", "--trace", str(trace), "--machines", machines, "--seconds", "5", "--seeds", "3")
    job = Job.of(
        trace=trace, service="conversation", rate=None, budget_power="60kW", budget_cost=None, minimise="cost", seconds=5.0,
        profile=None, model=None, config=None, machines=Path(machines), limits=LIMITS, seed=0, seeds=3, workers=1, out=None,
    )  # fmt: skip
    most = 20.0 * 60_000 / job.designs[0].prompt.provisioned_w
    loads = [Load(job.lengths, 5.0, most, child) for child in np.random.default_rng([0, 1]).spawn(3)]
    done = anabranch(*command, "--budget-power", "60kW", "--json")
    assert done.returncode == 0, done.stderr
    for one in json.loads(done.stdout)["designs"]:
        assert one["seeds"] == 3
        design = next(design for design in job.designs if design.name == one["design"])
        cluster = design.build(one["prompt_machines"], one["token_machines"])
        wanted = rate_interval(cluster, loads, job.reference, job.limits, start_per_s=one["rate_per_s"])
        assert (one["mean_rate_per_s"], one["low_per_s"]) == (wanted.mean_per_s, wanted.low_per_s)
        assert one["high_per_s"] == (None if wanted.capped else wanted.high_per_s)
        assert one["capped"] == wanted.capped
    done = anabranch(*command, "--rate", "2")
    assert done.returncode == 0, done.stderr
    assert "3 other seeds, 95 %" in done.stdout
