"""Modulo scheduling against every schedule there is, both solvers, bounds, rules, replay."""

from __future__ import annotations

import builtins
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anabranch.serving import (
    Interference,
    IterationCosts,
    LayerGraph,
    LayerOperation,
    NanoGraph,
    NanoNode,
    PeriodicSchedule,
    Workload,
    period_bound,
    published_layer,
    search_periodic,
    sequential,
)
from anabranch.serving._modulo_cp_sat import solve_cp_sat
from anabranch.serving._modulo_highs import solve_highs
from anabranch.serving.modulo_search import ModuloProblem, least_period, order_is_possible
from anabranch.simulation import ACCELERATORS, LLAMA2_70B

PUBLISHED = Interference.published()
FREE = Interference({kind: [(0.0, 0.0), (0.1, 1.0), (1.0, 1.0)] for kind in ("gemv", "network")} | {
    "gemm": [(0.0, 0.0), (1.0, 1.0)]})  # fmt: skip


def random_problem(seed: int) -> ModuloProblem:
    """At most 6 nodes; half of them with one unary resource for each kind, half with shares of one machine."""
    generator = np.random.default_rng(seed)
    n = int(generator.integers(2, 7 if seed % 2 == 0 else 5))
    modes = []
    for _ in range(n):
        if seed % 2 == 0:
            modes.append(((int(generator.integers(1, 4)), 1, int(generator.integers(0, 2))),))
        else:
            slow, fast = int(generator.integers(2, 5)), int(generator.integers(1, 3))
            least = int(generator.integers(1, 4))
            choices = [(max(slow, fast), least, 0)]
            if fast < slow:
                choices.append((fast, int(generator.integers(least + 1, 6)), 0))
            modes.append(tuple(choices))
    edges = [
        (i, j, 0) for i in range(n) for j in range(i + 1, n) if generator.random() < 0.4
    ] + [(n - 1, 0, 1)] * int(generator.random() < 0.7) + [
        (j, i, int(generator.integers(1, 3))) for i in range(n) for j in range(i + 1, n) if generator.random() < 0.1
    ]  # fmt: skip
    return ModuloProblem(tuple(modes), (1, 1) if seed % 2 == 0 else (5,), tuple(edges))


def brute(problem: ModuloProblem) -> int:
    """The least period for which some choice of modes and places satisfies every rule."""
    n = len(problem.modes)
    for period in itertools.count(1):
        for picks in itertools.product(*(range(len(modes)) for modes in problem.modes)):
            chosen = [modes[k] for modes, k in zip(problem.modes, picks, strict=True)]
            if max(d for d, _, _ in chosen) > period or not order_is_possible(
                problem.edges, [d for d, _, _ in chosen], period
            ):
                continue
            load = np.zeros((len(problem.capacity), period), int)
            places = [0] * n

            def put(i: int, period: int = period, chosen=chosen, load=load, places=places) -> bool:
                if i == n:
                    return turns_exist(problem, chosen, places, period)
                duration, demand, resource = chosen[i]
                for place in range(period if i else 1):  # the circle may be turned
                    where = (place + np.arange(duration)) % period
                    if (load[resource, where] + demand > problem.capacity[resource]).any():
                        continue
                    load[resource, where] += demand
                    places[i] = place
                    if put(i + 1):
                        return True
                    load[resource, where] -= demand
                return False

            if put(0):
                return period
    raise AssertionError


def turns_exist(problem: ModuloProblem, chosen: list, places: list[int], period: int) -> bool:
    turns = [0] * len(chosen)
    for _ in range(len(chosen) + 1):
        changed = False
        for i, j, lag in problem.edges:
            least = turns[i] + -(-(places[i] + chosen[i][0] - places[j] - lag * period) // period)
            if turns[j] < least:
                turns[j], changed = least, True
        if not changed:
            return True
    return False


def check(problem: ModuloProblem, solution) -> None:
    chosen = [modes[k] for modes, k in zip(problem.modes, solution.mode, strict=True)]
    for i, j, lag in problem.edges:
        assert solution.start[i] + chosen[i][0] <= solution.start[j] + lag * solution.period
    for resource, capacity in enumerate(problem.capacity):
        load = np.zeros(solution.period, int)
        for (duration, demand, where), start in zip(chosen, solution.start, strict=True):
            if where == resource:
                load[(start + np.arange(duration)) % solution.period] += demand
        assert load.max(initial=0) <= capacity


@pytest.mark.parametrize("block", range(10))
def test_both_solvers_find_the_best_period(block: int) -> None:
    for seed in range(10 * block, 10 * block + 10):
        problem = random_problem(seed)
        best = brute(problem)
        highs = solve_highs(problem, 60.0)
        pytest.importorskip("ortools")
        other = solve_cp_sat(problem, 60.0, 1)
        assert highs.period == highs.bound == other.period == other.bound == best, seed
        assert least_period(problem) <= best
        check(problem, highs)
        check(problem, other)


def layer(**seconds: float) -> LayerGraph:
    return published_layer(IterationCosts(LLAMA2_70B, ACCELERATORS["A100-80"], 8, Workload(512.0, 1024.0), 2048))


def test_whole_operations_in_a_chain_give_the_sequence() -> None:
    graph = NanoGraph.split(layer())
    plain = sequential(graph, PUBLISHED)
    plain.validate()
    assert plain.period_s == pytest.approx(0.22505, abs=1e-4)
    chained = replace(
        graph, edges=(*graph.edges, (1, 2, 0))  # attention of the two phases one after the other: nothing may overlap
    )  # fmt: skip
    found = search_periodic(chained, Interference({k: [(0.0, 0.0), (1.0, 1.0)] for k in ("gemm", "gemv", "network")}),
                            solver="cp-sat", units=200, time_limit_s=20.0)  # fmt: skip
    assert found.period_s == pytest.approx(plain.period_s, rel=1 / 200)  # whole units
    assert found.period_s >= plain.period_s * (1 - 1e-9)


def test_what_costs_nothing_beside_compute_leaves_compute() -> None:
    """Structure alone: kinds run beside each other at full speed, and compute is the longest of them."""
    base = layer()
    whole = LayerGraph(
        tuple(replace(one, weight_s=0.0) for one in base.operations), base.decode_tokens, base.prefill_tokens
    )
    graph = NanoGraph.split(whole, [1024], granularity=None)
    found = search_periodic(graph, FREE, stage="structure", solver="cp-sat", units=200, time_limit_s=6.0)
    found.validate()
    compute = sum(node.seconds for node in graph.nodes if node.kind == "gemm")
    assert found.resource_bound_s >= compute * (1 - 1e-9)
    assert found.period_s >= found.bound_s * (1 - 1e-9)
    assert compute * (1 - 1e-9) <= found.period_s <= 0.160


def test_perfect_overlap_is_found_exactly() -> None:
    operations = (
        LayerOperation("A", "gemm", 4.0, needs_before=("B",)), LayerOperation("B", "network", 3.0, needs=("A",)),
    )  # fmt: skip
    graph = NanoGraph.split(LayerGraph(operations, 0, 256), [128], charge_rereads=False)
    for solver in ("highs", "cp-sat"):
        found = search_periodic(graph, PUBLISHED, stage="structure", solver=solver, units=14)
        found.validate()
        assert found.period_s == pytest.approx(4.0, rel=1e-9)
        assert found.status == "optimal"
        assert found.bound_s == pytest.approx(4.0, rel=1e-9)


def test_shares_are_found_exactly() -> None:
    """A gather that runs at full speed on a tenth of the machine beside products of nine tenths."""
    cheap = Interference({"gemm": [(0.0, 0.0), (1.0, 1.0)], "network": [(0.0, 0.0), (0.1, 1.0), (1.0, 1.0)]})
    operations = (
        LayerOperation("A", "gemm", 3.6, needs_before=("B",)), LayerOperation("B", "network", 4.0, needs=("A",)),
    )  # fmt: skip
    graph = NanoGraph.split(LayerGraph(operations, 0, 256), [128], charge_rereads=False)
    found = [
        search_periodic(graph, cheap, solver=solver, units=38, time_limit_s=60.0) for solver in ("highs", "cp-sat")
    ]
    for one in found:
        one.validate()
        assert one.period_s == pytest.approx(4.0, rel=1e-9)  # A at 0.9 takes 2.0 while B runs 2.0
        assert one.bound_s <= one.period_s * (1 + 1e-9)
        assert period_bound(graph, cheap) <= one.period_s * (1 + 1e-6)


def test_bounds_of_the_published_layer() -> None:
    """One nano-batch 220.9 ms, two halves 185.3 ms, and 176.7 ms with UG and D in four and decode attention in three."""
    whole = layer()
    one = NanoGraph.split(whole, granularity=None, charge_rereads=False)
    assert period_bound(one, PUBLISHED) == pytest.approx(0.2209, abs=6e-4)
    two = NanoGraph.split(whole, {one.name: [1024] for one in whole.operations}, charge_rereads=False)
    assert period_bound(two, PUBLISHED) == pytest.approx(0.1853, abs=2e-3)


def test_the_structure_of_the_published_split() -> None:
    """0 to 768 and 768 to 2,048: a prototype found 149.0 ms with durations rounded up, 141.5 ms is the compute."""
    graph = NanoGraph.split(layer(), [768], charge_rereads=False)
    found = search_periodic(graph, PUBLISHED, stage="structure", solver="cp-sat", units=200, time_limit_s=60.0)
    found.validate()
    assert 0.14153 <= found.resource_bound_s * (1 + 1e-6) <= found.period_s * (1 + 1e-6) <= 0.150


def test_no_time_means_the_sequence() -> None:
    found = search_periodic(NanoGraph.split(layer(), [1024]), PUBLISHED, time_limit_s=1e-9)
    assert found.status == "fallback"
    assert found.period_s == pytest.approx(found.graph.sequential_s)
    found.validate()


def small() -> PeriodicSchedule:
    operations = (
        LayerOperation("A", "gemm", 4.0, needs_before=("B",)), LayerOperation("B", "network", 3.0, needs=("A",)),
    )  # fmt: skip
    graph = NanoGraph.split(LayerGraph(operations, 0, 256), [128], charge_rereads=False)
    return search_periodic(graph, PUBLISHED, stage="structure", units=14)


def test_replay_without_jitter_is_the_period() -> None:
    generator = np.random.default_rng(0)
    for schedule in (
        small(),
        search_periodic(NanoGraph.split(layer(), [1024]), PUBLISHED, solver="cp-sat", units=100, time_limit_s=4.0),
        sequential(NanoGraph.split(layer(), [1024]), PUBLISHED),
    ):
        np.testing.assert_allclose(schedule.simulate(20), schedule.period_s, rtol=1e-9)
        noisy = schedule.simulate(400, jitter=0.1, generator=generator)
        assert np.mean(noisy) >= 0.97 * schedule.period_s
        assert np.mean(noisy) <= 1.3 * schedule.period_s
    with pytest.raises(ValueError, match="jitter"):
        small().simulate(jitter=0.1)
    with pytest.raises(ValueError, match="layers must be"):
        small().simulate(1)


def test_every_broken_rule_is_found() -> None:
    schedule = small()
    nodes = schedule.graph.nodes
    starts = list(schedule.start_s)
    starts[2] = starts[0]
    with pytest.raises(ValueError, match=r"before .* has ended"):
        replace(schedule, start_s=tuple(starts)).validate()
    free = replace(schedule.graph, edges=())
    with pytest.raises(ValueError, match="of one kind overlap"):
        replace(schedule, graph=free, start_s=(0.0, 0.5, 0.0, 2.0)).validate()
    with pytest.raises(ValueError, match="add up to more than 1"):
        replace(
            schedule,
            graph=free,
            stage="resources",
            share=(0.9, 0.9, 0.1, 0.1),
            start_s=(0.0, 0.5, 4.0, 5.0),
            period_s=40.0,
        ).validate()
    broken = replace(schedule.graph, nodes=(replace(nodes[0], end=100), *nodes[1:]))
    with pytest.raises(ValueError, match="do not cover"):
        replace(schedule, graph=broken).validate()
    with pytest.raises(ValueError, match="do not cover"):
        replace(schedule, graph=replace(schedule.graph, nodes=(*nodes[:3], replace(nodes[3], end=200)))).validate()
    with pytest.raises(ValueError, match="longer than the period"):
        replace(schedule, graph=free, period_s=1.0).validate()


def test_a_schedule_survives_its_file(tmp_path: Path) -> None:
    schedule = small()
    schedule.to_json(tmp_path / "schedule.json")
    again = PeriodicSchedule.from_json(tmp_path / "schedule.json")
    assert again.graph.edges == schedule.graph.edges
    assert again.period_s == pytest.approx(schedule.period_s, rel=1e-12)
    assert again.start_s == pytest.approx(schedule.start_s, abs=1e-12)
    assert {"op", "start_token", "end_token", "start_ms", "duration_ms", "share"} <= set(
        json.loads(schedule.to_json())["nodes"][0]
    )
    with pytest.raises(ValueError, match="is no schedule"):
        PeriodicSchedule.from_json("{}")
    text = json.loads(schedule.to_json())
    text["nodes"][2]["start_ms"] = -5000.0
    with pytest.raises(ValueError, match="before"):
        PeriodicSchedule.from_json(json.dumps(text))


def test_utilisation_holds_the_work() -> None:
    schedule = small()
    rows = schedule.utilisation()
    assert sum(row["end_s"] - row["start_s"] for row in rows) == pytest.approx(schedule.period_s)
    for kind in ("gemm", "network"):
        work = sum((row["end_s"] - row["start_s"]) * row[kind] for row in rows)
        assert work == pytest.approx(sum(n.seconds for n in schedule.graph.nodes if n.kind == kind))
    assert schedule.makespan_s >= schedule.period_s - 1e-9
    assert {lane for lane, *_ in schedule.lanes()} == {"A", "B"}


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = NanoGraph.split(layer(), [1024])
    with pytest.raises(ValueError, match="stage must be"):
        search_periodic(graph, PUBLISHED, stage="both")
    with pytest.raises(ValueError, match="solver must be"):
        search_periodic(graph, PUBLISHED, solver="simplex")
    with pytest.raises(ValueError, match="units=0"):
        search_periodic(graph, PUBLISHED, units=0)
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.startswith("ortools"):
            raise ModuleNotFoundError(name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"install anabranch\[cp-sat\]"):
        search_periodic(graph, PUBLISHED, solver="cp-sat")


def test_a_node_is_what_it_says() -> None:
    graph = NanoGraph.split(layer(), [1024])
    assert all(isinstance(node, NanoNode) for node in graph.nodes)
    assert sum(node.seconds for node in graph.nodes) == pytest.approx(graph.sequential_s)
