"""Collective algorithms as data: which chunks move from which rank to which in every step.

A message is ``n_chunks`` equal chunks. In a step every move reads its source as it was before the step (before the first
step, where a collective has a buffer for sending and one for receiving); a move either adds to what the destination has
(``reduce``) or replaces it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moves:
    """One step: chunks [low, low + count) of rank ``src`` go to chunks [into, into + count) of rank ``dst``."""

    src: np.ndarray
    dst: np.ndarray
    low: np.ndarray
    count: np.ndarray
    into: np.ndarray
    reduce: bool
    group: np.ndarray
    in_host: bool = False


@dataclass(frozen=True)
class Algorithm:
    """A collective: ``step(t)`` gives the moves of step t (of all kinds that happen at once)."""

    n_steps: int
    n_chunks: int
    step: Callable[[int], list[Moves]]
    two_buffers: bool = False


def _moves(src: np.ndarray, dst: np.ndarray, low: np.ndarray, count: int, *, reduce: bool) -> Moves:
    zero = np.zeros(len(src), dtype=np.int64)
    return Moves(src, dst, low, zero + count, low, reduce, zero)


def ring_reduce_scatter(n: int) -> Algorithm:
    """Rank i ends with the sum of chunk i."""
    rank = np.arange(n)
    return Algorithm(n - 1, n, lambda t: [_moves(rank, (rank + 1) % n, (rank - t - 1) % n, 1, reduce=True)])


def ring_all_gather(n: int) -> Algorithm:
    """Rank i begins with chunk i."""
    rank = np.arange(n)
    return Algorithm(n - 1, n, lambda t: [_moves(rank, (rank + 1) % n, (rank - t) % n, 1, reduce=False)])


def then(*parts: Algorithm) -> Algorithm:
    """One after the other, on the same chunks."""
    ends = np.cumsum([part.n_steps for part in parts])

    def step(t: int) -> list[Moves]:
        i = int(np.searchsorted(ends, t, side="right"))
        return parts[i].step(t - int(ends[i]) + parts[i].n_steps)

    return Algorithm(int(ends[-1]), parts[0].n_chunks, step)


def halving_doubling(n: int) -> Algorithm:
    """n = 2^p: step k trades half of what is left with rank xor 2^k and adds; then the same backwards, copying."""
    p = n.bit_length() - 1
    rank = np.arange(n)

    def owned(k: int) -> np.ndarray:
        """First chunk of what a rank still owns after k halvings: bit j of the rank chose the half of size n / 2^(j+1)."""
        return sum(((rank >> j) & 1) * (n >> (j + 1)) for j in range(k)) + 0 * rank

    def step(t: int) -> list[Moves]:
        k = t if t < p else 2 * p - 1 - t
        partner = rank ^ (1 << k)
        if t < p:
            return [_moves(rank, partner, owned(k + 1)[partner], n >> (k + 1), reduce=True)]
        return [_moves(rank, partner, owned(k + 1), n >> (k + 1), reduce=False)]

    return Algorithm(2 * p, n, step)


def recursive_doubling(n: int) -> Algorithm:
    """n = 2^p: step k trades everything with rank xor 2^k and adds."""
    rank = np.arange(n)
    return Algorithm(n.bit_length() - 1, 1, lambda t: [_moves(rank, rank ^ (1 << t), 0 * rank, 1, reduce=True)])


def folded(n: int, inner: Callable[[int], Algorithm]) -> Algorithm:
    """n = 2^p + r for any r: r ranks first give all they have to a neighbour, and get the result from it at the end."""
    power = 1 << (n.bit_length() - 1)
    spare = n - power
    core = inner(power)
    keeps = np.concatenate([2 * np.arange(spare), np.arange(2 * spare, n)])
    gives = 2 * np.arange(spare) + 1

    def step(t: int) -> list[Moves]:
        if t == 0:
            return [_moves(gives, gives - 1, 0 * gives, core.n_chunks, reduce=True)]
        if t == core.n_steps + 1:
            return [_moves(gives - 1, gives, 0 * gives, core.n_chunks, reduce=False)]
        return [Moves(keeps[m.src], keeps[m.dst], m.low, m.count, m.into, m.reduce, m.group) for m in core.step(t - 1)]

    return Algorithm(core.n_steps + 2, core.n_chunks, step)


def binary_trees(n: int) -> list[np.ndarray]:
    """Parents in two binary trees (-1 at the root) such that the inner ranks of one are leaves of the other, n even.

    In-order tree: the parent of a rank differs in its lowest set bit and the next one; the second tree is the mirror
    image (n even) or shifted by one (n odd). Sanders, Speck, Traeff (2009), numbered as in NCCL (from general knowledge).
    """
    rank = np.arange(n)
    bit = rank & -rank
    up = (rank ^ bit) | (bit << 1)
    first = np.where(up >= n, rank ^ bit, up)
    first[0] = -1
    if n % 2 == 0:
        second = np.where(first[::-1] < 0, -1, n - 1 - first[::-1])
    else:
        shifted = np.roll(first, 1)
        second = np.where(shifted < 0, -1, (shifted + 1) % n)
    return [first, second]


def double_binary_tree(n: int, chunks: int) -> Algorithm:
    """Each tree reduces and then broadcasts half the message, ``chunks`` chunks in a pipeline; both trees at once.

    A rank of height h sends chunk c up in step h + c, as soon as its children's came; a rank of depth d sends chunk c
    down in step H + d + c, H the height of the root.
    """
    trees = []
    for tree, parent in enumerate(binary_trees(n)):
        depth, height = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        at = parent.copy()
        while (at >= 0).any():
            depth += at >= 0
            at = np.where(at >= 0, parent[np.maximum(at, 0)], -1)
        for rank in np.argsort(-depth, kind="stable"):
            if parent[rank] >= 0:
                height[parent[rank]] = max(height[parent[rank]], height[rank] + 1)
        child = np.flatnonzero(parent >= 0)
        root = int(height.max())
        trees.append((tree, child, parent[child], height[child], root + depth[parent[child]]))

    def step(t: int) -> list[Moves]:
        result = []
        for tree, child, parent, up_at, down_at in trees:
            for src, dst, begins, reduce in ((child, parent, up_at, True), (parent, child, down_at, False)):
                chunk = t - begins
                now = (chunk >= 0) & (chunk < chunks)
                if now.any():
                    move = _moves(src[now], dst[now], tree * chunks + chunk[now], 1, reduce=reduce)
                    result.append(move)
        return result

    last = max(int(down_at.max()) for *_, down_at in trees)
    return Algorithm(last + chunks, 2 * chunks, step)


def all_to_all_direct(n: int) -> Algorithm:
    """Chunk j of rank i goes to chunk i of rank j, all at once."""

    def step(t: int) -> list[Moves]:
        src, dst = (x.ravel() for x in np.indices((n, n)))
        between = src != dst
        src, dst = src[between], dst[between]
        return [Moves(src, dst, dst, np.ones_like(src), src, False, np.zeros_like(src))]

    return Algorithm(1, n, step, two_buffers=True)


def all_to_all_shift(n: int) -> Algorithm:
    """The same in n - 1 steps, rank i to rank i + k in the k-th."""
    rank = np.arange(n)

    def step(t: int) -> list[Moves]:
        dst = (rank + t + 1) % n
        return [Moves(rank, dst, dst, np.ones_like(rank), rank, False, np.zeros_like(rank))]

    return Algorithm(n - 1, n, step, two_buffers=True)


def hierarchical(n: int, per_host: int, inner: Callable[[int], Algorithm]) -> Algorithm:
    """All-reduce with ``per_host`` ranks a host: reduce-scatter inside, all-reduce per rail, all-gather inside.

    A rail is the ranks at the same place of every host. Inside a host all send to all in one step (a full mesh).
    """
    hosts = n // per_host
    rail = inner(hosts)
    width = rail.n_chunks
    host, src, dst = (x.ravel() for x in np.indices((hosts, per_host, per_host)))
    pairs = src != dst
    base, src, dst = host[pairs] * per_host, src[pairs], dst[pairs]
    places = np.arange(per_host)

    def inside(owner: np.ndarray, *, reduce: bool) -> list[Moves]:
        low = owner * width
        return [Moves(base + src, base + dst, low, 0 * low + width, low, reduce, 0 * low, in_host=True)]

    def step(t: int) -> list[Moves]:
        if t == 0:
            return inside(dst, reduce=True)
        if t == rail.n_steps + 1:
            return inside(src, reduce=False)
        result = []
        for m in rail.step(t - 1):
            place = np.repeat(places, len(m.src))
            s, d = (np.tile(x, per_host) * per_host + place for x in (m.src, m.dst))
            low, into = (np.tile(x, per_host) + place * width for x in (m.low, m.into))
            result.append(Moves(s, d, low, np.tile(m.count, per_host), into, m.reduce, place))
        return result

    return Algorithm(rail.n_steps + 2, per_host * width, step)


def pipeline(n: int, micro_batches: int) -> Algorithm:
    """Rank s sends micro-batch m to rank s + 1 in step s + m."""
    stage = np.arange(n - 1)

    def step(t: int) -> list[Moves]:
        now = stage[(t - stage >= 0) & (t - stage < micro_batches)]
        return [_moves(now, now + 1, t - now, 1, reduce=False)]

    return Algorithm(n - 2 + micro_batches, micro_batches, step)
