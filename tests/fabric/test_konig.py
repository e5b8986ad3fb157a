"""Matchings, the wrap-around, exactness with few pieces."""

from math import gcd

import numpy as np
import pytest
from fabrics_for_tests import FABRICS
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from anabranch.fabric import (
    FatTree,
    LeafDemand,
    LeafSpine,
    Traffic,
    closed_form_optimum,
    konig_matrix,
    konig_tradeoff,
    optimum,
    plan_konig,
    plan_split,
)
from anabranch.fabric import _konig as lines
from anabranch.fabric._balance import deal
from anabranch.fabric._kernels_konig import color_regular


def units_per_link(a, b, leaves, spines, position, degree):
    """Loads in units of 1/spines flow, up and down, and the flow of every piece."""
    flow, spine, low, high = lines.cut_units(position, degree, spines)
    loads = np.zeros((2, leaves, spines), dtype=np.int64)
    np.add.at(loads[0], (a[flow], spine), high - low)
    np.add.at(loads[1], (b[flow], spine), high - low)
    whole = np.zeros(len(a), dtype=np.int64)
    np.add.at(whole, flow, high - low)
    assert (whole == spines).all()
    assert (high > low).all()
    return loads, flow


def check_theorem(a, b, leaves, spines):
    degree = lines.degree_of(a, b, leaves)
    position = lines.flow_positions(a, b, leaves, degree, spines)
    for end in (a, b):
        assert len(np.unique(end * degree + position)) == len(a), "two flows of a leaf on one unit"
    loads, flow = units_per_link(a, b, leaves, spines, position, degree)
    assert loads.max() == degree  # = OPT, in units of 1/spines flow
    bound = spines - gcd(degree % spines, spines)
    for end in (a, b):
        flows = np.bincount(end, minlength=leaves)
        extra = np.bincount(end[flow], minlength=leaves) - flows
        assert extra.max() <= bound
        assert (extra[flows == degree] == bound).all()
    return len(flow)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.data())
def test_theorem_on_random_multigraphs(data):
    leaves, spines = data.draw(st.integers(2, 8)), data.draw(st.integers(1, 12))
    edges = data.draw(
        st.lists(st.tuples(st.integers(0, leaves - 1), st.integers(1, leaves - 1)), min_size=1, max_size=80)
    )
    a = np.array([edge[0] for edge in edges])
    b = (a + np.array([edge[1] for edge in edges])) % leaves
    check_theorem(a, b, leaves, spines)


@pytest.mark.parametrize("spines", [1, 5, 16, 24, 31, 32])
@pytest.mark.parametrize("pattern", ["permutation", "random", "one destination", "many flows per pair"])
def test_theorem_at_size(pattern, spines):
    rng = np.random.default_rng(7)
    leaves, hosts = 64, 32
    a = np.arange(leaves * hosts) // hosts
    if pattern == "permutation":
        b = rng.permutation(len(a)) // hosts
    elif pattern == "random":
        b = rng.integers(0, leaves, len(a))
    elif pattern == "one destination":
        b = np.zeros(len(a), dtype=np.int64)
    else:
        a = rng.integers(0, 6, 5000)
        b = rng.integers(0, 6, 5000)
    between = a != b
    check_theorem(a[between], b[between], leaves, spines)


def test_both_ways_to_decompose_hold(monkeypatch):
    rng = np.random.default_rng(3)
    a = rng.integers(0, 5, 300)
    b = (a + rng.integers(1, 5, 300)) % 5
    for flows_per_pair in (0, 10**9):
        monkeypatch.setattr(lines, "_FLOWS_PER_PAIR", flows_per_pair)
        for spines in range(1, 13):
            check_theorem(a, b, 5, spines)


@pytest.mark.parametrize(("n", "degree"), [(1, 1), (1, 6), (5, 3), (12, 7), (40, 24), (9, 32), (30, 1)])
def test_colors_are_perfect_matchings(n, degree):
    rng = np.random.default_rng(n * 100 + degree)
    left = np.tile(np.arange(n, dtype=np.int32), degree)
    right = np.concatenate([rng.permutation(n) for _ in range(degree)]).astype(np.int32)
    shuffle = rng.permutation(n * degree)
    left, right = left[shuffle], right[shuffle]
    color = color_regular(left, right, n, degree).astype(np.int64)
    for end in (left, right):
        assert np.array_equal(np.sort(color * n + end), np.arange(n * degree))


@pytest.mark.parametrize("spines", range(1, 5))
@pytest.mark.parametrize("flows", range(1, 7))
def test_one_full_leaf_has_the_fewest_pieces_of_any_plan(flows, spines):
    """Integer program: x = bytes of a flow of ``spines`` bytes per spine (vertices are integral), z = the piece exists."""
    n = flows * spines
    identity = np.eye(n)
    rows = np.kron(np.eye(flows), np.ones(spines)), np.kron(np.ones(flows), np.eye(spines))
    solution = milp(
        np.concatenate([np.zeros(n), np.ones(n)]),
        integrality=np.ones(2 * n),
        bounds=Bounds(0, np.concatenate([np.full(n, spines), np.ones(n)])),
        constraints=[
            LinearConstraint(np.hstack([rows[0], np.zeros((flows, n))]), spines, spines),
            LinearConstraint(np.hstack([rows[1], np.zeros((spines, n))]), flows, flows),
            LinearConstraint(np.hstack([identity, -spines * identity]), -np.inf, 0),
        ],
    )
    least = flows + spines - gcd(flows, spines)
    assert round(solution.fun) == least
    fabric = LeafSpine(2, spines, flows)
    traffic = Traffic(np.arange(flows), flows + np.arange(flows), spines)
    plan = plan_konig(fabric, traffic)
    assert plan.n_pieces == least
    assert plan.max_congestion_s() == closed_form_optimum(fabric, traffic)[0]


def test_no_more_flows_are_cut_than_a_maximum_flow_allows():
    """One leaf has 5 flows, the others 1: with 4 spines only flows of the full leaf need a cut."""
    a = np.array([0] * 5 + [1, 2, 3])
    b = np.array([1, 2, 3, 4, 5, 2, 3, 4])
    assert check_theorem(a, b, 6, 4) == len(a) + 4 - gcd(1, 4)


@pytest.mark.parametrize("kind", ["equal", "any size"])
@pytest.mark.parametrize("name", FABRICS)
def test_konig_attains_the_optimum_everywhere(name, kind):
    fabric = FABRICS[name]
    rng = np.random.default_rng(5)
    ends = rng.integers(0, fabric.n_nics, (2, 60))
    size = 2**30 if kind == "equal" else rng.integers(2**20, 2**31, 60)
    traffic = Traffic(*ends, size, step=rng.integers(0, 2, 60))
    best = optimum(fabric, traffic)
    plan = plan_konig(fabric, traffic)
    assert fabric.alive(traffic.src[plan.parent], traffic.dst[plan.parent], plan.path).all()
    assert np.allclose(plan.step_congestion_s(), best.per_step_s, rtol=1e-7)
    assert plan.n_pieces <= plan_split(fabric, traffic).n_pieces


@pytest.mark.parametrize("tree", [FatTree(2, 4, 4, 4, 4), FatTree.k_ary(4), FatTree.k_ary(6)], ids=repr)
def test_fat_trees_that_are_not_oversubscribed_need_no_cut_for_full_permutations(tree):
    """Every ToR sends and receives as many flows as it has uplinks: nothing needs to be cut at any tier."""
    hosts = tree.n_nics // tree.n_leaves
    for shift in (hosts, tree.n_nics // 2, tree.n_nics - hosts):
        traffic = Traffic(np.arange(tree.n_nics), (np.arange(tree.n_nics) + shift) % tree.n_nics, 999)
        plan = plan_konig(tree, traffic)
        assert plan.n_pieces == traffic.n_flows
        assert plan.max_congestion_s() == closed_form_optimum(tree, traffic)[0] == 999 / 5e10


def test_steps_are_planned_one_by_one():
    fabric = LeafSpine(4, 4, 4)
    shift = np.repeat([4, 8, 4], 16)
    src = np.tile(np.arange(16), 3)
    traffic = Traffic(src, (src + shift) % 16, 64, step=np.repeat([0, 3, 5], 16))
    plan = plan_konig(fabric, traffic)
    assert plan.n_pieces == 48
    assert plan.step_congestion_s().tolist() == [64 / 5e10, 0, 0, 64 / 5e10, 0, 64 / 5e10]


def test_degree_trades_load_for_pieces():
    fabric = LeafSpine(8, 6, 8)
    traffic = Traffic(np.arange(64), (np.arange(64) + 8) % 64, 6000)
    found = []
    for degree in range(8, 13):
        plan = plan_konig(fabric, traffic, degree=degree)
        found.append(plan.n_pieces - 64)
        assert plan.max_congestion_s() <= degree * 1000 / 5e10 * (1 + 1e-12)
        assert plan.n_pieces - 64 <= 8 * (6 - gcd(degree % 6, 6))
    assert found[0] == 8 * (6 - 2)
    assert found[-1] == 0
    with pytest.raises(ValueError, match="degree must be >= 8, the most flows of one leaf, got 7"):
        plan_konig(fabric, traffic, degree=7)
    with pytest.raises(ValueError, match="degree needs equal sizes"):
        plan_konig(fabric, Traffic([0, 1], [8, 9], [5, 6]), degree=8)


def test_tradeoff_lists_what_no_other_degree_beats():
    tradeoff = konig_tradeoff(48, 32)
    assert tradeoff.degree.tolist() == [48, 64]
    assert tradeoff.extra_pieces.tolist() == [16, 0]
    assert np.allclose(tradeoff.congestion_ratio, [1, 64 / 48])
    for degree in range(1, 40):
        for spines in range(1, 20):
            result = konig_tradeoff(degree, spines)
            assert result.degree[0] == degree
            assert result.degree[-1] == -(-degree // spines) * spines
            assert result.extra_pieces[-1] == 0
            assert (np.diff(result.extra_pieces) < 0).all()
            every = spines - np.gcd(np.arange(degree, result.degree[-1] + 1) % spines, spines)
            for d, extra in zip(range(degree, int(result.degree[-1]) + 1), every, strict=True):
                assert result.extra_pieces[result.degree <= d].min() <= extra


# Count matrices.


def check_matrix(counts, spines):
    plan = konig_matrix(counts, spines)
    inter = counts - np.diag(np.diag(counts))
    total = np.zeros_like(counts)
    np.add.at(total, (plan.src_leaf, plan.dst_leaf), plan.share)
    assert np.array_equal(total, spines * inter)
    up, down = plan.loads()
    degree = max(inter.sum(axis=0).max(), inter.sum(axis=1).max())
    assert plan.degree == degree
    assert max(up.max(), down.max()) == degree
    key = (plan.src_leaf.astype(np.int64) * len(counts) + plan.dst_leaf) * spines + plan.spine
    assert (np.diff(key) > 0).all(), "each share once"
    assert (plan.share > 0).all()
    return plan


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_matrix_is_exact(data):
    leaves, spines = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 9))
    row = st.lists(st.integers(0, 1000), min_size=leaves, max_size=leaves)
    counts = np.array(data.draw(st.lists(row, min_size=leaves, max_size=leaves)))
    if (counts - np.diag(np.diag(counts))).any():
        check_matrix(counts, spines)


def test_matrix_counts_the_pieces_of_the_listed_flows():
    rng = np.random.default_rng(2)
    for spines in (3, 4, 7, 12):
        counts = rng.integers(0, 30, (6, 6))
        np.fill_diagonal(counts, 0)
        plan = check_matrix(counts, spines)
        a, b = (np.repeat(x.ravel(), counts.ravel()) for x in np.indices((6, 6)))
        position = lines.flow_positions(a, b, 6, plan.degree, spines)
        loads, flow = units_per_link(a, b, 6, spines, position, plan.degree)
        assert np.array_equal(plan.loads()[0], loads[0])
        assert plan.n_pieces == len(flow)
        assert plan.n_flows == len(a)


def test_all_to_all_is_a_rotation_per_matching():
    fabric = LeafSpine(64, 32, 32)
    plan = check_matrix(LeafDemand.all_to_all(fabric, 4096).counts, 32)
    assert plan.n_matchings == 63
    assert plan.n_pieces == plan.n_flows == 64 * 63 * 1024


def test_matrix_without_traffic_between_leaves():
    plan = konig_matrix(np.diag([3, 4]), 5)
    assert (plan.n_pieces, plan.n_flows, plan.degree) == (0, 0, 0)
    with pytest.raises(ValueError, match="spines must be >= 1, got 0"):
        konig_matrix(np.ones((2, 2), np.int64), 0)


# Any sizes.


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_deal_keeps_every_share(data):
    leaves, spines = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 9))
    flow = st.tuples(st.integers(0, leaves - 1), st.integers(0, leaves - 1), st.integers(1, 10**9))
    flows = np.array(data.draw(st.lists(flow, min_size=1, max_size=60)))
    a, b, size = flows.T
    out, into = np.bincount(a, size, leaves), np.bincount(b, size, leaves)
    most = max(out.max(), into.max())
    # Leaves may have shares of their own, anything from their own bytes to the heaviest leaf's.
    slack = data.draw(st.floats(0, 1))
    shares = [np.maximum(end, slack * most) / spines for end in (out, into)]
    own, spine, piece = deal(a, b, size, spines, *shares)
    assert np.array_equal(np.bincount(own, piece, len(a)), size)
    assert (piece > 0).all()
    assert len(np.unique(own * spines + spine)) == len(own)
    for end, share in zip((a, b), shares, strict=True):
        loads = np.zeros((leaves, spines))
        np.add.at(loads, (end[own], spine), piece)
        pieces = np.zeros((leaves, spines))
        np.add.at(pieces, (end[own], spine), 1)
        assert (loads <= share[:, None] + 1 + np.log2(spines) * (pieces + 1) / 2).all()
    assert len(own) - len(a) <= (spines - 1) * (2 * leaves + 1)


def test_sizes_that_happen_to_be_equal_and_divisible_are_not_cut():
    rng = np.random.default_rng(0)
    a = np.repeat(np.arange(16), 15)
    b = (a + 1 + np.tile(np.arange(15), 16)) % 16
    shuffle = rng.permutation(len(a))
    share = np.full(16, 3.0 * 10**6)
    own, _, piece = deal(a[shuffle], b[shuffle], np.full(len(a), 10**6), 5, share, share)
    assert len(own) == len(a)
    assert (piece == 10**6).all()
