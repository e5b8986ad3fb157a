"""Multi-head layers around an attention function, called as ``torch.nn.MultiheadAttention(batch_first=True)`` is."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.attention._checks import nearest
from anabranch.attention.causal import FlowAttentionState, flow_attention_step
from anabranch.attention.decoding import KeyValueCache, softmax_attention_step
from anabranch.attention.features import flow_preset
from anabranch.attention.flow import flow_attention_matrix
from anabranch.attention.registry import ATTENTIONS, AttentionFunction


class AttentionLayer(nn.Module):
    """Projections, heads and any attention function; weights have the names and shapes of ``nn.MultiheadAttention``.

    Args:
        d_model: width of the queries and of the output.
        n_heads: number of heads; divides ``d_model``.
        attention: a name in ``ATTENTIONS`` or a function of that shape.
        causal: outputs see only their past.
        dropout: after the output projection, as in the authors' code.
        bias: of the projections.
        kdim, vdim: width of keys and values, where it differs.
        generator: draws the projection of ``"performer"``; required there.
        features: number of random features of ``"performer"``; default ``d log d`` of the head's width d.
        options: further keyword arguments of the attention function.

    Raises:
        ValueError: an unknown name, heads that do not divide the width, dropout outside [0, 1).
    """

    attend: Any
    projection: Tensor | None
    in_proj_bias: Tensor | None

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        attention: str | AttentionFunction = "flow",
        *,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        generator: torch.Generator | None = None,
        features: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"n_heads={n_heads} does not divide d_model={d_model}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        name = attention if isinstance(attention, str) else ""
        known = ATTENTIONS[nearest("attention", name, list(ATTENTIONS))] if name else attention
        self.attend = known
        self.name, self.embed_dim, self.num_heads, self.causal = name, d_model, n_heads, causal
        self.head_dim, self.options = d_model // n_heads, dict(options or {})
        self.batch_first, self.dropout = True, dropout
        # torch's encoder layers would otherwise compute softmax from these weights by themselves when they evaluate.
        self._qkv_same_embed_dim = False
        self.kdim, self.vdim = kdim or d_model, vdim or d_model
        if self.kdim == self.vdim == d_model:
            self.in_proj_weight = _weight(3 * d_model, d_model)
        else:
            self.q_proj_weight = _weight(d_model, d_model)
            self.k_proj_weight, self.v_proj_weight = _weight(d_model, self.kdim), _weight(d_model, self.vdim)
        self.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * d_model)) if bias else None)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)
        if bias:
            nn.init.zeros_(self.out_proj.bias)
        rows = None
        if name == "performer":
            if generator is None:
                raise ValueError("attention='performer' draws a projection: pass a generator")
            from anabranch.attention.baselines import performer_projection

            count = features or max(1, int(self.head_dim * math.log(self.head_dim)))
            rows = performer_projection(self.head_dim, count, generator=generator)
        self.register_buffer("projection", rows)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.kdim == self.vdim == self.embed_dim:
            q, k, v = self.in_proj_weight.chunk(3)
            return q, k, v
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[B, heads, tokens, head_dim]`` of inputs ``[B, tokens, width]``."""
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if query is key and key is value and self.kdim == self.vdim == self.embed_dim:
            parts = nn.functional.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            weights = zip((query, key, value), self._weights(), biases, strict=True)
            parts = tuple(nn.functional.linear(x, weight, bias) for x, weight, bias in weights)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in parts)
        return q, k, v

    def all_options(self) -> dict[str, Any]:
        """Keyword arguments that the attention function is called with, a projection among them."""
        return self.options if self.projection is None else {**self.options, "projection": self.projection}

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """``(output [B, n, width], weights or None)``.

        Args:
            query, key, value: ``[B, tokens, width]``; keys and values default to the queries and the keys.
            key_padding_mask: ``[B, m]``, True for padding, which is as if deleted; without a ``key`` of its own the same
                tokens are masked as queries, and their outputs are those of an output 0 of the heads.
            need_weights: also the explicit matrix, O(n m) (Flow-Attention only), averaged over heads if
                ``average_attn_weights``.
            attn_mask: None or the causal mask; others have no linear form.

        Raises:
            ValueError: another ``attn_mask``, weights of another attention, shapes that disagree.
        """
        alone = (key is None or key is query) and (value is None or value is query)
        key = query if key is None else key
        value = key if value is None else value
        causal = self.causal or is_causal or _is_causal_mask(attn_mask, query.shape[1], key.shape[1])
        mask = None if key_padding_mask is None else ~_as_bool(key_padding_mask)
        masks: dict[str, Any] = {"q_mask": mask if alone else None, "kv_mask": mask}
        q, k, v = self.heads(query, key, value)
        y = self.attend(q, k, v, is_causal=causal, **masks, **self.all_options())
        weights = None
        if need_weights:
            weights = self._matrix(q, k, causal, masks)
            weights = weights.mean(1) if average_attn_weights else weights
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        return nn.functional.dropout(y, self.dropout, self.training), weights

    def _matrix(self, q: Tensor, k: Tensor, causal: bool, masks: dict[str, Any]) -> Tensor:
        if self.name != "flow":
            raise ValueError(f"need_weights=True is for attention='flow', this layer has {self.name or self.attend!r}")
        known = inspect.signature(flow_attention_matrix).parameters
        options: dict[str, Any] = {name: value for name, value in self.options.items() if name in known}
        return flow_attention_matrix(q, k, is_causal=causal, **options, **masks)

    def empty_state(self, batch: int, *, capacity: int = 256) -> FlowAttentionState | KeyValueCache:
        """What :meth:`step` begins with.

        Raises:
            ValueError: an attention without a recurrent form here.
        """
        weight = self.out_proj.weight
        shape = (batch, self.num_heads, self.head_dim)
        if self.name == "flow":
            dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
            return FlowAttentionState.empty(*shape, device=weight.device, dtype=dtype)
        if self.name == "softmax":
            return KeyValueCache.empty(*shape, capacity=capacity, device=weight.device, dtype=weight.dtype)
        raise ValueError(f"step is for attention 'flow' and 'softmax', this layer has {self.name or self.attend!r}")

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One more token ``[B, width]`` of a causal layer: its output and the next state (softmax: the cache, in place)."""
        q, k, v = (part.squeeze(2) for part in self.heads(*[x.unsqueeze(1)] * 3))
        if isinstance(state, KeyValueCache):
            y = softmax_attention_step(q, k, v, state)
        else:
            known = inspect.signature(flow_attention_step).parameters
            options = {name: value for name, value in self.options.items() if name in known}
            y, state = flow_attention_step(q, k, v, state, **options)
        return self.out_proj(y.flatten(1)), state


class FlowAttention(AttentionLayer):
    """Flow-Attention in place of ``nn.MultiheadAttention(batch_first=True)``: linear in the length, same weights' names.

    Args:
        d_model, n_heads, causal, dropout, bias, kdim, vdim: as in :class:`AttentionLayer`.
        preset: one of ``FLOW_PRESETS``.
        options: further keyword arguments of :func:`flow_attention`.

    Raises:
        ValueError: an unknown preset (lists them), and what :class:`AttentionLayer` raises.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        causal: bool = False,
        preset: str = "paper",
        dropout: float = 0.0,
        bias: bool = True,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            d_model, n_heads, "flow", causal=causal, dropout=dropout, bias=bias, kdim=kdim, vdim=vdim,
            options={**flow_preset(preset), **(options or {})},
        )  # fmt: skip
        self.preset = preset

    @classmethod
    def from_softmax(
        cls, layer: nn.MultiheadAttention, *, causal: bool = False, preset: str = "paper"
    ) -> "FlowAttention":
        """A layer with the weights of ``layer``.

        Raises:
            ValueError: ``layer`` has what this has not: batch second, extra bias tokens or zero attention.
        """
        if not layer.batch_first or layer.bias_k is not None or layer.add_zero_attn:
            raise ValueError("expected nn.MultiheadAttention(batch_first=True) without add_bias_kv and add_zero_attn")
        made = cls(
            layer.embed_dim, layer.num_heads, causal, preset, layer.dropout, layer.in_proj_bias is not None,
            kdim=layer.kdim, vdim=layer.vdim,
        )  # fmt: skip
        made.load_state_dict(layer.state_dict())
        return made.to(layer.out_proj.weight.device, layer.out_proj.weight.dtype).train(layer.training)


@torch.no_grad()
def row_evenness(net: Callable[..., Any], layer: AttentionLayer, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Entropy of each row of a layer's attention over its largest possible value: 1 for even weights, 0 for a single one.

    The rows are scaled to sum to 1. O(n m) memory: the explicit weights are formed, whatever the attention.

    Args:
        net: called ``net(x, mask)``; ``layer`` is one of its modules, with self-attention.
        mask: ``[B, n]``, True for a real token.

    Returns:
        ``[B, heads, n]``, 0 for masked rows.
    """
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        net(x, mask)
    finally:
        hook.remove()
    q, k, _ = layer.heads(seen[0], seen[0], seen[0])
    one = torch.eye(k.shape[2], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)  # y = W v with v = 1
    weights = layer.attend(q, k, one, is_causal=layer.causal, q_mask=mask, kv_mask=mask, **layer.all_options())
    entropy = torch.special.entr(weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)).sum(-1)
    real = torch.ones(x.shape[:2], dtype=torch.int64, device=x.device) if mask is None else mask.long()
    places = real.cumsum(-1) if layer.causal else real.sum(-1, keepdim=True)
    return entropy / places.clamp(min=2).log().to(entropy)[:, None]


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(*shape)))


def _as_bool(mask: Tensor) -> Tensor:
    """torch also passes padding as numbers, 0 for real and -inf for padding."""
    return mask if mask.dtype == torch.bool else mask != 0


def _is_causal_mask(mask: Tensor | None, n: int, m: int) -> bool:
    """Whether ``attn_mask`` is the causal one.

    Raises:
        ValueError: it is something else.
    """
    if mask is None:
        return False
    future = torch.ones(n, m, dtype=torch.bool, device=mask.device).triu(1)
    found = _as_bool(mask)
    if n == m and tuple(found.shape[-2:]) == (n, m) and bool((found == future).all()):
        return True
    if not bool(found.any()):
        return False
    raise ValueError(f"attn_mask of shape {tuple(mask.shape)}: expected the causal mask; others have no linear form")
