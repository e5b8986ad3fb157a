"""Inverting autoregressive maps by fixed-point sweeps: Jacobi, Gauss-Seidel-Jacobi, a frozen prefix, a sliding window.

The inverse of an autoregressive map solves ``x = F(x)`` where token i of ``F(x)`` depends on tokens before i only. One
evaluation of F over n tokens (a *sweep*) is parallel. Whatever the start, token i is exact after i sweeps, and mostly long
before (GS-Jacobi, 2505.12849). All solvers are one engine (:func:`invert_autoregressive`) on a
:class:`SweepStrategy`:

- *Jacobi*: sweeps over all tokens.
- *Gauss-Seidel-Jacobi* (the paper's): the tokens are cut into modules, solved one after another; the keys and values of
  solved modules are kept.
- *frozen prefix* and *sliding window* (ours): tokens that have settled leave the sweeps on the left, one by one or several
  at a time; a window bounds the sweeps on the right. A token is frozen only if it had settled one sweep earlier: its keys
  are those of the sweep before.

Departures from the released code: the change is scaled and taken per token (there: a norm over all tokens), samples stop one
by one (there: all together), iterates are not clamped, and the answer is certified by a sweep over all tokens.
"""

import math
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anabranch.generative._checks import check_count
from anabranch.generative.autoregressive import (
    AutoregressiveMap,
    SolveInfo,
    entered,
    run_sequentially,
    solve_sequential,
)

Array = npt.NDArray[Any]
_COMPACT = 0.25  # share of finished samples at which the others go on in a smaller batch


@dataclass(frozen=True)
class SweepStrategy:
    """How one map is inverted. Five named ones: ``sequential()``, ``jacobi()``, ``gs_jacobi(modules)``, ``frozen_prefix()``
    and ``sliding(window)``.

    Args:
        modules: pieces of nearly equal size, solved one after another (G in the paper).
        window: most tokens in a sweep; None is no bound.
        freeze: the left edge moves in steps of at least so many settled tokens; None never.
        one_by_one: token by token, no sweeps; the other arguments have no meaning then.
        max_sweeps: most sweeps a module, without a window. None: as many as it takes. With a bound nothing is certified.
        start: first guess: "z" (the map's own input), "zero", or the tokens themselves may be given to the solver.
        certify: end with a sweep over all tokens, and go on with Jacobi where it still moves a token by more than tol.
        per_sample: samples that have settled leave the batch.
        guard: a token beyond this size (or not finite) is divergence: the sample's module is solved token by token.
    """

    modules: int = 1
    window: int | None = None
    freeze: int | None = None
    one_by_one: bool = False
    max_sweeps: int | None = None
    start: Literal["z", "zero"] = "z"
    certify: bool = True
    per_sample: bool = True
    guard: float = 1e4

    def __post_init__(self) -> None:
        check_count("modules", self.modules)
        for name in ("window", "freeze", "max_sweeps"):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value)
        if self.start not in ("z", "zero"):
            raise ValueError(f"start must be 'z' or 'zero', got {self.start!r}")
        if self.max_sweeps is not None and self.window is not None:
            raise ValueError(
                f"max_sweeps = {self.max_sweeps} with window = {self.window}: a window moves until it is through"
            )
        if not self.guard > 0:
            raise ValueError(f"guard must be > 0, got {self.guard}")

    @classmethod
    def sequential(cls) -> "SweepStrategy":
        """Token by token."""
        return cls(one_by_one=True)

    @classmethod
    def jacobi(cls, **options: Any) -> "SweepStrategy":
        """Sweeps over all tokens."""
        return cls(**options)

    @classmethod
    def gs_jacobi(cls, modules: int, **options: Any) -> "SweepStrategy":
        """Gauss-Seidel over modules, Jacobi within."""
        return cls(modules=modules, **options)

    @classmethod
    def frozen_prefix(cls, freeze: int = 16, **options: Any) -> "SweepStrategy":
        """Jacobi without the settled prefix, which grows in steps of at least ``freeze`` tokens."""
        return cls(freeze=freeze, **options)

    @classmethod
    def sliding(cls, window: int, **options: Any) -> "SweepStrategy":
        """A window that begins at the first token that has not settled."""
        return cls(window=window, freeze=1, **options)

    @classmethod
    def parse(cls, name: str) -> "SweepStrategy":
        """From its name: "sequential", "jacobi", "gs-jacobi-8", "frozen-16" or "sliding-48"; "+zero" for the zero start.

        Raises:
            ValueError: another name.
        """
        found = re.fullmatch(r"(sequential|jacobi|(gs-jacobi|frozen|sliding)-([1-9]\d*))(\+zero)?", name)
        if not found:
            raise ValueError(
                f"strategy {name!r}: expected sequential, jacobi, gs-jacobi-N, frozen-N or sliding-N, and +zero at will"
            )
        options: dict[str, Any] = {"start": "zero"} if found.group(4) else {}
        if found.group(1) == "sequential":
            return cls.sequential()
        if found.group(1) == "jacobi":
            return cls.jacobi(**options)
        number = int(found.group(3))
        if found.group(2) == "gs-jacobi":
            return cls.gs_jacobi(number, **options)
        return cls.frozen_prefix(number, **options) if found.group(2) == "frozen" else cls.sliding(number, **options)

    @property
    def name(self) -> str:
        """What :meth:`parse` reads."""
        if self.one_by_one:
            return "sequential"
        name = f"gs-jacobi-{self.modules}" if self.modules > 1 else "jacobi"
        if self.window is not None:
            name = f"sliding-{self.window}"
        elif self.freeze is not None:
            name = f"frozen-{self.freeze}"
        return name + ("+zero" if self.start == "zero" else "")


def invert_autoregressive(
    maps: AutoregressiveMap | Sequence[AutoregressiveMap],
    z: Tensor,
    strategies: SweepStrategy | str | Sequence[SweepStrategy | str] = "jacobi",
    *,
    tol: float,
    start: Tensor | None = None,
) -> tuple[Tensor, list[SolveInfo]]:
    """Inverts maps one after another, in the order of generation, each by its strategy.

    Cost of a map: sweeps x (one evaluation over the window), at most T - 1 sweeps; of "sequential" T - 1 evaluations of one
    token. What is fastest depends on the batch: see :func:`plan_sampling`.

    Args:
        z: what the first map takes.
        strategies: one for all maps, or one each; names as in :meth:`SweepStrategy.parse`.
        tol: largest residual ``max |F(x) - x| / (1 + |F(x)|)`` over features, per token; the error of x is a small multiple of
            it. 0 gives the exact answer, by up to T - 1 sweeps.
        start: first guess of a single map, as z; else the strategy's.

    Raises:
        ValueError: a shape that does not fit, tol < 0, an unknown strategy.
        FloatingPointError: the inverse itself is not finite; the message names the samples.
    """
    several = [maps] if isinstance(maps, AutoregressiveMap) else list(maps)
    given = [strategies] * len(several) if isinstance(strategies, str | SweepStrategy) else list(strategies)
    chosen = [SweepStrategy.parse(one) if isinstance(one, str) else one for one in given]
    if not several or len(chosen) != len(several):
        raise ValueError(f"{len(chosen)} strategies for {len(several)} maps: expected one for all, or one each")
    if start is not None and len(several) > 1:
        raise ValueError(f"start was given with {len(several)} maps: expected a single map")
    if not tol >= 0:
        raise ValueError(f"tol must be >= 0, got {tol}")
    infos = []
    for one_map, strategy in zip(several, chosen, strict=True):
        z, info = solve_map(one_map, z, strategy, tol, start=start)
        infos.append(info)
    return z, infos


def solve_map(
    one_map: AutoregressiveMap,
    z: Tensor,
    strategy: SweepStrategy,
    tol: float,
    *,
    start: Tensor | None = None,
    deadline_s: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Tensor, SolveInfo]:
    """:func:`invert_autoregressive` of one map, without its checks.

    Raises:
        TooSlow: the sweeps have taken longer than ``deadline_s``.
    """
    if strategy.one_by_one or one_map.tokens == 1:
        return solve_sequential(one_map, z)
    begin = clock()
    tokens = entered(one_map, z)
    last = one_map.tokens - 1
    modules = strategy.modules
    if modules > last:
        warnings.warn(f"{modules} modules for {last} unknown tokens: {last} are used", stacklevel=3)
        modules = last
    x = torch.empty_like(tokens)
    if start is not None:
        x.copy_(entered(one_map, start))
    elif strategy.start == "z":
        x.copy_(tokens)
    else:
        x.zero_()
    with torch.inference_mode():
        x[:, 0] = one_map.first(tokens[:, 0])
        sweeper = _Sweeper(one_map, strategy, tol, x, tokens, lambda: clock() - begin > deadline_s)
        # A bound on the sweeps wants the last image; without one, a full-width sweep is its own certificate.
        full = modules == 1 and strategy.window is None and strategy.freeze is None
        bounded = strategy.max_sweeps is not None
        certify = strategy.certify and not bounded
        if not (full and certify):
            for g in range(modules):
                sweeper.module(last * g // modules, last * (g + 1) // modules)
        if certify:
            sweeper.strategy = replace(strategy, window=None, freeze=None)
            sweeper.module(0, last, certificate=True)
    info = SolveInfo(
        strategy=strategy.name,
        sweeps=sum(sweeper.module_sweeps),
        module_sweeps=tuple(sweeper.module_sweeps),
        sweeps_per_sample=torch.from_numpy(sweeper.sweeps_per_sample),
        tokens_evaluated=sweeper.tokens_evaluated,
        residual=torch.from_numpy(sweeper.residual),
        certified=certify,
        fallbacks=sweeper.fallbacks,
        seconds=clock() - begin,
    )
    return one_map.leave(x), info


class TooSlow(Exception):
    """An inversion took longer than it was allowed to."""


class _Sweeper:
    """State of one inversion: tokens ``x`` (changed in place), the cache, counters (numpy's: one transfer a sweep)."""

    def __init__(
        self,
        one_map: AutoregressiveMap,
        strategy: SweepStrategy,
        tol: float,
        x: Tensor,
        z: Tensor,
        late: Callable[[], bool],
    ) -> None:
        self.map, self.strategy, self.tol, self.x, self.z, self.late = one_map, strategy, tol, x, z, late
        self.cache = one_map.new_cache(z)
        self.tokens_evaluated = self.fallbacks = 0
        self.module_sweeps: list[int] = []
        self.sweeps_per_sample = np.zeros(len(x), np.int64)
        self.residual = np.zeros(len(x))

    def module(self, left: int, right: int, certificate: bool = False) -> None:
        """Solves tokens ``left + 1, ..., right`` given those up to ``left``.

        With ``certificate`` a sample that settles keeps the tokens that went into its last sweep: their residual is known.
        """
        strategy = self.strategy
        window, step = strategy.window or right, strategy.freeze or right + 1
        # As many sweeps as tokens make all exact, one more finds that nothing changes; a left edge that moves ends by itself.
        limit = strategy.max_sweeps or (right - left + certificate if step > right else math.inf)
        x, z, cache, rows = self.x, self.z, self.cache, np.arange(len(self.x))  # rows: samples still in the batch
        a, settled_before, sweeps = left, left, 0
        while a < right:
            b = min(a + window, right)
            old = x[:, a + 1 : b + 1]
            new = self.map.advance(x[:, a:b], z[:, a + 1 : b + 1], a, cache)
            change, diverged = _change(new, old, strategy.guard)
            sweeps += 1
            self.tokens_evaluated += change.size
            self.sweeps_per_sample[rows] += 1
            self.residual[rows] = change.max(1)
            unsettled = ~(change <= self.tol)
            done: Array = np.full(len(rows), sweeps >= limit)
            if b == right:
                done |= ~unsettled.any(1)
            keep = done & certificate if diverged is None else (done & certificate) | diverged
            if keep.any():
                old[~keep] = new[~keep]
            else:
                old.copy_(new)
            if diverged is not None:
                self._fall_back(x, z, cache, np.flatnonzero(diverged), rows, a, right)
                done |= diverged
            if done.all():
                break
            if self.late():
                raise TooSlow
            if diverged is not None or (strategy.per_sample and done.sum() >= _COMPACT * len(rows)):
                x, z, cache, rows = self._compact(x, z, cache, np.flatnonzero(~done), rows, left, right)
                unsettled = unsettled[~done]
            if step <= b:
                settled = a + _leading(unsettled)
                edge = max(a + 1, min(settled, settled_before))
                settled_before = max(settled, a + 1)
                a = edge if edge - a >= step or edge >= b else a
        self.module_sweeps.append(sweeps)
        self._write_back(x, cache, rows, left, right)

    def _write_back(self, x: Tensor, cache: Any, rows: Array, left: int, right: int) -> None:
        if x is not self.x:
            index = torch.from_numpy(rows).to(x.device)
            self.x[index] = x
            self.map.put(self.cache, index, cache, left, right)

    def _fall_back(self, x: Tensor, z: Tensor, cache: Any, which: Array, rows: Array, start: int, stop: int) -> None:
        """Solves tokens after ``start`` one by one where a sweep diverged; ``x`` and ``cache`` of the batch as it is now."""
        index = torch.from_numpy(which).to(x.device)
        part, part_x = self.map.take(cache, index, start), x[index]
        run_sequentially(self.map, part_x, z[index], part, start, stop)
        x[index] = part_x
        self.map.put(cache, index, part, start, stop)
        self.fallbacks += len(which)
        self.tokens_evaluated += len(which) * (stop - start)
        self.sweeps_per_sample[rows[which]] += stop - start
        self.residual[rows[which]] = 0

    def _compact(
        self, x: Tensor, z: Tensor, cache: Any, active: Array, rows: Array, left: int, right: int
    ) -> tuple[Tensor, Tensor, Any, Array]:
        """Writes the batch back and goes on with the active samples only."""
        self._write_back(x, cache, rows, left, right)
        index = torch.from_numpy(active).to(x.device)
        return x[index], z[index], self.map.take(cache, index, right), rows[active]


def _change(new: Tensor, old: Tensor, guard: float) -> tuple[Array, Array | None]:
    """Largest change ``|new - old| / (1 + |new|)`` of each token ``[B, n]``, and the samples that diverged (None: none)."""
    size = new.abs()
    change = torch.sub(new, old).abs_().div_(size + 1).amax(2).cpu()
    moved = (change.float() if change.dtype in (torch.bfloat16, torch.float16) else change).numpy()
    if float(size.max()) <= guard:
        return moved, None
    return moved, ~(size.flatten(1).amax(1) <= guard).cpu().numpy()


def _leading(unsettled: Array) -> int:
    """How many tokens have settled in all samples before the first that has not."""
    first = int(unsettled.any(0).argmax())
    return first if unsettled[:, first].any() else unsettled.shape[1]
