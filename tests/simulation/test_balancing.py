"""Contiguous balancing against every partition there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anabranch.simulation import balance


def cost(values: list[float], cuts: list[float], sizes: list[int]) -> float:
    ends = np.cumsum([0, *sizes])
    whole = [0.0, *cuts, 0.0]
    return max(sum(values[a:b]) + whole[a] + whole[b] for a, b in itertools.pairwise(ends))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_is_the_least_bottleneck_of_all_partitions(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 11))
    k = data.draw(st.integers(1, min(5, n)))
    numbers = st.integers(0, 20)
    values = [float(x) for x in data.draw(st.lists(numbers, min_size=n, max_size=n))]
    cuts = [float(x) for x in data.draw(st.lists(numbers, min_size=n - 1, max_size=n - 1))]
    memory = [float(x) for x in data.draw(st.lists(numbers, min_size=n, max_size=n))]
    cap = data.draw(st.one_of(st.none(), st.integers(0, 60)))
    every = []
    for inner in itertools.combinations(range(1, n), k - 1):
        ends = [0, *inner, n]
        if cap is None or all(sum(memory[a:b]) <= cap for a, b in itertools.pairwise(ends)):
            every.append(cost(values, cuts, np.diff(ends).tolist()))
    limits = {} if cap is None else {"memory": memory, "memory_cap": float(cap)}
    if not every:
        with pytest.raises(ValueError, match="memory_cap"):
            balance(values, k, cut_costs=cuts, **limits)  # type: ignore[arg-type]
        return
    found = balance(values, k, cut_costs=cuts, **limits)  # type: ignore[arg-type]
    assert sum(found) == n
    assert min(found) >= 1
    assert cost(values, cuts, found) == min(every)
    assert min(every) >= max(max(values), sum(values) / k)


def test_ten_thousand_items() -> None:
    values = np.random.default_rng(0).random(10_000)
    sizes = balance(values, 16)
    sums = [part.sum() for part in np.split(values, np.cumsum(sizes)[:-1])]
    assert max(sums) <= values.sum() / 16 + 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1.0, 2.0], 3), "stages must be between 1 and the number of items, 2"),
        (([], 1), "costs has shape"),
        (([1.0, -1.0], 1), "costs must be finite"),
        (([float("nan")], 1), "costs must be finite"),
    ],
)
def test_bad_input(arguments: tuple[list[float], int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        balance(*arguments)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="cut_costs has shape"):
        balance([1.0, 2.0], 2, cut_costs=[1.0, 2.0])
    with pytest.raises(ValueError, match="go together"):
        balance([1.0, 2.0], 2, memory=[1.0, 1.0])
    with pytest.raises(ValueError, match=r"memory\[1\] = 5.0 is above"):
        balance([1.0, 2.0], 2, memory=[1.0, 5.0], memory_cap=2.0)
