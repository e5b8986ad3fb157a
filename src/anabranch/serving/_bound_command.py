"""What ``anabranch serving bound`` works out: the best throughput of a model on a device, and what engines leave of it."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.serving.interference import Interference
from anabranch.serving.iteration_costs import IterationCosts, Workload
from anabranch.serving.lane_search import search_lanes
from anabranch.serving.layer_graph import LayerGraph, nano_lanes, published_layer, transformer_layer, weight_seconds
from anabranch.serving.overlap import resource_bound, search_overlap
from anabranch.serving.overlap_schedule import OverlapSchedule
from anabranch.serving.performance import Curve
from anabranch.serving.requests import read_requests
from anabranch.simulation import (
    BLOOM_176B,
    LLAMA2_70B,
    LLAMA3_8B,
    LLAMA3_70B,
    MIXTRAL_8X7B,
    SMOLLM2_135M,
    Device,
    TransformerShape,
    read_device,
)
from anabranch.simulation import DEEPSEEK_67B as DEEPSEEK
from anabranch.simulation import QWEN2_72B as QWEN2

KNOWN = {
    shape.name.lower(): shape
    for shape in (SMOLLM2_135M, LLAMA2_70B, LLAMA3_70B, LLAMA3_8B, QWEN2, DEEPSEEK, MIXTRAL_8X7B, BLOOM_176B)
}
PRACTICAL_FLOPS = {
    "A100-80": 260e12,
    "A100-40": 260e12,
}  # what the paper's published optima need; its data sheet says 312e12
OPERATIONS = ("KQV", "O", "UG", "D", "DecAttn", "PfAttn", "Net")


@dataclass(frozen=True)
class Bound:
    """The iteration by resource, its operations, and tokens a second and device of several ways to run it.

    Attributes:
        rates: by engine, the best possible last: tokens a second and device.
        schedule: the searched one; None where nothing can overlap (the optimum is all there is to say).
    """

    costs: IterationCosts
    layer: LayerGraph
    rates: dict[str, float]
    schedule: OverlapSchedule

    def as_dict(self) -> dict[str, Any]:
        """For a script."""
        costs, best = self.costs, self.rates["optimum"]
        return {
            "model": costs.shape.name, "parameters": costs.shape.parameters, "active_parameters": costs.active_parameters,
            "device": costs.device.name, "count": costs.count, "batch_tokens": costs.batch,
            "input_mean": costs.workload.input_mean, "output_mean": costs.workload.output_mean,
            "flops_per_s": costs.flops_per_s or costs.device.flops_per_s,
            "memory_s": costs.memory_s, "compute_s": costs.compute_s, "network_s": costs.network_s,
            "memory_over_compute": costs.ratio, "bound": costs.bound, "max_requests": costs.max_requests,
            "operations_s": {one.name: one.seconds for one in self.layer.operations},
            "tokens_per_s_per_device": self.rates,
            "lost": {name: 1 - rate / best for name, rate in self.rates.items()},
            "lanes": len(self.schedule.lanes),
            "gap": self.schedule.gap, "status": self.schedule.status, "gain": self.schedule.gain,
        }  # fmt: skip


def read_shape(source: str | Path) -> TransformerShape:
    """A ``config.json``, a folder with one, or a known model by its name.

    Raises:
        ValueError: none of these, or no configuration of a decoder. FileNotFoundError: no such file.
    """
    if str(source).lower() in KNOWN:
        return KNOWN[str(source).lower()]
    path = Path(source)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix != ".json":
        raise ValueError(f"model {str(source)!r}: expected a config.json or one of {', '.join(KNOWN)}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}: expected an object")
    name = str(config.get("_name_or_path") or path.resolve().parent.name or path.stem)
    return TransformerShape.from_config(name, config)


def device_of(source: str) -> Device:
    """A known device, one from a JSON file, or this machine: "measured", "measured:cuda".

    Raises:
        ValueError: none of these.
    """
    word, _, place = source.partition(":")
    if word != "measured":
        return read_device(source)
    from anabranch.serving.device_measurement import measure_device

    return measure_device(place or "cpu")


def read_workload(trace: str | Path | None, lengths: str | None) -> Workload:
    """Mean lengths of a trace (columns of the Azure traces, ``arrival_s,prompt_tokens,output_tokens`` or ``input,output``), or
    ``INPUT,OUTPUT``.

    Raises:
        ValueError: both or none of them, columns or numbers that do not fit.
    """
    if (trace is None) == (lengths is None):
        raise ValueError("give either --trace or --lengths INPUT,OUTPUT")
    if lengths is not None:
        try:
            given = [float(part) for part in lengths.split(",")]
        except ValueError as error:
            raise ValueError(f"lengths={lengths!r}: expected INPUT,OUTPUT such as 512,1024") from error
        if len(given) != 2:
            raise ValueError(f"lengths={lengths!r}: expected INPUT,OUTPUT such as 512,1024")
        return Workload(*given)
    assert trace is not None
    with Path(trace).open(newline="") as file:
        rows = csv.DictReader(file)
        if {"input", "output"} <= set(rows.fieldnames or ()):
            pairs = list(_numbers(trace, rows, ("input", "output")))
            if not pairs:
                raise ValueError(f"{trace} holds no requests")
            return Workload(*(float(np.mean(column)) for column in zip(*pairs, strict=True)))
    requests = read_requests(trace)
    return Workload(float(requests.prompt_tokens.mean()), float(requests.output_tokens.mean()))


def read_kernel_seconds(path: str | Path, batch: int) -> dict[str, float]:
    """Measured kernels ``op,batch,ms`` of all layers at ``batch`` tokens, straight lines between the batches measured.

    Raises:
        ValueError: other columns, an unknown operation, no time of a projection.
    """
    found: dict[str, dict[float, float]] = defaultdict(dict)
    with Path(path).open(newline="") as file:
        rows = csv.DictReader(file)
        if not {"op", "batch", "ms"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} has the columns {', '.join(rows.fieldnames or ())}: expected op,batch,ms")
        for number, row in enumerate(rows, 2):
            if row["op"] not in OPERATIONS:
                raise ValueError(f"{path}, line {number}: op {row['op']!r} is none of {', '.join(OPERATIONS)}")
            try:
                found[row["op"]][float(row["batch"])] = float(row["ms"]) / 1e3
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    seconds = {}
    for name, times in found.items():
        x = sorted(times)
        seconds[name] = float(Curve(np.array(x), np.array([times[at] for at in x]))(batch))
    return seconds


def read_interference(path: str | Path) -> Interference:
    """Measured speeds ``kind,R,P``; what falls is pooled.

    Raises:
        ValueError: other columns, no numbers, or a kind that is missing.
    """
    with Path(path).open(newline="") as file:
        rows = csv.DictReader(file)
        if not {"kind", "R", "P"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} has the columns {', '.join(rows.fieldnames or ())}: expected kind,R,P")
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        kept = list(rows)
    for row, (share, speed) in zip(kept, _numbers(path, kept, ("R", "P")), strict=True):
        found[row["kind"]].append((share, speed))
    missing = {"gemm", "gemv", "network"} - set(found)
    if missing:
        raise ValueError(f"{path} has no rows of {', '.join(sorted(missing))}")
    return Interference.monotone(found)


def find_bound(
    costs: IterationCosts,
    *,
    seconds: dict[str, float] | None = None,
    interference: Interference | None = None,
    rereads: bool = False,
    lanes: int = 2,
    gap: float = 0.01,
    time_limit_s: float = 60.0,
) -> Bound:
    """The bound of ``costs``, and what a sequence, nano-batches and the searched schedule reach.

    Args:
        seconds: of each operation, all layers; None projects from the efficiencies that the paper measured.
        interference: None takes the paper's table.
        rereads: charge the schedule for weights that every nano-batch reads.
        lanes: equal nano-batches, one a lane: 2 (:func:`search_overlap`) or more (:func:`search_lanes`).

    Raises:
        ValueError: fewer than two lanes.
    """
    table = interference or Interference.published()
    if seconds is None:
        layer = published_layer(costs)
    else:
        decodes = round(costs.batch * costs.workload.decode_share)
        layer = transformer_layer(seconds, decodes, costs.batch - decodes, weight_s=weight_seconds(costs))
    if lanes < 2:
        raise ValueError(f"lanes must be >= 2, got {lanes}")
    shares = (1 / lanes,) * lanes
    charged = nano_lanes(layer, shares, charge_rereads=True)
    chains = charged if rereads else nano_lanes(layer, shares)
    if lanes == 2:
        schedule = search_overlap(chains[0], chains[1], table, gap=gap, time_limit_s=time_limit_s)
    else:
        generator = np.random.default_rng(0)  # where the search restarts
        schedule = search_lanes(chains, table, generator=generator, gap=gap, time_limit_s=time_limit_s)
    rate = costs.batch / costs.count
    alone = sum(one.seconds for lane in charged for one in lane)
    rates = {
        "nano-batches in turn": rate / alone,
        "operations in turn": rate / layer.sequential_s,
        "searched overlap": rate / schedule.period_s,
        "bound of any overlap": rate / resource_bound([one for lane in chains for one in lane], table),
        "optimum": costs.optimal_tokens_per_s,
    }
    return Bound(costs, layer, rates, schedule)


def costs_of(
    shape: TransformerShape, device: Any, count: int, workload: Workload, batch: int, practical: float | None
) -> IterationCosts:
    """With the arithmetic that the device reaches in practice: given, published, or its data sheet."""
    costs = IterationCosts(shape, device, count, workload, batch)
    return replace(costs, flops_per_s=practical if practical is not None else PRACTICAL_FLOPS.get(device.name))


def _numbers(path: str | Path, rows: Iterable[dict[str, Any]], names: tuple[str, str]) -> Iterable[tuple[float, float]]:
    for number, row in enumerate(rows, 2):
        try:
            yield float(row[names[0]]), float(row[names[1]])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
