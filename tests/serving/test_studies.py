"""Designs, studies and errors of profiles on cases that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.serving import (
    Curve,
    Load,
    PerformanceModel,
    RequestTable,
    Transfers,
    answer_differences,
    decode_occupancy,
    exposed_transfers,
    held_out_error,
    left_out_knot_error,
    max_rate,
    most_throughput,
    simulate_cluster,
    slowdown_rows,
    splitwise_design,
)
from anabranch.simulation import BLOOM_176B

FLAT = Curve(np.array([0.0]), np.array([1.0]))
MODEL = PerformanceModel(
    Curve(np.array([0.0, 1000.0]), np.array([0.02, 0.12])), Curve(np.array([0.0]), np.array([0.05])), FLAT, by="requests"
)  # fmt: skip


def times(device: str) -> PerformanceModel:
    return MODEL


def test_equal_power_and_cost_are_those_of_the_authors() -> None:
    power, cost = (
        [
            getattr(splitwise_design(name, times).build(1, 1), which)
            for name in ("Baseline-H100", "Baseline-A100", "HHcap")
        ]
        for which in ("provisioned_w", "cost_per_hour")
    )
    assert power == pytest.approx([88.0, 49.6, 74.8])
    assert 40 * 44.0 // 24.8 == 70
    assert 40 * 4.76 // 2.21 == 86
    assert cost == pytest.approx([9.52, 4.42, 9.52])
    with pytest.raises(ValueError, match="name must be one of AA, HH, HA, HHcap"):
        splitwise_design("HB", times)


def test_how_many_answers_are_under_way() -> None:
    """Two answers of 11 tokens on one machine: alone for a while, together for a while."""
    cluster = splitwise_design("HH", times).build(1, 1)
    requests = RequestTable.of([0.0, 0.3], [1000, 1000], [11, 11])
    result = simulate_cluster(cluster, requests)
    first, last = (requests.arrival_s + part for part in (result.ttft_s + result.second_token_gap_s, result.e2e_s))
    spent = decode_occupancy(result, requests)
    together = last[0] - first[1]
    assert together > 0
    assert spent[2] == pytest.approx(together)
    assert spent[1] == pytest.approx(first[1] - first[0] + last[1] - last[0])
    assert spent.sum() == pytest.approx(2 * (last.max() - 0.0))  # of both machines, from the first arrival


def test_exposed_transfers_are_the_closed_form() -> None:
    sent = Transfers(layers=70, bytes_per_s=50e9, shared_links=False, serial_below=0)
    clusters = [
        splitwise_design("HH", times, transfers=replace(sent, overlap=overlap)).build(1, 1)
        for overlap in ("serialized", "layerwise")
    ]
    (row,) = exposed_transfers(*clusters, [1000])
    whole = 1000 * BLOOM_176B.kv_bytes_per_token() / 50e9
    assert row["serialized, ms"] == pytest.approx(1e3 * whole)
    assert row["layerwise, ms"] == pytest.approx(1e3 * whole / 70)
    assert row["layerwise / prompt"] == pytest.approx(whole / 70 / 0.12)
    assert row["serialized / token"] == pytest.approx(whole / 0.05)


def test_differences_to_answers_of_another_simulator(tmp_path: Path) -> None:
    cluster = splitwise_design("Baseline-H100", times).build(1)
    path = tmp_path / "answers.csv"
    path.write_text(
        "arrival_s,prompt_tokens,output_tokens,ttft_s,e2e_s,second_token_gap_s,queue_s\n"
        "0,1000,1,0.12,0.12,0,0\n5,1000,1,0.13,0.12,0,0\n"
    )
    found = {row["column"]: row["largest difference, s"] for row in answer_differences(cluster, path)}
    assert found == pytest.approx({"ttft_s": 0.01, "e2e_s": 0.0, "second_token_gap_s": 0.0, "queue_s": 0.0})


def test_slowdowns_grow_with_the_rate() -> None:
    lengths = RequestTable.of(np.arange(50.0), np.full(50, 500), np.full(50, 20))
    load = Load(lengths, 60.0, 100.0, np.random.default_rng(0))
    rows = slowdown_rows({"one": splitwise_design("HH", times).build(1, 1)}, load, [1.0, 12.0, 100.0], MODEL)
    assert [row["requests/s"] for row in rows] == [1.0, 12.0, 100.0]
    assert rows[0]["one, TTFT"] < rows[1]["one, TTFT"]
    assert rows[2]["one, TTFT"] is None or rows[2]["one, TTFT"] > rows[1]["one, TTFT"]


def row_of(tokens: int, prompt: float, token: float) -> dict[str, Any]:
    return {
        "model": "m", "hardware": "h", "tensor_parallel": "1", "prompt_size": tokens, "batch_size": 1, "prompt_time": prompt,
        "token_time": token,
    }  # fmt: skip


def test_errors_of_profiles() -> None:
    """Repetitions that agree have no error; those that are 10 % apart have 10 % or none, by which is left out."""
    same = [row_of(tokens, 2.0 * tokens, 5.0) for tokens in (100, 200, 400) for _ in range(10)]
    assert held_out_error(same, generator=np.random.default_rng(0)) == pytest.approx(0.0, abs=1e-12)
    apart = [row_of(100, 10.0 if i % 2 else 11.0, 5.0) for i in range(10)]
    found = held_out_error(apart, generator=np.random.default_rng(0))
    assert 0 < found <= 0.1 / 2 + 1e-9  # of prompt times; token times have none
    with pytest.raises(ValueError, match="share must be in"):
        held_out_error(same, generator=np.random.default_rng(0), share=1.0)
    bent = replace(MODEL, prompt=Curve(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 3.0])))
    assert left_out_knot_error([bent]) == pytest.approx(0.5)  # 2 in place of 4


def test_a_pruned_search_finds_as_good_a_split() -> None:
    generator = np.random.default_rng(0)
    lengths = RequestTable(np.arange(300.0), generator.integers(50, 2000, 300), generator.integers(2, 150, 300))
    load, design = Load(lengths, 20.0, 200.0, generator), splitwise_design("HA", times)
    full, every = most_throughput(design, 300.0, load, MODEL, tolerance=0.05)
    quick, tried = most_throughput(design, 300.0, load, MODEL, tolerance=0.05, prune=True)
    assert quick.rate_per_s >= full.rate_per_s / 1.1
    assert sum(one.simulations for one in tried) < sum(one.simulations for one in every)
    again = max_rate(design.build(quick.prompts, quick.tokens), load, MODEL, tolerance=0.05)
    assert again.rate_per_s == pytest.approx(quick.rate_per_s, rel=0.1)


def test_shorter_requests() -> None:
    table = RequestTable.of([0.0, 1.0], [4, 90_000], [7, 800]).shortened(8, most=1500)
    assert table.prompt_tokens.tolist() == [1, 1500]
    assert table.output_tokens.tolist() == [2, 100]
    with pytest.raises(ValueError, match="divisor=0"):
        table.shortened(0, most=10)
