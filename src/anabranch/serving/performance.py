"""How long an iteration takes: measured profiles as piecewise linear tables, or a roofline from a data sheet."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from jaxtyping import Float64

from anabranch.simulation import Machine, TransformerShape

COLUMNS = ("model", "hardware", "tensor_parallel", "prompt_size", "batch_size", "prompt_time", "token_time")


@dataclass(frozen=True, eq=False)
class Curve:
    """Straight lines through knots, the outer ones prolonged.

    Args:
        x: strictly increasing. y: as many.

    Raises:
        ValueError: no knots, lengths that differ, knots out of order, values that are not positive.
    """

    x: Float64[np.ndarray, " knots"]
    y: Float64[np.ndarray, " knots"]

    def __post_init__(self) -> None:
        if len(self.x) == 0 or len(self.x) != len(self.y):
            raise ValueError(f"x has {len(self.x)} knots and y {len(self.y)}: expected as many, and at least one")
        if (np.diff(self.x) <= 0).any():
            raise ValueError(f"x must increase, got {self.x.tolist()}")
        if not (self.y > 0).all():
            raise ValueError(f"y must be > 0, got {self.y.tolist()}")

    def __call__(self, at: Any) -> Any:
        at = np.asarray(at, np.float64)
        if len(self.x) == 1:
            return np.full_like(at, self.y[0])
        low = np.clip(np.searchsorted(self.x, at) - 1, 0, len(self.x) - 2)
        slope = (self.y[low + 1] - self.y[low]) / (self.x[low + 1] - self.x[low])
        return slope * (at - self.x[low]) + self.y[low]


@dataclass(frozen=True, eq=False)
class PerformanceModel:
    """Seconds of an iteration of one model on one machine, and the power it draws.

    Attributes:
        prompt: seconds against the prompt tokens of the batch.
        decode: seconds of one token against the tokens of context in the batch (``by="context"``), or against the number of
            decoding requests (``by="requests"``).
        prompt_power: share of the devices' power against the prompt tokens of the batch.
        decode_power: share of the devices' power while decoding.
        mixed_factor: of a batch with both, on the prompt time of all its tokens.
    """

    prompt: Curve
    decode: Curve
    prompt_power: Curve
    decode_power: float = 0.65
    by: str = "context"
    mixed_factor: float = 1.1

    def __post_init__(self) -> None:
        if self.by not in ("context", "requests"):
            raise ValueError(f"by must be 'context' or 'requests', got {self.by!r}")
        for name in ("decode_power", "mixed_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")

    def prompt_seconds(self, tokens: Any) -> Any:
        """Of a batch of prompts of so many tokens in all."""
        return self.prompt(tokens)

    def decode_seconds(self, requests: Any, context_tokens: Any) -> Any:
        """Of one token for each of ``requests`` that stand at ``context_tokens`` in all."""
        return self.decode(context_tokens if self.by == "context" else requests)


class ProfileTable:
    """Measured times of models on hardware (the columns of the profiles published with Splitwise; milliseconds).

    Args:
        rows: one a measurement: ``model, hardware, tensor_parallel, prompt_size, batch_size, prompt_time, token_time``, and
            ``peak_power`` (share of the devices' power, 0 where it was not measured) if it is there.

    Raises:
        ValueError: no rows, or columns that are not there.
    """

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        if not rows:
            raise ValueError("the profile holds no measurements")
        missing = [name for name in COLUMNS if name not in rows[0]]
        if missing:
            raise ValueError(f"the profile has no column {', '.join(missing)}: expected {', '.join(COLUMNS)}")
        self.rows = [dict(row) for row in rows]
        self._groups: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            self._groups[row["model"], row["hardware"], int(row["tensor_parallel"])].append(row)

    @classmethod
    def read(cls, path: str | Path) -> "ProfileTable":
        with Path(path).open(newline="") as file:
            return cls(list(csv.DictReader(file)))

    @property
    def entries(self) -> list[tuple[str, str, int]]:
        """What it holds: model, hardware, tensor parallelism."""
        return sorted(self._groups)

    def model(self, model: str, hardware: str, tensor_parallel: int, *, by: str = "context") -> PerformanceModel:
        """Medians over repetitions at each ``prompt_size x batch_size``, straight lines between.

        The released simulator asks the token times, which were measured against prompt tokens times batch, with the number of
        requests (``by="requests"``): decoding then hardly depends on batch or context.

        Raises:
            ValueError: nothing measured for that combination; the message lists what there is.
        """
        rows = self._groups.get((model, hardware, tensor_parallel))
        if rows is None:
            there = "; ".join(f"{m} on {h}, tensor parallel {t}" for m, h, t in self.entries)
            raise ValueError(
                f"no profile of {model} on {hardware}, tensor parallel {tensor_parallel}; there are {there}"
            )
        power = _curve(rows, "peak_power", 1.0) if "peak_power" in rows[0] else None
        flat = Curve(np.array([0.0]), np.array([1.0]))
        return PerformanceModel(
            _curve(rows, "prompt_time", 1e-3) or flat, _curve(rows, "token_time", 1e-3) or flat, power or flat, by=by
        )


def _curve(rows: Sequence[dict[str, Any]], column: str, unit: float) -> Curve | None:
    """None where nothing was measured."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if float(row[column]) > 0:
            found[int(row["prompt_size"]) * int(row["batch_size"])].append(float(row[column]))
    if not found:
        return None
    x = sorted(found)
    return Curve(np.array(x, np.float64), np.array([median(found[at]) for at in x]) * unit)


def roofline(
    shape: TransformerShape,
    machine: Machine,
    *,
    compute_efficiency: float = 0.6,
    memory_efficiency: float = 0.8,
    dtype_bytes: int = 2,
    most_tokens: int = 65_536,
) -> PerformanceModel:
    """Times from a data sheet: the larger of the time to compute and the time to read weights and caches.

    Args:
        compute_efficiency, memory_efficiency: shares of the data sheet's peaks that are reached.

    Raises:
        ValueError: a share outside (0, 1], weights larger than the machine's memory.
    """
    for name, share in (("compute_efficiency", compute_efficiency), ("memory_efficiency", memory_efficiency)):
        if not 0 < share <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {share}")
    weights = shape.parameters * dtype_bytes
    if weights > machine.memory_bytes:
        raise ValueError(
            f"the weights of {shape.name} ({weights / 1e9:.0f} GB) are larger than the memory of {machine.name} "
            f"({machine.memory_bytes / 1e9:.0f} GB)"
        )
    flops = machine.count * machine.device.flops_per_s * compute_efficiency
    rate = machine.count * machine.device.memory_bytes_per_s * memory_efficiency
    active = shape.parameters - shape.expert_parameters * (1 - shape.top_k / shape.experts)
    tokens = np.geomspace(1, most_tokens, 33)
    cache = shape.kv_bytes_per_token(dtype_bytes)
    compute = 2 * active * tokens / flops
    context = np.concatenate([[0.0], np.geomspace(1024, 64 * most_tokens, 32)])
    return PerformanceModel(
        Curve(tokens, np.maximum(compute, (weights + cache * tokens) / rate)),
        Curve(context, (weights + cache * context) / rate),
        Curve(np.array([0.0]), np.array([1.0])),
    )
