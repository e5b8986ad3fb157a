"""Fabrics: the directed links of a cluster network and the paths between its NICs.

A topology is immutable. Links are directed and numbered from 0; a cable is two links. Every NIC has one link up to its
first switch (its *leaf*) and one link down from it; those are the NIC links, all others are fabric links. Between two NICs
there are ``n_paths`` equal-cost paths, numbered from 0 in an order that does not change when links fail, so that a plan
made before a failure can be read after it.
"""

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from anabranch.fabric._checks import ArrayLike, frozen, integers, positive_int, rate_gbps, seconds

if TYPE_CHECKING:
    from anabranch.fabric.graph import GraphTopology


class Topology(ABC):
    """What every fabric offers. All arguments ``src``, ``dst`` (NIC ids), ``path`` broadcast to one length ``n``.

    Attributes:
        n_nics: number of NICs.
        n_leaves: number of first-hop switches.
        n_links: number of directed links, failed ones included.
        capacity_bytes_per_s: one way, per link; > 0 also for failed links (their rate when they come back).
        latency_s: propagation delay per link.
        is_fabric_link: False for the links between a NIC and its leaf.
        failed: ids of the links that are down, sorted.
        is_failed: the same as a mask.
    """

    n_nics: int
    n_leaves: int
    n_links: int
    capacity_bytes_per_s: Float64[np.ndarray, "links"]
    latency_s: Float64[np.ndarray, "links"]
    is_fabric_link: Bool[np.ndarray, "links"]
    failed: Int32[np.ndarray, "failed"]
    is_failed: Bool[np.ndarray, "links"]

    _nic_leaf: Int32[np.ndarray, "nics"]

    @abstractmethod
    def n_paths(self, src: ArrayLike, dst: ArrayLike) -> Int64[np.ndarray, "n"]:
        """Number of paths, dead ones included: 1 inside a leaf (NIC up, NIC down), 1 (of no link) from a NIC to itself."""

    @abstractmethod
    def paths(
        self, src: ArrayLike, dst: ArrayLike, path: ArrayLike
    ) -> tuple[Int64[np.ndarray, "n_plus_1"], Int32[np.ndarray, "hops"]]:
        """Links of many paths in travel order: path ``i`` is ``links[indptr[i]:indptr[i + 1]]``. O(total hops).

        Raises:
            ValueError: a NIC or a path number is out of range.
        """

    @abstractmethod
    def link_name(self, link: int) -> str:
        """Readable name of a link, ``"leaf0->spine3"``."""

    def path(self, src: int, dst: int, k: int) -> Int32[np.ndarray, "hops"]:
        """Links of the k-th path from ``src`` to ``dst``."""
        return self.paths([src], [dst], [k])[1]

    def leaf_of(self, nic: ArrayLike) -> Int32[np.ndarray, "..."]:
        """The first-hop switch of each NIC, in [0, n_leaves)."""
        return np.asarray(self._nic_leaf[integers("nic", nic, low=0, high=self.n_nics)])

    def alive(self, src: ArrayLike, dst: ArrayLike, path: ArrayLike) -> Bool[np.ndarray, "n"]:
        """True where no link of the path has failed."""
        indptr, links = self.paths(src, dst, path)
        dead_before = np.concatenate([[0], np.cumsum(self.is_failed[links])])
        return np.asarray(dead_before[indptr[1:]] == dead_before[indptr[:-1]])

    @staticmethod
    def from_file(path: str | Path) -> "LeafSpine | GraphTopology":
        """Reads ``{"nodes": [{"id", "kind"}], "links": [{"a", "b", "gbps", "latency_s"}]}`` (JSON).

        See :func:`anabranch.fabric.graph.topology_from_file`.
        """
        from anabranch.fabric.graph import topology_from_file

        return topology_from_file(path)

    @staticmethod
    def from_networkx(graph: Any) -> "LeafSpine | GraphTopology":
        """Reads a networkx graph. See :func:`anabranch.fabric.graph.topology_from_networkx`."""
        from anabranch.fabric.graph import topology_from_networkx

        return topology_from_networkx(graph)

    def _set_links(self, capacity_bytes_per_s: np.ndarray, latency_s: np.ndarray, is_fabric_link: np.ndarray) -> None:
        self.n_links = len(capacity_bytes_per_s)
        self.capacity_bytes_per_s = frozen(capacity_bytes_per_s)
        self.latency_s = frozen(latency_s)
        self.is_fabric_link = frozen(is_fabric_link)

    def _set_failed(self, failed: ArrayLike) -> None:
        ids = integers("failed", failed, low=0, high=self.n_links, dtype=np.int32)
        self.failed = frozen(np.unique(ids))
        mask = np.zeros(self.n_links, dtype=bool)
        mask[self.failed] = True
        self.is_failed = frozen(mask)

    def _end_points(self, *arrays: ArrayLike) -> list[np.ndarray]:
        """``src, dst[, path]`` checked and broadcast to one dimension."""
        src = integers("src", arrays[0], low=0, high=self.n_nics)
        dst = integers("dst", arrays[1], low=0, high=self.n_nics)
        rest = [integers("path", a, low=0) for a in arrays[2:]]
        return [np.atleast_1d(a) for a in np.broadcast_arrays(src, dst, *rest)]

    def _check_paths(self, src: np.ndarray, dst: np.ndarray, path: np.ndarray, n_paths: np.ndarray) -> None:
        wrong = path >= n_paths
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(
                f"path[{i}] must be < {int(n_paths[i])} (the paths from NIC {int(src[i])} to NIC {int(dst[i])}), "
                f"got {int(path[i])}"
            )


AnyTopology = TypeVar("AnyTopology", bound=Topology)


def with_failed(topology: AnyTopology, failed: ArrayLike) -> AnyTopology:
    """The same fabric with exactly the links ``failed`` down."""
    other = copy.copy(topology)
    other._set_failed(failed)
    return other


def fail_links(topology: AnyTopology, ids: ArrayLike) -> AnyTopology:
    """The same fabric with the links ``ids`` down too (one direction each; see ``LeafSpine.cable`` for both).

    Raises:
        ValueError: an id is not a link.
    """
    ids = integers("ids", ids, low=0, high=topology.n_links, dtype=np.int32)
    return with_failed(topology, np.union1d(topology.failed, np.atleast_1d(ids)))


class LeafSpine(Topology):
    """Two tiers: NIC ``i`` hangs on leaf ``i // hosts_per_leaf``, every leaf has one link to and from every spine.

    Links: NIC up ``i``; NIC down ``n_nics + i``; leaf a to spine k ``2 n_nics + a S + k``; spine k to leaf a
    ``2 n_nics + L S + a S + k``. Path k between two leaves goes over spine k.

    Args:
        leaves, spines, hosts_per_leaf: L, S, H, each >= 1.
        nic_gbps: NIC rate one way, Gb/s; a number or float[n_nics].
        up_gbps: rate of one leaf-spine link one way, Gb/s; a number or float[L, S].
        links_per_pair: parallel links m between a leaf and a spine; they count as one link of m times the rate.
        latency_s: delay of every link.
        failed: ids of links that are down.
        radix: ports per switch; when given, H + S m and L m must not exceed it.
        down_gbps: rate from spine to leaf where it differs from ``up_gbps``; a number or float[L, S].

    Raises:
        ValueError, TypeError: a count below 1, a rate that is not > 0 and finite, too few ports, an unknown link.
    """

    def __init__(
        self,
        leaves: int,
        spines: int,
        hosts_per_leaf: int,
        nic_gbps: ArrayLike = 400.0,
        up_gbps: ArrayLike = 400.0,
        links_per_pair: int = 1,
        latency_s: float = 5e-7,
        failed: ArrayLike = (),
        radix: int | None = None,
        *,
        down_gbps: ArrayLike | None = None,
    ) -> None:
        leaves, spines = positive_int("leaves", leaves), positive_int("spines", spines)
        hosts = positive_int("hosts_per_leaf", hosts_per_leaf)
        multiplicity = positive_int("links_per_pair", links_per_pair)
        if radix is not None:
            radix = positive_int("radix", radix)
            for ports, what in (
                (hosts + spines * multiplicity, f"a leaf ({hosts} hosts + {spines} spines x {multiplicity} links)"),
                (leaves * multiplicity, f"a spine ({leaves} leaves x {multiplicity} links)"),
            ):
                if ports > radix:
                    raise ValueError(f"radix must be >= the {ports} ports of {what}, got {radix}")
        nic = rate_gbps("nic_gbps", nic_gbps, (leaves * hosts,))
        up = rate_gbps("up_gbps", up_gbps, (leaves, spines)) * multiplicity
        down = up if down_gbps is None else rate_gbps("down_gbps", down_gbps, (leaves, spines)) * multiplicity
        n_links = 2 * (leaves * hosts + leaves * spines)
        nic_leaf = np.repeat(np.arange(leaves, dtype=np.int32), hosts)
        self._build(spines, nic_leaf, nic, up, down, seconds("latency_s", latency_s, (n_links,)), failed)

    @classmethod
    def _from_links(
        cls,
        nic_leaf: np.ndarray,
        nic: np.ndarray,
        rate: np.ndarray,
        latency_s: np.ndarray,
        names: tuple[list[str], ...],
    ) -> "LeafSpine":
        """NICs on any leaf, rates in bytes/s, named nodes (NICs, leaves, spines)."""
        fabric = cls.__new__(cls)
        fabric._build(rate.shape[1], nic_leaf, nic, rate.ravel(), rate.ravel(), latency_s, ())
        fabric._names = names
        return fabric

    def _build(
        self,
        spines: int,
        nic_leaf: np.ndarray,
        nic: np.ndarray,
        up: np.ndarray,
        down: np.ndarray,
        latency_s: np.ndarray,
        failed: ArrayLike,
    ) -> None:
        self.n_nics, self.n_leaves, self.n_spines = len(nic_leaf), len(up) // spines, spines
        self._nic_leaf = frozen(nic_leaf)
        self._names: tuple[list[str], ...] | None = None
        fabric = np.arange(2 * (self.n_nics + len(up))) >= 2 * self.n_nics
        self._set_links(np.concatenate([nic, nic, up, down]), latency_s, fabric)
        self._set_failed(failed)

    @property
    def up_bytes_per_s(self) -> Float64[np.ndarray, "leaves spines"]:
        """Rate from leaf to spine; 0 where the link is down."""
        return self._usable(2 * self.n_nics)

    @property
    def down_bytes_per_s(self) -> Float64[np.ndarray, "leaves spines"]:
        """Rate from spine to leaf (indexed leaf first); 0 where the link is down."""
        return self._usable(2 * self.n_nics + self.n_leaves * self.n_spines)

    @property
    def is_uniform(self) -> bool:
        """All fabric links have one rate and none has failed: the condition of the exact equal-size planners."""
        rates = self.capacity_bytes_per_s[2 * self.n_nics :]
        return bool((rates == rates[0]).all() and not self.is_failed[2 * self.n_nics :].any())

    def _usable(self, first: int) -> np.ndarray:
        part = slice(first, first + self.n_leaves * self.n_spines)
        rates = np.where(self.is_failed[part], 0.0, self.capacity_bytes_per_s[part])
        return rates.reshape(self.n_leaves, self.n_spines)

    def uplink(self, leaf: ArrayLike, spine: ArrayLike) -> Int64[np.ndarray, "..."]:
        """Link id from leaf to spine."""
        leaf = integers("leaf", leaf, low=0, high=self.n_leaves)
        spine = integers("spine", spine, low=0, high=self.n_spines)
        return np.asarray(2 * self.n_nics + leaf * self.n_spines + spine)

    def downlink(self, leaf: ArrayLike, spine: ArrayLike) -> Int64[np.ndarray, "..."]:
        """Link id from spine to leaf."""
        return np.asarray(self.uplink(leaf, spine) + self.n_leaves * self.n_spines)

    def cable(self, leaf: int, spine: int) -> Int64[np.ndarray, "2"]:
        """Both directions between a leaf and a spine."""
        return np.array([self.uplink(leaf, spine), self.downlink(leaf, spine)], dtype=np.int64)

    def n_paths(self, src: ArrayLike, dst: ArrayLike) -> Int64[np.ndarray, "n"]:
        """S between two leaves, else 1."""
        src, dst = self._end_points(src, dst)
        return np.where(self._nic_leaf[src] == self._nic_leaf[dst], 1, self.n_spines).astype(np.int64)

    def paths(
        self, src: ArrayLike, dst: ArrayLike, path: ArrayLike
    ) -> tuple[Int64[np.ndarray, "n_plus_1"], Int32[np.ndarray, "hops"]]:
        """See :meth:`Topology.paths`."""
        src, dst, path = self._end_points(src, dst, path)
        a, b = self._nic_leaf[src].astype(np.int64), self._nic_leaf[dst].astype(np.int64)
        crosses = a != b
        self._check_paths(src, dst, path, np.where(crosses, self.n_spines, 1))
        hops = np.where(crosses, 4, np.where(src == dst, 0, 2))
        indptr = np.concatenate([[0], np.cumsum(hops)])
        links = np.empty(indptr[-1], dtype=np.int32)
        moves = src != dst
        links[indptr[:-1][moves]] = src[moves]
        links[indptr[1:][moves] - 1] = self.n_nics + dst[moves]
        at = indptr[:-1][crosses]
        links[at + 1] = 2 * self.n_nics + (a * self.n_spines + path)[crosses]
        links[at + 2] = 2 * self.n_nics + ((self.n_leaves + b) * self.n_spines + path)[crosses]
        return indptr, links

    def link_name(self, link: int) -> str:
        """``nic0->leaf0``, ``leaf0->nic0``, ``leaf0->spine0`` or ``spine0->leaf0``; the ids of a file if it was read from one."""
        link = int(integers("link", link, low=0, high=self.n_links))
        if link < 2 * self.n_nics:
            nic = link % self.n_nics
            ends = self._name(0, nic), self._name(1, int(self._nic_leaf[nic]))
            return "->".join(ends if link < self.n_nics else ends[::-1])
        tier, rest = divmod(link - 2 * self.n_nics, self.n_leaves * self.n_spines)
        leaf, spine = divmod(rest, self.n_spines)
        ends = self._name(1, leaf), self._name(2, spine)
        return "->".join(ends if tier == 0 else ends[::-1])

    def _name(self, tier: int, i: int) -> str:
        return f"{('nic', 'leaf', 'spine')[tier]}{i}" if self._names is None else self._names[tier][i]

    def __repr__(self) -> str:
        down = len(self.failed)
        return f"LeafSpine({self.n_leaves} leaves, {self.n_spines} spines, {self.n_nics} NICs, {down} links down)"
