"""Compiled color refinement: the coarsest partition in which equal things have equal neighborhoods."""

import typing

import numba
import numpy as np

from anabranch.fabric._kernels_planners import splitmix64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SALT = np.uint64(0xD1B54A32D192ED03)


@numba.njit(cache=True)
@typing.no_type_check
def _relabel(first, second, color):
    """Numbers the distinct pairs (first, second) from 0 in order of appearance, into ``color``. Returns how many."""
    n = len(first)
    bits = 4
    while (1 << bits) < 2 * n:
        bits += 1
    mask = np.uint64((1 << bits) - 1)
    table = np.full(1 << bits, -1, np.int32)
    n_colors = 0
    seen_first = np.empty(n, np.uint64)
    seen_second = np.empty(n, np.uint64)
    for v in range(n):
        at = first[v] & mask
        while True:
            c = table[at]
            if c < 0:
                table[at] = n_colors
                seen_first[n_colors] = first[v]
                seen_second[n_colors] = second[v]
                color[v] = n_colors
                n_colors += 1
                break
            if seen_first[c] == first[v] and seen_second[c] == second[v]:
                color[v] = c
                break
            at = (at + np.uint64(1)) & mask
    return n_colors


@numba.njit(cache=True)
@typing.no_type_check
def label_pairs(a, b):
    """Numbers the distinct pairs (a[v], b[v]) of float64 from 0 in order of appearance. O(V)."""
    color = np.empty(len(a), np.int64)
    first = a.view(np.uint64).copy()
    second = b.view(np.uint64)
    for v in range(len(a)):
        first[v] = splitmix64(first[v] + second[v] * _GOLDEN)
    _relabel(first, second, color)
    return color


@numba.njit(cache=True)
@typing.no_type_check
def refine(indptr, links, weight, edge_from, edge_to, edge_label, color, give_up):
    """Refines ``color`` [vertices] in place until equal colors have equal multisets of (neighbor color, edge label).

    Vertices are the pieces, then the links, then whatever the extra edges join. A touch joins a piece and a link, labelled
    with its weight; an extra edge joins ``edge_from`` and ``edge_to``, labelled with a whole number. Multisets are compared
    by two independent 64-bit sums of hashes: with V vertices a false merge has probability below V^2 / 2^128 a round.
    O(touches + edges + V) a round; at most V rounds, a handful in practice.

    Stops early when there are more than ``give_up`` piece colors. Returns (colors, colors among the pieces), with the colors
    numbered in order of appearance.
    """
    n_pieces, n = len(indptr) - 1, len(color)
    bits = weight.view(np.uint64)
    first = np.empty(n, np.uint64)
    second = np.empty(n, np.uint64)
    n_colors = 0
    rounds = 0
    while True:
        for v in range(n):
            first[v] = splitmix64(np.uint64(color[v]) * _GOLDEN + _SALT)
            second[v] = splitmix64(first[v] + _GOLDEN)
        code = first.copy()
        if rounds > 0:
            for p in range(n_pieces):
                for t in range(indptr[p], indptr[p + 1]):
                    link = n_pieces + links[t]
                    label = bits[t] * _GOLDEN
                    to_piece = splitmix64(code[link] ^ label)
                    to_link = splitmix64(code[p] ^ label)
                    first[p] += to_piece
                    second[p] += splitmix64(to_piece ^ _SALT)
                    first[link] += to_link
                    second[link] += splitmix64(to_link ^ _SALT)
            for e in range(len(edge_from)):
                u = edge_from[e]
                v = edge_to[e]
                label = np.uint64(2 * edge_label[e] + 3) * _GOLDEN
                to_v = splitmix64(code[u] ^ label)
                to_u = splitmix64(code[v] ^ (label + _GOLDEN))
                first[v] += to_v
                second[v] += splitmix64(to_v ^ _SALT)
                first[u] += to_u
                second[u] += splitmix64(to_u ^ _SALT)
        before = n_colors
        n_colors = _relabel(first, second, color)
        in_pieces = 0
        for p in range(n_pieces):
            in_pieces = max(in_pieces, color[p] + 1)
        rounds += 1
        if (rounds > 1 and n_colors == before) or in_pieces > give_up:
            return n_colors, in_pieces


@numba.njit(cache=True)
@typing.no_type_check
def quotient(indptr, links, weight, color, n_piece_colors, n_link_colors):
    """The touches between classes: class P puts on EACH link of class L the weight of all its pieces there.

    With |P| pieces, each touching links of L with weight W in all, and |L| links, that is |P| W / |L|. Returns (indptr, links,
    weight, representative piece of each class, pieces of each class, a link of each class).
    """
    n_pieces = len(indptr) - 1
    n_links = len(color) - n_pieces
    pieces_of = np.zeros(n_piece_colors, np.int64)
    links_of = np.zeros(n_link_colors, np.int64)
    representative = np.empty(n_piece_colors, np.int64)
    a_link = np.empty(n_link_colors, np.int64)
    for p in range(n_pieces - 1, -1, -1):
        pieces_of[color[p]] += 1
        representative[color[p]] = p
    for i in range(n_links - 1, -1, -1):
        c = color[n_pieces + i] - n_piece_colors
        links_of[c] += 1
        a_link[c] = i
    total = 0
    for c in range(n_piece_colors):
        total += indptr[representative[c] + 1] - indptr[representative[c]]
    new_indptr = np.zeros(n_piece_colors + 1, np.int64)
    new_links = np.empty(total, np.int32)
    new_weight = np.empty(total)
    at = np.full(n_link_colors, -1, np.int64)
    n = 0
    for c in range(n_piece_colors):
        p = representative[c]
        for t in range(indptr[p], indptr[p + 1]):
            k = color[n_pieces + links[t]] - n_piece_colors
            if at[k] < new_indptr[c]:
                at[k] = n
                new_links[n] = k
                new_weight[n] = 0.0
                n += 1
            new_weight[at[k]] += weight[t]
        for m in range(new_indptr[c], n):
            new_weight[m] *= pieces_of[c] / links_of[new_links[m]]
        new_indptr[c + 1] = n
    return new_indptr, new_links[:n].copy(), new_weight[:n].copy(), representative, pieces_of, a_link
