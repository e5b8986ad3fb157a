"""Autoregressive maps, inverted token after token: what every faster inversion is measured against.

An autoregressive map sends tokens ``x`` ``[B, T, D]`` to ``z`` of the same shape, where ``z_i`` depends on ``x_i``
(invertibly) and on the tokens before it. The direction ``x -> z`` is one parallel pass; its inverse needs token i's
predecessors first. Masked autoregressive flows (1705.07057) and the blocks of TarFlow (2412.06329) are of this kind.

A map is described to the solvers by :class:`AutoregressiveMap`: given tokens of a window, what are their successors?
"""

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor


class AutoregressiveMap(ABC):
    """The inverse of an autoregressive map, as the solvers see it: ``x_{i+1} = g(z_{i+1}; x_0, ..., x_i)``.

    Tokens are counted from 0 in the order in which they are generated. A subclass implements :meth:`advance`; one whose
    function of the prefix can be kept (keys and values, say) has a cache besides, and the methods that go with it.

    Attributes:
        tokens: T, the number of tokens.
        features: D, numbers a token.
    """

    tokens: int
    features: int

    @abstractmethod
    def advance(self, x: Tensor, z: Tensor, start: int, cache: Any) -> Tensor:
        """Tokens ``start + 1, ..., start + n`` from the given ``x`` ``[B, n, D]``, tokens ``start, ..., start + n - 1``.

        Entry i of the answer depends on the tokens before ``start`` as the cache has them, and on entries 0, ..., i of ``x``.
        Afterwards the cache holds this window too, so that a later call may begin anywhere up to ``start + n``.

        Args:
            z: ``[B, n, D]``, tokens ``start + 1, ..., start + n`` of what is inverted.
            cache: of :meth:`new_cache`; it knows the tokens before ``start``.
        """

    def first(self, z: Float[Tensor, "batch features"]) -> Float[Tensor, "batch features"]:
        """Token 0 of ``x`` from token 0 of ``z``, which depends on nothing else: here the same."""
        return z

    def new_cache(self, z: Float[Tensor, "batch tokens features"]) -> Any:
        """An empty cache for a batch like ``z`` (all of it: conditions that differ between samples belong in there)."""
        return None

    def take(self, cache: Any, rows: Int64[Tensor, " some"], stop: int) -> Any:
        """A cache of its own for the samples ``rows``; it needs to know the tokens before ``stop`` only."""
        return None

    def put(self, cache: Any, rows: Int64[Tensor, " some"], part: Any, start: int, stop: int) -> None:
        """Writes tokens ``start, ..., stop - 1`` of ``part``, a cache of the samples ``rows``, back into ``cache``."""
        return

    def enter(self, z: Tensor) -> Float[Tensor, "batch tokens features"]:
        """What is inverted, as tokens in the order of generation."""
        return z

    def leave(self, x: Float[Tensor, "batch tokens features"]) -> Tensor:
        """Undoes :meth:`enter`."""
        return x


@dataclass(frozen=True)
class SolveInfo:
    """How one map was inverted.

    Attributes:
        strategy: its name.
        sweeps: parallel evaluations, or T - 1 steps of the sequential solver.
        module_sweeps: those of each module; the certificate's and its follow-up's last.
        sweeps_per_sample: ``[B]``, evaluations in which the sample took part.
        tokens_evaluated: tokens in all evaluations, summed over the samples.
        residual: ``[B]``, largest change that one more evaluation would make to a feature of x, divided by 1 + its size:
            0 after the sequential solver. Exact where ``certified``; else the largest change of the last evaluation.
        certified: whether ``residual`` was taken over all tokens at once, at the x that is given back.
        fallbacks: samples (counted once a module) that diverged and were solved token by token.
        seconds: wall time.
    """

    strategy: str
    sweeps: int
    module_sweeps: tuple[int, ...]
    sweeps_per_sample: Int64[Tensor, " batch"]
    tokens_evaluated: int
    residual: Float64[Tensor, " batch"]
    certified: bool
    fallbacks: int
    seconds: float


def solve_sequential(one_map: AutoregressiveMap, z: Tensor) -> tuple[Tensor, SolveInfo]:
    """Inverts the map token by token: T - 1 evaluations of one token each, exact.

    Args:
        z: what ``one_map.enter`` takes.

    Raises:
        ValueError: z has another shape than the map, or entries that are not finite.
        FloatingPointError: the answer is not finite; the message names the samples.
    """
    begin = time.perf_counter()
    tokens = entered(one_map, z)
    x = torch.empty_like(tokens)
    with torch.inference_mode():
        x[:, 0] = one_map.first(tokens[:, 0])
        run_sequentially(one_map, x, tokens, one_map.new_cache(tokens), 0, one_map.tokens - 1)
    batch, steps = len(x), one_map.tokens - 1
    check_finite(x)
    info = SolveInfo(
        strategy="sequential",
        sweeps=steps,
        module_sweeps=(steps,),
        sweeps_per_sample=torch.full((batch,), steps),
        tokens_evaluated=batch * steps,
        residual=torch.zeros(batch, dtype=torch.float64),
        certified=True,
        fallbacks=0,
        seconds=time.perf_counter() - begin,
    )
    return one_map.leave(x), info


def run_sequentially(one_map: AutoregressiveMap, x: Tensor, z: Tensor, cache: Any, start: int, stop: int) -> None:
    """Fills tokens ``start + 1, ..., stop`` of ``x`` from token ``start`` on, in place."""
    pasts, sources = x[:, start:].split(1, 1), z[:, start:].split(1, 1)  # views, made once: a step is few operations
    for i in range(stop - start):
        pasts[i + 1].copy_(one_map.advance(pasts[i], sources[i + 1], start + i, cache))


def entered(one_map: AutoregressiveMap, z: Tensor) -> Tensor:
    """``z`` as tokens, checked."""
    tokens = one_map.enter(z)
    if tokens.ndim != 3 or tokens.shape[1:] != (one_map.tokens, one_map.features):
        raise ValueError(
            f"z has shape {tuple(z.shape)}: expected {one_map.tokens} tokens of {one_map.features} features a sample"
        )
    check_finite(tokens, "z")
    return tokens


def check_finite(x: Tensor, name: str = "") -> None:
    """All entries are finite; the message names the samples where one is not."""
    if not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x).flatten(1).all(1)).nonzero().flatten().tolist()
        if name:
            raise ValueError(f"{name} is not finite in samples {bad[:10]}: expected finite entries")
        raise FloatingPointError(f"the inverse is not finite in samples {bad[:10]}, also token by token")
