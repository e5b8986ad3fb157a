"""How far predictions are from what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def prediction_error(predicted: Sequence[float | int], measured: Sequence[float | int]) -> float:
    """The largest ``|predicted - measured| / measured``; NaN if any number is.

    Raises:
        ValueError: nothing measured, another number of predictions, or a measured value that is not above 0.
    """
    told, found = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
    if told.shape != found.shape or told.ndim != 1 or not len(found):
        raise ValueError(
            f"predicted has shape {told.shape}, measured {found.shape}: expected as many numbers, at least one"
        )
    if (found <= 0).any():
        raise ValueError(f"measured must be > 0, got {found.min():.4g}")
    return float(np.max(np.abs(told - found) / found))
