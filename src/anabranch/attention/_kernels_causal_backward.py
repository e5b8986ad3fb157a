"""Gradients of causal Flow-Attention through its flows, from the last token to the first, compiled.

Arrays as in ``_kernels_causal``.
"""

import typing

import numpy as np
from numba import njit

from anabranch.attention._kernels_causal import (
    ALLOCATION,
    INCOMING,
    KEYS,
    LEAVING,
    OUTGOING,
    QUERIES,
    SHARE,
    SINKS,
    SOURCES,
    carry_on,
    scale_own,
    scale_row,
)  # fmt: skip
from anabranch.attention._kernels_flow import BLOCK, ELU, FAST, RELU, SIGMOID


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def dot(x, y, i):
    """``x_i . y_i``."""
    s = x.dtype.type(0)
    for c in range(x.shape[1]):
        s += x[i, c] * y[i, c]
    return s


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def add_shifted(factor, x, i, eps, into):
    """``into += factor (x_i + eps)``."""
    for c in range(x.shape[1]):
        into[c] += factor * (x[i, c] + eps)


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def add_shifted_and_meet(factor, x, i, eps, into, y):
    """``into += factor (x_i + eps)``; ``into . y_i``."""
    s = x.dtype.type(0)
    for c in range(x.shape[1]):
        into[c] += factor * (x[i, c] + eps)
        s += into[c] * y[i, c]
    return s


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def collect(gradient, i, a, x, b, y, c, z, j, w, shift):
    """``gradient_i += a x + b y_j + c z_j + w + shift``."""
    for r in range(gradient.shape[1]):
        gradient[i, r] += (a * x[r] + b * y[j, r]) + (c * z[j, r] + w[r]) + shift


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def times_slope(gradient, kind, x, first, y, begin, end):
    """Gradients of rows ``x_(first + i)`` from those of their features ``y_i``, i from begin to end."""
    one, zero = y.dtype.type(1), y.dtype.type(0)
    for i in range(begin, end):
        if kind == SIGMOID:
            for c in range(y.shape[1]):
                gradient[i, c] *= y[i, c] * (one - y[i, c])
        elif kind == RELU:
            for c in range(y.shape[1]):
                gradient[i, c] = gradient[i, c] if x[first + i, c] > zero else zero
        elif kind == ELU:
            for c in range(y.shape[1]):
                gradient[i, c] *= one if y[i, c] > one else y[i, c]


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def add_row(sums, last, factor, x, i):
    """``sums_i = sums_last + factor x_i``; last is i for the first."""
    for c in range(x.shape[1]):
        sums[i, c] = sums[last, c] + factor * x[i, c]


@njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def prefixes(carried, Q, K, flow, t, sums, competition, allocation):
    """The four sums after each token, ``sums [4, b, d]``."""
    for row in range(4):
        for c in range(Q.shape[1]):
            sums[row, 0, c] = carried[row, c]
    zero = Q.dtype.type(0)
    keys, queries, sources, sinks = sums[KEYS], sums[QUERIES], sums[SOURCES], sums[SINKS]
    for i in range(Q.shape[0]):
        last = max(i - 1, 0)
        add_row(keys, last, Q.dtype.type(1), K, i)  # a token that is not valid has features of 0
        add_row(queries, last, Q.dtype.type(1), Q, i)
        # 0 where there is none of it: a flow that is not wanted may be 0
        add_row(sources, last, t[i] / flow[OUTGOING, i] if allocation else zero, K, i)
        add_row(sinks, last, t[i] / flow[INCOMING, i] if competition else zero, Q, i)


@njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def gradient_causal(
    scaled, K, x, flows, before, later, later_total, first, dQ, dK, dv, q, k, t, valid, token, size,
    kind, low, high, eps, competition, allocation,
):  # fmt: skip
    """Turns a block's gradients through the products into those of q, k and v, in place.

    ``dQ [g, s, d]`` comes as that of ``scaled``, ``dK [g, s, d]`` as that of K, ``dv [g, s, e]`` as that of x, which
    :func:`weigh_causal` made with ``before [g, 4, d]`` as carried sums. ``later [g, 4, d]`` and ``later_total [g]`` are
    gradients of the sums, and of the logarithm of the sum of exponentials, from the tokens after; they go on to those before.
    q and k are read for relu alone: other features tell their slope.
    """
    d, dtype = K.shape[2], K.dtype
    one, zero = dtype.type(1), dtype.type(0)
    many = (size + BLOCK - 1) // BLOCK
    Q, factor, sums = np.empty((size, d), dtype), np.empty(BLOCK, dtype), np.empty((4, BLOCK, d), dtype)
    carried = np.empty((many + 1, 4, d), np.float64)
    of_keys, of_queries, of_sources, of_sinks = (
        np.empty(d, dtype),
        np.empty(d, dtype),
        np.empty(d, dtype),
        np.empty(d, dtype),
    )
    after_keys, after_queries, after_sources, after_sinks = sums[KEYS], sums[QUERIES], sums[SOURCES], sums[SINKS]
    for g in range(K.shape[0]):
        h = first[g]
        head_t, real, flow = t[h, token : token + size], valid[h], flows[g]
        if real.shape[0] > 0:
            real = real[token : token + size]
        head_scaled, head_K, head_x, head_dQ, head_dK, head_dv = scaled[g], K[g], x[g], dQ[g], dK[g], dv[g]
        for i in range(size):
            b = flow[ALLOCATION, i] / flow[INCOMING, i]
            scale_row(head_scaled, i, one / b if b != 0 else zero, Q, i)
        carried[0] = before[g]
        for j in range(many):
            begin, end = j * BLOCK, min((j + 1) * BLOCK, size)
            carried[j + 1] = carried[j]
            carry_on(
                carried[j + 1], Q[begin:end], head_K[begin:end], flow[:, begin:end], head_t[begin:end], factor,
                competition, allocation,
            )  # fmt: skip
        of_keys[:] = later[g, KEYS]
        of_queries[:] = later[g, QUERIES]
        of_sources[:] = later[g, SOURCES]
        of_sinks[:] = later[g, SINKS]
        of_total = later_total[g]
        for j in range(many - 1, -1, -1):
            begin, end = j * BLOCK, min((j + 1) * BLOCK, size)
            prefixes(
                carried[j], Q[begin:end], head_K[begin:end], flow[:, begin:end], head_t[begin:end], sums, competition,
                allocation,
            )  # fmt: skip
            for i in range(end - 1, begin - 1, -1):
                if real.shape[0] > 0 and real[i] == 0:
                    head_dQ[i] = 0
                    head_dK[i] = 0
                    head_dv[i] = 0
                    continue
                incoming, a, time = flow[INCOMING, i], flow[ALLOCATION, i], head_t[i]
                product = dot(head_scaled, head_dQ, i)
                scale_own(head_dQ, i, a / incoming)
                d_incoming = -product / incoming
                d_leaving, d_arriving, d_outgoing, through_sinks, through_sources = zero, zero, zero, zero, zero
                if competition:
                    of_share = dot(head_x, head_dv, i)
                    part = flow[SHARE, i] / time
                    of_total -= of_share
                    if low <= flow[LEAVING, i] <= high:
                        d_leaving = (of_share + of_total * part) / time
                    of_total *= one - part
                    through_sinks = time / incoming
                    meeting = add_shifted_and_meet(d_leaving, head_K, i, eps, of_sinks, Q)
                    d_incoming -= meeting * through_sinks / incoming
                scale_own(head_dv, i, flow[SHARE, i])
                if allocation:
                    d_arriving = product * (one - a) / time
                    through_sources = time / flow[OUTGOING, i]
                    meeting = add_shifted_and_meet(d_arriving, Q, i, eps, of_sources, head_K)
                    d_outgoing = -meeting * through_sources / flow[OUTGOING, i]
                    add_shifted(d_outgoing, head_K, i, eps, of_queries)
                add_shifted(d_incoming, Q, i, eps, of_keys)
                collect(
                    head_dQ, i, through_sinks, of_sinks, d_arriving, after_sources, d_incoming, after_keys, i - begin,
                    of_queries, eps * (d_arriving + d_incoming),
                )  # fmt: skip
                collect(
                    head_dK, i, through_sources, of_sources, d_leaving, after_sinks, d_outgoing, after_queries, i - begin,
                    of_keys, eps * (d_leaving + d_outgoing),
                )  # fmt: skip
            times_slope(head_dQ, kind, q[h] if kind == RELU else Q, token, Q, begin, end)
            times_slope(head_dK, kind, k[h] if kind == RELU else Q, token, head_K, begin, end)
        later[g, KEYS] = of_keys
        later[g, QUERIES] = of_queries
        later[g, SOURCES] = of_sources
        later[g, SINKS] = of_sinks
        later_total[g] = of_total
