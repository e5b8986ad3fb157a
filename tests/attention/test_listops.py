"""ListOps: values by an independent parser, sizes and depths as asked, items by address."""

import statistics

import pytest
import torch

from anabranch.attention import LISTOPS_TOKENS, listops

FUNCTIONS = {
    "[MIN": min, "[MAX": max, "[MED": lambda values: int(statistics.median(values)), "[SM": lambda values: sum(values) % 10,
}  # fmt: skip


def parse(words: list[str], at: int = 0) -> tuple[int, int, int, int]:
    """Value, place after it, depth, most arguments: recursive descent."""
    word = words[at]
    if word.isdigit():
        return int(word), at + 1, 1, 0
    values, depth, most, at = [], 0, 0, at + 1
    while words[at] != "]":
        value, at, below, arguments = parse(words, at)
        values.append(value)
        depth, most = max(depth, below), max(most, arguments)
    assert len(values) >= 2
    return FUNCTIONS[word](values), at + 1, depth + 1, max(most, len(values))


def test_values_agree_with_a_parser() -> None:
    data = listops(1000, seed=3, min_length=20, max_length=120, max_depth=5, max_args=6)
    depths, arguments = [], []
    for row, mask, label in zip(data.tokens, data.mask, data.labels.tolist(), strict=True):
        words = [LISTOPS_TOKENS[i] for i in row[mask].tolist()]
        assert words[0] == "CLS"
        assert 20 < len(words) - 1 < 120
        assert set(row[~mask].tolist()) <= {0}
        value, end, depth, most = parse(words, 1)
        assert (value, end) == (label, len(words))
        depths.append(depth)
        arguments.append(most)
    assert max(depths) == 5
    assert max(arguments) == 6


def test_every_value_and_operator_occurs() -> None:
    data = listops(2000, seed=0, min_length=10, max_length=60)
    assert set(data.labels.tolist()) == set(range(10))
    counts = torch.bincount(data.tokens[data.mask], minlength=17)[12:16].float()
    assert float(counts.max() / counts.min()) < 1.2
    digits = torch.bincount(data.tokens[data.mask], minlength=17)[2:12].float()
    assert float(digits.max() / digits.min()) < 1.2


def test_items_have_addresses() -> None:
    size = {"min_length": 10, "max_length": 60}
    whole, part = listops(50, seed=1, **size), listops(20, seed=1, first=30, **size)
    n = part.tokens.shape[1]
    assert torch.equal(whole.tokens[30:, :n], part.tokens)
    assert torch.equal(whole.labels[30:], part.labels)
    assert not torch.equal(whole.labels, listops(50, seed=2, **size).labels)


def test_sizes_of_long_range_arena() -> None:
    data = listops(20, seed=0)
    lengths = data.mask.sum(1) - 1
    assert int(lengths.min()) > 500
    assert int(lengths.max()) < 2000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_depth": 1}, "max_depth=1: expected at least 2"),
        ({"min_length": 50, "max_length": 51}, "max_length=51"),
        ({"max_depth": 2, "max_args": 3, "min_length": 90, "max_length": 99}, "widen the range"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_input(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        listops(**{"n": 1, "seed": 0, **options})
