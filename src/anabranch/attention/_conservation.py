"""The two conservations of bidirectional Flow-Attention: a plain form, and one with a backward pass of its own.

Inside, heads are flattened: ``Q [L, n, d]``, ``K [L, m, d]``, ``v [L, m, e]``; ``u [L, n]`` and ``w [L, m]`` are the weights of
sinks and sources, None for ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anabranch.attention._checks import full_precision, transforms_active
from anabranch.attention.features import Derivative, FeatureMap

AllReduce = Callable[[Tensor], Tensor]
_GROUP_ENTRIES = 1 << 17  # entries of q in one group of heads: its dozen temporaries stay in a core's cache


@dataclass(frozen=True)
class Options:
    """How flows are turned into weights."""

    feature_map: FeatureMap
    derivative: Derivative | None
    clamp: tuple[float, float] | None
    eps: float
    competition: bool
    allocation: bool
    norm_eps: float = 0.0  # added to the incoming flow


class Conserved(NamedTuple):
    """Flows of every sink ``[L, n]`` and source ``[L, m]``, in the words of :class:`Flows`."""

    incoming: Tensor
    outgoing: Tensor
    conserved_incoming: Tensor
    conserved_outgoing: Tensor
    competition: Tensor
    allocation: Tensor
    sums: tuple[Tensor, Tensor, Tensor, Tensor]  # [L, d] + eps: of w K, u Q, w K / outgoing, u Q / incoming


def times_vector(x: Tensor, vector: Tensor) -> Tensor:
    """``x [..., n, d]``, ``vector [..., d]`` -> ``[..., n]``; a row times a matrix, up to nine times as fast in batches."""
    return (vector.unsqueeze(-2) @ x.mT).squeeze(-2)


def vector_times(vector: Tensor, x: Tensor) -> Tensor:
    """``vector [..., n]``, ``x [..., n, d]`` -> ``[..., d]``."""
    return (vector.unsqueeze(-2) @ x).squeeze(-2)


def _shifted(x: Tensor, vector: Tensor, eps: float) -> Tensor:
    """``(x + eps) . vector`` without an ``x + eps``."""
    return times_vector(x, vector) + eps * vector.sum(-1, keepdim=True)


def _over(weight: Tensor | None, flow: Tensor) -> Tensor:
    """``weight / flow``, 0 where the weight is (also where the flow is 0)."""
    if weight is None:
        return flow.reciprocal()
    return torch.where(weight > 0, weight / flow.masked_fill(weight <= 0, 1.0), 0.0)


def _total(weight: Tensor | None, like: Tensor, reduce: AllReduce | None) -> Tensor | float:
    """Number of tokens ``[L, 1]`` (a number where all count once)."""
    if weight is None and reduce is None:
        return float(like.shape[-2])
    total = like.new_full((*like.shape[:-2], 1), like.shape[-2]) if weight is None else weight.sum(-1, keepdim=True)
    return total if reduce is None else reduce(total)


def _ratio(n: Tensor | float, m: Tensor | float) -> Tensor | float:
    return n / (m if isinstance(m, float) else m.masked_fill(m <= 0, torch.inf))  # 0 where nothing is left


def _softmax(
    flow: Tensor, weight: Tensor | None, total: Tensor | float, reduce: AllReduce | None, reduce_max: AllReduce | None
) -> Tensor:
    """Competition: ``total * exp(flow_j) / sum_l w_l exp(flow_l)``; 0 where the weight is."""
    if weight is None and reduce is None:
        return torch.softmax(flow, -1) * total
    if weight is not None:
        flow = flow.masked_fill(weight <= 0, -torch.inf)
    top = flow.amax(-1, keepdim=True).detach()
    if reduce_max is not None:
        top = reduce_max(top)
    exp = torch.exp(flow - top.clamp(min=torch.finfo(flow.dtype).min))  # all masked: exp(-inf) = 0, not NaN
    norm = (exp if weight is None else weight * exp).sum(-1, keepdim=True)
    if reduce is not None:
        norm = reduce(norm)
    return exp * (total / norm.masked_fill(norm == 0, 1.0))


def conserve(
    Q: Tensor,
    K: Tensor,
    u: Tensor | None,
    w: Tensor | None,
    options: Options,
    reduce: AllReduce | None = None,
    reduce_max: AllReduce | None = None,
    everything: bool = False,
) -> Conserved:
    """Flows from features; ``reduce`` sums over the processes that share a sequence.

    Conserved flows that an ablation has no use for are left out unless ``everything`` is asked for.
    """
    both: AllReduce = (lambda x: x) if reduce is None else reduce
    eps = options.eps
    sources = both(K.sum(-2) if w is None else vector_times(w, K)) + eps
    sinks = both(Q.sum(-2) if u is None else vector_times(u, Q)) + eps
    n, m = _total(u, Q, reduce), _total(w, K, reduce)
    incoming, outgoing = _shifted(Q, sources, eps) + options.norm_eps, _shifted(K, sinks, eps)
    from_sources = from_sinks = torch.zeros_like(sources)
    conserved_in, conserved_out = incoming, outgoing
    if options.allocation or everything:
        from_sources = both(vector_times(_over(w, outgoing), K)) + eps
        conserved_in = _shifted(Q, from_sources, eps)
    if options.competition or everything:
        from_sinks = both(vector_times(_over(u, incoming), Q)) + eps
        conserved_out = _shifted(K, from_sinks, eps)
    competition, allocation = torch.ones_like(outgoing), torch.ones_like(incoming)
    if options.competition:
        wanted = conserved_out if options.clamp is None else conserved_out.clamp(*options.clamp)
        competition = _softmax(wanted, w, m, reduce, reduce_max)
    if options.allocation:
        allocation = torch.sigmoid(conserved_in * _ratio(n, m))
    sums = (sources, sinks, from_sources, from_sinks)
    return Conserved(incoming, outgoing, conserved_in, conserved_out, competition, allocation, sums)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    w: Tensor | None,
    options: Options,
    reduce: AllReduce | None = None,
    reduce_max: AllReduce | None = None,
    everything: bool = False,
    out: Tensor | None = None,
) -> tuple[Tensor, Conserved, Tensor]:
    """The plain form: output, flows and the matrix ``[L, d, e]``; differentiable to any order, in any mode (without ``out``)."""
    Q, K = options.feature_map(q), options.feature_map(k)
    flows = conserve(Q, K, u, w, options, reduce, reduce_max, everything)
    share = flows.competition if w is None else flows.competition * w
    values = K.mT @ (share.unsqueeze(-1) * v)
    if reduce is not None:
        values = reduce(values)
    scale = flows.allocation * _over(_present(u), flows.incoming)
    return torch.matmul(Q, values, out=out).mul_(scale.unsqueeze(-1)), flows, values


def _present(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else (weight > 0).to(weight.dtype)


def _groups(q: Tensor, k: Tensor) -> list[tuple[slice, slice]]:
    """Slices of batch and heads whose tensors stay in the cache."""
    batch, heads, n, d = q.shape
    size = max(1, _GROUP_ENTRIES // (max(n, k.shape[2]) * d))
    if size >= heads:
        step = size // heads
        return [(slice(i, i + step), slice(None)) for i in range(0, batch, step)]
    return [(slice(b, b + 1), slice(h, h + size)) for b in range(batch) for h in range(0, heads, size)]


def _heads(group: tuple[slice, slice], dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    return [x[group].flatten(0, 1).to(dtype) for x in tensors]


def _weights(group: tuple[slice, slice], dtype: torch.dtype, heads: int, weight: Tensor | None) -> Tensor | None:
    """``[B, n]`` -> ``[L, n]``."""
    if weight is None:
        return None
    heads = len(range(heads)[group[1]])
    return weight[group[0]].to(dtype).unsqueeze(1).expand(-1, heads, -1).flatten(0, 1)


def attend_grouped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    w: Tensor | None,
    options: Options,
    dtype: torch.dtype,
    kept: list[tuple[Conserved, Tensor]] | None = None,
) -> Tensor:
    """The plain form, a few heads at a time: two to three times as fast on long sequences, which do not fit in a cache.

    Takes ``q [B, H, n, d]``, ``k [B, H, m, d]``, ``v [B, H, m, e]``, ``u [B, n]`` and ``w [B, m]``; ``kept`` collects the flows
    and matrices of the groups.
    """
    out = torch.empty_like(q) if v.shape[-1] == q.shape[-1] else q.new_empty(*q.shape[:3], v.shape[-1])
    for group in _groups(q, k):
        sides = [_weights(group, dtype, q.shape[1], weight) for weight in (u, w)]
        flat_q, flat_k, flat_v = _heads(group, dtype, q, k, v)
        place = out[group].flatten(0, 1)
        into = place if place.data_ptr() == out[group].data_ptr() and place.dtype == dtype else None
        part, flows, values = attend(flat_q, flat_k, flat_v, sides[0], sides[1], options, out=into)
        if into is None:
            out[group] = part.view(out[group].shape)
        if kept is not None:
            kept.append((flows, values))
    return out


def attend_heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    w: Tensor | None,
    options: Options,
    dtype: torch.dtype,
    method: str = "auto",
) -> Tensor:
    """:func:`attend` on ``[B, H, n, d]`` by the fastest form that has the derivatives asked for, in the dtype of q."""
    if method != "plain" and not transforms_active():
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
            return attend_grouped(q, k, v, u, w, options, dtype)
        if options.derivative is not None:
            return FusedFlow.apply(q, k, v, u, w, options, dtype)
    u, w = (None if x is None else x.unsqueeze(1) for x in (u, w))
    return attend(q.to(dtype), k.to(dtype), v.to(dtype), u, w, options)[0].to(q.dtype)


class FusedFlow(torch.autograd.Function):
    """:func:`attend_grouped` with its backward pass written out: keeps q, k, v and the flows in place of autograd's tape."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, u: Tensor | None, w: Tensor | None, options: Options, dtype: Any
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, u, w)
        ctx.options, ctx.dtype, ctx.kept = options, dtype, []
        return attend_grouped(q, k, v, u, w, options, dtype, ctx.kept)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, u, w = ctx.saved_tensors
        grad = grad.contiguous()  # that of a sum is one number, which slows every product down
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        with full_precision(q):
            for group, (flows, values) in zip(_groups(q, k), ctx.kept, strict=True):
                sides = [_weights(group, ctx.dtype, q.shape[1], weight) for weight in (u, w)]
                heads = _heads(group, ctx.dtype, q, k, v, grad)
                parts = _backward(
                    heads[0], heads[1], heads[2], sides[0], sides[1], heads[3], flows, values, ctx.options
                )
                for whole, part in zip(grads, parts, strict=True):
                    whole[group] = part.view(whole[group].shape)
        return *grads, None, None, None, None


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    w: Tensor | None,
    grad: Tensor,
    flows: Conserved,
    values: Tensor,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`attend` for the gradient ``grad [L, n, e]`` of its output.

    With b = a / I and x = w c v: y = b Q S, S = K^T x. The flows enter through sums of d numbers, so that their
    gradients are four outer products a side.
    """
    assert options.derivative is not None
    eps = options.eps
    Q, K = options.feature_map(q), options.feature_map(k)
    sources, sinks, from_sources, from_sinks = flows.sums
    per_in, per_out = _over(_present(u), flows.incoming), _over(_present(w), flows.outgoing)
    u_in, w_out = per_in if u is None else u * per_in, per_out if w is None else w * per_out
    share = flows.competition if w is None else flows.competition * w
    b = flows.allocation * per_in

    inner, x = b.unsqueeze(-1) * grad, share.unsqueeze(-1) * v
    dvalues = Q.mT @ inner
    dQ, dK, dv = inner @ values.mT, x @ dvalues.mT, (K @ dvalues).mul_(share.unsqueeze(-1))
    # b and share are factors of the products: their gradients times themselves are row sums.
    db_b, dshare_share = (Q * dQ).sum(-1), (K * dK).sum(-1)

    din, d_in, d_out = -db_b * per_in, torch.zeros_like(b), torch.zeros_like(share)
    n, m = _total(u, Q, None), _total(w, K, None)
    if options.allocation:
        d_in = db_b * (1 - flows.allocation) * _ratio(n, m)
    if options.competition:
        d_out = dshare_share - share * _ratio(dshare_share.sum(-1, keepdim=True), m)
        if options.clamp is not None:
            low, high = options.clamp
            d_out = d_out * ((flows.conserved_outgoing >= low) & (flows.conserved_outgoing <= high))
    d_from_sources = d_from_sinks = torch.zeros_like(sources)
    dout = torch.zeros_like(share)
    if options.allocation:
        d_from_sources = vector_times(d_in, Q) + eps * d_in.sum(-1, keepdim=True)
        dout = -w_out * per_out * times_vector(K, d_from_sources)
    if options.competition:
        d_from_sinks = vector_times(d_out, K) + eps * d_out.sum(-1, keepdim=True)
        din = din - u_in * per_in * times_vector(Q, d_from_sinks)
    dsources = vector_times(din, Q) + eps * din.sum(-1, keepdim=True)
    dsinks = vector_times(dout, K) + eps * dout.sum(-1, keepdim=True)
    ones_u, ones_w = (torch.ones_like(b) if u is None else u), (torch.ones_like(share) if w is None else w)
    left = torch.stack([d_in, u_in, din, ones_u], -2), torch.stack([d_out, w_out, dout, ones_w], -2)
    dQ = dQ.baddbmm_(left[0].mT, torch.stack([from_sources, d_from_sinks, sources, dsinks], -2))
    dK = dK.baddbmm_(left[1].mT, torch.stack([from_sinks, d_from_sources, sinks, dsources], -2))
    return options.derivative(dQ, q, Q), options.derivative(dK, k, K), dv
