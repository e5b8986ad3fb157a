"""Gradients of Flow-Attention but for those of its two products, head after head, compiled. Arrays as in ``_kernels_flow``."""

import typing

import numpy as np
from numba import njit

from anabranch.attention._kernels_flow import BLOCK, ELU, FAST, RELU, SIGMOID, gather


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def unscale(scaled, factor, gradient, Q, products):
    """``Q_i = scaled_i / factor_i``, ``products_i = scaled_i . gradient_i``, then ``gradient_i *= factor_i``.

    Q is 0 where the factor is.
    """
    for i in range(scaled.shape[0]):
        f = factor[i]
        per_f = scaled.dtype.type(1) / f if f != 0 else f
        s = scaled.dtype.type(0)
        for c in range(scaled.shape[1]):
            s += scaled[i, c] * gradient[i, c]
            Q[i, c] = per_f * scaled[i, c]
            gradient[i, c] *= f
        products[i] = s


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def row_products(x, y, out):
    """``out_i = x_i . y_i``."""
    for i in range(x.shape[0]):
        s = x.dtype.type(0)
        for c in range(x.shape[1]):
            s += x[i, c] * y[i, c]
        out[i] = s


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def through(x, vector, factor, flow, into):
    """``flow_i += factor_i (x_i . vector)``, then ``into += sum_i flow_i x_i``; gives the sum of the flows.

    Where ``vector`` has no columns the flow is as it comes.
    """
    n = x.shape[0]
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        if vector.shape[0] > 0:
            for i in range(begin, end):
                s = x.dtype.type(0)
                for c in range(x.shape[1]):
                    s += x[i, c] * vector[c]
                flow[i] += factor[i] * s
        gather(x[begin:end], flow[begin:end], into)
    return flow.sum()


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def finish(gradient, weight, a, first, b, second, c, third, fourth, kind, x, y):
    """``gradient_i += a_i first + b_i second + c_i third + weight_i fourth``, times the slope of the features y of x."""
    one, zero = y.dtype.type(1), y.dtype.type(0)
    for i in range(gradient.shape[0]):
        ai, bi, ci = a[i], b[i], c[i]
        last = weight[i] if weight.shape[0] > 0 else one
        if kind == SIGMOID:
            for t in range(gradient.shape[1]):
                whole = gradient[i, t] + ai * first[t] + bi * second[t] + ci * third[t] + last * fourth[t]
                gradient[i, t] = whole * (y[i, t] * (one - y[i, t]))
        else:
            for t in range(gradient.shape[1]):
                gradient[i, t] += ai * first[t] + bi * second[t] + ci * third[t] + last * fourth[t]
            if kind == RELU:
                for t in range(gradient.shape[1]):
                    gradient[i, t] = gradient[i, t] if x[i, t] > zero else zero
            elif kind == ELU:
                for t in range(gradient.shape[1]):
                    gradient[i, t] *= one if y[i, t] > one else y[i, t]


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
@typing.no_type_check
def shares(weight, flow, per_flow, weighted):
    """``1 / flow`` and ``weight / flow``, 0 where the weight is; gives the sum of the weights."""
    total = flow.dtype.type(0)
    for i in range(flow.shape[0]):
        one = weight[i] if weight.shape[0] > 0 else flow.dtype.type(1)
        total += one
        per_flow[i] = 1 / flow[i] if one > 0 else 0
        weighted[i] = one * per_flow[i]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
@typing.no_type_check
def gradient_heads(
    q, k, scaled, K, dQ, dK, dv, u, w, sinks, sources, sums, kind, low, high, eps, competition, allocation
):  # fmt: skip
    """Turns gradients through the products into those of q, k and v, in place.

    ``dQ [L, n, d]`` comes as that of ``scaled``, ``dK [L, m, d]`` as that of K, ``dv [L, m, e]`` as that of x; these, flows
    and sums as :func:`weigh_heads` makes them. q and k are read where the features do not tell the slope.
    """
    heads, n, d = scaled.shape
    m = K.shape[1]
    Q = np.empty((n, d), K.dtype)
    # An allocation each: as rows of one, the compiler's tests for overlap fail and nothing is vectorised.
    per_in, u_in, d_in, din = np.empty(n, K.dtype), np.empty(n, K.dtype), np.empty(n, K.dtype), np.empty(n, K.dtype)
    per_out, w_out, d_out, dout = np.empty(m, K.dtype), np.empty(m, K.dtype), np.empty(m, K.dtype), np.empty(m, K.dtype)
    d_from_sources, d_from_sinks = np.empty(d, K.dtype), np.empty(d, K.dtype)
    dsources, dsinks = np.empty(d, K.dtype), np.empty(d, K.dtype)
    nothing = d_from_sources[:0]
    for h in range(heads):
        of_K, of_Q, from_sources, from_sinks = sums[h, 0], sums[h, 1], sums[h, 2], sums[h, 3]
        incoming, a, b = sinks[h, 0], sinks[h, 2], sinks[h, 3]
        outgoing, wanted, share = sources[h, 0], sources[h, 1], sources[h, 2]
        for vector in (d_from_sources, d_from_sinks, dsources, dsinks):
            vector[:] = 0
        count_n, count_m = shares(u[h], incoming, per_in, u_in), shares(w[h], outgoing, per_out, w_out)
        ratio = count_n / count_m if count_m > 0 else count_m
        # a / incoming and the shares are factors of the products: their gradients times themselves are row sums.
        unscale(scaled[h], b, dQ[h], Q, din)
        row_products(K[h], dK[h], d_out)
        for j in range(m):
            one = share[j]
            for t in range(dv.shape[2]):
                dv[h, j, t] *= one
        for i in range(n):
            d_in[i] = din[i] * (1 - a[i]) * ratio if allocation else 0
            din[i] *= -per_in[i]
            per_in[i] *= -u_in[i]
        mean = d_out.sum() / count_m if count_m > 0 else count_m
        for j in range(m):
            inside = competition and low <= wanted[j] <= high
            d_out[j] = d_out[j] - share[j] * mean if inside else 0
            dout[j] = 0
            per_out[j] *= -w_out[j]
        if allocation:
            d_from_sources += eps * through(Q, nothing, d_in, d_in, d_from_sources)
            dsinks += eps * through(K[h], d_from_sources, per_out, dout, dsinks)
        if competition:
            d_from_sinks += eps * through(K[h], nothing, d_out, d_out, d_from_sinks)
        dsources += eps * through(Q, d_from_sinks if competition else nothing, per_in, din, dsources)
        finish(dQ[h], u[h], d_in, from_sources, u_in, d_from_sinks, din, of_K, dsinks, kind, q[h], Q)
        finish(dK[h], w[h], d_out, from_sinks, w_out, d_from_sources, dout, of_Q, dsources, kind, k[h], K[h])
