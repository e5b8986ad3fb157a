"""What limits the iterations of models on devices under workloads: compute, memory or network, by the cost model alone."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from anabranch.serving.iteration_costs import COMPUTE, MEMORY, NETWORK, IterationCosts, Workload
from anabranch.simulation import Device, TransformerShape


@dataclass(frozen=True, eq=False)
class IterationLimits:
    """
    Attributes:
        limits: ``[devices, models, workloads]``, "compute", "memory" or "network".
        over_compute: the longer of memory and network time over compute time, for each.
        rows: one for each device and model: ``device, model, devices`` (how many), and limit and ratio under each workload.
    """

    limits: np.ndarray
    over_compute: Float64[np.ndarray, "devices models workloads"]
    rows: list[dict[str, Any]]

    @property
    def shares(self) -> dict[str, float]:
        """Of all settings that compute, memory and network limit."""
        found = Counter(self.limits.ravel().tolist())
        return {name: found[name] / self.limits.size for name in (COMPUTE, MEMORY, NETWORK)}


def iteration_limits(
    devices: Iterable[Device],
    models: Mapping[str, tuple[TransformerShape, int]],
    workloads: Mapping[str, Workload],
    *,
    dtype_bytes: int = 2,
) -> IterationLimits:
    """Every model on every device under every workload, in the largest batch whose caches fit, at the data sheet's speeds.

    Args:
        models: by name, and the devices it runs on at least; their number is doubled until the weights and a request of every
            workload fit.
        workloads: with answers (without, no cache bounds the batch).

    Raises:
        ValueError: nothing of one of them, a workload without answers, several devices without a network.
    """
    chosen = list(devices)
    for name, given in (("devices", chosen), ("models", models), ("workloads", workloads)):
        if not given:
            raise ValueError(f"{name} is empty")
    for name, workload in workloads.items():
        if not workload.output_mean > 0:
            raise ValueError(f"workload {name} has output_mean={workload.output_mean}: expected above 0")
    rows, every = [], []
    for device in chosen:
        for model, (shape, least) in models.items():
            group = _smallest_group(device, shape, least, list(workloads.values()), dtype_bytes)
            every.append([(one.bound, max(one.memory_s, one.network_s) / one.compute_s) for one in group])
            found = {name: f"{limit} {ratio:.2f}" for name, (limit, ratio) in zip(workloads, every[-1], strict=True)}
            rows.append({"device": device.name, "model": model, "devices": group[0].count, **found})
    size = (len(chosen), len(models), len(workloads))
    limits = np.array([limit for group in every for limit, _ in group]).reshape(size)
    ratios = np.array([ratio for group in every for _, ratio in group], np.float64).reshape(size)
    return IterationLimits(limits, ratios, rows)


def _smallest_group(
    device: Device, shape: TransformerShape, count: int, workloads: list[Workload], dtype_bytes: int
) -> list[IterationCosts]:
    while count * device.memory_bytes < dtype_bytes * shape.parameters:
        count *= 2
    while True:
        asked = [IterationCosts(shape, device, count, workload, 1, dtype_bytes) for workload in workloads]
        if min(one.max_requests for one in asked) >= 1:
            return [one.at_largest_batch for one in asked]
        count *= 2
