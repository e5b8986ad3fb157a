"""Intervals: Student's t over seeds, the bootstrap over timed pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Scale = Literal["linear", "log"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A point estimate with a two-sided confidence interval (``low == high`` where nothing varies)."""

    value: float
    low: float
    high: float


def t_interval(values: Sequence[float], *, scale: Scale = "linear", confidence: float = CONFIDENCE) -> Interval:
    """Student's t-interval of the mean of ``values`` (one a seed).

    With ``scale="log"`` the mean is geometric and the interval is taken on logarithms: the right one for ratios.

    Raises:
        ValueError: fewer than two values, or a non-positive one on the log scale.
    """
    if len(values) < 2:
        raise ValueError(f"values: a t-interval needs at least 2, got {len(values)}")
    if scale == "log" and min(values) <= 0:
        raise ValueError(f"values: the log scale needs positive values, got {min(values)}")
    from scipy.special import stdtrit

    xs = [math.log(v) for v in values] if scale == "log" else [float(v) for v in values]
    n = len(xs)
    mean = math.fsum(xs) / n
    variance = math.fsum((x - mean) ** 2 for x in xs) / (n - 1)
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * math.sqrt(variance / n)
    ends = (mean, mean - half, mean + half)
    return Interval(*(math.exp(e) for e in ends)) if scale == "log" else Interval(*ends)


def bootstrap_interval(samples: Sequence[float], *, confidence: float = CONFIDENCE, resamples: int = 9999) -> Interval:
    """Percentile-bootstrap interval of the median; the resampling is seeded, so a log always gives the same interval."""
    if len(samples) < 3:
        raise ValueError(f"samples: a bootstrap interval needs at least 3, got {len(samples)}")
    import numpy as np
    from scipy.stats import bootstrap

    values = np.asarray(samples, dtype=float)
    median = float(np.median(values))
    if np.ptp(values) == 0:
        return Interval(median, median, median)
    interval = bootstrap(
        (values,),
        np.median,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(median, float(interval.low), float(interval.high))
