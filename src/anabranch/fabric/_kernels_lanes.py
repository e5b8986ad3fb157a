"""Compiled event queues of the packet simulation: lanes for delays that are constant, a heap for all others.

Almost every event of a packet simulation happens a constant delay after the event that caused it: the time of one full packet
on a link of a given rate, the latency of a link, the way back of an acknowledgement. Events of one delay are created in the
order in which they happen, so each delay has a *lane*, a plain first-in first-out list, and the next event is the earliest
head among a handful of lanes: O(1) an event, where a heap of all events needs O(log n). What has another delay (the short last
packet of a piece, starts, timeouts) goes through a heap. Of events at one time, the one with the smallest serial number comes
first.

Lists run through the tables of what they hold: columns 0 to 2 of a packet's or link's row are the time and the serial number of
its next event, and the row that follows it.
"""

import typing

import numba
import numpy as np

NEVER = np.iinfo(np.int64).max
TIME, SERIAL, NEXT = range(3)


@numba.njit(cache=True)
@typing.no_type_check
def push_event(heap, size, time, serial, kind, item):
    """Adds an event to the heap [n, 4], which has room. Returns the new size."""
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if heap[parent, 0] < time or (heap[parent, 0] == time and heap[parent, 1] < serial):
            break
        for c in range(4):
            heap[i, c] = heap[parent, c]
        i = parent
    heap[i, 0] = time
    heap[i, 1] = serial
    heap[i, 2] = kind
    heap[i, 3] = item
    return size + 1


@numba.njit(cache=True)
@typing.no_type_check
def pop_event(heap, size):
    """Removes the first event. Returns the new size."""
    size -= 1
    time = heap[size, 0]
    serial = heap[size, 1]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            heap[right, 0] < heap[child, 0] or (heap[right, 0] == heap[child, 0] and heap[right, 1] < heap[child, 1])
        ):
            child = right
        if time < heap[child, 0] or (time == heap[child, 0] and serial < heap[child, 1]):
            break
        for c in range(4):
            heap[i, c] = heap[child, c]
        i = child
    for c in range(4):
        heap[i, c] = heap[size, c]
    return size


@numba.njit(cache=True, inline="always")
@typing.no_type_check
def append(lanes, lane, table, item, time, serial):
    """Adds an event at the end of a lane; rows of ``lanes`` are (time and serial of the first, first, last)."""
    table[item, TIME] = time
    table[item, SERIAL] = serial
    table[item, NEXT] = -1
    if lanes[lane, 2] < 0:
        lanes[lane, 0] = time
        lanes[lane, 1] = serial
        lanes[lane, 2] = item
    else:
        table[lanes[lane, 3], NEXT] = item
    lanes[lane, 3] = item


@numba.njit(cache=True, inline="always")
@typing.no_type_check
def advance(lanes, lane, table):
    """Removes the first event of a lane."""
    item = table[lanes[lane, 2], NEXT]
    lanes[lane, 2] = item
    if item < 0:
        lanes[lane, 0] = NEVER
    else:
        lanes[lane, 0] = table[item, TIME]
        lanes[lane, 1] = table[item, SERIAL]
