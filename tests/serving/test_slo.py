"""Objectives by hand, the highest rate against a scan, the staircase against all pairs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anabranch.serving import (
    Cluster,
    Curve,
    Design,
    Load,
    PerformanceModel,
    Pool,
    RequestTable,
    SloLimits,
    least_machines,
    max_rate,
    most_throughput,
    simulate_cluster,
    slo_report,
)
from anabranch.simulation import BLOOM_176B, DGX_A100, DGX_H100

FLAT = Curve(np.array([0.0]), np.array([1.0]))
SLOW = PerformanceModel(
    Curve(np.array([0.0, 1000.0]), np.array([0.03, 0.25])), Curve(np.array([0.0, 60_000.0]), np.array([0.04, 0.09])), FLAT
)  # fmt: skip
FAST = PerformanceModel(
    Curve(np.array([0.0, 1000.0]), np.array([0.02, 0.12])), Curve(np.array([0.0, 60_000.0]), np.array([0.03, 0.06])), FLAT
)  # fmt: skip
REFERENCE = PerformanceModel(
    Curve(np.array([0.0, 1000.0]), np.array([0.05, 0.4])), Curve(np.array([0.0, 60_000.0]), np.array([0.1, 0.2])), FLAT
)  # fmt: skip
PERFORMANCE = {DGX_A100.name: SLOW, DGX_H100.name: FAST}


def cluster(pools: tuple[Pool, ...]) -> Cluster:
    scheduler: Any = "join_shortest_queue" if pools[0].role == "mixed" else "mixed_pool"
    return Cluster(pools, PERFORMANCE, BLOOM_176B.kv_bytes_per_token(), 329 * 10**9, scheduler)


APART = Design("HA", DGX_H100, DGX_A100, cluster)
TOGETHER = Design("H", DGX_H100, None, cluster)


def load(seconds: float = 20.0) -> Load:
    generator = np.random.default_rng(0)
    lengths = RequestTable(np.arange(500.0), generator.integers(50, 2000, 500), generator.integers(2, 150, 500))
    return Load(lengths, seconds, 200.0, generator)


def test_slowdowns_by_hand() -> None:
    requests = RequestTable.of([0.0, 100.0], [1000, 1000], [11, 1])
    result = simulate_cluster(APART.build(1, 1), requests)
    report = slo_report(result, requests, REFERENCE)
    token = REFERENCE.decode_seconds(1, 1000)
    assert report.slowdowns["ttft"] == pytest.approx((0.12 / 0.4,) * 3)
    gap = (result.e2e_s[0] - result.ttft_s[0]) / 10
    assert report.slowdowns["tbt"] == pytest.approx((gap / token,) * 3)  # of the request with more than one token
    assert report.slowdowns["e2e"][2] == pytest.approx(result.e2e_s[0] / (0.4 + 10 * token))
    assert report.holds
    assert report.finished == 1
    tight = slo_report(result, requests, REFERENCE, SloLimits(ttft=(2.0, 3.0, 0.2)))
    assert not tight.holds
    assert tight.tightest[:2] == ("ttft", 99.0)


def test_unfinished_requests_fail() -> None:
    requests = RequestTable.of([0.0, 1.0], [500, 500], [100, 100])
    report = slo_report(simulate_cluster(APART.build(1, 1), requests, max_time_s=0.5), requests, REFERENCE)
    assert not report.holds
    assert report.finished == 0
    assert report.slowdowns["e2e"] == (np.inf,) * 3


def test_a_load_is_the_same_requests_at_any_rate() -> None:
    some = load()
    slow, fast = some.at(5.0), some.at(20.0)
    assert len(fast) == pytest.approx(4 * len(slow), rel=0.3)
    n = len(slow)
    assert np.array_equal(slow.prompt_tokens, fast.prompt_tokens[:n])
    np.testing.assert_allclose(slow.arrival_s, 4 * fast.arrival_s[:n])
    with pytest.raises(ValueError, match="rate_per_s must be in"):
        some.at(500.0)


@pytest.mark.parametrize("start", [None, 0.5, 150.0])
def test_the_highest_rate_is_where_a_scan_finds_it(start: float | None) -> None:
    some, machines = load(), APART.build(3, 3)

    def holds(rate: float) -> bool:
        requests = some.at(rate)
        return slo_report(simulate_cluster(machines, requests), requests, REFERENCE).holds

    found = max_rate(machines, some, REFERENCE, tolerance=0.02, start_per_s=start)
    assert found.rate_per_s > 0
    assert holds(found.rate_per_s)
    first_failure = next(rate for rate in np.arange(1.0, 60.0, 0.5) if not holds(float(rate)))
    assert (
        0.9 * first_failure <= found.rate_per_s <= 1.5 * first_failure
    )  # near its limit a rate may fail and a higher one hold
    assert found.simulations < 25


def test_twice_the_machines_keep_more() -> None:
    """(One more of a single role may keep less: more prompt machines crowd the links of the same token machines.)"""
    some = load()
    rates = [max_rate(APART.build(n, n), some, REFERENCE).rate_per_s for n in (1, 2, 4, 8)]
    assert all(b > 1.2 * a for a, b in itertools.pairwise(rates))


def test_the_staircase_is_that_of_all_pairs() -> None:
    some, rate, most = load(), 12.0, 6
    requests = some.at(rate)
    good = {
        (p, t): slo_report(simulate_cluster(APART.build(p, t), requests), requests, REFERENCE).holds
        for p in range(1, most + 1)
        for t in range(1, most + 1)
    }
    corners = {
        (p, t)
        for (p, t), fine in good.items()
        if fine and not good.get((p - 1, t), False) and not good.get((p, t - 1), False)
    }
    best, stairs = least_machines(APART, rate, some, REFERENCE, most=most)
    assert {(one.prompts, one.tokens) for one in stairs} == corners
    assert best.cost_per_hour == min(APART.build(*pair).cost_per_hour for pair in corners)
    watts, _ = least_machines(APART, rate, some, REFERENCE, measure="power", most=most)
    assert watts.provisioned_w == min(APART.build(*pair).provisioned_w for pair in corners)
    alone, _ = least_machines(TOGETHER, rate, some, REFERENCE, most=8)
    result = {n: simulate_cluster(TOGETHER.build(n), requests) for n in (alone.prompts - 1, alone.prompts) if n}
    assert slo_report(result[alone.prompts], requests, REFERENCE).holds
    with pytest.raises(ValueError, match="1 machines of each role do not keep"):
        least_machines(APART, 100.0, some, REFERENCE, most=1)


def test_a_budget_is_split_as_well_as_by_trying_all() -> None:
    some, budget = load(), 60_000.0
    best, tried = most_throughput(APART, budget, some, REFERENCE, tolerance=0.05)
    assert all(one.provisioned_w <= budget for one in tried)
    every = []
    for prompts in range(1, 6):
        tokens = int((budget - prompts * DGX_H100.provisioned_w) // DGX_A100.provisioned_w)
        if tokens >= 1:
            every.append(max_rate(APART.build(prompts, tokens), some, REFERENCE, tolerance=0.05).rate_per_s)
    assert best.rate_per_s >= 0.9 * max(every)
    one, _ = most_throughput(TOGETHER, budget, some, REFERENCE, tolerance=0.05)
    assert one.prompts == 5
    with pytest.raises(ValueError, match="below one dgx-h100 and one dgx-a100"):
        most_throughput(APART, 100.0, some, REFERENCE)


def test_bad_limits() -> None:
    with pytest.raises(ValueError, match="tbt has 2 limits for 3 percentiles"):
        SloLimits(tbt=(1.0, 2.0))
    with pytest.raises(ValueError, match="percentiles must be in"):
        SloLimits(percentiles=(0.0, 50.0, 99.0))
    with pytest.raises(ValueError, match="tolerance must be in"):
        max_rate(APART.build(1, 1), load(), REFERENCE, tolerance=0.0)
    with pytest.raises(ValueError, match="seconds must be > 0"):
        replace(load(), seconds=0.0)
