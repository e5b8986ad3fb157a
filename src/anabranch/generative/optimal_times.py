"""The best times for a budget of steps, by dynamic programming over a table of step costs; and for the endpoint itself.

``optimal_times(step_costs(field, x0), 6)`` is a free upgrade of the sampler whose step costs were measured: the times go
into :func:`solve` and :func:`to_diffusers_scheduler` as any others do.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from anabranch.generative._checks import check_count, check_times
from anabranch.generative.fields import VelocityField
from anabranch.generative.paths import GaussianPath
from anabranch.generative.solve import solve
from anabranch.generative.solvers import Dopri5, get_solver
from anabranch.generative.step_costs import StepCosts
from anabranch.generative.times import uniform_times


class OptimalTimes(NamedTuple):
    """One choice of times.

    Args:
        times: ``[n + 1]``.
        indices: ``[n + 1]``, their places among the anchors.
        cost: the sum of its steps' costs, the least of all choices of n steps.
        least: the least cost of all choices of up to n steps. More steps can cost more: errors that cancel within a long
            step need not within its parts.
    """

    times: Float64[Tensor, " times"]
    indices: Int64[Tensor, " times"]
    cost: float
    least: float


def optimal_times(costs: StepCosts, n: int, *, through: Sequence[float] = ()) -> Float64[Tensor, " times"]:
    """The ``n`` steps between the first and the last anchor whose costs have the least sum, of all there are.

    The exact minimum, by dynamic programming (Nguyen et al., 2312.16414, problem 4, an integer programme there): O(n J^2)
    for costs of two times, O(n J^3) for those of three. Of equal choices the one whose first different time is earliest.
    It minimizes the sum of local costs, not the error at the end, which it usually but not always lowers: see
    :func:`endpoint_times`.

    Args:
        costs: as :func:`step_costs` measures them, or your own.
        n: steps, at most the table's intervals.
        through: anchors that must be among the times.

    Returns:
        float64 ``[n + 1]``; :func:`optimal_frontier` gives costs beside it, for every number of steps.

    Raises:
        ValueError: n out of range, a time in ``through`` that is no anchor, no choice of finite cost.
    """
    return _choices(costs, n, through, every=False)[-1].times


def optimal_frontier(costs: StepCosts, n: int, *, through: Sequence[float] = ()) -> list[OptimalTimes]:
    """The best times for every number of steps up to ``n``, by one dynamic programme; those without a choice are left out.

    Raises:
        ValueError: as of :func:`optimal_times`.
    """
    return _choices(costs, n, through, every=True)


def _choices(costs: StepCosts, n: int, through: Sequence[float], *, every: bool) -> list[OptimalTimes]:
    check_count("n", n)
    if n > costs.intervals:
        raise ValueError(f"n = {n}: expected at most the {costs.intervals} intervals between the anchors")
    table = costs.costs.numpy()
    if len(through):
        table = table.copy()
        for node in _indices(costs, torch.as_tensor(through, dtype=torch.float64), "through", snap=False).tolist():
            table[..., :node, node + 1 :] = np.inf
    # values[m - 1][state]: least cost from a state (the last anchors visited) to the end in exactly m steps
    values, nexts = [table[..., -1]], []
    for _ in range(n - 1):
        totals = table + values[-1]  # by broadcasting: the state after a step is its last times
        nexts.append(totals.argmin(-1))
        values.append(np.take_along_axis(totals, nexts[-1][..., None], -1)[..., 0])
    start, found, least = (0,) * (table.ndim - 1), [], math.inf
    for steps in range(1, n + 1):
        if not np.isfinite(values[steps - 1][start]):
            continue
        state, nodes = start, [0]
        for choice in reversed(nexts[: steps - 1]):
            nodes.append(int(choice[state]))
            state = (*state[1:], nodes[-1])
        nodes.append(costs.intervals)
        cost = _cost(table, nodes)
        least = min(least, cost)
        if every or steps == n:
            indices = torch.tensor(nodes)
            found.append(OptimalTimes(costs.anchors[indices], indices, cost, least))
    if not found or (not every and len(found[-1].times) != n + 1):
        raise ValueError(f"no {n} steps of finite cost lead through {list(through) or 'the anchors'}")
    return found


def _cost(table: np.ndarray, nodes: Sequence[int]) -> float:
    memory = table.ndim - 1
    padded = [nodes[0]] * (memory - 1) + list(nodes)
    return math.fsum(table[tuple(padded[i : i + memory + 1])] for i in range(len(nodes) - 1))


def times_cost(costs: StepCosts, times: Float[Tensor, " points"], *, snap: bool = False) -> float:
    """The sum of the step costs along ``times``, from the first to the last anchor.

    Args:
        snap: round times to their nearest anchors (of two equally near the even one) where they are not anchors.

    Raises:
        ValueError: times that are not anchors, that do not span them, or that coincide when rounded.
    """
    indices = _indices(costs, check_times(times), "times", snap=snap)
    nodes = indices.tolist()
    if nodes[0] != 0 or nodes[-1] != costs.intervals:
        raise ValueError(
            f"times go from {float(times[0])} to {float(times[-1])}: expected the anchors' ends, "
            f"{float(costs.anchors[0])} and {float(costs.anchors[-1])}"
        )
    if bool((indices.diff() < 1).any()):
        raise ValueError(f"times coincide on the anchors {nodes}: expected more anchors")
    return _cost(costs.costs.numpy(), nodes)


def _indices(costs: StepCosts, times: Tensor, name: str, *, snap: bool) -> Tensor:
    distance = (times[:, None] - costs.anchors).abs()
    nearest, index = distance.min(1)
    off = nearest > 1e-9
    if bool(off.any()) and not snap:
        time = float(times[int(off.nonzero()[0])])
        raise ValueError(
            f"{name} holds {time}, which is no anchor" + (": pass snap=True to round" if name == "times" else "")
        )
    rivals = (distance <= nearest[:, None] + 1e-9) & (torch.arange(len(costs.anchors)) % 2 == 0)
    even = rivals.any(1) & off
    return torch.where(even, rivals.to(torch.int64).argmax(1), index)


def endpoint_times(
    field: VelocityField,
    x0: Float[Tensor, "batch *shape"],
    costs: StepCosts,
    n: int,
    *,
    solver: Any = "euler",
    end: Float[Tensor, "..."] | None = None,
    path: GaussianPath | None = None,
    rounds: int = 20,
    **condition: Any,
) -> Float64[Tensor, " times"]:
    """``n`` steps that end near where the fine trajectory does, by coordinate descent on the anchors (ours).

    The sum of local costs takes errors as if they never grew or cancelled. Here the mean squared distance at the end is
    lowered itself, on the noises ``x0``: from the better of :func:`optimal_times` and the uniform times (rounded to
    anchors), one time after the other is moved by 8, 4, 2 and 1 anchors while that helps. On ``x0`` it is never worse than
    either.

    Cost: two solves of n steps and one of J for the start, then at most ``8 (n - 1)`` solves of n steps a round; it ends at
    the first round without a gain.

    Args:
        costs: the table, for its anchors and the start.
        solver: that will be used on the times.
        end: where the exact flow takes ``x0``; default ``solver`` on all the anchors.
        rounds: most sweeps over the times.

    Raises:
        ValueError: n out of range, a solver that is stochastic or adaptive, an end of another shape.
    """
    chosen = get_solver(solver)
    if isinstance(chosen, Dopri5) or chosen.stochastic:
        raise ValueError(f"solver {solver!r} chooses its own steps or is stochastic")
    check_count("rounds", rounds)
    best = tuple(_choices(costs, n, (), every=False)[-1].indices.tolist())

    def carried(times: Tensor) -> Tensor:
        return solve(field, x0, times, chosen, path=path, **condition)

    goal = carried(costs.anchors) if end is None else end
    if goal.shape != x0.shape:
        raise ValueError(f"end has shape {tuple(goal.shape)}: expected that of x0, {tuple(x0.shape)}")
    error = _remembered(lambda nodes: float((carried(costs.anchors[list(nodes)]) - goal).double().square().mean()))
    span = float(costs.anchors[-1] - costs.anchors[0])
    even = _indices(costs, float(costs.anchors[0]) + span * uniform_times(n), "uniform times", snap=True).tolist()
    if all(a < b for a, b in pairwise(even)):
        best = min(best, tuple(even), key=error)
    for _ in range(rounds):
        before = best
        for i in range(1, n):
            trials = [
                (*best[:i], node, *best[i + 1 :])
                for move in (8, 4, 2, 1)
                for node in (best[i] - move, best[i] + move)
                if best[i - 1] < node < best[i + 1]
            ]
            best = min([best, *trials], key=error)
        if best == before:
            break
    return costs.anchors[list(best)]


def _remembered(function: Callable[[tuple[int, ...]], float]) -> Callable[[tuple[int, ...]], float]:
    known: dict[tuple[int, ...], float] = {}

    def call(nodes: tuple[int, ...]) -> float:
        if nodes not in known:
            known[nodes] = function(nodes)
        return known[nodes]

    return call
