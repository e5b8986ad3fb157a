"""The least maximum congestion that any routing can reach, with a proof."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_matrix

from anabranch.fabric import _lp
from anabranch.fabric._closed_form import closed_form_s
from anabranch.fabric._paths import check_reachable, fabric_links, living_paths
from anabranch.fabric._weights import is_symmetric
from anabranch.fabric.plan import Plan
from anabranch.fabric.topology import LeafSpine, Topology
from anabranch.fabric.traffic import Traffic

_MOST_BINARIES = 200_000


@dataclass(frozen=True, eq=False)
class Optimum:
    """Least maximum congestion of the fabric links, step by step.

    Attributes:
        value_s: the highest of the steps, in seconds; compare with ``Plan.max_congestion_s()``.
        per_step_s: of every step [n_steps]; compare with ``Plan.step_congestion_s()``.
        duals: prices >= 0 of the links in the step of ``value_s`` [n_links], the proof of optimality: the prices times
            capacities add up to 1, and bytes times the price of the cheapest path, summed over flows, is ``value_s``,
            which no routing can beat (LP duality). None for whole flows.
        plan: a plan that attains it, for whole flows; None otherwise (``plan_konig`` makes one).
    """

    value_s: float
    per_step_s: Float64[np.ndarray, "steps"]
    duals: Float64[np.ndarray, "links"] | None
    plan: Plan | None


def optimum(
    topology: Topology, traffic: Traffic, *, unsplittable: bool = False, time_limit_s: float | None = None
) -> Optimum:
    """Solves for the least maximum congestion by HiGHS: a linear program, or an integer one for whole flows.

    Args:
        unsplittable: every flow keeps one path. NP-hard: for small fabrics.
        time_limit_s: give up the integer program after so long.

    Raises:
        ValueError: a NIC outside the fabric, NIC pairs without a path, an integer program of more than 200,000 choices.
        TimeoutError: no proven optimum in time.

    Cost: the linear program has one variable per (destination leaf, link towards it) and one row per (destination leaf,
    switch) and per link, with alike spines of a LeafSpine taken as one. One program a step, alike steps included.
    Measured on a symmetric LeafSpine with 32 NICs a leaf: 2 ms at 256 NICs, 2.3 s at 16,384, 36 s at 65,536, where
    :func:`closed_form_optimum` is immediate; seconds for 512 leaves with a few failed links or a FatTree of 32 ToRs.
    """
    check_reachable(topology, traffic)
    a, b = topology.leaf_of(traffic.src).astype(np.int64), topology.leaf_of(traffic.dst).astype(np.int64)
    per_step = np.zeros(traffic.n_steps)
    duals = np.zeros(topology.n_links)
    path = np.zeros(traffic.n_flows, dtype=np.int64)
    for step, flows in traffic.flows_by_step():
        flows = flows[a[flows] != b[flows]]
        if not len(flows):
            continue
        columns = a[flows], b[flows], traffic.size_bytes[flows]
        if unsplittable:
            per_step[step], path[flows] = _whole_flows(topology, *columns, time_limit_s)
            continue
        pair, of_flow = np.unique(columns[0] * topology.n_leaves + columns[1], return_inverse=True)
        ends = np.divmod(pair, topology.n_leaves)
        per_step[step], price = _program(topology, *ends, np.bincount(of_flow, columns[2]))
        if per_step[step] >= per_step.max():
            duals = price
    value_s = float(per_step.max(initial=0.0))
    if not unsplittable:
        return Optimum(value_s, per_step, duals, None)
    plan = Plan(topology, traffic, np.arange(traffic.n_flows), path, traffic.size_bytes)
    return Optimum(value_s, per_step, None, plan)


def _program(topology: Topology, a: np.ndarray, b: np.ndarray, size: np.ndarray) -> tuple[float, np.ndarray]:
    """Value and link prices for distinct pairs of leaves."""
    if isinstance(topology, LeafSpine):
        shares = _lp.solve_leaf_spine(topology, a, b, size)
        return shares.value_s, shares.price
    arcs, routing = _lp.solve(topology, a, b, size)
    price = np.zeros(topology.n_links)
    price[arcs.link] = routing.price
    return routing.value_s, price


def closed_form_optimum(topology: Topology, traffic: Traffic) -> Float64[np.ndarray, "steps"]:
    """The same without a program for a LeafSpine or FatTree of equal living links: seconds per step. O(F log F).

    Leaf-spine: max over leaves of bytes out and in, over S links. FatTree: also of bytes between pods, over the core links
    of a pod.

    Raises:
        ValueError: a NIC outside the fabric, another topology, links that are down or unequal.
    """
    traffic.check_fits(topology)
    if not is_symmetric(topology):
        raise ValueError(f"topology must be a LeafSpine or FatTree of equal living links, got {topology!r}")
    a, b = topology.leaf_of(traffic.src).astype(np.int64), topology.leaf_of(traffic.dst).astype(np.int64)
    per_step = np.zeros(traffic.n_steps)
    for step, flows in traffic.flows_by_step():
        flows = flows[a[flows] != b[flows]]
        per_step[step] = closed_form_s(topology, a[flows], b[flows], traffic.size_bytes[flows])  # type: ignore[arg-type]
    return per_step


def _whole_flows(
    topology: Topology, a: np.ndarray, b: np.ndarray, size: np.ndarray, time_limit_s: float | None
) -> tuple[float, np.ndarray]:
    indptr, path = living_paths(topology, a, b)
    if len(path) > _MOST_BINARIES:
        raise ValueError(f"traffic must have at most {_MOST_BINARIES} choices of a path in a step, got {len(path)}")
    flow = np.repeat(np.arange(len(a)), np.diff(indptr))
    starts, links = fabric_links(topology, a[flow], b[flow], path)
    used, row = np.unique(links, return_inverse=True)
    n = len(path)
    choice = np.repeat(np.arange(n), np.diff(starts))
    unit = float(size.max())
    rate = topology.capacity_bytes_per_s[used]
    once = coo_matrix((np.ones(n), (flow, np.arange(n))), shape=(len(a), n + 1))
    load = coo_matrix((size[flow][choice] / unit, (row, choice)), shape=(len(used), n + 1))
    limit = coo_matrix((-rate / rate.max(), (np.arange(len(used)), np.full(len(used), n))), shape=load.shape)
    cost = np.zeros(n + 1)
    cost[n] = 1.0
    solution = milp(
        cost,
        integrality=np.append(np.ones(n), 0),
        bounds=Bounds(np.zeros(n + 1), np.append(np.ones(n), np.inf)),
        constraints=[
            LinearConstraint(once.tocsr(), 1.0, 1.0),
            LinearConstraint((load + limit).tocsr(), -np.inf, 0.0),
        ],
        options={} if time_limit_s is None else {"time_limit": time_limit_s},
    )
    if solution.status != 0:
        raise TimeoutError(f"no proven optimum of whole flows within {time_limit_s} s: {solution.message}")
    best = np.lexsort((-solution.x[:n], flow))
    chosen = path[best[indptr[:-1]]]
    starts, links = fabric_links(topology, a, b, chosen)
    loads = np.bincount(links, np.repeat(size, np.diff(starts)), topology.n_links)
    return float((loads / topology.capacity_bytes_per_s).max()), chosen
