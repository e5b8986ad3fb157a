"""Prompts in pieces: an iteration decodes every running answer and fills its tokens with pieces of prompts (Sarathi-Serve)."""

import typing

from numba import njit

from anabranch.serving._kernels_lists import WAITING, note_start, unlink_item


@njit(cache=True, _nrt=False)
@typing.no_type_check
def fill_chunks(m, now, c, q, rules, fleet):
    """The tokens of the next iteration: all decodes, decodes whose cache came, the prompt under way, then waiting ones.

    Nothing is preempted: a request that is decoded where its prompt was read has its whole cache reserved from the start.
    """
    batch, items, budget = c.batch[m], c.queue_items, rules.chunk_tokens
    size, tokens, came = c.batch_size[m], 0, 0
    c.counts[0] += 1
    stamp = c.counts[0]
    for k in range(size):
        tokens += batch[k] & 1
    start, end = c.queue_start[m], c.queue_start[m] + c.queue_size[m]
    for i in range(start, end):
        item = items[i]
        if item & 1 == 0:
            continue
        if size >= rules.max_requests or tokens >= budget or c.used[m] + q.bytes[item] > fleet.capacity[m]:
            break
        admit(m, item, size, stamp, now, c, q)
        size, tokens, came = size + 1, tokens + 1, came + 1
    for k in range(size):
        item = batch[k]
        if item & 1 == 0:
            r = item >> 1
            q.piece[r] = min(q.prompt[r] - q.read[r], budget - tokens)
            tokens += q.piece[r]
    while tokens < budget and size < rules.max_requests:
        item = c.head[WAITING, m]
        if item < 0 or c.used[m] + q.bytes[item] > fleet.capacity[m]:
            break
        unlink_item(m, item, c, q)
        admit(m, item, size, stamp, now, c, q)
        r = item >> 1
        q.piece[r] = min(q.prompt[r], budget - tokens)
        size, tokens, came = size + 1, tokens + q.piece[r], came + 1
    if came > 0:  # out of the queue
        write = start
        for i in range(start, end):
            if q.taken[items[i]] != stamp:
                items[write] = items[i]
                write += 1
        c.queue_size[m] = write - start
    c.kv_peak[m] = max(c.kv_peak[m], c.used[m])
    c.batch_size[m], c.batch_tokens[m] = size, tokens


@njit(cache=True, _nrt=False)
@typing.no_type_check
def admit(m, item, size, stamp, now, c, q):
    q.ran[item] = True
    q.taken[item] = stamp
    c.batch[m, size] = item
    c.used[m] += q.bytes[item]
    note_start(item, now, q)


@njit(cache=True, _nrt=False)
@typing.no_type_check
def end_piece(m, r, now, c, q, rules, fleet):
    """A piece was read; tells whether it was the last. Its cache follows those of earlier pieces, layer by layer.

    Layer l of L is ready at l / L of the iteration: f_l = max(f_(l-1), ready_l) + bytes / (L rate), in closed form.
    """
    q.read[r] += q.piece[r]
    if q.read[r] == q.prompt[r]:
        q.sent_s[r] -= now  # what is left of the others when the prompt ends
        return True
    target = q.target[r]
    if q.piece[r] > 0 and target != m and not rules.serialized:
        rate = min(fleet.link_bytes_per_s[m], fleet.link_bytes_per_s[target])
        bytes_s = q.piece[r] * rules.kv_bytes / rate
        ready = now - q.prompt_s[r] * (1 - 1 / rules.layers)
        q.sent_s[r] = max(max(q.sent_s[r], ready) + bytes_s, now + bytes_s / rules.layers)
    return False
