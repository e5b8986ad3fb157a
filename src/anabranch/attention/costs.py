"""How long a call takes, and how much memory it needs at its peak."""

import gc
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

Result = TypeVar("Result")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status_bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def median_seconds(function: Callable[[], object], calls: int = 3) -> float:
    """Median wall time of ``calls`` calls after one that is not counted."""
    seconds = []
    for _ in range(calls + 1):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return median(seconds[1:])


def peak_memory_bytes(function: Callable[[], Result]) -> tuple[Result, int]:
    """``function()`` and the largest growth of the process's resident memory during it.

    Memory that an earlier call gave back to the allocator but not to the system is not seen: meaningful for calls that take
    tens of megabytes. Where the system keeps no peak that can be reset (not Linux), growth beyond the highest peak so far.
    """
    gc.collect()
    try:
        _CLEAR.write_text("5")  # the peak is now the present size
        before = _status_bytes("VmRSS")
        result = function()
        return result, max(0, _status_bytes("VmHWM") - before)
    except (OSError, StopIteration):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = function()
        return result, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
