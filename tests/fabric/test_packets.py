"""Packet simulation against a plain reference, event for event, closed forms, and the fluid simulation."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packet_reference import Reference

from anabranch.fabric import (
    FatTree,
    LeafSpine,
    Plan,
    Topology,
    Traffic,
    concatenate,
    fail_links,
    plan_ecmp,
    plan_greedy,
    plan_konig,
    plan_split,
    plan_spray,
    simulate_fluid,
    simulate_packets,
)
from anabranch.fabric import packets as module

RATE = 50e9
LATENCY = 5e-7
PACKET = 4096 / RATE


def halving_doubling(ranks: int, message: int) -> Traffic:
    src = np.arange(ranks)
    distances = [ranks >> (k + 1) for k in range(ranks.bit_length() - 1)]
    return concatenate(
        *[
            Traffic(src, src ^ distance, message * distance // ranks, step)
            for step, distance in enumerate(distances + distances[::-1])
        ]
    )


def permutation(ranks: int, size: int, seed: int) -> Traffic:
    return Traffic(np.arange(ranks), np.random.default_rng(seed).permutation(ranks), size)


def compare(monkeypatch: pytest.MonkeyPatch, topology: Topology, what: Plan | Traffic, **options) -> None:
    """Every event, arrival, queue and count of the kernel is that of the reference."""
    reference = Reference(topology, what, **options)
    traces = []
    run = module.run_packets

    def traced(fabric, load, rules, waits, _):
        trace = np.zeros((len(reference.trace) + 5, 6), dtype=np.int64)
        answer = run(fabric, load, rules, waits, trace)
        # The kernel counts hops through all paths, the reference from the start of each.
        hop = trace[:, 5]
        trace[:, 5] = np.where(hop >= 0, hop - fabric.path_start[fabric.hop_path[hop]], -1)
        traces.append(trace)
        return answer

    monkeypatch.setattr(module, "run_packets", traced)
    result = simulate_packets(topology, what, **{"seed": 0, **options})
    monkeypatch.setattr(module, "run_packets", run)
    assert result.events == len(reference.trace)
    np.testing.assert_array_equal(traces[0][: result.events], np.array(reference.trace))
    tick = options.get("tick_s", 1e-15)
    np.testing.assert_array_equal(result.per_flow_s, np.array(reference.arrival) * tick)
    np.testing.assert_array_equal(result.max_queue_bytes, [link.longest for link in reference.links])
    np.testing.assert_array_equal(result.sent_bytes, [link.sent_bytes for link in reference.links])
    for name in ("packets", "reordered", "lost"):
        per_flow = np.zeros(result.packets.shape, dtype=np.int64)
        np.add.at(per_flow, [p.flow for p in reference.pieces], [getattr(p, name) for p in reference.pieces])
        measured = result.packets if name == "packets" else getattr(result, f"{name}_packets")
        np.testing.assert_array_equal(measured, per_flow)


SPRAYS = ["round-robin", "random", "reps"]
OPTIONS = {
    "plain": {},
    "limit": {"queue_limit_bytes": 3 * 4096, "timeout_s": 3e-6},
    "window": {"window_bytes": 5 * 4096},
    "marks": {"ecn_threshold_bytes": 4096},
    "small packets": {"packet_bytes": 1000},
    "per rank": {"dependencies": "per_rank"},
    "coarse ticks": {"tick_s": 1e-9},
    "all": {
        "queue_limit_bytes": 5000,
        "window_bytes": 9000,
        "ecn_threshold_bytes": 2000,
        "packet_bytes": 1500,
        "dependencies": "per_rank",
        "timeout_s": 2e-6,
    },
}


@pytest.mark.parametrize("option", OPTIONS)
def test_plans_equal_the_reference_event_for_event(option, monkeypatch):
    topology = LeafSpine(3, 2, 3, up_gbps=[[400, 400], [400, 200], [100, 400]])
    traffic = concatenate(
        permutation(9, 50_000, 3), Traffic([0, 1, 2, 3], [8, 8, 8, 0], [8192, 5000, 123_456, 4096], step=[0, 1, 1, 2])
    )
    for plan in (plan_ecmp(topology, traffic, split=2, seed=1), plan_greedy(topology, traffic)):
        compare(monkeypatch, topology, plan, **OPTIONS[option])


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("spray", SPRAYS)
def test_sprays_equal_the_reference_event_for_event(spray, option, monkeypatch):
    topology = LeafSpine(3, 3, 3, up_gbps=np.array([[400, 400, 400], [400, 200, 400], [400, 400, 100]]))
    traffic = concatenate(permutation(9, 60_000, 5), Traffic([1, 4], [7, 7], [30_000, 4097], step=[1, 1]))
    compare(monkeypatch, topology, traffic, seed=11, spray=spray, **OPTIONS[option])


@pytest.mark.parametrize("spray", [None, *SPRAYS])
@pytest.mark.parametrize("failures", ["known", "oblivious"])
def test_failures_equal_the_reference_event_for_event(spray, failures, monkeypatch):
    topology = LeafSpine(3, 4, 2)
    traffic = permutation(6, 100_000, 2)
    failed = fail_links(topology, np.concatenate([topology.cable(0, 1), topology.cable(2, 3)]))
    what = traffic if spray else plan_ecmp(topology if failures == "oblivious" else failed, traffic, split=4, seed=0)
    compare(monkeypatch, failed, what, seed=4, spray=spray, failures=failures, timeout_s=5e-6)


def test_starts_and_many_rates_equal_the_reference(monkeypatch):
    """More link rates and latencies than there are lanes, so that the heap takes part."""
    generator = np.random.default_rng(0)
    graph = nx.Graph()
    for leaf in range(4):
        for nic in range(4):
            graph.add_edge(f"nic{4 * leaf + nic}", f"leaf{leaf}")
        for spine in range(4):
            graph.add_edge(f"leaf{leaf}", f"spine{spine}")
    for node in graph.nodes:
        graph.nodes[node]["kind"] = node.rstrip("0123456789")
    for _, _, cable in graph.edges(data=True):
        cable["gbps"] = float(generator.integers(50, 400))
        cable["latency_s"] = float(generator.integers(100, 900)) * 1e-9
    topology = Topology.from_networkx(graph)
    assert len(np.unique(topology.latency_s)) > 8
    assert len(np.unique(topology.capacity_bytes_per_s)) > 8
    src, dst = generator.integers(0, 16, (2, 40))
    traffic = Traffic(src, dst, generator.integers(1, 60_000, 40), start_s=generator.integers(0, 5, 40) * 1e-6)
    compare(monkeypatch, topology, plan_split(topology, traffic), seed=0)
    compare(monkeypatch, topology, traffic, seed=0, spray="reps")
    compare(monkeypatch, FatTree.k_ary(4), traffic, seed=0, spray="random")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_cases_equal_the_reference(data):
    leaves, spines, hosts = (data.draw(st.integers(1, 3)) for _ in range(3))
    topology = LeafSpine(leaves, spines, hosts, up_gbps=data.draw(st.sampled_from([100.0, 400.0])))
    n = data.draw(st.integers(1, 8))

    def column(values: st.SearchStrategy) -> np.ndarray:
        return np.array(data.draw(st.lists(values, min_size=n, max_size=n)))

    nic = st.integers(0, topology.n_nics - 1)
    traffic = Traffic(
        column(nic), column(nic), column(st.integers(1, 40_000)), column(st.integers(0, 2)), column(st.integers(0, 1))
    )
    if not traffic.n_flows:
        return
    spray = data.draw(st.sampled_from([None, *SPRAYS]))
    what = plan_ecmp(topology, traffic, split=data.draw(st.integers(1, 3)), seed=0) if spray is None else traffic
    with pytest.MonkeyPatch.context() as monkeypatch:
        compare(
            monkeypatch,
            topology,
            what,
            seed=data.draw(st.integers(0, 2**63 - 1)),
            spray=spray,
            dependencies=data.draw(st.sampled_from(["barrier", "per_rank"])),
            packet_bytes=data.draw(st.sampled_from([1000, 4096])),
            window_bytes=data.draw(st.sampled_from([None, 9000])),
            queue_limit_bytes=data.draw(st.sampled_from([None, 6000])),
            ecn_threshold_bytes=data.draw(st.sampled_from([0, 5000, 250_000])),
            timeout_s=1e-6,
        )


def test_one_flow_takes_its_bytes_and_one_packet_and_latency_a_hop():
    topology = LeafSpine(2, 2, 2)
    result = simulate_packets(topology, plan_split(topology, Traffic([0], [1], 100 * 4096)), seed=0)
    assert result.completion_s == pytest.approx(100 * PACKET + PACKET + 2 * LATENCY, rel=1e-9)
    one_path = plan_ecmp(topology, Traffic([0], [2], 100 * 4096), seed=0)
    result = simulate_packets(topology, one_path, seed=0)
    assert result.completion_s == pytest.approx(100 * PACKET + 3 * PACKET + 4 * LATENCY, rel=1e-9)
    assert result.packets.tolist() == [100]
    assert result.packet_hops == 400
    assert result.max_queue_bytes.max() == 0


def test_incast_queues_what_the_last_link_cannot_send():
    """N senders at line rate into one NIC: all but one packet of every N wait."""
    topology = LeafSpine(1, 1, 5)
    result = simulate_packets(topology, plan_split(topology, Traffic([1, 2, 3, 4], 0, 1000 * 4096)), seed=0)
    assert result.completion_s == pytest.approx(4000 * PACKET + PACKET + 2 * LATENCY, rel=1e-9)
    assert result.max_queue_bytes[topology.n_nics] == pytest.approx(3000 * 4096, abs=4 * 4096)


def test_a_nic_takes_turns():
    """Two equal pieces of one NIC end together, but for a packet or two; a short one does not wait for a long one."""
    topology = LeafSpine(1, 1, 3)
    result = simulate_packets(topology, plan_split(topology, Traffic([0, 0], [1, 2], 500 * 4096)), seed=0)
    assert PACKET * (1 - 1e-6) < abs(np.diff(result.per_flow_s)[0]) < 2 * PACKET * (1 + 1e-6)
    short = simulate_packets(topology, plan_split(topology, Traffic([0, 0], [1, 2], [500 * 4096, 5 * 4096])), seed=0)
    assert short.per_flow_s[1] == pytest.approx(11 * PACKET + 2 * LATENCY, abs=PACKET * 1.001)


@pytest.mark.parametrize("planner", [plan_split, plan_konig])
@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 16, 8), (16, 4, 4)])
def test_split_plans_complete_as_the_fluid_does(planner, shape):
    """Within 3 % and one packet and latency a hop, flows of at least 1,000 packets, packets of a piece in order."""
    topology = LeafSpine(*shape)
    n, size = topology.n_nics, 1200 * 4096
    for traffic in (
        permutation(n, size, 7),
        Traffic(np.arange(n), (np.arange(n) + n // 2) % n, size),
        Traffic(np.arange(n), np.arange(n) ^ (n // 2), size),
    ):
        plan = planner(topology, traffic)
        fluid, packets = simulate_fluid(topology, plan), simulate_packets(topology, plan, seed=0)
        assert packets.completion_s >= fluid.completion_s * (1 - 1e-9)
        assert packets.completion_s <= 1.03 * fluid.completion_s + 4 * (LATENCY + PACKET)
        assert packets.reordered_packets.sum() == 0


def test_steps_of_split_plans_complete_as_the_fluid_does():
    topology = LeafSpine(4, 4, 4)
    traffic = halving_doubling(16, 16 * 1000 * 4096)
    plan = plan_split(topology, traffic)
    for dependencies in ("barrier", "per_rank"):
        fluid = simulate_fluid(topology, plan, dependencies=dependencies)
        packets = simulate_packets(topology, plan, seed=0, dependencies=dependencies)
        assert packets.completion_s <= 1.03 * fluid.completion_s + traffic.n_steps * 4 * (LATENCY + PACKET)
        assert packets.completion_s >= fluid.completion_s * (1 - 1e-9)
        assert packets.reordered_packets.sum() == 0


def test_no_plan_beats_the_congestion_bound():
    topology = LeafSpine(8, 6, 8)
    traffic = permutation(64, 300 * 4096, 7)
    for plan in (
        plan_split(topology, traffic),
        plan_konig(topology, traffic),
        plan_ecmp(topology, traffic, seed=0),
        plan_greedy(topology, traffic),
    ):
        result = simulate_packets(topology, plan, seed=0)
        assert result.completion_s >= plan.bottleneck_s() * (1 - 1e-9)
        np.testing.assert_array_equal(result.sent_bytes, plan.loads_bytes())


@pytest.mark.parametrize("spray", SPRAYS)
def test_spraying_reorders_and_conserves(spray):
    topology = LeafSpine(8, 8, 8)
    traffic = permutation(64, 200 * 4096 + 17, 3)
    result = simulate_packets(topology, traffic, seed=1, spray=spray)
    assert result.packets.tolist() == [201] * traffic.n_flows
    inside = topology.leaf_of(traffic.src) == topology.leaf_of(traffic.dst)
    assert result.packet_hops == 201 * (4 * (~inside).sum() + 2 * inside.sum())
    up = result.sent_bytes[: topology.n_nics]
    np.testing.assert_array_equal(up[traffic.src], traffic.size_bytes)
    assert (result.reordered_packets[inside] == 0).all()
    if spray != "round-robin":
        assert 0 < result.reordered_fraction < 1
    completion = simulate_fluid(topology, plan_spray(topology, traffic)).completion_s
    assert result.completion_s >= completion


def test_round_robin_puts_even_loads_on_the_paths():
    topology = LeafSpine(2, 4, 2)
    result = simulate_packets(topology, Traffic([0, 1], [2, 3], 400 * 4096), seed=5, spray="round-robin")
    np.testing.assert_array_equal(result.sent_bytes[topology.uplink(0, np.arange(4))], 200 * 4096)


def test_reps_avoids_a_slow_path():
    """One path at a tenth of the rate: random spraying waits for it, REPS hears its marks and leaves it."""
    topology = LeafSpine(2, 4, 4, up_gbps=np.array([[400.0, 400, 400, 40]] * 2))
    traffic = Traffic(np.arange(3), np.arange(4, 7), 2000 * 4096)
    spread = simulate_packets(topology, traffic, seed=2, spray="random", ecn_threshold_bytes=20_000)
    reps = simulate_packets(topology, traffic, seed=2, spray="reps", ecn_threshold_bytes=20_000)
    slow = topology.uplink(0, 3)
    assert reps.sent_bytes[slow] < 0.75 * spread.sent_bytes[slow]
    assert reps.completion_s < 0.75 * spread.completion_s


def test_failures_that_sources_do_not_know():
    topology = LeafSpine(2, 4, 2)
    failed = fail_links(topology, topology.cable(0, 2))
    traffic = Traffic([0, 1], [2, 3], 2000 * 4096)
    lost = {}
    for spray in SPRAYS:
        known = simulate_packets(failed, traffic, seed=0, spray=spray)
        assert known.lost_packets.sum() == 0
        assert known.sent_bytes[topology.cable(0, 2)].sum() == 0
        oblivious = simulate_packets(failed, traffic, seed=0, spray=spray, failures="oblivious")
        lost[spray] = oblivious.lost_packets.sum()
        assert oblivious.completion_s > max(known.completion_s, 5e-4)
        # NICs send every packet once, and once more for each loss.
        sent = oblivious.sent_bytes[: topology.n_nics].sum()
        assert sent == (oblivious.packets.sum() + oblivious.lost_packets.sum()) * 4096
    # A quarter of the packets, and of their copies, in turn or at random: 4,000 / 4 x 4 / 3.
    assert lost["round-robin"] == pytest.approx(4000 / 3, rel=0.05)
    assert lost["random"] == pytest.approx(4000 / 3, rel=0.1)
    assert lost["reps"] < 0.2 * lost["random"]


def test_a_piece_on_a_dead_path_moves_after_the_timeout():
    topology = LeafSpine(2, 2, 1)
    failed = fail_links(topology, topology.cable(0, 1))
    plan = Plan(topology, Traffic([0], [1], 50 * 4096), [0], [1], [50 * 4096])
    with pytest.raises(ValueError, match="1 of its pieces"):
        simulate_packets(failed, plan, seed=0)
    result = simulate_packets(failed, plan, seed=0, failures="oblivious", timeout_s=1e-5)
    assert result.lost_packets.tolist() == [50]
    # Copies leave as fast as the packets did, one timeout later, and travel four hops; the last loss is the last to return.
    assert result.completion_s == pytest.approx(1e-5 + 50 * PACKET + 3 * PACKET + 4 * LATENCY, rel=1e-6)


def test_a_window_holds_the_sender_back():
    """One packet a round trip: 4 hops of data, 4 latencies of acknowledgement."""
    topology = LeafSpine(2, 1, 1)
    plan = plan_split(topology, Traffic([0], [1], 20 * 4096))
    result = simulate_packets(topology, plan, seed=0, window_bytes=4096)
    assert result.completion_s == pytest.approx(20 * (4 * PACKET + 8 * LATENCY) - 4 * LATENCY, rel=1e-9)


def test_equal_seeds_give_equal_results():
    topology = LeafSpine(4, 4, 4)
    traffic = permutation(16, 100 * 4096, 0)
    for spray in SPRAYS:
        first, again, other = (simulate_packets(topology, traffic, seed=s, spray=spray) for s in (5, 5, 6))
        np.testing.assert_array_equal(first.per_flow_s, again.per_flow_s)
        np.testing.assert_array_equal(first.sent_bytes, again.sent_bytes)
        assert not np.array_equal(first.per_flow_s, other.per_flow_s)


def test_a_spray_plan_is_its_traffic():
    topology = LeafSpine(4, 4, 4)
    traffic = permutation(16, 100 * 4096, 0)
    plan = plan_spray(topology, traffic)
    a, b = (simulate_packets(topology, what, seed=1, spray="random") for what in (plan, traffic))
    np.testing.assert_array_equal(a.per_flow_s, b.per_flow_s)


def test_no_flows():
    topology = LeafSpine(2, 2, 2)
    result = simulate_packets(topology, Traffic([0], [0], 5), seed=0, spray="random")
    assert result.completion_s == 0
    assert result.packet_hops == result.events == 0
    assert result.reordered_fraction == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"spray": "ecmp"}, ValueError, "spray must be one of 'round-robin', 'random', 'reps', got 'ecmp'"),
        ({"spray": None}, ValueError, "spray must be one of .* for flows without paths, got None"),
        ({"packet_bytes": 0}, ValueError, "packet_bytes must be >= 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be >= 0 and < 2\\^63, got -1"),
        ({"queue_limit_bytes": -1}, ValueError, "queue_limit_bytes must be >= 0, got -1"),
        ({"window_bytes": 100}, ValueError, "window_bytes must be >= 4096, got 100"),
        ({"failures": "maybe"}, ValueError, "failures must be one of 'known', 'oblivious', got 'maybe'"),
        ({"dependencies": "x"}, ValueError, "dependencies must be one of 'barrier', 'per_rank', got 'x'"),
        ({"timeout_s": 0.0}, ValueError, "timeout_s must be finite and > 0 s, got 0"),
        ({"tick_s": 1e-25}, ValueError, "tick_s must be larger"),
    ],
)
def test_bad_input_is_named(options, error, message):
    topology = LeafSpine(2, 2, 2)
    with pytest.raises(error, match=message):
        simulate_packets(topology, Traffic([0], [2], 5), **{"seed": 0, "spray": "random", **options})


def test_a_plan_is_not_sprayed():
    topology = LeafSpine(2, 2, 2)
    plan = plan_split(topology, Traffic([0], [2], 5))
    with pytest.raises(ValueError, match="spray must be None for a Plan"):
        simulate_packets(topology, plan, seed=0, spray="reps")
    down = fail_links(topology, np.concatenate([topology.cable(0, 0), topology.cable(1, 1)]))
    with pytest.raises(ValueError, match="no path left for the NIC pairs 0 -> 2"):
        simulate_packets(down, Traffic([0], [2], 5), seed=0, spray="reps")
