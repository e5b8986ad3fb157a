"""What the compiled kernels of max-min rates work on: the network, the active pieces, working memory, a heap.

A *piece* has a rate; a *touch* is one (piece, link) pair with a weight, the part of the piece's rate that the link carries (1 on
an ordinary path).
"""

import typing

import numba
import numpy as np


class Network(typing.NamedTuple):
    """What does not change: the touches of piece p are indptr[p]:indptr[p + 1], those of link l start[l]:start[l + 1]."""

    capacity: np.ndarray  # [links]
    indptr: np.ndarray  # [pieces + 1]
    links: np.ndarray  # [touches]
    weight: np.ndarray  # [touches]
    start: np.ndarray  # [links + 1]


class Rates(typing.NamedTuple):
    """Which pieces are active, and their rates."""

    rate: np.ndarray  # [pieces]
    bottleneck: np.ndarray  # [pieces]: the link that stopped the piece, or -1
    active: np.ndarray  # [pieces]: ids of the active pieces, in no order
    place: np.ndarray  # [pieces]: where a piece stands in active, or -1
    n_members: np.ndarray  # [links]: active touches of the link
    members: np.ndarray  # [touches]: those of link l are members[start[l] : start[l] + n_members[l]]
    piece: np.ndarray  # [touches]: the piece of each member
    weight: np.ndarray  # [touches]: the weight of each member
    slot: np.ndarray  # [touches]: where a touch stands in members
    load: np.ndarray  # [links]: sum of weight times rate
    n_stopped: np.ndarray  # [links]: active pieces, not chosen, whose bottleneck is the link


class Scratch(typing.NamedTuple):
    """Working memory of filling; zero between calls where it says so."""

    chosen: np.ndarray  # [pieces]: ids of the pieces whose rate is being found
    state: np.ndarray  # [pieces]: 0 keeps its rate, 1 rises, 2 was stopped, 3 will rise (zero between calls)
    old_rate: np.ndarray  # [pieces]
    pending: np.ndarray  # [links]: weight of the rising touches
    waiting: np.ndarray  # [links]: number of rising touches (zero between calls)
    residual: np.ndarray  # [links]: capacity not used by anything that does not rise
    seen: np.ndarray  # [links]: 1 if a chosen piece touches the link (zero between calls)
    touched: np.ndarray  # [links]: ids of these links
    rising: np.ndarray  # [most members of a link]: those that rise
    key: np.ndarray  # [links]: heap of links by share; see ``place``
    item: np.ndarray  # [links]
    position: np.ndarray  # [links]


def make_network(capacity: np.ndarray, indptr: np.ndarray, links: np.ndarray, weight: np.ndarray) -> Network:
    """Counts where the touches of every link start."""
    start = np.zeros(len(capacity) + 1, dtype=np.int64)
    np.cumsum(np.bincount(links, minlength=len(capacity)), out=start[1:])
    return Network(capacity, indptr, links, weight, start)


def make_rates(network: Network) -> Rates:
    """No piece active."""
    n_links, n_pieces, n_touches = len(network.capacity), len(network.indptr) - 1, len(network.links)
    return Rates(
        np.zeros(n_pieces),
        np.full(n_pieces, -1, np.int32),
        np.empty(n_pieces, np.int32),
        np.full(n_pieces, -1, np.int32),
        np.zeros(n_links, np.int64),
        np.empty(n_touches, np.int64),
        np.empty(n_touches, np.int32),
        np.empty(n_touches),
        np.empty(n_touches, np.int64),
        np.zeros(n_links),
        np.zeros(n_links, np.int64),
    )


def make_scratch(network: Network) -> Scratch:
    """Working memory for this network."""
    n_links, n_pieces = len(network.capacity), len(network.indptr) - 1
    return Scratch(
        np.empty(n_pieces, np.int32),
        np.zeros(n_pieces, np.uint8),
        np.empty(n_pieces),
        np.empty(n_links),
        np.zeros(n_links, np.int64),
        np.empty(n_links),
        np.zeros(n_links, np.uint8),
        np.empty(n_links, np.int32),
        np.empty(int(np.diff(network.start).max(initial=0)), np.int32),
        np.empty(n_links),
        np.empty(n_links, np.int32),
        np.full(n_links, -1, np.int32),
    )


# numba counts references to arrays, which would take more time than all else here. Kernels that allocate nothing need no count:
# _nrt=False leaves it out.


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def place(key, item, position, size, i, new_key, new_item):
    """Puts an item at position i of a binary heap, or where it belongs from there.

    ``key[i]`` and ``item[i]`` are what stands at position i of ``size``; ``position`` of an item that is not there is -1.
    """
    start = i
    while i > 0:
        parent = (i - 1) >> 1
        if key[parent] <= new_key:
            break
        key[i] = key[parent]
        item[i] = item[parent]
        position[item[i]] = i
        i = parent
    if i == start:
        while True:
            child = 2 * i + 1
            if child >= size:
                break
            if child + 1 < size and key[child + 1] < key[child]:
                child += 1
            if new_key <= key[child]:
                break
            key[i] = key[child]
            item[i] = item[child]
            position[item[i]] = i
            i = child
    key[i] = new_key
    item[i] = new_item
    position[new_item] = i


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def take_first(key, item, position, size):
    """Removes the item with the smallest key. Returns the new size."""
    position[item[0]] = -1
    size -= 1
    if size > 0:
        place(key, item, position, size, 0, key[size], item[size])
    return size


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def activate(p, n_active, network, rates):
    """Adds piece p with rate 0. Returns the new number of active pieces."""
    rates.active[n_active] = p
    rates.place[p] = n_active
    rates.rate[p] = 0.0
    rates.bottleneck[p] = -1
    for t in range(network.indptr[p], network.indptr[p + 1]):
        link = network.links[t]
        at = network.start[link] + rates.n_members[link]
        rates.members[at] = t
        rates.piece[at] = p
        rates.weight[at] = network.weight[t]
        rates.slot[t] = at
        rates.n_members[link] += 1
    return n_active + 1


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def deactivate(p, n_active, network, rates):
    """Removes piece p; the last member of each list fills the hole. Returns the new number of active pieces."""
    n_active -= 1
    last_piece = rates.active[n_active]
    rates.active[rates.place[p]] = last_piece
    rates.place[last_piece] = rates.place[p]
    rates.place[p] = -1
    rates.n_stopped[rates.bottleneck[p]] -= 1
    for t in range(network.indptr[p], network.indptr[p + 1]):
        link = network.links[t]
        rates.n_members[link] -= 1
        end = network.start[link] + rates.n_members[link]
        at = rates.slot[t]
        last = rates.members[end]
        rates.members[at] = last
        rates.piece[at] = rates.piece[end]
        rates.weight[at] = rates.weight[end]
        rates.slot[last] = at
        rates.load[link] -= network.weight[t] * rates.rate[p]
        if rates.n_members[link] == 0:
            rates.load[link] = 0.0
    rates.rate[p] = 0.0
    return n_active
