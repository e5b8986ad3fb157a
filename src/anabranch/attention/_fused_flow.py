"""Flow-Attention a few heads at a time, with a backward pass of its own: what runs where no other derivative is asked for."""

from typing import Any

import torch
from torch import Tensor

from anabranch.attention._checks import full_precision, transforms_active
from anabranch.attention._compiled_flows import complete_gradients, is_compiled
from anabranch.attention._conservation import attend, over, present, ratio, times_vector, total_weight, vector_times
from anabranch.attention._flow_types import Conserved, Options

_GROUP_ENTRIES = 1 << 17  # entries of q in one group of heads: its dozen temporaries stay in a core's cache


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


def _place(whole: Tensor, group: tuple[slice, slice], dtype: torch.dtype) -> Tensor | None:
    """Where the group stands in the whole, ``[L, n, d]``, if a result in ``dtype`` can be written there as it is made."""
    place = whole[group].flatten(0, 1)
    fits = place.data_ptr() == whole[group].data_ptr() and place.is_contiguous() and place.dtype == dtype
    return place if fits else None


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
        into = _place(out, group, dtype)
        part, flows, values = attend(
            flat_q, flat_k, flat_v, sides[0], sides[1], options, out=into, compiled=is_compiled(flat_q)
        )
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
                flat_q, flat_k, flat_v, flat_grad = _heads(group, ctx.dtype, q, k, v, grad)
                places = [_place(whole, group, ctx.dtype) for whole in grads]
                parts = _backward(
                    flat_q, flat_k, flat_v, flat_grad, sides[0], sides[1], flows, values, ctx.options, places
                )
                for whole, place, part in zip(grads, places, parts, strict=True):
                    if place is None:
                        whole[group] = part.view(whole[group].shape)
        return *grads, None, None, None, None


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    u: Tensor | None,
    w: Tensor | None,
    flows: Conserved,
    values: Tensor,
    options: Options,
    places: list[Tensor | None],
) -> list[Tensor]:
    """Gradients of :func:`attend` for the gradient ``grad [L, n, e]`` of its output, in ``places`` where those are.

    With b = a / I and x = w c v: y = b Q S, S = K^T x.
    """
    Q, K = options.feature_map(q), options.feature_map(k)
    share = flows.competition if w is None else flows.competition * w
    b = flows.allocation * over(present(u), flows.incoming)

    inner = b.unsqueeze(-1) * grad
    dvalues = Q.mT @ inner
    dQ = torch.matmul(inner, values.mT, out=places[0])
    x = torch.mul(v, share.unsqueeze(-1), out=inner if inner.shape == v.shape else None)
    dK, dv = torch.matmul(x, dvalues.mT, out=places[1]), torch.matmul(K, dvalues, out=places[2])
    dv.mul_(share.unsqueeze(-1))
    if is_compiled(Q):
        complete_gradients(Q, K, dQ, dK, u, w, flows, share, options)
    else:
        _through_flows(Q, K, dQ, dK, u, w, flows, share, options)
    assert options.derivative is not None
    return [options.derivative(dQ, q, Q), options.derivative(dK, k, K), dv]


def _through_flows(
    Q: Tensor,
    K: Tensor,
    dQ: Tensor,
    dK: Tensor,
    u: Tensor | None,
    w: Tensor | None,
    flows: Conserved,
    share: Tensor,
    options: Options,
) -> None:
    """Gradients of the features, in place of those through the products alone.

    The flows enter through sums of d numbers, so that their gradients are four outer products a side.
    """
    eps = options.eps
    sources, sinks, from_sources, from_sinks = flows.sums
    per_in, per_out = over(present(u), flows.incoming), over(present(w), flows.outgoing)
    u_in, w_out = per_in if u is None else u * per_in, per_out if w is None else w * per_out
    # a / incoming and the shares are factors of the products: their gradients times themselves are row sums.
    db_b, dshare_share = (Q * dQ).sum(-1), (K * dK).sum(-1)

    din, d_in, d_out = -db_b * per_in, torch.zeros_like(per_in), torch.zeros_like(share)
    n, m = total_weight(u, Q, None), total_weight(w, K, None)
    if options.allocation:
        d_in = db_b * (1 - flows.allocation) * ratio(n, m)
    if options.competition:
        d_out = dshare_share - share * ratio(dshare_share.sum(-1, keepdim=True), m)
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
    ones_u, ones_w = (torch.ones_like(din) if u is None else u), (torch.ones_like(share) if w is None else w)
    left = torch.stack([d_in, u_in, din, ones_u], -2), torch.stack([d_out, w_out, dout, ones_w], -2)
    dQ.baddbmm_(left[0].mT, torch.stack([from_sources, d_from_sinks, sources, dsinks], -2))
    dK.baddbmm_(left[1].mT, torch.stack([from_sinks, d_from_sources, sinks, dsources], -2))
