"""Caches on their way from the prompt machine to the token machine."""

import typing

from numba import njit

from anabranch.serving._kernels_events import push
from anabranch.serving._kernels_lists import ATTEMPT_BITS, NO_ROOM, RETRY, TRANSFER_END, UNDER_WAY


@njit(cache=True, _nrt=False)
@typing.no_type_check
def release(m, tokens, kv, c):
    c.used[m] -= tokens * kv
    c.scheduled[m] -= tokens * kv


@njit(cache=True, _nrt=False)
@typing.no_type_check
def begin_transfer(r, at_prompt_end, now, c, q, rules, fleet, heap):
    """Reserve the cache at its destination, or try again; the end is known at once.

    Layers go ahead of the prompt's end only to the destination that is known then and has room: later, all of them go.
    """
    kv, source, target = rules.kv_bytes, q.source[r], q.target[r]
    if c.used[target] + (q.prompt[r] + 1) * kv > fleet.capacity[target]:
        c.counts[3] += 1
        c.counts[4] += 1
        q.sending[r] = NO_ROOM
        push(heap, now + rules.retry_s, RETRY, q.attempt[r] << ATTEMPT_BITS | r)
        return
    q.sending[r] = UNDER_WAY
    c.used[target] += (q.prompt[r] + 1) * kv
    c.kv_peak[target] = max(c.kv_peak[target], c.used[target])
    rate = min(fleet.link_bytes_per_s[source], fleet.link_bytes_per_s[target])
    whole = q.prompt[r] * kv / rate
    end = now + whole
    if at_prompt_end and not rules.serialized and q.prompt[r] >= rules.serial_below:
        # Layer l is ready at l / L of the prompt's time; e_l = max(e_(l-1), ready_l) + bytes / (L rate), in closed form: the
        # last layer is late by its own share, or all are if the link is slower than the prompt.
        part = whole / rules.layers
        if rules.chunk_tokens > 0:  # those of earlier pieces are on their way or there
            last, ready = q.piece[r] * kv / rate, -q.prompt_s[r] * (1 - 1 / rules.layers)
            end = now + max(last / rules.layers, max(q.sent_s[r], ready) + last)
        else:
            ready = q.prompt_s[r] * (1 - 1 / rules.layers)
            if q.sent_s[r] > 0:  # what was computed before went to a machine that failed
                ready = min(ready, now - q.sent_s[r])
            end = now + max(part, whole - ready)
    if not rules.own_links:  # one after another on either machine's link, in the order of the prompts' ends
        free = max(c.link_free[source], c.link_free[target])
        end = max(end, free + whole)
        c.link_free[source] = c.link_free[target] = end
    push(heap, end, TRANSFER_END, q.attempt[r] << ATTEMPT_BITS | r)
