"""Sampling times: strictly increasing float64 tensors ``[n + 1]`` from the source (0) to the data (1), for n steps.

They stay float64 on the CPU, because solvers compute their coefficients from them; the field gets them in the state's
dtype and on its device.
"""

from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from anabranch.generative._checks import check_count, check_times
from anabranch.generative.paths import GaussianPath


def uniform_times(n: int, *, start: float = 0.0, end: float = 1.0) -> Float64[Tensor, " times"]:
    """``n`` equal steps from ``start`` to ``end``.

    Raises:
        ValueError: n < 1, or not 0 <= start < end <= 1.
    """
    check_count("n", n)
    if not 0 <= start < end <= 1:
        raise ValueError(f"start = {start}, end = {end}: expected 0 <= start < end <= 1")
    return torch.linspace(start, end, n + 1, dtype=torch.float64)


def power_times(n: int, rho: float) -> Float64[Tensor, " times"]:
    """``(i / n) ** rho``: rho > 1 takes small steps at the source, rho < 1 at the data.

    Raises:
        ValueError: n < 1 or rho <= 0.
    """
    if not rho > 0:
        raise ValueError(f"rho must be > 0, got {rho}")
    return uniform_times(n) ** rho


def shifted_times(n: int, shift: float) -> Float64[Tensor, " times"]:
    """``u / (shift - (shift - 1) u)`` of uniform u: shift > 1 spends more steps near the source.

    The resolution shift of Esser et al. (2403.03206, equation 23): ``sigma' = shift sigma / (1 + (shift - 1) sigma)``
    with ``sigma = 1 - t``.

    Raises:
        ValueError: n < 1 or shift <= 0.
    """
    if not shift > 0:
        raise ValueError(f"shift must be > 0, got {shift}")
    u = uniform_times(n)
    return u / (shift - (shift - 1) * u)


def log_snr_times(
    n: int, path: GaussianPath, *, lambda_min: float = -3.0, lambda_max: float = 4.0
) -> Float64[Tensor, " times"]:
    """0, then ``n - 1`` times equally spaced in ``log_snr_half`` from ``lambda_min`` to ``lambda_max``, then 1.

    Raises:
        ValueError: n < 2, lambda_min >= lambda_max, or a range the path does not cover.
    """
    check_count("n", n, 2)
    if not lambda_min < lambda_max:
        raise ValueError(f"lambda_min = {lambda_min}, lambda_max = {lambda_max}: expected lambda_min < lambda_max")
    inner = path.t_from_lambda(torch.linspace(lambda_min, lambda_max, n - 1, dtype=torch.float64))
    return _with_ends(inner, path, f"lambda_min = {lambda_min}, lambda_max = {lambda_max}")


def edm_times(
    n: int, path: GaussianPath, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float64[Tensor, " times"]:
    """The noise levels of Karras et al. (2206.00364, equation 5) as times of ``path``: n levels and then clean data.

    Level i < n has ``sigma / alpha = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho``.
    The first is replaced by t = 0, the path's own start (ours: the exact source is there).

    Raises:
        ValueError: n < 2, not 0 < sigma_min < sigma_max, rho <= 0, or levels the path does not cover.
    """
    check_count("n", n, 2)
    if not (0 < sigma_min < sigma_max and rho > 0):
        raise ValueError(
            f"sigma_min = {sigma_min}, sigma_max = {sigma_max}, rho = {rho}: expected 0 < sigma_min < sigma_max, rho > 0"
        )
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = (high + torch.linspace(0, 1, n, dtype=torch.float64)[1:] * (low - high)) ** rho
    return _with_ends(path.t_from_lambda(-torch.log(levels)), path, f"sigma_min = {sigma_min}, sigma_max = {sigma_max}")


def _with_ends(inner: Tensor, path: GaussianPath, asked: str) -> Tensor:
    if not bool(((inner > 0) & (inner < 1)).all()):
        raise ValueError(f"{asked}: the path {path} does not cover this range inside (0, 1)")
    ends = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    return check_times(torch.cat([ends[0], inner, ends[1]]))


def times_from_diffusers(scheduler: Any) -> Float64[Tensor, " times"]:
    """The times that a diffusers scheduler will step through, after its ``set_timesteps``.

    Flow-matching schedulers: ``1 - sigma``, of their sigmas as they are (float32). Schedulers with a table of
    ``alphas_cumprod``: the times of their integer time steps on :class:`ScheduledPath`, then 1 (clean data).
    Two-call schedulers repeat sigmas; the repeats are dropped.

    Raises:
        ValueError: no time steps set, or neither kind of scheduler.
    """
    name = type(scheduler).__name__
    if getattr(scheduler, "num_inference_steps", 1) is None:
        raise ValueError(f"{name} has no time steps yet: call its set_timesteps first")
    flow = "FlowMatch" in name or getattr(scheduler.config, "use_flow_sigmas", False)
    if flow:
        sigmas = torch.as_tensor(scheduler.sigmas).to("cpu", torch.float64)
        times = 1 - torch.unique_consecutive(sigmas)
    elif getattr(scheduler, "alphas_cumprod", None) is not None:
        steps = torch.unique_consecutive(torch.as_tensor(scheduler.timesteps).to("cpu", torch.float64))
        times = 1 - (steps + 1) / len(scheduler.alphas_cumprod)
        times = torch.cat([times, torch.ones(1, dtype=torch.float64)])
    else:
        raise ValueError(f"{name} has neither flow sigmas nor alphas_cumprod")
    return check_times(times)
