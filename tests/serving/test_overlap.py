"""The two-lane search against every staircase there is, its bounds, and NanoFlow's published layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linprog

from anabranch.serving import Interference, NanoOperation, OverlapSchedule, Segment, resource_bound, search_overlap

LEVELS = (0.0, 0.2, 0.5, 0.8, 1.0)
PUBLISHED = Interference.published()
MEASURED_MS = {  # NanoFlow's table 2: a layer of Llama-2-70B on 8 A100s, 512 tokens in and 1,024 out, batch 2,048
    "KQV": ("gemm", 16.08), "DecAttn": ("gemv", 35.60), "PfAttn": ("gemm", 4.56), "Net1": ("network", 47.92 / 4),
    "O": ("gemm", 16.01), "Net2": ("network", 47.92 / 4), "UG": ("gemm", 69.92), "D": ("gemm", 34.96),
    "Net3": ("network", 47.92 / 2),
}  # fmt: skip


def lane(share: float = 0.5) -> list[NanoOperation]:
    return [NanoOperation(name, kind, 1e-3 * share * ms) for name, (kind, ms) in MEASURED_MS.items()]


def brute(first: Sequence[NanoOperation], second: Sequence[NanoOperation], interference: Interference) -> float:
    """The least period over all staircases, each a linear programme."""
    n, m, best = len(first), len(second), np.inf
    for start in range(m):
        columns = [(start + j) % m for j in range(m + 1)]
        for downs in itertools.combinations(range(n + m - 1), n - 1):
            path, i, j = [(0, 0)], 0, 0
            for step in range(n + m - 1):
                i, j = (i + 1, j) if step in downs else (i, j + 1)
                path.append((i, j))
            names = [(cell, level) for cell in path for level in LEVELS]
            equal, wanted = [], []
            for index, one in enumerate(first):
                equal.append([float(interference(one.kind, r)) if i == index else 0.0 for (i, _), r in names])
                wanted.append(one.seconds)
            for index, one in enumerate(second):
                equal.append(
                    [float(interference(one.kind, 1 - r)) if columns[j] == index else 0.0 for (_, j), r in names]
                )
                wanted.append(one.seconds)
            found = linprog(np.ones(len(names)), A_eq=equal, b_eq=wanted)
            if found.status == 0:
                best = min(best, found.fun)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_is_the_best_of_all_staircases(seed: int) -> None:
    generator = np.random.default_rng(seed)
    kinds = ["gemm", "gemv", "network"]

    def draw(count: int) -> list[NanoOperation]:
        return [
            NanoOperation(f"{i}", str(generator.choice(kinds)), float(generator.uniform(0.2, 2.0)))
            for i in range(count)
        ]

    first, second = draw(int(generator.integers(1.0, 4.0))), draw(int(generator.integers(1.0, 4.0)))
    found = search_overlap(first, second, PUBLISHED, levels=LEVELS, gap=1e-7)
    found.validate(PUBLISHED)
    assert found.period_s == pytest.approx(min(brute(first, second, PUBLISHED), found.sequential_s), rel=1e-5)
    assert found.bound_s <= found.period_s * (1 + 1e-9)
    assert found.resource_bound_s <= found.period_s * (1 + 1e-9)
    assert found.status == "optimal"


def test_the_published_layer() -> None:
    found = search_overlap(lane(), lane(), PUBLISHED, time_limit_s=120.0)
    found.validate(PUBLISHED)
    assert found.sequential_s == pytest.approx(0.22505, abs=1e-4)
    assert found.resource_bound_s == pytest.approx(0.1753, abs=1e-3)
    assert found.gap <= 0.02
    assert 1.17 <= found.gain <= found.sequential_s / found.resource_bound_s
    assert found.period_s == pytest.approx(0.1892, rel=0.01)


def test_kinds_that_cannot_share_gain_nothing() -> None:
    gemms = [NanoOperation("a", "gemm", 1.0), NanoOperation("b", "gemm", 2.0)]
    found = search_overlap(gemms, gemms, PUBLISHED)
    assert found.period_s == pytest.approx(6.0)
    assert found.gain == pytest.approx(1.0)


def test_a_cheap_network_is_hidden() -> None:
    """At a tenth of the machine the network runs at full speed: it costs that tenth of its time, wherever it is put."""
    cheap = Interference({"gemm": [(0.0, 0.0), (1.0, 1.0)], "network": [(0.0, 0.0), (0.1, 1.0), (1.0, 1.0)]})
    chain = [NanoOperation("product", "gemm", 3.0), NanoOperation("gather", "network", 2.0)]
    found = search_overlap(chain, chain, cheap)
    assert found.period_s == pytest.approx(6.4, rel=3e-3)
    assert found.resource_bound_s == pytest.approx(6.4)


def test_replay_finds_every_broken_rule() -> None:
    found = search_overlap(lane(), lane(), PUBLISHED, gap=0.05)
    segments = list(found.segments)

    def broken(changed: Sequence[Segment], **options: float) -> OverlapSchedule:
        return replace(found, segments=tuple(changed), **options)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="needs"):
        broken([replace(segments[0], seconds=segments[0].seconds * 2), *segments[1:]]).validate(PUBLISHED)
    with pytest.raises(ValueError, match="is skipped"):
        broken([segments[0], *segments[len(segments) // 2 :]]).validate(PUBLISHED)
    with pytest.raises(ValueError, match=r"has shares \(1\.5, 0\.0\)"):
        broken([replace(segments[0], shares=(1.5, 0.0)), *segments[1:]]).validate(PUBLISHED)
    with pytest.raises(ValueError, match=r"has shares \(0\.7, 0\.7\)"):
        broken([replace(segments[0], shares=(0.7, 0.7)), *segments[1:]]).validate(PUBLISHED)
    with pytest.raises(ValueError, match="there are 2 lanes"):
        broken([replace(segments[0], at=(0,), shares=(1.0,)), *segments[1:]]).validate(PUBLISHED)
    with pytest.raises(ValueError, match="do not add up"):
        broken(segments, period_s=found.period_s * 1.1).validate(PUBLISHED)


def test_replay_with_noise(tmp_path: Path) -> None:
    found = search_overlap(lane(), lane(), PUBLISHED, gap=0.05)
    np.testing.assert_allclose(found.simulate(5), found.period_s, rtol=1e-9)
    noisy = found.simulate(2000, jitter=0.1, generator=np.random.default_rng(0))
    assert found.period_s < noisy.mean() < 1.1 * found.period_s  # the later of two operations counts
    assert noisy.mean() < np.quantile(noisy, 0.95) < 1.15 * found.period_s
    with pytest.raises(ValueError, match="jitter"):
        found.simulate(jitter=0.1)
    with pytest.raises(ValueError, match="layers must be"):
        found.simulate(0)
    found.to_json(tmp_path / "overlap.json")
    assert OverlapSchedule.from_json(tmp_path / "overlap.json", PUBLISHED) == found
    with pytest.raises(ValueError, match="is no schedule of lanes"):
        OverlapSchedule.from_json("{}", PUBLISHED)
    with pytest.raises(ValueError, match="needs"):
        OverlapSchedule.from_json(replace(found, segments=found.segments[:3]).to_json(), PUBLISHED)


def test_utilisation_and_rows_hold_the_work() -> None:
    found = search_overlap(lane(), lane(), PUBLISHED, gap=0.05)
    rows = found.utilisation(PUBLISHED)
    for kind in ("gemm", "gemv", "network"):
        done = sum((row["end_s"] - row["start_s"]) * row[kind] for row in rows)
        assert done == pytest.approx(sum(one.seconds for one in [*lane(), *lane()] if one.kind == kind), rel=1e-6)
    for name in ("first", "second"):
        mine = sorted((a, b) for where, a, b, _ in found.rows() if where == name)
        assert all(b <= c + 1e-12 for (_, b), (c, _) in itertools.pairwise(mine))
        assert mine[-1][1] <= found.period_s + 1e-12


def test_no_time_means_the_sequence() -> None:
    found = search_overlap(lane(), lane(), PUBLISHED, time_limit_s=1e-6)
    found.validate(PUBLISHED)
    assert found.status == "fallback"
    assert found.period_s == found.sequential_s


def test_tables_of_interference() -> None:
    assert float(PUBLISHED("gemv", 0.15)) == pytest.approx(0.25)
    assert PUBLISHED.cheapest("gemv") == pytest.approx(0.5)
    assert PUBLISHED.cheapest("network") == pytest.approx(1 / 3)
    assert resource_bound(lane(1.0), PUBLISHED) == pytest.approx(0.1753, abs=1e-3)
    fitted = Interference.monotone({"gemm": [(0.5, 0.6), (0.3, 0.7), (0.8, 0.9)]})
    np.testing.assert_allclose(fitted.points["gemm"], [(0.0, 0.0), (0.3, 0.65), (0.5, 0.65), (0.8, 0.9), (1.0, 1.0)])
    with pytest.raises(ValueError, match=r"Interference\.monotone fits them"):
        Interference({"gemm": [(0.0, 0.0), (0.5, 0.9), (0.6, 0.8), (1.0, 1.0)]})
    with pytest.raises(ValueError, match=r"expected \(0\.0, 0\.0\) to \(1\.0, 1\.0\)"):
        Interference({"gemm": [(0.0, 0.1), (1.0, 1.0)]})
    with pytest.raises(ValueError, match="no interference of kind 'disk'"):
        PUBLISHED("disk", 0.5)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least one operation each"):
        search_overlap([], lane(), PUBLISHED)
    with pytest.raises(ValueError, match="levels must be in"):
        search_overlap(lane(), lane(), PUBLISHED, levels=[2.0])
    with pytest.raises(ValueError, match="seconds of x must be >= 0"):
        NanoOperation("x", "gemm", -1.0)
