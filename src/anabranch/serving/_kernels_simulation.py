"""The event loop itself: cluster scheduling, ends of blocks, transfers of caches."""

import typing

import numpy as np
from numba import njit

from anabranch.serving._kernels_chunks import end_piece
from anabranch.serving._kernels_cluster import arrive, build, charge, cut_block
from anabranch.serving._kernels_events import drop_first
from anabranch.serving._kernels_failures import fail, no_room_for_any, stop_at, wait_for_failure
from anabranch.serving._kernels_lists import (
    ATTEMPT_BITS,
    BLOCK_END,
    FAILURE,
    MIXED,
    NOT_SENT,
    RETRY,
    TRANSFER_END,
    enqueue,
    leave,
    note_start,
)
from anabranch.serving._kernels_placing import move, send_in
from anabranch.serving._kernels_transfers import begin_transfer, release


@njit(cache=True, _nrt=False)
@typing.no_type_check
def end_block(m, now, c, q, rules, perf, fleet, heap):
    """Advance every item of the batch, let go of what is finished, build anew, then send caches off."""
    remaining, batch = q.remaining, c.batch[m]
    count, kv, size, kept, sent = c.block[m], rules.kv_bytes, c.batch_size[m], 0, 0
    charge(m, now, count, c, perf, fleet)
    send = c.sent
    for k in range(size):
        item = batch[k]
        r = item >> 1
        if item & 1 == 1:
            remaining[r] -= count
            if remaining[r] > 0:
                batch[kept] = item
                kept += 1
                continue
            q.ended[r] = now
            release(m, q.prompt[r] + q.output[r], kv, c)
            c.pending[m] -= 1
            leave(m, r, c, q)
            continue
        if rules.chunk_tokens > 0 and not end_piece(m, r, now, c, q, rules, fleet):
            batch[kept] = item
            kept += 1
            continue
        q.prompt_done[r] = True
        if np.isnan(q.first[r]):
            q.first[r] = now
        c.pending[m] -= q.prompt[r]
        if q.output[r] == 1:  # nothing to decode: no transfer
            q.ended[r] = now
            release(m, q.prompt[r] + 1, kv, c)
            target = q.target[r]
            c.pending[target] -= 1
            if target != m:
                c.scheduled[target] -= (q.prompt[r] + 1) * kv
            leave(m, r, c, q)
        elif q.target[r] != m:
            leave(m, r, c, q)
            send[m, sent] = r
            sent += 1
        elif rules.chunk_tokens > 0:  # goes on to decode at once, or as soon as there is room where it was not reserved
            if q.bytes[item + 1] > 0:
                enqueue(m, item + 1, c, q)
            else:
                batch[kept] = item + 1
                kept += 1
                note_start(item + 1, now, q)
    c.batch_size[m] = kept
    build(m, now, c, q, rules, perf, fleet, heap)
    for k in range(sent):
        begin_transfer(send[m, k], True, now, c, q, rules, fleet, heap)
    if (
        c.pool[m] == MIXED
        and fleet.home[m] != MIXED
        and c.batch_size[m] == 0
        and c.queue_size[m] == 0
        and c.present_head[m] < 0
    ):
        move(m, fleet.home[m], c)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def end_transfer(r, now, c, q, rules, perf, fleet, heap):
    source, kv = q.source[r], rules.kv_bytes
    q.sending[r] = NOT_SENT
    release(source, q.prompt[r] + 1, kv, c)
    arrive(q.target[r], 2 * r + 1, now, c, q, rules, perf, fleet, heap)
    if c.queue_size[source] == 0:
        return
    if c.batch_size[source] == 0:
        head = c.queue_items[c.queue_start[source]]
        if c.used[source] + q.bytes[head] <= fleet.capacity[source]:
            build(source, now, c, q, rules, perf, fleet, heap)
    elif c.batch_size[source] < rules.max_requests and c.batch_tokens[source] < (
        rules.chunk_tokens or rules.max_tokens
    ):
        cut_block(source, now, c, rules, perf, fleet, heap)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def run(c, q, rules, perf, fleet, heap):
    """Until all is done, nothing can go on any more, or the time is up; gives the time of the last event, or of the limit."""
    n, r, end, failures = len(q.arrival), 0, 0.0, 0
    for i in range(heap.size[0]):
        failures += heap.kind[i] == FAILURE
    while r < n or heap.size[0] > 0:
        comes = r < n and (heap.size[0] == 0 or q.arrival[r] <= heap.time[0])
        now = q.arrival[r] if comes else heap.time[0]
        if now > rules.max_time_s:
            if stop_at(rules.max_time_s, r, c, q, rules, perf, fleet, heap):
                end = rules.max_time_s
            break
        if comes:
            end = now
            send_in(r, now, c, q, rules, perf, fleet, heap)
            r += 1
            continue
        kind, what = heap.kind[0], heap.what[0]
        drop_first(heap)
        if kind == FAILURE:
            failures -= 1
            if c.batch_size[what] > 0:  # of an idle machine is no event of the requests
                end = now
            fail(what, r, now, c, q, rules, perf, fleet, heap)
            continue
        if kind == BLOCK_END:
            m = what & 0xFFFFFF
            if c.pool[m] < 0:  # it failed meanwhile
                continue
            end = now
            if what >> 24 == c.version[m]:
                end_block(m, now, c, q, rules, perf, fleet, heap)
            continue
        request, attempt = what & ((1 << ATTEMPT_BITS) - 1), what >> ATTEMPT_BITS
        if kind == RETRY:
            c.counts[4] -= 1
        if attempt != q.attempt[request]:  # a machine of this transfer failed
            continue
        end = now
        if kind == TRANSFER_END:
            end_transfer(request, now, c, q, rules, perf, fleet, heap)
        else:
            begin_transfer(request, False, now, c, q, rules, fleet, heap)
            if r == n and heap.size[0] - failures == c.counts[4] and no_room_for_any(c, q, rules, fleet, heap):
                if failures == 0:
                    break
                wait_for_failure(rules.retry_s, heap)
    return end
