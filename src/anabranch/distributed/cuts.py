"""Two objectives of a cut: the slowest stage, and the paper's variance of the stages' costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anabranch.simulation import balance as balanced


def compare_cuts(costs: Sequence[float] | np.ndarray, stages: Sequence[int]) -> list[dict[str, float | int]]:
    """The slowest stage of the exact cut (``simulation.balance``) beside that of :func:`variance_balance`; O(stages n^2) each.

    Returns:
        For every number of ``stages``: "stages", "exact", "least variance", and "variance over exact", which is >= 1.

    Raises:
        ValueError: more stages than layers.
    """
    values, rows = np.asarray(costs, np.float64), list[dict[str, float | int]]()
    for k in stages:
        cuts = variance_balance(values, k), balanced(values, k)
        variance, exact = (float(np.add.reduceat(values, np.cumsum([0, *cut[:-1]])).max()) for cut in cuts)
        rows.append({"stages": k, "exact": exact, "least variance": variance, "variance over exact": variance / exact})
    return rows


def variance_balance(costs: Sequence[float] | np.ndarray, stages: int) -> list[int]:
    """The paper's objective, least variance of the stages' costs, exactly (dynamic programme, O(stages n^2)).

    With the sum given, least variance is the least sum of squares. Its largest stage is never smaller than that of
    ``simulation.balance``, which minimizes it.

    Raises:
        ValueError: more stages than layers.
    """
    values = np.asarray(costs, np.float64)
    n = len(values)
    if not 1 <= stages <= n:
        raise ValueError(f"stages must be between 1 and the number of layers, {n}, got {stages}")
    prefix = np.concatenate([[0.0], np.cumsum(values)])
    squares = (prefix[None, :] - prefix[:, None]) ** 2
    squares[np.tril_indices(n + 1)] = np.inf
    best, choices = squares[0].copy(), []
    for _ in range(1, stages):
        total = best[:, None] + squares
        choices.append(total.argmin(0))
        best = total.min(0)
    ends = [n]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    return np.diff([0, *ends[::-1]]).tolist()
