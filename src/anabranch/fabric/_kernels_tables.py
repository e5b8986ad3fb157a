"""Tables of the packet simulation: their columns, what it is given, and how a piece chooses its next path."""

import typing

import numba
import numpy as np

from anabranch.fabric._kernels_planners import splitmix64

DEPART, ARRIVE, ACKNOWLEDGE, START, TIMEOUT = range(5)
SINGLE, ROUND_ROBIN, RANDOM, REPS = range(4)
DEPARTURES_FIRST = 1 << 62
"""Taken off the serial number of departures: a link that is free at some time is free for what comes at that time."""
CACHE = 8
"""Entropies that REPS remembers per piece."""

# Columns of the packet table after TIME, SERIAL, NEXT. BYTES holds 2 x size + (1 if marked).
HOP, PIECE, NUMBER, SENT, BYTES = range(3, 8)
# Columns of the link table after TIME, SERIAL, NEXT, which are those of the departure under way.
BUSY, HEAD, TAIL, WAITING, LONGEST = range(3, 8)
FULL_TICKS, LATENCY, DEPART_LANE, ARRIVE_LANE, DEAD, RING_HEAD, RING_TAIL, SENT_BYTES = range(8, 16)
# Columns of the piece table.
NEW, DELIVERED, HIGHEST, REORDERED, LOST, PATH, RESEND, ON_ITS_WAY, RING_NEXT, IN_RING, CHOICES = range(11)
FRESH, FILLED, POSITION, FROZEN = range(11, 15)
PIECE_COLUMNS = 16


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
def draw(seed, piece, choice, n):
    """A number in [0, n) that depends on nothing but the arguments."""
    x = splitmix64(splitmix64(seed + np.uint64(piece)) + np.uint64(choice))
    return np.int64(((x >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@numba.njit(cache=True)
@typing.no_type_check
def choose_path(p, piece, cache, n, mode, seed):
    """The path of the next packet of piece p, counted from its first."""
    piece[p, CHOICES] += 1
    if mode == SINGLE or n == 1:
        return piece[p, PATH]
    if mode == ROUND_ROBIN:
        return (draw(seed, p, 0, n) + piece[p, CHOICES] - 1) % n
    if mode == REPS:
        if piece[p, FRESH] > 0:
            at = (piece[p, POSITION] - piece[p, FRESH]) % CACHE
            piece[p, FRESH] -= 1
            return np.int64(cache[p, at])
        if piece[p, FROZEN] > 0 and piece[p, FILLED] > 0:
            at = piece[p, FROZEN] % piece[p, FILLED]
            piece[p, FROZEN] += 1
            return np.int64(cache[p, at])
    return draw(seed, p, piece[p, CHOICES], n)


@numba.njit(cache=True, inline="always")
@typing.no_type_check
def may_send(p, piece, packets, window):
    """Piece p has something to send and its window has room."""
    return (piece[p, RESEND] >= 0 or piece[p, NEW] < packets) and piece[p, ON_ITS_WAY] < window
