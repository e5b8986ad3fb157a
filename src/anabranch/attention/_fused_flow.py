"""Flow-Attention without autograd's tape where that is not needed: which form runs, and the backward pass in torch."""

from typing import Any

import torch
from torch import Tensor

from anabranch.attention._checks import full_precision, transforms_active
from anabranch.attention._compiled_flows import CompiledFlow, attend_compiled
from anabranch.attention._conservation import attend, over, present, ratio, times_vector, total_weight, vector_times
from anabranch.attention._flow_types import Conserved, Options


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
    """:func:`attend` on ``[B, H, n, d]`` by the fastest form that has the derivatives asked for, in the dtype of q.

    ``u [B, n]`` and ``w [B, m]`` are weights of sinks and sources.
    """
    if method != "plain" and not transforms_active():
        compiled = all(x.device.type == "cpu" for x in (q, k, v))
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
            if compiled:
                return attend_compiled(q, k, v, u, w, options, dtype)
        elif options.derivative is not None:
            return (CompiledFlow if compiled else FusedFlow).apply(q, k, v, u, w, options, dtype)
    return plain(q, k, v, u, w, options, dtype)


def plain(
    q: Tensor, k: Tensor, v: Tensor, u: Tensor | None, w: Tensor | None, options: Options, dtype: torch.dtype
) -> Tensor:
    """:func:`attend` on ``[B, H, n, d]`` by autograd."""
    u, w = (None if x is None else x.unsqueeze(1) for x in (u, w))
    return attend(q.to(dtype), k.to(dtype), v.to(dtype), u, w, options)[0].to(q.dtype)


class FusedFlow(torch.autograd.Function):
    """:func:`attend` with its backward pass written out: keeps q, k, v and the flows in place of autograd's tape."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, u: Tensor | None, w: Tensor | None, options: Options, dtype: Any
    ) -> Tensor:
        u, w = (None if x is None else x.unsqueeze(1) for x in (u, w))
        y, flows, values = attend(q.to(dtype), k.to(dtype), v.to(dtype), u, w, options)
        ctx.save_for_backward(q, k, v, u, w, values, *flows[:6], *flows.sums)
        ctx.options, ctx.dtype = options, dtype
        return y.to(q.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, u, w, values, *flows = ctx.saved_tensors
        kept = Conserved(*flows[:6], tuple(flows[6:]))  # type: ignore[call-arg]
        with full_precision(q):
            q, k, v, dy = (x.to(ctx.dtype) for x in (q, k, v, grad.contiguous()))
            parts = _backward(q, k, v, dy, u, w, kept, values, ctx.options)
        return *(x.to(grad.dtype) for x in parts), None, None, None, None


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
) -> list[Tensor]:
    """Gradients of :func:`attend` for the gradient ``grad [..., n, e]`` of its output.

    With b = a / I and x = w c v: y = b Q S, S = K^T x.
    """
    Q, K = options.feature_map(q), options.feature_map(k)
    share = flows.competition if w is None else flows.competition * w
    b = flows.allocation * over(present(u), flows.incoming)

    inner = b.unsqueeze(-1) * grad
    dvalues = Q.mT @ inner
    dQ, dK = inner @ values.mT, (share.unsqueeze(-1) * v) @ dvalues.mT
    dv = (K @ dvalues).mul_(share.unsqueeze(-1))
    dQ, dK = _through_flows(Q, K, dQ, dK, u, w, flows, share, options)
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
) -> tuple[Tensor, Tensor]:
    """Gradients of the features, from those through the products alone.

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
    right = (
        torch.stack([from_sources, d_from_sinks, sources, dsinks], -2),
        torch.stack([from_sinks, d_from_sources, sinks, dsources], -2),
    )
    return dQ + left[0].mT @ right[0], dK + left[1].mT @ right[1]
