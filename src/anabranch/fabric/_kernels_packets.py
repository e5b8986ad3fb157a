"""Compiled packet simulation: store and forward, FIFO output queues, integer time.

Packets wait in one queue, lane or list at a time, a link sends one packet at a time, a piece stands once in the ring of its
first link; so everything that waits is a linked list through the tables, and no event allocates memory.
"""

import typing

import numba
import numpy as np

from anabranch.fabric._kernels_fluid import Waits
from anabranch.fabric._kernels_lanes import NEVER, NEXT, advance, append, pop_event, push_event
from anabranch.fabric._kernels_tables import (
    ACKNOWLEDGE,
    ARRIVE,
    ARRIVE_LANE,
    BUSY,
    BYTES,
    CACHE,
    CHOICES,
    DEAD,
    DELIVERED,
    DEPART,
    DEPART_LANE,
    DEPARTURES_FIRST,
    FILLED,
    FRESH,
    FROZEN,
    FULL_TICKS,
    HEAD,
    HIGHEST,
    HOP,
    IN_RING,
    LATENCY,
    LONGEST,
    LOST,
    NEW,
    NUMBER,
    ON_ITS_WAY,
    PATH,
    PIECE,
    PIECE_COLUMNS,
    POSITION,
    REORDERED,
    REPS,
    RESEND,
    RING_HEAD,
    RING_NEXT,
    RING_TAIL,
    SENT,
    SENT_BYTES,
    SINGLE,
    START,
    TAIL,
    TIMEOUT,
    WAITING,
    Fabric,
    Load,
    Rules,
    choose_path,
    draw,
    may_send,
)


@numba.njit(cache=True)
@typing.no_type_check
def _save(counters, free, n_heap, next_start, serial, events, packet_hops):
    """Keeps the state of the loop."""
    counters[0] = free
    counters[1] = n_heap
    counters[2] = next_start
    counters[3] = serial
    counters[4] = events
    counters[5] = packet_hops


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def _simulate(
    fabric, load, rules, waits, packet, link, piece, cache, lanes, heap, arrival, left, gate_count, counters, trace
):
    """Simulates until every packet has arrived (True), or until the pool of packets must grow (False)."""
    # Fields are named once, here: numba would count references each time.
    ticks_per_byte, path_start, hops, hop_path = fabric.ticks_per_byte, fabric.path_start, fabric.hops, fabric.hop_path
    path_return, return_lane = fabric.path_return, fabric.return_lane
    first_arrive = fabric.n_depart_lanes
    first_return = first_arrive + fabric.n_arrive_lanes
    packets, last_bytes, first_path, n_paths = load.packets, load.last_bytes, load.first_path, load.n_paths
    flow_of, flow_indptr, start, order = load.flow_of, load.flow_indptr, load.start, load.order
    mode, packet_bytes, seed, queue_limit, mark_above, window, timeout = rules
    feed_indptr, feed, gate_next = waits.feed_indptr, waits.feed, waits.gate_next
    waiter_indptr, waiters = waits.waiter_indptr, waits.waiters
    acknowledges = mode == REPS or window < NEVER
    n_lanes = len(lanes)
    free, n_heap, next_start = counters[0], counters[1], counters[2]
    serial, events, packet_hops = counters[3], counters[4], counters[5]
    while True:
        if free < 0 or packet[free, NEXT] < 0:
            # An event takes at most one packet from the pool.
            _save(counters, free, n_heap, next_start, serial, events, packet_hops)
            return False
        now = NEVER
        first = NEVER
        source = -1
        for k in range(n_lanes):
            if lanes[k, 0] < now or (lanes[k, 0] == now and lanes[k, 1] < first):
                now = lanes[k, 0]
                first = lanes[k, 1]
                source = k
        if n_heap > 0 and (heap[0, 0] < now or (heap[0, 0] == now and heap[0, 1] < first)):
            now = heap[0, 0]
            source = n_lanes
        if n_heap > 0 and source == n_lanes:
            first = heap[0, 1]
        if next_start < len(order) and (
            start[order[next_start]] < now or (start[order[next_start]] == now and first >= 0)
        ):
            now = start[order[next_start]]
            source = n_lanes + 1
        if now == NEVER:
            break
        if source < n_lanes:
            item = lanes[source, 2]
            if source < first_arrive:
                kind = DEPART
                advance(lanes, source, link)
            else:
                kind = ARRIVE if source < first_return else ACKNOWLEDGE
                advance(lanes, source, packet)
        elif source == n_lanes:
            kind = heap[0, 2]
            item = heap[0, 3]
            n_heap = pop_event(heap, n_heap)
        else:
            kind = START
            item = order[next_start]
            next_start += 1
        if events < len(trace):
            x = link[item, BUSY] if kind == DEPART else item
            trace[events, 0] = now
            trace[events, 1] = kind
            trace[events, 2] = item if kind == DEPART else -1
            trace[events, 3] = item if kind == START else packet[x, PIECE]
            trace[events, 4] = -1 if kind == START else packet[x, NUMBER]
            trace[events, 5] = -1 if kind == START else packet[x, HOP]
        events += 1

        at = -1  # the link that may begin to send
        coming = -1  # the packet that has come to it
        woken = 0  # pieces woken:woken_end may send (again)
        woken_end = 0
        dropped = False

        if kind == DEPART:
            at = item
            x = link[at, BUSY]
            link[at, BUSY] = -1
            serial += 1
            lane = link[at, ARRIVE_LANE]
            if lane >= 0:
                append(lanes, lane, packet, x, now + link[at, LATENCY], serial)
            else:
                n_heap = push_event(heap, n_heap, now + link[at, LATENCY], serial, ARRIVE, x)

        elif kind == ARRIVE:
            p = packet[item, PIECE]
            hop = packet[item, HOP]
            if hops[hop] >= 0:
                packet[item, HOP] = hop + 1
                at = hops[hop + 1]
                if at < 0:
                    at = ~at
                coming = item
                size = packet[item, BYTES] >> 1
                dropped = link[at, DEAD] != 0 or (link[at, BUSY] >= 0 and link[at, WAITING] + size > queue_limit)
            else:
                number = packet[item, NUMBER]
                piece[p, DELIVERED] += 1
                if number < piece[p, HIGHEST]:
                    piece[p, REORDERED] += 1
                else:
                    piece[p, HIGHEST] = number
                if acknowledges:
                    path = hop_path[hop]
                    lane = return_lane[path]
                    serial += 1
                    if lane >= 0:
                        append(lanes, lane, packet, item, now + path_return[path], serial)
                    else:
                        n_heap = push_event(heap, n_heap, now + path_return[path], serial, ACKNOWLEDGE, item)
                else:
                    packet[item, NEXT] = free
                    free = item
                if piece[p, DELIVERED] == packets[p]:
                    flow = flow_of[p]
                    left[flow] -= 1
                    if left[flow] == 0:
                        arrival[flow] = now
                        for j in range(feed_indptr[flow], feed_indptr[flow + 1]):
                            gate = feed[j]
                            while gate >= 0:
                                gate_count[gate] -= 1
                                if gate_count[gate] > 0:
                                    break
                                for i in range(waiter_indptr[gate], waiter_indptr[gate + 1]):
                                    waiter = waiters[i]
                                    serial += 1
                                    time = max(now, start[waiter])
                                    n_heap = push_event(heap, n_heap, time, serial, START, waiter)
                                gate = gate_next[gate]

        elif kind == ACKNOWLEDGE:
            p = packet[item, PIECE]
            piece[p, ON_ITS_WAY] -= 1
            if mode == REPS and packet[item, BYTES] & 1 == 0:
                position = piece[p, POSITION]
                cache[p, position] = hop_path[packet[item, HOP]] - first_path[p]
                piece[p, POSITION] = (position + 1) % CACHE
                piece[p, FRESH] = min(piece[p, FRESH] + 1, CACHE)
                piece[p, FILLED] = min(piece[p, FILLED] + 1, CACHE)
            packet[item, NEXT] = free
            free = item
            woken = p
            woken_end = p + 1

        elif kind == START:
            woken = flow_indptr[item]
            woken_end = flow_indptr[item + 1]

        else:  # TIMEOUT
            p = packet[item, PIECE]
            piece[p, ON_ITS_WAY] -= 1
            packet[item, NEXT] = piece[p, RESEND]
            piece[p, RESEND] = item
            path = hop_path[packet[item, HOP]] - first_path[p]
            if mode == SINGLE and path == piece[p, PATH] and n_paths[p] > 1:
                other = draw(seed, p, piece[p, CHOICES], n_paths[p] - 1)
                piece[p, PATH] = other + 1 if other >= path else other
            if piece[p, FROZEN] == 0:
                piece[p, FROZEN] = 1
            woken = p
            woken_end = p + 1

        if dropped:
            piece[packet[coming, PIECE], LOST] += 1
            serial += 1
            time = max(now, packet[coming, SENT] + timeout)
            n_heap = push_event(heap, n_heap, time, serial, TIMEOUT, coming)
            continue
        if coming >= 0 and link[at, BUSY] >= 0:
            size = packet[coming, BYTES] >> 1
            link[at, WAITING] += size
            if link[at, WAITING] > link[at, LONGEST]:
                link[at, LONGEST] = link[at, WAITING]
            if link[at, WAITING] > mark_above:
                packet[coming, BYTES] |= 1
            packet[coming, NEXT] = -1
            if link[at, HEAD] < 0:
                link[at, HEAD] = coming
            else:
                packet[link[at, TAIL], NEXT] = coming
            link[at, TAIL] = coming
            continue

        for p in range(woken - 1, woken_end):
            # Once for the link at hand, then once for each piece that was woken.
            if p >= woken:
                if piece[p, IN_RING] != 0 or not may_send(p, piece, packets[p], window):
                    continue
                hop = hops[path_start[first_path[p]]]
                at = hop if hop >= 0 else ~hop
                piece[p, IN_RING] = 1
                piece[p, RING_NEXT] = -1
                if link[at, RING_HEAD] < 0:
                    link[at, RING_HEAD] = p
                else:
                    piece[link[at, RING_TAIL], RING_NEXT] = p
                link[at, RING_TAIL] = p
                coming = -1
            if at < 0 or link[at, BUSY] >= 0:
                continue
            x = coming
            if x < 0 and link[at, HEAD] >= 0:
                x = link[at, HEAD]
                link[at, HEAD] = packet[x, NEXT]
                link[at, WAITING] -= packet[x, BYTES] >> 1
            elif x < 0 and link[at, RING_HEAD] >= 0:
                p = link[at, RING_HEAD]
                link[at, RING_HEAD] = piece[p, RING_NEXT]
                if piece[p, RESEND] >= 0:
                    x = piece[p, RESEND]
                    piece[p, RESEND] = packet[x, NEXT]
                    packet[x, BYTES] &= ~1
                else:
                    x = free
                    free = packet[x, NEXT]
                    number = piece[p, NEW]
                    piece[p, NEW] = number + 1
                    packet[x, PIECE] = p
                    packet[x, NUMBER] = number
                    size = last_bytes[p] if number + 1 == packets[p] else packet_bytes
                    packet[x, BYTES] = size << 1
                path = first_path[p] + choose_path(p, piece, cache, n_paths[p], mode, seed)
                packet[x, HOP] = path_start[path]
                packet[x, SENT] = now
                piece[p, ON_ITS_WAY] += 1
                if may_send(p, piece, packets[p], window):
                    piece[p, RING_NEXT] = -1
                    if link[at, RING_HEAD] < 0:
                        link[at, RING_HEAD] = p
                    else:
                        piece[link[at, RING_TAIL], RING_NEXT] = p
                    link[at, RING_TAIL] = p
                else:
                    piece[p, IN_RING] = 0
            if x < 0:
                continue
            size = packet[x, BYTES] >> 1
            link[at, BUSY] = x
            link[at, SENT_BYTES] += size
            packet_hops += 1
            serial += 1
            lane = link[at, DEPART_LANE]
            if size == packet_bytes and lane >= 0:
                append(lanes, lane, link, at, now + link[at, FULL_TICKS], serial - DEPARTURES_FIRST)
            else:
                ticks = np.int64(np.rint(size * ticks_per_byte[at]))
                n_heap = push_event(heap, n_heap, now + ticks, serial - DEPARTURES_FIRST, DEPART, at)
    _save(counters, free, n_heap, next_start, serial, events, packet_hops)
    return True


def run_packets(
    fabric: Fabric, load: Load, rules: Rules, waits: Waits, trace: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Simulates until every packet has arrived. See ``simulate_packets`` for the model.

    ``trace`` [n, 6] receives (time, kind, link or -1, piece or flow, packet number, hop) of the first n events.

    Returns (arrival of each flow, piece table, link table, events, packets sent over all links).
    """
    n_links, n_pieces, n_flows = len(fabric.latency), len(load.packets), len(load.start)
    link = np.zeros((n_links, 16), dtype=np.int64)
    link[:, [BUSY, HEAD, RING_HEAD]] = -1
    link[:, FULL_TICKS] = fabric.full_ticks
    link[:, LATENCY] = fabric.latency
    link[:, DEPART_LANE] = fabric.depart_lane
    link[:, ARRIVE_LANE] = fabric.arrive_lane
    link[:, DEAD] = fabric.dead
    piece = np.zeros((n_pieces, PIECE_COLUMNS), dtype=np.int64)
    piece[:, [HIGHEST, RESEND]] = -1
    piece[:, PATH] = load.path
    cache = np.zeros((n_pieces if rules.mode == REPS else 1, CACHE), dtype=np.int32)
    acknowledges = rules.mode == REPS or rules.window < NEVER
    n_lanes = fabric.n_lanes if acknowledges else fabric.n_depart_lanes + fabric.n_arrive_lanes
    lanes = np.full((n_lanes, 4), -1, dtype=np.int64)
    lanes[:, 0] = NEVER
    arrival, left, gate_count = np.zeros(n_flows, dtype=np.int64), np.diff(load.flow_indptr), waits.gate_count.copy()
    packet, heap = np.empty((0, 8), dtype=np.int64), np.empty((0, 4), dtype=np.int64)
    counters = np.array([-1, 0, 0, n_flows, 0, 0])
    done = False
    while not done:
        # The pool of packets doubles, its new rows first in the list of free ones. The heap holds at most one event for each
        # packet, link and flow.
        n = len(packet)
        size = max(256, 2 * n)
        packet = np.concatenate([packet, np.zeros((size - n, 8), dtype=np.int64)])
        packet[n:, NEXT] = np.arange(n + 1, size + 1)
        packet[-1, NEXT] = counters[0]
        counters[0] = n
        heap = np.concatenate([heap, np.empty((size + n_links + n_flows - len(heap), 4), dtype=np.int64)])
        done = _simulate(
            fabric,
            load,
            rules,
            waits,
            packet,
            link,
            piece,
            cache,
            lanes,
            heap,
            arrival,
            left,
            gate_count,
            counters,
            trace,
        )
    return arrival, piece, link, int(counters[4]), int(counters[5])
