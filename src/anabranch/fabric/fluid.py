"""Fluid simulation: pieces as fluids at max-min fair rates, exact between events."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from anabranch.fabric import _kernels_fluid as kernels
from anabranch.fabric._checks import choice
from anabranch.fabric._dependencies import MODES, no_waits, waits_of
from anabranch.fabric._pieces import Pieces, PieceSource
from anabranch.fabric._symmetry import merge
from anabranch.fabric.plan import Plan, SprayPlan
from anabranch.fabric.topology import Topology

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True, eq=False)
class FluidResult:
    """What a fluid simulation gives.

    Attributes:
        completion_s: when the last byte of all arrives; 0 without flows.
        per_flow_s: when the last byte of each flow arrives, from the start of the simulation.
        step_s: when the last byte of each step arrives [n_steps]; 0 for a step without flows.
        link_utilization: bytes carried over capacity times ``completion_s``, per link; at most 1.
        events: times at which rates were found anew.
        classes: pieces simulated, after equal ones were merged; summed over the steps simulated one by one.
    """

    completion_s: float
    per_flow_s: Float64[np.ndarray, "flows"]
    step_s: Float64[np.ndarray, "steps"]
    link_utilization: Float64[np.ndarray, "links"]
    events: int
    classes: int


def simulate_fluid(
    topology: Topology,
    plan: Plan | SprayPlan,
    *,
    dependencies: str = "barrier",
    symmetry: bool = True,
    progress: Progress | None = None,
) -> FluidResult:
    """Completion times when all pieces that are under way have max-min fair rates at every moment.

    A piece leaves at its rate, which changes when another piece ends or starts; its last byte arrives one path latency after
    it left. All ends and starts within 1e-12, relatively, are one event. A sprayed flow is one fluid that is on all its
    living paths at once, in equal parts, at one rate.

    Exact up to rounding. Equal pieces are simulated once: ``symmetry`` merges pieces and links by color refinement to the
    coarsest equitable partition, in which all pieces of a class meet equal links with equal pieces on them; max-min rates
    are equal within its classes (ours), so the result does not depend on it. At each event only the pieces are filled anew
    whose bottleneck moved (``_kernels_max_min.repair``, ours).

    Cost: O(touches) a round of refinement, then for each event O(touches of the pieces whose rate moves x log links); with
    equal sizes and one start no rate ever moves, as the pieces that end are the fastest on each of their links. Steps that
    repeat, byte for byte, are simulated once.

    Args:
        topology: the fabric; may differ from ``plan.topology`` in rates and failures.
        plan: pieces, or ideal spraying.
        dependencies: "barrier": a step starts when the one before has ended. "per_rank": a flow starts when the flows of
            earlier steps, in its group, that begin or end at its source NIC have ended.
        symmetry: merge equal pieces and links.
        progress: called as ``progress(done, total, {})`` after each step (barrier), or once (per_rank).

    Raises:
        ValueError: a NIC or path that the fabric does not have, a piece on a failed link, a sprayed flow without a living
            path, an unknown ``dependencies``.
    """
    choice("dependencies", dependencies, MODES)
    if not isinstance(plan, (Plan, SprayPlan)):
        raise TypeError(f"plan must be a Plan or a SprayPlan, got {type(plan).__name__}")
    traffic = plan.traffic
    per_flow_s = np.zeros(traffic.n_flows)
    moved = np.zeros(topology.n_links)
    events = classes = 0
    start_s = np.zeros(traffic.n_flows) if traffic.start_s is None else traffic.start_s.copy()

    source = PieceSource(topology, plan, merge=symmetry)

    if dependencies == "per_rank":
        pieces = source(np.arange(traffic.n_flows))
        pieces.add_bytes(moved)
        per_flow_s, events, classes = _run(pieces, start_s, waits_of(traffic, dependencies), symmetry)
        if progress is not None:
            progress(1, 1, {})
    else:
        now = 0.0
        seen: dict[bytes, _Step] = {}
        steps = list(traffic.flows_by_step())
        for done, (_, flows) in enumerate(steps, start=1):
            start = np.maximum(start_s[flows] - now, 0.0)
            key = source.digest(flows, start) if len(steps) > 1 else b""
            if key in seen:
                seen[key].repeats += 1
            else:
                pieces = source(flows)
                pieces.add_bytes(moved)
                arrival, n_events, n_classes = _run(pieces, start, None, symmetry)
                classes += n_classes
                seen[key] = _Step(flows, arrival, n_events)
            per_flow_s[flows] = now + seen[key].arrival_s
            now = float(per_flow_s[flows].max())
            events += seen[key].events
            if progress is not None:
                progress(done, len(steps), {})
        for step in seen.values():
            if step.repeats:
                source(step.flows).add_bytes(moved, step.repeats)
    step_s = np.zeros(traffic.n_steps)
    np.maximum.at(step_s, traffic.step, per_flow_s)
    completion_s = float(per_flow_s.max(initial=0.0))
    room = topology.capacity_bytes_per_s * completion_s
    utilization = moved / room if completion_s else np.zeros(topology.n_links)
    return FluidResult(completion_s, per_flow_s, step_s, utilization, events, classes)


@dataclass
class _Step:
    """A step that was simulated, and how often it came again."""

    flows: np.ndarray
    arrival_s: np.ndarray
    events: int
    repeats: int = 0


def _run(
    pieces: Pieces, start_s: np.ndarray, waits: kernels.Waits | None, symmetry: bool
) -> tuple[Float64[np.ndarray, "flows"], int, int]:
    """(arrival of the last byte of each flow, events, classes); without ``waits`` no flow waits for another."""
    if not len(start_s):
        return np.zeros(0), 0, 0
    n_pieces = len(pieces.size_bytes)
    if waits is None:
        # Then pieces need not know their flows, which leaves more of them equal.
        identity = np.arange(n_pieces + 1)
        alone = replace(pieces, flow_indptr=identity)
        start_s = start_s[pieces.flow_of]
        arrival, events, classes = _run_merged(alone, start_s, identity[:-1], no_waits(n_pieces), symmetry)
        return np.maximum.reduceat(arrival, pieces.flow_indptr[:-1]), events, classes
    return _run_merged(pieces, start_s, pieces.flow_of, waits, symmetry)


def _run_merged(
    pieces: Pieces, start_s: np.ndarray, flow_of: np.ndarray, waits: kernels.Waits, symmetry: bool
) -> tuple[Float64[np.ndarray, "flows"], int, int]:
    class_of_flow: np.ndarray | slice = slice(None)
    if symmetry:
        pieces, start_s, flow_of, waits, class_of_flow = merge(pieces, start_s, flow_of, waits)
    free = np.flatnonzero(waits.wait < 0)
    what = kernels.Pieces(
        pieces.size_bytes,
        pieces.latency_s,
        flow_of,
        pieces.flow_indptr,
        np.argsort(flow_of, kind="stable"),
        start_s,
        free[np.argsort(start_s[free], kind="stable")],
    )
    arrival, events, _ = kernels.run_fluid(pieces.capacity, pieces.indptr, pieces.links, pieces.weight, what, waits)
    return arrival[class_of_flow], events, len(flow_of)
