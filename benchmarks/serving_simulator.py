"""The simulator of serving clusters beside its peers, and how it grows.

Run: ``python benchmarks/serving_simulator.py [--long]`` (under a minute; ``--long`` half a minute more).

- the released simulator of Splitwise: its processor time is a constant, measured on an idle machine of two cores (41.4 s for
  8,502 conversation requests, 70 a second, on 25 + 15 DGX-H100; 3 s of it are imports). The load here is drawn the same way.
- plain Python: the same event loop, not compiled, in a process of its own; its answers must be the same to the last bit.
- SimPy: the same rules in ``simpy_cluster.py``, for phases apart and for mixed machines that take the shortest queue, in this
  process, turn about; the times of every request are compared.
- a million requests on 1,000 machines (``--long``), and every split of the power of 40 DGX-H100 among four designs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from statistics import median

import numpy as np
import simpy
import simpy_cluster

from anabranch.serving import (
    Cluster,
    Design,
    Load,
    Pool,
    RequestTable,
    Transfers,
    least_machines,
    most_throughput,
    published_lengths,
    published_performance,
    simulate_cluster,
)
from anabranch.simulation import BLOOM_176B, DGX_A100, DGX_H100, DGX_H100_CAPPED, GIB

REFERENCE_CPU_S, REFERENCE_REQUESTS = 41.4, 8502
MACHINES = (DGX_A100, DGX_H100, DGX_H100_CAPPED)
TIMES = {one.name: published_performance("bloom-176b", one.device.name, by="requests") for one in MACHINES}
RELEASED = Transfers(overlap="serialized", shared_links=False, bytes_per_s=200.0 * GIB)


def cluster(pools: tuple[Pool, ...]) -> Cluster:
    scheduler = "join_shortest_queue" if pools[0].role == "mixed" else "mixed_pool"
    return Cluster(pools, TIMES, BLOOM_176B.kv_bytes_per_token(), 329 * 10**9, scheduler, transfers=RELEASED)


def split(prompts: int, tokens: int) -> Cluster:
    return cluster((Pool(DGX_H100, prompts, "prompt"), Pool(DGX_H100, tokens, "token")))


def conversation(rate: float, seconds: float) -> RequestTable:
    lengths = published_lengths("conversation", 20_000, generator=np.random.default_rng(0))
    return Load(lengths, seconds, rate * 1.01, np.random.default_rng(0), paired=False).at(rate)


def cpu_s(cluster: Cluster, requests: RequestTable, times: int = 5) -> float:
    spent = []
    for _ in range(times):
        begin = time.process_time()
        simulate_cluster(cluster, requests)
        spent.append(time.process_time() - begin)
    return median(spent)


def beside_simpy(name: str, cluster: Cluster, requests: RequestTable, times: int = 3) -> None:
    """Both in turn, medians of processor time, and the largest difference of any request's times."""
    found, theirs = simulate_cluster(cluster, requests), []
    ours = []
    for _ in range(times):
        begin = time.process_time()
        answers = simpy_cluster.simulate(cluster, requests)
        theirs.append(time.process_time() - begin)
        ours.append(cpu_s(cluster, requests, 1))
    largest = 0.0
    for column, values in answers.items():
        mine = getattr(found, column)
        if not np.array_equal(np.isnan(mine), np.isnan(values)):
            largest = float("inf")
        largest = max(largest, float(np.nanmax(np.abs(mine - values))))
    words = "equal to the last bit" if largest == 0 else f"equal to {largest:.1g} s" if largest < 1e-6 else "DIFFER"
    print(f"SimPy {simpy.__version__:13} {len(requests):,} requests, {name}: {median(theirs):.2f} s, "
          f"{1e3 * median(ours):.1f} ms here, {median(theirs) / median(ours):.0f}x, answers {words}")  # fmt: skip


def plain() -> None:
    """In the child, without compilation: seconds and answers."""
    requests = conversation(17.5, 30.0)
    begin = time.process_time()
    result = simulate_cluster(split(6, 4), requests)
    print(json.dumps({"cpu_s": time.process_time() - begin, "e2e_s": [x.hex() for x in result.e2e_s.tolist()]}))


def main() -> None:
    requests = conversation(70.0, 120.0)
    simulate_cluster(split(25, 15), requests)  # compiles
    ours = cpu_s(split(25, 15), requests)
    reference = REFERENCE_CPU_S / REFERENCE_REQUESTS * len(requests)
    print(f"released simulator  {len(requests):,} requests, 40 machines: {reference:.1f} s there, {ours:.3f} s here, "
          f"{reference / ours:.0f}x")  # fmt: skip

    few = conversation(17.5, 30.0)
    done = subprocess.run(
        [sys.executable, __file__, "--plain"], capture_output=True, text=True, check=True,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip
    there = json.loads(done.stdout)
    same = there["e2e_s"] == [x.hex() for x in simulate_cluster(split(6, 4), few).e2e_s.tolist()]
    ours = cpu_s(split(6, 4), few)
    print(f"plain Python        {len(few):,} requests, 10 machines: {there['cpu_s']:.2f} s, {1e3 * ours:.1f} ms compiled, "
          f"{there['cpu_s'] / ours:.0f}x, answers {'equal' if same else 'DIFFER'}")  # fmt: skip

    beside_simpy("25 + 15 machines", split(25, 15), requests)
    beside_simpy("40 mixed", cluster((Pool(DGX_H100, 40, "mixed"),)), requests)

    begin = time.perf_counter()
    lengths = published_lengths("conversation", 20_000, generator=np.random.default_rng(0))
    load = Load(lengths, 30.0, 200.0, np.random.default_rng(0), paired=False)
    reference_times = published_performance("bloom-176b", DGX_A100.device.name)
    runs = 0
    for name, prompt, token in (
        ("AA", DGX_A100, DGX_A100), ("HH", DGX_H100, DGX_H100), ("HA", DGX_H100, DGX_A100), ("HHcap", DGX_H100, DGX_H100_CAPPED),
    ):  # fmt: skip
        design = Design(name, prompt, token, cluster)
        _, tried = most_throughput(
            design, 40 * DGX_H100.provisioned_w, load, reference_times, tolerance=0.03, prune=True
        )
        least, _ = least_machines(design, 70.0, load, reference_times, most=128)
        runs += sum(one.simulations for one in tried) + least.simulations
    spent = time.perf_counter() - begin
    print(f"provisioning plane  4 designs, one budget and one rate: {runs} simulations of 30 s in {spent:.0f} s")

    if "--long" in sys.argv:
        many = conversation(1750.0, 1_000_000 / 1750)
        ours = cpu_s(split(625, 375), many, 1)
        print(f"size                {len(many):,} requests, 1,000 machines: {ours:.0f} s")


if __name__ == "__main__":
    plain() if "--plain" in sys.argv else main()
