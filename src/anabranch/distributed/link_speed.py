"""How fast tensors travel between processes, and how fast gradients are averaged over them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist
from torch import nn

from anabranch.distributed._groups import average_gradients
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


def measure_averaging(ranks: Ranks, *, large_bytes: int = 1 << 24, repeats: int = 7) -> LinkSpeed:
    """The links of a ring over all ranks on which averaging gradients would take what it does take, for :func:`plan_pipeline`.

    A ring of w sends ``2 (w - 1)`` messages of a w-th of the gradients one after the other. What is measured is more than they:
    copies, sums, and processes that share a memory's bandwidth.

    Args:
        large_bytes: of float32 gradients; best as many as the model has.

    Raises:
        ValueError: fewer than two processes, or too little to average.
    """
    if ranks.nproc < 2:
        raise ValueError("ranks has one process: averaging needs two")
    if large_bytes < 1024 or repeats < 1:
        raise ValueError(f"large_bytes={large_bytes}, repeats={repeats}: expected at least 1024 bytes and one repeat")
    size = large_bytes // 4 * 4
    small, large = ranks.call(_averagings, (4, size), repeats)[0]
    sends = 2 * (ranks.nproc - 1)
    return LinkSpeed(small / sends, sends * (size - 4) / ranks.nproc / max(large - small, 1e-9))


def _averagings(sizes: tuple[int, ...], repeats: int) -> list[float]:
    """Median seconds of averaging so many bytes of gradients, begun together, of the slowest rank."""
    found = []
    for size in sizes:
        parameter = nn.Parameter(torch.zeros(size // 4))
        seconds = torch.zeros(repeats + 1, dtype=torch.float64)
        for i in range(repeats + 1):  # the first is for warming up
            dist.barrier()
            begin = time.perf_counter()
            average_gradients([parameter])
            seconds[i] = time.perf_counter() - begin
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        found.append(float(seconds[1:].median()))
    return found


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
