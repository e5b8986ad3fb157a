"""Studies of overlapped layers: two lanes beside three, and what overlap makes of a layer as decode attention grows."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from anabranch.serving.interference import Interference
from anabranch.serving.lane_search import search_lanes
from anabranch.serving.layer_graph import LayerGraph, nano_lanes
from anabranch.serving.overlap import search_overlap
from anabranch.serving.overlap_schedule import OverlapSchedule
from anabranch.serving.performance import Curve

Progress = Callable[[int, int, dict[str, float]], None]


def compare_lanes(
    layer: LayerGraph,
    interference: Interference,
    *,
    generator: np.random.Generator,
    gaps: tuple[float, float] = (0.01, 0.001),
    time_limit_s: float = 60.0,
    most_programmes: int = 6000,
    progress: Progress | None = None,
) -> tuple[list[dict[str, Any]], tuple[OverlapSchedule, OverlapSchedule]]:
    """In turn, halves in two lanes, thirds in three, and the bounds of both kinds; weights read once, and every read charged.

    Args:
        gaps: at which the searches of two and of three lanes stop.

    Returns:
        rows ``weights, schedule, ms, gain, proven gap``, and both schedules of three lanes (validated).
    """
    rows: list[dict[str, Any]] = []
    found = []
    for done, (weights, charged) in enumerate((("read once", False), ("every read charged", True)), 1):
        halves, thirds = (nano_lanes(layer, (1 / n,) * n, charge_rereads=charged) for n in (2, 3))
        two = search_overlap(halves[0], halves[1], interference, gap=gaps[0], time_limit_s=time_limit_s)
        three = search_lanes(
            thirds, interference, generator=generator, gap=gaps[1], time_limit_s=time_limit_s, most_programmes=most_programmes
        )  # fmt: skip
        for one in (two, three):
            one.validate(interference)
        found.append(three)
        for schedule, seconds, gap in (
            ("in turn", layer.sequential_s, None), ("two lanes", two.period_s, two.gap),
            ("three lanes", three.period_s, three.gap),
            ("bound of three lanes", three.bound_s, None), ("bound of any overlap of thirds", three.resource_bound_s, None),
        ):  # fmt: skip
            gain = layer.sequential_s / seconds
            rows.append(
                {"weights": weights, "schedule": schedule, "ms": 1e3 * seconds, "gain": gain, "proven gap": gap}
            )
        if progress is not None:
            progress(done, 2, {"gain": layer.sequential_s / three.period_s})
    return rows, (found[0], found[1])


def overlap_curve(
    layer: LayerGraph,
    interference: Interference,
    *,
    scales: Sequence[float] = (0.5, 1.0, 2.0),
    gap: float = 0.01,
    time_limit_s: float = 60.0,
    progress: Progress | None = None,
) -> Curve:
    """Period of two lanes over the sequence, against the share of decode attention in the sequence: for :class:`BatchSeconds`.

    Args:
        scales: of decode attention; one search each.

    Raises:
        ValueError: a layer without decode attention.
    """
    knots = []
    for done, scale in enumerate(scales, 1):
        operations = tuple(
            replace(one, seconds=one.seconds * (scale if one.name == "DecAttn" else 1.0)) for one in layer.operations
        )
        attention = next((one.seconds for one in operations if one.name == "DecAttn"), None)
        if attention is None:
            raise ValueError("the layer has no DecAttn")
        first, second = nano_lanes(replace(layer, operations=operations))
        found = search_overlap(first, second, interference, gap=gap, time_limit_s=time_limit_s)
        found.validate(interference)
        knots.append((attention / found.sequential_s, found.period_s / found.sequential_s))
        if progress is not None:
            progress(done, len(scales), {"gain": found.gain})
    x, y = zip(*knots, strict=True)
    return Curve(np.array(x), np.array(y))
