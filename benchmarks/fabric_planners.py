"""Planners beside what one would write with scipy, HiGHS or networkx, in one process: both times and their ratio.

Run: ``python benchmarks/fabric_planners.py`` (under two minutes). Every peer's answer is checked to be as good as ours before it
is timed. Calls in turn, medians; a peer that needs more than 1.5 s is called once, and no longer grown when it needs more than
20 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import gcd
from statistics import median

import networkx as nx
import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from anabranch.fabric import (
    LeafDemand,
    LeafSpine,
    Plan,
    Traffic,
    closed_form_optimum,
    collective,
    konig_matrix,
    optimum,
    plan_konig,
    plan_split,
)
from anabranch.lab import time_pairs

ONCE_ABOVE_S, STOP_ABOVE_S, LIMIT_S = 1.5, 20.0, 21.0


def across_leaves(fabric: LeafSpine) -> Traffic:
    """A random permutation of all NICs in which every flow leaves its leaf; so D is the number of NICs on a leaf."""
    generator = np.random.default_rng(fabric.n_leaves)
    src = np.arange(fabric.n_nics)
    dst = generator.permutation(fabric.n_nics)
    leaf = fabric.leaf_of(src)
    while len(inside := np.flatnonzero(leaf == leaf[dst])):
        for i in inside:
            j = generator.integers(fabric.n_nics)
            dst[[i, j]] = dst[[j, i]]
    return Traffic(src, dst, 2**20)


def matching_plan(fabric: LeafSpine, traffic: Traffic, find: Callable[[np.ndarray], np.ndarray]) -> Plan:
    """König's theorem by hand where every leaf sends and receives D flows, S divides D: matching m goes over spine m mod S."""
    L, S = fabric.n_leaves, fabric.n_spines
    pair = fabric.leaf_of(traffic.src).astype(np.int64) * L + fabric.leaf_of(traffic.dst)
    count = np.bincount(pair, minlength=L * L)
    counts = count.reshape(L, L).copy()
    order = np.argsort(pair, kind="stable")
    next_flow = np.cumsum(count) - count
    path = np.zeros(traffic.n_flows, dtype=np.int32)
    left = np.arange(L)
    for m in range(traffic.n_flows // L):
        right = find(counts)
        counts[left, right] -= 1
        path[order[next_flow[left * L + right]]] = m % S
        next_flow[left * L + right] += 1
    return Plan(fabric, traffic, np.arange(traffic.n_flows), path, traffic.size_bytes)


def by_networkx(counts: np.ndarray) -> np.ndarray:
    L = len(counts)
    graph = nx.Graph()
    a, b = np.nonzero(counts)
    graph.add_nodes_from(range(L))
    graph.add_edges_from(zip(a.tolist(), (b + L).tolist(), strict=True))
    found = nx.bipartite.hopcroft_karp_matching(graph, range(L))
    return np.array([found[i] - L for i in range(L)])


def by_scipy(counts: np.ndarray) -> np.ndarray:
    return np.asarray(maximum_bipartite_matching(csr_matrix(counts), perm_type="column"))


def by_linear_program(fabric: LeafSpine, traffic: Traffic) -> float | None:
    """The program over (pair of leaves, spine), as in a textbook; seconds of congestion, or None out of time."""
    L, S = fabric.n_leaves, fabric.n_spines
    a, b = fabric.leaf_of(traffic.src).astype(np.int64), fabric.leaf_of(traffic.dst).astype(np.int64)
    cell, of_flow = np.unique((a * L + b)[a != b], return_inverse=True)
    size = np.bincount(of_flow, traffic.size_bytes[a != b])
    unit = size.max()
    a, b = np.divmod(cell, L)
    n = len(cell) * S
    pair, spine = np.divmod(np.arange(n), S)
    rows = np.concatenate([a[pair] * S + spine, L * S + b[pair] * S + spine])
    limit = np.full(2 * L * S, -float(fabric.up_bytes_per_s[0, 0]) / unit)
    values = np.concatenate([np.ones(2 * n), limit])
    ij = (
        np.concatenate([rows, np.arange(2 * L * S)]),
        np.concatenate([np.tile(np.arange(n), 2), np.full(2 * L * S, n)]),
    )
    loads = coo_matrix((values, ij), shape=(2 * L * S, n + 1)).tocsr()
    demand = coo_matrix((np.ones(n), (pair, np.arange(n))), shape=(len(cell), n + 1)).tocsr()
    cost = np.append(np.zeros(n), 1.0)
    options = {"time_limit": LIMIT_S}
    found = linprog(cost, loads, np.zeros(2 * L * S), demand, size / unit, method="highs", options=options)
    return float(found.fun) if found.status == 0 else None


def pair_rule(fabric: LeafSpine, traffic: Traffic) -> Plan:
    """The paper's rule, group by group: whole flows per spine, the rest in s/g equal pieces dealt round."""
    S = fabric.n_spines
    a, b = fabric.leaf_of(traffic.src).astype(np.int64), fabric.leaf_of(traffic.dst).astype(np.int64)
    pair = a * fabric.n_leaves + b
    order = np.argsort(pair, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(pair[order])) + 1)
    parents, paths, sizes = [], [], []
    for flows in groups:
        if a[flows[0]] == b[flows[0]]:
            parents.append(flows)
            paths.append(np.zeros(len(flows), dtype=np.int64))
            sizes.append(traffic.size_bytes[flows])
            continue
        whole = len(flows) // S * S
        parents.append(flows[:whole])
        paths.append(np.arange(whole) % S)
        sizes.append(traffic.size_bytes[flows[:whole]])
        rest = flows[whole:]
        if len(rest):
            parts = S // gcd(len(rest), S)
            total = np.repeat(traffic.size_bytes[rest], parts)
            parents.append(np.repeat(rest, parts))
            paths.append(np.arange(len(rest) * parts) % S)
            sizes.append(total // parts + (np.tile(np.arange(parts), len(rest)) < total % parts))
    columns = (np.concatenate(column) for column in (parents, paths, sizes))
    return Plan(fabric, traffic, *columns)


class Race:
    """One peer, on growing sizes."""

    def __init__(self, peer: str) -> None:
        self.peer, self.over = peer, False

    def run(self, size: str, ours: Callable[[], object], peer: Callable[[], object]) -> None:
        if self.over:
            return
        begin = time.perf_counter()
        answer = peer()
        once = time.perf_counter() - begin
        if once < ONCE_ABOVE_S:
            timing = time_pairs(ours, peer, pairs=5, warmup=1)
            ours_s, peer_s, ratio = median(timing.ours_s), median(timing.peer_s), timing.value
        else:
            ours_s, peer_s = time_pairs(ours, pairs=5, warmup=1).value, once
            ratio = peer_s / ours_s
        sign = ">" if answer is None else " "
        self.over = peer_s > STOP_ABOVE_S
        print(f"{size:44s} {ours_s:10.5f} s   {self.peer:38s} {sign}{peer_s:10.5f} s   {sign}{ratio:9.1f}x", flush=True)


def check(name: str, value: float, expected: float) -> None:
    if abs(value / expected - 1) > 1e-6:
        raise AssertionError(f"{name}: {value} is not the optimum {expected}")


def permutations() -> None:
    print("\nA random permutation across leaves, 32 NICs a leaf, 32 spines: plan_konig beside")
    names = (
        "scipy linprog, pairs x spines",
        "optimum: HiGHS, alike spines as one",
        "networkx, 32 Hopcroft-Karp matchings",
        "scipy csgraph, 32 matchings",
    )
    races = [Race(name) for name in names]
    for leaves in (8, 32, 128, 512, 2048):
        fabric = LeafSpine(leaves, 32, 32)
        traffic = across_leaves(fabric)
        best = float(closed_form_optimum(fabric, traffic)[0])
        check("konig", plan_konig(fabric, traffic).max_congestion_s(), best)
        solvers: tuple[Callable[[], object], ...] = (
            lambda f=fabric, t=traffic: by_linear_program(f, t),  # type: ignore[misc]
            lambda f=fabric, t=traffic: optimum(f, t).value_s,  # type: ignore[misc]
            lambda f=fabric, t=traffic: matching_plan(f, t, by_networkx).max_congestion_s(),  # type: ignore[misc]
            lambda f=fabric, t=traffic: matching_plan(f, t, by_scipy).max_congestion_s(),  # type: ignore[misc]
        )
        for race, solve in zip(races, solvers, strict=True):
            if not race.over:
                answers: list[object] = []
                race.run(
                    f"  {fabric.n_nics:6,} NICs, {traffic.n_flows:6,} flows",
                    lambda f=fabric, t=traffic: plan_konig(f, t).max_congestion_s(),  # type: ignore[misc]
                    lambda s=solve, kept=answers: kept.append(s()) or kept[-1],  # type: ignore[misc]
                )
                if isinstance(answers[0], float):
                    check(race.peer, answers[0], best)


def all_to_alls() -> None:
    print("\nAll-to-all, 32 NICs a leaf, 31 spines: konig_matrix on the counts beside plan_konig on the list of flows")
    race = Race("plan_konig, every flow listed")
    for leaves in (8, 16, 32, 64):
        fabric = LeafSpine(leaves, 31, 32)
        traffic = collective("all-to-all", ranks=fabric.n_nics, message_bytes=31 * fabric.n_nics)
        demand = LeafDemand.all_to_all(fabric, 31)
        shares, plan = konig_matrix(demand, 31), plan_konig(fabric, traffic)
        best = float(closed_form_optimum(fabric, traffic)[0])
        check("konig_matrix", max(load.max() for load in shares.loads()), shares.degree)
        check("plan_konig", plan.max_congestion_s(), best)
        race.run(
            f"  {fabric.n_nics:6,} NICs, {traffic.n_flows:9,} flows",
            lambda d=demand: konig_matrix(d, 31),  # type: ignore[misc]
            lambda f=fabric, t=traffic: plan_konig(f, t),  # type: ignore[misc]
        )


def pair_rules() -> None:
    print("\nThe paper's rule per pair of leaves: plan_split beside numpy, one group at a time")
    race = Race("numpy, group by group")
    for leaves, spines, hosts in ((16, 16, 16), (128, 32, 32), (512, 32, 32), (2048, 32, 32)):
        fabric = LeafSpine(leaves, spines, hosts)
        traffic = across_leaves(fabric)
        ours, peer = plan_split(fabric, traffic), pair_rule(fabric, traffic)
        best = float(closed_form_optimum(fabric, traffic)[0])
        check("plan_split", ours.max_congestion_s(), best)
        check("numpy", peer.max_congestion_s(), best)
        if ours.n_pieces != peer.n_pieces:
            raise AssertionError(f"pieces: {ours.n_pieces} and {peer.n_pieces}")
        race.run(
            f"  {fabric.n_nics:6,} NICs, {traffic.n_flows:6,} flows, {ours.n_pieces:9,} pieces",
            lambda f=fabric, t=traffic: plan_split(f, t),  # type: ignore[misc]
            lambda f=fabric, t=traffic: pair_rule(f, t),  # type: ignore[misc]
        )


def main() -> None:
    begin = time.perf_counter()
    permutations()
    all_to_alls()
    pair_rules()
    print(f"\n{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
