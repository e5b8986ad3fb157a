"""Compiled kernels for exact max-min fair rates: progressive filling of all pieces, and local repair after a change.

A rate vector is max-min fair if and only if every piece has a *bottleneck*: a full link on which no piece has a higher rate
(Bertsekas and Gallager, Data Networks, 6.5.2). Filling finds one for every piece; repair keeps the rates of the pieces whose
bottleneck still is one.

Functions that are called for single pieces or links take arrays, as tuples of arrays would be copied at each call.
"""

import typing

import numba
import numpy as np

from anabranch.fabric._kernels_rates import activate, place, take_first

TIE = 1e-12
"""Two shares closer than this, relatively, are one."""
SAME_RATE = 1e-14
"""A rate that moved less than this, relatively, has not moved."""


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def choose(p, n_chosen, rate, bottleneck, n_stopped, chosen, state, old_rate):
    """Adds piece p to the chosen ones unless it is there. Returns their number."""
    if state[p] != 0:
        return n_chosen
    state[p] = 3
    chosen[n_chosen] = p
    old_rate[p] = rate[p]
    if bottleneck[p] >= 0:
        n_stopped[bottleneck[p]] -= 1
    return n_chosen + 1


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def choose_stopped_by(link, first, end, n_chosen, piece, rate, bottleneck, n_stopped, chosen, state, old_rate):
    """Chooses the pieces among ``piece[first:end]``, the members of the link, whose bottleneck it is. Returns how many are."""
    if n_stopped[link] > 0:
        for m in range(first, end):
            if bottleneck[piece[m]] == link:
                n_chosen = choose(piece[m], n_chosen, rate, bottleneck, n_stopped, chosen, state, old_rate)
    return n_chosen


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def _begin(first, last, everything, n_touched, size, network, rates, scratch):
    """The pieces ``chosen[first:last]`` begin to rise and leave their old rates to others.

    Their links may fill sooner than the heap knows, and are put in order. Returns (touched links, heap size).
    """
    # Fields are named once: numba would count a reference at each use.
    indptr, links, weight, capacity = network.indptr, network.links, network.weight, network.capacity
    load = rates.load
    chosen, state, old_rate, seen, touched, pending, waiting, residual = (
        scratch.chosen,
        scratch.state,
        scratch.old_rate,
        scratch.seen,
        scratch.touched,
        scratch.pending,
        scratch.waiting,
        scratch.residual,
    )
    key, item, position = scratch.key, scratch.item, scratch.position
    for i in range(first, last):
        p = chosen[i]
        state[p] = 1
        old = 0.0 if everything else old_rate[p]
        for t in range(indptr[p], indptr[p + 1]):
            link = links[t]
            if seen[link] == 0:
                seen[link] = 1
                touched[n_touched] = link
                n_touched += 1
                pending[link] = 0.0
                residual[link] = capacity[link]
                if not everything:
                    residual[link] -= load[link]
            waiting[link] += 1
            pending[link] += weight[t]
            residual[link] += weight[t] * old
    for i in range(first, last):
        p = chosen[i]
        for t in range(indptr[p], indptr[p + 1]):
            link = links[t]
            share = max(residual[link], 0.0) / pending[link]
            at = position[link]
            if at < 0:
                size += 1
                place(key, item, position, size, size - 1, share, link)
            elif share < key[at]:
                place(key, item, position, size, at, share, link)
    return n_touched, size


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def _water_level(capacity, share, first, end, piece, weight, rate, state):
    """The share of a link if every piece that keeps its rate were to give up what it has above that share.

    Newton steps on the piecewise linear, concave load as a function of the share: they climb to the solution from below.
    """
    while True:
        load = 0.0
        slope = 0.0
        for m in range(first, end):
            p = piece[m]
            if state[p] == 1 or (state[p] == 0 and rate[p] > share):
                load += weight[m] * share
                slope += weight[m]
            else:
                load += weight[m] * rate[p]
        step = (capacity - load) / slope
        if step <= TIE * share:
            return share
        share += step


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def fill(n_chosen, everything, network, rates, scratch):
    """Progressive filling of the chosen pieces, and of all others whose rate has to change with theirs.

    The chosen pieces rise together from 0; the other active pieces keep their rates for now. Links are taken by ascending
    share (room over rising weight); shares within TIE of each other are one. The link with the smallest share stops its
    rising pieces, unless pieces that keep their rate are above it: then those above the link's water level begin to rise
    too. When a piece is stopped at a rate that is not its old one, the pieces whose bottleneck is another link of it begin to
    rise. As both happen in the order of rates, no piece rises too late, and at the end every piece has a bottleneck (ours).

    Shares of rising pieces only grow while others are stopped, so keys in the heap may lag behind. O(touches log links) over
    the pieces that rose, plus the members of the links that stopped them. Returns (pieces chosen, links touched).
    """
    # Fields are named once: numba would count a reference at each use.
    indptr, links, weight, capacity, start = (
        network.indptr,
        network.links,
        network.weight,
        network.capacity,
        network.start,
    )
    rate, bottleneck, n_stopped, count = rates.rate, rates.bottleneck, rates.n_stopped, rates.n_members
    piece, member_weight = rates.piece, rates.weight
    chosen, state, old_rate, rising, pending, waiting, residual = (
        scratch.chosen,
        scratch.state,
        scratch.old_rate,
        scratch.rising,
        scratch.pending,
        scratch.waiting,
        scratch.residual,
    )
    key, item, position = scratch.key, scratch.item, scratch.position
    # Typed zeros: numba would compile every function called with them twice, for a constant and for a number.
    n_touched = size = before = np.int64(0)
    n_touched, size = _begin(before, n_chosen, everything, n_touched, size, network, rates, scratch)
    level = 0.0
    n_done = 0
    while n_done < n_chosen:
        link = item[0]
        if waiting[link] == 0:
            size = take_first(key, item, position, size)
            continue
        stale = key[0] * (1.0 + TIE)
        share = max(residual[link], 0.0) / pending[link]
        first = start[link]
        end = first + count[link]
        before = n_chosen
        n_rising = -1
        if share <= stale and waiting[link] < count[link]:
            # The running sums have lost digits; the share that will be handed out is added up afresh.
            used = 0.0
            rising_weight = 0.0
            fastest = 0.0
            n_rising = 0
            for m in range(first, end):
                p = piece[m]
                if state[p] == 1:
                    rising_weight += member_weight[m]
                    rising[n_rising] = p
                    n_rising += 1
                else:
                    used += member_weight[m] * rate[p]
                    if state[p] == 0 and rate[p] > fastest:
                        fastest = rate[p]
            pending[link] = rising_weight
            residual[link] = capacity[link] - used
            share = max(residual[link], 0.0) / rising_weight
            if fastest > share * (1.0 + TIE):
                height = min(
                    _water_level(capacity[link], share, first, end, piece, member_weight, rate, state) * (1.0 + TIE),
                    fastest * (1.0 - TIE),
                )
                for m in range(first, end):
                    p = piece[m]
                    if state[p] == 0 and rate[p] > height:
                        n_chosen = choose(p, n_chosen, rate, bottleneck, n_stopped, chosen, state, old_rate)
        if n_chosen == before:
            if share > stale:
                place(key, item, position, size, 0, share, link)
                continue
            size = take_first(key, item, position, size)
            if share > level * (1.0 + TIE):
                level = share
            if n_rising < 0:
                n_rising = end - first
                for m in range(n_rising):
                    rising[m] = piece[first + m]
            for m in range(n_rising):
                p = rising[m]
                if state[p] != 1:
                    continue
                state[p] = 2
                n_done += 1
                rate[p] = level
                bottleneck[p] = link
                moved = abs(level - old_rate[p]) > SAME_RATE * old_rate[p]
                for t in range(indptr[p], indptr[p + 1]):
                    other = links[t]
                    waiting[other] -= 1
                    pending[other] -= weight[t]
                    residual[other] -= weight[t] * level
                    if moved and n_stopped[other] > 0:
                        begin = start[other]
                        n_chosen = choose_stopped_by(
                            other,
                            begin,
                            begin + count[other],
                            n_chosen,
                            piece,
                            rate,
                            bottleneck,
                            n_stopped,
                            chosen,
                            state,
                            old_rate,
                        )
        if n_chosen > before:
            n_touched, size = _begin(before, n_chosen, everything, n_touched, size, network, rates, scratch)
    for i in range(size):
        position[item[i]] = -1
    return n_chosen, n_touched


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def repair(n_chosen, n_active, network, rates, scratch):
    """Makes the rates max-min fair again after pieces came or went. Returns how many pieces changed, listed in ``chosen``.

    The caller has chosen the new pieces and those that were stopped by a link of a piece that went.
    """
    # Fields are named once: numba would count a reference at each use.
    indptr, links, weight, capacity = network.indptr, network.links, network.weight, network.capacity
    rate, bottleneck, n_stopped, load = rates.rate, rates.bottleneck, rates.n_stopped, rates.load
    chosen, state, old_rate, seen, touched, residual = (
        scratch.chosen,
        scratch.state,
        scratch.old_rate,
        scratch.seen,
        scratch.touched,
        scratch.residual,
    )
    everything = n_chosen == n_active
    n_chosen, n_touched = fill(n_chosen, everything, network, rates, scratch)
    for i in range(n_touched):
        link = touched[i]
        seen[link] = 0
        if everything:
            load[link] = capacity[link] - residual[link]
    n_changed = 0
    for i in range(n_chosen):
        p = chosen[i]
        old = old_rate[p]
        state[p] = 0
        n_stopped[bottleneck[p]] += 1
        if abs(rate[p] - old) <= SAME_RATE * old:
            rate[p] = old
            continue
        if not everything:
            for t in range(indptr[p], indptr[p + 1]):
                load[links[t]] += weight[t] * (rate[p] - old)
        chosen[n_changed] = p
        n_changed += 1
    return n_changed


@numba.njit(cache=True, _nrt=False)
@typing.no_type_check
def fill_all(n_pieces, network, rates, scratch):
    """Activates all pieces and finds their rates."""
    n_active = np.int64(0)
    for p in range(n_pieces):
        n_active = activate(p, n_active, network, rates)
        scratch.chosen[p] = p
        scratch.old_rate[p] = 0.0
    everything = n_active == n_pieces
    fill(n_pieces, everything, network, rates, scratch)
