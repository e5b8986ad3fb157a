"""Compiled event loop of the fluid simulation: rates are max-min fair between events, an event is an end or a start."""

import typing

import numba
import numpy as np

from anabranch.fabric._kernels_max_min import (
    TIE,
    activate,
    choose,
    choose_stopped_by,
    deactivate,
    make_network,
    make_rates,
    make_scratch,
    place,
    repair,
    take_first,
)


class Waits(typing.NamedTuple):
    """What must have ended before a flow may start.

    A flow waits for one *gate* (or none, -1). A gate opens when ``gate_count`` things have ended: the flows that feed it, and
    the gate before it, if any; a gate feeds the gate ``gate_next``, if any.
    """

    wait: np.ndarray  # [flows]
    feed_indptr: np.ndarray  # [flows + 1]
    feed: np.ndarray  # gates fed by each flow
    gate_count: np.ndarray  # [gates]
    gate_next: np.ndarray  # [gates]
    waiter_indptr: np.ndarray  # [gates + 1]
    waiters: np.ndarray  # flows that wait for each gate


@numba.njit(cache=True)
@typing.no_type_check
def _open_gate(gate, waits, count, gate_s, start_s, key, item, position, size):
    """One thing that the gate waits for has ended; if it was the last, lets its flows start. Returns the heap size."""
    while gate >= 0:
        count[gate] -= 1
        if count[gate] > 0:
            break
        for i in range(waits.waiter_indptr[gate], waits.waiter_indptr[gate + 1]):
            flow = waits.waiters[i]
            size += 1
            place(key, item, position, size, size - 1, max(gate_s[gate], start_s[flow]), flow)
        following = waits.gate_next[gate]
        if following >= 0:
            gate_s[following] = max(gate_s[following], gate_s[gate])
        gate = following
    return size


@numba.njit(cache=True)
@typing.no_type_check
def run_fluid(
    capacity, indptr, links, weight, size_bytes, latency_s, piece_indptr, pieces, flow_of, start_s, order, waits
):
    """Simulates until every piece has ended.

    Pieces of flow f are ``pieces[piece_indptr[f]:piece_indptr[f + 1]]``; ``order`` lists the flows without a gate by ascending
    start. Returns (arrival of the last byte of each flow, events, rates that changed, summed over events).
    """
    n_pieces, n_flows = len(indptr) - 1, len(start_s)
    network = make_network(capacity, indptr, links, weight)
    rates = make_rates(network)
    scratch = make_scratch(network)
    # Two heaps: pieces by their end, and flows whose gate has opened by their start.
    end_key, end_piece, end_at = np.empty(n_pieces), np.empty(n_pieces, np.int32), np.full(n_pieces, -1, np.int32)
    start_key, start_flow, start_at = np.empty(n_flows), np.empty(n_flows, np.int32), np.full(n_flows, -1, np.int32)
    queued = 0
    remaining = size_bytes.copy()
    since = np.zeros(n_pieces)
    left = np.diff(piece_indptr)
    arrival_s = np.zeros(n_flows)
    gate_s = np.zeros(len(waits.gate_count))
    count = waits.gate_count.copy()
    n_starts = 0
    # Fields are named once: numba would count a reference at each use.
    chosen, state, old_rate = scratch.chosen, scratch.state, scratch.old_rate
    rate, bottleneck, n_stopped = rates.rate, rates.bottleneck, rates.n_stopped
    member, member_count, member_start = rates.piece, rates.count, network.start
    feed_indptr, feed = waits.feed_indptr, waits.feed
    ended = np.empty(n_pieces, np.int32)
    next_start = 0
    n_active = 0
    events = 0
    work = 0
    while True:
        now = np.inf
        if queued > 0:
            now = end_key[0]
        if next_start < len(order):
            now = min(now, start_s[order[next_start]])
        if n_starts > 0:
            now = min(now, start_key[0])
        if now == np.inf:
            break
        events += 1
        limit = now * (1.0 + TIE)

        gone = 0
        while queued > 0 and end_key[0] <= limit:
            ended[gone] = end_piece[0]
            gone += 1
            queued = take_first(end_key, end_piece, end_at, queued)
        for i in range(gone):
            n_active = deactivate(ended[i], n_active, network, rates)
        n_chosen = 0
        for i in range(gone):
            p = ended[i]
            for t in range(indptr[p], indptr[p + 1]):
                link = links[t]
                begin = member_start[link]
                n_chosen = choose_stopped_by(
                    link,
                    begin,
                    begin + member_count[link],
                    n_chosen,
                    member,
                    rate,
                    bottleneck,
                    n_stopped,
                    chosen,
                    state,
                    old_rate,
                )
            flow = flow_of[p]
            arrival_s[flow] = max(arrival_s[flow], now + latency_s[p])
            left[flow] -= 1
            if left[flow] == 0:
                for j in range(feed_indptr[flow], feed_indptr[flow + 1]):
                    gate = feed[j]
                    gate_s[gate] = max(gate_s[gate], arrival_s[flow])
                    n_starts = _open_gate(
                        gate, waits, count, gate_s, start_s, start_key, start_flow, start_at, n_starts
                    )

        while True:
            if next_start < len(order) and start_s[order[next_start]] <= limit:
                flow = order[next_start]
                next_start += 1
            elif n_starts > 0 and start_key[0] <= limit:
                flow = start_flow[0]
                n_starts = take_first(start_key, start_flow, start_at, n_starts)
            else:
                break
            for i in range(piece_indptr[flow], piece_indptr[flow + 1]):
                p = pieces[i]
                n_active = activate(p, n_active, network, rates)
                n_chosen = choose(p, n_chosen, rate, bottleneck, n_stopped, chosen, state, old_rate)
                since[p] = now
        n_changed = repair(n_chosen, n_active, network, rates, scratch)
        work += n_changed
        for i in range(n_changed):
            p = chosen[i]
            remaining[p] -= old_rate[p] * (now - since[p])
            since[p] = now
            end = now + max(remaining[p], 0.0) / rate[p]
            if end_at[p] < 0:
                queued += 1
                place(end_key, end_piece, end_at, queued, queued - 1, end, p)
            else:
                place(end_key, end_piece, end_at, queued, end_at[p], end, p)
    return arrival_s, events, work
