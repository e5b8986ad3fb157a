"""The linear program against closed forms, duality, brute force; integer program against brute force."""

from itertools import product

import networkx as nx
import numpy as np
import pytest
from fabrics_for_tests import FABRICS

from anabranch.fabric import (
    FatTree,
    LeafSpine,
    Plan,
    Traffic,
    _lp,
    closed_form_optimum,
    fail_links,
    optimum,
    plan_greedy,
    plan_konig,
    plan_split,
)


def test_two_hundred_small_fabrics():
    """Program = closed form = both exact planners; flows of 60 bytes times 2^20, which every S <= 5 divides."""
    rng = np.random.default_rng(11)
    for _ in range(200):
        fabric = LeafSpine(int(rng.integers(1, 7)), int(rng.integers(1, 6)), int(rng.integers(1, 5)))
        flows = int(rng.integers(1, 41))
        traffic = Traffic(*rng.integers(0, fabric.n_nics, (2, flows)), 60 * 2**20)
        best = optimum(fabric, traffic)
        a, b = fabric.leaf_of(traffic.src), fabric.leaf_of(traffic.dst)
        leaves = np.arange(fabric.n_leaves)[:, None]
        degree = max(
            (((a == leaves) & (a != b)).sum(axis=1).max(), ((b == leaves) & (a != b)).sum(axis=1).max()), default=0
        )
        expected = degree * 60 * 2**20 / fabric.n_spines / 5e10
        assert np.isclose(best.value_s, expected, rtol=1e-9, atol=0)
        assert np.allclose(closed_form_optimum(fabric, traffic), expected, rtol=1e-12)
        for plan in (plan_split(fabric, traffic), plan_konig(fabric, traffic)):
            assert np.isclose(plan.max_congestion_s(), expected, rtol=1e-9, atol=0)


def test_closed_form_of_fat_trees_is_the_program():
    rng = np.random.default_rng(1)
    for tree in (FatTree(2, 2, 4, 4, 4, 2), FatTree(3, 2, 2, 2, 4, 1, core_gbps=100.0), FatTree.k_ary(4)):
        for _ in range(5):
            traffic = Traffic(*rng.integers(0, tree.n_nics, (2, 30)), rng.integers(1, 10**9, 30))
            assert np.allclose(optimum(tree, traffic).per_step_s, closed_form_optimum(tree, traffic), rtol=1e-9)


@pytest.mark.parametrize("name", FABRICS)
def test_duals_prove_the_value(name):
    """Prices with sum(price * capacity) = 1: bytes times the cheapest path bound every routing from below."""
    fabric = FABRICS[name]
    traffic = Traffic(*np.random.default_rng(2).integers(0, fabric.n_nics, (2, 30)), 10**9)
    best = optimum(fabric, traffic)
    inside = fabric.is_fabric_link
    assert (best.duals >= 0).all()
    assert not best.duals[~inside].any()
    assert np.isclose((best.duals * fabric.capacity_bytes_per_s).sum(), 1.0, rtol=1e-9)
    bound = 0.0
    for src, dst, size in zip(traffic.src, traffic.dst, traffic.size_bytes, strict=True):
        paths = [fabric.path(int(src), int(dst), k) for k in range(int(fabric.n_paths(int(src), int(dst))[0]))]
        bound += size * min(best.duals[links].sum() for links in paths if not fabric.is_failed[links].any())
    assert np.isclose(bound, best.value_s, rtol=1e-9)


def test_program_equals_maximum_flow_for_one_pair():
    """One pair of leaves: the least congestion is bytes over the maximum flow between the two leaves."""
    rng = np.random.default_rng(4)
    fabric = LeafSpine(3, 4, 1, up_gbps=rng.uniform(50, 400, (3, 4)), down_gbps=rng.uniform(50, 400, (3, 4)))
    fabric = fail_links(fabric, [fabric.uplink(0, 2)])
    graph = nx.DiGraph()
    for k in range(4):
        graph.add_edge("a", k, capacity=fabric.up_bytes_per_s[0, k])
        graph.add_edge(k, "b", capacity=fabric.down_bytes_per_s[1, k])
    traffic = Traffic([0], [1], 10**9)
    assert np.isclose(optimum(fabric, traffic).value_s, 1e9 / nx.maximum_flow_value(graph, "a", "b"), rtol=1e-9)


def test_merging_alike_spines_changes_nothing():
    rng = np.random.default_rng(3)
    for seed in range(20):
        rates = rng.choice([100.0, 200.0], (2, 3, 3))[:, :, rng.integers(0, 3, 5)]  # some of the 5 spines are alike
        fabric = LeafSpine(3, 5, 2, up_gbps=rates[0], down_gbps=rates[1])
        fabric = fail_links(fabric, rng.choice(np.flatnonzero(fabric.is_fabric_link), seed % 3, replace=False))
        pair = np.array([1, 2, 3, 5, 6, 7])
        size = rng.integers(1, 10**9, 6).astype(float)
        ends = np.divmod(pair, 3)
        merged = _lp.solve_leaf_spine(fabric, *ends, size)
        _, full = _lp.solve(fabric, *ends, size)
        assert np.isclose(merged.value_s, full.value_s, rtol=1e-9)
        assert np.allclose(np.bincount(merged.pair, merged.load_bytes), size, rtol=1e-9)


def test_steps_have_optima_of_their_own():
    fabric = LeafSpine(2, 2, 2)
    traffic = Traffic([0, 1, 0, 2], [2, 3, 2, 0], [100, 100, 50, 0 + 70], step=[0, 0, 2, 2])
    best = optimum(fabric, traffic)
    assert np.allclose(best.per_step_s, np.array([100, 0, 35]) / 5e10)
    assert best.value_s == best.per_step_s.max()
    assert np.isclose((best.duals * fabric.capacity_bytes_per_s).sum(), 1.0)


def test_whole_flows_equal_brute_force():
    rng = np.random.default_rng(6)
    for _ in range(15):
        fabric = LeafSpine(3, 2, 2, up_gbps=rng.choice([100, 400], (3, 2)))
        traffic = Traffic(*rng.integers(0, 6, (2, 7)), rng.integers(1, 9, 7) * 10**6)
        count = fabric.n_paths(traffic.src, traffic.dst)
        least = min(
            Plan(
                fabric, traffic, np.arange(traffic.n_flows), np.array(paths, np.int32), traffic.size_bytes
            ).max_congestion_s()
            for paths in product(*(range(c) for c in count))
        )
        best = optimum(fabric, traffic, unsplittable=True)
        assert np.isclose(best.value_s, least, rtol=1e-9)
        assert np.isclose(best.plan.max_congestion_s(), least, rtol=1e-9)
        assert best.plan.n_pieces == traffic.n_flows
        assert best.value_s <= plan_greedy(fabric, traffic).max_congestion_s() + 1e-15
        assert best.value_s >= optimum(fabric, traffic).value_s * (1 - 1e-9)


def test_refusals():
    fabric = LeafSpine(2, 2, 2)
    many = Traffic(np.zeros(110_000, int), np.full(110_000, 2), 5)
    with pytest.raises(ValueError, match="traffic must have at most 200000 choices"):
        optimum(fabric, many, unsplittable=True)
    with pytest.raises(ValueError, match="topology must be a LeafSpine or FatTree of equal living links"):
        closed_form_optimum(fail_links(fabric, [8]), Traffic([0], [2], 5))
    assert optimum(fabric, Traffic([0], [0], 5)).value_s == 0.0
