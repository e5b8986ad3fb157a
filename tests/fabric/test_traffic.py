"""Traffic: validation, files, placements, counts per pair of leaves."""

import numpy as np
import pytest

from anabranch.fabric import LeafDemand, LeafSpine, Traffic, concatenate, read_placement, read_traffic


def test_columns_broadcast_and_self_flows_are_counted():
    traffic = Traffic([0, 1, 2], [1, 1, 0], 10, step=[0, 0, 3])
    assert (traffic.n_flows, traffic.n_self_flows, traffic.total_bytes, traffic.n_steps) == (2, 1, 20, 4)
    assert traffic.src.tolist() == [0, 2]
    assert traffic.step.tolist() == [0, 3]
    assert traffic.group.tolist() == [0, 0]
    assert [(step, flows.tolist()) for step, flows in traffic.flows_by_step()] == [(0, [0]), (3, [1])]
    assert [a.dtype for a in (traffic.src, traffic.dst, traffic.size_bytes)] == [np.int32, np.int32, np.int64]


def test_flows_by_step_keeps_the_order_inside_a_step():
    traffic = Traffic(np.arange(6), np.arange(6) + 1, 1, step=[1, 0, 1, 0, 1, 0])
    assert [flows.tolist() for _, flows in traffic.flows_by_step()] == [[1, 3, 5], [0, 2, 4]]


def test_select():
    traffic = Traffic([0, 1, 2], [3, 3, 3], [5, 6, 7], step=[0, 1, 2], start_s=[0.0, 0.1, 0.2])
    for pick in ([0, 2], np.array([True, False, True])):
        some = traffic.select(pick)
        assert (some.src.tolist(), some.size_bytes.tolist(), some.start_s.tolist()) == ([0, 2], [5, 7], [0.0, 0.2])


def test_empty_traffic():
    empty = np.zeros(0, np.int64)
    traffic = Traffic(empty, empty, empty)
    assert (traffic.n_flows, traffic.total_bytes, traffic.n_steps, list(traffic.flows_by_step())) == (0, 0, 0, [])


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([0], [1], [0]), ValueError, r"size_bytes\[0\] must be >= 1, got 0|size_bytes.* got 0"),
        (([0], [1], [-5]), ValueError, "size_bytes.* got -5"),
        (([0], [1], [1.5]), TypeError, "size_bytes must hold integers, got dtype float64"),
        (([-1], [1], [5]), ValueError, "src.* got -1"),
        (([0, 1], [1, 2, 3], [5]), ValueError, "must have one length"),
        (([0], [1], [5], [-1]), ValueError, "step.* got -1"),
    ],
)
def test_bad_columns_are_refused(arguments, kind, message):
    with pytest.raises(kind, match=message):
        Traffic(*arguments)


def test_bad_start_times_are_refused():
    with pytest.raises(ValueError, match="start_s must be finite and >= 0 s, got nan"):
        Traffic([0], [1], [5], start_s=[float("nan")])


def test_nics_outside_the_fabric_are_named():
    with pytest.raises(ValueError, match=r"traffic\.dst\[0\] must be >= 0 and < 4, got 4"):
        Traffic([0], [4], [5]).check_fits(LeafSpine(2, 2, 2))


def test_placement_moves_ranks():
    traffic = Traffic([0, 1], [1, 2], 7).placed([5, 3, 4])
    assert (traffic.src.tolist(), traffic.dst.tolist()) == ([5, 3], [3, 4])
    with pytest.raises(ValueError, match="placement must put every rank on its own NIC, got NIC 5 for ranks 0 and 2"):
        Traffic([0, 1], [1, 2], 7).placed([5, 3, 5])
    with pytest.raises(ValueError, match=r"dst \(rank\)\[1\] must be >= 0 and < 2, got 2"):
        Traffic([0, 1], [1, 2], 7).placed([5, 3])


def test_concatenate():
    first, second = Traffic([0], [1], 5, step=2), Traffic([1, 2], [0, 0], 6, step=[0, 1], start_s=0.5)
    assert concatenate(first, second).step.tolist() == [2, 0, 1]
    in_turn = concatenate(first, second, one_after_the_other=True)
    assert in_turn.step.tolist() == [2, 3, 4]
    assert in_turn.start_s.tolist() == [0.0, 0.5, 0.5]
    assert concatenate().n_flows == 0


def write(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def test_read_traffic(tmp_path):
    traffic = read_traffic(write(tmp_path, "src,dst,bytes,start_s\n0,1,100,0.5\n\n 2 ,3,200,1e-3\n4,4,1,0\n"))
    assert traffic.src.tolist() == [0, 2]
    assert traffic.size_bytes.tolist() == [100, 200]
    assert traffic.start_s.tolist() == [0.5, 1e-3]
    assert traffic.n_self_flows == 1
    assert read_traffic(write(tmp_path, "src,dst,bytes\n0,1,100\n")).start_s is None
    assert read_traffic(write(tmp_path, "src,dst,bytes\n")).n_flows == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("src,dst,bytes\n0,1,100\n0,1,0\n", "line 3: bytes must be a whole number >= 1, got '0'"),
        ("src,dst,bytes\n0,1,1.5\n", "line 2: bytes must be a whole number >= 1, got '1.5'"),
        ("src,dst,bytes\n\n0,-1,5\n", "line 3: dst must be a whole number >= 0, got '-1'"),
        ("src,dst,bytes,start_s\n0,1,5,soon\n", "line 2: start_s must be a number of seconds >= 0, got 'soon'"),
        ("src,dst,bytes,start_s\n0,1,5,nan\n", "line 2: start_s must be a number of seconds >= 0, got 'nan'"),
        ("src,dst,bytes\n0,1\n", r"line 2: expected 3 fields \(src,dst,bytes\), got 2"),
        ("from,to,size\n0,1,5\n", "line 1: header must be src,dst,bytes or src,dst,bytes,start_s, got from,to,size"),
        ("", "header must be src,dst,bytes or .*, got an empty file"),
    ],
)
def test_traffic_errors_name_the_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_traffic(write(tmp_path, text))


def test_read_placement(tmp_path):
    assert read_placement(write(tmp_path, "rank,nic\n1,7\n0,3\n2,5\n")).tolist() == [3, 7, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank,nic\n0,3\n1,3\n", "line 3: nic 3 was given on line 2 already"),
        ("rank,nic\n0,3\n0,4\n", "line 3: rank 0 was given on line 2 already"),
        ("rank,nic\n0,3\n2,4\n", "ranks must run from 0 without gaps, rank 1 is missing"),
        ("rank,nic\n0,8\n", "line 2: nic must be < 8, got 8"),
        ("rank,nic\n0,x\n", "line 2: nic must be a whole number >= 0, got 'x'"),
    ],
)
def test_placement_errors_name_the_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_placement(write(tmp_path, text), n_nics=8)


def test_leaf_demand_counts_flows():
    fabric = LeafSpine(3, 2, 2)
    traffic = Traffic([0, 1, 2, 4, 0], [2, 3, 0, 5, 1], 9)
    demand = LeafDemand.from_traffic(fabric, traffic)
    assert demand.counts.tolist() == [[1, 2, 0], [1, 0, 0], [0, 0, 1]]
    assert (demand.n_flows, demand.degree, demand.flow_bytes) == (5, 2, 9)


def test_all_to_all_demand_equals_the_listed_one():
    fabric = LeafSpine(3, 2, 4)
    src, dst = (x.ravel() for x in np.indices((12, 12)))
    listed = LeafDemand.from_traffic(fabric, Traffic(src, dst, 5))
    assert np.array_equal(listed.counts, LeafDemand.all_to_all(fabric, 5).counts)


def test_bad_demand_is_refused():
    with pytest.raises(ValueError, match=r"traffic must have one size_bytes, got 5 to 6"):
        LeafDemand.from_traffic(LeafSpine(2, 2, 2), Traffic([0, 1], [2, 3], [5, 6]))
    with pytest.raises(ValueError, match="traffic must have at least one flow"):
        LeafDemand.from_traffic(LeafSpine(2, 2, 2), Traffic([0], [0], 5))
    with pytest.raises(ValueError, match="counts must be a square matrix"):
        LeafDemand(np.zeros((2, 3), np.int64), 5)
    with pytest.raises(ValueError, match=r"counts\[0, 1\] must be >= 0, got -1"):
        LeafDemand(np.array([[0, -1], [0, 0]]), 5)
