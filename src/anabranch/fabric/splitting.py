"""The paper's rule: cut the left-over flows of a group in equal pieces."""

import numpy as np

from anabranch.fabric._checks import choice
from anabranch.fabric._stepwise import Pieces, plan_by_step
from anabranch.fabric._weights import best_paths, even_paths, is_symmetric, wrap_around
from anabranch.fabric.fat_tree import FatTree
from anabranch.fabric.plan import Plan
from anabranch.fabric.topology import LeafSpine, Topology
from anabranch.fabric.traffic import Traffic


def plan_split(topology: Topology, traffic: Traffic, *, group: str = "pair") -> Plan:
    """Splits a few flows of each group so that the group loads its paths evenly (the paper, proof of Theorem 1).

    For n equal flows over s equal paths, n = q s + r: q s flows stay whole, q per path; with g = gcd(r, s) each of the
    r others is cut in s/g equal pieces, dealt round-robin, r/g per path. Every path carries n/s flows. Bytes that do not
    divide are spread one at a time, so loads of a group differ by at most its pieces on the path.

    Groups with different sizes or unequal paths are laid on a line and cut at the paths' shares (McNaughton's wrap-around,
    ours): at most n + s - 1 pieces.

    Guarantee. ``group="pair"`` (all flows from one leaf to another) attains the value of :func:`optimum` on every fabric,
    for all sizes, rates and failures, up to the rounding to bytes: equal shares where the fabric is symmetric, the linear
    program's elsewhere. ``group="source"`` (all flows that leave a leaf, as a leaf alone can do it) balances the links out of
    the leaf only; with links down or unequal it splits by the living paths' uplink rates. For a FatTree it takes flows
    inside and between pods as two groups; it is not defined for other graphs.

    Args:
        group: "pair" or "source".

    Raises:
        ValueError: a NIC outside the fabric, NIC pairs without a path, another group, "source" on a fabric without
            common path numbers.

    Cost: O(F log F + pieces) for each step; where the fabric is uneven also the linear program over pairs of
    leaves.
    """
    choice("group", group, ("pair", "source"))
    if group == "source" and not (isinstance(topology, LeafSpine) or is_symmetric(topology)):
        raise ValueError('group="source" needs a LeafSpine or a FatTree without failed links, use group="pair"')

    def plan_step(a: np.ndarray, b: np.ndarray, size: np.ndarray) -> Pieces:
        if group == "source":
            return _split_sources(topology, a, b, size)
        pair, of_flow = np.unique(a * topology.n_leaves + b, return_inverse=True)
        pair_a, pair_b = np.divmod(pair, topology.n_leaves)
        if is_symmetric(topology):
            return _split_groups(of_flow, size, *even_paths(topology, pair_a, pair_b), turn=pair_a + pair_b)
        total = np.bincount(of_flow, size)
        return wrap_around(of_flow, size, *best_paths(topology, pair_a, pair_b, total))

    return plan_by_step(topology, traffic, plan_step)


def _split_sources(topology: Topology, a: np.ndarray, b: np.ndarray, size: np.ndarray) -> Pieces:
    if isinstance(topology, LeafSpine) and not topology.is_uniform:
        usable = topology.up_bytes_per_s[a] * (topology.down_bytes_per_s[b] > 0)
        rates, of_flow = np.unique(np.column_stack([a, usable]), axis=0, return_inverse=True)
        rates = rates[:, 1:]
        row, path = np.nonzero(rates)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(rates)))])
        weight = (rates / rates.sum(axis=1, keepdims=True))[row, path]
        return wrap_around(of_flow.ravel(), size, indptr, path, weight)
    key = 2 * a
    if isinstance(topology, FatTree):
        key = key + (a // topology.tors_per_pod != b // topology.tors_per_pod)
    group, example, of_flow = np.unique(key, return_index=True, return_inverse=True)
    return _split_groups(of_flow, size, *even_paths(topology, a[example], b[example]), turn=group // 2)


def _split_groups(
    group: np.ndarray, size: np.ndarray, indptr: np.ndarray, path: np.ndarray, turn: np.ndarray
) -> Pieces:
    """The rule for every group of equal flows, wrap-around for the others; all paths of a group are equal.

    ``turn`` shifts the paths of a group, so that left-over bytes of different groups do not meet on the first paths.
    """
    order = np.argsort(group, kind="stable")
    start = np.flatnonzero(np.diff(group[order], prepend=-1))
    smallest, largest = np.minimum.reduceat(size[order], start), np.maximum.reduceat(size[order], start)
    equal = (smallest == largest)[group]
    flow, slot, piece = _cut_equal(group[equal], size[equal], np.diff(indptr), turn)
    flow = np.flatnonzero(equal)[flow]
    parts = [(flow, path[indptr[:-1][group[flow]] + slot], piece)]
    if not equal.all():
        count = np.diff(indptr)
        mixed, of_flow = np.unique(group[~equal], return_inverse=True)
        rank = np.arange(count[mixed].sum()) - np.repeat(np.cumsum(count[mixed]) - count[mixed], count[mixed])
        own = np.repeat(indptr[:-1][mixed], count[mixed]) + rank
        own_indptr = np.concatenate([[0], np.cumsum(count[mixed])])
        weight = np.repeat(1.0 / count[mixed], count[mixed])
        rest, rest_path, rest_piece = wrap_around(of_flow, size[~equal], own_indptr, path[own], weight)
        parts.append((np.flatnonzero(~equal)[rest], rest_path, rest_piece))
    flow, path, piece = (np.concatenate(column) for column in zip(*parts, strict=True))
    return flow, path, piece


def _cut_equal(group: np.ndarray, size: np.ndarray, paths: np.ndarray, turn: np.ndarray) -> Pieces:
    """The paper's rule for groups of equal flows: (flow, number of the path in the group, bytes)."""
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group, minlength=len(paths))
    first = np.cumsum(counts) - counts
    g = group[order]
    s = paths[g]
    rank = np.arange(len(order)) - first[g]
    whole = counts - counts % np.maximum(paths, 1)
    over = rank - whole[g]
    stays = over < 0
    per_flow = np.where(stays, 1, s // np.gcd(counts[g] - whole[g], s))
    member = np.repeat(np.arange(len(order)), per_flow)
    within = np.arange(len(member)) - np.repeat(np.cumsum(per_flow) - per_flow, per_flow)
    dealt = np.where(stays, rank, over * per_flow)[member] + within
    divisor = per_flow[member]
    total = size[order][member]
    piece = total // divisor + (within < total % divisor)
    some = piece > 0
    slot = (dealt + turn[g][member]) % s[member]
    return order[member][some], slot[some], piece[some]
