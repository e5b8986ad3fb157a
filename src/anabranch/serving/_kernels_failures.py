"""A machine that fails: what it held is lost, its requests go on elsewhere from what is left of them."""

import typing

import numpy as np
from numba import njit

from anabranch.serving._kernels_cluster import arrive, begun_iterations, charge
from anabranch.serving._kernels_events import push
from anabranch.serving._kernels_lists import (
    ATTEMPT_BITS,
    BLOCK_END,
    FAILURE,
    MIXED,
    NOT_SENT,
    PROMPT,
    RETRY,
    UNDER_WAY,
)
from anabranch.serving._kernels_placing import least, move, send_in, take_out, token_machine
from anabranch.serving._kernels_transfers import begin_transfer

AGAIN, OTHER_TARGET = 3, 4  # beside the states of a cache, while a failure is dealt with


@njit(cache=True, _nrt=False)
@typing.no_type_check
def fail(m, placed, now, c, q, rules, perf, fleet, heap):
    """Take the machine out. Of the first ``placed`` requests, those that lost their prompt or cache with it start again with the
    tokens that they were given, and caches that were to come here go elsewhere. O(requests)."""
    kv = rules.kv_bytes
    if c.batch_size[m] > 0:  # tokens of the iteration that runs are lost
        done = ended_iterations(m, now, c, rules, perf, fleet)
        for k in range(c.batch_size[m]):
            if c.batch[m, k] & 1 == 1:
                q.remaining[c.batch[m, k] >> 1] -= done
        charge(m, now, done, c, perf, fleet)
    take_out(m, c)
    c.version[m] += 1
    c.batch_size[m] = c.queue_size[m] = c.pending[m] = 0
    c.head[0, m] = c.head[1, m] = c.tail[0, m] = c.tail[1, m] = c.present_head[m] = c.present_tail[m] = -1
    c.used[m] = c.scheduled[m] = fleet.weights[m]
    for r in range(placed):
        source, target, sending = q.source[r], q.target[r], q.sending[r]
        if not np.isnan(q.ended[r]) or (source != m and target != m):
            continue
        decodes = q.prompt_done[r] and (sending == NOT_SENT)
        if source == m and target != m:
            if decodes:  # elsewhere, already
                continue
            c.pending[target] -= 1
            c.scheduled[target] -= (q.prompt[r] + q.output[r]) * kv
            if sending == UNDER_WAY:
                c.used[target] -= (q.prompt[r] + 1) * kv
        q.sending[r] = AGAIN if source == m or decodes else OTHER_TARGET
        q.attempt[r] += 1  # whatever is on its way is not awaited any more
    for r in range(placed):
        if q.sending[r] == AGAIN:
            start_again(r, kv, q)
            send_in(r, now, c, q, rules, perf, fleet, heap)
        elif q.sending[r] == OTHER_TARGET:
            q.sending[r] = NOT_SENT
            find_target(r, now, c, q, rules, perf, fleet, heap)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def start_again(r, kv, q):
    """From the prompt and the tokens that were given, as one prompt."""
    given = q.output[r] - q.remaining[r] if q.prompt_done[r] else 0
    q.prompt[r] += given
    q.output[r] -= given
    q.remaining[r] = q.output[r] - 1
    q.prompt_done[r] = q.present[r] = False
    q.sending[r] = NOT_SENT
    q.read[r] = q.piece[r] = 0
    q.sent_s[r] = 0.0
    q.restarts[r] += 1
    q.tokens[2 * r] = q.prompt[r]
    q.bytes[2 * r] = (q.prompt[r] + 1) * kv
    q.bytes[2 * r + 1] = (q.output[r] - 1) * kv
    for item in (2 * r, 2 * r + 1):
        q.ran[item] = False
        q.preemptions[item] = q.linked[item] = 0


@njit(cache=True, _nrt=False)
@typing.no_type_check
def find_target(r, now, c, q, rules, perf, fleet, heap):
    """Another machine to decode on, for a prompt that runs or waits, or whose cache is still where it was made."""
    source, whole = q.source[r], (q.prompt[r] + q.output[r]) * rules.kv_bytes
    target = token_machine(whole, c, fleet)
    if target < 0 and c.pool_sizes[PROMPT] > 0:
        target = least(c.scheduled, PROMPT, c)
        move(target, MIXED, c)
    if target < 0:
        target = source
    q.target[r] = target
    c.pending[target] += 1
    if target != source:
        c.scheduled[target] += whole
        if q.prompt_done[r]:
            begin_transfer(r, False, now, c, q, rules, fleet, heap)
        else:  # all pieces that were read go once more, and nothing of the one that runs has gone
            rate = min(fleet.link_bytes_per_s[source], fleet.link_bytes_per_s[target])
            q.sent_s[r] = now + q.read[r] * rules.kv_bytes / rate
        return
    c.scheduled[target] += (q.output[r] - 1) * rules.kv_bytes
    # Prompts in pieces let their decodes in when they end.
    if q.output[r] > 1 and (q.prompt_done[r] or rules.chunk_tokens == 0):
        arrive(source, 2 * r + 1, now, c, q, rules, perf, fleet, heap)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def wait_for_failure(retry_s, heap):
    """Caches that find no room until a machine fails try again after the next failure, at their own intervals. O(events log)."""
    at = np.inf
    for i in range(heap.size[0]):
        if heap.kind[i] == FAILURE:
            at = min(at, heap.time[i])
    size = heap.size[0]
    heap.size[0] = 0
    for i in range(size):  # event i is read before anything is written over it
        time, kind, what = heap.time[i], heap.kind[i], heap.what[i]
        if kind == RETRY and time < at:
            time += np.ceil((at - time) / retry_s) * retry_s
        push(heap, time, kind, what)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def stop_at(end, r, c, q, rules, perf, fleet, heap):
    """The time is up: tells whether anything was still to come, and books what runs up to now. O(events + machines)."""
    left = r < len(q.arrival)
    for i in range(heap.size[0]):
        kind, what = heap.kind[i], heap.what[i]
        if kind == BLOCK_END:
            left = left or what >> 24 == c.version[what & 0xFFFFFF]
        elif kind != FAILURE:
            left = left or what >> ATTEMPT_BITS == q.attempt[what & ((1 << ATTEMPT_BITS) - 1)]
    for m in range(len(c.batch_size)):
        if c.batch_size[m] > 0:
            charge(m, end, ended_iterations(m, end, c, rules, perf, fleet), c, perf, fleet)
    return left


@njit(cache=True, _nrt=False)
@typing.no_type_check
def ended_iterations(m, now, c, rules, perf, fleet):
    """Of the block that runs."""
    if c.prompts_in[m] > 0:
        return 0
    return min(begun_iterations(m, now, c, rules, perf, fleet), c.block[m]) - 1


@njit(cache=True, _nrt=False)
@typing.no_type_check
def no_room_for_any(c, q, rules, fleet, heap):
    """Only caches that wait for room are left, and none of them will find any."""
    for i in range(heap.size[0]):
        r = heap.what[i] & ((1 << ATTEMPT_BITS) - 1)
        if heap.kind[i] != RETRY or heap.what[i] >> ATTEMPT_BITS != q.attempt[r]:
            continue
        target = q.target[r]
        if c.used[target] + (q.prompt[r] + 1) * rules.kv_bytes <= fleet.capacity[target]:
            return False
    return True
