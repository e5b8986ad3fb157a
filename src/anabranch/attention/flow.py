"""Flow-Attention (Wu et al., 2202.06258): attention weights from a flow network that conserves flow at both ends, O(n d e)."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anabranch.attention._checks import (
    check_heads,
    check_mask,
    compute_dtype,
    full_precision,
    nearest,
    one_mask,
)
from anabranch.attention._conservation import attend
from anabranch.attention._distributed import max_over, sum_over
from anabranch.attention._flow_types import Options
from anabranch.attention._fused_flow import attend_heads
from anabranch.attention.causal import LOWEST, flow_attention_causal
from anabranch.attention.features import FeatureMap, split_map


@dataclass(frozen=True)
class Flows:
    """Flows of a call, per head: of sinks ``[B, heads, n]``, of sources ``[B, heads, m]``.

    Attributes:
        incoming: I, flow into each sink. outgoing: O, flow out of each source.
        conserved_incoming: into each sink when each source sends one unit; its sum over sinks is the number of sources.
        conserved_outgoing: out of each source when each sink receives one unit; its sum is the number of sinks.
        competition: c, share of a source in the values, 1 on average.
        allocation: a in (0, 1), how much a sink is given.
    """

    incoming: Float[Tensor, "batch heads n"]
    outgoing: Float[Tensor, "batch heads m"]
    conserved_incoming: Float[Tensor, "batch heads n"]
    conserved_outgoing: Float[Tensor, "batch heads m"]
    competition: Float[Tensor, "batch heads m"]
    allocation: Float[Tensor, "batch heads n"]


def flow_attention(
    q: Float[Tensor, "batch heads n d"],
    k: Float[Tensor, "batch heads m d"],
    v: Float[Tensor, "batch heads m e"],
    *,
    is_causal: bool = False,
    feature_map: str | FeatureMap = "sigmoid",
    clamp: tuple[float, float] | None = None,
    eps: float = 1e-6,
    q_mask: Bool[Tensor, "batch n"] | None = None,
    kv_mask: Bool[Tensor, "batch m"] | None = None,
    q_weight: Float[Tensor, "batch n"] | None = None,
    kv_weight: Float[Tensor, "batch m"] | None = None,
    competition: bool = True,
    allocation: bool = True,
    return_flows: bool = False,
    group: Any = None,
    method: str = "auto",
    check: bool = False,
) -> Any:
    """Flow-Attention ``[B, heads, n, e]``: O((n + m) d e) time, O((n + m) (d + e)) memory.

    With features Q, K: sinks receive I, sources send O; conserving one end gives the flow at the other; sources compete by a
    softmax of theirs, sinks are allotted a sigmoid of theirs. There is no factor 1 / sqrt(d). bfloat16 and float16 are
    computed in float32. The paper's section 3 and the authors' code; masks, weights and groups are ours.

    Args:
        is_causal: output i sees tokens up to i (n = m): :func:`flow_attention_causal`.
        feature_map: "sigmoid", "relu" (plus 1e-6), "elu" (plus 1), or an elementwise non-negative callable.
        clamp: range to which the conserved outgoing flow is limited before the softmax.
        eps: added to each component of both factors of a flow.
        q_mask, kv_mask: True for a real token; the others are as if deleted, and outputs of masked sinks are 0.
        q_weight, kv_weight: non-negative; a token of weight 2 counts as if it stood there twice. Not differentiated.
        competition, allocation: leave one out, for ablations.
        return_flows: give ``(y, Flows)``.
        group: processes of ``torch.distributed`` that hold a part of one sequence each (their n and m may differ): seven
            all-reduces, of d numbers a head and one of d e, however long the sequence.
        method: "fused" (backward pass written out), "plain" (autograd: any derivative, torch.func), "auto": fused where it can.
        check: look at values too: NaN, infinities, negative features.

    Raises:
        ValueError: shapes that disagree, no tokens, an unknown name, masks that differ in the causal form, and with
            ``check`` bad values. TypeError: a mask that is not bool.
    """
    phi, derivative = split_map(feature_map)
    nearest("method", method, ["auto", "fused", "plain"])
    if check:
        _check_values(q, k, v, phi)
    if is_causal:
        unsupported = {
            "q_weight": q_weight,
            "kv_weight": kv_weight,
            "group": group,
            "return_flows": return_flows or None,
        }
        for name, value in unsupported.items():
            if value is not None:
                raise ValueError(f"{name} is not for is_causal=True: prefix sums have no such form")
        check_heads(q, k, v, is_causal=True)
        options: dict[str, Any] = {"feature_map": feature_map, "clamp": clamp, "eps": eps}
        return flow_attention_causal(
            q, k, v, mask=one_mask(q_mask, kv_mask), competition=competition, allocation=allocation,
            method={"fused": "redo"}.get(method, method), **options,
        )  # fmt: skip
    check_heads(q, k, v)
    dtype = compute_dtype(q)
    u = _weights("q", q_mask, q_weight, q, dtype)
    w = _weights("kv", kv_mask, kv_weight, k, dtype)
    how = Options(phi, derivative, clamp, eps, competition, allocation)
    special = return_flows or group is not None
    if method == "fused" and (special or derivative is None):
        raise ValueError("method='fused' has no flows, no group and no feature map of your own: use method='auto'")
    with full_precision(q):
        if not special:
            return attend_heads(q, k, v, u, w, how, dtype, method)
        u, w = (None if x is None else x.unsqueeze(1) for x in (u, w))
        total, largest = (None, None) if group is None else (sum_over(group), max_over(group))
        y, flows, _ = attend(q.to(dtype), k.to(dtype), v.to(dtype), u, w, how, total, largest, return_flows)
    y = y.to(q.dtype)
    return (y, Flows(*flows[:6])) if return_flows else y


def flow_attention_matrix(
    q: Float[Tensor, "batch heads n d"],
    k: Float[Tensor, "batch heads m d"],
    *,
    is_causal: bool = False,
    feature_map: str | FeatureMap = "sigmoid",
    clamp: tuple[float, float] | None = None,
    eps: float = 1e-6,
    q_mask: Bool[Tensor, "batch n"] | None = None,
    kv_mask: Bool[Tensor, "batch m"] | None = None,
    competition: bool = True,
    allocation: bool = True,
) -> Float[Tensor, "batch heads n m"]:
    """The matrix W of weights, with ``flow_attention(q, k, v) = W v``, formed edge by edge: O(n m d), for plots and tests.

    Row i sums to about its allocation, not to 1.

    Raises:
        ValueError: shapes that disagree.
    """
    check_heads(q, k, k, is_causal=is_causal)
    check_mask("q_mask", q_mask, q.shape[0], q.shape[2])
    check_mask("kv_mask", kv_mask, k.shape[0], k.shape[2])
    phi = split_map(feature_map)[0]
    Q, K = phi(q), phi(k)
    sink = torch.ones_like(Q[..., 0]) if q_mask is None else q_mask[:, None].expand(Q.shape[:3]).to(Q.dtype)
    source = torch.ones_like(K[..., 0]) if kv_mask is None else kv_mask[:, None].expand(K.shape[:3]).to(K.dtype)
    if is_causal:
        both = one_mask(q_mask, kv_mask)
        sink = source = sink if both is q_mask else source
    edges = torch.ones(q.shape[2], k.shape[2], dtype=Q.dtype, device=Q.device)
    edges = edges.tril() if is_causal else edges  # sink i, source j
    n, m = sink.sum(-1, keepdim=True), source.sum(-1, keepdim=True)
    t = sink.cumsum(-1).clamp(min=1) if is_causal else torch.ones_like(sink)
    per_source = t if is_causal else torch.ones_like(source)

    def reach(x: Tensor, weight: Tensor, y: Tensor, towards: Tensor) -> Tensor:
        """(x_i + eps) . (sum over the j it has an edge to of weight_j y_j + eps)."""
        return ((x + eps) * (towards @ (weight.unsqueeze(-1) * y) + eps)).sum(-1)

    # In the causal form a source, too, looks only back: at the sinks up to its own time.
    back = edges if is_causal else edges.mT
    incoming, outgoing = reach(Q, source, K, edges) / t, reach(K, sink, Q, back) / per_source
    arriving = reach(Q, source / outgoing, K, edges) / t
    leaving = reach(K, sink / incoming, Q, back) / per_source
    a = torch.sigmoid(arriving * (1.0 if is_causal else n / m.clamp(min=1)))
    wanted = (leaving if clamp is None else leaving.clamp(*clamp)).masked_fill(source == 0, LOWEST)
    rivals = edges if is_causal else edges.new_ones(k.shape[2], k.shape[2])  # whom source j competes with
    totals = wanted.unsqueeze(-2).masked_fill(rivals == 0, LOWEST).logsumexp(-1)
    c = source * (t if is_causal else m) * torch.exp(wanted - totals)
    c, a = c if competition else source, (a if allocation else torch.ones_like(a)) * sink
    return (a / (incoming * t)).unsqueeze(-1) * (Q @ K.mT) * edges * c.unsqueeze(-2)


def _weights(name: str, mask: Tensor | None, weight: Tensor | None, x: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Weights ``[B, n]`` of the tokens of ``x``, None for ones."""
    batch, length = x.shape[0], x.shape[2]
    check_mask(f"{name}_mask", mask, batch, length)
    if weight is None:
        return None if mask is None else mask.to(dtype)
    if tuple(weight.shape) != (batch, length):
        raise ValueError(f"{name}_weight has shape {tuple(weight.shape)}: expected [{batch}, {length}]")
    weight = weight.detach().to(dtype)
    if bool((weight < 0).any()):
        raise ValueError(f"{name}_weight holds {float(weight.min())}: expected numbers >= 0")
    return weight if mask is None else weight * mask


def _check_values(q: Tensor, k: Tensor, v: Tensor, phi: FeatureMap) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} holds a NaN or an infinity")
    for name, x in (("q", q), ("k", k)):
        if float(lowest := phi(x).amin()) < 0:
            raise ValueError(f"feature_map gives {float(lowest)} for {name}: expected numbers >= 0")
