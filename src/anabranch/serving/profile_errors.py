"""How well straight lines through medians describe measured times."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from anabranch.serving.performance import Curve, PerformanceModel, ProfileTable


def held_out_error(rows: Sequence[dict[str, Any]], *, generator: np.random.Generator, share: float = 0.8) -> float:
    """Mean absolute relative error of prompt and token times of the rest, from a random ``share`` of the measurements.

    Raises:
        ValueError: a share outside (0, 1), or a combination of which the share holds nothing.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    order = generator.permutation(len(rows))
    cut = int(len(order) * share)
    table = ProfileTable([rows[i] for i in order[:cut]])
    errors = []
    for i in order[cut:]:
        row = rows[i]
        model = table.model(row["model"], row["hardware"], int(row["tensor_parallel"]))
        tokens = int(row["prompt_size"]) * int(row["batch_size"])
        for column, curve in (("prompt_time", model.prompt), ("token_time", model.decode)):
            if float(row[column]) > 0:
                errors.append(abs(1e3 * float(curve(tokens)) / float(row[column]) - 1))
    return float(np.mean(errors))


def left_out_knot_error(models: Sequence[PerformanceModel]) -> float:
    """Mean absolute relative error of each inner knot of the prompt and decode times, from the other knots."""
    errors = []
    for model in models:
        for curve in (model.prompt, model.decode):
            for k in range(1, len(curve.x) - 1):
                without = Curve(np.delete(curve.x, k), np.delete(curve.y, k))
                errors.append(abs(float(without(curve.x[k])) / float(curve.y[k]) - 1))
    return float(np.mean(errors))
