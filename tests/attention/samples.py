"""Random queries, keys, values and masks for the tests of this folder."""

import torch
from torch import Tensor


def heads(
    n: int, m: int | None = None, *, batch: int = 2, n_heads: int = 3, d: int = 4, e: int = 5, dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    m = n if m is None else m
    shapes = [(batch, n_heads, n, d), (batch, n_heads, m, d), (batch, n_heads, m, e)]
    q, k, v = (torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v


def some(batch: int, n: int, *, seed: int = 1, first: bool = True) -> Tensor:
    """A mask with about two thirds True; ``first`` keeps one real token in every row."""
    mask = torch.rand(batch, n, generator=torch.Generator().manual_seed(seed)) < 0.66
    mask[:, n // 2] |= first
    return mask


def gap(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())
