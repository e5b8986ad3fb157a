"""Contiguous balancing: a chain of items cut into stages whose largest cost is least."""

from collections.abc import Sequence

import numpy as np

from anabranch.simulation import _kernels_balance as kernels

Costs = Sequence[float] | np.ndarray


def balance(
    costs: Costs,
    stages: int,
    *,
    cut_costs: Costs | None = None,
    memory: Costs | None = None,
    memory_cap: float | None = None,
) -> list[int]:
    """Numbers of consecutive items per stage with the least bottleneck: exact, O(stages n^2) at worst.

    Args:
        costs: of the items, >= 0.
        stages: at most as many as items; none is empty.
        cut_costs: ``[n - 1]``, of a cut after item i; both stages beside it pay it (they send and receive).
        memory, memory_cap: a stage whose items need more than the cap together is not allowed.

    Raises:
        ValueError: numbers that do not fit, negative or not finite costs, a cap that no partition keeps.
    """
    values = _checked("costs", costs)
    n = len(values)
    if isinstance(stages, bool) or not 1 <= stages <= n:
        raise ValueError(f"stages must be between 1 and the number of items, {n}, got {stages}")
    cut = np.zeros(n + 1)
    if cut_costs is not None:
        cut[1:n] = _checked("cut_costs", cut_costs, n - 1)
    if (memory is None) != (memory_cap is None):
        raise ValueError("memory and memory_cap go together: give both or neither")
    sizes = np.zeros(n) if memory is None else _checked("memory", memory, n)
    cap = np.inf if memory_cap is None else float(memory_cap)
    if (sizes > cap).any():
        raise ValueError(
            f"memory[{int(np.argmax(sizes))}] = {sizes.max()} is above memory_cap={cap}: no stage holds it"
        )
    prefix, summed = (np.concatenate([[0.0], np.cumsum(x)]) for x in (values, sizes))
    least, choice = kernels.bottleneck(prefix, cut, summed, cap, stages)
    if not np.isfinite(least):
        raise ValueError(f"memory_cap={cap}: {stages} stages do not hold {summed[-1]} of memory")
    ends = [n]
    for s in range(stages, 0, -1):
        ends.append(int(choice[s, ends[-1]]))
    return np.diff(ends[::-1]).tolist()


def _checked(name: str, given: Costs, length: int | None = None) -> np.ndarray:
    values = np.asarray(given, np.float64)
    if values.ndim != 1 or (length is not None and len(values) != length) or (length is None and len(values) == 0):
        wanted = "at least one" if length is None else str(length)
        raise ValueError(f"{name} has shape {values.shape}: expected one axis of {wanted}")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"{name} must be finite and >= 0, got {values.tolist()[:10]}")
    return values
