"""The search of several lanes against every path there is, its bound against plain programmes, and NanoFlow's published layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from anabranch.serving import (
    Interference,
    IterationCosts,
    NanoOperation,
    OverlapSchedule,
    Workload,
    compare_lanes,
    lanes_bound,
    nano_lanes,
    overlap_curve,
    published_layer,
    resource_bound,
    search_lanes,
    search_overlap,
)
from anabranch.serving.lane_search import sharing_modes
from anabranch.simulation import ACCELERATORS, LLAMA2_70B

PUBLISHED = Interference.published()
KINDS = ["gemm", "gemv", "network"]
Lanes = list[list[NanoOperation]]


def drawn(sizes: Sequence[int], seed: int) -> Lanes:
    generator = np.random.default_rng(seed)
    return [
        [NanoOperation(str(i), str(generator.choice(KINDS)), float(generator.uniform(0.2, 2.0))) for i in range(size)]
        for size in sizes
    ]


@cache
def every_speed(kinds: tuple[str, ...]) -> np.ndarray:
    """Of all shares in tenths that add up to 1: ``[shares, lanes]``."""
    shares = [[k / 10 for k in one] for one in itertools.product(range(11), repeat=len(kinds)) if sum(one) == 10]
    return np.array([[float(PUBLISHED(kind, share)) for kind, share in zip(kinds, one, strict=True)] for one in shares])


def words(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    if not any(sizes):
        yield ()
    for k, left in enumerate(sizes):
        if left:
            yield from ((k, *rest) for rest in words([n - (m == k) for m, n in enumerate(sizes)]))


def least_time(lanes: Lanes, places: Sequence[tuple[int, ...]]) -> float:
    """Every operation gets its work at some of the places."""
    names = [(k, i) for k, lane in enumerate(lanes) for i in range(len(lane))]
    blocks = []
    for place in places:
        speeds = every_speed(tuple(lanes[k][i].kind for k, i in enumerate(place)))
        blocks.append(np.zeros((len(speeds), len(names))))
        for k, i in enumerate(place):
            blocks[-1][:, names.index((k, i))] = speeds[:, k]
    work = np.vstack(blocks).T
    found = linprog(np.ones(work.shape[1]), A_ub=-work, b_ub=[-lanes[k][i].seconds for k, i in names])
    return float(found.fun)


def brute(lanes: Lanes) -> float:
    """The least period over all orders in which operations may end, from all places of the other lanes."""
    best = np.inf
    for start in itertools.product([0], *(range(len(lane)) for lane in lanes[1:])):
        for word in words([len(lane) for lane in lanes]):
            at, places = list(start), [tuple(start)]
            for k in word:
                at[k] = (at[k] + 1) % len(lanes[k])
                places.append(tuple(at))
            best = min(best, least_time(lanes, sorted(set(places))))
    return best


@pytest.mark.parametrize(
    ("sizes", "seed"), [*(((2, 2, 2), seed) for seed in range(3)), ((3, 2, 1), 3), ((3, 2, 2), 4), ((3, 3, 1), 5)]
)
def test_is_the_best_of_all_paths(sizes: tuple[int, ...], seed: int) -> None:
    lanes = drawn(sizes, seed)
    found = search_lanes(lanes, PUBLISHED, generator=np.random.default_rng(0), gap=1e-9, most_programmes=600)
    found.validate(PUBLISHED)
    assert found.period_s == pytest.approx(min(brute(lanes), found.sequential_s), rel=1e-6)
    assert found.resource_bound_s <= found.bound_s * (1 + 1e-9) <= found.period_s * (1 + 2e-9)
    np.testing.assert_allclose(found.simulate(3), found.period_s, rtol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_two_lanes_are_as_good_as_the_programme_with_proof(seed: int) -> None:
    lanes = drawn((3, 4), seed)
    proven = search_overlap(lanes[0], lanes[1], PUBLISHED, gap=1e-7)
    found = search_lanes(lanes, PUBLISHED, generator=np.random.default_rng(0), gap=1e-9, most_programmes=600)
    found.validate(PUBLISHED)
    assert found.period_s == pytest.approx(proven.period_s, rel=1e-5)
    assert found.bound_s <= proven.bound_s * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_is_a_programme_without_order(seed: int) -> None:
    """By kind and lane, as by operation at every place of the grid."""
    lanes = drawn((2, 3, 2), seed)
    places = list(itertools.product(*(range(len(lane)) for lane in lanes)))
    bound = lanes_bound(lanes, PUBLISHED)
    assert bound == pytest.approx(least_time(lanes, places), rel=1e-9)
    assert bound >= resource_bound([one for lane in lanes for one in lane], PUBLISHED) * (1 - 1e-9)


def test_bounds_in_closed_form() -> None:
    cheap = Interference({"gemm": [(0.0, 0.0), (1.0, 1.0)], "network": [(0.0, 0.0), (0.1, 1.0), (1.0, 1.0)]})
    chain = [NanoOperation("product", "gemm", 3.0), NanoOperation("gather", "network", 2.0)]
    assert lanes_bound([chain], cheap) == pytest.approx(5.0)  # a lane does one thing at a time
    assert lanes_bound([chain] * 2, cheap) == pytest.approx(6.4)  # the network costs a tenth of its time
    gemms = [NanoOperation("a", "gemm", 1.0), NanoOperation("b", "gemm", 2.0)]
    assert lanes_bound([gemms] * 3, PUBLISHED) == pytest.approx(9.0)
    assert search_lanes([gemms] * 3, PUBLISHED, generator=np.random.default_rng(0)).gain == pytest.approx(1.0)
    long = [NanoOperation("gather", "network", 9.0)]
    short = [NanoOperation("product", "gemm", 0.1)]
    assert lanes_bound([long, short], cheap) == pytest.approx(9.0)  # recurrence: the longest lane


@pytest.mark.parametrize("kinds", [("gemm", "gemv"), ("gemm", "gemv", "network"), ("network", "network", "gemv")])
def test_modes_are_the_corners_of_every_mode(kinds: tuple[str, ...]) -> None:
    """Each sharing in steps of a twentieth is at most as fast as a mixture of modes; no mode is a mixture of the others."""
    modes = sharing_modes(kinds, PUBLISHED)
    np.testing.assert_allclose(modes.shares.sum(1), 1.0)

    def reached(speed: np.ndarray, by: np.ndarray) -> bool:
        found = linprog(np.zeros(len(by)), A_ub=-by.T, b_ub=1e-9 - speed, A_eq=np.ones((1, len(by))), b_eq=[1.0])
        return bool(found.status == 0)

    for shares in itertools.product(range(21), repeat=len(kinds)):
        if sum(shares) == 20:
            speed = np.array([float(PUBLISHED(kind, share / 20)) for kind, share in zip(kinds, shares, strict=True)])
            assert reached(speed, modes.speeds), shares
    for i in range(len(modes.speeds)):
        assert not reached(modes.speeds[i] - 1e-6 * (modes.speeds[i] > 0), np.delete(modes.speeds, i, 0))


def published(lanes: int, *, charge_rereads: bool = False) -> tuple[tuple[NanoOperation, ...], ...]:
    costs = IterationCosts(LLAMA2_70B, ACCELERATORS["A100-80"], 8, Workload(512.0, 1024.0), 2048)
    return nano_lanes(published_layer(costs), (1 / lanes,) * lanes, charge_rereads=charge_rereads)


def test_three_lanes_of_the_published_layer() -> None:
    found = search_lanes(published(3), PUBLISHED, generator=np.random.default_rng(0), gap=0.01)
    found.validate(PUBLISHED)
    assert found.status == "optimal"
    assert found.gap <= 0.01
    assert found.bound_s == pytest.approx(0.1753, abs=1e-4)
    assert found.bound_s == pytest.approx(found.resource_bound_s)
    two = search_overlap(*published(2), PUBLISHED, gap=0.02)
    assert found.resource_bound_s <= found.period_s < two.bound_s  # no schedule of two lanes is as short
    charged = published(3, charge_rereads=True)
    assert lanes_bound(charged, PUBLISHED) > found.period_s


def test_rows_files_and_limits() -> None:
    lanes = published(3)
    found = search_lanes(lanes, PUBLISHED, generator=np.random.default_rng(1), gap=1e-6, most_programmes=60)
    assert found.status == "time limit"
    assert OverlapSchedule.from_json(found.to_json(), PUBLISHED) == found
    for name, lane in zip(("first", "second", "third"), lanes, strict=True):
        mine = sorted((a, b) for where, a, b, _ in found.rows() if where == name)
        assert mine
        assert all(b <= c + 1e-12 for (_, b), (c, _) in itertools.pairwise(mine))
        assert sum(b - a for a, b in mine) >= sum(one.seconds for one in lane)
    again = search_lanes(lanes, PUBLISHED, generator=np.random.default_rng(1), gap=1e-6, most_programmes=60)
    assert again == found
    late = search_lanes(lanes, PUBLISHED, generator=np.random.default_rng(1), time_limit_s=1e-9)
    late.validate(PUBLISHED)
    assert (late.status, late.period_s) == ("fallback", late.sequential_s)


def test_bad_input() -> None:
    generator = np.random.default_rng(0)
    chain = [NanoOperation("a", "gemm", 1.0)]
    with pytest.raises(ValueError, match="expected at least 2, got 1"):
        search_lanes([chain], PUBLISHED, generator=generator)
    with pytest.raises(ValueError, match="at least one operation in each"):
        search_lanes([chain, []], PUBLISHED, generator=generator)
    with pytest.raises(ValueError, match="at least one operation in each"):
        lanes_bound([], PUBLISHED)
    limits: list[dict[str, Any]] = [{"gap": 0.0}, {"time_limit_s": 0.0}, {"most_programmes": 0}]
    for limit in limits:
        with pytest.raises(ValueError, match=f"{next(iter(limit))} must be > 0"):
            search_lanes([chain, chain], PUBLISHED, generator=generator, **limit)


def test_comparison_of_two_and_three_lanes() -> None:
    layer = published_layer(IterationCosts(LLAMA2_70B, ACCELERATORS["A100-80"], 8, Workload(512.0, 1024.0), 2048))
    told: list[int] = []
    rows, (free, charged) = compare_lanes(
        layer,
        PUBLISHED,
        generator=np.random.default_rng(0),
        gaps=(0.1, 0.05),
        progress=lambda done, *_: told.append(done),
    )
    assert told == [1, 2]
    assert [row["schedule"] for row in rows[:3]] == ["in turn", "two lanes", "three lanes"]
    assert rows[2]["ms"] == 1e3 * free.period_s < rows[1]["ms"] < rows[0]["ms"] == pytest.approx(225.05)
    assert rows[7]["ms"] == 1e3 * charged.period_s > rows[2]["ms"]
    for k in (0, 5):
        assert rows[k + 4]["ms"] <= rows[k + 3]["ms"] <= rows[k + 2]["ms"]
        assert rows[k + 2]["gain"] == pytest.approx(rows[k]["ms"] / rows[k + 2]["ms"])


def test_overlap_as_decode_attention_grows() -> None:
    layer = published_layer(IterationCosts(LLAMA2_70B, ACCELERATORS["A100-80"], 8, Workload(512.0, 1024.0), 2048))
    curve = overlap_curve(layer, PUBLISHED, scales=(0.5, 1.0), gap=0.1)
    assert float(curve(35.6 / 225.05)) == pytest.approx(
        search_overlap(*published(2), PUBLISHED, gap=0.1).period_s / layer.sequential_s
    )
    only_prompts = published_layer(IterationCosts(LLAMA2_70B, ACCELERATORS["A100-80"], 8, Workload(512.0, 0.0), 2048))
    with pytest.raises(ValueError, match="has no DecAttn"):
        overlap_curve(only_prompts, PUBLISHED)
