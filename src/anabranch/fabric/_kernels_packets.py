"""Compiled packet simulation: store and forward, FIFO output queues, integer time.

Packets wait in one queue, lane or list at a time, a link sends one packet at a time, a piece stands once in the ring of its first
link; so everything that waits is a linked list through the tables, and no event allocates memory.
"""

import typing

import numba
import numpy as np

from anabranch.fabric._kernels_lanes import NEVER, NEXT, advance, append, pop_event, push_event
from anabranch.fabric._kernels_planners import splitmix64

DEPART, ARRIVE, ACKNOWLEDGE, START, TIMEOUT = range(5)
SINGLE, ROUND_ROBIN, RANDOM, REPS = range(4)
CACHE = 8
"""Entropies that REPS remembers per piece."""

# Columns of the packet table after TIME, SERIAL, NEXT. _BYTES holds 2 x size + (1 if marked).
_HOP, _PIECE, _NUMBER, _SENT, _BYTES = range(3, 8)
# Columns of the link table after TIME, SERIAL, NEXT, which are those of the departure under way.
_BUSY, _HEAD, _TAIL, _WAITING, LONGEST = range(3, 8)
_FULL_TICKS, _LATENCY, _DEPART_LANE, _ARRIVE_LANE, _DEAD, _RING_HEAD, _RING_TAIL, SENT_BYTES = range(8, 16)
# Columns of the piece table.
_NEW, _DELIVERED, _HIGHEST, REORDERED, LOST, _PATH, _RESEND, _ON_ITS_WAY, _RING_NEXT, _IN_RING, _CHOICES = range(11)
_FRESH, _FILLED, _POSITION, _FROZEN = range(11, 15)
_PIECE_COLUMNS = 16


class Fabric(typing.NamedTuple):
    """Links and paths. Times in ticks."""

    ticks_per_byte: np.ndarray  # [links]
    full_ticks: np.ndarray  # [links]: of a full packet
    latency: np.ndarray  # [links]
    depart_lane: np.ndarray  # [links]: lane of full packets, or -1 for the heap
    arrive_lane: np.ndarray  # [links]
    dead: np.ndarray  # [links]
    path_start: np.ndarray  # [paths]: its first hop
    hops: np.ndarray  # links of the paths in travel order; the last of a path is stored as ~link
    hop_path: np.ndarray  # [hops]: the path
    path_return: np.ndarray  # [paths]: time that an acknowledgement takes
    return_lane: np.ndarray  # [paths]
    n_lanes: int
    n_depart_lanes: int
    n_arrive_lanes: int


class Load(typing.NamedTuple):
    """Pieces and what they wait for."""

    packets: np.ndarray  # [pieces]
    last_bytes: np.ndarray  # [pieces]: size of the last packet
    first_path: np.ndarray  # [pieces]: its paths are first_path[p] : first_path[p] + n_paths[p]
    n_paths: np.ndarray  # [pieces]
    path: np.ndarray  # [pieces]: the one it starts on, from 0, where it is not sprayed
    flow_of: np.ndarray  # [pieces]
    flow_indptr: np.ndarray  # [flows + 1]: its pieces
    start: np.ndarray  # [flows]
    order: np.ndarray  # flows without a gate by ascending start


class Rules(typing.NamedTuple):
    """How packets are sent."""

    mode: int
    packet_bytes: int
    seed: np.uint64
    queue_limit: int
    mark_above: int
    window: int
    timeout: int


@numba.njit(cache=True, inline="always")
@typing.no_type_check
def _draw(seed, piece, choice, n):
    """A number in [0, n) that depends on nothing but the arguments."""
    x = splitmix64(splitmix64(seed + np.uint64(piece)) + np.uint64(choice))
    return np.int64(((x >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@numba.njit(cache=True)
@typing.no_type_check
def _choose_path(p, piece, cache, n, mode, seed):
    """The path of the next packet of piece p, counted from its first."""
    piece[p, _CHOICES] += 1
    if mode == SINGLE or n == 1:
        return piece[p, _PATH]
    if mode == ROUND_ROBIN:
        return (_draw(seed, p, 0, n) + piece[p, _CHOICES] - 1) % n
    if mode == REPS:
        if piece[p, _FRESH] > 0:
            at = (piece[p, _POSITION] - piece[p, _FRESH]) % CACHE
            piece[p, _FRESH] -= 1
            return np.int64(cache[p, at])
        if piece[p, _FROZEN] > 0 and piece[p, _FILLED] > 0:
            at = piece[p, _FROZEN] % piece[p, _FILLED]
            piece[p, _FROZEN] += 1
            return np.int64(cache[p, at])
    return _draw(seed, p, piece[p, _CHOICES], n)


@numba.njit(cache=True, inline="always")
@typing.no_type_check
def _may_send(p, piece, packets, window):
    """Piece p has something to send and its window has room."""
    return (piece[p, _RESEND] >= 0 or piece[p, _NEW] < packets) and piece[p, _ON_ITS_WAY] < window


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
        if next_start < len(order) and start[order[next_start]] <= now:
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
            x = link[item, _BUSY] if kind == DEPART else item
            trace[events, 0] = now
            trace[events, 1] = kind
            trace[events, 2] = item if kind == DEPART else -1
            trace[events, 3] = item if kind == START else packet[x, _PIECE]
            trace[events, 4] = -1 if kind == START else packet[x, _NUMBER]
            trace[events, 5] = -1 if kind == START else packet[x, _HOP]
        events += 1

        at = -1  # the link that may begin to send
        coming = -1  # the packet that has come to it
        woken = 0  # pieces woken:woken_end may send (again)
        woken_end = 0
        dropped = False

        if kind == DEPART:
            at = item
            x = link[at, _BUSY]
            link[at, _BUSY] = -1
            serial += 1
            lane = link[at, _ARRIVE_LANE]
            if lane >= 0:
                append(lanes, lane, packet, x, now + link[at, _LATENCY], serial)
            else:
                n_heap = push_event(heap, n_heap, now + link[at, _LATENCY], serial, ARRIVE, x)

        elif kind == ARRIVE:
            p = packet[item, _PIECE]
            hop = packet[item, _HOP]
            if hops[hop] >= 0:
                packet[item, _HOP] = hop + 1
                at = hops[hop + 1]
                if at < 0:
                    at = ~at
                coming = item
                size = packet[item, _BYTES] >> 1
                dropped = link[at, _DEAD] != 0 or (link[at, _BUSY] >= 0 and link[at, _WAITING] + size > queue_limit)
            else:
                number = packet[item, _NUMBER]
                piece[p, _DELIVERED] += 1
                if number < piece[p, _HIGHEST]:
                    piece[p, REORDERED] += 1
                else:
                    piece[p, _HIGHEST] = number
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
                if piece[p, _DELIVERED] == packets[p]:
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
            p = packet[item, _PIECE]
            piece[p, _ON_ITS_WAY] -= 1
            if mode == REPS and packet[item, _BYTES] & 1 == 0:
                position = piece[p, _POSITION]
                cache[p, position] = hop_path[packet[item, _HOP]] - first_path[p]
                piece[p, _POSITION] = (position + 1) % CACHE
                piece[p, _FRESH] = min(piece[p, _FRESH] + 1, CACHE)
                piece[p, _FILLED] = min(piece[p, _FILLED] + 1, CACHE)
            packet[item, NEXT] = free
            free = item
            woken = p
            woken_end = p + 1

        elif kind == START:
            woken = flow_indptr[item]
            woken_end = flow_indptr[item + 1]

        else:  # TIMEOUT
            p = packet[item, _PIECE]
            piece[p, _ON_ITS_WAY] -= 1
            packet[item, NEXT] = piece[p, _RESEND]
            piece[p, _RESEND] = item
            path = hop_path[packet[item, _HOP]] - first_path[p]
            if mode == SINGLE and path == piece[p, _PATH] and n_paths[p] > 1:
                other = _draw(seed, p, piece[p, _CHOICES], n_paths[p] - 1)
                piece[p, _PATH] = other + 1 if other >= path else other
            if piece[p, _FROZEN] == 0:
                piece[p, _FROZEN] = 1
            woken = p
            woken_end = p + 1

        if dropped:
            piece[packet[coming, _PIECE], LOST] += 1
            serial += 1
            time = max(now, packet[coming, _SENT] + timeout)
            n_heap = push_event(heap, n_heap, time, serial, TIMEOUT, coming)
            continue
        if coming >= 0 and link[at, _BUSY] >= 0:
            size = packet[coming, _BYTES] >> 1
            link[at, _WAITING] += size
            if link[at, _WAITING] > link[at, LONGEST]:
                link[at, LONGEST] = link[at, _WAITING]
            if link[at, _WAITING] > mark_above:
                packet[coming, _BYTES] |= 1
            packet[coming, NEXT] = -1
            if link[at, _HEAD] < 0:
                link[at, _HEAD] = coming
            else:
                packet[link[at, _TAIL], NEXT] = coming
            link[at, _TAIL] = coming
            continue

        for p in range(woken - 1, woken_end):
            # Once for the link at hand, then once for each piece that was woken.
            if p >= woken:
                if piece[p, _IN_RING] != 0 or not _may_send(p, piece, packets[p], window):
                    continue
                hop = hops[path_start[first_path[p]]]
                at = hop if hop >= 0 else ~hop
                piece[p, _IN_RING] = 1
                piece[p, _RING_NEXT] = -1
                if link[at, _RING_HEAD] < 0:
                    link[at, _RING_HEAD] = p
                else:
                    piece[link[at, _RING_TAIL], _RING_NEXT] = p
                link[at, _RING_TAIL] = p
                coming = -1
            if at < 0 or link[at, _BUSY] >= 0:
                continue
            x = coming
            if x < 0 and link[at, _HEAD] >= 0:
                x = link[at, _HEAD]
                link[at, _HEAD] = packet[x, NEXT]
                link[at, _WAITING] -= packet[x, _BYTES] >> 1
            elif x < 0 and link[at, _RING_HEAD] >= 0:
                p = link[at, _RING_HEAD]
                link[at, _RING_HEAD] = piece[p, _RING_NEXT]
                if piece[p, _RESEND] >= 0:
                    x = piece[p, _RESEND]
                    piece[p, _RESEND] = packet[x, NEXT]
                    packet[x, _BYTES] &= ~1
                else:
                    x = free
                    free = packet[x, NEXT]
                    number = piece[p, _NEW]
                    piece[p, _NEW] = number + 1
                    packet[x, _PIECE] = p
                    packet[x, _NUMBER] = number
                    size = last_bytes[p] if number + 1 == packets[p] else packet_bytes
                    packet[x, _BYTES] = size << 1
                path = first_path[p] + _choose_path(p, piece, cache, n_paths[p], mode, seed)
                packet[x, _HOP] = path_start[path]
                packet[x, _SENT] = now
                piece[p, _ON_ITS_WAY] += 1
                if _may_send(p, piece, packets[p], window):
                    piece[p, _RING_NEXT] = -1
                    if link[at, _RING_HEAD] < 0:
                        link[at, _RING_HEAD] = p
                    else:
                        piece[link[at, _RING_TAIL], _RING_NEXT] = p
                    link[at, _RING_TAIL] = p
                else:
                    piece[p, _IN_RING] = 0
            if x < 0:
                continue
            size = packet[x, _BYTES] >> 1
            link[at, _BUSY] = x
            link[at, SENT_BYTES] += size
            packet_hops += 1
            serial += 1
            lane = link[at, _DEPART_LANE]
            if size == packet_bytes and lane >= 0:
                append(lanes, lane, link, at, now + link[at, _FULL_TICKS], serial)
            else:
                ticks = np.int64(np.rint(size * ticks_per_byte[at]))
                n_heap = push_event(heap, n_heap, now + ticks, serial, DEPART, at)
    _save(counters, free, n_heap, next_start, serial, events, packet_hops)
    return True


@numba.njit(cache=True)
@typing.no_type_check
def run_packets(fabric, load, rules, waits, trace):
    """Simulates until every packet has arrived. See ``simulate_packets`` for the model.

    ``trace`` [n, 6] receives (time, kind, link or -1, piece or flow, packet number, hop) of the first n events.

    Returns (arrival of each flow, piece table, link table, events, packets sent over all links).
    """
    n_links, n_pieces, n_flows = len(fabric.latency), len(load.packets), len(load.start)
    link = np.zeros((n_links, 16), np.int64)
    for i in range(n_links):
        link[i, _BUSY] = -1
        link[i, _HEAD] = -1
        link[i, _FULL_TICKS] = fabric.full_ticks[i]
        link[i, _LATENCY] = fabric.latency[i]
        link[i, _DEPART_LANE] = fabric.depart_lane[i]
        link[i, _ARRIVE_LANE] = fabric.arrive_lane[i]
        link[i, _DEAD] = fabric.dead[i]
        link[i, _RING_HEAD] = -1
    piece = np.zeros((n_pieces, _PIECE_COLUMNS), np.int64)
    for p in range(n_pieces):
        piece[p, _HIGHEST] = -1
        piece[p, _RESEND] = -1
        piece[p, _PATH] = load.path[p]
    cache = np.empty((n_pieces if rules.mode == REPS else 1, CACHE), np.int32)
    acknowledges = rules.mode == REPS or rules.window < NEVER
    lanes = np.full(
        (fabric.n_lanes if acknowledges else fabric.n_depart_lanes + fabric.n_arrive_lanes, 4), -1, np.int64
    )
    for k in range(len(lanes)):
        lanes[k, 0] = NEVER
    arrival = np.zeros(n_flows, np.int64)
    left = np.diff(load.flow_indptr)
    gate_count = waits.gate_count.copy()
    packet = np.empty((0, 8), np.int64)
    heap = np.empty((0, 4), np.int64)
    counters = np.array([-1, 0, 0, n_flows, 0, 0])
    while True:
        # The heap holds at most one event a packet, a link and a flow.
        n = len(packet)
        size = max(256, 2 * n)
        larger = np.empty((size, 8), np.int64)
        larger[:n] = packet
        for x in range(n, size):
            larger[x, NEXT] = x + 1
        larger[size - 1, NEXT] = counters[0]
        counters[0] = n
        packet = larger
        larger = np.empty((size + n_links + n_flows, 4), np.int64)
        larger[: len(heap)] = heap
        heap = larger
        if _simulate(
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
        ):
            return arrival, piece, link, counters[4], counters[5]
