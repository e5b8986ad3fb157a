"""Three-tier fabrics of pods."""

import numpy as np
from jaxtyping import Int32, Int64

from anabranch.fabric._checks import ArrayLike, frozen, integers, positive_int, rate_gbps, seconds
from anabranch.fabric.topology import Topology


class FatTree(Topology):
    """Three tiers: NICs on top-of-rack switches (the leaves), aggregation switches in pods, core switches above.

    Wiring. P pods of T ToR and A aggregation switches each; inside a pod every ToR has one link to every aggregation
    switch. The aggregation switches of each pod, and the core switches, are dealt to G planes (A/G switches of each pod
    and C/G cores a plane); inside a plane every aggregation switch has one link to every core. The defaults are the
    paper's 512 GPUs: 2 pods x 16 ToR x 16 NICs, 16 aggregation switches a pod, 16 cores, one plane; then every switch has
    32 ports (ToR 16 + 16, aggregation 16 + 16, core 2 x 16) and no tier is oversubscribed. The paper gives the numbers of
    switches only; the wiring is ours. ``FatTree.k_ary(k)`` is the classic one, with as many planes as aggregation
    switches in a pod.

    Links, N NICs: NIC up; NIC down; ToR to aggregation [P, T, A]; aggregation to ToR [P, T, A]; aggregation to core
    [P, A, C/G]; core to aggregation [P, A, C/G]. Paths: one inside a ToR; A inside a pod (path a goes over switch a);
    between pods A (C/G) (A/G): path ``(a C/G + c) A/G + d`` goes up over switch a, over core c of its plane, and down over
    switch d of the plane in the other pod.

    Args:
        pods, tors_per_pod, aggs_per_pod, hosts_per_tor: P, T, A, H.
        cores: C, all together.
        planes: G, a divisor of A and of C.
        nic_gbps: NIC rate one way, Gb/s; a number or float[n_nics].
        tor_gbps, core_gbps: rate of a ToR-aggregation and of an aggregation-core link one way, Gb/s.
        latency_s: delay of every link.
        failed: ids of links that are down.
        radix: ports per switch; when given, no switch may have more.

    Raises:
        ValueError, TypeError: a count below 1, planes that do not divide, a rate that is not > 0, too few ports.
    """

    def __init__(
        self,
        pods: int = 2,
        tors_per_pod: int = 16,
        aggs_per_pod: int = 16,
        cores: int = 16,
        hosts_per_tor: int = 16,
        planes: int = 1,
        nic_gbps: ArrayLike = 400.0,
        tor_gbps: float = 400.0,
        core_gbps: float = 400.0,
        latency_s: float = 5e-7,
        failed: ArrayLike = (),
        radix: int | None = None,
    ) -> None:
        self.n_pods = pods = positive_int("pods", pods)
        self.tors_per_pod = tors = positive_int("tors_per_pod", tors_per_pod)
        self.aggs_per_pod = aggs = positive_int("aggs_per_pod", aggs_per_pod)
        self.n_cores = positive_int("cores", cores)
        hosts = positive_int("hosts_per_tor", hosts_per_tor)
        self.n_planes = positive_int("planes", planes)
        for name, switches in (("aggs_per_pod", aggs), ("cores", self.n_cores)):
            if switches % planes:
                raise ValueError(f"planes must divide {name} = {switches}, got {planes}")
        self.aggs_per_plane, self.cores_per_plane = aggs // planes, self.n_cores // planes
        if radix is not None:
            self._check_ports(positive_int("radix", radix), hosts)
        self.n_leaves = pods * tors
        self.n_nics = self.n_leaves * hosts
        self._nic_leaf = frozen(np.repeat(np.arange(self.n_leaves, dtype=np.int32), hosts))
        tier = (pods * tors * aggs, pods * aggs * self.cores_per_plane)
        sizes = (self.n_nics, self.n_nics, tier[0], tier[0], tier[1], tier[1])
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        nic = rate_gbps("nic_gbps", nic_gbps, (self.n_nics,))
        self.tor_bytes_per_s = float(rate_gbps("tor_gbps", tor_gbps, ())[0])
        self.core_bytes_per_s = float(rate_gbps("core_gbps", core_gbps, ())[0])
        tor, core = np.full(2 * tier[0], self.tor_bytes_per_s), np.full(2 * tier[1], self.core_bytes_per_s)
        n_links = int(self._first[-1])
        self._set_links(
            np.concatenate([nic, nic, tor, core]),
            seconds("latency_s", latency_s, (n_links,)),
            np.arange(n_links) >= 2 * self.n_nics,
        )
        self._set_failed(failed)

    @classmethod
    def k_ary(cls, k: int, *, gbps: float = 400.0, latency_s: float = 5e-7) -> "FatTree":
        """The classic k-ary fat tree: k pods of k/2 ToR and k/2 aggregation switches, k^2/4 cores, k^3/4 NICs.

        Raises:
            ValueError: k is odd or below 2.
        """
        if positive_int("k", k) % 2:
            raise ValueError(f"k must be even, got {k}")
        h = k // 2
        return cls(k, h, h, h * h, h, h, gbps, gbps, gbps, latency_s, radix=k)

    def _check_ports(self, radix: int, hosts: int) -> None:
        for ports, what in (
            (hosts + self.aggs_per_pod, "a ToR switch (hosts + aggregation switches)"),
            (self.tors_per_pod + self.cores_per_plane, "an aggregation switch (ToRs + cores of its plane)"),
            (self.n_pods * self.aggs_per_plane, "a core switch (pods x aggregation switches of its plane)"),
        ):
            if ports > radix:
                raise ValueError(f"radix must be >= the {ports} ports of {what}, got {radix}")

    @property
    def is_uniform(self) -> bool:
        """No fabric link has failed (each tier has one rate): the condition of the exact equal-size planners."""
        return not self.is_failed[2 * self.n_nics :].any()

    def path_id(self, up: ArrayLike, core: ArrayLike, down: ArrayLike) -> Int64[np.ndarray, "..."]:
        """Number of the path between pods over switch ``up``, core ``core`` of its plane and switch ``down`` of that plane."""
        up = integers("up", up, low=0, high=self.aggs_per_pod)
        core = integers("core", core, low=0, high=self.cores_per_plane)
        down = integers("down", down, low=0, high=self.aggs_per_plane)
        return np.asarray((up * self.cores_per_plane + core) * self.aggs_per_plane + down)

    def n_paths(self, src: ArrayLike, dst: ArrayLike) -> Int64[np.ndarray, "n"]:
        """1 inside a ToR, A inside a pod, A C A / G^2 between pods."""
        src, dst = self._end_points(src, dst)
        a, b = self._nic_leaf[src], self._nic_leaf[dst]
        between = self.aggs_per_pod * self.cores_per_plane * self.aggs_per_plane
        inside = np.where(a == b, 1, self.aggs_per_pod)
        return np.where(a // self.tors_per_pod == b // self.tors_per_pod, inside, between).astype(np.int64)

    def paths(
        self, src: ArrayLike, dst: ArrayLike, path: ArrayLike
    ) -> tuple[Int64[np.ndarray, "n_plus_1"], Int32[np.ndarray, "hops"]]:
        """See :meth:`Topology.paths`."""
        src, dst, path = self._end_points(src, dst, path)
        self._check_paths(src, dst, path, self.n_paths(src, dst))
        a, b = self._nic_leaf[src].astype(np.int64), self._nic_leaf[dst].astype(np.int64)
        pod_a, pod_b = a // self.tors_per_pod, b // self.tors_per_pod
        crosses = pod_a != pod_b
        turns = (a != b) & ~crosses
        hops = np.where(crosses, 6, np.where(turns, 4, np.where(src == dst, 0, 2)))
        indptr = np.concatenate([[0], np.cumsum(hops)])
        links = np.empty(indptr[-1], dtype=np.int32)
        moves = src != dst
        links[indptr[:-1][moves]] = src[moves]
        links[indptr[1:][moves] - 1] = self.n_nics + dst[moves]
        per_up = self.cores_per_plane * self.aggs_per_plane
        up = np.where(crosses, path // per_up, path)
        core = path % per_up // self.aggs_per_plane
        down = np.where(crosses, up // self.aggs_per_plane * self.aggs_per_plane + path % self.aggs_per_plane, path)
        rises = a != b
        links[indptr[:-1][rises] + 1] = self._first[2] + (a * self.aggs_per_pod + up)[rises]
        links[indptr[1:][rises] - 2] = self._first[3] + (b * self.aggs_per_pod + down)[rises]
        at = indptr[:-1][crosses]
        rise, fall = (
            ((pod * self.aggs_per_pod + agg) * self.cores_per_plane + core)[crosses]
            for pod, agg in ((pod_a, up), (pod_b, down))
        )
        links[at + 2] = self._first[4] + rise
        links[at + 3] = self._first[5] + fall
        return indptr, links

    def link_name(self, link: int) -> str:
        """``nic0->tor0``, ``tor0->agg0.3`` (pod.switch), ``agg0.3->core5`` and the other way round."""
        link = int(integers("link", link, low=0, high=self.n_links))
        kind = int(np.searchsorted(self._first, link, side="right")) - 1
        rest = link - int(self._first[kind])
        if kind < 2:
            ends = f"nic{rest}", f"tor{self._nic_leaf[rest]}"
        elif kind < 4:
            tor, agg = divmod(rest, self.aggs_per_pod)
            ends = f"tor{tor}", f"agg{tor // self.tors_per_pod}.{agg}"
        else:
            switch, core = divmod(rest, self.cores_per_plane)
            pod, agg = divmod(switch, self.aggs_per_pod)
            ends = f"agg{pod}.{agg}", f"core{agg // self.aggs_per_plane * self.cores_per_plane + core}"
        return "->".join(ends if kind % 2 == 0 else ends[::-1])

    def __repr__(self) -> str:
        return (
            f"FatTree({self.n_pods} pods, {self.n_leaves} ToR, {self.n_pods * self.aggs_per_pod} aggregation, "
            f"{self.n_cores} core, {self.n_nics} NICs, {len(self.failed)} links down)"
        )
