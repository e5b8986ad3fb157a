"""This machine as a :class:`Device`: its memory, how fast it copies and how fast it multiplies."""

import os
import platform
import time
from collections.abc import Callable

import torch

from anabranch.serving.workers import usable_device
from anabranch.simulation import Device


def measure_device(
    device: str = "cpu",
    *,
    dtype: torch.dtype | None = None,
    copy_bytes: int = 2**28,
    size: int = 2048,
    repeats: int = 5,
) -> Device:
    """The best of ``repeats`` copies and products, so that what else runs here disturbs little. Takes about a second.

    Memory is all there is, bandwidth counts what a copy reads and writes (as STREAM does), arithmetic is a square matrix product
    with all threads of torch. Links are not measured (0): :class:`IterationCosts` of several such devices are refused.

    Args:
        device: "cpu", "cuda" or "cuda:1".
        dtype: of the product; half precision on a GPU, float32 on a processor, few of which multiply halves faster.
        copy_bytes: of the copied array; larger than the caches. size: of the matrices.

    Raises:
        ValueError: a device that is not there, a number that is not positive.
    """
    for name, value in (("copy_bytes", copy_bytes), ("size", size), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}")
    where = usable_device(device)
    kind = dtype or (torch.float16 if where.type == "cuda" else torch.float32)
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    copying = _shortest(lambda: target.copy_(source), where, repeats)
    del source, target
    left, right = (torch.ones(size, size, dtype=kind, device=where) for _ in range(2))
    multiplying = _shortest(lambda: left @ right, where, repeats)
    if where.type == "cuda":
        name, memory = torch.cuda.get_device_name(where), torch.cuda.mem_get_info(where)[1]
    else:
        name = platform.processor() or platform.machine()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(
        name=name, memory_bytes=memory, memory_bytes_per_s=2 * copy_bytes / copying, flops_per_s=2 * size**3 / multiplying,
        link_bytes_per_s=0.0,
    )  # fmt: skip


def _shortest(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds, after one that is not counted."""
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            _settle(device)
            begin = time.perf_counter()
            call()
            _settle(device)
            seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
