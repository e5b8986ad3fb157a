"""ListOps (Nangia and Bowman, 1804.06028) as Long Range Arena draws it (2011.04006): nested MIN, MAX, MED and SM of digits."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

LISTOPS_TOKENS = ("PAD", "CLS", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
"""The words of the tokens 0 to 16; parentheses are dropped, as in Long Range Arena."""


@dataclass(frozen=True)
class ListOps:
    """Expressions and their values.

    Attributes:
        tokens: ``[N, n]``: CLS, the expression, PAD.
        mask: True for what is not PAD.
        labels: values, 0 to 9.
    """

    tokens: Int64[Tensor, "items n"]
    mask: Bool[Tensor, "items n"]
    labels: Int64[Tensor, " items"]


def listops(
    n: int,
    *,
    seed: int,
    first: int = 0,
    max_depth: int = 10,
    max_args: int = 10,
    min_length: int = 500,
    max_length: int = 2000,
) -> ListOps:
    """Items ``first`` to ``first + n - 1`` of the data set with the address ``seed``; some 20 us each at 100 to 300 tokens.

    A node becomes an operator with probability 1/4 unless it stands at ``max_depth``, with 2 to ``max_args`` arguments;
    expressions of ``min_length < tokens < max_length`` are kept. Long Range Arena takes 96,000, 2,000 and 2,000.

    Raises:
        ValueError: an argument out of its range, or lengths that such trees do not reach.
    """
    for name, value, least in (("n", n, 1), ("seed", seed, 0), ("first", first, 0), ("max_depth", max_depth, 2),
                               ("max_args", max_args, 2), ("min_length", min_length, 0)):  # fmt: skip
        if value < least:
            raise ValueError(f"{name}={value}: expected at least {least}")
    if max_length < min_length + 2:
        raise ValueError(f"max_length={max_length}: expected at least min_length + 2 = {min_length + 2}")
    from anabranch.attention import _kernels_listops as kernels

    tokens = np.zeros((n, max_length), np.int64)
    lengths, labels = np.zeros(n, np.int64), np.zeros(n, np.int64)
    kernels.fill(seed, first, max_depth, max_args, min_length, max_length, tokens, lengths, labels)
    if (lengths < 0).any():
        raise ValueError(
            f"no expression of {min_length} < tokens < {max_length} among a million trees of max_depth={max_depth}, "
            f"max_args={max_args}: widen the range or deepen the trees"
        )
    tokens[:, 0] = 1
    tokens = tokens[:, : 1 + int(lengths.max())]
    found = torch.from_numpy(tokens.copy())
    return ListOps(found, found != 0, torch.from_numpy(labels))
