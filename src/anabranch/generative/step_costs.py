"""What one step of a solver from any anchor time to any later one costs: the table that :func:`optimal_times` minimizes.

From every anchor the solver takes one step over to every later anchor, starting on a finely solved trajectory, and the cost
is the distance to that trajectory (Nguyen et al., 2312.16414, section 3.1, for Euler). Methods that remember one prediction
(Adams-Bashforth, DPM-Solver++) have a cost for every three anchors: previous, from, to (ours).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from anabranch.generative._checks import check_count, check_times, select, time_dtype
from anabranch.generative._step_cost_forms import direct_costs, euler_costs, linear_costs
from anabranch.generative.fields import VelocityField
from anabranch.generative.paths import GaussianPath, LinearPath
from anabranch.generative.solve import Progress, solve
from anabranch.generative.solvers import SOLVERS, Dopri5, LinearMultistep, get_solver
from anabranch.generative.times import uniform_times

Cost = Callable[[Tensor, Tensor], Tensor]
"""``cost(coarse, reference) -> [B]``: how far states of a coarse step are from the reference's; >= 0."""


@dataclass(frozen=True)
class StepCosts:
    """Mean costs of single steps between anchors.

    Args:
        costs: ``[J + 1, J + 1]``, from and to; or ``[J + 1, J + 1, J + 1]``, previous, from and to, where ``[0, 0, k]`` is a
            first step. Entries that no step has (not forwards) are set to infinity.
        anchors: ``[J + 1]``, the times that may be chosen.
        n: samples in the mean.
        squares: means of the squared costs, as ``costs``; None where they were not kept.

    Raises:
        ValueError: shapes that do not fit, an entry that is negative or NaN (names it).
    """

    costs: Float64[Tensor, "..."]
    anchors: Float64[Tensor, " anchors"]
    n: int
    squares: Float64[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchors", check_times(self.anchors, "anchors"))
        check_count("n", self.n)
        size = len(self.anchors)
        if self.costs.ndim not in (2, 3) or any(side != size for side in self.costs.shape):
            raise ValueError(
                f"costs has shape {tuple(self.costs.shape)}: expected two or three sides of {size} anchors"
            )
        steps = possible_steps(size, self.costs.ndim)
        bad = (steps & ~(self.costs >= 0)).nonzero()
        if len(bad):
            cell = tuple(bad[0].tolist())
            raise ValueError(f"costs{list(cell)} = {float(self.costs[cell])}: expected costs >= 0")
        if self.squares is not None and self.squares.shape != self.costs.shape:
            raise ValueError(f"squares has shape {tuple(self.squares.shape)}: expected that of costs")
        for name in ("costs", "squares"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, values.to("cpu", torch.float64).masked_fill(~steps, torch.inf))

    @property
    def intervals(self) -> int:
        """J: the most steps a choice can have."""
        return len(self.anchors) - 1

    def standard_error(self) -> Float64[Tensor, "..."]:
        """Of every mean over the n samples; infinite where there is no step.

        Raises:
            ValueError: squares were not kept, or n = 1.
        """
        if self.squares is None or self.n < 2:
            raise ValueError(
                f"n = {self.n}, squares {'kept' if self.squares is not None else 'not kept'}: no error known"
            )
        variance = (self.squares - self.costs**2).clamp(min=0) / (self.n - 1)
        return torch.where(torch.isfinite(self.costs), variance.sqrt(), torch.inf)

    def save(self, path: Path) -> Path:
        """Write to ``path``, a .npz file without pickled objects."""
        arrays = {"costs": self.costs.numpy(), "anchors": self.anchors.numpy(), "n": np.asarray(self.n)}
        if self.squares is not None:
            arrays["squares"] = self.squares.numpy()
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return path

    @classmethod
    def load(cls, path: Path) -> "StepCosts":
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file. ValueError: a file of another kind.
        """
        with np.load(path, allow_pickle=False) as file:
            missing = {"costs", "anchors", "n"} - set(file.files)
            if missing:
                raise ValueError(f"{path} has no {json.dumps(sorted(missing))}: expected a file of StepCosts.save")
            squares = torch.from_numpy(file["squares"]) if "squares" in file.files else None
            return cls(torch.from_numpy(file["costs"]), torch.from_numpy(file["anchors"]), int(file["n"]), squares)


def possible_steps(size: int, sides: int) -> Tensor:
    """Which entries of a table are steps: forwards in all its times, or a first step from ``[0, 0]``."""
    index = torch.arange(size)
    forwards = index[:, None] < index
    if sides == 2:
        return forwards
    steps = forwards[:, :, None] & forwards[None]
    steps[0, 0, 1:] = True
    return steps


def step_costs(
    field: VelocityField,
    x0: Float[Tensor, "batch *shape"],
    anchors: int | Float[Tensor, " anchors"] = 100,
    *,
    solver: Any = "euler",
    reference: Any = None,
    cost: Cost | None = None,
    path: GaussianPath | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
    **condition: Any,
) -> StepCosts:
    """Costs of single steps of ``solver`` between J + 1 anchors, the mean over the trajectories from ``x0``.

    The default is the paper's: Euler steps, squared distance (its sum over a sample's entries), the trajectory itself J
    Euler steps, so that steps between neighbours cost nothing.

    Cost: J calls a sample for the trajectory. Methods of one call a step need no more, those of s stages
    ``(s - 1) J (J + 1) / 2`` more. Arithmetic ``J^2`` a sample and entry; with a ``cost`` of your own it is called
    ``J^2 / 2`` times a batch, or ``J^3 / 6`` times for methods of two predictions. Memory: about ``8 J`` times a batch's
    states (squared distance), and the table.

    Args:
        x0: states at the first anchor, from the source.
        anchors: J uniform steps, or the times themselves.
        solver: whose steps are chosen: a deterministic fixed-step one of :data:`SOLVERS`, or an object like them. Objects
            of other classes are taken to remember nothing between steps.
        reference: solver of the trajectory on the anchors; default ``solver`` itself.
        cost: ``cost(coarse, reference) -> [B]``; default the squared distance.
        path: as of :func:`solve`.
        condition: given to every call; tensors with one row a sample are split with the batches. The field must be the one
            that will be sampled: guidance included, its labels one a trajectory.

    Raises:
        ValueError: a solver that is stochastic, adaptive or remembers more than one prediction; a cost of another shape.
        And all that :func:`solve` raises.
    """
    check_count("batch_size", batch_size)
    grid = uniform_times(anchors) if isinstance(anchors, int) else check_times(anchors, "anchors")
    chosen, fine = get_solver(solver), get_solver(solver if reference is None else reference)
    own = getattr(field, "path", None)
    path = path or (own if isinstance(own, GaussianPath) else LinearPath())
    history = _history(chosen, solver, grid, path)
    if getattr(fine, "stochastic", False):
        raise ValueError(f"reference {reference!r} is stochastic: its trajectory is not the flow's")
    n = len(x0)
    check_count("the number of rows of x0", n)
    costs: Tensor | None = None
    squares: Tensor | None = None
    for first in range(0, n, batch_size):
        rows = torch.arange(first, min(n, first + batch_size), device=x0.device)
        extra = select(condition, rows, n)
        states, velocities = _trajectory(field, x0[rows], grid, fine, path, extra)
        if cost is None and chosen is SOLVERS["euler"] and fine is chosen:
            found = euler_costs(grid, velocities)
        elif cost is None and isinstance(chosen, LinearMultistep):
            found = linear_costs(chosen, grid, path, states, velocities, history)
        else:
            found = direct_costs(
                chosen, field, grid, path, states, velocities, history, cost or squared_distance, extra
            )
        costs = found.costs if costs is None else costs + found.costs
        if found.squares is not None:
            squares = found.squares if squares is None else squares + found.squares
        if progress is not None:
            progress(int(rows[-1]) + 1, n, {})
    assert costs is not None
    return StepCosts(costs / n, grid, n, None if squares is None else squares / n)


def squared_distance(coarse: Tensor, reference: Tensor) -> Tensor:
    """``[B]``: the squared distance, summed over a sample's entries."""
    return (coarse - reference).flatten(1).square().sum(1)


def merge_step_costs(tables: Sequence[StepCosts]) -> StepCosts:
    """One table of all the samples of ``tables``, measured apart (on other machines): means weighted by their n.

    Raises:
        ValueError: no table, other anchors or another kind of solver.
    """
    if not tables:
        raise ValueError("tables is empty: expected at least one")
    first, n = tables[0], sum(table.n for table in tables)
    for i, table in enumerate(tables):
        if table.costs.shape != first.costs.shape or not torch.equal(table.anchors, first.anchors):
            raise ValueError(f"tables[{i}] has other anchors or another kind of solver than tables[0]")
    costs = torch.stack([table.n / n * table.costs for table in tables]).sum(0)
    kept = [table.n / n * table.squares for table in tables if table.squares is not None]
    return StepCosts(costs, first.anchors, n, torch.stack(kept).sum(0) if len(kept) == len(tables) else None)


def _history(chosen: Any, solver: Any, grid: Tensor, path: GaussianPath) -> int:
    if isinstance(chosen, Dopri5):
        raise ValueError(f"solver {solver!r} chooses its own steps")
    if chosen.stochastic:
        raise ValueError(f"solver {solver!r} is stochastic: one step has no single end to compare")
    if not isinstance(chosen, LinearMultistep):
        return 1
    history = chosen.coefficients(grid, path).predictions.shape[1]
    if history > 2:
        raise ValueError(f"solver {solver!r} combines {history} predictions: expected at most 2")
    return history


def _trajectory(
    field: VelocityField, x0: Tensor, grid: Tensor, solver: Any, path: GaussianPath, condition: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """States at the anchors, velocities at all but the last."""
    fine = solve(field, x0, grid, solver, path=path, return_trajectory=True, **condition)
    if len(fine.velocities):
        return fine.states, fine.velocities
    with torch.no_grad():  # adaptive solvers keep none
        at = grid.to(x0.device, time_dtype(x0))
        velocities = [field(x, t, **condition) for x, t in zip(fine.states[:-1], at[:-1], strict=True)]
    return fine.states, torch.stack(velocities)
