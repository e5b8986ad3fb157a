"""Any fabric given as a graph: from a JSON file or a networkx graph, with all equal-cost shortest paths."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from anabranch.fabric._checks import GBPS, ArrayLike, frozen, integers
from anabranch.fabric.topology import LeafSpine, Topology

NIC_KINDS = ("nic", "host", "gpu")
SWITCH_KINDS = ("switch", "leaf", "spine", "tor", "agg", "aggregation", "core")


@dataclass(frozen=True)
class _Cable:
    a: str
    b: str
    bytes_per_s: float
    latency_s: float


class GraphTopology(Topology):
    """A fabric of any shape. NICs and leaves are numbered in the order of the nodes; every NIC has one cable.

    Links: NIC up ``i``; NIC down ``n_nics + i``; then two per cable between switches, in the order of the file, a to b
    first. Paths are all shortest ones by number of links, over switches only, on the fabric without failures; they are
    listed per pair of leaves when first asked for: O(switches + cables) per leaf and O(paths) per pair.

    Made by :meth:`Topology.from_file` and :meth:`Topology.from_networkx`.

    Args:
        nodes: kind of every node id.
        cables: both directions each.
        max_paths: most paths listed for one pair of leaves.
    """

    def __init__(self, nodes: Mapping[str, str], cables: list[_Cable], *, max_paths: int = 65536) -> None:
        nics = [node for node, kind in nodes.items() if kind in NIC_KINDS]
        number = {node: i for i, node in enumerate(nics)}
        port: dict[str, tuple[str, _Cable]] = {}
        inner = []
        for cable in cables:
            for near, far in ((cable.a, cable.b), (cable.b, cable.a)):
                if near not in number:
                    continue
                if far in number:
                    raise ValueError(f"links must not join two NICs, got {cable.a!r} and {cable.b!r}")
                if near in port:
                    raise ValueError(f"NIC {near!r} must have one link, got links to {port[near][0]!r} and {far!r}")
                port[near] = far, cable
            if cable.a not in number and cable.b not in number:
                inner.append(cable)
        loose = [node for node in nics if node not in port]
        if not nics or loose:
            raise ValueError(f"NIC {loose[0]!r} has no link" if loose else f"nodes must have a NIC (kind {NIC_KINDS})")
        hosts = {port[node][0] for node in nics}
        self._switches = [node for node in nodes if node in hosts] + [
            node for node in nodes if node not in hosts and node not in number
        ]
        index = {node: i for i, node in enumerate(self._switches)}
        self.n_nics, self.n_leaves = len(nics), len(hosts)
        self._nics, self._cables, self.max_paths = nics, inner, max_paths
        self._nic_leaf = frozen(np.array([index[port[node][0]] for node in nics], dtype=np.int32))
        own = [port[node][1] for node in nics] * 2
        every = own + [cable for cable in inner for _ in range(2)]
        self._set_links(
            np.array([cable.bytes_per_s for cable in every]),
            np.array([cable.latency_s for cable in every]),
            np.arange(len(every)) >= len(own),
        )
        self._set_failed(())
        self._out: list[list[tuple[int, int]]] = [[] for _ in self._switches]
        for j, cable in enumerate(inner):
            first = len(own) + 2 * j
            self._out[index[cable.a]].append((first, index[cable.b]))
            self._out[index[cable.b]].append((first + 1, index[cable.a]))
        self._hops_to: dict[int, np.ndarray] = {}
        self._between: dict[tuple[int, int], np.ndarray] = {}

    def switch_graph(self) -> tuple[int, Int64[np.ndarray, "fabric_links"], Int64[np.ndarray, "fabric_links"]]:
        """Number of switches, and the switches (leaves first) that each fabric link leaves and enters, in link order."""
        index = {node: i for i, node in enumerate(self._switches)}
        ends = np.array([(index[cable.a], index[cable.b]) for cable in self._cables], dtype=np.int64).reshape(-1, 2)
        return len(self._switches), ends.ravel(), ends[:, ::-1].ravel()

    def leaf_paths(self, a: int, b: int) -> Int32[np.ndarray, "paths hops"]:
        """Fabric links of all shortest paths from leaf ``a`` to leaf ``b``, in lexical order of link ids.

        Raises:
            ValueError: the leaves are not connected, or there are more than ``max_paths`` paths.
        """
        if (a, b) not in self._between:
            self._between[a, b] = frozen(self._list_paths(a, b))
        return self._between[a, b]

    def _distances_to(self, b: int) -> np.ndarray:
        if b not in self._hops_to:
            hops = np.full(len(self._switches), -1)
            hops[b] = 0
            ring = [b]
            while ring:
                wider = []
                for node in ring:
                    for _, near in self._out[node]:  # every cable has both directions, so out is also in
                        if hops[near] < 0:
                            hops[near] = hops[node] + 1
                            wider.append(near)
                ring = wider
            self._hops_to[b] = hops
        return self._hops_to[b]

    def _list_paths(self, a: int, b: int) -> np.ndarray:
        hops = self._distances_to(b)
        if hops[a] < 0:
            raise ValueError(f"topology has no path from {self._switches[a]!r} to {self._switches[b]!r}")
        fronts: list[tuple[tuple[int, ...], int]] = [((), a)]
        for left in range(int(hops[a]), 0, -1):
            fronts = [
                ((*links, link), far)
                for links, node in fronts
                for link, far in sorted(self._out[node])
                if hops[far] == left - 1
            ]
            if len(fronts) > self.max_paths:
                ends = f"{self._switches[a]!r} to {self._switches[b]!r}"
                raise ValueError(f"max_paths must cover the paths from {ends}, got {self.max_paths}")
        return np.array([links for links, _ in fronts], dtype=np.int32).reshape(len(fronts), int(hops[a]))

    def n_paths(self, src: ArrayLike, dst: ArrayLike) -> Int64[np.ndarray, "n"]:
        """Number of shortest paths; 1 inside a leaf."""
        src, dst = self._end_points(src, dst)
        pair = self._nic_leaf[src].astype(np.int64) * self.n_leaves + self._nic_leaf[dst]
        unique, where = np.unique(pair, return_inverse=True)
        counts = np.array([len(self._table(int(p))) for p in unique], dtype=np.int64)
        return counts[where]

    def _table(self, pair: int) -> np.ndarray:
        return self.leaf_paths(*divmod(pair, self.n_leaves))

    def paths(
        self, src: ArrayLike, dst: ArrayLike, path: ArrayLike
    ) -> tuple[Int64[np.ndarray, "n_plus_1"], Int32[np.ndarray, "hops"]]:
        """See :meth:`Topology.paths`."""
        src, dst, path = self._end_points(src, dst, path)
        self._check_paths(src, dst, path, self.n_paths(src, dst))
        pair = self._nic_leaf[src].astype(np.int64) * self.n_leaves + self._nic_leaf[dst]
        unique, where = np.unique(pair, return_inverse=True)
        tables = [self._table(int(p)) for p in unique]
        flat = np.concatenate([np.zeros(0, np.int32), *(t.ravel() for t in tables)])
        start = np.concatenate([[0], np.cumsum([t.size for t in tables])]).astype(np.int64)
        inner = np.array([t.shape[1] for t in tables], dtype=np.int64)[where]
        moves = src != dst
        indptr = np.concatenate([[0], np.cumsum(np.where(moves, inner + 2, 0))])
        links = np.empty(indptr[-1], dtype=np.int32)
        links[indptr[:-1][moves]] = src[moves]
        links[indptr[1:][moves] - 1] = self.n_nics + dst[moves]
        inner = np.where(moves, inner, 0)
        step = np.arange(inner.sum()) - np.repeat(np.cumsum(inner) - inner, inner)
        links[np.repeat(indptr[:-1] + 1, inner) + step] = flat[np.repeat(start[where] + path * inner, inner) + step]
        return indptr, links

    def link_name(self, link: int) -> str:
        """``a->b`` with the ids of the nodes."""
        link = int(integers("link", link, low=0, high=self.n_links))
        if link < 2 * self.n_nics:
            nic = link % self.n_nics
            ends = self._nics[nic], self._switches[self._nic_leaf[nic]]
            return "->".join(ends if link < self.n_nics else ends[::-1])
        cable, back = divmod(link - 2 * self.n_nics, 2)
        ends = self._cables[cable].a, self._cables[cable].b
        return "->".join(ends[::-1] if back else ends)

    def as_leaf_spine(self) -> LeafSpine | None:
        """The same fabric as a :class:`LeafSpine` if it is one: every leaf has a cable to every other switch, and no more.

        Parallel cables become one link of their summed rate, as ``links_per_pair`` does.
        """
        L, S = self.n_leaves, len(self._switches) - self.n_leaves
        index = {node: i for i, node in enumerate(self._switches)}
        rate, delay = np.zeros((L, S)), np.zeros((L, S))
        for cable in self._cables:
            leaf, spine = sorted((index[cable.a], index[cable.b]))
            if leaf >= L or spine < L:
                return None
            rate[leaf, spine - L] += cable.bytes_per_s
            delay[leaf, spine - L] = max(delay[leaf, spine - L], cable.latency_s)
        if not rate.size or (rate == 0).any():
            return None
        names = self._nics, self._switches[:L], self._switches[L:]
        own = self.capacity_bytes_per_s[: self.n_nics], self.latency_s[: 2 * self.n_nics]
        latency_s = np.concatenate([own[1], delay.ravel(), delay.ravel()])
        return LeafSpine._from_links(self._nic_leaf, own[0], rate, latency_s, names)


def topology_from_file(path: str | Path) -> LeafSpine | GraphTopology:
    """Reads ``{"nodes": [{"id", "kind"}], "links": [{"a", "b", "gbps", "latency_s"}]}`` (JSON).

    A kind is one of nic, host, gpu (a NIC, which has one link) or switch, leaf, spine, tor, agg, aggregation, core. A
    link is a cable with both directions; rates in Gb/s, delays in seconds (5e-7 when left out). A graph that is a
    leaf-spine fabric comes back as :class:`LeafSpine`.

    Raises:
        ValueError: with the line of a JSON error, or the entry (``links[3]``) whose value is missing, unknown, not > 0.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}") from error
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("nodes", "links")):
        raise ValueError(f'{path}: expected {{"nodes": [...], "links": [...]}}')
    return _build(f"{path}: ", data["nodes"], data["links"])


def topology_from_networkx(graph: Any) -> LeafSpine | GraphTopology:
    """Reads an undirected networkx graph (or multigraph): nodes with ``kind``, edges with ``gbps`` and ``latency_s``.

    Anything with ``nodes(data=True)``, ``edges(data=True)`` and ``is_directed()`` will do. See :func:`topology_from_file`.

    Raises:
        TypeError, ValueError: not such a graph, a directed one, an entry that is missing, unknown or not > 0.
    """
    if not all(hasattr(graph, name) for name in ("nodes", "edges", "is_directed")):
        raise TypeError(f"graph must be a networkx graph, got {type(graph).__name__}")
    if graph.is_directed():
        raise ValueError("graph must be undirected: an edge is a cable with both directions, got a directed graph")
    nodes = [{"id": str(node), **data} for node, data in graph.nodes(data=True)]
    links = [{"a": str(a), "b": str(b), **data} for a, b, data in graph.edges(data=True)]
    return _build("graph: ", nodes, links)


def _build(source: str, nodes: Iterable[Any], links: Iterable[Any]) -> LeafSpine | GraphTopology:
    kinds: dict[str, str] = {}
    for i, node in enumerate(nodes):
        where = f"{source}nodes[{i}]"
        if not isinstance(node, Mapping) or not isinstance(node.get("id"), (str, int)):
            raise ValueError(f"{where} must be an object with an id, got {node!r}")
        name, kind = str(node["id"]), node.get("kind")
        if kind not in NIC_KINDS + SWITCH_KINDS:
            raise ValueError(f"{where}: kind must be one of {', '.join(NIC_KINDS + SWITCH_KINDS)}, got {kind!r}")
        if name in kinds:
            raise ValueError(f"{where}: id must be new, got {name!r} again")
        kinds[name] = kind
    cables = []
    for i, link in enumerate(links):
        where = f"{source}links[{i}]"
        if not isinstance(link, Mapping):
            raise ValueError(f"{where} must be an object, got {link!r}")
        for end in ("a", "b"):
            if str(link.get(end)) not in kinds:
                raise ValueError(f"{where}: {end} must be the id of a node, got {link.get(end)!r}")
        if str(link["a"]) == str(link["b"]):
            raise ValueError(f"{where}: a and b must differ, got {link['a']!r} twice")
        rate, delay = link.get("gbps"), link.get("latency_s", 5e-7)
        if not isinstance(rate, (int, float)) or not _is_number(rate) or rate <= 0:
            raise ValueError(f"{where}: gbps must be a finite number > 0, got {rate!r}")
        if not _is_number(delay) or delay < 0:
            raise ValueError(f"{where}: latency_s must be a finite number >= 0, got {delay!r}")
        cables.append(_Cable(str(link["a"]), str(link["b"]), rate * GBPS, float(delay)))
    try:
        topology = GraphTopology(kinds, cables)
    except ValueError as error:
        raise ValueError(f"{source}{error}") from error
    return topology.as_leaf_spine() or topology


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
