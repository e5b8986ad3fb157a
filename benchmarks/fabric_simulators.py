"""Simulators beside their peers: both times and their ratio, after their answers were compared.

Run: ``python benchmarks/fabric_simulators.py [--long]`` (under two minutes, ``--long`` under ten).

- max-min rates: numpy progressive filling (one link level at a time), and a sequence of linear programs (HiGHS).
- fluid: SimGrid 3 in its own process, as an engine runs once, set to pure max-min sharing. The time is that of ``Engine.run``,
  which starts one communication a piece from Python, without building the platform; median of three. Debian has it as
  python3-simgrid; any python3 on the PATH that imports ``simgrid`` will do.
- packets: the same kernel with one heap in place of lanes, in this process.

Calls in turn, medians; a peer that needs more than 1.5 s is called once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix, csr_matrix

from anabranch.fabric import (
    LeafSpine,
    Plan,
    Traffic,
    collective,
    concatenate,
    max_min_rates,
    packets,
    plan_ecmp,
    plan_konig,
    plan_split,
    plan_spray,
    simulate_fluid,
    simulate_packets,
)
from anabranch.lab import time_pairs

ONCE_ABOVE_S = 1.5


def permutation(ranks: int, size: int, seed: int = 0) -> Traffic:
    return Traffic(np.arange(ranks), np.random.default_rng(seed).permutation(ranks), size)


def all_to_all_of_many_sizes(ranks: int, seed: int = 0) -> Traffic:
    src, dst = np.divmod(np.arange(ranks * ranks), ranks)
    return Traffic(src, dst, np.random.default_rng(seed).integers(1 << 16, 1 << 20, len(src)))


def timed(ours: Callable[[], object], peer: Callable[[], object], pairs: int = 5) -> tuple[float, float]:
    """Median seconds of both; the peer is called once if that takes long."""
    ours()
    start = time.perf_counter()
    peer()
    once = time.perf_counter() - start
    if once > ONCE_ABOVE_S:
        own = []
        for _ in range(pairs):
            start = time.perf_counter()
            ours()
            own.append(time.perf_counter() - start)
        return median(own), once
    timing = time_pairs(ours, peer, pairs=pairs)
    return median(timing.ours_s), median(timing.peer_s)


def row(name: str, ours: float, peer: float, difference: float) -> None:
    print(f"  {name:58s} {ours:10.5f} s {peer:10.4f} s {peer / ours:9.1f}x   differ by {difference:.0e}", flush=True)


# Max-min rates.


def touches(plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    indptr, links = plan.piece_links()
    return plan.topology.capacity_bytes_per_s, indptr.astype(np.int64), links


def incidence(capacity: np.ndarray, indptr: np.ndarray, links: np.ndarray) -> csr_matrix:
    piece = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return coo_matrix((np.ones(len(links)), (links, piece)), shape=(len(capacity), len(indptr) - 1)).tocsr()


def numpy_filling(capacity: np.ndarray, matrix: csr_matrix) -> np.ndarray:
    """All links with the smallest share stop their pieces, with vectors and sparse products; O(levels x touches)."""
    by_piece = matrix.T.tocsr()
    rate, free = np.zeros(matrix.shape[1]), np.ones(matrix.shape[1], dtype=bool)
    residual = capacity.copy()
    count = np.asarray(matrix.sum(axis=1)).ravel()
    while free.any():
        share = np.divide(residual, count, out=np.full(len(count), np.inf), where=count > 0.5)
        level = share.min()
        full = (share <= level * (1 + 1e-12)).astype(float)
        stopped = free & (by_piece @ full > 0)
        rate[stopped] = level
        free &= ~stopped
        gone = matrix @ stopped.astype(float)
        residual -= level * gone
        count -= gone
    return rate


def sequential_lp(capacity: np.ndarray, matrix: csr_matrix) -> np.ndarray:
    """Maximize the smallest rate, fix the pieces with a positive dual, repeat: one LP for each level."""
    from scipy.sparse import eye_array, hstack, vstack

    rate, free, scale = np.zeros(matrix.shape[1]), np.ones(matrix.shape[1], dtype=bool), capacity.max()
    used = np.asarray(matrix.sum(axis=1)).ravel() > 0
    matrix, capacity = matrix[used], capacity[used]
    while free.any():
        columns, k = matrix[:, free], int(free.sum())
        a = vstack(
            [hstack([columns, csr_matrix((len(capacity), 1))]), hstack([-eye_array(k), np.ones((k, 1))])]
        ).tocsr()
        b = np.concatenate([(capacity - matrix[:, ~free] @ rate[~free]) / scale, np.zeros(k)])
        cost = np.zeros(k + 1)
        cost[-1] = -1
        answer = linprog(cost, A_ub=a, b_ub=b, bounds=[(0, None)] * (k + 1), method="highs")
        tight = answer.ineqlin.marginals[len(capacity) :] < -1e-9
        chosen = np.flatnonzero(free)[tight]
        rate[chosen] = answer.x[-1] * scale
        free[chosen] = False
    return rate


def max_min_section(long: bool) -> None:
    print("max-min rates" + " " * 49 + "ours         peer      ratio")
    cases = [(16, 4, 4, 4), (256, 16, 16, 16), (16384, 512, 32, 32)] + ([(65536, 2048, 32, 32)] if long else [])
    for n, leaves, spines, hosts in cases:
        fabric = LeafSpine(leaves, spines, hosts)
        for split in (1, 8):
            plan = plan_ecmp(fabric, permutation(n, 1 << 22), split=split, seed=0)
            case = touches(plan)
            matrix = incidence(*case)
            name = f"{n} NICs, permutation, ECMP-{split} ({plan.n_pieces} pieces)"
            rate = max_min_rates(*case)
            peers = [("numpy filling", numpy_filling)]
            if plan.n_pieces <= (2048 if long else 256):
                peers.append(("HiGHS", sequential_lp))
            for peer, function in peers:
                other = function(case[0], matrix)
                difference = float(np.abs(other / rate - 1).max())
                row(
                    f"{name}, {peer}",
                    *timed(lambda c=case: max_min_rates(*c), lambda f=function, c=case[0], m=matrix: f(c, m)),
                    difference,
                )


# Fluid.

SIMGRID = r"""
import json, sys, time
import simgrid
case = json.load(open(sys.argv[1]))
engine = simgrid.Engine(["benchmark", "--log=root.threshold:error"] + ["--cfg=" + option for option in case["options"]])
zone = simgrid.NetZone.create_full_zone("zone")
links = [zone.create_link("l%d" % i, rate).set_latency(0.0).seal() for i, rate in enumerate(case["capacity"])]
ends = []
for i, used in enumerate(case["pieces"]):
    a, b = (zone.create_host("%s%d" % (side, i), 1e9).seal() for side in "ab")
    zone.add_route(a.netpoint, b.netpoint, None, None, [simgrid.LinkInRoute(links[k]) for k in used], False)
    ends.append((a, b))
root = zone.create_host("root", 1e9).seal()
zone.seal()
times = []
def actor():
    flows = [simgrid.Comm.sendto_async(a, b, size) for (a, b), size in zip(ends, case["size"])]
    for flow in flows:
        flow.wait()
    times.append(simgrid.Engine.clock)
simgrid.Actor.create("main", root, actor)
start = time.perf_counter()
engine.run()
print(json.dumps({"seconds": time.perf_counter() - start, "completion": times[0], "version": simgrid.simgrid_version}))
"""
PURE_MAX_MIN = [
    "network/model:CM02",
    "network/bandwidth-factor:1",
    "network/latency-factor:1",
    "network/TCP-gamma:0",
    "network/weight-S:0",
    "network/crosstraffic:0",
    "maxmin/precision:1e-9",
    "surf/precision:1e-12",
]


def simgrid_python() -> str | None:
    """An interpreter that has SimGrid."""
    found = [sys.executable] + [
        str(Path(folder) / "python3") for folder in os.environ.get("PATH", "").split(os.pathsep)
    ]
    for interpreter in dict.fromkeys(found):
        if Path(interpreter).is_file():
            check = subprocess.run([interpreter, "-c", "import simgrid"], capture_output=True, check=False)
            if check.returncode == 0:
                return interpreter
    return None


def run_simgrid(interpreter: str, plan: Plan) -> dict[str, Any]:
    indptr, links = plan.piece_links()
    case = {
        "options": PURE_MAX_MIN,
        "capacity": plan.topology.capacity_bytes_per_s.tolist(),
        "pieces": [links[a:b].tolist() for a, b in pairwise(indptr)],
        "size": plan.size_bytes.tolist(),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.json"
        path.write_text(json.dumps(case))
        answer = subprocess.run(
            [interpreter, "-c", SIMGRID, str(path)], capture_output=True, text=True, check=False, timeout=600
        )
    if answer.returncode:
        raise RuntimeError(answer.stderr.strip().splitlines()[-1])
    return json.loads(answer.stdout.strip().splitlines()[-1])


def fluid_section(long: bool) -> None:
    print("fluid simulation" + " " * 46 + "ours         peer      ratio")
    interpreter = simgrid_python()
    if interpreter is None:
        print("  SimGrid is absent: no python3 on the PATH imports simgrid (Debian: python3-simgrid); nothing compared")
        return
    cases: list[tuple[str, Plan]] = []
    for n, leaves, spines, hosts in ((64, 8, 8, 8), (256, 16, 16, 16), (1024, 32, 32, 32)):
        fabric = LeafSpine(leaves, spines, hosts, latency_s=0.0)
        traffic = permutation(n, 1 << 22)
        cases.append((f"{n} NICs, permutation, ECMP", plan_ecmp(fabric, traffic, seed=0)))
        sizes = Traffic(traffic.src, traffic.dst, np.random.default_rng(1).integers(1 << 20, 1 << 22, traffic.n_flows))
        cases.append((f"{n} NICs, permutation, ECMP, random sizes", plan_ecmp(fabric, sizes, seed=0)))
        if n <= 256:
            cases.append((f"{n} NICs, permutation, split by pairs", plan_split(fabric, traffic)))
    fabric = LeafSpine(8, 4, 4, latency_s=0.0)
    cases.append(("32 NICs, all-to-all, ECMP, random sizes", plan_ecmp(fabric, all_to_all_of_many_sizes(32), seed=0)))
    if long:
        fabric = LeafSpine(8, 8, 8, latency_s=0.0)
        cases.append(
            ("64 NICs, all-to-all, ECMP, random sizes", plan_ecmp(fabric, all_to_all_of_many_sizes(64), seed=0))
        )
    version = ""
    for name, plan in cases:
        runs = sorted((run_simgrid(interpreter, plan) for _ in range(3)), key=lambda run: run["seconds"])
        peer, version = runs[1], runs[1]["version"]
        completion = simulate_fluid(plan.topology, plan).completion_s
        simulate_fluid(plan.topology, plan, symmetry=False)
        own = []
        for _ in range(5):
            start = time.perf_counter()
            simulate_fluid(plan.topology, plan)
            own.append(time.perf_counter() - start)
        difference = abs(peer["completion"] / completion - 1)
        row(f"{name} ({plan.n_pieces} pieces)", median(own), peer["seconds"], difference)
    print(f"  the peer is SimGrid {version}")


def large_section(long: bool) -> None:
    print("planning and fluid simulation, one core, seconds: permutation + all steps of halving-doubling")
    for n, leaves in ((16384, 512), *([(65536, 2048)] if long else [])):
        fabric = LeafSpine(leaves, 32, 32)
        halving = collective("all-reduce", ranks=n, message_bytes=1 << 30, algorithm="halving-doubling")
        traffic = concatenate(permutation(n, 1 << 22), halving, one_after_the_other=True)
        for name, planner in (
            ("konig", plan_konig),
            ("split", plan_split),
            ("ecmp", lambda f, t: plan_ecmp(f, t, seed=0)),
            ("spray", plan_spray),
        ):
            if name == "split" and n > 16384:
                continue
            best = []
            for _ in range(3):
                start = time.perf_counter()
                plan = planner(fabric, traffic)
                middle = time.perf_counter()
                result = simulate_fluid(fabric, plan)
                best.append((middle - start, time.perf_counter() - middle))
            plan_s, fluid_s = (median(column) for column in zip(*best, strict=True))
            print(
                f"  {n} NICs, {name:6s} plan {plan_s:6.3f}  fluid {fluid_s:6.3f}  sum {plan_s + fluid_s:6.3f}  "
                f"({traffic.n_flows} flows, {result.classes} classes, {result.events} events)",
                flush=True,
            )


# Packets.


@contextmanager
def one_heap() -> Iterator[None]:
    """All delays through the heap."""
    lanes, packets._MOST_LANES = packets._MOST_LANES, 0
    try:
        yield
    finally:
        packets._MOST_LANES = lanes


def packet_section(long: bool) -> None:
    print("packet simulation: million packet-hops a second" + " " * 16 + "lanes     one heap   ratio")
    for n, leaves in ((256, 16), *([(1024, 32)] if long else [])):
        fabric = LeafSpine(leaves, leaves, leaves)
        traffic = permutation(n, 1 << (24 if n == 256 else 22))
        plans = [("konig", plan_konig(fabric, traffic), None), ("ECMP", plan_ecmp(fabric, traffic, seed=0), None)]
        for name, what, spray in [*plans, *((s, traffic, s) for s in packets.SPRAYS)]:

            def run(fabric: LeafSpine = fabric, what: Plan | Traffic = what, spray: str | None = spray):
                return simulate_packets(fabric, what, seed=0, spray=spray)

            def run_heap(run: Callable = run):
                with one_heap():
                    return run()

            result, peer = run(), run_heap()
            assert (result.per_flow_s == peer.per_flow_s).all()
            timing = time_pairs(run, run_heap, pairs=3)
            ours, other = median(timing.ours_s), median(timing.peer_s)
            hops = result.packet_hops / 1e6
            print(
                f"  {f'{n} NICs, permutation, {name} ({hops:.1f} M hops)':60s} {hops / ours:8.1f} {hops / other:12.1f} "
                f"{other / ours:8.2f}x",
                flush=True,
            )


def main() -> None:
    long = "--long" in sys.argv[1:]
    for section in (max_min_section, fluid_section, large_section, packet_section):
        section(long)


if __name__ == "__main__":
    main()
