"""What glibc's malloc does with the memory of this process: kept for the next step, given back, or measured to the last hole."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_MOST_FROM_HEAP = 1 << 25  # bytes; glibc takes no larger threshold


def _tell(option: int, value: int) -> bool:
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    return tell is not None and tell(option, value) == 1


def keep_freed_memory(most_bytes: int = 1 << 30) -> bool:
    """Have the heap keep what is freed, up to ``most_bytes`` at its end, in this process and for good; False where it cannot.

    A training step frees all its activations at its end and asks for as many in the next. Otherwise they go back to the
    system in between, and touching new pages makes a forward take up to twice as long, now more and now less. Tensors of
    more than 32 MiB are mapped one by one all the same.
    """
    return _tell(_MMAP_THRESHOLD, _MOST_FROM_HEAP) and _tell(_TRIM_THRESHOLD, most_bytes)


def map_large_blocks(least_bytes: int = 1 << 16) -> bool:
    """Have glibc map and unmap blocks of at least so many bytes one by one, in this process and for good.

    Otherwise they share a heap with small ones, whose holes take a fifth to a half of the memory of a training step again.
    Mapping costs time. False where malloc cannot be told.
    """
    return _tell(_MMAP_THRESHOLD, least_bytes)


class _Malloc(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


def fill_holes() -> int:
    """Take what the heap of this process has free, in blocks of 32 KiB down to 64 bytes and for good; the bytes taken.

    A process that has imported much has megabytes free in holes, more or fewer by what it did before. They are part of
    :func:`data_bytes` already, so without this a limit would give as much more. 0 where glibc does not tell what is free.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype, libc.malloc.restype = _Malloc, ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = (ctypes.c_size_t,), (ctypes.c_void_p,)
    taken = 0
    for size in (1 << n for n in range(15, 5, -1)):
        heap = libc.mallinfo2().arena
        while True:
            block = libc.malloc(size)
            if not block or libc.mallinfo2().arena > heap:
                libc.free(block)  # it was no hole
                break
            taken += size
    return taken
