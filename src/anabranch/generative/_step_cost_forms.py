"""Three ways to the same table of step costs: by differences of velocities, by Gram matrices, and step by step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anabranch.generative._checks import time_dtype
from anabranch.generative.fields import VelocityField
from anabranch.generative.paths import GaussianPath
from anabranch.generative.solvers import LinearMultistep


class Sums(NamedTuple):
    """Of costs and of squared costs over the samples of a batch, ``[J + 1, ...]``."""

    costs: Tensor
    squares: Tensor | None


def euler_costs(grid: Tensor, velocities: Tensor) -> Sums:
    """Euler steps on an Euler trajectory: the error is a sum of changes of the velocity, so one Gram matrix holds it all.

    ``X_k - X_j - (t_k - t_j) V_j = sum_{i=j}^{k-2} (t_k - t_{i+1}) (V_{i+1} - V_i)``. The square of the sum is built up
    from its last term to its first, in float64: nothing large cancels, and neighbours cost exactly 0.
    """
    steps, batch = velocities.shape[:2]
    grams = []
    for i in range(batch):  # sample by sample: its changes fit a processor's cache, 1.6 times as fast as all at once
        change = velocities[:, i].flatten(1).to(torch.float64).diff(dim=0)
        grams.append(change @ change.T)
    gram = torch.stack(grams).cpu()  # [B, J - 1, J - 1]
    weight = (grid[:, None] - grid[1:-1]).clamp(min=0)  # [k, i]: t_k - t_{i+1}, 0 for i > k - 2
    both = gram.diagonal(dim1=1, dim2=2).diag_embed() + 2 * gram.triu(1)
    terms = weight * (weight @ both.transpose(1, 2))  # [B, k, j]: what term j adds to those after it
    costs = torch.zeros(batch, steps + 1, steps + 1, dtype=torch.float64)
    costs[:, : steps - 1] = terms.flip(2).cumsum(2).flip(2).transpose(1, 2).clamp(min=0)
    return Sums(costs.sum(0), costs.square().sum(0))


def linear_costs(
    solver: LinearMultistep, grid: Tensor, path: GaussianPath, states: Tensor, velocities: Tensor, history: int
) -> Sums:
    """Methods of one call a step: the error is a combination of states and velocities, its square one of their Gram matrix.

    Before, two lines of the path through the trajectory's ends are taken out of it and counted apart: a consistent method
    carries them exactly, so that nothing large is left to cancel.
    """
    points, batch = states.shape[:2]
    rows, on_lines = _lines_apart(solver, grid, path, states.to(torch.float64), velocities.to(torch.float64))
    flat = rows.reshape(len(rows), batch, -1).transpose(0, 1)
    gram = torch.bmm(flat, flat.transpose(1, 2)).cpu()  # [B, 2J + 3, 2J + 3]: states, velocities, two lines
    if history == 2:
        gram = gram.sum(0, keepdim=True)  # a table of three times a sample would not fit
    costs = torch.zeros(len(gram), *[points] * (history + 1), dtype=torch.float64)
    for table, terms, coefficients in _residuals(solver, grid, path, history):
        lines = (coefficients[:, :, None] * on_lines[terms]).sum(1)  # rounding errors, for a consistent method
        places = torch.tensor([len(rows) - 2, len(rows) - 1]).expand(len(terms), 2)
        at, weights = torch.cat([terms, places], 1), torch.cat([coefficients, lines], 1)
        square = torch.zeros(len(gram), len(terms), dtype=torch.float64)
        for i in range(at.shape[1]):
            for j in range(at.shape[1]):
                square += weights[:, i] * weights[:, j] * gram[:, at[:, i], at[:, j]]
        costs[(slice(None), *table.unbind(1))] = square.clamp(min=0)
    return Sums(costs.sum(0), None if history == 2 else costs.square().sum(0))


def direct_costs(
    solver: Any,
    field: VelocityField,
    grid: Tensor,
    path: GaussianPath,
    states: Tensor,
    velocities: Tensor,
    history: int,
    cost: Callable[[Tensor, Tensor], Tensor],
    condition: dict[str, Any],
) -> Sums:
    """Every step taken, every end compared."""
    points = len(grid)
    sums = torch.zeros(2, *[points] * (history + 1), dtype=torch.float64)

    def compare(cell: tuple[int, ...], coarse: Tensor) -> None:
        found = cost(coarse, states[cell[-1]])
        if not isinstance(found, Tensor) or found.shape != (len(coarse),):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"cost gave {got}: expected one number a sample, [{len(coarse)}]")
        found = found.detach().to("cpu", torch.float64)
        if not bool((found >= 0).all()):
            raise ValueError(
                f"cost gave {float(found[~(found >= 0)][0])} for the step {list(cell)}: expected costs >= 0"
            )
        sums[(0, *cell)], sums[(1, *cell)] = found.sum(), found.square().sum()

    with torch.no_grad():
        if isinstance(solver, LinearMultistep):
            both = torch.cat([states, velocities])
            for table, terms, coefficients in _residuals(solver, grid, path, history):
                for cell, term, weight in zip(table.tolist(), terms.tolist(), coefficients.tolist(), strict=True):
                    coarse = sum(-w * both[i] for i, w in zip(term[1:], weight[1:], strict=True) if w)
                    compare(tuple(cell), coarse)
        else:
            for cell, coarse in _steps(solver, field, grid, path, states, velocities, condition):
                compare(cell, coarse)
    return Sums(sums[0], sums[1])


def _steps(
    solver: Any,
    field: VelocityField,
    grid: Tensor,
    path: GaussianPath,
    states: Tensor,
    velocities: Tensor,
    condition: dict[str, Any],
) -> Any:
    """One step of a method without memory from every anchor to every later one; its first call is known already."""
    for j in range(len(grid) - 1):
        start, velocity, now = states[j], velocities[j], float(grid[j].to(time_dtype(states)))

        def evaluate(
            x: Tensor, t: Tensor, start: Tensor = start, velocity: Tensor = velocity, now: float = now
        ) -> Tensor:
            return velocity if x is start and float(t) == now else field(x, t, **condition)

        for k in range(j + 1, len(grid)):
            advance = solver.prepare(grid[[j, k]], path, start)
            yield (j, k), advance(0, start, evaluate, _no_noise)[0]


def _no_noise() -> Tensor:
    raise ValueError("the solver draws noise, but says it is not stochastic")


def _lines_apart(
    solver: LinearMultistep, grid: Tensor, path: GaussianPath, states: Tensor, velocities: Tensor
) -> tuple[Tensor, Tensor]:
    """States and velocities without their share of two lines, then the lines; and the shares, ``[2J + 1, 2]``."""
    if solver.prediction == "velocity":
        one, zero = torch.ones_like(grid), torch.zeros_like(grid)
        on_states, on_velocities = torch.stack([one, grid], 1), torch.stack([zero, one], 1)
    else:
        on_states = torch.stack([path.sigma(grid), path.alpha(grid)], 1)
        on_velocities = torch.stack([path.d_sigma(grid), path.d_alpha(grid)], 1)
    shares = torch.cat([on_states, on_velocities[:-1]])
    ends = on_states[[0, -1]]
    if not bool(torch.isfinite(shares).all()) or float(torch.linalg.det(ends)) == 0:
        shares = torch.zeros_like(shares)
        lines = torch.zeros_like(states[:2])
    else:
        inverse = torch.linalg.inv(ends).to(states.device)
        lines = torch.einsum("ij,j...->i...", inverse, states[[0, -1]])
    rows = torch.cat([states, velocities])
    rows = rows - torch.einsum("ij,j...->i...", shares.to(states.device), lines)
    return torch.cat([rows, lines]), shares


def _residuals(solver: LinearMultistep, grid: Tensor, path: GaussianPath, history: int) -> Any:
    """``(cells, terms, coefficients)``: the state at the last of a cell's times minus the step there.

    Terms count the states 0 to J, then the velocities from J + 1; the first is the end's own state, with coefficient 1.
    """
    points = len(grid)
    times, on_state, on_velocity = grid[:-1], torch.zeros(points - 1, dtype=torch.float64), torch.ones(points - 1)
    if solver.prediction == "denoised":
        w = path.wronskian(times)
        on_state, on_velocity = -path.d_sigma(times) / w, path.sigma(times) / w
    on_velocity = on_velocity.to(torch.float64)
    pairs = torch.combinations(torch.arange(points))
    # Step i of a method of p predictions depends on times i - p + 1 to i + 1 alone, so many cells are asked for at once;
    # a first step is one without a time before it.
    if history == 1:
        firsts, first = pairs, solver.coefficients(grid[pairs].flatten(), path)
        scale, new = first.state[::2], first.predictions[::2, 0]
    else:
        firsts = pairs[pairs[:, 0] == 0]
        alone = [solver.coefficients(grid[pair], path) for pair in firsts]
        scale, new = torch.cat([one.state for one in alone]), torch.cat([one.predictions[:, 0] for one in alone])
    j, k = firsts.unbind(1)
    one = torch.ones_like(scale)
    cells = firsts if history == 1 else torch.stack([torch.zeros_like(j), j, k], 1)
    yield (
        cells,
        torch.stack([k, j, points + j], 1),
        torch.stack([one, -scale - new * on_state[j], -new * on_velocity[j]], 1),
    )
    if history == 1:
        return
    cells = torch.combinations(torch.arange(points), 3)
    if not len(cells):
        return
    table = solver.coefficients(grid[cells].flatten(), path)
    scale, new, old = table.state[1::3], table.predictions[1::3, 0], table.predictions[1::3, 1]
    i, j, k = cells.unbind(1)
    yield (
        cells,
        torch.stack([k, j, points + j, i, points + i], 1),
        torch.stack([
            torch.ones_like(scale), -scale - new * on_state[j], -new * on_velocity[j], -old * on_state[i],
            -old * on_velocity[i],
        ], 1),
    )  # fmt: skip
