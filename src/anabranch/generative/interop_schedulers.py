"""diffusers schedulers on our fields, and our times on diffusers schedulers. Foreign spellings, as in ``interop``.

A scheduler of flow matching steps on the linear path with ``sigma = 1 - t`` and a model output of minus our velocity. One
with a table of ``alphas_cumprod`` steps on :class:`ScheduledPath`; some keep the state there, some divide it by alpha, and
their own ``scale_model_input`` says which.
"""

import copy
import inspect
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_count, check_times
from anabranch.generative._extra import missing
from anabranch.generative.fields import Counted, VelocityField
from anabranch.generative.interop import _KINDS
from anabranch.generative.parametrization import convert
from anabranch.generative.path_changes import change_path
from anabranch.generative.paths import GaussianPath, LinearPath, ScheduledPath
from anabranch.generative.solve import solve
from anabranch.generative.times import times_from_diffusers, uniform_times

_RANDOM = ("Ancestral", "SDE", "DDPMScheduler", "LCM", "TCD", "Consistency")


class SchedulerRun(NamedTuple):
    """Where a scheduler took the states, its steps as asked of it, and the network calls made per sample."""

    end: Tensor
    steps: int
    calls: int


def is_scheduler(solver: Any) -> bool:
    """Whether ``solver`` is a scheduler object of diffusers (by what it has; diffusers is not imported)."""
    return all(hasattr(solver, name) for name in ("set_timesteps", "step", "config"))


def _on_flow_sigmas(scheduler: Any) -> bool:
    return "FlowMatch" in type(scheduler).__name__ or bool(getattr(scheduler.config, "use_flow_sigmas", False))


def _check_deterministic(scheduler: Any) -> None:
    name, config = type(scheduler).__name__, scheduler.config
    if any(word in name for word in _RANDOM) or str(getattr(config, "algorithm_type", "")).startswith("sde"):
        raise ValueError(f"{name} is stochastic: its end cannot be compared with the flow's")
    for option in ("clip_sample", "thresholding", "stochastic_sampling"):
        if getattr(config, option, False):
            raise ValueError(f"{name} has {option}=True, which changes the flow it solves: make it with {option}=False")


def run_scheduler(
    scheduler: Any,
    field: VelocityField,
    start: Float[Tensor, "batch *shape"],
    calls: int,
    *,
    path: GaussianPath | None = None,
    approach: int = 50,
    **condition: Any,
) -> SchedulerRun:
    """Solves our field from ``start`` (at t = 0 of its path) with a deterministic diffusers scheduler of ``calls`` calls.

    The model the scheduler sees is the field itself, exactly, on the scheduler's path and in its prediction type, asked at
    the scheduler's own (unrounded) noise level. Where its first level is not t = 0, the exact flow (``approach`` steps of
    rk4, not counted) first carries the states there. It makes the most steps whose calls do not exceed ``calls``; none if
    it cannot. The scheduler given is not changed.

    Args:
        path: the field's; default its own ``path``, else linear.

    Raises:
        ValueError: a scheduler that is stochastic, clips, is of neither kind, or starts at more noise than the field's path
            (by more than 1e-3 in alpha / sigma: a field of VPPath on flow sigmas from 1).
    """
    check_count("calls", calls)
    _check_deterministic(scheduler)
    scheduler = copy.deepcopy(scheduler)
    own = path or getattr(field, "path", None)
    own = own if isinstance(own, GaussianPath) else LinearPath()
    kind = getattr(scheduler.config, "prediction_type", "flow_prediction")
    target: GaussianPath
    if _on_flow_sigmas(scheduler):
        target = LinearPath()
        if kind != "flow_prediction":
            raise ValueError(f"{type(scheduler).__name__} has flow sigmas but prediction_type {kind!r}: not supported")
    elif getattr(scheduler, "alphas_cumprod", None) is not None and kind in _KINDS:
        target = ScheduledPath(torch.as_tensor(scheduler.alphas_cumprod))
    else:
        raise ValueError(f"{type(scheduler).__name__} with prediction_type {kind!r} is not supported")
    steps = calls
    while steps and not _fits(scheduler, steps, calls):
        steps -= 1
    if steps == 0:
        return SchedulerRun(start, 0, 0)

    levels = scheduler.timesteps
    if isinstance(target, ScheduledPath):
        times = target.t_of_index(torch.as_tensor(levels)).clamp(max=1)
    else:
        times = 1 - torch.as_tensor(scheduler.sigmas)[: len(levels)].to(torch.float64)
    counted = Counted(field)
    moved: VelocityField = counted if own == target else change_path(counted, own, target)
    with torch.no_grad():
        state = _carried(field, start, own, target, times[0], approach, condition)
        state = state / float(scheduler.scale_model_input(torch.ones(1), levels[0])) if _scales(scheduler) else state
        for level, t in zip(levels, times.to(start.device), strict=True):
            seen = scheduler.scale_model_input(state, level) if _scales(scheduler) else state
            velocity = moved(seen.to(start.dtype), t, **condition)
            if isinstance(target, ScheduledPath):
                output = convert(velocity, seen.to(start.dtype), t, target, "velocity", _KINDS[kind])
            else:
                output = -velocity
            state = scheduler.step(output, level, state).prev_sample
    return SchedulerRun(state.to(start.dtype), steps, counted.calls)


def _scales(scheduler: Any) -> bool:
    return hasattr(scheduler, "scale_model_input")


def _fits(scheduler: Any, steps: int, calls: int) -> bool:
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, IndexError, ZeroDivisionError):  # too few steps for this scheduler
        return False
    return 0 < len(scheduler.timesteps) <= calls


def _carried(
    field: VelocityField,
    start: Tensor,
    own: GaussianPath,
    target: GaussianPath,
    t: Tensor,
    approach: int,
    condition: dict[str, Any],
) -> Tensor:
    """The state at ``t`` of ``target`` that the exact flow has there, for a state at time 0 of ``own``."""
    zero = torch.zeros((), dtype=torch.float64)
    signal = [float(torch.exp(path.log_snr_half(at))) for path, at in ((own, zero), (target, t))]
    if signal[0] - signal[1] > 1e-3:
        raise ValueError(
            f"the scheduler starts at alpha / sigma = {signal[1]:.3g}, before the field's own path does "
            f"({signal[0]:.3g}, {own}): the flow is not known there"
        )
    own_t = float(own.t_from_lambda(target.log_snr_half(t)).clamp(0, 1))
    at = torch.tensor(own_t, dtype=torch.float64)
    if own_t > 0:
        start = solve(field, start, uniform_times(approach, end=own_t), "rk4", **condition)
    return start * float(target.sigma(t) / own.sigma(at))


def to_diffusers_scheduler(
    times: Float[Tensor, " points"], scheduler: Any = None, *, path: GaussianPath | None = None
) -> Any:
    """A diffusers scheduler that steps through our ``times`` (of ``path``, default linear) to clean data.

    - Flow-matching schedulers take ``sigma = 1 - t`` (a shift of theirs is undone first).
    - Table schedulers that take sigmas (EulerDiscreteScheduler) take ``sigma / alpha``; a first level above their table's
      becomes the table's.
    - Table schedulers that take time steps take the nearest entries of equal signal-to-noise ratio; equal ones merge.

    Args:
        times: of the path; the last must be 1.
        scheduler: the object whose ``set_timesteps`` is called; default a new FlowMatchEulerDiscreteScheduler.

    Raises:
        ValueError: times that do not end at 1, flow matching with another path than the linear one, or a scheduler whose
            ``set_timesteps`` takes none of these or does not keep to them.
    """
    grid = check_times(times)
    if float(grid[-1]) != 1:
        raise ValueError(f"times end at {float(grid[-1])}: expected 1 (a scheduler ends at clean data)")
    path = path or LinearPath()
    if scheduler is None:
        try:
            from diffusers import FlowMatchEulerDiscreteScheduler
        except ModuleNotFoundError:
            raise ModuleNotFoundError(missing("diffusers", "to_diffusers_scheduler")) from None
        scheduler = FlowMatchEulerDiscreteScheduler()
    name, takes = type(scheduler).__name__, inspect.signature(scheduler.set_timesteps).parameters
    if _on_flow_sigmas(scheduler):
        if path != LinearPath():
            raise ValueError(f"{name} steps on the linear path, not on {path}")
        if "sigmas" not in takes:
            raise ValueError(f"{name} takes no sigmas in set_timesteps: take FlowMatchEulerDiscreteScheduler")
        shift = float(getattr(scheduler.config, "shift", getattr(scheduler.config, "flow_shift", 1.0)))
        sigmas = 1 - grid[:-1]
        scheduler.set_timesteps(sigmas=(sigmas / (shift - (shift - 1) * sigmas)).tolist())
        got = times_from_diffusers(scheduler)
        if got.shape != grid.shape or float((got - grid).abs().max()) > 1e-5:
            raise ValueError(f"{name} did not keep to the times: it would step through {got.tolist()}")
        return scheduler
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise ValueError(f"{name} has neither flow sigmas nor alphas_cumprod")
    table = ScheduledPath(torch.as_tensor(scheduler.alphas_cumprod))
    lam = path.log_snr_half(grid[:-1]).clamp(min=float(table.log_snr_half(torch.zeros((), dtype=torch.float64))))
    if "sigmas" in takes and not hasattr(scheduler, "lambda_t"):
        scheduler.set_timesteps(sigmas=[*torch.exp(-lam).tolist(), 0.0])
    elif "timesteps" in takes:
        index = table.index_of_t(table.t_from_lambda(lam)).round().clamp(0, len(table.alphas_cumprod) - 1)
        scheduler.set_timesteps(timesteps=torch.unique_consecutive(index).long().tolist())
    else:
        raise ValueError(f"{name} takes neither sigmas nor timesteps in set_timesteps")
    return scheduler
