"""Search of periodic schedules for any graph of nano-operations: modulo scheduling by HiGHS or by CP-SAT.

NanoFlow (Zhu et al., 2408.12757), section 4.1.2, searches structure first (operations of a kind exclude each other) and shares
after. The formulation is ours: starts, shares and the period of the steady state together, in whole units of time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, linprog, milp
from scipy.sparse import coo_array

from anabranch.serving.interference import Interference
from anabranch.serving.layer_graph import NanoGraph
from anabranch.serving.periodic_schedule import STAGES, PeriodicSchedule, sequential

_LEVELS = tuple(range(1, 11))  # tenths of the machine


@dataclass(frozen=True)
class ModuloProblem:
    """In whole units: ``modes[i]`` are the choices (duration, demand, resource) of node i; a resource holds ``capacity``."""

    modes: tuple[tuple[tuple[int, int, int], ...], ...]
    capacity: tuple[int, ...]
    edges: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class ModuloSolution:
    """Starts and chosen modes; ``bound`` is a proven least period. ``start`` is empty where nothing was found."""

    period: int
    bound: int
    start: tuple[int, ...]
    mode: tuple[int, ...]


def period_bound(graph: NanoGraph, interference: Interference, stage: str = "resources") -> float:
    """Least period that resources and recurrence allow: a share for each nano-operation, without saying when it runs.

    The machine holds the sum of shares times durations, and what a layer waits for of the layer before fits in a period. One
    mixed-integer programme with ten binaries and a potential for each node.
    """
    nodes, n = graph.nodes, len(graph.nodes)
    options = [_choices(node.kind, node.seconds, interference, stage) for node in nodes]
    first = np.concatenate([[0], np.cumsum([len(one) for one in options])])
    binaries = int(first[-1])
    size = binaries + n + 1
    rows: list[tuple[list[tuple[int, float]], float, float]] = []
    for i, choices in enumerate(options):
        rows.append(([(int(first[i]) + k, 1.0) for k in range(len(choices))], 1.0, 1.0))
        rows.append(([*((int(first[i]) + k, d) for k, (d, _) in enumerate(choices)), (size - 1, -1.0)], -np.inf, 0.0))
    groups = {node.kind for node in nodes} if stage == "structure" else {None}
    for group in groups:
        cost = [
            (int(first[i]) + k, d * r)
            for i, choices in enumerate(options) if group is None or nodes[i].kind == group
            for k, (d, r) in enumerate(choices)
        ]  # fmt: skip
        rows.append(([*cost, (size - 1, -1.0)], -np.inf, 0.0))
    for i, j, lag in graph.edges:
        take = [(int(first[i]) + k, d) for k, (d, _) in enumerate(options[i])]
        if i == j:
            rows.append(([*take, (size - 1, -float(lag))], -np.inf, 0.0))
        else:
            rows.append(
                ([*take, (binaries + i, 1.0), (binaries + j, -1.0), (size - 1, -float(lag))], -np.inf, 0.0)
            )  # start_i + d_i <= start_j + lag T
    kinds = np.concatenate([np.ones(binaries), np.zeros(n + 1)])
    upper = np.concatenate([np.ones(binaries), np.full(n + 1, np.inf)])
    done = _milp(rows, size, np.eye(1, size, size - 1).ravel(), kinds, upper, 60.0)
    return float(done.mip_dual_bound) if done.mip_dual_bound is not None else 0.0


def search_periodic(
    graph: NanoGraph,
    interference: Interference,
    *,
    stage: str = "resources",
    solver: str = "highs",
    units: int = 500,
    time_limit_s: float = 60.0,
    workers: int = 8,
) -> PeriodicSchedule:
    """The shortest period of ``graph`` with constant shares, in ``units`` of time of the sequence; durations are rounded up.

    The order that is found is then given its best exact times (a linear programme). Where durations are whole units, the bound is
    the solver's; else it is :func:`period_bound`, which no rounding touches.

    Args:
        stage: "structure" (kinds exclude each other, no interference) or "resources" (shares of tenths).
        solver: "highs", one binary for each start: small graphs. "cp-sat" (extra ``cp-sat``): intervals, any graph.

    Returns:
        a schedule; the sequence (``status="fallback"``) where nothing better was found in time.

    Raises:
        ValueError: another stage or solver, units below 1 or a time that is not positive. ModuleNotFoundError: no OR-tools.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
    if solver not in ("highs", "cp-sat"):
        raise ValueError(f"solver must be 'highs' or 'cp-sat', got {solver!r}")
    if units < 1 or not time_limit_s > 0:
        raise ValueError(f"units={units}, time_limit_s={time_limit_s}: expected >= 1 and > 0")
    unit = graph.sequential_s / units
    shares: list[list[float]] = []
    modes, exact = [], True
    kinds = sorted({node.kind for node in graph.nodes})
    for node in graph.nodes:
        found: list[tuple[int, int, int]] = []
        levels: list[float] = []
        for duration, share in _choices(node.kind, node.seconds, interference, stage):
            whole = max(1, ceil(duration / unit - 1e-9)) if node.seconds else 0
            exact &= abs(whole * unit - duration) <= 1e-9 * max(unit, duration)
            demand, resource = (1, kinds.index(node.kind)) if stage == "structure" else (round(10 * share), 0)
            if not found or whole < found[-1][0]:  # more of the machine for the same time is dominated
                found.append((whole, demand, resource))
                levels.append(share)
        modes.append(tuple(found))
        shares.append(levels)
    capacity = (1,) * len(kinds) if stage == "structure" else (10,)
    problem = ModuloProblem(tuple(modes), capacity, graph.edges)
    if solver == "cp-sat":
        from anabranch.serving._modulo_cp_sat import solve_cp_sat

        solution = solve_cp_sat(problem, time_limit_s, workers)
    else:
        from anabranch.serving._modulo_highs import solve_highs

        solution = solve_highs(problem, time_limit_s)
    least = period_bound(graph, interference, stage)
    if not solution.start:
        plain = sequential(graph, interference)
        return replace(plain, stage=stage, bound_s=min(least, plain.period_s), resource_bound_s=least)
    chosen = tuple(levels[k] for levels, k in zip(shares, solution.mode, strict=True))
    durations = [
        node.seconds if stage == "structure" else node.seconds / float(interference(node.kind, share))
        for node, share in zip(graph.nodes, chosen, strict=True)
    ]
    start, period = _tighten(problem, solution, durations, unit)
    bound = max(least, solution.bound * unit) if exact else least
    proven = solution.bound >= solution.period
    status = "optimal" if proven else "time limit"
    return PeriodicSchedule(graph, interference, stage, start, chosen, period, min(bound, period), least, status)


def least_period(problem: ModuloProblem) -> int:
    """A bound in whole units: resources hold the least work of each node, cycles the shortest durations."""
    work = [0.0] * len(problem.capacity)
    for modes in problem.modes:
        resource = modes[0][2]
        work[resource] += min(d * r for d, r, _ in modes) / problem.capacity[resource]
    short = [min(d for d, _, _ in modes) for modes in problem.modes]
    period = max(ceil(max(work) - 1e-9), max(short), 1)
    while not order_is_possible(problem.edges, short, period):
        period += 1
    return period


def order_is_possible(edges: Sequence[tuple[int, int, int]], durations: Sequence[int], period: int) -> bool:
    """Whether starts exist with ``start_j + lag period >= start_i + duration_i``: no cycle gains (Bellman and Ford)."""
    start = [0] * len(durations)
    for _ in range(len(durations) + 1):
        changed = False
        for i, j, lag in edges:
            if start[i] + durations[i] - lag * period > start[j]:
                start[j], changed = start[i] + durations[i] - lag * period, True
        if not changed:
            return True
    return False


def _choices(kind: str, seconds: float, interference: Interference, stage: str) -> list[tuple[float, float]]:
    """(Duration, share) from the least share on; a larger share that is not faster is left out."""
    if stage == "structure":
        return [(seconds, 1.0)]
    found: list[tuple[float, float]] = []
    for level in _LEVELS:
        speed = float(interference(kind, level / 10))
        if speed > 0 and (not found or seconds / speed < found[-1][0] - 1e-15):
            found.append((seconds / speed, level / 10))
    return found


def _tighten(
    problem: ModuloProblem, solution: ModuloSolution, durations: Sequence[float], unit: float
) -> tuple[tuple[float, ...], float]:
    """The least period with the real durations in the order found: pairs that did not overlap stay in their order."""
    n, period = len(durations), solution.period
    whole = [problem.modes[i][k][0] for i, k in enumerate(solution.mode)]
    rows, right = [], []

    def after(i: int, j: int, lag: int) -> None:
        """start_i + d_i <= start_j + lag T."""
        row = np.zeros(n + 1)
        row[i] += 1
        row[j] -= 1
        row[n] -= lag
        rows.append(row)
        right.append(-durations[i])

    for i, j, lag in problem.edges:
        after(i, j, lag)
    for i in range(n):
        after(i, i, 1)
        for j in range(i):
            if problem.modes[i][0][2] != problem.modes[j][0][2] or not whole[i] or not whole[j]:
                continue
            shift = (solution.start[j] - solution.start[i]) % period
            if whole[i] <= shift and shift + whole[j] <= period:  # apart on the circle: i, then j, then i again
                turns = (shift - (solution.start[j] - solution.start[i])) // period
                after(i, j, turns)
                after(j, i, 1 - turns)
    done = linprog(
        np.eye(1, n + 1, n).ravel(), A_ub=np.array(rows), b_ub=np.array(right),
        bounds=[(0, None)] * (n + 1), method="highs",
    )  # fmt: skip
    if done.x is None:  # cannot be: the whole units are a solution
        return tuple(unit * at for at in solution.start), unit * period
    return tuple(float(at) for at in done.x[:n]), float(done.x[n])


def _milp(
    rows: Sequence[tuple[Sequence[tuple[int, float]], float, float]],
    size: int,
    cost: np.ndarray,
    integrality: np.ndarray,
    upper: np.ndarray,
    time_limit_s: float,
) -> Any:
    entries = [(number, column, value) for number, (row, _, _) in enumerate(rows) for column, value in row]
    at, column, value = zip(*entries, strict=True)
    matrix = coo_array((value, (at, column)), shape=(len(rows), size)).tocsr()
    limits = LinearConstraint(matrix, [low for _, low, _ in rows], [high for _, _, high in rows])
    return milp(
        cost, constraints=limits, integrality=integrality, bounds=(np.zeros(size), upper),
        options={"time_limit": time_limit_s, "mip_rel_gap": 1e-9},
    )  # fmt: skip
