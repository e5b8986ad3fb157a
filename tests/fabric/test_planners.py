"""Hashing, greedy, replanning, and what every planner must keep."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from fabrics_for_tests import FABRICS

from anabranch.fabric import (
    LeafSpine,
    Traffic,
    closed_form_optimum,
    fail_links,
    plan_ecmp,
    plan_greedy,
    plan_konig,
    plan_split,
    plan_spray,
    replan,
)

PLANNERS = {
    "ecmp": lambda fabric, traffic: plan_ecmp(fabric, traffic, seed=3),
    "ecmp-4": lambda fabric, traffic: plan_ecmp(fabric, traffic, split=4, seed=3),
    "greedy": plan_greedy,
    "pair": plan_split,
    "konig": plan_konig,
}


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", FABRICS)
def test_bytes_and_ends_are_kept(name, planner):
    fabric = FABRICS[name]
    rng = np.random.default_rng(8)
    traffic = Traffic(*rng.integers(0, fabric.n_nics, (2, 50)), rng.integers(1, 10**6, 50), step=rng.integers(0, 3, 50))
    plan = PLANNERS[planner](fabric, traffic)
    assert np.array_equal(np.bincount(plan.parent, plan.size_bytes), traffic.size_bytes)
    src, dst = traffic.src[plan.parent], traffic.dst[plan.parent]
    assert fabric.alive(src, dst, plan.path).all()
    indptr, links = plan.piece_links()
    for i in range(plan.n_pieces):
        hops = [fabric.link_name(int(link)).split("->") for link in links[indptr[i] : indptr[i + 1]]]
        assert hops[0][0] == f"nic{src[i]}"
        assert hops[-1][1] == f"nic{dst[i]}"
        assert all(x[1] == y[0] for x, y in pairwise(hops))


def test_spray_is_optimal_on_symmetric_fabrics():
    for name in ("leaf-spine", "fat tree", "slow core"):
        fabric = FABRICS[name]
        traffic = Traffic(*np.random.default_rng(0).integers(0, fabric.n_nics, (2, 50)), 10**6)
        assert np.isclose(
            plan_spray(fabric, traffic).max_congestion_s(), closed_form_optimum(fabric, traffic)[0], rtol=1e-12
        )


def test_hash_is_splitmix64():
    """The published test vector: the first outputs of splitmix64 from state 1234567."""
    from anabranch.fabric._kernels_planners import splitmix64

    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(int(splitmix64(np.uint64(state))))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_ecmp_hashes_the_four_words():
    from anabranch.fabric._kernels_planners import splitmix64

    fabric = LeafSpine(4, 5, 4)
    traffic = Traffic([0, 0, 3, 0], [9, 9, 12, 9], 10, step=[0, 0, 0, 1])
    plan = plan_ecmp(fabric, traffic, split=2, seed=77)

    def path(src, dst, port):
        x = splitmix64(np.uint64(77))
        for word in (src, dst, port):
            x = splitmix64(x ^ np.uint64(word))
        return int(x % np.uint64(5))

    expected = [path(0, 9, 0), path(0, 9, 1), path(0, 9, 2), path(0, 9, 3), path(3, 12, 0), path(3, 12, 1)]
    assert plan.path.tolist() == [*expected, path(0, 9, 0), path(0, 9, 1)]
    assert plan.size_bytes.tolist() == [5] * 8


def test_ecmp_spreads_evenly_and_depends_on_the_seed():
    fabric = LeafSpine(2, 8, 200)
    src, dst = (x.ravel() for x in np.indices((200, 200)))
    traffic = Traffic(src, 200 + dst, 1000)
    plans = [plan_ecmp(fabric, traffic, seed=seed) for seed in (0, 0, 1)]
    assert np.array_equal(plans[0].path, plans[1].path)
    assert (plans[0].path != plans[2].path).mean() > 0.8
    counts = np.bincount(plans[0].path, minlength=8)
    assert ((counts - 5000) ** 2 / 5000).sum() < 24.3  # chi square, 7 degrees of freedom, p = 0.001


def test_ecmp_avoids_failed_links():
    fabric = LeafSpine(2, 4, 50)
    broken = fail_links(fabric, fabric.cable(0, 2))
    traffic = Traffic(np.arange(50), 50 + np.arange(50), 10)
    path = plan_ecmp(broken, traffic, seed=0).path
    assert set(path.tolist()) == {0, 1, 3}


def test_ecmp_leaves_out_empty_parts():
    plan = plan_ecmp(LeafSpine(2, 4, 1), Traffic([0], [1], 3), split=8, seed=0)
    assert plan.size_bytes.tolist() == [1, 1, 1]


def greedy_by_hand(fabric, traffic):
    up, down = Counter(), Counter()
    paths = []
    for src, dst, size in zip(traffic.src, traffic.dst, traffic.size_bytes, strict=True):
        a, b = int(fabric.leaf_of(int(src))), int(fabric.leaf_of(int(dst)))
        if a == b:
            paths.append(0)
            continue
        k = min(range(fabric.n_spines), key=lambda k: (max(up[a, k], down[b, k]), k))
        up[a, k] += int(size)
        down[b, k] += int(size)
        paths.append(k)
    return paths


def test_greedy_takes_the_least_loaded_spine():
    fabric = LeafSpine(5, 4, 4)
    rng = np.random.default_rng(9)
    traffic = Traffic(*rng.integers(0, 20, (2, 120)), 1000)
    assert plan_greedy(fabric, traffic).path.tolist() == greedy_by_hand(fabric, traffic)


def test_greedy_starts_every_step_empty():
    fabric = LeafSpine(2, 3, 3)
    traffic = Traffic([0, 1, 2, 0, 1, 2], [3, 4, 5, 3, 4, 5], 10, step=[0, 0, 0, 1, 1, 1])
    assert plan_greedy(fabric, traffic).path.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("name", ["fat tree", "graph"])
def test_greedy_on_other_fabrics_minimises_the_worst_link(name):
    fabric = FABRICS[name]
    rng = np.random.default_rng(10)
    traffic = Traffic(*rng.integers(0, fabric.n_nics, (2, 25)), rng.integers(1, 100, 25))
    plan = plan_greedy(fabric, traffic)
    loads = np.zeros(fabric.n_links)
    for src, dst, size, path in zip(traffic.src, traffic.dst, traffic.size_bytes, plan.path, strict=True):
        costs = []
        for k in range(int(fabric.n_paths(int(src), int(dst))[0])):
            links = fabric.path(int(src), int(dst), k)
            links = links[fabric.is_fabric_link[links]]
            costs.append(((loads[links] + size) / fabric.capacity_bytes_per_s[links]).max(initial=0.0))
        assert path == int(np.argmin(costs))
        loads[fabric.path(int(src), int(dst), int(path))] += size


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", ["leaf-spine", "fat tree", "graph"])
def test_replan_moves_only_what_must_move(name, planner):
    fabric = FABRICS[name]
    rng = np.random.default_rng(12)
    traffic = Traffic(*rng.integers(0, fabric.n_nics, (2, 50)), rng.integers(1, 10**6, 50), step=rng.integers(0, 2, 50))
    plan = PLANNERS[planner](fabric, traffic)
    fabric_links = np.flatnonzero(fabric.is_fabric_link)
    broken = fail_links(fabric, [int(fabric_links[0]), int(fabric_links[-1])])
    moved = replan(plan, broken)
    src, dst = traffic.src[plan.parent], traffic.dst[plan.parent]
    dead = ~broken.alive(src, dst, plan.path)
    assert dead.any()
    assert np.array_equal(moved.path[~dead], plan.path[~dead])
    assert broken.alive(src, dst, moved.path).all()
    assert np.array_equal(moved.size_bytes, plan.size_bytes)
    assert moved.topology is broken
    assert np.isfinite(moved.max_congestion_s())
    unmoved = replan(plan, fabric)
    assert np.array_equal(unmoved.path, plan.path)


def test_replan_picks_the_least_loaded_path():
    fabric = LeafSpine(2, 3, 3)
    traffic = Traffic([0, 1, 2], [3, 4, 5], [100, 10, 50])
    plan = plan_greedy(fabric, traffic)
    assert plan.path.tolist() == [0, 1, 2]
    assert replan(plan, fail_links(fabric, [fabric.uplink(0, 0)])).path.tolist() == [1, 1, 2]


def test_pairs_without_a_path_are_listed():
    fabric = LeafSpine(3, 2, 2)
    broken = fail_links(
        fabric, [*fabric.cable(0, 0), *fabric.cable(1, 1)]
    )  # leaf 0 has spine 1 only, leaf 1 spine 0 only
    traffic = Traffic([0, 2, 0, 4, 1], [2, 1, 1, 0, 4], 10)
    plan = plan_greedy(fabric, traffic)
    for planner in (*PLANNERS.values(), plan_spray, lambda f, t: replan(plan, f)):
        with pytest.raises(ValueError, match=r"topology has no path left for the NIC pairs 0 -> 2, 2 -> 1$"):
            planner(broken, traffic)
    no_nic = fail_links(fabric, [4])  # NIC 4 cannot send
    with pytest.raises(ValueError, match=r"no path left for the NIC pairs 4 -> 0$"):
        plan_konig(no_nic, traffic)


def test_bad_arguments_are_refused():
    fabric, traffic = LeafSpine(2, 2, 2), Traffic([0], [3], 10)
    with pytest.raises(ValueError, match="split must be >= 1, got 0"):
        plan_ecmp(fabric, traffic, split=0, seed=0)
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        plan_ecmp(fabric, traffic, seed=-1)
    with pytest.raises(ValueError, match=r"topology must have the plan's 4 NICs and 16 links, got 6 and 20"):
        replan(plan_greedy(fabric, traffic), LeafSpine(2, 2, 3))
    for planner in (*PLANNERS.values(), plan_spray):
        with pytest.raises(ValueError, match=r"traffic\.dst\[0\] must be >= 0 and < 4, got 4"):
            planner(fabric, Traffic([0], [4], 10))


def test_one_leaf_one_spine_and_more_spines_than_flows():
    for fabric in (LeafSpine(1, 3, 4), LeafSpine(4, 1, 1), LeafSpine(2, 16, 2)):
        traffic = Traffic(*(x.ravel() for x in np.indices((4, 4))), 4800)
        best = closed_form_optimum(fabric, traffic)[0]
        for name, planner in PLANNERS.items():
            worst = planner(fabric, traffic).max_congestion_s()
            assert worst >= best * (1 - 1e-12)
            if name in ("pair", "konig"):
                assert np.isclose(worst, best, rtol=1e-12)
