"""Searches in several processes give what one process gives."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from anabranch.serving import (
    Design,
    Load,
    most_throughput,
    provision,
    published_lengths,
    published_performance,
    rate_interval,
    rate_intervals,
    rate_plane,
    simulation_pool,
    splitwise_design,
)
from anabranch.serving.simulation_pool import run_tasks, usable_processors

REFERENCE = published_performance("bloom-176b", "a100-80gb")
NAMES = ("AA", "HH", "Baseline-H100")


def load(seed: int = 0, seconds: float = 8.0) -> Load:
    lengths = published_lengths("code", 500, generator=np.random.default_rng(seed))
    return Load(lengths, seconds, 60.0, np.random.default_rng(seed + 1))


def design(name: str) -> Design:
    return splitwise_design(name, partial(published_performance, "bloom-176b", by="requests"))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are started after the first task."""
    monkeypatch.setattr(simulation_pool, "START_S", -1.0)


def double(number: int) -> tuple[int, int]:
    if number < 0:
        raise ValueError(f"number={number}")
    return 2 * number, os.getpid()


def test_tasks_keep_their_order_and_run_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    found = run_tasks(double, [3, 1, 2], 2, ended.append)
    assert [value for value, _ in found] == [6, 2, 4]
    assert found[0][1] == os.getpid()
    assert os.getpid() not in {process for _, process in found[1:]}
    assert ended == [1, 2, 3]
    monkeypatch.setattr(simulation_pool, "START_S", 2.0)
    assert {process for _, process in run_tasks(double, [3, 1, 2], 2)} == {os.getpid()}  # it would not pay
    assert run_tasks(double, [3, 1], 1) == [(6, os.getpid()), (2, os.getpid())]
    with pytest.raises(ValueError, match="number=-1"):
        run_tasks(double, [1, -1, 2], 2)
    with pytest.raises(ValueError, match="workers must be >= 1"):
        run_tasks(double, [1], 0)
    assert usable_processors() >= 1


def test_designs_are_the_same_with_several_workers() -> None:
    designs = [design(name) for name in NAMES]
    too_dear = replace(designs[0], name="too dear", prompt=replace(designs[0].prompt, provisioned_w=1e9))
    for goal in ({"budget": 200.0}, {"rate_per_s": 3.0}):
        told: list[tuple[int, int]] = []
        one = provision([*designs, too_dear], load(), REFERENCE, **goal, most=16)  # type: ignore[arg-type]
        two = provision(
            [*designs, too_dear], load(), REFERENCE, **goal, most=16, workers=2,  # type: ignore[arg-type]
            progress=lambda done, total, _, told=told: told.append((done, total)),
        )  # fmt: skip
        assert repr(one) == repr(two)  # splits that were given up have the rate NaN
        assert list(one) == [*NAMES, "too dear"]
        assert told == [(k, 4) for k in range(1, 5)]
        if "budget" in goal:
            assert repr(one["HH"]) == repr(most_throughput(designs[1], 200.0, load(), REFERENCE, prune=True))
            assert isinstance(one["too dear"], str)
            assert "is below one" in one["too dear"]


def test_rates_of_a_plane_and_of_seeds_are_the_same_with_several_workers() -> None:
    plane = rate_plane(design("HH"), [1, 2], [1, 2, 3], load(), REFERENCE, tolerance=0.1)
    assert plane.shape == (2, 3)
    np.testing.assert_array_equal(
        plane, rate_plane(design("HH"), [1, 2], [1, 2, 3], load(), REFERENCE, tolerance=0.1, workers=2)
    )
    assert plane.max() > plane.min() > 0
    loads = [load(seed) for seed in (3, 4)]
    clusters = [design("HH").build(2, 1), design("Baseline-H100").build(2)]
    several = rate_intervals(clusters, loads, REFERENCE, tolerance=0.1, starts_per_s=[2.0, None], workers=2)
    assert several == [
        rate_interval(clusters[0], loads, REFERENCE, tolerance=0.1, start_per_s=2.0),
        rate_interval(clusters[1], loads, REFERENCE, tolerance=0.1),
    ]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="expected one of them"):
        provision([design("HH")], load(), REFERENCE)
    with pytest.raises(ValueError, match="a name twice: HH, HH"):
        provision([design("HH"), design("HH")], load(), REFERENCE, budget=200.0)
    with pytest.raises(ValueError, match="Baseline-H100 has one kind of machine"):
        rate_plane(design("Baseline-H100"), [1], [1], load(), REFERENCE)
    with pytest.raises(ValueError, match="expected numbers of machines"):
        rate_plane(design("HH"), [], [1], load(), REFERENCE)
    with pytest.raises(ValueError, match="2 guesses for 1 clusters"):
        rate_intervals([design("HH").build(1, 1)], [load(), load(1)], REFERENCE, starts_per_s=[1.0, 2.0])
