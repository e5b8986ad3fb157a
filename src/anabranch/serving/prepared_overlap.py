"""A searched overlap of real layers on the lanes of this machine, ready to run, and the ways to run the same layers in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from anabranch.serving.lanes import Lanes, Piece, Row
from anabranch.serving.llama_layers import LayerWork, MixedBatch, layer_works, run_in_sequence
from anabranch.serving.overlap import search_overlap
from anabranch.serving.overlap_execution import (
    MeasuredInterference,
    even_pieces,
    measure_interference,
    measure_operations,
    overlap_pieces,
)
from anabranch.serving.overlap_schedule import OverlapSchedule


@dataclass(frozen=True)
class PreparedOverlap:
    """Layers with a batch whole and in two halves, what was measured of them, and the schedule that follows.

    Attributes:
        in_turn: the same layers with the whole batch, one operation after the other: every operation on all lanes at once, torch
            with as many threads as lanes, torch with one thread.
    """

    lanes: Lanes
    whole: list[LayerWork]
    measured: MeasuredInterference
    schedule: OverlapSchedule
    pieces: list[Piece]
    in_turn: dict[str, Callable[[], object]]

    def run(self) -> list[Row]:
        """Execute the schedule on all layers; rows ``(lane, start_s, end_s, kind)``."""
        return self.lanes.run(self.pieces)

    @property
    def predicted_s(self) -> float:
        """Of :meth:`run`, by the schedule in steady state: the second nano-batch's way to where it starts is not in it."""
        return len(self.whole) * self.schedule.period_s

    @property
    def attention_speedup(self) -> float:
        """Of decode attention, from one lane to all: 1 where one lane takes all bandwidth there is."""
        times = self.measured.alone_s["gemv"]
        return times[0] / times[-1]

    @property
    def cache_bytes_per_s(self) -> tuple[float, ...]:
        """Of decode attention on 1, 2, ... lanes."""
        size = 2 * self.whole[0].keys.numel() * self.whole[0].keys.element_size()
        return tuple(size / seconds for seconds in self.measured.alone_s["gemv"])

    @property
    def flops_per_s(self) -> tuple[float, ...]:
        """Of the first product of the feed-forward network on 1, 2, ... lanes."""
        work = 2 * self.whole[0].weights.gate_up.numel() * self.whole[0].batch.tokens
        return tuple(work / seconds for seconds in self.measured.alone_s["gemm"])

    @property
    def one_lane_s(self) -> tuple[float, float]:
        """Seconds of a layer's products and of its decode attention on one lane, products at the speed-up of the first one."""
        alone = self.measured.alone_s["gemm"]
        products = sum(one.seconds for lane in self.schedule.lanes for one in lane if one.kind == "gemm")
        return products * alone[0] / alone[-1], self.measured.alone_s["gemv"][0]

    @property
    def facts(self) -> dict[str, float]:
        """A table's row: the gain in closed form, and what was measured of memory, arithmetic and interference."""
        return {
            "closed-form gain": self.closed_form_gain, "attention on 1 / 2 cores": self.attention_speedup,
            **{f"GB/s, {k} cores": rate / 1e9 for k, rate in enumerate(self.cache_bytes_per_s, 1)},
            **{f"GFLOP/s, {k} cores": rate / 1e9 for k, rate in enumerate(self.flops_per_s, 1)},
            **{f"P({kind}) on 1 core": float(self.measured.table(kind, 0.5)) for kind in ("gemm", "gemv")},
        }  # fmt: skip

    @property
    def closed_form_gain(self) -> float:
        """Of overlap on two lanes without any interference, products twice as fast on two: ``(G + 2 A / a) / (G + A)``.

        G and A are :attr:`one_lane_s`, a the :attr:`attention_speedup`. Where A is the larger, the rest of it runs on both.
        """
        products, attention = self.one_lane_s
        in_turn = products / 2 + attention / self.attention_speedup
        both = min(products, attention)
        rest = (products - both) / 2 + (attention - both) / self.attention_speedup
        return in_turn / (both + rest)


def prepare_overlap(
    model: Any,
    batch: MixedBatch,
    lanes: Lanes,
    *,
    layers: int,
    repeats: int = 5,
    gap: float = 0.01,
    time_limit_s: float = 30.0,
    generator: torch.Generator,
) -> PreparedOverlap:
    """Measure the operations of two halves of ``batch`` and how they disturb each other, and search the best overlap for them.

    Args:
        model: a causal Llama. batch: at least two decoding requests and two prompts.

    Raises:
        ValueError: fewer than two lanes, a batch that cannot be halved, more layers than the model has.
    """
    whole = layer_works(model, batch, layers=layers, generator=generator)
    weights = [work.weights for work in whole]
    halves = [layer_works(model, half, layers=layers, generator=generator, weights=weights) for half in batch.halves()]

    def part(name: str) -> Callable[[float, float], None]:
        low, high = whole[0].span(name)
        return lambda a, b: whole[0].run(name, low + round(a * (high - low)), low + round(b * (high - low)))

    turn = even_pieces(whole, lanes.count)
    lanes.run(turn)  # so that attention finds a query
    measured = measure_interference(lanes, {"gemm": part("UG"), "gemv": part("DecAttn")}, repeats=repeats)
    operations = [measure_operations(works, lanes, repeats=repeats) for works in halves]
    levels = [k / lanes.count for k in range(lanes.count + 1)]
    schedule = search_overlap(
        operations[0], operations[1], measured.table, levels=levels, gap=gap, time_limit_s=time_limit_s
    )
    in_turn: dict[str, Callable[[], object]] = {
        "all lanes": partial(lanes.run, turn),
        f"{lanes.count} threads": partial(_with_threads, lanes.count, whole),
        "1 thread": partial(_with_threads, 1, whole),
    }
    pieces = overlap_pieces(schedule, measured.table, halves[0], halves[1], lanes.count)
    return PreparedOverlap(lanes, whole, measured, schedule, pieces, in_turn)


def _with_threads(count: int, works: list[LayerWork]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with torch.inference_mode():
            run_in_sequence(works)
    finally:
        torch.set_num_threads(before)
