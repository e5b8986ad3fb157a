"""The paper's rule, and its groups."""

from math import gcd

import numpy as np
import pytest
from fabrics_for_tests import FABRICS

from anabranch.fabric import (
    LeafSpine,
    Traffic,
    closed_form_optimum,
    fail_links,
    optimum,
    plan_split,
)
from anabranch.fabric.splitting import _cut_equal


@pytest.mark.parametrize("s", range(1, 65))
def test_rule_is_exact_for_every_number_of_flows(s):
    counts = np.arange(1, 201)
    group = np.repeat(np.arange(200), counts)
    size = np.full(len(group), s, dtype=np.int64)  # flows of s bytes: every uplink must carry n bytes
    flow, path, piece = _cut_equal(group, size, np.full(200, s), np.arange(200))
    loads = np.zeros((200, s), dtype=np.int64)
    np.add.at(loads, (group[flow], path), piece)
    assert (loads == counts[:, None]).all()
    assert np.array_equal(np.bincount(flow, piece), size)
    q, r = np.divmod(counts, s)
    expected = q * s + np.where(r > 0, r * s // np.gcd(r, s), 0)
    assert np.array_equal(np.bincount(group[flow], minlength=200), expected)
    for n in (1, s, 200):  # pieces of a left-over flow are equal
        cut = group[flow] == n - 1
        assert set(piece[cut].tolist()) <= {s, gcd(n % s, s)}


@pytest.mark.parametrize("kind", ["equal", "any size"])
@pytest.mark.parametrize("name", FABRICS)
def test_pairs_attain_the_optimum_everywhere(name, kind):
    fabric = FABRICS[name]
    rng = np.random.default_rng(3)
    ends = rng.integers(0, fabric.n_nics, (2, 40))
    size = 2**30 if kind == "equal" else rng.integers(2**28, 2**31, 40)
    traffic = Traffic(*ends, size, step=rng.integers(0, 2, 40))
    best = optimum(fabric, traffic)
    plan = plan_split(fabric, traffic)
    assert fabric.alive(traffic.src[plan.parent], traffic.dst[plan.parent], plan.path).all()
    # What is left of a piece of 2^28 bytes by rounding to a byte is far below 1e-7.
    assert np.allclose(plan.step_congestion_s(), best.per_step_s, rtol=1e-7)
    assert (plan.step_congestion_s() >= best.per_step_s * (1 - 1e-9)).all()


def test_whole_shares_are_exact_to_the_byte():
    fabric = LeafSpine(3, 4, 5)
    traffic = Traffic(*np.random.default_rng(0).integers(0, 15, (2, 60)), 12)
    plan = plan_split(fabric, traffic)
    assert plan.max_congestion_s() == closed_form_optimum(fabric, traffic)[0]
    a, b = fabric.leaf_of(traffic.src), fabric.leaf_of(traffic.dst)
    for leaf in range(3):
        assert np.array_equal(
            plan.loads_bytes()[fabric.uplink(leaf, np.arange(4))], np.full(4, 3 * (a != b)[a == leaf].sum())
        )
        assert np.array_equal(
            plan.loads_bytes()[fabric.downlink(leaf, np.arange(4))], np.full(4, 3 * (a != b)[b == leaf].sum())
        )


def test_bytes_that_do_not_divide_differ_by_at_most_one_a_piece():
    fabric = LeafSpine(2, 7, 8)
    traffic = Traffic(np.arange(8), 8 + np.arange(8), 1001)
    plan = plan_split(fabric, traffic)
    loads = plan.loads_bytes()[fabric.uplink(0, np.arange(7))]
    pieces = np.bincount(plan.path, minlength=7)
    assert (abs(loads - 8 * 1001 / 7) <= pieces).all()


def test_fewer_bytes_than_paths():
    plan = plan_split(LeafSpine(2, 8, 1), Traffic([0], [1], 3))
    assert plan.n_pieces == 3
    assert plan.loads_bytes().max() == 3
    assert plan.max_congestion_s() == 1 / 5e10


def test_different_sizes_need_at_most_flows_plus_paths_minus_one_pieces():
    fabric = LeafSpine(2, 6, 50)
    traffic = Traffic(np.arange(50), 50 + np.arange(50), np.random.default_rng(1).integers(10**6, 10**8, 50))
    plan = plan_split(fabric, traffic)
    assert plan.n_pieces <= 50 + 6 - 1
    assert np.isclose(plan.max_congestion_s(), closed_form_optimum(fabric, traffic)[0], rtol=1e-6)


def test_source_balances_the_uplinks_but_not_the_downlinks():
    fabric = LeafSpine(8, 8, 8)
    traffic = Traffic(np.arange(64), np.random.default_rng(0).permutation(64), 8000)
    best = closed_form_optimum(fabric, traffic)[0]
    source, pair = plan_split(fabric, traffic, group="source"), plan_split(fabric, traffic)
    leaf, spine = (x.ravel() for x in np.indices((8, 8)))
    a, b = fabric.leaf_of(traffic.src), fabric.leaf_of(traffic.dst)
    out = np.bincount(a[a != b], minlength=8) * 1000
    assert np.array_equal(source.loads_bytes()[fabric.uplink(leaf, spine)], np.repeat(out, 8))
    assert source.max_congestion_s() > 1.2 * best
    assert np.isclose(pair.max_congestion_s(), best, rtol=1e-12)


def test_source_with_failures_uses_living_uplinks_by_their_rate():
    fabric = LeafSpine(3, 3, 4, up_gbps=[[100, 200, 400], [100, 100, 100], [100, 100, 100]])
    broken = fail_links(fabric, [fabric.uplink(0, 1)])
    traffic = Traffic([0, 1, 2, 3], [4, 5, 6, 7], 10**6)
    loads = plan_split(broken, traffic, group="source").loads_bytes()[fabric.uplink(0, np.arange(3))]
    assert loads.tolist() == [800_000, 0, 3_200_000]


def test_bad_groups_are_refused():
    traffic = Traffic([0], [1], 5)
    with pytest.raises(ValueError, match="group must be one of 'pair', 'source', got 'leaf'"):
        plan_split(LeafSpine(2, 2, 1), traffic, group="leaf")
    with pytest.raises(ValueError, match='group="source" needs a LeafSpine or a FatTree without failed links'):
        plan_split(FABRICS["graph"], traffic, group="source")
