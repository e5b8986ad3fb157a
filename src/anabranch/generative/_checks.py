"""Argument checks and broadcasting shared by the package."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class SingularTimeError(ValueError):
    """A conversion was asked for at a time where it divides by zero."""


def time_dtype(like: Tensor) -> torch.dtype:
    """The dtype of times beside a state: its own, but never below float32 (bfloat16 knows two digits of a time)."""
    return like.dtype if like.dtype == torch.float64 else torch.float32


def as_time(t: float | Tensor, like: Tensor) -> Tensor:
    """``t`` as a tensor on ``like``'s device in :func:`time_dtype`: 0-d, or one entry per sample.

    Raises:
        ValueError: neither a number nor one entry per sample.
    """
    time = torch.as_tensor(t, dtype=time_dtype(like), device=like.device)
    if time.ndim > 1 or (time.ndim == 1 and time.shape[0] != like.shape[0]):
        raise ValueError(
            f"t has shape {tuple(time.shape)}: expected a number or one entry per sample, [{like.shape[0]}]"
        )
    return time


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """A 0-d or ``[B]`` tensor in the shape that broadcasts over ``like`` ``[B, ...]``."""
    return coefficient if coefficient.ndim == 0 else coefficient.reshape(-1, *([1] * (like.ndim - 1)))


def check_times(times: Tensor, name: str = "times") -> Tensor:
    """``times`` as a float64 tensor on the CPU: 1-d, at least two entries, strictly increasing, within [0, 1].

    Raises:
        ValueError: anything else; the message names the entry.
    """
    values = torch.as_tensor(times).detach().to("cpu", torch.float64)
    if values.ndim != 1 or values.numel() < 2:
        raise ValueError(f"{name} has shape {tuple(values.shape)}: expected one axis with at least two entries")
    entries = values.tolist()  # a few dozen numbers: faster looked at here than by tensor operations
    for i, entry in enumerate(entries):
        if not 0 <= entry <= 1:
            raise ValueError(f"{name} holds {entry}: expected entries in [0, 1] (0 is the source, 1 the data)")
        if i and entries[i - 1] >= entry:
            raise ValueError(
                f"{name}[{i - 1}] = {entries[i - 1]} and {name}[{i}] = {entry}: expected strictly increasing entries "
                "(pass reverse=True to integrate from the data to the source)"
            )
    return values


def check_count(name: str, value: int, least: int = 1) -> int:
    """``value`` as an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer >= {least}, got {value!r} ({type(value).__name__})")
    if value < least:
        raise ValueError(f"{name} must be >= {least}, got {value}")
    return value


def check_share(name: str, value: float) -> float:
    """``value`` in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
    return value


def check_pair(x0: Tensor, x1: Tensor) -> None:
    """Both ends of a batch: one shape, one dtype.

    Raises:
        ValueError: they differ.
    """
    if x0.shape != x1.shape or x0.dtype != x1.dtype:
        raise ValueError(
            f"x0 is {tuple(x0.shape)} {x0.dtype} and x1 is {tuple(x1.shape)} {x1.dtype}: expected the same shape and "
            "dtype"
        )


def select(condition: Mapping[str, Any], index: Tensor, batch: int) -> dict[str, Any]:
    """The rows ``index`` of every tensor in ``condition`` that has one row per sample; the rest as it is."""
    return {
        name: value[index] if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch else value
        for name, value in condition.items()
    }
