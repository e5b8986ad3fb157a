"""The event loop itself: cluster scheduling, ends of blocks, transfers of caches."""

import typing

from numba import njit

from anabranch.serving._kernels_cluster import (
    BLOCK_END,
    MIXED,
    PROMPT,
    RETRY,
    TOKEN,
    TRANSFER_END,
    arrive,
    build,
    cut_block,
    leave,
)
from anabranch.serving._kernels_events import drop_first, interpolate, push


@njit(cache=True, _nrt=False)
@typing.no_type_check
def move(m, to, c):
    """From its pool to the end of another one's list."""
    pool = c.pool[m]
    size, found = c.pool_sizes[pool], False
    for i in range(size):
        if found:
            c.pool_lists[pool, i - 1] = c.pool_lists[pool, i]
        elif c.pool_lists[pool, i] == m:
            found = True
    c.pool_sizes[pool] -= 1
    c.pool_lists[to, c.pool_sizes[to]] = m
    c.pool_sizes[to] += 1
    c.pool[m] = to
    c.counts[2] += 1


@njit(cache=True, _nrt=False)
@typing.no_type_check
def least(values, pool, c):
    """The first machine of the pool's list with the least value; -1 without any."""
    members, best = c.pool_lists[pool], -1
    for i in range(c.pool_sizes[pool]):
        m = members[i]
        if best < 0 or values[m] < values[best]:
            best = m
    return best


@njit(cache=True, _nrt=False)
@typing.no_type_check
def place(r, c, q, rules, fleet):
    """Choose the machines of both phases and book them."""
    kv, prompt = rules.kv_bytes, q.prompt[r]
    whole = (prompt + 1) * kv + (q.output[r] - 1) * kv
    source = target = -1
    if rules.shortest_queue:
        source = target = least(c.pending, MIXED, c)
    else:
        for pool in (PROMPT, MIXED):
            m = least(c.pending, pool, c)
            if m >= 0 and not (c.queue_size[m] > 0 and c.pending[m] + prompt > rules.pending_limit):
                source = m
                break
        for pool in (TOKEN, MIXED):
            m = least(c.scheduled, pool, c)
            if m >= 0 and c.scheduled[m] + whole < fleet.capacity[m]:
                target = m
                break
        if source < 0 and c.pool_sizes[TOKEN] > 0:
            source = least(c.pending, TOKEN, c)
            move(source, MIXED, c)
        if target < 0 and c.pool_sizes[PROMPT] > 0:
            target = least(c.scheduled, PROMPT, c)
            move(target, MIXED, c)
        if source < 0 or target < 0:
            best = -1
            for pool in (PROMPT, MIXED, TOKEN):
                m = least(c.pending, pool, c)
                if m >= 0 and (best < 0 or c.pending[m] < c.pending[best]):
                    best = m
            source = target = best
    q.source[r], q.target[r] = source, target
    c.pending[source] += prompt
    c.pending[target] += 1
    if source != target:
        c.scheduled[source] += (prompt + 1) * kv
    c.scheduled[target] += whole


@njit(cache=True, _nrt=False)
@typing.no_type_check
def end_block(m, now, c, q, rules, perf, fleet, heap):
    """Advance every item of the batch, let go of what is finished, build anew, then send caches off."""
    remaining, batch = q.remaining, c.batch[m]
    count, kv, size, kept, sent = c.block[m], rules.kv_bytes, c.batch_size[m], 0, 0
    spent = now - c.since[m]
    c.busy_s[m] += spent
    c.iterations[m] += count
    tokens = c.batch_tokens[m] if c.prompts_in[m] > 0 else 0
    share = perf.decode_power[fleet.kind[m]]
    if tokens > 0:
        kind = fleet.kind[m]
        share = interpolate(perf.power_x[kind], perf.power[kind], perf.power_n[kind], float(tokens))
    c.energy_j[m] += spent * share * fleet.tdp_w[m]
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
        q.prompt_done[r], q.first[r] = True, now
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
    c.batch_size[m] = kept
    build(m, now, c, q, rules, perf, fleet, heap)
    for k in range(sent):
        begin_transfer(send[m, k], now, c, q, rules, fleet, heap)
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
def release(m, tokens, kv, c):
    c.used[m] -= tokens * kv
    c.scheduled[m] -= tokens * kv


@njit(cache=True, _nrt=False)
@typing.no_type_check
def begin_transfer(r, now, c, q, rules, fleet, heap):
    """Reserve the cache at its destination, or try again; the end is known at once."""
    kv, source, target = rules.kv_bytes, q.source[r], q.target[r]
    if c.used[target] + (q.prompt[r] + 1) * kv > fleet.capacity[target]:
        c.counts[3] += 1
        push(heap, now + rules.retry_s, RETRY, r)
        return
    c.used[target] += (q.prompt[r] + 1) * kv
    c.kv_peak[target] = max(c.kv_peak[target], c.used[target])
    rate = min(fleet.link_bytes_per_s[source], fleet.link_bytes_per_s[target])
    whole = q.prompt[r] * kv / rate
    end = now + whole
    if not rules.serialized and q.prompt[r] >= rules.serial_below:
        # Layer l is ready at l / L of the prompt's time; e_l = max(e_(l-1), ready_l) + bytes / (L rate), in closed form: the
        # last layer is late by its own share, or all are if the link is slower than the prompt.
        part = whole / rules.layers
        end = now + max(part, whole - q.prompt_s[r] * (1 - 1 / rules.layers))
    if not rules.own_links:  # one after another on either machine's link, in the order of the prompts' ends
        free = max(c.link_free[source], c.link_free[target])
        end = max(end, free + whole)
        c.link_free[source] = c.link_free[target] = end
    push(heap, end, TRANSFER_END, r)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def end_transfer(r, now, c, q, rules, perf, fleet, heap):
    source, kv = q.source[r], rules.kv_bytes
    release(source, q.prompt[r] + 1, kv, c)
    arrive(q.target[r], 2 * r + 1, now, c, q, rules, perf, fleet, heap)
    if c.queue_size[source] == 0:
        return
    if c.batch_size[source] == 0:
        head = c.queue_items[c.queue_start[source]]
        if c.used[source] + q.bytes[head] <= fleet.capacity[source]:
            build(source, now, c, q, rules, perf, fleet, heap)
    elif c.batch_size[source] < rules.max_requests and c.batch_tokens[source] < rules.max_tokens:
        cut_block(source, now, c, rules, perf, fleet, heap)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def run(c, q, rules, perf, fleet, heap):
    """Until all is done or the time is up; gives the time of the last event."""
    n, r, now = len(q.arrival), 0, 0.0
    while r < n or heap.size[0] > 0:
        if r < n and (heap.size[0] == 0 or q.arrival[r] <= heap.time[0]):
            now = q.arrival[r]
            if now > rules.max_time_s:
                break
            place(r, c, q, rules, fleet)
            arrive(q.source[r], 2 * r, now, c, q, rules, perf, fleet, heap)
            if q.target[r] == q.source[r] and q.output[r] > 1:
                arrive(q.source[r], 2 * r + 1, now, c, q, rules, perf, fleet, heap)
            r += 1
            continue
        now, kind, what = heap.time[0], heap.kind[0], heap.what[0]
        if now > rules.max_time_s:
            break
        drop_first(heap)
        if kind == BLOCK_END:
            m = what & 0xFFFFFF
            if what >> 24 == c.version[m]:
                end_block(m, now, c, q, rules, perf, fleet, heap)
        elif kind == TRANSFER_END:
            end_transfer(what, now, c, q, rules, perf, fleet, heap)
        else:
            begin_transfer(what, now, c, q, rules, fleet, heap)
    return now
