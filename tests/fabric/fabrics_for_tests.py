"""Fabrics of every kind, small enough to enumerate."""

import networkx as nx
import numpy as np

from anabranch.fabric import FatTree, LeafSpine, Topology, fail_links


def graph_of(topology):
    """A networkx graph with the cables of a fabric."""
    graph = nx.Graph()
    for link in range(topology.n_links):
        a, b = topology.link_name(link).split("->")
        for node in (a, b):
            graph.add_node(node, kind="nic" if node.startswith("nic") else "switch")
        graph.add_edge(a, b, gbps=topology.capacity_bytes_per_s[link] * 8e-9, latency_s=float(topology.latency_s[link]))
    return graph


def uneven(seed):
    rng = np.random.default_rng(seed)
    return LeafSpine(
        4, 4, 3, up_gbps=rng.choice([100, 200, 400], (4, 4)), down_gbps=rng.choice([100, 200, 400], (4, 4))
    )


FABRICS = {
    "leaf-spine": LeafSpine(4, 5, 6),
    "uneven rates": uneven(0),
    "failed links": fail_links(
        LeafSpine(4, 4, 3), [LeafSpine(4, 4, 3).uplink(0, 1), LeafSpine(4, 4, 3).downlink(2, 3)]
    ),
    "fat tree": FatTree(2, 2, 4, 4, 4, 2),
    "slow core": FatTree(3, 2, 2, 2, 4, 1, core_gbps=100.0),
    "fat tree, failed": fail_links(FatTree(2, 2, 2, 4, 2, 2), [20, 37, 41]),
    "graph": Topology.from_networkx(graph_of(FatTree(2, 2, 2, 4, 2, 2))),
}
