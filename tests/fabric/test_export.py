"""Settings, ports and tables that carry out a plan."""

import json

import numpy as np
import pytest

from anabranch.fabric import (
    LeafSpine,
    Traffic,
    ecmp_hash,
    nccl_settings,
    path_table,
    plan_ecmp,
    plan_konig,
    plan_split,
    udp_source_ports,
    write_path_table,
)

FABRIC = LeafSpine(4, 6, 4)


def traffic(seed=0, flows=40):
    rng = np.random.default_rng(seed)
    return Traffic(*rng.integers(0, 16, (2, flows)), 6000, step=rng.integers(0, 3, flows))


@pytest.mark.parametrize("planner", [plan_split, plan_konig, lambda f, t: plan_ecmp(f, t, split=4, seed=9)])
def test_ports_lead_to_the_paths(planner):
    plan = planner(FABRIC, traffic())
    path_hash = ecmp_hash(FABRIC, seed=5)
    ports = udp_source_ports(plan, path_hash)
    assert ports.min() >= 0xC000
    src, dst = plan.traffic.src[plan.parent], plan.traffic.dst[plan.parent]
    assert np.array_equal(path_hash(src, dst, ports.astype(np.int64)), plan.path)
    step = plan.traffic.step[plan.parent]
    keys = set(zip(src.tolist(), dst.tolist(), step.tolist(), ports.tolist(), strict=True))
    assert len(keys) == plan.n_pieces, "two pieces of a step between the same NICs share a port"


def test_ecmp_hash_is_the_one_of_the_planner():
    plan = plan_ecmp(FABRIC, Traffic([0, 1], [9, 14], 10), seed=3)
    assert (
        ecmp_hash(FABRIC, seed=3)(np.array([0, 1]), np.array([9, 14]), np.array([0, 0])).tolist() == plan.path.tolist()
    )


def test_paths_that_no_port_reaches_are_named():
    plan = plan_split(FABRIC, Traffic([0], [15], 600))
    with pytest.raises(
        ValueError,
        match=r"for some port in 49152 to 49153, got none for \d pieces, the first on path \d from NIC 0 to NIC 15",
    ):
        udp_source_ports(plan, ecmp_hash(FABRIC, seed=0), last_port=49153)
    with pytest.raises(ValueError, match="last_port must be >= 50000 and < 65536, got 49999"):
        udp_source_ports(plan, ecmp_hash(FABRIC, seed=0), first_port=50000, last_port=49999)


def test_nccl_settings():
    between = Traffic([0, 1], [9, 14], 6000)
    whole = nccl_settings(plan_konig(LeafSpine(4, 1, 4), between))
    assert (whole.queue_pairs_per_connection, whole.split_data, whole.is_exact) == (1, False, True)
    cut = nccl_settings(plan_split(FABRIC, between))
    assert cut.environment() == {"NCCL_IB_QPS_PER_CONNECTION": "6", "NCCL_IB_SPLIT_DATA_ON_QPS": "1"}
    assert cut.is_exact
    mixed = nccl_settings(plan_split(FABRIC, Traffic([0, 1, 2], [9, 9, 1], 6000)))
    assert mixed.split_data
    assert not mixed.is_exact
    empty = nccl_settings(plan_split(FABRIC, Traffic([0], [0], 5)))
    assert (empty.queue_pairs_per_connection, empty.split_data) == (1, False)


def test_path_table_says_which_links(tmp_path):
    plan = plan_konig(FABRIC, traffic(1))
    write_path_table(plan, tmp_path / "paths.json")
    table = json.loads((tmp_path / "paths.json").read_text())
    assert table == path_table(plan)
    assert len(table["pieces"]) == plan.n_pieces
    for i, row in enumerate(table["pieces"]):
        names = [table["links"][k] for k in row["links"]]
        expected = FABRIC.path(row["src"], row["dst"], row["path"])
        assert names == [FABRIC.link_name(int(link)) for link in expected]
        assert row["flow"] == plan.parent[i]
        assert row["bytes"] == plan.size_bytes[i]
        assert row["step"] == plan.traffic.step[row["flow"]]
    total = np.bincount([row["flow"] for row in table["pieces"]], [row["bytes"] for row in table["pieces"]])
    assert np.array_equal(total, plan.traffic.size_bytes)
