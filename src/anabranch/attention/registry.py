"""Attention by name, so that models with another attention differ in one word."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from anabranch.attention.baselines import (
    cosformer_attention,
    linear_attention,
    local_attention,
    performer_attention,
    softmax_attention,
)
from anabranch.attention.flow import flow_attention

AttentionFunction = Callable[..., Tensor]
"""``f(q, k, v, *, is_causal=False, q_mask=None, kv_mask=None) -> y``, all ``[B, heads, tokens, features]``."""

ATTENTIONS: Mapping[str, AttentionFunction] = MappingProxyType(
    {
        "softmax": softmax_attention,
        "flow": flow_attention,
        "linear": linear_attention,
        "performer": performer_attention,  # with a projection, which layers draw
        "cosformer": cosformer_attention,
        "local": local_attention,
    }
)
"""Every attention here by name."""
