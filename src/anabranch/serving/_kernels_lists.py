"""State of a serving cluster with continuous batching: arrays only, numbers instead of objects; and the lists of a machine.

Request r has two items, its prompt ``2 r`` and its decode ``2 r + 1``. A machine has a running ``batch``, a ``queue`` of waiting
items by (preemptions, arrival), the waiting ``prompts`` and the preempted (``blocked``) decodes in order, and the ``present``
requests by arrival. Rules: those of the simulator released with Splitwise (2311.18677); layer-wise transfers, the link of each
machine and decoding times by context are ours.
"""

import typing
from collections import namedtuple

import numpy as np
from numba import njit

PROMPT, MIXED, TOKEN = 0, 1, 2  # pools
BLOCK_END, TRANSFER_END, RETRY, FAILURE = 0, 1, 2, 3  # events
WAITING, BLOCKED = 0, 1  # linked lists of items
NOT_SENT, NO_ROOM, UNDER_WAY = 0, 1, 2  # a cache
ATTEMPT_BITS = 40  # events of a transfer: request, and above it the attempt

Rules = namedtuple(
    "Rules",
    "max_requests max_tokens max_preemptions pending_limit shortest_queue kv_bytes layers serialized own_links serial_below"
    " by_context retry_s mixed_factor max_time_s chunk_tokens",
)
Perf = namedtuple("Perf", "prompt_x prompt_s prompt_n token_x token_s token_n power_x power power_n decode_power")
Fleet = namedtuple("Fleet", "kind home capacity weights link_bytes_per_s tdp_w")
Requests = namedtuple(
    "Requests",
    "arrival prompt output source target started first decoded ended preemptions ran taken prompt_done remaining"
    " next_item previous_item linked next_present previous_present present prompt_s tokens bytes read piece sent_s sending"
    " attempt restarts",
)
Cluster = namedtuple(
    "Cluster",
    "used scheduled pending pool pool_lists pool_sizes batch batch_size batch_tokens since iteration_s block version prompts_in"
    " decodes_in cut context queue_start queue_size queue_room queue_items queue_end head tail present_head present_tail"
    " link_free busy_s energy_j iterations kv_peak scratch sent counts",
)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def enqueue(m, item, c, q):
    """Into the queue by (preemptions now, arrival), after equal keys; the room of a machine doubles where it is full."""
    preemptions, arrivals, items, size = q.preemptions, q.arrival, c.queue_items, c.queue_size[m]
    if size == c.queue_room[m]:
        room, begin = max(8, 2 * size), c.queue_end[0]
        for i in range(size):
            items[begin + i] = items[c.queue_start[m] + i]
        c.queue_start[m], c.queue_room[m] = begin, room
        c.queue_end[0] += room
    start, low, high = c.queue_start[m], 0, size
    count, arrival = preemptions[item], arrivals[item >> 1]
    while low < high:
        middle = (low + high) >> 1
        other = items[start + middle]
        n = preemptions[other]
        if count < n or (count == n and arrival < arrivals[other >> 1]):
            high = middle
        else:
            low = middle + 1
    for i in range(start + size, start + low, -1):
        items[i] = items[i - 1]
    items[start + low] = item
    c.queue_size[m] += 1


@njit(cache=True, _nrt=False)
@typing.no_type_check
def append_item(which, m, item, c, q):
    last = c.tail[which, m]
    q.previous_item[item], q.next_item[item], q.linked[item] = last, -1, which + 1
    if last < 0:
        c.head[which, m] = item
    else:
        q.next_item[last] = item
    c.tail[which, m] = item


@njit(cache=True, _nrt=False)
@typing.no_type_check
def unlink_item(m, item, c, q):
    which = q.linked[item] - 1
    before, after = q.previous_item[item], q.next_item[item]
    if before < 0:
        c.head[which, m] = after
    else:
        q.next_item[before] = after
    if after < 0:
        c.tail[which, m] = before
    else:
        q.previous_item[after] = before
    q.linked[item] = 0


@njit(cache=True, _nrt=False)
@typing.no_type_check
def enter(m, r, c, q):
    """Among the present requests, by arrival."""
    before = c.present_tail[m]
    while before >= 0 and q.arrival[before] > q.arrival[r]:
        before = q.previous_present[before]
    after = c.present_head[m] if before < 0 else q.next_present[before]
    q.previous_present[r], q.next_present[r], q.present[r] = before, after, True
    if before < 0:
        c.present_head[m] = r
    else:
        q.next_present[before] = r
    if after < 0:
        c.present_tail[m] = r
    else:
        q.previous_present[after] = r


@njit(cache=True, _nrt=False)
@typing.no_type_check
def leave(m, r, c, q):
    before, after = q.previous_present[r], q.next_present[r]
    if before < 0:
        c.present_head[m] = after
    else:
        q.next_present[before] = after
    if after < 0:
        c.present_tail[m] = before
    else:
        q.previous_present[after] = before
    q.present[r] = False


@njit(cache=True, _nrt=False)
@typing.no_type_check
def note_start(item, now, q):
    """When a prompt or a decode first ran (a machine that fails may make it run again, with the tokens that were given)."""
    r = item >> 1
    if item & 1 == 0 and np.isnan(q.started[r]):
        q.started[r] = now
    elif np.isnan(q.decoded[r]) and (item & 1 == 1 or not np.isnan(q.first[r])):
        q.decoded[r] = now
