"""Leaf-spine fabrics: wiring, paths, failures, refusals."""

from itertools import pairwise

import numpy as np
import pytest

from anabranch.fabric import FatTree, LeafSpine, fail_links


def names(topology, src, dst, path):
    return [topology.link_name(int(link)) for link in topology.path(src, dst, path)]


def test_links_and_rates():
    fabric = LeafSpine(3, 2, 4, nic_gbps=100.0, up_gbps=[[100, 200]] * 3, links_per_pair=2, latency_s=1e-6)
    assert (fabric.n_nics, fabric.n_leaves, fabric.n_links) == (12, 3, 2 * 12 + 2 * 6)
    assert np.array_equal(fabric.leaf_of(np.arange(12)), np.arange(12) // 4)
    assert fabric.is_fabric_link.sum() == 12
    assert not fabric.is_fabric_link[:24].any()
    assert np.allclose(fabric.capacity_bytes_per_s[:24], 100e9 / 8)
    assert np.allclose(fabric.up_bytes_per_s, np.array([[25e9, 50e9]] * 3))
    assert np.allclose(fabric.down_bytes_per_s, fabric.up_bytes_per_s)
    assert (fabric.latency_s == 1e-6).all()


def test_path_visits_the_named_switches():
    fabric = LeafSpine(3, 2, 4)
    assert names(fabric, 1, 9, 1) == ["nic1->leaf0", "leaf0->spine1", "spine1->leaf2", "leaf2->nic9"]
    assert names(fabric, 9, 1, 0) == ["nic9->leaf2", "leaf2->spine0", "spine0->leaf0", "leaf0->nic1"]
    assert names(fabric, 1, 2, 0) == ["nic1->leaf0", "leaf0->nic2"]
    assert names(fabric, 1, 1, 0) == []


@pytest.mark.parametrize("fabric", [LeafSpine(3, 4, 2), FatTree(2, 2, 4, 4, 2, 2), FatTree.k_ary(4)], ids=repr)
def test_every_path_of_many_joins_its_ends_and_equals_the_single_one(fabric):
    src, dst = (x.ravel() for x in np.indices((fabric.n_nics, fabric.n_nics)))
    count = fabric.n_paths(src, dst)
    src, dst = np.repeat(src, count), np.repeat(dst, count)
    path = np.arange(len(src)) - np.repeat(np.cumsum(count) - count, count)
    indptr, links = fabric.paths(src, dst, path)
    assert indptr.dtype == np.int64
    assert links.dtype == np.int32
    ends = {i: fabric.link_name(i).split("->") for i in range(fabric.n_links)}
    for i in range(len(src)):
        hops = [ends[link] for link in links[indptr[i] : indptr[i + 1]].tolist()]
        if src[i] == dst[i]:
            assert hops == []
            continue
        assert hops[0][0] == f"nic{src[i]}"
        assert hops[-1][1] == f"nic{dst[i]}"
        assert all(first[1] == second[0] for first, second in pairwise(hops))
    seen = {
        (int(s), int(d), tuple(links[indptr[i] : indptr[i + 1]])) for i, (s, d) in enumerate(zip(src, dst, strict=True))
    }
    assert len(seen) == len(src), "two paths of a pair are the same"
    for i in (0, len(src) // 2, len(src) - 1):
        single = fabric.path(int(src[i]), int(dst[i]), int(path[i]))
        assert np.array_equal(single, links[indptr[i] : indptr[i + 1]])


def test_link_names_are_all_different():
    for fabric in (LeafSpine(3, 4, 2), FatTree(2, 2, 4, 4, 2, 2)):
        assert len({fabric.link_name(i) for i in range(fabric.n_links)}) == fabric.n_links


def test_failed_links_kill_the_paths_over_them_only():
    fabric = LeafSpine(3, 2, 4)
    broken = fail_links(fabric, fabric.cable(0, 1))
    assert [broken.link_name(int(i)) for i in broken.failed] == ["leaf0->spine1", "spine1->leaf0"]
    assert not len(fabric.failed), "the original must not change"
    src, dst, path = [0, 0, 4, 4, 0], [4, 4, 0, 8, 1], [0, 1, 1, 1, 0]
    assert broken.alive(src, dst, path).tolist() == [True, False, False, True, True]
    assert broken.up_bytes_per_s[0].tolist() == [5e10, 0.0]
    assert not broken.is_uniform
    assert fabric.is_uniform
    twice = fail_links(broken, [0])
    assert twice.failed.tolist() == [0, *broken.failed.tolist()]
    assert not twice.alive(0, 1, 0).any()
    assert LeafSpine(3, 2, 4, failed=fabric.cable(0, 1)).failed.tolist() == broken.failed.tolist()


def test_arrays_are_read_only():
    fabric = LeafSpine(2, 2, 2)
    with pytest.raises(ValueError, match="read-only"):
        fabric.capacity_bytes_per_s[0] = 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leaves": 0}, "leaves must be >= 1, got 0"),
        ({"nic_gbps": 0.0}, "nic_gbps must be finite and > 0 Gb/s, got 0.0"),
        ({"nic_gbps": float("nan")}, "nic_gbps must be finite and > 0 Gb/s, got nan"),
        ({"up_gbps": [[400, 400], [400, -1.0]]}, r"up_gbps must be finite and > 0 Gb/s, got -1.0 at \(1, 1\)"),
        ({"up_gbps": [400, 400]}, r"up_gbps must be one number or an array of shape \(2, 2\), got shape \(2,\)"),
        ({"latency_s": -1.0}, "latency_s must be finite and >= 0 s, got -1.0"),
        ({"failed": [99]}, r"failed\[0\] must be >= 0 and < 16, got 99"),
        ({"links_per_pair": 0}, "links_per_pair must be >= 1, got 0"),
        ({"radix": 3}, r"radix must be >= the 4 ports of a leaf \(2 hosts \+ 2 spines x 1 links\), got 3"),
        ({"radix": 5, "links_per_pair": 2}, "radix must be >= the 6 ports of a leaf"),
    ],
)
def test_bad_fabrics_are_refused(change, message):
    arguments = {"leaves": 2, "spines": 2, "hosts_per_leaf": 2} | change
    with pytest.raises(ValueError, match=message):
        LeafSpine(**arguments)


def test_counts_must_be_integers():
    with pytest.raises(TypeError, match="spines"):
        LeafSpine(2, 2.0, 2)


def test_out_of_range_paths_are_refused():
    fabric = LeafSpine(2, 3, 2)
    with pytest.raises(ValueError, match=r"path\[1\] must be < 3 \(the paths from NIC 0 to NIC 2\), got 3"):
        fabric.paths([0, 0], [2, 2], [2, 3])
    with pytest.raises(ValueError, match=r"path\[0\] must be < 1"):
        fabric.path(0, 1, 1)
    with pytest.raises(ValueError, match="dst must be >= 0 and < 4, got 4"):
        fabric.n_paths(0, 4)
    with pytest.raises(ValueError, match=r"ids\[0\] must be >= 0 and < 20, got 20"):
        fail_links(fabric, [20])


def test_fat_tree_of_the_paper():
    tree = FatTree(radix=32)
    assert (tree.n_nics, tree.n_leaves, tree.n_pods * tree.aggs_per_pod, tree.n_cores) == (512, 32, 32, 16)
    used = np.zeros((3, 64), dtype=int)  # ports per switch, counted from the links
    for i in range(tree.n_links):
        for end in tree.link_name(i).split("->"):
            if end.startswith("tor"):
                used[0, int(end[3:])] += 1
            elif end.startswith("agg"):
                pod, switch = end[3:].split(".")
                used[1, int(pod) * 16 + int(switch)] += 1
            elif end.startswith("core"):
                used[2, int(end[4:])] += 1
    assert (used[0, :32] == 64).all(), "32 ports, both directions"
    assert (used[1, :32] == 64).all()
    assert (used[2, :16] == 64).all()
    assert tree.n_paths([0, 0, 0, 0], [0, 1, 16, 511]).tolist() == [1, 1, 16, 4096]


def test_k_ary_fat_tree_has_the_known_numbers():
    for k in (2, 4, 6):
        tree = FatTree.k_ary(k)
        assert (tree.n_nics, tree.n_cores, tree.n_leaves) == (k**3 // 4, k**2 // 4, k**2 // 2)
        assert tree.n_paths(0, tree.n_nics - 1).tolist() == [k**2 // 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"planes": 3}, "planes must divide aggs_per_pod = 16, got 3"),
        ({"radix": 31}, r"radix must be >= the 32 ports of a ToR switch \(hosts \+ aggregation switches\), got 31"),
        ({"tor_gbps": -5.0}, "tor_gbps must be finite and > 0 Gb/s, got -5.0"),
        ({"pods": 0}, "pods must be >= 1, got 0"),
    ],
)
def test_bad_fat_trees_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FatTree(**change)
    with pytest.raises(ValueError, match="k must be even, got 3"):
        FatTree.k_ary(3)
