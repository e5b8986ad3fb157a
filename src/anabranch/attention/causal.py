"""Causal Flow-Attention: every sum over tokens becomes a prefix sum; chunks in parallel, one token at a time, or explicit.

With t the position from 1 (the paper's appendix and the authors' code): incoming and outgoing flow are divided by t, and
competition is t exp(O_j) / sum over l <= j of exp(O_l): fixed at time j, so the recurrence is exact. All forms agree.
"""

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anabranch.attention._checks import (
    check_chunk,
    check_heads,
    check_mask,
    compute_dtype,
    full_precision,
    nearest,
)
from anabranch.attention._compiled_causal import attend_causal_compiled
from anabranch.attention._conservation import times_vector, vector_times
from anabranch.attention._flow_types import Options
from anabranch.attention._scan import Inputs, State, scan
from anabranch.attention.features import FeatureMap, split_map

LOWEST = -1e30  # stands for log 0: its differences stay numbers


@dataclass(frozen=True)
class FlowAttentionState:
    """All that causal Flow-Attention keeps of its past: ``d e + 4 d + 1`` numbers a head, however long the past.

    Attributes:
        keys, queries: sums of their features, ``[B, heads, d]``.
        sources, sinks: sums of key features over outgoing, and of query features over incoming flow, ``[B, heads, d]``.
        log_total: logarithm of the sum of ``exp(conserved outgoing)``, ``[B, heads]``.
        values: sum of key features times competing values, ``[B, heads, d, e]``.
        count: tokens seen, ``[B]``.
    """

    keys: Float[Tensor, "batch heads d"]
    queries: Float[Tensor, "batch heads d"]
    sources: Float[Tensor, "batch heads d"]
    sinks: Float[Tensor, "batch heads d"]
    log_total: Float[Tensor, "batch heads"]
    values: Float[Tensor, "batch heads d e"]
    count: Int[Tensor, " batch"]

    @classmethod
    def empty(
        cls,
        batch: int,
        heads: int,
        d: int,
        e: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "FlowAttentionState":
        """The state before the first token."""
        zeros = partial(torch.zeros, device=device, dtype=dtype)
        vector = (batch, heads, d)
        return cls(
            zeros(vector), zeros(vector), zeros(vector), zeros(vector), zeros(batch, heads).fill_(LOWEST),
            zeros(*vector, d if e is None else e), torch.zeros(batch, dtype=torch.int64, device=device),
        )  # fmt: skip

    def detach(self) -> "FlowAttentionState":
        """The same numbers without their history, for truncated back-propagation through time."""
        return FlowAttentionState(**{f.name: getattr(self, f.name).detach() for f in fields(self)})

    def _flat(self, dtype: torch.dtype) -> State:
        kept = (self.keys, self.queries, self.sources, self.sinks, self.log_total, self.values)
        return tuple(x.flatten(0, 1).to(dtype) for x in kept)

    def _checked(self, q: Tensor, e: int) -> "FlowAttentionState":
        """Raises ValueError for the state of another batch, number of heads or width."""
        expected = (*q.shape[:2], q.shape[-1], e)
        if tuple(self.values.shape) != expected:
            raise ValueError(f"the state's values have shape {tuple(self.values.shape)}: expected {list(expected)}")
        return self


def chunk_sums(x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the chunks before each chunk, ``x [L, g, ...]``, ``before [L, ...]``; and the sum of all."""
    if x.shape[1] == 1:
        return before.unsqueeze(1), before + x[:, 0]
    sums = torch.cat([before.unsqueeze(1), x], 1).cumsum(1)
    return sums[:, :-1], sums[:, -1]


def _block(
    inputs: Inputs,
    state: State,
    *,
    chunk: int,
    feature_map: FeatureMap,
    clamp: tuple[float, float] | None,
    eps: float,
    competition: bool,
    allocation: bool,
) -> tuple[Tensor, State]:
    """One block of the scan: its chunks of ``chunk`` tokens side by side, each with one chunk-square of products."""
    q, k, v, t, valid = inputs
    heads, size, d = q.shape
    if size < chunk:
        chunk = size
    elif size % chunk:  # only the last block has a rest
        how = partial(
            _block,
            chunk=chunk,
            feature_map=feature_map,
            clamp=clamp,
            eps=eps,
            competition=competition,
            allocation=allocation,
        )
        whole = size - size % chunk
        first, state = how(tuple(None if x is None else x[:, :whole] for x in inputs), state)
        rest, state = how(tuple(None if x is None else x[:, whole:] for x in inputs), state)
        return torch.cat([first, rest], 1), state
    shape = (heads, size // chunk, chunk)
    Q, K = feature_map(q), feature_map(k)
    if valid is not None:
        Q, K = Q * valid.unsqueeze(-1), K * valid.unsqueeze(-1)
    Q, K, v, t = Q.reshape(*shape, d), K.reshape(*shape, d), v.reshape(*shape, v.shape[-1]), t.reshape(shape)
    keys, queries, sources, sinks, log_total, values = state
    products = Q @ K.mT
    lower, upper = products.tril(), products.triu()  # queries that look back at keys; keys that look back at queries
    q_sum, k_sum, constant = Q.sum(-1), K.sum(-1), d * eps * eps

    def flow(own: Tensor, x: Tensor, x_sum: Tensor, y_sum: Tensor, before: Tensor) -> Tensor:
        """(x_i + eps) . (sum over j <= i of y_j + eps), of which the chunk's own x . y is known."""
        sums = y_sum.cumsum(-1) + before.sum(-1, keepdim=True) + x_sum
        return own + times_vector(x, before) + (eps * sums + constant)

    before, keys = chunk_sums(K.sum(-2), keys)
    incoming = flow(lower.sum(-1), Q, q_sum, k_sum, before)
    before, queries = chunk_sums(Q.sum(-2), queries)
    outgoing = flow(upper.sum(-2), K, k_sum, q_sum, before)
    per_in, per_out = t / incoming, t / outgoing
    if valid is not None:
        real = valid.reshape(shape) > 0
        per_in = torch.where(real, t / incoming.masked_fill(~real, 1.0), 0.0)
        per_out = torch.where(real, t / outgoing.masked_fill(~real, 1.0), 0.0)
    a: Tensor | float = 1.0
    if allocation:
        before, sources = chunk_sums(vector_times(per_out, K), sources)
        arriving = flow(times_vector(lower, per_out), Q, q_sum, k_sum * per_out, before)
        a = torch.sigmoid(arriving / t)
    if competition:
        before, sinks = chunk_sums(vector_times(per_in, Q), sinks)
        leaving = flow(vector_times(per_in, upper), K, k_sum, q_sum * per_in, before) / t
        if clamp is not None:
            leaving = leaving.clamp(*clamp)
        if valid is not None:
            leaving = leaving.masked_fill(~real, LOWEST)
        totals = torch.logaddexp(log_total.unsqueeze(1), leaving.reshape(heads, size).logcumsumexp(1))
        log_total = totals[:, -1]
        v = (t * torch.exp(leaving - totals.reshape(shape))).unsqueeze(-1) * v
    if valid is not None:
        v = torch.where(real.unsqueeze(-1), v, 0.0)
    before, values = chunk_sums(K.mT @ v, values)
    out = (lower @ v + Q @ before) * (a * per_in / t).unsqueeze(-1)
    return out.reshape(heads, size, -1), (keys, queries, sources, sinks, log_total, values)


def flow_attention_causal(
    q: Float[Tensor, "batch heads n d"],
    k: Float[Tensor, "batch heads n d"],
    v: Float[Tensor, "batch heads n e"],
    *,
    chunk: int = 32,
    feature_map: str | FeatureMap = "sigmoid",
    clamp: tuple[float, float] | None = None,
    eps: float = 1e-6,
    mask: Bool[Tensor, "batch n"] | None = None,
    competition: bool = True,
    allocation: bool = True,
    initial_state: FlowAttentionState | None = None,
    return_state: bool = False,
    method: str = "auto",
) -> Any:
    """Causal Flow-Attention ``[B, heads, n, e]``: output i sees tokens up to i. O(n (d e + chunk d)) time, O(n (d + e)) memory.

    Args:
        chunk: tokens whose products are formed as one square; changes speed, not the result.
        feature_map, clamp, eps, competition, allocation: as in :func:`flow_attention`.
        mask: True for a real token; the others are as if deleted, and their outputs are 0.
        initial_state: of the tokens before, to go on with a longer sequence (differentiable).
        return_state: give ``(y, state)``.
        method: of gradients: "redo" computes blocks again, O(n (d + e)) memory; "plain" lets autograd keep them, O(n chunk),
            any derivative; "auto" takes "redo" where it can.

    Raises:
        ValueError: shapes that disagree, no tokens, an unknown name, the state of another shape.
    """
    check_heads(q, k, v, is_causal=True)
    check_mask("mask", mask, q.shape[0], q.shape[2])
    check_chunk(chunk)
    nearest("method", method, ["auto", "redo", "plain"])
    batch, heads, n, d = q.shape
    dtype = compute_dtype(q)
    block = partial(
        _block, chunk=chunk, feature_map=split_map(feature_map)[0], clamp=clamp, eps=eps, competition=competition,
        allocation=allocation,
    )  # fmt: skip
    state = initial_state
    if state is None:
        state = FlowAttentionState.empty(batch, heads, d, v.shape[-1], device=q.device, dtype=dtype)
    past = state._checked(q, v.shape[-1]).count
    t, valid = positions(past, n, mask, dtype)
    seen = past + (n if mask is None else mask.sum(-1))
    if method != "plain":
        how = Options(*split_map(feature_map), clamp, eps, competition, allocation)
        before = None if initial_state is None else state._flat(dtype)
        with full_precision(q):
            compiled = attend_causal_compiled(q, k, v, t, valid, how, chunk, dtype, before, return_state)
        if compiled is not None:
            y, last = compiled
            return (y, FlowAttentionState(*last, seen)) if return_state else y  # type: ignore[call-arg]
    rows = [x.unsqueeze(1).expand(batch, heads, n).flatten(0, 1) for x in (t, valid) if x is not None]
    inputs = (*(x.flatten(0, 1) for x in (q, k, v)), rows[0], rows[1] if valid is not None else None)
    with full_precision(q):
        y, after = scan(block, inputs, state._flat(dtype), d, chunk, dtype, method)
    y = y.unflatten(0, (batch, heads))
    if not return_state:
        return y
    return y, FlowAttentionState(*(x.unflatten(0, (batch, heads)) for x in after), seen)  # type: ignore[call-arg]


def positions(
    past: Tensor, n: int, mask: Tensor | None, dtype: torch.dtype
) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"] | None]:
    """Position of every token from 1 among the real ones (1 before the first), and the mask as numbers."""
    if mask is None:
        return past[:, None] + torch.arange(1, n + 1, device=past.device, dtype=dtype), None
    return (past[:, None] + mask.cumsum(-1)).clamp(min=1).to(dtype), mask.to(dtype)


def flow_attention_step(
    q: Float[Tensor, "batch heads d"],
    k: Float[Tensor, "batch heads d"],
    v: Float[Tensor, "batch heads e"],
    state: FlowAttentionState,
    *,
    feature_map: str | FeatureMap = "sigmoid",
    clamp: tuple[float, float] | None = None,
    eps: float = 1e-6,
    competition: bool = True,
    allocation: bool = True,
) -> tuple[Float[Tensor, "batch heads e"], FlowAttentionState]:
    """One more token: its output and the next state, in O(d e) time and memory however many came before.

    Raises:
        ValueError: shapes that disagree with each other or with the state.
    """
    check_heads(*(x.unsqueeze(2) for x in (q, k, v)))
    state._checked(q.unsqueeze(2), v.shape[-1])
    phi, dtype = split_map(feature_map)[0], state.keys.dtype
    with full_precision(q):
        Q, K, value = phi(q.to(dtype)), phi(k.to(dtype)), v.to(dtype)
        t = (state.count + 1).to(dtype)[:, None]
        keys, queries = state.keys + K, state.queries + Q
        sources, sinks, log_total = state.sources, state.sinks, state.log_total
        incoming = ((Q + eps) * (keys + eps)).sum(-1)
        scale = 1 / incoming
        if allocation:
            outgoing = ((K + eps) * (queries + eps)).sum(-1)
            sources = sources + K * (t / outgoing).unsqueeze(-1)
            scale = scale * torch.sigmoid(((Q + eps) * (sources + eps)).sum(-1) / t)
        if competition:
            sinks = sinks + Q * (t / incoming).unsqueeze(-1)
            leaving = ((K + eps) * (sinks + eps)).sum(-1) / t
            if clamp is not None:
                leaving = leaving.clamp(*clamp)
            log_total = torch.logaddexp(log_total, leaving)
            value = value * (t * torch.exp(leaving - log_total)).unsqueeze(-1)
        values = torch.addcmul(state.values, K.unsqueeze(-1), value.unsqueeze(-2))
        y = vector_times(Q * scale.unsqueeze(-1), values).to(q.dtype)
    return y, FlowAttentionState(keys, queries, sources, sinks, log_total, values, state.count + 1)


def flow_attention_cumulative(
    q: Float[Tensor, "batch heads n d"],
    k: Float[Tensor, "batch heads n d"],
    v: Float[Tensor, "batch heads n e"],
    *,
    feature_map: str | FeatureMap = "sigmoid",
    clamp: tuple[float, float] | None = None,
    eps: float = 1e-6,
) -> Float[Tensor, "batch heads n e"]:
    """Causal Flow-Attention by cumulative sums of ``[n, d, e]`` outer products, as the authors' code does it: O(n d e) memory.

    A baseline and a check; :func:`flow_attention_causal` gives the same numbers.
    """
    check_heads(q, k, v, is_causal=True)
    phi = split_map(feature_map)[0]
    Q, K = phi(q), phi(k)
    t = torch.arange(1, q.shape[2] + 1, device=q.device, dtype=q.dtype).unsqueeze(-1)
    incoming = ((Q + eps) * (K.cumsum(2) + eps)).sum(-1, keepdim=True) / t
    outgoing = ((K + eps) * (Q.cumsum(2) + eps)).sum(-1, keepdim=True) / t
    arriving = ((Q + eps) * ((K / outgoing).cumsum(2) + eps)).sum(-1, keepdim=True) / t
    leaving = ((K + eps) * ((Q / incoming).cumsum(2) + eps)).sum(-1, keepdim=True) / t
    wanted = torch.exp(leaving if clamp is None else leaving.clamp(*clamp))
    values = v * (wanted / wanted.cumsum(2) * t)
    contexts = torch.einsum("bhnd,bhne->bhnde", K, values).cumsum(2)
    return torch.einsum("bhnd,bhnde->bhne", Q / (incoming * t), contexts) * torch.sigmoid(arriving)
