"""How fast tensors travel between two processes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist

from anabranch.distributed.launching import Ranks


@dataclass(frozen=True)
class LinkSpeed:
    """Of a link, one way: seconds whatever the size, and bytes a second."""

    latency_s: float
    bandwidth_bytes_per_s: float


def measure_link(ranks: Ranks, *, large_bytes: int = 1 << 24, repeats: int = 7) -> LinkSpeed:
    """The link between ranks 0 and 1, for :func:`plan_pipeline`: medians of round trips of 4 bytes and of ``large_bytes``.

    Raises:
        ValueError: fewer than two processes, or nothing to send.
    """
    if ranks.nproc < 2:
        raise ValueError("ranks has one process: a link needs two")
    if large_bytes < 1024 or repeats < 1:
        raise ValueError(f"large_bytes={large_bytes}, repeats={repeats}: expected at least 1024 bytes and one repeat")
    small, large = ranks.call(_round_trips, (4, large_bytes), repeats)[0]
    return LinkSpeed(small / 2, 2 * (large_bytes - 4) / max(large - small, 1e-9))


def _round_trips(sizes: tuple[int, ...], repeats: int) -> list[float]:
    """Median seconds there and back, of every size."""
    rank, found = dist.get_rank(), []
    for size in sizes if rank < 2 else ():
        tensor = torch.zeros(size, dtype=torch.uint8)
        seconds = []
        for _ in range(repeats + 1):  # the first is for warming up
            begin = time.perf_counter()
            if rank == 0:
                dist.send(tensor, 1)
                dist.recv(tensor, 1)
            else:
                dist.recv(tensor, 0)
                dist.send(tensor, 0)
            seconds.append(time.perf_counter() - begin)
        found.append(median(seconds[1:]))
    return found
