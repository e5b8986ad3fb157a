"""Flow conservation and its gradient in one pass per side, compiled: in torch each is a dozen calls that read everything again.

Arrays of flattened heads, ``Q [L, n, d]``, ``K [L, m, d]``; weights ``u [L, n]`` and ``w [L, m]`` have no columns where they
are ones. All of one dtype.
"""

import typing

import numpy as np
from numba import njit

# No assumption about infinities and NaN: bad values must come out as bad values.
_FAST = {"reassoc", "contract", "arcp", "nsz"}


@njit(cache=True, nogil=True, fastmath=_FAST)
@typing.no_type_check
def add_rows(x, weight, into):
    """``into += sum_i weight_i x_i``."""
    weighted = weight.shape[0] > 0
    for i in range(x.shape[0]):
        if not weighted:
            for c in range(x.shape[1]):
                into[c] += x[i, c]
        elif weight[i] > 0:
            factor = weight[i]
            for c in range(x.shape[1]):
                into[c] += factor * x[i, c]


@njit(cache=True, nogil=True, fastmath=_FAST)
@typing.no_type_check
def receive(x, weight, vector, base, flow, into):
    """``flow_i = x_i . vector + base``, and ``into += sum_i weight_i / flow_i x_i`` where ``into`` has columns."""
    weighted, wanted = weight.shape[0] > 0, into.shape[0] > 0
    for i in range(x.shape[0]):
        s = base
        for c in range(x.shape[1]):
            s += x[i, c] * vector[c]
        flow[i] = s
        if wanted and (not weighted or weight[i] > 0):
            share = (weight[i] if weighted else x.dtype.type(1)) / s
            for c in range(x.shape[1]):
                into[c] += share * x[i, c]


@njit(cache=True, nogil=True, fastmath=_FAST)
@typing.no_type_check
def with_eps(vector, eps):
    """Adds eps to every component, and gives eps times their sum."""
    total = vector.dtype.type(0)
    for c in range(vector.shape[0]):
        vector[c] += eps
        total += vector[c]
    return eps * total


@njit(cache=True, nogil=True)
@typing.no_type_check
def conserve_heads(Q, K, u, w, eps, norm_eps, competition, allocation, sinks, sources, sums):
    """Fills ``sinks [2, L, n]`` (incoming, conserved), ``sources [2, L, m]`` (outgoing, conserved) and ``sums [4, L, d]``.

    Sums as in :class:`Conserved`, of zeros at first. Flows that an ablation does not need are 1.
    """
    nothing = sums[0, 0, :0]
    for head in range(Q.shape[0]):
        of_K, of_Q, per_outgoing, per_incoming = sums[0, head], sums[1, head], sums[2, head], sums[3, head]
        add_rows(K[head], w[head], of_K)
        base = with_eps(of_K, eps) + norm_eps
        receive(Q[head], u[head], of_K, base, sinks[0, head], per_incoming if competition else nothing)
        sources[:, head] = 1
        sinks[1, head] = 1
        if allocation:
            add_rows(Q[head], u[head], of_Q)
            base = with_eps(of_Q, eps)
            receive(K[head], w[head], of_Q, base, sources[0, head], per_outgoing)
            base = with_eps(per_outgoing, eps)
            receive(Q[head], u[head], per_outgoing, base, sinks[1, head], nothing)
        if competition:
            base = with_eps(per_incoming, eps)
            receive(K[head], w[head], per_incoming, base, sources[1, head], nothing)


@njit(cache=True, nogil=True, fastmath=_FAST)
@typing.no_type_check
def through(x, vector, factor, flow, into):
    """``flow_i += factor_i (x_i . vector)``, then ``into += sum_i flow_i x_i``; gives the sum of the flows.

    Where ``vector`` has no columns the flow is as it comes.
    """
    total = x.dtype.type(0)
    for i in range(x.shape[0]):
        if vector.shape[0] > 0:
            s = x.dtype.type(0)
            for c in range(x.shape[1]):
                s += x[i, c] * vector[c]
            flow[i] += factor[i] * s
        change = flow[i]
        total += change
        for c in range(x.shape[1]):
            into[c] += change * x[i, c]
    return total


@njit(cache=True, nogil=True, fastmath=_FAST)
@typing.no_type_check
def spread(gradient, weight, a, first, b, second, c, third, fourth):
    """``gradient_i += a_i first + b_i second + c_i third + weight_i fourth``."""
    for i in range(gradient.shape[0]):
        ai, bi, ci = a[i], b[i], c[i]
        last = weight[i] if weight.shape[0] > 0 else gradient.dtype.type(1)
        for k in range(gradient.shape[1]):
            gradient[i, k] += ai * first[k] + bi * second[k] + ci * third[k] + last * fourth[k]


@njit(cache=True, nogil=True, fastmath=_FAST)
@typing.no_type_check
def row_products(x, y, out):
    """``out_i = x_i . y_i``."""
    for i in range(x.shape[0]):
        s = x.dtype.type(0)
        for c in range(x.shape[1]):
            s += x[i, c] * y[i, c]
        out[i] = s


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
@typing.no_type_check
def gradient_heads(
    Q, K, dQ, dK, u, w, incoming, outgoing, conserved_out, of_K, of_Q, from_sources, from_sinks, a, share,
    low, high, eps, competition, allocation,
):  # fmt: skip
    """Completes gradients of features: ``dQ [L, n, d]`` and ``dK [L, m, d]`` hold those through the products alone.

    Flows and sums as :func:`conserve_heads` makes them; ``a [L, n]`` allocation, ``share [L, m]`` competition times weight; low
    and high the clamp of the conserved outgoing flow.
    """
    heads, n, d = Q.shape
    m = K.shape[1]
    # An allocation each: as rows of one, the compiler's tests for overlap fail and nothing is vectorised.
    per_in, u_in, d_in, din = np.empty(n, Q.dtype), np.empty(n, Q.dtype), np.empty(n, Q.dtype), np.empty(n, Q.dtype)
    per_out, w_out, d_out, dout = np.empty(m, Q.dtype), np.empty(m, Q.dtype), np.empty(m, Q.dtype), np.empty(m, Q.dtype)
    d_from_sources, d_from_sinks = np.empty(d, Q.dtype), np.empty(d, Q.dtype)
    dsources, dsinks = np.empty(d, Q.dtype), np.empty(d, Q.dtype)
    nothing = d_from_sources[:0]
    for head in range(heads):
        for vector in (d_from_sources, d_from_sinks, dsources, dsinks):
            vector[:] = 0
        count_n = shares(u[head], incoming[head], per_in, u_in)
        count_m = shares(w[head], outgoing[head], per_out, w_out)
        ratio = count_n / count_m if count_m > 0 else count_m
        # a / incoming and the shares are factors of the products: their gradients times themselves are row sums.
        row_products(Q[head], dQ[head], din)
        row_products(K[head], dK[head], d_out)
        for i in range(n):
            d_in[i] = din[i] * (1 - a[head, i]) * ratio if allocation else 0
            din[i] *= -per_in[i]
            per_in[i] *= -u_in[i]
        mean = d_out.sum() / count_m if count_m > 0 else count_m
        for j in range(m):
            wanted = conserved_out[head, j]
            inside = competition and low <= wanted <= high
            d_out[j] = d_out[j] - share[head, j] * mean if inside else 0
            dout[j] = 0
            per_out[j] *= -w_out[j]
        if allocation:
            d_from_sources += eps * through(Q[head], nothing, d_in, d_in, d_from_sources)
            dsinks += eps * through(K[head], d_from_sources, per_out, dout, dsinks)
        if competition:
            d_from_sinks += eps * through(K[head], nothing, d_out, d_out, d_from_sinks)
        dsources += eps * through(Q[head], d_from_sinks if competition else nothing, per_in, din, dsources)
        spread(dQ[head], u[head], d_in, from_sources[head], u_in, d_from_sinks, din, of_K[head], dsinks)
        spread(dK[head], w[head], d_out, from_sinks[head], w_out, d_from_sources, dout, of_Q[head], dsources)
