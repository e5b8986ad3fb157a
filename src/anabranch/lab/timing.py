"""Timing that can be trusted: warmed up, interleaved A/B pairs, medians."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds of each call; with a peer, pair by pair.

    Attributes:
        ours_s: seconds of ours, one a pair.
        peer_s: seconds of the peer in the same pair; empty without a peer.
    """

    ours_s: tuple[float, ...]
    peer_s: tuple[float, ...] = ()

    @property
    def ratios(self) -> tuple[float, ...]:
        """``peer / ours`` of each pair: how many times faster ours is."""
        return tuple(peer / ours for peer, ours in zip(self.peer_s, self.ours_s, strict=True)) if self.peer_s else ()

    @property
    def value(self) -> float:
        """Median ratio with a peer, median seconds without one."""
        return median(self.ratios or self.ours_s)


def time_pairs(
    ours: Callable[[], Any], peer: Callable[[], Any] | None = None, *, pairs: int = 9, warmup: int = 1
) -> Timing:
    """Time ``ours`` against ``peer`` in turn (A B, B A, A B, ...), after ``warmup`` calls of each, garbage collection off.

    Raises:
        ValueError: fewer than 3 pairs, or a negative warm-up.
    """
    if pairs < 3:
        raise ValueError(f"pairs={pairs}: an interval needs at least 3")
    if warmup < 0:
        raise ValueError(f"warmup={warmup}: expected 0 or more")
    for _ in range(warmup):
        ours()
        if peer is not None:
            peer()
    ours_s, peer_s = [], []
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for pair in range(pairs):
            if peer is None:
                ours_s.append(_seconds(ours))
            elif pair % 2 == 0:
                ours_s.append(_seconds(ours))
                peer_s.append(_seconds(peer))
            else:
                peer_s.append(_seconds(peer))
                ours_s.append(_seconds(ours))
            gc.collect(0)  # a full collection takes longer than many a function
    finally:
        if collecting:
            gc.enable()
    return Timing(tuple(ours_s), tuple(peer_s))


def _seconds(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return max(time.perf_counter() - begin, 1e-9)
