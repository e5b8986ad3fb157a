"""The planners side by side on one job."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import anabranch.fabric as fb
from anabranch.fabric import Plan, SprayPlan, Topology, Traffic
from anabranch.fabric._jobs import Job

METHODS = ("konig", "split", "greedy", "ecmp", "spray")

Planner = Callable[[Topology, Traffic], Plan | SprayPlan]


@dataclass(frozen=True)
class Packets:
    """What the packet simulation adds: seconds, reordered over all packets, bytes in the longest queue."""

    completion_s: float
    reordered_fraction: float
    max_queue_bytes: int


@dataclass(frozen=True)
class Row:
    """One method on one job.

    Attributes:
        congestion_s: of the busiest fabric link in any step.
        pieces_per_flow: None for spraying.
        queue_pairs: most on a NIC; None for spraying.
        completion_s: of the whole job (fluid), and of its phases.
    """

    method: str
    congestion_s: float
    pieces_per_flow: float | None
    queue_pairs: int | None
    completion_s: float
    phase_s: tuple[float, ...]
    packets: Packets | None = None


@dataclass(frozen=True)
class Bounds:
    """What no routing can beat.

    Attributes:
        congestion_s: of the busiest fabric link in any step.
        fabric_s, nic_s: of the busiest fabric link, of the busiest NIC, summed over the steps of the job.
        completion_s: of the job: the larger of the two, step by step.
    """

    congestion_s: float
    fabric_s: float
    nic_s: float
    completion_s: float


def planners(seed: int, parts: int) -> dict[str, Planner]:
    """Every method, and ECMP in several parts under its own name."""
    found: dict[str, Planner] = {
        "konig": fb.plan_konig,
        "split": fb.plan_split,
        "greedy": fb.plan_greedy,
        "ecmp": lambda topology, traffic: fb.plan_ecmp(topology, traffic, seed=seed),
        "spray": fb.plan_spray,
    }
    if parts != 1:
        found[f"ecmp-x{parts}"] = lambda topology, traffic: fb.plan_ecmp(topology, traffic, split=parts, seed=seed)
    return found


def find_bounds(topology: Topology, job: Job) -> Bounds:
    """From the closed form where the fabric has one, else from the linear program."""
    if getattr(topology, "is_uniform", False):
        fabric = fb.closed_form_optimum(topology, job.traffic)
    else:
        fabric = fb.optimum(topology, job.traffic).per_step_s
    step, link, load = fb.plan_spray(topology, job.traffic).step_loads()
    own = ~topology.is_fabric_link[link]
    nic = np.zeros(job.traffic.n_steps)
    np.maximum.at(nic, step[own], load[own] / topology.capacity_bytes_per_s[link[own]])
    times = job.counts.sum(axis=0)[: len(nic)]
    return Bounds(
        float(fabric.max(initial=0.0)),
        float(times @ fabric),
        float(times @ nic),
        float(times @ np.maximum(fabric, nic)),
    )


def measure(
    method: str, planner: Planner, topology: Topology, job: Job, *, packet_bytes: int | None, seed: int
) -> tuple[Plan | SprayPlan, Row]:
    """Plan (of the first of each kind of step) and figures of one method; no packet simulation without ``packet_bytes``."""
    plan = planner(topology, job.traffic)
    times = job.counts.sum(axis=0)
    per_phase = job.counts @ durations(fb.simulate_fluid(topology, plan).step_s, job.counts.shape[1])
    pieces = queue_pairs = None
    if isinstance(plan, Plan):
        of_step = np.bincount(job.traffic.step[plan.parent], minlength=len(times))
        pieces = float(times @ of_step) / max(1, job.n_flows)
        queue_pairs = int(plan.queue_pairs_per_nic().max())
    packets = None if packet_bytes is None else packet_run(topology, plan, times, packet_bytes=packet_bytes, seed=seed)
    figures = plan.max_congestion_s(), pieces, queue_pairs, float(per_phase.sum())
    return plan, Row(method, *figures, tuple(per_phase.tolist()), packets)


def packet_run(
    topology: Topology, plan: Plan | SprayPlan, times: np.ndarray, *, packet_bytes: int, seed: int
) -> Packets:
    """The packet simulation of steps that happen ``times`` each; spraying sends every packet over a random path."""
    spray = "random" if isinstance(plan, SprayPlan) else None
    result = fb.simulate_packets(topology, plan, seed=seed, packet_bytes=packet_bytes, spray=spray)
    weight = times[plan.traffic.step]
    return Packets(
        float(times @ durations(result.step_s, len(times))),
        float(weight @ result.reordered_packets) / max(1, int(weight @ result.packets)),
        int(result.max_queue_bytes.max()),
    )


def packet_hops(topology: Topology, traffic: Traffic, packet_bytes: int) -> int:
    """About how many packets the links send: every packet over the links of its flow's first path."""
    indptr, _ = topology.paths(traffic.src, traffic.dst, 0)
    return int((-(-traffic.size_bytes // packet_bytes)) @ np.diff(indptr))


def durations(step_s: np.ndarray, n_steps: int) -> np.ndarray:
    """Seconds of every step [n_steps], from when each ended (0 for steps without flows)."""
    ends = np.zeros(n_steps)
    ends[: len(step_s)] = step_s
    return np.diff(np.maximum.accumulate(ends), prepend=0.0)


def busiest_links(plan: Plan, times: np.ndarray, n: int) -> Iterator[tuple[str, float]]:
    """The ``n`` busiest fabric links of steps that happen ``times`` each: (name, seconds at full rate)."""
    step, link, load = plan.step_loads()
    seconds = np.bincount(link, load * times[step], plan.topology.n_links) / plan.topology.capacity_bytes_per_s
    seconds[~plan.topology.is_fabric_link] = 0.0
    for worst in np.argsort(-seconds, kind="stable")[:n]:
        if seconds[worst] > 0:
            yield plan.topology.link_name(int(worst)), float(seconds[worst])
