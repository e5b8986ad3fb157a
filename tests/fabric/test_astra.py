"""ASTRA-sim files: what they say, and that they come back as they were."""

import json

import numpy as np
import pytest
from fabrics_for_tests import graph_of

from anabranch.fabric import FatTree, LeafSpine, Topology, fail_links
from anabranch.fabric.astra import (
    AstraNetwork,
    astra_logical_topology,
    astra_network,
    astra_system,
    read_astra_network,
)


def test_a_leaf_spine_is_two_switches():
    network = astra_network(LeafSpine(16, 16, 16))
    assert network.blocks == ("Switch", "Switch")
    assert network.npus == (16, 16)
    assert network.n_npus == 256
    assert network.bandwidth_bytes_per_s == (50e9, 50e9)
    assert network.latency_s == (5e-7, 1e-6)  # two of them: half of the path's four links
    # 8 uplinks of 400 Gb/s for 16 NICs of 400 Gb/s: half of the rate is left above the leaf.
    assert astra_network(LeafSpine(4, 8, 16)).bandwidth_bytes_per_s == (50e9, 25e9)


def test_a_fat_tree_is_three_switches():
    network = astra_network(FatTree())
    assert network.npus == (16, 16, 2)
    assert network.n_npus == 512
    assert network.bandwidth_bytes_per_s == (50e9, 50e9, 50e9)
    assert network.latency_s == pytest.approx((5e-7, 1e-6, 1.5e-6))
    # A quarter of the rate between aggregation and core switches leaves a quarter to each NIC.
    assert astra_network(FatTree(core_gbps=100.0)).bandwidth_bytes_per_s == (50e9, 50e9, 12.5e9)


@pytest.mark.parametrize("topology", [LeafSpine(16, 16, 16), LeafSpine(3, 7, 5, nic_gbps=123.4), FatTree.k_ary(4)])
@pytest.mark.parametrize("form", ["to_yaml", "to_json"])
@pytest.mark.parametrize("gigabyte", [2**30, 10**9])
def test_networks_come_back(topology, form, gigabyte, tmp_path):
    network = astra_network(topology)
    path = tmp_path / "network"
    path.write_text(getattr(network, form)(gigabyte=gigabyte))
    again = read_astra_network(path, gigabyte=gigabyte)
    assert (again.blocks, again.npus) == (network.blocks, network.npus)
    np.testing.assert_allclose(again.bandwidth_bytes_per_s, network.bandwidth_bytes_per_s, rtol=1e-14)
    np.testing.assert_allclose(again.latency_s, network.latency_s, rtol=1e-14)


def test_the_published_example_is_read(tmp_path):
    path = tmp_path / "network.yml"
    path.write_text(
        "topology: [ Switch ]\nnpus_count: [ 8 ]\nbandwidth: [ 400.0 ]  # GB/s\nlatency: [ 936.25 ]  # ns\n"
    )
    network = read_astra_network(path)
    assert network == AstraNetwork(("Switch",), (8,), (400.0 * 2**30,), (936.25 * 1e-9,))
    assert network.to_yaml() == path.read_text()


def test_the_system_file_names_an_algorithm_for_every_dimension_and_collective():
    network = astra_network(LeafSpine(4, 4, 4))
    system = json.loads(json.dumps(astra_system(network, "halving-doubling", preferred_dataset_splits=4)))
    for collective in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all"):
        assert system[f"{collective}-implementation"] == ["halvingDoubling"] * 2
    assert system["preferred-dataset-splits"] == 4
    assert system["scheduling-policy"] == "LIFO"
    assert astra_system(network, ["ring", "direct"])["all-reduce-implementation"] == ["ring", "direct"]
    with pytest.raises(ValueError, match="one for each of the 2 dimensions, got 1"):
        astra_system(network, ["ring"])
    with pytest.raises(ValueError, match="algorithm must be one of 'ring'"):
        astra_system(network, "tree")


def test_the_logical_topology_is_one_dimension():
    assert astra_logical_topology(256) == {"logical-dims": ["256"]}
    with pytest.raises(ValueError, match="n_npus must be >= 1, got 0"):
        astra_logical_topology(0)


def test_what_the_files_cannot_say_is_refused():
    topology = LeafSpine(2, 2, 2)
    with pytest.raises(ValueError, match=r"topology must have no failed links, got \[8\]"):
        astra_network(fail_links(topology, [8]))
    with pytest.raises(ValueError, match="equal fabric rates"):
        astra_network(LeafSpine(2, 2, 2, up_gbps=np.array([[400, 200], [400, 400]])))
    with pytest.raises(TypeError, match="LeafSpine or a FatTree, got GraphTopology"):
        astra_network(Topology.from_networkx(graph_of(FatTree.k_ary(4))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topology: Switch\n", "line 1: expected key:"),
        ("topology: [ Switch ]\n", "keys must be topology, npus_count, bandwidth, latency, got topology"),
        ("{", "line 1"),
        ("topology: [ Mesh ]\nnpus_count: [ 8 ]\nbandwidth: [ 4 ]\nlatency: [ 9 ]\n", "blocks must be one of 'Ring'"),
        ("topology: [ Ring ]\nnpus_count: [ 8, 2 ]\nbandwidth: [ 4 ]\nlatency: [ 9 ]\n", "one entry per dimension"),
        ("topology: [ Ring ]\nnpus_count: [ 8 ]\nbandwidth: [ 0 ]\nlatency: [ 9 ]\n", "bandwidth_bytes_per_s must be"),
        ("topology: [ Ring ]\nnpus_count: [ x ]\nbandwidth: [ 4 ]\nlatency: [ 9 ]\n", "invalid literal"),
    ],
)
def test_bad_files_are_named(text, message, tmp_path):
    path = tmp_path / "bad.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_astra_network(path)
