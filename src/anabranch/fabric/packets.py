"""Packet simulation: every packet through every queue, for plans and for packet spraying."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from anabranch.fabric._checks import choice, positive_int
from anabranch.fabric._dependencies import MODES, waits_of
from anabranch.fabric._kernels_lanes import NEVER
from anabranch.fabric._kernels_packets import run_packets
from anabranch.fabric._kernels_tables import LONGEST, LOST, REORDERED, SENT_BYTES, Fabric, Load, Rules
from anabranch.fabric._paths import check_reachable
from anabranch.fabric._pieces import living_nic_paths, nic_paths, offsets
from anabranch.fabric.plan import Plan, SprayPlan
from anabranch.fabric.topology import Topology
from anabranch.fabric.traffic import Traffic

SPRAYS = ("round-robin", "random", "reps")
_MOST_LANES = 8
"""Delays of one kind that get a lane of their own."""


@dataclass(frozen=True, eq=False)
class PacketResult:
    """What a packet simulation gives.

    Attributes:
        completion_s: when the last packet of all arrives; 0 without flows.
        per_flow_s: when the last packet of each flow arrives, from the start of the simulation.
        step_s: when the last packet of each step arrives [n_steps]; 0 for a step without flows.
        packets: packets of each flow; all arrive.
        reordered_packets: packets of each flow that arrived after a later packet of the same piece (RFC 4737).
        lost_packets: packets of each flow that were dropped, and sent again; one packet may be dropped several times.
        max_queue_bytes: most bytes that ever waited at each link, not counting the packet being sent.
        sent_bytes: bytes that each link sent.
        packet_hops: packets sent, summed over links.
        events: events simulated.
    """

    completion_s: float
    per_flow_s: Float64[np.ndarray, "flows"]
    step_s: Float64[np.ndarray, "steps"]
    packets: Int64[np.ndarray, "flows"]
    reordered_packets: Int64[np.ndarray, "flows"]
    lost_packets: Int64[np.ndarray, "flows"]
    max_queue_bytes: Int64[np.ndarray, "links"]
    sent_bytes: Int64[np.ndarray, "links"]
    packet_hops: int
    events: int

    @property
    def reordered_fraction(self) -> float:
        """Reordered packets over packets, of all flows."""
        return float(self.reordered_packets.sum() / max(1, self.packets.sum()))


def simulate_packets(
    topology: Topology,
    plan_or_traffic: Plan | SprayPlan | Traffic,
    *,
    seed: int,
    packet_bytes: int = 4096,
    spray: str | None = None,
    dependencies: str = "barrier",
    queue_limit_bytes: int | None = None,
    ecn_threshold_bytes: int = 250_000,
    window_bytes: int | None = None,
    failures: str = "known",
    timeout_s: float = 5e-4,
    tick_s: float = 1e-15,
) -> PacketResult:
    """Discrete-event simulation of every packet, store and forward, with FIFO output queues.

    A NIC sends back to back at line rate and takes turns among its active pieces, packet by packet. A link sends the packet for
    size / capacity, then the packet travels for the latency and joins the queue of its next link. A packet that joins a queue
    in which more than ``ecn_threshold_bytes`` then wait is marked. Acknowledgements travel back for the latencies of the path,
    do not queue, and exist only where something depends on them ("reps", ``window_bytes``). Times are whole ticks; at one
    tick links become free first, then events happen in the order in which they were caused. Given equal arguments the
    result is equal.

    Queues are not fair: pieces share a link as their packets come, not evenly. Where all pieces of a link come at one rate, as
    under exact splitting on a fabric that is not oversubscribed, the completion is that of ``simulate_fluid`` and a packet and
    latency a hop.

    Sprays choose the path of each packet: "round-robin" the next one, from a random first one per flow; "random" a random one;
    "reps" recycles entropies (Bonato et al. 2024, from general knowledge): the paths of the last 8 unmarked acknowledgements are
    used again, oldest first, each once; while there is none, a random path is explored.

    Failed links drop what is sent over them, from the start. With ``failures="known"`` sources know: sprays use living paths
    only, and a plan must not use a failed link (see ``replan``). With "oblivious" they do not: a dropped packet is found
    missing ``timeout_s`` after it was sent (only dropped packets time out), and is sent again. An unsprayed piece then moves to
    another path, drawn at random among all others; "round-robin" and "random" go on as before; "reps" goes on with the paths it
    remembers, used or not, before it explores again (its freezing mode). Packets that overflow ``queue_limit_bytes`` are
    found and sent again in the same way.

    Cost: two events a packet and hop (one more a packet with acknowledgements), O(1) each where link rates and latencies have few
    distinct values, else O(log packets under way). Memory: 64 bytes a packet under way, 128 a piece, 8 a hop of each path.

    Args:
        topology: the fabric, with its failures.
        plan_or_traffic: a ``Plan``, each piece on its path; or flows (``Traffic``, ``SprayPlan``) with ``spray``.
        seed: which random numbers; they depend on nothing but it, the piece and the count of its packets.
        packet_bytes: size of all packets but the last of a piece.
        spray: None for a plan, else "round-robin", "random" or "reps".
        dependencies: "barrier" or "per_rank", as in ``simulate_fluid``.
        queue_limit_bytes: packets that would wait above this are dropped; None for endless queues.
        ecn_threshold_bytes: 250 kB, DCTCP's threshold at 400 Gb/s in the paper's simulator configuration.
        window_bytes: most bytes of a piece sent and not acknowledged, at least one packet; None for no limit.
        failures: "known" or "oblivious".
        timeout_s: retransmission timeout; 500 us in the paper's simulator configuration.
        tick_s: unit of time; the whole simulation must last less than 2^62 ticks (77 minutes of 1 fs).

    Raises:
        ValueError, TypeError: an argument out of range, a plan with ``spray`` or flows without, a piece on a failed link or a
            flow without a living path, a simulation that may outlast the ticks.
    """
    positive_int("packet_bytes", packet_bytes)
    choice("dependencies", dependencies, MODES)
    choice("failures", failures, ("known", "oblivious"))
    for name, value in (("timeout_s", timeout_s), ("tick_s", tick_s)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be finite and > 0 s, got {value}")
    if isinstance(plan_or_traffic, Plan):
        if spray is not None:
            raise ValueError(f"spray must be None for a Plan, whose pieces have their paths, got {spray!r}")
        traffic = plan_or_traffic.traffic
    elif isinstance(plan_or_traffic, (SprayPlan, Traffic)):
        if spray is None:
            raise ValueError(f"spray must be one of {', '.join(map(repr, SPRAYS))} for flows without paths, got None")
        choice("spray", spray, SPRAYS)
        traffic = plan_or_traffic if isinstance(plan_or_traffic, Traffic) else plan_or_traffic.traffic
    else:
        kind = type(plan_or_traffic).__name__
        raise TypeError(f"plan_or_traffic must be a Plan, a SprayPlan or Traffic, got {kind}")
    check_reachable(topology, traffic)
    rules = Rules(
        0 if spray is None else 1 + SPRAYS.index(spray),
        packet_bytes,
        np.uint64(_seed(seed)),
        _bytes("queue_limit_bytes", queue_limit_bytes, 0),
        _bytes("ecn_threshold_bytes", ecn_threshold_bytes, 0),
        _packets(window_bytes, packet_bytes),
        min(round(timeout_s / tick_s), 2**62),
    )
    if not traffic.n_flows:
        none, idle = np.zeros(0, dtype=np.int64), np.zeros(topology.n_links, dtype=np.int64)
        return PacketResult(0.0, none.astype(float), np.zeros(0), none, none, none, idle, idle, 0, 0)
    fabric, load = prepare(topology, plan_or_traffic, packet_bytes, failures == "oblivious", timeout_s, tick_s)
    waits = waits_of(traffic, dependencies)
    load = load._replace(order=_by_start(load.start, waits.wait))
    arrival, piece, link, events, packet_hops = run_packets(
        fabric, load, rules, waits, np.zeros((0, 6), dtype=np.int64)
    )
    per_flow_s = arrival * tick_s
    step_s = np.zeros(traffic.n_steps)
    np.maximum.at(step_s, traffic.step, per_flow_s)
    first = load.flow_indptr[:-1]
    return PacketResult(
        float(per_flow_s.max()),
        per_flow_s,
        step_s,
        np.add.reduceat(load.packets, first),
        np.add.reduceat(piece[:, REORDERED], first),
        np.add.reduceat(piece[:, LOST], first),
        link[:, LONGEST].copy(),
        link[:, SENT_BYTES].copy(),
        packet_hops,
        events,
    )


def prepare(
    topology: Topology,
    plan_or_traffic: Plan | SprayPlan | Traffic,
    packet_bytes: int,
    oblivious: bool,
    timeout_s: float,
    tick_s: float,
) -> tuple[Fabric, Load]:
    """The kernel's arguments; the order of starts is left empty."""
    planned = isinstance(plan_or_traffic, Plan)
    traffic = plan_or_traffic if isinstance(plan_or_traffic, Traffic) else plan_or_traffic.traffic
    if isinstance(plan_or_traffic, Plan):
        size, flow_of = plan_or_traffic.size_bytes, plan_or_traffic.parent
        first_path, n_paths, path, indptr, links = _planned_paths(topology, plan_or_traffic, oblivious)
    else:
        size, flow_of = traffic.size_bytes, np.arange(traffic.n_flows)
        first_path, n_paths, indptr, links = _sprayed_paths(topology, traffic, oblivious)
        path = np.zeros(traffic.n_flows, dtype=np.int64)
    n_hops = np.diff(indptr)
    hops = links.astype(np.int64)
    hops[indptr[1:] - 1] = ~hops[indptr[1:] - 1]
    ticks_per_byte = 1.0 / (topology.capacity_bytes_per_s * tick_s)
    latency = _ticks(topology.latency_s, tick_s)
    path_return = np.add.reduceat(latency[links], indptr[:-1])
    full_ticks = np.rint(packet_bytes * ticks_per_byte).astype(np.int64)
    start = _ticks(np.zeros(traffic.n_flows) if traffic.start_s is None else traffic.start_s, tick_s)
    # No packet waits longer than it takes to send all bytes over the slowest link of every hop.
    longest = float(size.sum()) * ticks_per_byte.max() * n_hops.max() + float(path_return.max()) * traffic.n_steps
    longest += float(start.max()) + timeout_s / tick_s
    if longest >= 2**62:
        raise ValueError(
            f"tick_s must be larger, as the simulation may last {longest:.2g} ticks, more than 2^62; got {tick_s}"
        )
    depart_lane, n_depart = _lanes(full_ticks, 0)
    arrive_lane, n_arrive = _lanes(latency, n_depart)
    return_lane, n_return = _lanes(path_return, n_depart + n_arrive)
    fabric = Fabric(
        ticks_per_byte,
        full_ticks,
        latency,
        depart_lane,
        arrive_lane,
        topology.is_failed.astype(np.bool_),
        indptr[:-1].astype(np.int64),
        hops,
        np.repeat(np.arange(len(n_hops)), n_hops),
        path_return,
        return_lane,
        n_depart + n_arrive + n_return,
        n_depart,
        n_arrive,
    )
    packets = -(-size // packet_bytes)
    load = Load(
        packets,
        size - (packets - 1) * packet_bytes,
        first_path.astype(np.int64),
        n_paths.astype(np.int64),
        path.astype(np.int64),
        np.array(flow_of, dtype=np.int64),
        np.searchsorted(flow_of, np.arange(traffic.n_flows + 1)) if planned else np.arange(traffic.n_flows + 1),
        start,
        np.zeros(0, dtype=np.int64),
    )
    return fabric, load


def _planned_paths(topology: Topology, plan: Plan, oblivious: bool) -> tuple[np.ndarray, ...]:
    """(first path, number of paths, the one it starts on) of each piece, and the paths.

    A piece whose path is dead, at a source that does not know, may move to any path of its pair; all others stay.
    """
    src, dst = plan.traffic.src[plan.parent], plan.traffic.dst[plan.parent]
    dead = ~topology.alive(src, dst, plan.path) if len(topology.failed) else np.zeros(plan.n_pieces, dtype=bool)
    if dead.any() and not oblivious:
        raise ValueError(
            f"plan must use no failed link, but {int(dead.sum())} of its pieces do, the first "
            f"{np.flatnonzero(dead)[:5].tolist()}; replan(plan, topology) moves them"
        )
    n_paths = np.ones(plan.n_pieces, dtype=np.int64)
    n_paths[dead] = topology.n_paths(src[dead], dst[dead]) if dead.any() else 1
    first = offsets(n_paths)
    path = np.repeat(plan.path.astype(np.int64), n_paths)
    choices = np.arange(first[-1]) - np.repeat(first[:-1], n_paths)
    path = np.where(np.repeat(dead, n_paths), choices, path)
    indptr, links = topology.paths(np.repeat(src, n_paths), np.repeat(dst, n_paths), path)
    return first[:-1], n_paths, np.where(dead, plan.path, 0), indptr, links


def _sprayed_paths(topology: Topology, traffic: Traffic, oblivious: bool) -> tuple[np.ndarray, ...]:
    """(first path, number of paths) of each flow, and the paths of each pair of NICs, listed once."""
    key = traffic.src.astype(np.int64) * topology.n_nics + traffic.dst
    pairs, pair_of_flow = np.unique(key, return_inverse=True)
    src, dst = pairs // topology.n_nics, pairs % topology.n_nics
    pair, indptr, links = (nic_paths if oblivious else living_nic_paths)(topology, src, dst)
    n_paths = np.bincount(pair, minlength=len(pairs))
    return offsets(n_paths)[:-1][pair_of_flow], n_paths[pair_of_flow], indptr, links


def _lanes(delay: np.ndarray, first: int) -> tuple[Int64[np.ndarray, "n"], int]:
    """A lane for each of the most frequent delays, numbered from ``first``, -1 for all other delays; and how many."""
    values, index, counts = np.unique(delay, return_inverse=True, return_counts=True)
    chosen = np.argsort(-counts, kind="stable")[:_MOST_LANES]
    lane = np.full(len(values), -1, dtype=np.int64)
    lane[chosen] = first + np.arange(len(chosen))
    return lane[index], len(chosen)


def _ticks(seconds: np.ndarray, tick_s: float) -> Int64[np.ndarray, "n"]:
    return np.rint(seconds / tick_s).astype(np.int64)


def _by_start(start: np.ndarray, wait: np.ndarray) -> Int64[np.ndarray, "free"]:
    """Flows that wait for none, by ascending start."""
    free = np.flatnonzero(wait < 0)
    return free[np.argsort(start[free], kind="stable")]


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an integer >= 0, got {seed!r} ({type(seed).__name__})")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be >= 0 and < 2^63, got {seed}")
    return int(seed)


def _bytes(name: str, value: int | None, low: int) -> int:
    if value is None:
        return int(NEVER)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer >= {low} or None, got {value!r} ({type(value).__name__})")
    if value < low:
        raise ValueError(f"{name} must be >= {low}, got {value}")
    return int(value)


def _packets(window_bytes: int | None, packet_bytes: int) -> int:
    """The window in packets."""
    window = _bytes("window_bytes", window_bytes, packet_bytes)
    return window if window_bytes is None else window // packet_bytes
