"""Planning a traffic step by step."""

from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from anabranch.fabric._paths import check_reachable
from anabranch.fabric.plan import Plan
from anabranch.fabric.topology import Topology
from anabranch.fabric.traffic import Traffic

Pieces = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(flow, path, bytes) of the pieces of one step; flows by their index in the step."""

StepPlanner = Callable[[np.ndarray, np.ndarray, np.ndarray], Pieces]
"""Pieces for flows from leaf ``a`` to leaf ``b != a`` of ``size`` bytes."""


def plan_by_step(topology: Topology, traffic: Traffic, plan_step: StepPlanner) -> Plan:
    """One plan of all steps; flows inside a leaf stay whole, steps with the same leaves and sizes are planned once.

    Raises:
        ValueError: a NIC outside the fabric, pairs of NICs without a living path.
    """
    check_reachable(topology, traffic)
    a, b = topology.leaf_of(traffic.src).astype(np.int64), topology.leaf_of(traffic.dst).astype(np.int64)
    inside = np.flatnonzero(a == b)
    parts: list[Pieces] = [(inside, np.zeros(len(inside), np.int64), traffic.size_bytes[inside])]
    known: dict[bytes, Pieces] = {}
    for _, flows in traffic.flows_by_step():
        flows = flows[a[flows] != b[flows]]
        if not len(flows):
            continue
        columns = a[flows], b[flows], traffic.size_bytes[flows]
        key = blake2b(b"".join(column.tobytes() for column in columns)).digest() if traffic.n_steps > 1 else b""
        if key not in known:
            known[key] = plan_step(*columns)
        flow, path, size = known[key]
        parts.append((flows[flow], path, size))
    parent, path, size = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Plan(topology, traffic, parent, path, size)
