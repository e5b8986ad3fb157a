"""Argument checks shared by the package: every message names the argument, the value and what was expected."""

from collections.abc import Sequence
from typing import Any

import numpy as np

ArrayLike = np.ndarray | np.generic | Sequence[Any] | int | float
"""What a number per item may be given as: one for all, a sequence, an array."""

GBPS = 1e9 / 8
"""Bytes per second in one gigabit per second."""


def positive_int(name: str, value: Any) -> int:
    """``value`` as an int >= 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer >= 1, got {value!r} ({type(value).__name__})")
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")
    return int(value)


def choice(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """``value`` if it is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def rate_gbps(name: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """A link rate in Gb/s (a number, or one per link in ``shape``) as bytes/s, flattened; > 0 and finite."""
    return _filled(name, value, shape, "Gb/s", strict=True) * GBPS


def seconds(name: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """A delay in seconds (a number, or one per link in ``shape``), flattened; >= 0 and finite."""
    return _filled(name, value, shape, "s", strict=False)


def _filled(name: str, value: ArrayLike, shape: tuple[int, ...], unit: str, *, strict: bool) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim and array.shape != shape:
        raise ValueError(f"{name} must be one number or an array of shape {shape}, got shape {array.shape}")
    bad = ~np.isfinite(array) | ((array <= 0) if strict else (array < 0))
    if bad.any():
        where = "" if not array.ndim else f" at {tuple(int(i) for i in np.argwhere(bad)[0])}"
        wrong = float(array[bad].flat[0]) if array.ndim else float(array)
        raise ValueError(f"{name} must be finite and {'>' if strict else '>='} 0 {unit}, got {wrong}{where}")
    return np.broadcast_to(array, shape).ravel().astype(np.float64)


def integers(name: str, value: ArrayLike, *, low: int, high: int | None = None, dtype: Any = np.int64) -> np.ndarray:
    """``value`` as an integer array with every entry in [low, high); floats are refused even when whole."""
    array = np.asarray(value)
    if array.size == 0:
        return array.astype(dtype)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {array.dtype}")
    wrong = array < low
    if high is not None:
        wrong |= array >= high
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0]) if array.ndim else ()
        limit = "" if high is None else f" and < {high}"
        place = f"[{', '.join(map(str, index))}]" if index else ""
        raise ValueError(f"{name}{place} must be >= {low}{limit}, got {int(array[index])}")
    return array.astype(dtype)


def frozen(array: np.ndarray) -> np.ndarray:
    """The array, made read-only."""
    array.setflags(write=False)
    return array
