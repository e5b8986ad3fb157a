"""Batches of a machine, and the blocks of iterations that they run."""

import typing

import numpy as np
from numba import njit

from anabranch.serving._kernels_chunks import fill_chunks
from anabranch.serving._kernels_events import interpolate, push
from anabranch.serving._kernels_lists import (
    BLOCK_END,
    BLOCKED,
    WAITING,
    append_item,
    enqueue,
    enter,
    note_start,
    unlink_item,
)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def build(m, now, c, q, rules, perf, fleet, heap):
    """The next batch, and the block of iterations that it runs until something ends."""
    if rules.chunk_tokens > 0:
        fill_chunks(m, now, c, q, rules, fleet)
        if c.batch_size[m] > 0:
            begin_block(m, now, c, q, rules, perf, fleet, heap)
        return
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
                note_start(item, now, q)
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
    kind, prompt_tokens, prompts, decodes, least, context = fleet.kind[m], 0, 0, 0, 1 << 60, 0
    for k in range(c.batch_size[m]):
        item = batch[k]
        r = item >> 1
        if item & 1 == 0:
            piece = q.piece[r] if rules.chunk_tokens > 0 else prompt[r]
            prompt_tokens += piece
            prompts += piece > 0  # a prompt may wait for room among the decodes
        else:
            decodes += 1
            least = min(least, remaining[r])
            context += prompt[r] + output[r] - remaining[r]
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
def begun_iterations(m, now, c, rules, perf, fleet):
    """How many iterations of a block of decodes have begun, the one that runs included."""
    elapsed = now - c.since[m]
    if not rules.by_context:
        return int(np.floor(elapsed / c.iteration_s[m])) + 1
    count, total = 0, 0.0
    while count < c.block[m] and total <= elapsed:
        total += token_seconds(fleet.kind[m], c.decodes_in[m], c.context[m] + count * c.decodes_in[m], rules, perf)
        count += 1
    return count


@njit(cache=True, _nrt=False)
@typing.no_type_check
def charge(m, now, count, c, perf, fleet):
    """Time and energy of a block that ends now, after ``count`` iterations."""
    spent = now - c.since[m]
    c.busy_s[m] += spent
    c.iterations[m] += count
    tokens = c.batch_tokens[m] if c.prompts_in[m] > 0 else 0
    share = perf.decode_power[fleet.kind[m]]
    if tokens > 0:
        kind = fleet.kind[m]
        share = interpolate(perf.power_x[kind], perf.power[kind], perf.power_n[kind], float(tokens))
    c.energy_j[m] += spent * share * fleet.tdp_w[m]


@njit(cache=True, _nrt=False)
@typing.no_type_check
def cut_block(m, now, c, rules, perf, fleet, heap):
    """End the block with the iteration that runs now; once a block, and never one with a prompt."""
    if c.cut[m] or c.prompts_in[m] > 0:
        return
    count = begun_iterations(m, now, c, rules, perf, fleet)
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
    if rules.chunk_tokens > 0:
        if c.batch_size[m] < rules.max_requests and c.batch_tokens[m] < rules.chunk_tokens:
            cut_block(m, now, c, rules, perf, fleet, heap)
        return
    more = q.tokens[item]
    joins = c.batch_size[m] < rules.max_requests and c.batch_tokens[m] + more <= rules.max_tokens
    if not joins and item & 1 == 0 and c.decodes_in[m] > 0:
        joins = c.batch_tokens[m] - c.decodes_in[m] + more <= rules.max_tokens
    if joins:
        cut_block(m, now, c, rules, perf, fleet, heap)
