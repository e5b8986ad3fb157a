"""Modulo scheduling by constraint programming (OR-tools' CP-SAT), the period a variable."""

from typing import Any

from anabranch.serving.modulo_search import ModuloProblem, ModuloSolution, least_period


def solve_cp_sat(problem: ModuloProblem, time_limit_s: float, workers: int) -> ModuloSolution:
    """Each node has its place in the period and the whole periods before it; every interval appears twice, a period apart.

    Two copies tell all that meets on a circle of one period, since no operation is longer than the period.

    Raises:
        ModuleNotFoundError: OR-tools is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "solver='cp-sat' needs OR-tools: install anabranch[cp-sat]; solver='highs' is always there", name="ortools"
        ) from error
    most = sum(min(d for d, _, _ in modes) for modes in problem.modes)
    least = least_period(problem)
    turns = _most_turns(problem)
    model: Any = cp_model.CpModel()
    period = model.new_int_var(least, max(least, most), "period")
    starts, chosen, wholes = [], [], []
    intervals: list[list[Any]] = [[] for _ in problem.capacity]
    demands: list[list[int]] = [[] for _ in problem.capacity]
    lasts = []
    for i, modes in enumerate(problem.modes):
        place = model.new_int_var(
            0, most if i else 0, f"place{i}"
        )  # the circle may be turned: the first node begins it
        model.add(place < period)
        start = model.new_int_var(0, (turns + 1) * most, f"start{i}")
        whole = [model.new_bool_var(f"whole{i}_{m}") for m in range(turns + 1)]
        model.add_exactly_one(whole)
        for m, yes in enumerate(whole):
            model.add(start == place + m * period).only_enforce_if(yes)
        picks = [model.new_bool_var(f"mode{i}_{k}") for k in range(len(modes))]
        model.add_exactly_one(picks)
        last = sum(d * pick for (d, _, _), pick in zip(modes, picks, strict=True))
        model.add(last <= period)
        again = model.new_int_var(0, 2 * most, f"again{i}")
        model.add(again == place + period)
        for (duration, demand, resource), pick in zip(modes, picks, strict=True):
            for copy, at in enumerate((place, again)):
                intervals[resource].append(
                    model.new_optional_fixed_size_interval_var(at, duration, pick, f"run{i}_{copy}_{duration}")
                )
                demands[resource].append(demand)
        starts.append(start)
        chosen.append(picks)
        wholes.append(whole)
        lasts.append(last)
    for i, j, lag in problem.edges:
        model.add(starts[i] + lasts[i] <= starts[j] + lag * period)
    for resource, capacity in enumerate(problem.capacity):
        if capacity == 1:
            model.add_no_overlap(intervals[resource])
        else:
            model.add_cumulative(intervals[resource], demands[resource], capacity)
        work = [
            d * r * pick
            for modes, picks in zip(problem.modes, chosen, strict=True)
            for (d, r, where), pick in zip(modes, picks, strict=True) if where == resource
        ]  # fmt: skip
        model.add(sum(work) <= capacity * period)
    model.minimize(period)
    solver: Any = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.num_workers = workers
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return ModuloSolution(0, least, (), ())
    bound = round(solver.best_objective_bound)
    return ModuloSolution(
        solver.value(period), max(least, bound), tuple(solver.value(start) for start in starts),
        tuple(next(k for k, pick in enumerate(picks) if solver.value(pick)) for picks in chosen),
    )  # fmt: skip


def _most_turns(problem: ModuloProblem) -> int:
    """Whole periods that may lie before a start: what cycles through one node allow, else two a node."""
    n = len(problem.modes)
    far = [[0 if i == j else 10**6 for j in range(n)] for i in range(n)]
    for i, j, lag in problem.edges:
        far[i][j] = min(far[i][j], lag)
    for k in range(n):
        for i in range(n):
            for j in range(n):
                far[i][j] = min(far[i][j], far[i][k] + far[k][j])
    most = 0
    for i in range(n):
        for j in range(n):
            there, back = far[i][j], far[j][i]
            linked = there < 10**6 or back < 10**6
            if linked and there + back >= 10**6:
                return 2 * n
            if linked:
                most = max(most, there + back)
    return most + 2
