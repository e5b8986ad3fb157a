"""Which machines a request goes to, and machines that change pools."""

import typing

from numba import njit

from anabranch.serving._kernels_cluster import arrive
from anabranch.serving._kernels_lists import MIXED, PROMPT, TOKEN


@njit(cache=True, _nrt=False)
@typing.no_type_check
def take_out(m, c):
    """Of its pool's list."""
    pool = c.pool[m]
    size, found = c.pool_sizes[pool], False
    for i in range(size):
        if found:
            c.pool_lists[pool, i - 1] = c.pool_lists[pool, i]
        elif c.pool_lists[pool, i] == m:
            found = True
    c.pool_sizes[pool] -= 1
    c.pool[m] = -1


@njit(cache=True, _nrt=False)
@typing.no_type_check
def move(m, to, c):
    """From its pool to the end of another one's list."""
    take_out(m, c)
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
def token_machine(whole, c, fleet):
    """Where a cache of ``whole`` bytes fits; -1 without any."""
    for pool in (TOKEN, MIXED):
        m = least(c.scheduled, pool, c)
        if m >= 0 and c.scheduled[m] + whole < fleet.capacity[m]:
            return m
    return -1


@njit(cache=True, _nrt=False)
@typing.no_type_check
def place(r, c, q, rules, fleet):
    """Choose the machines of both phases and book them; tells whether there are any."""
    kv, prompt = rules.kv_bytes, q.prompt[r]
    whole = (prompt + 1) * kv + (q.output[r] - 1) * kv
    source = target = -1
    q.source[r] = q.target[r] = -1
    if rules.shortest_queue:
        source = target = least(c.pending, MIXED, c)
    else:
        for pool in (PROMPT, MIXED):
            m = least(c.pending, pool, c)
            if m >= 0 and not (c.queue_size[m] > 0 and c.pending[m] + prompt > rules.pending_limit):
                source = m
                break
        target = token_machine(whole, c, fleet)
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
    if source < 0:
        return False
    q.source[r], q.target[r] = source, target
    c.pending[source] += prompt
    c.pending[target] += 1
    if source != target:
        c.scheduled[source] += (prompt + 1) * kv
    c.scheduled[target] += whole
    if rules.chunk_tokens > 0:  # nothing is preempted, so that a request takes all that it will need at once
        q.bytes[2 * r] = whole if source == target else (prompt + 1) * kv
        q.bytes[2 * r + 1] = 0 if source == target else (q.output[r] - 1) * kv
    return True


@njit(cache=True, _nrt=False)
@typing.no_type_check
def send_in(r, now, c, q, rules, perf, fleet, heap):
    """A request comes, or comes again."""
    if not place(r, c, q, rules, fleet):
        return
    source = q.source[r]
    arrive(source, 2 * r, now, c, q, rules, perf, fleet, heap)
    if q.target[r] == source and q.output[r] > 1 and rules.chunk_tokens == 0:
        arrive(source, 2 * r + 1, now, c, q, rules, perf, fleet, heap)
