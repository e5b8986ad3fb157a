"""``solve``: a velocity field, a state and times in; the state at the last time, or the whole trajectory, out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from anabranch.generative._checks import check_times, time_dtype
from anabranch.generative._extra import missing
from anabranch.generative.fields import Counted, VelocityField
from anabranch.generative.paths import GaussianPath, LinearPath
from anabranch.generative.solvers import CallsExceeded, Dopri5, get_solver

Progress = Callable[[int, int, Mapping[str, float]], None]
"""``progress(done, total, metrics)``; raising in it cancels."""


@dataclass(frozen=True)
class Trajectory:
    """A solved flow.

    Args:
        times: ``[n + 1]``, float64, in the order they were visited.
        states: ``[n + 1, B, ...]``.
        velocities: ``[n, B, ...]``, the field at the beginning of each step (empty for adaptive solvers).
        calls: network calls per sample.
    """

    times: Float64[Tensor, " points"]
    states: Float[Tensor, "points batch *shape"]
    velocities: Float[Tensor, "steps batch *shape"]
    calls: int


@overload
def solve(
    field: VelocityField,
    x: Tensor,
    times: Tensor,
    solver: Any = ...,
    *,
    path: GaussianPath | None = ...,
    generator: torch.Generator | None = ...,
    return_trajectory: Literal[False] = ...,
    reverse: bool = ...,
    differentiable: bool = ...,
    progress: Progress | None = ...,
    **condition: Any,
) -> Tensor: ...


@overload
def solve(
    field: VelocityField,
    x: Tensor,
    times: Tensor,
    solver: Any = ...,
    *,
    path: GaussianPath | None = ...,
    generator: torch.Generator | None = ...,
    return_trajectory: Literal[True],
    reverse: bool = ...,
    differentiable: bool = ...,
    progress: Progress | None = ...,
    **condition: Any,
) -> Trajectory: ...


def solve(
    field: VelocityField,
    x: Float[Tensor, "batch *shape"],
    times: Float[Tensor, " points"],
    solver: Any = "euler",
    *,
    path: GaussianPath | None = None,
    generator: torch.Generator | None = None,
    return_trajectory: bool = False,
    reverse: bool = False,
    differentiable: bool = False,
    progress: Progress | None = None,
    **condition: Any,
) -> Tensor | Trajectory:
    """Integrates ``dx/dt = field(x, t)`` (or a stochastic equation of the same marginals) over ``times``.

    Cost: ``len(times) - 1`` steps of the solver's calls (1 for linear multistep methods, one per stage for Runge-Kutta),
    memory of one state and the solver's history, times ``len(times)`` with the trajectory.

    Args:
        x: the state at ``times[0]`` (with ``reverse`` at ``times[-1]``).
        times: strictly increasing in [0, 1].
        solver: a name of :data:`SOLVERS` or a solver object.
        path: the path the field was trained on, for solvers that use it (ddim, dpmpp_2m, the stochastic ones). Default:
            the field's own ``path`` if it has one, else ``LinearPath()``.
        generator: of the noise of stochastic solvers.
        reverse: from the data to the source; for deterministic velocity solvers.
        differentiable: keep the graph through all steps; otherwise gradients are off.
        progress: called after each step with no metrics.
        condition: given to every call of the field.

    Raises:
        ValueError: times or solver as described there, a path that differs from the field's, a field that returns
            another shape or dtype, a solver that cannot run in reverse.
        SingularTimeError: the solver's coefficients are infinite at one of the times.
        TypeError: x is no floating-point tensor, or solver no solver.
        FloatingPointError: the result is not finite; the message names the first such step.
        CallsExceeded: an adaptive solver ran out of calls.
    """
    if not x.is_floating_point() or x.ndim < 1:
        raise TypeError(f"x must be a floating-point tensor [B, ...], got {x.dtype} of shape {tuple(x.shape)}")
    chosen = get_solver(solver)
    grid = check_times(times)
    own = getattr(field, "path", None)
    if path is None:
        path = own if isinstance(own, GaussianPath) else LinearPath()
    elif isinstance(own, GaussianPath) and own != path:
        raise ValueError(f"path = {path}, but the field is one of {own}: use change_path, or leave path out")
    if reverse:
        if not chosen.reversible:
            raise ValueError(
                f"solver {solver!r} cannot run in reverse: take a deterministic velocity solver, as 'heun'"
            )
        grid = grid.flip(0)
    counted = Counted(field)
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        if isinstance(chosen, Dopri5):
            return _adaptive(chosen, counted, x, grid, condition, return_trajectory)
        return _fixed(chosen, counted, x, grid, path, generator, return_trajectory, progress, condition)


def _fixed(
    solver: Any,
    counted: Counted,
    x: Tensor,
    grid: Tensor,
    path: GaussianPath,
    generator: torch.Generator | None,
    keep: bool,
    progress: Progress | None,
    condition: dict[str, Any],
) -> Tensor | Trajectory:
    steps = len(grid) - 1
    noise_state = generator.get_state() if generator is not None and solver.stochastic else None
    advance = solver.prepare(grid, path, x)
    field = counted if keep else counted.field

    def evaluate(state: Tensor, t: Tensor) -> Tensor:
        return field(state, t, **condition)

    def checked(state: Tensor, t: Tensor) -> Tensor:
        velocity = evaluate(state, t)
        if not isinstance(velocity, Tensor) or velocity.shape != state.shape or velocity.dtype != state.dtype:
            got = (
                f"{tuple(velocity.shape)} {velocity.dtype}" if isinstance(velocity, Tensor) else type(velocity).__name__
            )
            raise ValueError(f"the field returned {got} for a state of {tuple(state.shape)} {state.dtype}")
        return velocity

    def draw() -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    call = evaluate if condition else field
    state, states, velocities = x, [x], []
    for i in range(steps):
        state, velocity = advance(i, state, call if i else checked, draw)
        if keep:
            states.append(state)
            velocities.append(velocity)
        if progress is not None:
            progress(i + 1, steps, {})
    if not bool(torch.isfinite(state.sum())) and not bool(torch.isfinite(state).all()):
        if generator is not None and noise_state is not None:
            generator.set_state(noise_state)
        _explain(solver.prepare(grid, path, x), x, grid, evaluate, draw, state)
    return Trajectory(grid, torch.stack(states), torch.stack(velocities), counted.calls) if keep else state


def _explain(advance: Any, x: Tensor, grid: Tensor, evaluate: Any, draw: Any, end: Tensor) -> None:
    """Runs the steps again to name the first that is not finite: the check costs nothing while all is well."""
    rows = ~torch.isfinite(end).reshape(len(end), -1).all(1)
    share = f"{int(rows.sum())} of {len(end)} samples (the first is {int(rows.nonzero()[0])}) are not finite at the end"
    for i in range(len(grid) - 1):
        before = x
        x, velocity = advance(i, x, evaluate, draw)
        if not bool(torch.isfinite(x).all()):
            source = "the field's output" if not bool(torch.isfinite(velocity).all()) else "the state"
            first = "" if bool(torch.isfinite(before).all()) else " (the state given was not)"
            raise FloatingPointError(f"{share}; {source} is not finite at step {i}, t = {float(grid[i]):.6g}{first}")
    raise FloatingPointError(f"{share}; a second run did not repeat it")


def _adaptive(
    solver: Dopri5, counted: Counted, x: Tensor, grid: Tensor, condition: dict[str, Any], keep: bool
) -> Tensor | Trajectory:
    try:
        from torchdiffeq import odeint
    except ModuleNotFoundError:
        raise ModuleNotFoundError(missing("torchdiffeq", "the solver 'dopri5'")) from None
    evaluations = 0

    def function(t: Tensor, state: Tensor) -> Tensor:
        nonlocal evaluations
        if evaluations >= solver.max_calls:
            raise CallsExceeded(evaluations, float(t), state)
        evaluations += 1
        return counted(state, t.to(time_dtype(state)), **condition)

    states = odeint(function, x, grid.to(x.device), method="dopri5", rtol=solver.rtol, atol=solver.atol)
    if not bool(torch.isfinite(states[-1]).all()):
        raise FloatingPointError("the adaptive solver's result is not finite")
    return Trajectory(grid, states, x.new_empty(0, *x.shape), counted.calls) if keep else states[-1]
