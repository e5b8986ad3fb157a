"""Flow-Attention but for its two products, head after head, compiled: in torch some thirty calls that read everything again.

Arrays of flattened heads: ``q [L, n, d]``, ``k [L, m, d]``, ``v [L, m, e]``; weights ``u [L, n]`` and ``w [L, m]`` have no
columns where they are ones. All of one dtype. What a token of weight 0 holds is not read.
"""

import typing

import numpy as np
from numba import njit

from anabranch.attention._kernels_exp import exp

IDENTITY, SIGMOID, RELU, ELU = range(4)
RELU_FLOOR = 1e-6  # added to the positive part
BLOCK = 64  # rows that are read again while they are in the nearest cache

# No assumption about infinities and NaN: bad values must come out as bad values.
FAST = {"reassoc", "contract", "arcp", "nsz"}


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def features(x, kind, out):
    """The features of every number of ``x [n d]``."""
    one, zero, floor = x.dtype.type(1), x.dtype.type(0), x.dtype.type(RELU_FLOOR)
    if kind == SIGMOID:
        for c in range(x.shape[0]):
            out[c] = one / (one + exp(-x[c]))
    elif kind == RELU:
        for c in range(x.shape[0]):
            out[c] = (zero if x[c] < zero else x[c]) + floor
    elif kind == ELU:
        for c in range(x.shape[0]):
            out[c] = exp(zero if x[c] > zero else x[c]) + (zero if x[c] < zero else x[c])
    else:
        for c in range(x.shape[0]):
            out[c] = x[c]


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def gather(x, factor, into):
    """``into += sum_i factor_i x_i``, four rows at a time: the sums are loaded and stored once for them."""
    n = x.shape[0]
    whole = n - n % 4
    for i in range(0, whole, 4):
        f0, f1, f2, f3 = factor[i], factor[i + 1], factor[i + 2], factor[i + 3]
        for c in range(x.shape[1]):
            into[c] += (f0 * x[i, c] + f1 * x[i + 1, c]) + (f2 * x[i + 2, c] + f3 * x[i + 3, c])
    for i in range(whole, n):
        for c in range(x.shape[1]):
            into[c] += factor[i] * x[i, c]


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def all_features(x, kind, weight, out, factor, into):
    """``out_i = features of x_i``, ``into += sum_i weight_i out_i``; ``factor`` is scratch. Gives the sum of the weights."""
    n, d = x.shape
    factor[:] = 1
    total = x.dtype.type(n)
    if weight.shape[0] > 0:
        factor[:] = weight
        total = weight.sum()
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        features(x[begin:end].reshape((end - begin) * d), kind, out[begin:end].reshape((end - begin) * d))
        if weight.shape[0] > 0:
            for i in range(begin, end):
                if not weight[i] > 0:
                    out[i] = 0
        gather(out[begin:end], factor[begin:end], into)
    return total


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def receive(x, weight, vector, base, flow, factor, into):
    """``flow_i = x_i . vector + base``, and ``into += sum_i weight_i / flow_i x_i`` where ``into`` has columns.

    ``factor`` is scratch, a number for each row.
    """
    n = x.shape[0]
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        for i in range(begin, end):
            s = base
            for c in range(x.shape[1]):
                s += x[i, c] * vector[c]
            flow[i] = s
        if into.shape[0] > 0:
            for i in range(begin, end):
                factor[i] = 1 / flow[i]
            if weight.shape[0] > 0:
                for i in range(begin, end):
                    factor[i] = factor[i] * weight[i] if weight[i] > 0 else 0
            gather(x[begin:end], factor[begin:end], into)


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def with_eps(vector, eps):
    """Adds eps to every component, and gives eps times their sum."""
    total = vector.dtype.type(0)
    for c in range(vector.shape[0]):
        vector[c] += eps
        total += vector[c]
    return eps * total


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def compete(flow, weight, low, high, total, share):
    """``share_j = weight_j total exp(f_j) / sum_l weight_l exp(f_l)``, f the flow within [low, high]; 0 where the weight is."""
    weighted = weight.shape[0] > 0
    top = flow.dtype.type(-np.inf)
    for j in range(flow.shape[0]):
        inside = min(max(flow[j], low), high)
        share[j] = inside
        if (not weighted or weight[j] > 0) and not inside <= top:  # a NaN stays
            top = inside
    norm = flow.dtype.type(0)
    if weighted:
        for j in range(flow.shape[0]):
            share[j] = weight[j] * exp(share[j] - top) if weight[j] > 0 else 0
            norm += share[j]
    else:
        for j in range(flow.shape[0]):
            share[j] = exp(share[j] - top)
            norm += share[j]
    factor = total / norm if norm != 0 else norm
    for j in range(flow.shape[0]):
        share[j] *= factor


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def allot(incoming, conserved, weight, ratio, allocation, a, b):
    """Allocation ``a_i = sigmoid(ratio conserved_i)`` (or 1), and ``b_i = a_i / incoming_i``, 0 where the weight is."""
    one = incoming.dtype.type(1)
    for i in range(incoming.shape[0]):
        a[i] = one / (one + exp(-ratio * conserved[i])) if allocation else one
        b[i] = a[i] / incoming[i]
    for i in range(weight.shape[0]):
        if not weight[i] > 0:
            b[i] = 0


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def scale_rows(x, factor, out):
    """``out_i = factor_i x_i``, 0 where the factor is."""
    for i in range(x.shape[0]):
        one = factor[i]
        if one != 0:
            for c in range(x.shape[1]):
                out[i, c] = one * x[i, c]
        else:
            out[i] = 0


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def scale_in_place(x, factor):
    """``x_i *= factor_i``; of its own, since a loop whose result may overlap its argument is not vectorised."""
    for i in range(x.shape[0]):
        one = factor[i]
        for c in range(x.shape[1]):
            x[i, c] *= one


@njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def weigh_heads(
    q, k, v, u, w, Q, K, x, sinks, sources, sums, kind, low, high, eps, norm_eps, competition, allocation
):  # fmt: skip
    """What the products take: ``Q`` features of q times a / I, ``K`` features of k, ``x`` v times competition and weight.

    On the way ``sinks [L, 4, n]`` (incoming, conserved, allocation, allocation / incoming), ``sources [L, 3, m]`` (outgoing,
    conserved, competition times weight) and ``sums [L, 4, d]`` (as in :class:`Conserved`; of zeros at first). Flows that an
    ablation does not need are 1. The output is ``Q (K^T x)``. low and high: the clamp of the conserved outgoing flow.
    """
    nothing = sums[0, 0, :0]
    for h in range(q.shape[0]):
        of_K, of_Q, per_outgoing, per_incoming = sums[h, 0], sums[h, 1], sums[h, 2], sums[h, 3]
        incoming, conserved_in, a, b = sinks[h, 0], sinks[h, 1], sinks[h, 2], sinks[h, 3]
        outgoing, conserved_out, share = sources[h, 0], sources[h, 1], sources[h, 2]
        # a and share serve as scratch before they are what they are called
        m = all_features(k[h], kind, w[h], K[h], share, of_K)
        n = all_features(q[h], kind, u[h], Q[h], a, of_Q)
        base = with_eps(of_K, eps) + norm_eps
        receive(Q[h], u[h], of_K, base, incoming, a, per_incoming if competition else nothing)
        conserved_in[:] = 1
        outgoing[:] = 1
        conserved_out[:] = 1
        if allocation:
            base = with_eps(of_Q, eps)
            receive(K[h], w[h], of_Q, base, outgoing, share, per_outgoing)
            base = with_eps(per_outgoing, eps)
            receive(Q[h], u[h], per_outgoing, base, conserved_in, a, nothing)
        if competition:
            base = with_eps(per_incoming, eps)
            receive(K[h], w[h], per_incoming, base, conserved_out, share, nothing)
            compete(conserved_out, w[h], low, high, m, share)
        elif w.shape[1] > 0:
            share[:] = w[h]
        else:
            share[:] = 1
        allot(incoming, conserved_in, u[h], n / m if m > 0 else m, allocation, a, b)
        scale_in_place(Q[h], b)
        scale_rows(v[h], share, x[h])
