"""Error of solvers against a reference solution, by network calls; diffusers' schedulers are measured the same way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_count, check_pair
from anabranch.generative.fields import Counted, VelocityField
from anabranch.generative.interop_schedulers import is_scheduler, run_scheduler
from anabranch.generative.langevin import calls_per_step
from anabranch.generative.paths import GaussianPath
from anabranch.generative.solve import solve
from anabranch.generative.solvers import Dopri5, get_solver
from anabranch.generative.times import uniform_times

TimesOf = Callable[[int], Tensor]


@dataclass(frozen=True)
class ReferenceSolution:
    """States at t = 0 and where the exact flow carries them: both ``[B, ...]``.

    Raises:
        ValueError: shapes or dtypes that differ.
    """

    start: Float[Tensor, "batch *shape"]
    end: Float[Tensor, "batch *shape"]

    def __post_init__(self) -> None:
        check_pair(self.start, self.end)

    @classmethod
    def solved(
        cls,
        field: VelocityField,
        start: Float[Tensor, "batch *shape"],
        *,
        steps: int = 1000,
        solver: Any = "rk4",
        **condition: Any,
    ) -> "ReferenceSolution":
        """The reference by a fine solution: ``steps`` uniform steps (4 calls each with rk4)."""
        return cls(start, solve(field, start, uniform_times(steps), solver, **condition))


@dataclass(frozen=True)
class BenchmarkRow:
    """One row: a solver at a number of calls.

    Args:
        solver: its name.
        asked: calls asked for. ``calls`` and ``steps`` are what was made: the most whole steps that fit.
        errors: ``[B]``, Euclidean distance of each end from the reference.
    """

    solver: str
    asked: int
    calls: int
    steps: int
    errors: Float[Tensor, " batch"]

    @property
    def mean(self) -> float:
        """Mean distance."""
        return float(self.errors.mean())

    @property
    def median(self) -> float:
        """Median distance: what a typical trajectory has (the mean and the RMSE follow the few near a separatrix)."""
        return float(self.errors.median())

    @property
    def rmse(self) -> float:
        """Root of the mean squared distance."""
        return float(self.errors.square().mean().sqrt())


def solver_benchmark(
    field: VelocityField,
    reference: ReferenceSolution,
    solvers: Sequence[Any] | Mapping[str, Any],
    calls: Sequence[int],
    *,
    times: TimesOf | Mapping[str, TimesOf] = uniform_times,
    path: GaussianPath | None = None,
    **condition: Any,
) -> list[BenchmarkRow]:
    """Every solver at every number of network calls, against ``reference``.

    Cost: the sum of ``calls`` per solver, on the reference's batch.

    Args:
        solvers: names of :data:`SOLVERS`, solver objects, or diffusers scheduler objects (deterministic ones); a mapping
            names them. Schedulers choose their own times; on table paths they get the field moved to their path, started
            where the exact flow is there (see :func:`run_scheduler`).
        calls: numbers of calls per sample. A solver of k calls a step makes ``calls // k`` steps; where that is 0 there is
            no row.
        times: ``times(n)`` of n steps for our solvers; a mapping gives each its own (names it lacks take uniform times).
        path: the field's, as in ``solve``.

    Raises:
        ValueError: no or repeated solvers, calls < 1, a stochastic or adaptive solver (its end is not the flow's, its
            calls are not chosen).
    """
    named = dict(solvers) if isinstance(solvers, Mapping) else {_name(solver): solver for solver in solvers}
    if not named or len(named) != len(solvers):
        raise ValueError(f"solvers must be one or more with names of their own, got {list(map(_name, solvers))}")
    for number in calls:
        check_count("calls", number)
    plain = {name: solver for name, solver in named.items() if not is_scheduler(solver)}
    for name, solver in plain.items():
        chosen = get_solver(solver)
        if isinstance(chosen, Dopri5) or chosen.stochastic:
            kind = "adaptive" if isinstance(chosen, Dopri5) else "stochastic"
            raise ValueError(f"solver {name!r} is {kind}: its end cannot be compared at a given number of calls")
    rows = []
    for name, solver in named.items():
        for number in calls:
            if name in plain:
                steps = number // calls_per_step(get_solver(solver))
                if steps == 0:
                    continue
                grid = (times.get(name, uniform_times) if isinstance(times, Mapping) else times)(steps)
                counted = Counted(field)
                end = solve(counted, reference.start, grid, solver, path=path, **condition)
                made = counted.calls
            else:
                end, steps, made = run_scheduler(solver, field, reference.start, number, path=path, **condition)
                if steps == 0:
                    continue
            errors = (end - reference.end).reshape(len(end), -1).norm(dim=1)
            rows.append(BenchmarkRow(name, number, made, steps, errors))
    return rows


def _name(solver: Any) -> str:
    return solver if isinstance(solver, str) else type(solver).__name__
