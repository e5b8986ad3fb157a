"""The two conservations of bidirectional Flow-Attention, and what they make of values.

Inside, heads are flattened: ``Q [L, n, d]``, ``K [L, m, d]``, ``v [L, m, e]``; ``u [L, n]`` and ``w [L, m]`` are the weights of
sinks and sources, None for ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from anabranch.attention._flow_types import Conserved, Options, Sums

AllReduce = Callable[[Tensor], Tensor]


def times_vector(x: Tensor, vector: Tensor) -> Tensor:
    """``x [..., n, d]``, ``vector [..., d]`` -> ``[..., n]``; a row times a matrix, up to nine times as fast in batches."""
    return (vector.unsqueeze(-2) @ x.mT).squeeze(-2)


def vector_times(vector: Tensor, x: Tensor) -> Tensor:
    """``vector [..., n]``, ``x [..., n, d]`` -> ``[..., d]``."""
    return (vector.unsqueeze(-2) @ x).squeeze(-2)


def _shifted(x: Tensor, vector: Tensor, eps: float) -> Tensor:
    """``(x + eps) . vector`` without an ``x + eps``."""
    return times_vector(x, vector) + eps * vector.sum(-1, keepdim=True)


def over(weight: Tensor | None, flow: Tensor) -> Tensor:
    """``weight / flow``, 0 where the weight is (also where the flow is 0)."""
    if weight is None:
        return flow.reciprocal()
    return torch.where(weight > 0, weight / flow.masked_fill(weight <= 0, 1.0), 0.0)


def total_weight(weight: Tensor | None, like: Tensor, reduce: AllReduce | None) -> Tensor | float:
    """Number of tokens ``[L, 1]`` (a number where all count once)."""
    if weight is None and reduce is None:
        return float(like.shape[-2])
    total = like.new_full((*like.shape[:-2], 1), like.shape[-2]) if weight is None else weight.sum(-1, keepdim=True)
    return total if reduce is None else reduce(total)


def ratio(n: Tensor | float, m: Tensor | float) -> Tensor | float:
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
    n, m = total_weight(u, Q, reduce), total_weight(w, K, reduce)
    incoming, outgoing, conserved_in, conserved_out, sums = _flows(Q, K, u, w, options, reduce, everything)
    competition, allocation = torch.ones_like(outgoing), torch.ones_like(incoming)
    if options.competition:
        wanted = conserved_out if options.clamp is None else conserved_out.clamp(*options.clamp)
        competition = _softmax(wanted, w, m, reduce, reduce_max)
    if options.allocation:
        allocation = torch.sigmoid(conserved_in * ratio(n, m))
    return Conserved(incoming, outgoing, conserved_in, conserved_out, competition, allocation, sums)


def _flows(
    Q: Tensor,
    K: Tensor,
    u: Tensor | None,
    w: Tensor | None,
    options: Options,
    reduce: AllReduce | None,
    everything: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Sums]:
    both: AllReduce = (lambda x: x) if reduce is None else reduce
    eps = options.eps
    sources = both(K.sum(-2) if w is None else vector_times(w, K)) + eps
    sinks = both(Q.sum(-2) if u is None else vector_times(u, Q)) + eps
    incoming, outgoing = _shifted(Q, sources, eps) + options.norm_eps, _shifted(K, sinks, eps)
    from_sources = from_sinks = torch.zeros_like(sources)
    conserved_in, conserved_out = incoming, outgoing
    if options.allocation or everything:
        from_sources = both(vector_times(over(w, outgoing), K)) + eps
        conserved_in = _shifted(Q, from_sources, eps)
    if options.competition or everything:
        from_sinks = both(vector_times(over(u, incoming), Q)) + eps
        conserved_out = _shifted(K, from_sinks, eps)
    return incoming, outgoing, conserved_in, conserved_out, (sources, sinks, from_sources, from_sinks)


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
) -> tuple[Tensor, Conserved, Tensor]:
    """The plain form: output, flows and the matrix ``[L, d, e]``; differentiable to any order, in any mode."""
    Q, K = options.feature_map(q), options.feature_map(k)
    flows = conserve(Q, K, u, w, options, reduce, reduce_max, everything)
    share = flows.competition if w is None else flows.competition * w
    values = K.mT @ (share.unsqueeze(-1) * v)
    if reduce is not None:
        values = reduce(values)
    scale = flows.allocation * over(present(u), flows.incoming)
    return (Q @ values) * scale.unsqueeze(-1), flows, values


def present(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else (weight > 0).to(weight.dtype)
