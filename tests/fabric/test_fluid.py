"""Fluid simulation against closed forms, a plain event loop, and itself without the merging of equal pieces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.fabric import (
    FatTree,
    LeafSpine,
    Plan,
    SprayPlan,
    Topology,
    Traffic,
    concatenate,
    fail_links,
    max_min_rates,
    plan_ecmp,
    plan_greedy,
    plan_konig,
    plan_split,
    plan_spray,
    simulate_fluid,
)

RATE = 50e9  # 400 Gb/s
LATENCY = 5e-7


def planners(topology: Topology, traffic: Traffic) -> dict[str, Plan | SprayPlan]:
    plans: dict[str, Plan | SprayPlan] = {
        "ecmp": plan_ecmp(topology, traffic, seed=3),
        "ecmp-4": plan_ecmp(topology, traffic, split=4, seed=3),
        "greedy": plan_greedy(topology, traffic),
        "split": plan_split(topology, traffic),
        "spray": plan_spray(topology, traffic),
    }
    if isinstance(topology, LeafSpine):
        plans["konig"] = plan_konig(topology, traffic)
    return plans


def touches(topology: Topology, plan: Plan | SprayPlan) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray, list]:
    """Links and weights of every piece, its flow, and its latency: straight from the definitions."""
    links, weights, latency = [], [], []
    traffic = plan.traffic
    if isinstance(plan, Plan):
        for flow, path in zip(plan.parent, plan.path, strict=True):
            own = topology.path(int(traffic.src[flow]), int(traffic.dst[flow]), int(path))
            links.append(own)
            weights.append(np.ones(len(own)))
            latency.append(topology.latency_s[own].sum())
        return links, weights, plan.parent, latency
    for flow in range(traffic.n_flows):
        src, dst = int(traffic.src[flow]), int(traffic.dst[flow])
        paths = [topology.path(src, dst, k) for k in range(int(topology.n_paths(src, dst)[0]))]
        paths = [p for p in paths if not topology.is_failed[p].any()]
        links.append(np.concatenate(paths))
        weights.append(np.full(len(links[-1]), 1 / len(paths)))
        latency.append(max(topology.latency_s[p].sum() for p in paths))
    return links, weights, np.arange(traffic.n_flows), latency


def plain(topology: Topology, plan: Plan | SprayPlan, dependencies: str) -> np.ndarray:
    """Arrival of each flow by a plain event loop that finds all rates anew at each event."""
    traffic = plan.traffic
    links, weights, owner, latency = touches(topology, plan)
    size = plan.size_bytes if isinstance(plan, Plan) else traffic.size_bytes
    left = size.astype(float)
    start = np.zeros(traffic.n_flows) if traffic.start_s is None else traffic.start_s
    arrival = np.full(traffic.n_flows, np.inf)
    before = []
    for f in range(traffic.n_flows):
        earlier = traffic.step < traffic.step[f]
        if dependencies == "per_rank":
            mine = (traffic.src == traffic.src[f]) | (traffic.dst == traffic.src[f])
            earlier &= mine & (traffic.group == traffic.group[f])
        before.append(np.flatnonzero(earlier))
    ended = np.zeros(len(left), dtype=bool)
    last_byte = np.zeros(len(left))
    now = 0.0
    while not ended.all():
        ready = np.array([max(start[f], arrival[before[f]].max(initial=0)) for f in range(traffic.n_flows)])
        running = np.flatnonzero((ready <= now * (1 + 1e-12))[owner] & ~ended)
        coming = ready[ready > now * (1 + 1e-12)].min(initial=np.inf)
        if not len(running):
            now = coming
            continue
        indptr = np.concatenate([[0], np.cumsum([len(links[p]) for p in running])])
        rate = max_min_rates(
            topology.capacity_bytes_per_s,
            indptr,
            np.concatenate([links[p] for p in running]),
            np.concatenate([weights[p] for p in running]),
        )
        step = (left[running] / rate).min()
        now, step = (now + step, step) if now + step <= coming else (coming, coming - now)
        left[running] -= rate * step
        for p, r in zip(running, rate, strict=True):
            if left[p] / r <= 1e-12 * now:
                ended[p] = True
                last_byte[p] = now + latency[p]
                if ended[owner == owner[p]].all():
                    arrival[owner[p]] = last_byte[owner == owner[p]].max()
    return arrival


def ring(ranks: int, message: int) -> Traffic:
    """Ring all-reduce: 2 (N - 1) steps of message / N to the next rank."""
    src = np.arange(ranks)
    return concatenate(*[Traffic(src, (src + 1) % ranks, message // ranks, step) for step in range(2 * (ranks - 1))])


def halving_doubling(ranks: int, message: int) -> Traffic:
    steps, src = [], np.arange(ranks)
    distances = [ranks >> (k + 1) for k in range(ranks.bit_length() - 1)]
    for step, distance in enumerate(distances + distances[::-1]):
        steps.append(Traffic(src, src ^ distance, message * distance // ranks, step))
    return concatenate(*steps)


def all_to_all(ranks: int, size: int) -> Traffic:
    src, dst = np.divmod(np.arange(ranks * ranks), ranks)
    return Traffic(src, dst, size)


def permutation(ranks: int, size: int, seed: int) -> Traffic:
    return Traffic(np.arange(ranks), np.random.default_rng(seed).permutation(ranks), size)


PATTERNS = {
    "ring": lambda n: ring(n, n * 1000),
    "halving-doubling": lambda n: halving_doubling(n, n * 1000),
    "all-to-all": lambda n: all_to_all(n, 5000),
    "permutation": lambda n: permutation(n, 100_000, 1),
    "incast": lambda n: Traffic(np.arange(1, n), 0, 4096),
    "shift": lambda n: Traffic(np.arange(n), (np.arange(n) + n // 2) % n, 77_777),
    "sizes": lambda n: Traffic(np.arange(n), np.arange(n)[::-1], 1000 + 137 * np.arange(n) % 977),
    "starts": lambda n: Traffic(np.arange(n), (np.arange(n) + 5) % n, 90_000, start_s=1e-6 * (np.arange(n) % 3)),
}


def test_one_flow():
    topology = LeafSpine(2, 2, 2)
    result = simulate_fluid(topology, plan_split(topology, Traffic([0], [1], 10**6)))
    assert result.completion_s == pytest.approx(10**6 / RATE + 2 * LATENCY, rel=1e-12)
    result = simulate_fluid(topology, plan_ecmp(topology, Traffic([0], [2], 10**6), seed=0))
    assert result.completion_s == pytest.approx(10**6 / RATE + 4 * LATENCY, rel=1e-12)
    assert result.per_flow_s.tolist() == [result.completion_s]


@pytest.mark.parametrize("senders", [2, 3, 7])
def test_incast_takes_as_long_as_all_bytes_take_on_the_last_link(senders):
    topology = LeafSpine(4, 4, 4)
    traffic = Traffic(np.arange(4, 4 + senders), 0, 10**6)
    for plan in planners(topology, traffic).values():
        result = simulate_fluid(topology, plan)
        assert result.completion_s == pytest.approx(senders * 10**6 / RATE + 4 * LATENCY, rel=1e-12)
        assert result.link_utilization[topology.n_nics] == pytest.approx(
            senders * 10**6 / RATE / result.completion_s, rel=1e-12
        )


@pytest.mark.parametrize("dependencies", ["barrier", "per_rank"])
def test_ring_all_reduce(dependencies):
    """2 (N - 1) / N of the message at the NIC's rate, and the latency of the longest hop in every step."""
    ranks, message = 16, 16 * 4096
    topology = LeafSpine(4, 4, 4)
    traffic = ring(ranks, message)
    for name, plan in planners(topology, traffic).items():
        completion = simulate_fluid(topology, plan, dependencies=dependencies).completion_s
        steps = 2 * (ranks - 1)
        # A byte to the next leaf travels 4 links; with a barrier every step has such a flow. Rank by rank, the step of a
        # rank waits for its neighbors only, but the slowest chain of 30 steps still meets a leaf's border in most of them.
        most = steps * (message / ranks / RATE + 4 * LATENCY)
        if dependencies == "barrier":
            assert completion == pytest.approx(most, rel=1e-12), name
        else:
            assert steps * (message / ranks / RATE + 2 * LATENCY) < completion <= most * (1 + 1e-12), name


def test_unequal_sizes_on_one_link():
    """Processor sharing: with sizes 1, 2, 3 on one link, ends at 3/C, 5/C, 6/C."""
    topology = LeafSpine(1, 1, 4, latency_s=0.0)
    plan = plan_split(topology, Traffic([0, 1, 2], [3, 3, 3], np.array([1, 2, 3]) * 10**6))
    result = simulate_fluid(topology, plan)
    np.testing.assert_allclose(result.per_flow_s, np.array([3, 5, 6]) * 1e6 / RATE, rtol=1e-12)
    assert result.events == 4


def test_a_later_start_shares_what_is_left():
    # The second flow starts when half of the first is through; both then have half the link.
    topology = LeafSpine(1, 1, 3, latency_s=0.0)
    half = 10**6 / RATE / 2
    traffic = Traffic([0, 1], [2, 2], 10**6, start_s=np.array([0.0, half]))
    result = simulate_fluid(topology, plan_split(topology, traffic))
    np.testing.assert_allclose(result.per_flow_s, [3 * half, 4 * half], rtol=1e-12)


def test_spray_over_unequal_paths_is_held_by_the_slowest():
    # One flow, two spines, one of them at a tenth: half of the rate must fit the slow path.
    topology = LeafSpine(2, 2, 1, up_gbps=np.array([[400, 40], [400, 40]]), latency_s=0.0)
    result = simulate_fluid(topology, plan_spray(topology, Traffic([0], [1], 10**6)))
    assert result.completion_s == pytest.approx(10**6 / (2 * RATE / 10), rel=1e-12)


def test_no_flows():
    topology = LeafSpine(2, 2, 2)
    traffic = Traffic([1], [1], 5)
    for dependencies in ("barrier", "per_rank"):
        result = simulate_fluid(topology, plan_split(topology, traffic), dependencies=dependencies)
        assert result.completion_s == 0
        assert result.events == 0
        assert result.per_flow_s.shape == (0,)
        assert result.link_utilization.tolist() == [0] * topology.n_links


@pytest.mark.parametrize("dependencies", ["barrier", "per_rank"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_merged_equals_unmerged_and_plain(pattern, dependencies):
    topology = LeafSpine(4, 3, 4, up_gbps=300.0)
    traffic = PATTERNS[pattern](16)
    for name, plan in planners(topology, traffic).items():
        merged = simulate_fluid(topology, plan, dependencies=dependencies)
        unmerged = simulate_fluid(topology, plan, dependencies=dependencies, symmetry=False)
        np.testing.assert_allclose(merged.per_flow_s, unmerged.per_flow_s, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(merged.link_utilization, unmerged.link_utilization, rtol=1e-9, err_msg=name)
        assert merged.classes <= unmerged.classes
        if pattern not in ("ring", "all-to-all") or name == "greedy":
            expected = plain(topology, plan, dependencies)
            np.testing.assert_allclose(merged.per_flow_s, expected, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("dependencies", ["barrier", "per_rank"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_merged_equals_unmerged_with_many_nics(pattern, dependencies):
    ranks = 64 if pattern in ("ring", "all-to-all") else 512
    topology = LeafSpine(ranks // 16, 12, 16)
    traffic = PATTERNS[pattern](ranks)
    for name, plan in planners(topology, traffic).items():
        merged = simulate_fluid(topology, plan, dependencies=dependencies)
        unmerged = simulate_fluid(topology, plan, dependencies=dependencies, symmetry=False)
        np.testing.assert_allclose(merged.per_flow_s, unmerged.per_flow_s, rtol=1e-9, err_msg=name)


def test_merged_equals_unmerged_on_a_fat_tree():
    topology = FatTree.k_ary(4)
    for pattern in ("permutation", "halving-doubling", "all-to-all"):
        for name, plan in planners(topology, PATTERNS[pattern](topology.n_nics)).items():
            merged = simulate_fluid(topology, plan)
            unmerged = simulate_fluid(topology, plan, symmetry=False)
            np.testing.assert_allclose(merged.per_flow_s, unmerged.per_flow_s, rtol=1e-9, err_msg=name)
            np.testing.assert_allclose(merged.per_flow_s, plain(topology, plan, "barrier"), rtol=1e-9, err_msg=name)


def test_symmetric_traffic_is_one_class():
    topology = LeafSpine(16, 16, 16)
    for traffic in (all_to_all(256, 4096), Traffic(np.arange(256), np.arange(256) ^ 128, 10**6)):
        assert simulate_fluid(topology, plan_konig(topology, traffic)).classes <= 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_traffic_equals_plain(data):
    leaves, spines, hosts = (data.draw(st.integers(low, 4)) for low in (1, 1, 2))
    rates = st.sampled_from([50.0, 100.0, 400.0])
    topology = LeafSpine(
        leaves,
        spines,
        hosts,
        nic_gbps=data.draw(rates),
        up_gbps=np.array(data.draw(st.lists(rates, min_size=leaves * spines, max_size=leaves * spines))).reshape(
            leaves, spines
        ),
        latency_s=data.draw(st.sampled_from([0.0, LATENCY])),
    )
    n = data.draw(st.integers(1, 14))

    def column(values: st.SearchStrategy) -> np.ndarray:
        return np.array(data.draw(st.lists(values, min_size=n, max_size=n)))

    nic = st.integers(0, topology.n_nics - 1)
    traffic = Traffic(
        column(nic),
        column(nic),
        column(st.sampled_from([1, 1000, 10**6, 10**6 + 1])),
        column(st.integers(0, 2)),
        column(st.integers(0, 1)),
        column(st.sampled_from([0.0, 1e-6, 1e-5])) if data.draw(st.booleans()) else None,
    )
    plan = data.draw(st.sampled_from(list(planners(topology, traffic).values())[:5:2]))
    for dependencies in ("barrier", "per_rank"):
        expected = plain(topology, plan, dependencies)
        for symmetry in (True, False):
            result = simulate_fluid(topology, plan, dependencies=dependencies, symmetry=symmetry)
            np.testing.assert_allclose(result.per_flow_s, expected, rtol=1e-9)
            assert result.completion_s == result.per_flow_s.max(initial=0)


def test_bytes_are_conserved():
    """Utilization times capacity times completion is the plan's load, link by link, also where steps repeat."""
    topology = LeafSpine(4, 3, 4)
    for traffic in (halving_doubling(16, 2**20), ring(16, 16 * 999), all_to_all(16, 12345)):
        for plan in planners(topology, traffic).values():
            for dependencies in ("barrier", "per_rank"):
                result = simulate_fluid(topology, plan, dependencies=dependencies)
                carried = result.link_utilization * topology.capacity_bytes_per_s * result.completion_s
                np.testing.assert_allclose(carried, plan.loads_bytes(), rtol=1e-9)
                assert result.link_utilization.max() <= 1 + 1e-9


def test_no_plan_beats_the_congestion_bound():
    topology = LeafSpine(8, 5, 8)
    for pattern in PATTERNS.values():
        for plan in planners(topology, pattern(64 if pattern is not PATTERNS["ring"] else 16)).values():
            assert simulate_fluid(topology, plan).completion_s >= plan.bottleneck_s() * (1 - 1e-12)


def test_steps_end_in_order_with_barriers():
    topology = LeafSpine(4, 4, 4)
    result = simulate_fluid(topology, plan_ecmp(topology, halving_doubling(16, 2**22), seed=1))
    assert (np.diff(result.step_s) > 0).all()
    assert result.step_s[-1] == result.completion_s


def test_per_rank_is_never_slower_under_exact_splitting():
    topology = LeafSpine(4, 4, 4)
    for traffic in (halving_doubling(16, 2**22), ring(16, 2**20)):
        plan = plan_split(topology, traffic)
        with_barrier = simulate_fluid(topology, plan).completion_s
        assert simulate_fluid(topology, plan, dependencies="per_rank").completion_s <= with_barrier * (1 + 1e-12)


def test_failed_links():
    topology = LeafSpine(2, 2, 2)
    traffic = Traffic([0], [2], 10**6)
    plan = Plan(topology, traffic, [0, 0], [0, 1], [500_000, 500_000])
    failed = fail_links(topology, topology.cable(0, 1))
    with pytest.raises(ValueError, match="1 of its pieces"):
        simulate_fluid(failed, plan)
    sprayed = simulate_fluid(failed, plan_spray(topology, traffic))
    assert sprayed.link_utilization[topology.uplink(0, 1)] == 0
    with pytest.raises(ValueError, match="no path left for the NIC pairs 0 -> 2"):
        simulate_fluid(fail_links(failed, topology.cable(1, 0)), plan)


def test_progress_is_reported_and_can_cancel():
    topology = LeafSpine(4, 4, 4)
    plan = plan_split(topology, halving_doubling(16, 2**20))
    seen = []
    simulate_fluid(topology, plan, progress=lambda done, total, metrics: seen.append((done, total)))
    assert seen == [(i + 1, 8) for i in range(8)]

    class Stop(Exception):
        pass

    def stop(done: int, total: int, metrics: dict[str, float]) -> None:
        raise Stop

    with pytest.raises(Stop):
        simulate_fluid(topology, plan, progress=stop)


def test_bad_input_is_named():
    topology = LeafSpine(2, 2, 2)
    plan = plan_split(topology, Traffic([0], [1], 5))
    with pytest.raises(ValueError, match="dependencies must be one of 'barrier', 'per_rank', got 'none'"):
        simulate_fluid(topology, plan, dependencies="none")
    with pytest.raises(ValueError, match=r"traffic\.dst"):
        simulate_fluid(LeafSpine(1, 1, 1), plan)
