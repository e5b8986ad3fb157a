"""ns-3 topology and flow files: round trips, the published examples, what they cannot say."""

import numpy as np
import pytest
from fabrics_for_tests import FABRICS

from anabranch.fabric import LeafSpine, Traffic, concatenate, fail_links, plan_ecmp, plan_split, simulate_fluid
from anabranch.fabric.ns3 import read_ns3_flows, read_ns3_topology, write_ns3_flows, write_ns3_topology

WRITABLE = ["leaf-spine", "fat tree", "slow core", "graph"]


@pytest.mark.parametrize("name", WRITABLE)
def test_topologies_come_back(name, tmp_path):
    topology = FABRICS[name]
    path = tmp_path / "topology.txt"
    write_ns3_topology(topology, path)
    again = read_ns3_topology(path)
    assert (again.n_nics, again.n_leaves, again.n_links) == (topology.n_nics, topology.n_leaves, topology.n_links)
    np.testing.assert_array_equal(again.leaf_of(np.arange(again.n_nics)), topology.leaf_of(np.arange(topology.n_nics)))
    src, dst = np.divmod(np.arange(topology.n_nics**2), topology.n_nics)
    np.testing.assert_array_equal(again.n_paths(src, dst), topology.n_paths(src, dst))
    # The links of all paths between two NICs, as (rate, delay), are the same, whatever their numbers.
    for a, b in ((0, 1), (0, topology.n_nics - 1), (topology.n_nics - 2, 3)):
        paths = []
        for fabric in (topology, again):
            links = [fabric.path(a, b, k) for k in range(int(fabric.n_paths(a, b)[0]))]
            paths.append(
                sorted([(round(fabric.capacity_bytes_per_s[x]), float(fabric.latency_s[x])) for x in p] for p in links)
            )
        assert [len(p) for p in paths[0]] == [len(p) for p in paths[1]]
        np.testing.assert_allclose(np.concatenate(paths[0]), np.concatenate(paths[1]), rtol=1e-14)
    write_ns3_topology(again, tmp_path / "again.txt")
    assert sorted((tmp_path / "again.txt").read_text().splitlines()[2:]) == sorted(path.read_text().splitlines()[2:])


def test_a_written_topology_simulates_alike(tmp_path):
    topology = LeafSpine(4, 4, 4)
    write_ns3_topology(topology, tmp_path / "t.txt")
    again = read_ns3_topology(tmp_path / "t.txt")
    traffic = Traffic(np.arange(16), (np.arange(16) + 5) % 16, 10**6)
    times = [simulate_fluid(t, plan_split(t, traffic)).per_flow_s for t in (topology, again)]
    np.testing.assert_allclose(times[0], times[1], rtol=1e-12)


def test_the_published_form(tmp_path):
    path = tmp_path / "t.txt"
    write_ns3_topology(LeafSpine(1, 1, 2), path)
    assert path.read_text().splitlines()[:3] == ["4 2 3", "2 3", "0 2 400Gbps 0.0005ms 0"]
    lines = "9 1 8\n8\n" + "".join(f"8 {i} 400Gbps 0.0005ms 0\n" for i in range(8))
    path.write_text(lines)
    topology = read_ns3_topology(path)
    assert topology.n_nics == 8
    assert topology.n_leaves == 1
    np.testing.assert_allclose(topology.capacity_bytes_per_s[:16], 50e9)
    np.testing.assert_allclose(topology.latency_s[:16], 5e-7)


def test_broken_cables_are_left_out(tmp_path):
    topology = LeafSpine(2, 3, 2)
    write_ns3_topology(fail_links(topology, topology.cable(0, 1)), tmp_path / "t.txt")
    assert read_ns3_topology(tmp_path / "t.txt").n_links == topology.n_links - 2
    with pytest.raises(ValueError, match=r"both directions of a cable, got .* on leaf0->spine1"):
        write_ns3_topology(fail_links(topology, [topology.uplink(0, 1)]), tmp_path / "t.txt")
    with pytest.raises(ValueError, match="same rate, delay and state"):
        write_ns3_topology(FABRICS["uneven rates"], tmp_path / "t.txt")


def test_flows_come_back(tmp_path):
    topology = LeafSpine(4, 3, 4)
    generator = np.random.default_rng(0)
    src, dst = generator.integers(0, 16, (2, 50))
    traffic = Traffic(src, dst, generator.integers(1, 10**7, 50), start_s=generator.random(50) * 1e-3)
    path = tmp_path / "flow.txt"
    write_ns3_flows(traffic, path)
    again, port = read_ns3_flows(path)
    order = np.argsort(traffic.start_s, kind="stable")
    for name in ("src", "dst", "size_bytes", "start_s"):
        np.testing.assert_array_equal(getattr(again, name), getattr(traffic, name)[order])
    assert (port == 10_000).all()
    plan = plan_ecmp(topology, traffic, split=3, seed=1)
    write_ns3_flows(plan, path, first_port=20_000)
    again, port = read_ns3_flows(path)
    order = np.argsort(traffic.start_s[plan.parent], kind="stable")
    np.testing.assert_array_equal(port - 20_000, plan.path[order])
    np.testing.assert_array_equal(again.size_bytes, plan.size_bytes[order])
    assert again.total_bytes == traffic.total_bytes


def test_steps_need_starts(tmp_path):
    topology = LeafSpine(2, 2, 2)
    traffic = concatenate(Traffic([0], [2], 500), Traffic([2], [0], 500), one_after_the_other=True)
    path = tmp_path / "flow.txt"
    with pytest.raises(ValueError, match="start_s must be given for traffic of 2 steps"):
        write_ns3_flows(traffic, path)
    ends = simulate_fluid(topology, plan_split(topology, traffic)).step_s
    write_ns3_flows(traffic, path, start_s=np.concatenate([[0.0], ends])[traffic.step])
    assert read_ns3_flows(path)[0].start_s.tolist() == [0.0, ends[0]]
    with pytest.raises(ValueError, match="one entry for each of the 2 flows"):
        write_ns3_flows(traffic, path, start_s=[0.0])
    with pytest.raises(ValueError, match="start_s must be finite and >= 0 s"):
        write_ns3_flows(traffic, path, start_s=[0.0, -1.0])
    with pytest.raises(ValueError, match="first_port"):
        write_ns3_flows(traffic, path, start_s=[0.0, 1.0], first_port=70_000)


def test_the_published_flow_file_is_read(tmp_path):
    path = tmp_path / "flow.txt"
    path.write_text(
        "2\n2 1 3 100 200000000 2\n3 1 3 100 5000000 2\n\nFirst line: # of flows\nsrc0 dst0 3 dst_port0 size0\n"
    )
    traffic, port = read_ns3_flows(path)
    assert traffic.size_bytes.tolist() == [200_000_000, 5_000_000]
    assert traffic.start_s.tolist() == [2.0, 2.0]
    assert port.tolist() == [100, 100]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, field 1: expected a whole number >= 0, got None"),
        ("3 1\n", "line 1, field 3"),
        ("3 1 2\n2 x\n", "line 2, field 2"),
        ("3 2 2\n2\n", "line 2: expected 2 switches, got 1"),
        ("3 1 2\n2\n0 2 400 0.1ms 0\n", "line 3: expected a number of bps, .*, got '400'"),
        ("3 1 2\n2\n0 2 400Gbps 0.1h 0\n", "line 3: expected a number of s, ms, us, ns, got '0.1h'"),
        ("3 1 2\n2\n0 2 400Gbps\n", "line 3: expected a b rate delay error"),
        ("3 1 2\n2\n0 2 400Gbps 1us 0\n", "expected 2 cables, got 1"),
    ],
)
def test_bad_topologies_are_named(text, message, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_ns3_topology(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\n", "line 1, field 1"),
        ("2\n0 1 3 100 5 0\n", "expected 2 flows, got 1"),
        ("1\n0 1 3 100 5\n", "line 2: expected src dst group port bytes start"),
        ("1\n0 1 3 100 5 soon\n", "line 2: expected a number"),
    ],
)
def test_bad_flows_are_named(text, message, tmp_path):
    path = tmp_path / "f.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_ns3_flows(path)
