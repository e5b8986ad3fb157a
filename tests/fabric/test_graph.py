"""Fabrics from files and from networkx."""

import json

import networkx as nx
import numpy as np
import pytest
from fabrics_for_tests import graph_of

from anabranch.fabric import FatTree, GraphTopology, LeafSpine, Topology, fail_links


def leaf_spine_file(leaves=2, spines=3, hosts=2):
    nodes = [{"id": f"gpu{i}", "kind": "nic"} for i in range(leaves * hosts)]
    nodes += [{"id": f"l{i}", "kind": "leaf"} for i in range(leaves)] + [
        {"id": f"s{i}", "kind": "spine"} for i in range(spines)
    ]
    links = [{"a": f"gpu{i}", "b": f"l{i // hosts}", "gbps": 400, "latency_s": 1e-7} for i in range(leaves * hosts)]
    links += [{"a": f"l{i}", "b": f"s{k}", "gbps": 200.0} for i in range(leaves) for k in range(spines)]
    return {"nodes": nodes, "links": links}


def write(tmp_path, data):
    path = tmp_path / "fabric.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_leaf_spine_file_is_recognised(tmp_path):
    fabric = Topology.from_file(write(tmp_path, leaf_spine_file()))
    assert isinstance(fabric, LeafSpine)
    assert (fabric.n_nics, fabric.n_leaves, fabric.n_spines) == (4, 2, 3)
    assert np.allclose(fabric.up_bytes_per_s, 25e9)
    assert np.allclose(fabric.latency_s[:8], 1e-7)
    assert np.allclose(fabric.latency_s[8:], 5e-7)
    assert [fabric.link_name(int(i)) for i in fabric.path(0, 3, 2)] == ["gpu0->l0", "l0->s2", "s2->l1", "l1->gpu3"]


def test_scattered_nics_stay_on_their_leaves(tmp_path):
    data = leaf_spine_file()
    data["links"][0]["b"], data["links"][2]["b"] = "l1", "l0"
    fabric = Topology.from_file(write(tmp_path, data))
    assert isinstance(fabric, LeafSpine)
    assert fabric.leaf_of([0, 1, 2, 3]).tolist() == [1, 0, 0, 1]


def test_parallel_cables_add_up(tmp_path):
    data = leaf_spine_file()
    data["links"].append({"a": "s0", "b": "l0", "gbps": 100})
    fabric = Topology.from_file(write(tmp_path, data))
    assert isinstance(fabric, LeafSpine)
    assert np.allclose(fabric.up_bytes_per_s[0], np.array([300, 200, 200]) / 8 * 1e9)


def test_other_graphs_stay_graphs(tmp_path):
    data = leaf_spine_file()
    data["links"].append({"a": "s0", "b": "s1", "gbps": 100})
    fabric = Topology.from_file(write(tmp_path, data))
    assert isinstance(fabric, GraphTopology)
    assert fabric.n_paths([0, 0, 0], [0, 1, 3]).tolist() == [1, 1, 3]
    assert [fabric.link_name(int(i)) for i in fabric.path(3, 0, 1)] == ["gpu3->l1", "l1->s1", "s1->l0", "l0->gpu0"]


def test_all_shortest_paths_of_random_graphs_equal_networkx():
    rng = np.random.default_rng(5)
    for seed in range(10):
        graph = nx.gnm_random_graph(9, 18, seed=seed)
        if not nx.is_connected(graph):
            continue
        nx.set_node_attributes(graph, "switch", "kind")
        nx.set_edge_attributes(graph, 100, "gbps")
        for i in range(6):
            graph.add_node(f"nic{i}", kind="gpu")
            graph.add_edge(f"nic{i}", int(rng.integers(9)), gbps=100)
        fabric = Topology.from_networkx(graph)
        for src in range(6):
            for dst in range(6):
                expected = (
                    {tuple(p) for p in nx.all_shortest_paths(graph, f"nic{src}", f"nic{dst}")} if src != dst else {()}
                )
                count = int(fabric.n_paths(src, dst)[0])
                found = set()
                for k in range(count):
                    hops = [fabric.link_name(int(i)).split("->") for i in fabric.path(src, dst, k)]
                    found.add(tuple(h[0] for h in hops) + ((hops[-1][1],) if hops else ()))
                wanted = {tuple(str(node) for node in p) for p in expected}
                assert found == wanted
                assert len(found) == count


def test_a_fat_tree_as_a_graph_has_the_same_paths():
    tree = FatTree(2, 2, 2, 4, 2, 2)
    graph = Topology.from_networkx(graph_of(tree))
    assert isinstance(graph, GraphTopology)
    src, dst = (x.ravel() for x in np.indices((tree.n_nics, tree.n_nics)))
    assert np.array_equal(tree.n_paths(src, dst), graph.n_paths(src, dst))
    for s, d in ((0, 7), (0, 2), (5, 1)):
        both = [
            {tuple(t.link_name(int(i)) for i in t.path(s, d, k)) for k in range(int(t.n_paths(s, d)[0]))}
            for t in (tree, graph)
        ]
        assert both[0] == both[1]


def test_failures_of_a_graph_keep_path_numbers():
    graph = Topology.from_networkx(graph_of(FatTree(2, 2, 2, 4, 2, 2)))
    first = graph.path(0, 7, 0)
    broken = fail_links(graph, first[1])
    alive = broken.alive(np.zeros(4, int), np.full(4, 7), np.arange(4))
    assert not alive[0]
    assert alive.any()
    assert np.array_equal(broken.path(0, 7, 0), first)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: d["links"][0].pop("gbps"), r"links\[0\]: gbps must be a finite number > 0, got None"),
        (lambda d: d["links"][1].update(gbps=0), r"links\[1\]: gbps must be a finite number > 0, got 0"),
        (lambda d: d["links"][2].update(gbps=float("nan")), r"links\[2\]: gbps must be a finite number > 0, got nan"),
        (lambda d: d["links"][3].update(latency_s=-1), r"links\[3\]: latency_s must be a finite number >= 0, got -1"),
        (lambda d: d["links"][4].update(b="s9"), r"links\[4\]: b must be the id of a node, got 's9'"),
        (lambda d: d["links"][4].update(b="l0"), r"links\[4\]: a and b must differ, got 'l0' twice"),
        (lambda d: d["nodes"][1].update(id="gpu0"), r"nodes\[1\]: id must be new, got 'gpu0' again"),
        (lambda d: d["nodes"][5].update(kind="hub"), r"nodes\[5\]: kind must be one of nic, .*, got 'hub'"),
        (lambda d: d["nodes"].append(7), r"nodes\[9\] must be an object with an id, got 7"),
        (lambda d: d["links"].append({"a": "gpu0", "b": "l1", "gbps": 1}), "NIC 'gpu0' must have one link"),
        (lambda d: d["links"].append({"a": "gpu0", "b": "gpu1", "gbps": 1}), "links must not join two NICs"),
        (lambda d: d["links"].pop(0), "NIC 'gpu0' has no link"),
        (lambda d: d.pop("nodes"), "expected"),
    ],
)
def test_wrong_entries_are_named(tmp_path, break_it, message):
    data = leaf_spine_file()
    break_it(data)
    path = write(tmp_path, data)
    with pytest.raises(ValueError, match=message) as error:
        Topology.from_file(path)
    assert str(path) in str(error.value)


def test_json_errors_name_the_line(tmp_path):
    with pytest.raises(ValueError, match=r"fabric\.json, line 2, column \d+"):
        Topology.from_file(write(tmp_path, '{"nodes": [],\n "links": [}'))


def test_unconnected_leaves_are_named(tmp_path):
    data = leaf_spine_file(spines=1)
    data["links"] = [link for link in data["links"] if link["a"] != "l1"]
    fabric = Topology.from_file(write(tmp_path, data))
    with pytest.raises(ValueError, match="topology has no path from 'l0' to 'l1'"):
        fabric.n_paths(0, 2)


def test_only_undirected_graphs():
    with pytest.raises(TypeError, match="graph must be a networkx graph, got list"):
        Topology.from_networkx([])
    with pytest.raises(ValueError, match="graph must be undirected"):
        Topology.from_networkx(nx.DiGraph())
