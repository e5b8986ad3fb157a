"""The planner against brute force, on maps that say themselves how long they take."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    AutoregressiveMap,
    SamplingPlan,
    SweepStrategy,
    evaluation_seconds,
    invert_autoregressive,
    plan_sampling,
)

CANDIDATES = ("sequential", "jacobi", "gs-jacobi-4", "sliding-4", "frozen-4")


class Clock:
    """A clock that only the maps move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(AutoregressiveMap):
    """``x_{i+1} = z_{i+1} + rate x_i``; an evaluation of n tokens takes ``fixed_s + n each_s`` of the clock."""

    features = 1

    def __init__(self, clock: Clock, tokens: int, rate: float, fixed_s: float, each_s: float) -> None:
        self.clock, self.tokens, self.rate, self.fixed_s, self.each_s = clock, tokens, rate, fixed_s, each_s

    def advance(self, x: Tensor, z: Tensor, start: int, cache: Any) -> Tensor:
        self.clock.now += self.fixed_s + len(x) * x.shape[1] * self.each_s
        return z + self.rate * x


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def maps(clock: Clock) -> list[Timed]:
    """Fast to settle and dear to call; slow to settle; slow to settle and dear by the token."""
    return [
        Timed(clock, 17, 0.05, 1e-3, 1e-5), Timed(clock, 17, 0.9, 4e-4, 2e-4), Timed(clock, 17, 0.95, 1e-5, 3e-4),
    ]  # fmt: skip


def noises(count: int, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 17, 1, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("batch", [1, 4])
def test_the_plan_is_the_best_of_all_combinations(maps: list[Timed], clock: Clock, batch: int) -> None:
    batches = noises(3, batch)
    plan = plan_sampling(maps, batches, tol=1e-3, candidates=CANDIDATES, clock=clock)
    costs = {}
    for combination in itertools.product(CANDIDATES, repeat=3):
        begin = clock()
        for z in batches:
            invert_autoregressive(maps, z, combination, tol=1e-3)
        costs[combination] = clock() - begin
    assert costs[plan.strategies] <= min(costs.values()) * (1 + 1e-9)
    assert len(set(costs.values())) > 20
    assert plan.strategies[0] == "jacobi"
    assert plan.strategies[2] == "sequential"
    assert (plan.batch, plan.tol) == (batch, 1e-3)
    assert sum(plan.seconds) == pytest.approx(min(costs.values()) / 3)
    for times, chosen, seconds in zip(plan.table, plan.strategies, plan.seconds, strict=True):
        assert times[chosen] == seconds == min(t for t in times.values() if t is not None)


def test_hopeless_candidates_are_stopped(maps: list[Timed], clock: Clock) -> None:
    batches = noises(1, 4)
    begin = clock()
    invert_autoregressive(maps[2], batches[0], "sequential", tol=0.0)
    sequential = clock() - begin
    begin = clock()
    invert_autoregressive(maps[2], batches[0], "jacobi", tol=0.0)
    assert clock() - begin > 8 * sequential
    begin = clock()
    plan = plan_sampling(maps[2:], batches, tol=0.0, candidates=["sequential", "jacobi"], repeats=3, clock=clock)
    assert plan.table[0]["jacobi"] is None
    assert clock() - begin < (1 + 3 + 1) * sequential + 3 * sequential  # turns, the answer, and one broken off


def test_the_plan_survives_json_and_tells_when_it_is_out_of_date(maps: list[Timed], clock: Clock) -> None:
    batches = noises(1, 2)
    steps: list[int] = []
    plan = plan_sampling(
        maps, batches, tol=1e-3, candidates=CANDIDATES, clock=clock, progress=lambda done, total, _: steps.append(done)
    )
    assert steps == [1, 2, 3]
    again = SamplingPlan.from_json(plan.to_json())
    assert again == plan
    assert again.check(maps, batches[0], clock=clock) == pytest.approx(1)
    for one_map in maps:
        one_map.fixed_s, one_map.each_s = 3 * one_map.fixed_s, 3 * one_map.each_s
    with pytest.warns(UserWarning, match="takes 3.00 times its planned time here"):
        again.check(maps, batches[0], clock=clock)


def test_a_real_clock_is_read(maps: list[Timed]) -> None:
    plan = plan_sampling(maps, noises(1, 1), tol=1e-3, repeats=1)
    assert all(0 < seconds < 10 for seconds in plan.seconds)
    assert set(plan.table[0]) <= {"sequential", "jacobi", "frozen-16", "gs-jacobi-2", "gs-jacobi-8"}  # 17 tokens


def test_an_evaluation_is_timed_by_width(maps: list[Timed], clock: Clock) -> None:
    found = evaluation_seconds(maps[1], noises(1, 2)[0], [1, 4, 16], clock=clock)
    assert found == {n: pytest.approx(4e-4 + 2 * n * 2e-4) for n in (1, 4, 16)}


def test_bad_input_is_named(maps: list[Timed]) -> None:
    batches = noises(1, 2)
    with pytest.raises(ValueError, match="0 noises"):
        plan_sampling(maps, [], tol=1e-3)
    with pytest.raises(ValueError, match="strategy 'magic'"):
        plan_sampling(maps, batches, tol=1e-3, candidates=["magic"])
    with pytest.raises(ValueError, match="expected one shape"):
        plan_sampling(maps, [*batches, *noises(1, 3)], tol=1e-3)
    with pytest.raises(ValueError, match="expected 1 to 16"):
        evaluation_seconds(maps[0], batches[0], [17])
    with pytest.raises(ValueError, match="not a sampling plan"):
        SamplingPlan.from_json('{"strategies": []}')
    plan = SamplingPlan((SweepStrategy.sequential().name,), (1.0,), ({},), 3, 1e-3, 1, "here")
    with pytest.raises(ValueError, match="expected 3, as in the plan"):
        plan.check(maps[:1], batches[0])
