"""Plans: loads against a slow count, steps, queue pairs, files."""

import csv

import numpy as np
import pytest

from anabranch.fabric import (
    FatTree,
    LeafSpine,
    Plan,
    Traffic,
    ecmp_hash,
    fail_links,
    path_table,
    plan_ecmp,
    plan_greedy,
    plan_konig,
    plan_split,
    plan_spray,
    replan,
    udp_source_ports,
)

FABRICS = [LeafSpine(4, 3, 4, up_gbps=100.0), FatTree(2, 2, 4, 4, 4, 2)]


def random_traffic(fabric, seed, flows=60, steps=3):
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, fabric.n_nics, (2, flows))
    return Traffic(*ends, rng.integers(1, 1000, flows), step=rng.integers(0, steps, flows) * 2)


@pytest.mark.parametrize("fabric", FABRICS, ids=repr)
def test_loads_equal_a_count_piece_by_piece(fabric):
    traffic = random_traffic(fabric, 1)
    plan = plan_ecmp(fabric, traffic, split=3, seed=4)
    loads = np.zeros((traffic.n_steps, fabric.n_links), dtype=np.int64)
    for parent, path, size in zip(plan.parent, plan.path, plan.size_bytes, strict=True):
        links = fabric.path(int(traffic.src[parent]), int(traffic.dst[parent]), int(path))
        loads[traffic.step[parent], links] += size
    assert np.array_equal(plan.loads_bytes(), loads.sum(axis=0))
    for step in range(traffic.n_steps):
        assert np.array_equal(plan.loads_bytes(step), loads[step])
    seconds = loads / fabric.capacity_bytes_per_s
    assert np.allclose(plan.congestion_s(2), seconds[2], rtol=1e-15)
    assert np.allclose(plan.step_congestion_s(fabric_only=False), seconds.max(axis=1), rtol=1e-15)
    assert np.allclose(plan.step_congestion_s(), seconds[:, fabric.is_fabric_link].max(axis=1), rtol=1e-15)
    assert plan.max_congestion_s() == plan.step_congestion_s().max()
    assert np.isclose(plan.bottleneck_s(), seconds.max(axis=1).sum())
    assert plan.extra_queue_pairs == plan.n_pieces - traffic.n_flows


def test_huge_sizes_are_counted_exactly():
    fabric = LeafSpine(2, 2, 2)
    size = 2**60 + 1
    traffic = Traffic([0, 1, 0], [2, 3, 3], [size, size, 1])
    plan = Plan(fabric, traffic, np.arange(3), np.zeros(3, np.int32), traffic.size_bytes)
    assert plan.loads_bytes()[fabric.uplink(0, 0)] == 2 * size + 1


def test_spray_loads_equal_the_mean_over_all_paths():
    for fabric in (*FABRICS, fail_links(FABRICS[0], [FABRICS[0].uplink(1, 2), FABRICS[0].downlink(0, 0)])):
        traffic = random_traffic(fabric, 2)
        loads = np.zeros((traffic.n_steps, fabric.n_links))
        for src, dst, size, step in zip(traffic.src, traffic.dst, traffic.size_bytes, traffic.step, strict=True):
            count = int(fabric.n_paths(int(src), int(dst))[0])
            alive = [k for k in range(count) if fabric.alive(int(src), int(dst), k)[0]]
            for k in alive:
                loads[step, fabric.path(int(src), int(dst), k)] += size / len(alive)
        plan = plan_spray(fabric, traffic)
        assert np.allclose(plan.loads_bytes(), loads.sum(axis=0), rtol=1e-12)
        for step in range(traffic.n_steps):
            assert np.allclose(plan.loads_bytes(step), loads[step], rtol=1e-12)


def test_bytes_over_a_failed_link_are_infinite_congestion():
    fabric = LeafSpine(2, 2, 2)
    traffic = Traffic([0], [2], [10])
    plan = Plan(fail_links(fabric, fabric.cable(0, 1)), traffic, np.array([0]), np.array([1], np.int32), np.array([10]))
    assert plan.max_congestion_s() == np.inf
    assert plan.congestion_s()[fabric.uplink(0, 1)] == np.inf
    assert plan.congestion_s()[fabric.uplink(0, 0)] == 0.0


def test_empty_plans():
    fabric = LeafSpine(2, 2, 2)
    traffic = Traffic([0, 1], [0, 1], 5)
    planners = (plan_split, plan_konig, plan_greedy, plan_spray, lambda f, t: plan_ecmp(f, t, seed=0))
    for plan in (planner(fabric, traffic) for planner in planners):
        assert plan.max_congestion_s() == 0.0
        assert plan.bottleneck_s() == 0.0
        assert not plan.loads_bytes().any()
    empty = plan_konig(fabric, traffic)
    assert not empty.queue_pairs_per_nic().any()
    assert replan(empty, fail_links(fabric, [0])).n_pieces == 0
    assert udp_source_ports(empty, ecmp_hash(fabric, seed=0)).size == 0
    assert path_table(empty) == {"links": [], "pieces": []}


def test_queue_pairs_are_shared_by_steps_and_not_within_one():
    fabric = LeafSpine(2, 2, 2)
    traffic = Traffic([0, 0, 0, 2], [2, 2, 3, 0], 10, step=[0, 1, 1, 1])
    plan = Plan(
        fabric, traffic, np.array([0, 0, 1, 2, 3]), np.array([0, 0, 0, 1, 1], np.int32), np.array([5, 5, 10, 10, 10])
    )
    # 0 -> 2 over spine 0: two pieces at once in step 0, one in step 1, so two; 0 -> 3: one; 2 -> 0: one.
    assert plan.queue_pairs_per_nic("send").tolist() == [3, 0, 1, 0]
    assert plan.queue_pairs_per_nic("receive").tolist() == [1, 0, 2, 1]
    assert plan.queue_pairs_per_nic().tolist() == [4, 0, 3, 1]
    with pytest.raises(ValueError, match="direction must be one of 'both', 'send', 'receive', got 'out'"):
        plan.queue_pairs_per_nic("out")


def test_all_to_all_of_256_over_eight_paths_needs_more_than_4000_queue_pairs():
    fabric = LeafSpine(16, 16, 16)
    src, dst = (x.ravel() for x in np.indices((256, 256)))
    plan = plan_ecmp(fabric, Traffic(src, dst, 4096), split=8, seed=1)
    assert (plan.queue_pairs_per_nic() == 2 * 8 * 255).all()


def test_csv_has_every_piece(tmp_path):
    fabric = LeafSpine(2, 3, 2)
    plan = plan_split(fabric, Traffic([0, 1], [2, 3], 100, step=[0, 1]))
    plan.to_csv(tmp_path / "paths.csv")
    with (tmp_path / "paths.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == plan.n_pieces == 6
    for name, column in (("flow", plan.parent), ("path", plan.path), ("bytes", plan.size_bytes)):
        assert [int(row[name]) for row in rows] == column.tolist()
    assert [int(row["src"]) for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [int(row["step"]) for row in rows] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (([0], [0], [10]), "size_bytes of the pieces of flow 1 must add up to 20, got 0"),
        (([0, 1], [0, 0], [10, 19]), "size_bytes of the pieces of flow 1 must add up to 20, got 19"),
        (([0, 1, 1], [0, 0, 0], [10, 20, 0]), r"size_bytes\[2\] must be >= 1, got 0"),
        (([0, 2], [0, 0], [10, 20]), r"parent\[1\] must be >= 0 and < 2, got 2"),
    ],
)
def test_wrong_pieces_are_refused(pieces, message):
    parent, path, size = (np.array(column) for column in pieces)
    with pytest.raises(ValueError, match=message):
        Plan(LeafSpine(2, 2, 2), Traffic([0, 1], [2, 3], [10, 20]), parent, path.astype(np.int32), size)


def written(tmp_path, text):
    file = tmp_path / "paths.csv"
    file.write_text(text)
    return file


@pytest.mark.parametrize("fabric", FABRICS, ids=repr)
@pytest.mark.parametrize("timed", [False, True])
def test_csv_is_read_as_it_was_written(tmp_path, fabric, timed):
    traffic = random_traffic(fabric, 5)
    if timed:
        starts = np.random.default_rng(0).random(traffic.n_flows)
        traffic = Traffic(traffic.src, traffic.dst, traffic.size_bytes, traffic.step, start_s=starts)
    file = tmp_path / "paths.csv"
    for plan in (plan_ecmp(fabric, traffic, split=2, seed=0), plan_konig(fabric, traffic)):
        plan.to_csv(file)
        for given in (None, traffic):
            read = Plan.from_csv(file, fabric, given)
            for name in ("parent", "path", "size_bytes"):
                assert np.array_equal(getattr(read, name), getattr(plan, name))
            for name in ("src", "dst", "size_bytes", "step"):
                assert np.array_equal(getattr(read.traffic, name), getattr(traffic, name))
            assert (read.traffic.start_s is None) == (not timed)
            assert not timed or np.array_equal(read.traffic.start_s, traffic.start_s)
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([header, *lines[::-1]]))  # any order
    assert sorted(Plan.from_csv(file, fabric, traffic).path) == sorted(plan.path)


def test_a_csv_without_pieces_is_an_empty_plan(tmp_path):
    file = written(tmp_path, "flow,step,src,dst,path,bytes\n")
    plan = Plan.from_csv(file, LeafSpine(2, 2, 2))
    assert plan.n_pieces == plan.traffic.n_flows == 0


HEADER = "flow,step,src,dst,path,bytes\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header must be flow,step,src,dst,path,bytes or flow,step,src,dst,path,bytes,start_s, got an empty file"),
        ("flow,src,dst,path,bytes\n", "line 1: header must be"),
        (HEADER + "0,0,0,2,0\n", "line 2: expected 6 fields"),
        (HEADER + "0,0,0,2,0,0\n", "line 2: bytes must be a whole number >= 1, got '0'"),
        (HEADER + "0,0,0,2,-1,5\n", "line 2: path must be a whole number >= 0, got '-1'"),
        (HEADER + "0,0,0,2,0,5\n1,0,4,2,0,5\n", "line 3: src must be < 4, the NICs of the fabric, got 4"),
        (HEADER + "0,0,0,9,0,5\n", "line 2: dst must be < 4, the NICs of the fabric, got 9"),
        (HEADER + "0,0,2,2,0,5\n", "line 2: dst must differ from src, got 2 for both"),
        (HEADER + "0,3000000000,0,2,0,5\n", "line 2: step must be <= 2147483647, got 3000000000"),
        (HEADER + "0,0,0,2,1,5\n\n0,0,0,2,3,5\n", "line 4: path must be < 3 from NIC 0 to 2, got 3"),
        (HEADER + "0,0,0,1,1,5\n", "line 2: path must be < 1 from NIC 0 to 1, got 1"),
        (HEADER + "0,0,0,2,0,5\n0,0,1,2,0,5\n", r"line 3: step, src, dst of flow 0 must be [0, 0, 2], got [0, 1, 2]"),
        (HEADER + "0,0,0,2,0,5\n2,0,1,2,0,5\n", "flows must be numbered from 0 without gaps, flow 1 is missing"),
        (HEADER + "1000000000000,0,0,2,0,5\n", "flows must be numbered from 0 without gaps, flow 0 is missing"),
        (HEADER[:-1] + ",start_s\n0,0,0,2,0,5,1\n0,0,0,2,1,5,2\n", "line 3: start_s must be 1.0 as elsewhere, got 2.0"),
    ],
)
def test_a_wrong_csv_is_refused_with_the_line(tmp_path, text, message):
    with pytest.raises(ValueError) as error:
        Plan.from_csv(written(tmp_path, text), LeafSpine(2, 3, 2))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,0,0,2,0,10\n2,0,1,3,0,20\n", "line 3: flow must be < 2, the flows of the traffic, got 2"),
        ("0,0,0,2,0,10\n1,0,1,2,0,20\n", "line 3: step, src, dst of flow 1 must be [0, 1, 3], got [0, 1, 2]"),
        ("0,0,0,2,0,10\n1,0,1,3,0,19\n", "size_bytes of the pieces of flow 1 must add up to 20, got 19"),
        ("0,0,0,2,0,10\n", "size_bytes of the pieces of flow 1 must add up to 20, got 0"),
    ],
)
def test_a_csv_of_other_traffic_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError) as error:
        Plan.from_csv(written(tmp_path, HEADER + text), LeafSpine(2, 2, 2), Traffic([0, 1], [2, 3], [10, 20]))
    assert message in str(error.value)
