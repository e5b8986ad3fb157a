"""Compiled event loop of the fluid simulation: rates are max-min fair between events, an event is an end or a start."""

import typing

import numba
import numpy as np

from anabranch.fabric._kernels_max_min import TIE, choose, choose_stopped_by, repair
from anabranch.fabric._kernels_rates import (
    activate,
    deactivate,
    make_network,
    make_rates,
    make_scratch,
    place,
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


@numba.njit(cache=True, _nrt=False)
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


class Pieces(typing.NamedTuple):
    """What is sent: pieces of flow f are ``pieces[piece_indptr[f]:piece_indptr[f + 1]]``."""

    size_bytes: np.ndarray  # [pieces]
    latency_s: np.ndarray  # [pieces]
    flow_of: np.ndarray  # [pieces]
    piece_indptr: np.ndarray  # [flows + 1]
    pieces: np.ndarray  # [pieces]
    start_s: np.ndarray  # [flows]
    order: np.ndarray  # flows without a gate by ascending start


class Progress(typing.NamedTuple):
    """What changes, but for the rates. Two heaps: pieces by their end, and flows whose gate has opened by their start."""

    remaining: np.ndarray  # [pieces]: bytes left at ``since``
    since: np.ndarray  # [pieces]
    left: np.ndarray  # [flows]: pieces that have not ended
    arrival_s: np.ndarray  # [flows]
    gate_s: np.ndarray  # [gates]
    gate_count: np.ndarray  # [gates]
    ended: np.ndarray  # [pieces]: scratch
    end_key: np.ndarray  # [pieces]
    end_piece: np.ndarray  # [pieces]
    end_at: np.ndarray  # [pieces]
    start_key: np.ndarray  # [flows]
    start_flow: np.ndarray  # [flows]
    start_at: np.ndarray  # [flows]


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def _simulate(what, waits, progress, network, rates, scratch):
    """Runs from event to event until every piece has ended. Returns (events, rates that changed, summed over events)."""
    _, latency_s, flow_of, piece_indptr, pieces, start_s, order = what
    remaining, since, left, arrival_s, gate_s, count, ended = (
        progress.remaining,
        progress.since,
        progress.left,
        progress.arrival_s,
        progress.gate_s,
        progress.gate_count,
        progress.ended,
    )
    end_key, end_piece, end_at = progress.end_key, progress.end_piece, progress.end_at
    start_key, start_flow, start_at = progress.start_key, progress.start_flow, progress.start_at
    indptr, links = network.indptr, network.links
    chosen, state, old_rate = scratch.chosen, scratch.state, scratch.old_rate
    rate, bottleneck, n_stopped = rates.rate, rates.bottleneck, rates.n_stopped
    member, member_count, member_start = rates.piece, rates.n_members, network.start
    feed_indptr, feed = waits.feed_indptr, waits.feed
    queued = n_starts = next_start = n_active = events = work = np.int64(0)
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
        n_chosen = np.int64(0)
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
    return events, work


def run_fluid(
    capacity: np.ndarray, indptr: np.ndarray, links: np.ndarray, weight: np.ndarray, what: Pieces, waits: Waits
) -> tuple[np.ndarray, int, int]:
    """Simulates until every piece has ended.

    Returns (arrival of the last byte of each flow, events, rates that changed, summed over events).
    """
    n_pieces, n_flows = len(indptr) - 1, len(what.start_s)
    network = make_network(capacity, indptr, links, weight)
    progress = Progress(
        what.size_bytes.copy(),
        np.zeros(n_pieces),
        np.diff(what.piece_indptr),
        np.zeros(n_flows),
        np.zeros(len(waits.gate_count)),
        waits.gate_count.copy(),
        np.empty(n_pieces, np.int32),
        np.empty(n_pieces),
        np.empty(n_pieces, np.int32),
        np.full(n_pieces, -1, np.int32),
        np.empty(n_flows),
        np.empty(n_flows, np.int32),
        np.full(n_flows, -1, np.int32),
    )
    events, work = _simulate(what, waits, progress, network, make_rates(network), make_scratch(network))
    return progress.arrival_s, events, work
