"""Llama-like language models of ``transformers`` as layers of a pipeline."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anabranch.distributed.micro_batches import Value
from anabranch.distributed.pipeline import Pipeline
from anabranch.simulation import balance

Tokens = Value  # token numbers [n, length], or (numbers, attention mask [n, length])


class CausalLayers(NamedTuple):
    """Layers of a language model with the beginnings of their names in it."""

    layers: list[nn.Module]
    prefixes: list[dict[str, str]]


class _Embedding(nn.Module):
    def __init__(self, tokens: nn.Module) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Tokens) -> Value:
        return self.tokens(x) if isinstance(x, Tensor) else (self.tokens(x[0]), x[1])


class _Block(nn.Module):
    """A decoder layer that makes its own positions and mask: only hidden states (and a padding mask) travel."""

    def __init__(self, block: nn.Module, rotary: nn.Module, attention: str) -> None:
        super().__init__()
        self.block, self.rotary, self._fused = block, rotary, attention == "sdpa"

    def forward(self, x: Value) -> Value:
        hidden, padding = (x, None) if isinstance(x, Tensor) else x
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        out = self.block(
            hidden,
            attention_mask=self._mask(hidden, padding),
            position_ids=positions,
            position_embeddings=self.rotary(hidden, positions),
        )
        out = out if isinstance(out, Tensor) else out[0]
        return out if padding is None else (out, padding)

    def _mask(self, hidden: Tensor, padding: Tensor | None) -> Tensor | None:
        """What is added to the scores; None where the fused attention is causal by itself."""
        if padding is None and self._fused:
            return None
        length = hidden.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()[None, None]
        if padding is not None:
            seen = seen & padding.bool()[:, None, None]
        lowest = torch.finfo(hidden.dtype).min
        return torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(~seen, lowest)


class _Head(nn.Module):
    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = norm, head

    def forward(self, x: Value) -> Tensor:
        return self.head(self.norm(x if isinstance(x, Tensor) else x[0]))


def causal_layers(model: nn.Module) -> CausalLayers:
    """Embedding, decoder layers, norm with head: modules of the model itself, so that its parameters are trained.

    Args:
        model: a causal language model built like Llama (Llama, Mistral, Qwen2, SmolLM2), with ``model.embed_tokens``,
            ``model.layers``, ``model.rotary_emb``, ``model.norm`` and ``lm_head``. Full causal attention, no cache.

    Raises:
        ValueError: a model that is built otherwise, or with sliding windows.
    """
    inner, config = getattr(model, "model", None), getattr(model, "config", None)
    missing = [n for n in ("embed_tokens", "layers", "rotary_emb", "norm") if not hasattr(inner, n)]
    if missing or not hasattr(model, "lm_head") or config is None:
        raise ValueError(
            f"model is a {type(model).__name__}: expected one built like Llama, but it lacks {missing or 'lm_head'}"
        )
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError(f"model is a {type(model).__name__} with sliding windows: expected full attention")
    attention = getattr(config, "_attn_implementation", "eager")
    inner_any: Any = inner
    blocks = [_Block(block, inner_any.rotary_emb, attention) for block in inner_any.layers]
    layers: list[nn.Module] = [
        _Embedding(inner_any.embed_tokens), *blocks, _Head(inner_any.norm, model.get_submodule("lm_head"))
    ]  # fmt: skip
    prefixes = [
        {"tokens.": "model.embed_tokens."},
        *({"block.": f"model.layers.{i}."} for i in range(len(blocks))),
        {"norm.": "model.norm.", "head.": "lm_head."},
    ]
    return CausalLayers(layers, prefixes)


def pipeline_from_transformers(model: nn.Module, stages: int, **options: Any) -> Pipeline:
    """A :class:`Pipeline` of a Llama-like model, cut by its parameters (the embedding takes no time).

    Rotary embeddings and masks are made on every stage; head and embedding may be one matrix: both ends keep it equal.
    ``state_dict_full`` has the model's own names. Parameters that need no gradient stay as they are.

    Args:
        stages: the number of processes in the group.
        options: of :class:`Pipeline`.

    Raises:
        ValueError: as :func:`causal_layers`; or another number of processes than ``stages``.
    """
    layers, prefixes = causal_layers(model)
    costs = [0.0, *(float(sum(p.numel() for p in layer.parameters())) for layer in layers[1:])]
    options.setdefault("balance", balance(costs, stages))
    return Pipeline(layers, prefixes=prefixes, **options)


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of every next token, ``[n, length, vocabulary]`` against ``[n, length]``."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
