"""Modulo scheduling by time-indexed mixed-integer programmes: one for each period, until one has a solution."""

import time

import numpy as np

from anabranch.serving.modulo_search import ModuloProblem, ModuloSolution, _milp, least_period


def solve_highs(problem: ModuloProblem, time_limit_s: float) -> ModuloSolution:
    """Periods by bisection: what fits in a period fits in a longer one. Binaries: nodes x modes x period."""
    end = time.perf_counter() + time_limit_s
    low = first = least_period(problem)
    high = sum(min(d for d, _, _ in modes) for modes in problem.modes)
    found: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    bound, best = low, 0
    while low <= high:
        left = end - time.perf_counter()
        if left <= 0:
            break
        period = low if low == first else (low + high) // 2  # the bound is often reached
        status, answer = _fits(problem, period, left)
        if status == "yes" and answer is not None:
            found, best, high = answer, period, period - 1
        elif status == "no":
            low = bound = period + 1
        else:
            break
    if found is None:
        return ModuloSolution(0, bound, (), ())
    return ModuloSolution(best, min(bound, best), *found)


def _fits(
    problem: ModuloProblem, period: int, time_limit_s: float
) -> tuple[str, tuple[tuple[int, ...], tuple[int, ...]] | None]:
    """Whether starts and modes exist for ``period``: "yes" with them, "no", or "late"."""
    n = len(problem.modes)
    column: dict[tuple[int, int, int], int] = {}
    for i, modes in enumerate(problem.modes):
        for k, (duration, _, _) in enumerate(modes):
            if duration <= period:
                for start in range(period):
                    column[i, k, start] = len(column)
    binaries = len(column)
    turns = range(binaries, binaries + n)  # whole periods before the start
    rows: list[tuple[list[tuple[int, float]], float, float]] = []
    for i, modes in enumerate(problem.modes):
        mine = [column[i, k, s] for k in range(len(modes)) for s in range(period) if (i, k, s) in column]
        if not mine:
            return "no", None
        rows.append(([(c, 1.0) for c in mine], 1.0, 1.0))
    for resource, capacity in enumerate(problem.capacity):
        for moment in range(period):
            load = [
                (c, float(problem.modes[i][k][1]))
                for (i, k, s), c in column.items()
                if problem.modes[i][k][2] == resource and (moment - s) % period < problem.modes[i][k][0]
            ]
            if load:
                rows.append((load, -np.inf, float(capacity)))
    for i, j, lag in problem.edges:  # start_i + d_i <= start_j + lag T
        weights: dict[int, float] = {}
        for (node, k, s), c in column.items():
            if node == i:
                weights[c] = weights.get(c, 0.0) + s + problem.modes[i][k][0]
            if node == j:
                weights[c] = weights.get(c, 0.0) - s
        if i != j:
            weights[turns[i]] = float(period)
            weights[turns[j]] = -float(period)
        rows.append((list(weights.items()), -np.inf, float(lag * period)))
    size = binaries + n
    upper = np.concatenate([np.ones(binaries), np.full(n, 2.0 * n)])
    done = _milp(rows, size, np.zeros(size), np.ones(size), upper, time_limit_s)
    if done.x is None:
        return ("no" if done.status == 2 else "late"), None
    starts, mode = [0] * n, [0] * n
    for (i, k, s), c in column.items():
        if done.x[c] > 0.5:
            starts[i], mode[i] = s + period * round(done.x[turns[i]]), k
    return "yes", (tuple(starts), tuple(mode))
