"""Event loop of a serving cluster with continuous batching: arrays only, numbers instead of objects.

Request r has two items, its prompt ``2 r`` and its decode ``2 r + 1``. A machine has a running ``batch``, a ``queue`` of waiting
items by (preemptions, arrival), the waiting ``prompts`` and the preempted (``blocked``) decodes in order, and the ``present``
requests by arrival. Rules: those of the simulator released with Splitwise (2311.18677); layer-wise transfers, the link of each
machine and decoding times by context are ours.
"""

import typing
from collections import namedtuple

import numpy as np
from numba import njit

from anabranch.serving._kernels_events import interpolate, push

PROMPT, MIXED, TOKEN = 0, 1, 2  # pools
BLOCK_END, TRANSFER_END, RETRY = 0, 1, 2  # events
WAITING, BLOCKED = 0, 1  # linked lists of items

Rules = namedtuple(
    "Rules",
    "max_requests max_tokens max_preemptions pending_limit shortest_queue kv_bytes layers serialized own_links serial_below"
    " by_context retry_s mixed_factor max_time_s",
)
Perf = namedtuple("Perf", "prompt_x prompt_s prompt_n token_x token_s token_n power_x power power_n decode_power")
Fleet = namedtuple("Fleet", "kind home capacity weights link_bytes_per_s tdp_w")
Requests = namedtuple(
    "Requests",
    "arrival prompt output source target started first decoded ended preemptions ran taken prompt_done remaining"
    " next_item previous_item linked next_present previous_present present prompt_s tokens bytes",
)
Cluster = namedtuple(
    "Cluster",
    "used scheduled pending pool pool_lists pool_sizes batch batch_size batch_tokens since iteration_s block version prompts_in"
    " decodes_in cut context queue_start queue_size queue_room queue_items queue_end head tail present_head present_tail"
    " link_free busy_s energy_j iterations kv_peak scratch sent counts",
)


# Lists of a machine.


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


# Batches.


@njit(cache=True, _nrt=False)
@typing.no_type_check
def build(m, now, c, q, rules, perf, fleet, heap):
    """The next batch, and the block of iterations that it runs until something ends."""
    taken, ran, preemptions, prompt_done, tokens_of, bytes_of = (
        q.taken,
        q.ran,
        q.preemptions,
        q.prompt_done,
        q.tokens,
        q.bytes,
    )
    next_item, next_present, linked, queue_items, batch = (
        q.next_item,
        q.next_present,
        q.linked,
        c.queue_items,
        c.batch[m],
    )
    full_size, full_tokens = rules.max_requests, rules.max_tokens
    new, size, tokens, free = c.scratch, 0, 0, fleet.capacity[m] - c.used[m]
    c.counts[0] += 1
    stamp = c.counts[0]
    i, end = c.queue_start[m], c.queue_start[m] + c.queue_size[m]
    while i < end:  # starved items first
        item = queue_items[i]
        i += 1
        if preemptions[item] < rules.max_preemptions:
            break
        more = tokens_of[item]
        if size > 0 and (size >= full_size or tokens + more > full_tokens):
            break
        if not ran[item]:
            if bytes_of[item] > free:
                continue
            free -= bytes_of[item]
        taken[item] = stamp
        new[size] = item
        size, tokens = size + 1, tokens + more
    item = c.head[WAITING, m]
    while item >= 0:
        if taken[item] != stamp:
            more, room = tokens_of[item], bytes_of[item]
            if (size > 0 and (size >= full_size or tokens + more > full_tokens)) or room > free:
                break
            free -= room
            taken[item] = stamp
            new[size] = item
            size, tokens = size + 1, tokens + more
        item = next_item[item]
    item = c.head[BLOCKED, m]
    while item >= 0:
        if taken[item] != stamp:
            if size > 0 and (size >= full_size or tokens + 1 > full_tokens):
                break
            taken[item] = stamp
            new[size] = item
            size, tokens = size + 1, tokens + 1
        item = next_item[item]
    old = c.batch_size[m]
    for k in range(old):
        item = batch[k]
        if taken[item] == stamp:
            continue
        if size > 0 and (size >= full_size or tokens + 1 > full_tokens):
            break
        taken[item] = stamp
        new[size] = item
        size, tokens = size + 1, tokens + 1
    r = c.present_head[m]
    while r >= 0:
        item = 2 * r + (1 if prompt_done[r] else 0)
        if taken[item] != stamp:
            more = tokens_of[item]
            if size > 0 and (size >= full_size or tokens + more > full_tokens):
                break
            if not ran[item]:
                if bytes_of[item] > free:
                    break
                free -= bytes_of[item]
            taken[item] = stamp
            new[size] = item
            size, tokens = size + 1, tokens + more
        r = next_present[r]
    # Survivors keep their order, the others of the old batch are preempted, then come the new ones.
    kept = 0
    for k in range(old):
        item = batch[k]
        if taken[item] == stamp:
            batch[kept] = item
            taken[item] = -stamp  # in the batch already
            kept += 1
        else:
            enqueue(m, item, c, q)
            append_item(BLOCKED, m, item, c, q)
            c.counts[1] += 1
    came = 0
    for k in range(size):
        item = new[k]
        if taken[item] == stamp:
            batch[kept] = item
            kept, came = kept + 1, came + 1
            taken[item] = -stamp
            if linked[item] > 0:
                unlink_item(m, item, c, q)
            if not ran[item]:
                ran[item] = True
                c.used[m] += bytes_of[item]
                if item & 1 == 0:
                    q.started[item >> 1] = now
                else:
                    q.decoded[item >> 1] = now
    if came > 0:  # out of the queue
        start, write = c.queue_start[m], c.queue_start[m]
        for i in range(start, start + c.queue_size[m]):
            item = queue_items[i]
            if taken[item] != -stamp:
                queue_items[write] = item
                write += 1
        c.queue_size[m] = write - start
    c.kv_peak[m] = max(c.kv_peak[m], c.used[m])
    r = c.present_head[m]
    while r >= 0:
        item = 2 * r + (1 if prompt_done[r] else 0)
        if taken[item] != -stamp:
            preemptions[item] += 1
        r = next_present[r]
    c.batch_size[m], c.batch_tokens[m] = kept, tokens
    if kept > 0:
        begin_block(m, now, c, q, rules, perf, fleet, heap)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def begin_block(m, now, c, q, rules, perf, fleet, heap):
    prompt, output, remaining, batch = q.prompt, q.output, q.remaining, c.batch[m]
    kind, prompt_tokens, decodes, least, context = fleet.kind[m], 0, 0, 1 << 60, 0
    for k in range(c.batch_size[m]):
        item = batch[k]
        r = item >> 1
        if item & 1 == 0:
            prompt_tokens += prompt[r]
        else:
            decodes += 1
            least = min(least, remaining[r])
            context += prompt[r] + output[r] - remaining[r]
    prompts = c.batch_size[m] - decodes
    c.prompts_in[m], c.decodes_in[m], c.context[m] = prompts, decodes, context
    c.block[m] = 1 if prompts > 0 else least
    if prompts > 0:
        both = prompt_tokens + decodes
        seconds = interpolate(perf.prompt_x[kind], perf.prompt_s[kind], perf.prompt_n[kind], float(both))
        if decodes > 0:
            seconds *= rules.mixed_factor
        for k in range(c.batch_size[m]):
            if batch[k] & 1 == 0:
                q.prompt_s[batch[k] >> 1] = seconds
    else:
        seconds = token_seconds(kind, decodes, context, rules, perf)
    c.since[m], c.iteration_s[m], c.cut[m] = now, seconds, False
    c.version[m] += 1
    push(heap, now + block_seconds(m, c.block[m], c, rules, perf, fleet), BLOCK_END, (c.version[m] << 24) | m)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def token_seconds(kind, decodes, context, rules, perf):
    at = float(context if rules.by_context else decodes)
    return interpolate(perf.token_x[kind], perf.token_s[kind], perf.token_n[kind], at)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def block_seconds(m, count, c, rules, perf, fleet):
    """Of the first ``count`` iterations: equal ones, or by contexts that grow by one token a request and iteration."""
    if not rules.by_context or c.prompts_in[m] > 0:
        return count * c.iteration_s[m]
    total = 0.0
    for i in range(count):
        total += token_seconds(fleet.kind[m], c.decodes_in[m], c.context[m] + i * c.decodes_in[m], rules, perf)
    return total


@njit(cache=True, _nrt=False)
@typing.no_type_check
def cut_block(m, now, c, rules, perf, fleet, heap):
    """End the block with the iteration that runs now; once a block, and never one with a prompt."""
    if c.cut[m] or c.prompts_in[m] > 0:
        return
    elapsed = now - c.since[m]
    if rules.by_context:
        count, total = 0, 0.0
        while count < c.block[m] and total <= elapsed:
            total += token_seconds(fleet.kind[m], c.decodes_in[m], c.context[m] + count * c.decodes_in[m], rules, perf)
            count += 1
    else:
        count = int(np.floor(elapsed / c.iteration_s[m])) + 1
    c.cut[m] = True
    if count < c.block[m]:
        c.block[m] = count
        c.version[m] += 1
        push(heap, c.since[m] + block_seconds(m, count, c, rules, perf, fleet), BLOCK_END, (c.version[m] << 24) | m)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def arrive(m, item, now, c, q, rules, perf, fleet, heap):
    enqueue(m, item, c, q)
    if item & 1 == 0:
        append_item(WAITING, m, item, c, q)
    if not q.present[item >> 1]:
        enter(m, item >> 1, c, q)
    if c.batch_size[m] == 0:
        if c.used[m] + q.bytes[item] <= fleet.capacity[m]:
            build(m, now, c, q, rules, perf, fleet, heap)
        return
    more = q.tokens[item]
    joins = c.batch_size[m] < rules.max_requests and c.batch_tokens[m] + more <= rules.max_tokens
    if not joins and item & 1 == 0 and c.decodes_in[m] > 0:
        joins = c.batch_tokens[m] - c.decodes_in[m] + more <= rules.max_tokens
    if joins:
        cut_block(m, now, c, rules, perf, fleet, heap)
