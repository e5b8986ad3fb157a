"""The flows of causal Flow-Attention, token after token, and the sums of chunks around it, compiled.

Whole arrays ``q, k [L, n, d]``, ``v [L, n, e]``, positions ``t [L, n]`` and ``valid [L, n]`` (no columns where every token is);
a block of ``g`` heads from ``head`` and ``size`` tokens from ``token`` has arrays of its own, ``[g, s, ...]`` with s >= size,
zero from there on. What a token that is not valid holds is not read.
"""

import typing

import numpy as np
from numba import njit

from anabranch.attention._kernels_exp import exp
from anabranch.attention._kernels_flow import BLOCK, FAST, features, gather, scale_in_place

INCOMING, OUTGOING, ALLOCATION, LEAVING, SHARE = range(5)  # rows of a block's flows
KEYS, QUERIES, SOURCES, SINKS = range(4)  # rows of its prefix sums


@njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def block_features(x, kind, valid, out):
    """Features of ``x [size, d]``, 0 for tokens that are not valid."""
    size, d = x.shape
    features(x.reshape(size * d), kind, out[:size].reshape(size * d))
    for i in range(min(size, valid.shape[0])):
        if valid[i] == 0:
            out[i] = 0
    out[size:] = 0


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def add_and_meet(Q, K, i, keys, queries, eps):
    """Adds token i to both sums; the raw flow into its sink and out of its source."""
    incoming, outgoing = Q.dtype.type(0), Q.dtype.type(0)
    for c in range(Q.shape[1]):
        keys[c] += K[i, c]
        queries[c] += Q[i, c]
        incoming += (Q[i, c] + eps) * (keys[c] + eps)
        outgoing += (K[i, c] + eps) * (queries[c] + eps)
    return incoming, outgoing


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def add_and_receive(x, i, factor, sums, y, eps):
    """``sums += factor x_i``; ``(y_i + eps) . (sums + eps)``."""
    s = x.dtype.type(0)
    for c in range(x.shape[1]):
        sums[c] += factor * x[i, c]
        s += (y[i, c] + eps) * (sums[c] + eps)
    return s


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def scale_row(x, i, factor, out, j):
    """``out_j = factor x_i``."""
    for c in range(x.shape[1]):
        out[j, c] = factor * x[i, c]


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def scale_own(x, i, factor):
    for c in range(x.shape[1]):
        x[i, c] *= factor


@njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def carry_on(carried, Q, K, flow, t, factor, competition, allocation):
    """Adds the sums over a few tokens, taken by themselves, to those before (in double precision: these grow long)."""
    local = np.empty(Q.shape[1], Q.dtype)
    one = Q.dtype.type(1)
    for row in range(4):
        if (row == SOURCES and not allocation) or (row == SINKS and not competition):
            continue
        for i in range(Q.shape[0]):
            factor[i] = one
            if row == SOURCES:
                factor[i] = t[i] / flow[OUTGOING, i]
            elif row == SINKS:
                factor[i] = t[i] / flow[INCOMING, i]
        local[:] = 0
        gather(K if row in (KEYS, SOURCES) else Q, factor, local)
        for c in range(local.shape[0]):
            carried[row, c] += local[c]


@njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def weigh_causal(
    Q, K, x, flows, carried, peaks, totals, first, q, k, v, t, valid, token, size,
    kind, low, high, eps, norm_eps, competition, allocation,
):  # fmt: skip
    """What the products take: ``Q`` features of q times a / I, ``K`` features of k, ``x`` v times competition.

    On the way ``flows [g, 5, s]``: incoming and outgoing (raw sums), allocation, conserved outgoing, competition. ``carried
    [g, 4, d]``, doubles, are sums over the tokens before: of keys, queries, keys over outgoing, queries over incoming; the sum of
    exponentials is ``totals [g]`` times exp of ``peaks [g]``. ``first [g]``: the head's number in the whole arrays. They go on.
    """
    d, dtype = Q.shape[2], Q.dtype
    keys, queries, sources, sinks = np.empty(d, dtype), np.empty(d, dtype), np.empty(d, dtype), np.empty(d, dtype)
    factor = np.empty(BLOCK, dtype)
    one, zero = dtype.type(1), dtype.type(0)
    for g in range(Q.shape[0]):
        h = first[g]
        head_t, real = t[h, token : token + size], valid[h]
        if real.shape[0] > 0:
            real = real[token : token + size]
        block_features(q[h, token : token + size], kind, real, Q[g])
        block_features(k[h, token : token + size], kind, real, K[g])
        flow, head_Q, head_K, head_v, head_x = flows[g], Q[g], K[g], v[h], x[g]
        peak, total = dtype.type(peaks[g]), dtype.type(totals[g])
        for begin in range(0, size, BLOCK):
            end = min(begin + BLOCK, size)
            keys[:] = carried[g, KEYS]
            queries[:] = carried[g, QUERIES]
            sources[:] = carried[g, SOURCES]
            sinks[:] = carried[g, SINKS]
            for i in range(begin, end):
                flow[:, i] = one
                if real.shape[0] > 0 and real[i] == 0:
                    flow[ALLOCATION, i] = zero
                    flow[SHARE, i] = zero
                    head_x[i] = 0
                    factor[i - begin] = zero
                    continue
                incoming, outgoing = add_and_meet(head_Q, head_K, i, keys, queries, eps)
                incoming += norm_eps
                flow[INCOMING, i], flow[OUTGOING, i] = incoming, outgoing
                if allocation:
                    into = add_and_receive(head_K, i, head_t[i] / outgoing, sources, head_Q, eps)
                    flow[ALLOCATION, i] = one / (one + exp(-into / head_t[i]))
                if competition:
                    leaving = add_and_receive(head_Q, i, head_t[i] / incoming, sinks, head_K, eps) / head_t[i]
                    flow[LEAVING, i] = leaving
                    wanted = min(max(leaving, low), high)
                    if not wanted <= peak:  # a NaN stays
                        total *= exp(peak - wanted)
                        peak = wanted
                    own = exp(wanted - peak)
                    total += own
                    flow[SHARE, i] = head_t[i] * own / total
                scale_row(head_v, token + i, flow[SHARE, i], head_x, i)
            carry_on(
                carried[g], head_Q[begin:end], head_K[begin:end], flow[:, begin:end], head_t[begin:end], factor,
                competition, allocation,
            )  # fmt: skip
            for i in range(begin, end):
                factor[i - begin] = flow[ALLOCATION, i] / flow[INCOMING, i]
            scale_in_place(head_Q[begin:end], factor)
        x[g, size:] = 0
        peaks[g], totals[g] = peak, total


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def sums_before(x, carried):
    """In place, ``x [g, c, r]`` along c: the sum of those before and of ``carried [g, r]``, which goes on."""
    for g in range(x.shape[0]):
        for i in range(x.shape[1]):
            for r in range(x.shape[2]):
                own = x[g, i, r]
                x[g, i, r] = carried[g, r]
                carried[g, r] += own


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def sums_after(x, carried):
    """As :func:`sums_before`, from the end."""
    for g in range(x.shape[0]):
        for i in range(x.shape[1] - 1, -1, -1):
            for r in range(x.shape[2]):
                own = x[g, i, r]
                x[g, i, r] = carried[g, r]
                carried[g, r] += own
