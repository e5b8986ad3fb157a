"""Attention in linear time: Flow-Attention with exact masks, its causal and its recurrent form, and what it is compared with.

Functions take ``q [B, heads, n, d]``, ``k [B, heads, m, d]``, ``v [B, heads, m, e]`` and give ``[B, heads, n, e]``; they fit
wherever an attention ``f(q, k, v)`` is an argument. ``anabranch.attention.huggingface`` brings them into ``transformers``.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "torch":
        raise
    from anabranch.attention._extra import TORCH_MISSING

    raise ModuleNotFoundError(TORCH_MISSING, name="torch") from None

from anabranch.attention.baselines import (
    cosformer_attention,
    kernel_attention,
    linear_attention,
    local_attention,
    performer_attention,
    performer_projection,
    softmax_attention,
)
from anabranch.attention.causal import (
    FlowAttentionState,
    flow_attention_causal,
    flow_attention_cumulative,
    flow_attention_step,
)
from anabranch.attention.costs import median_seconds, peak_memory_bytes
from anabranch.attention.decoding import KeyValueCache, softmax_attention_step
from anabranch.attention.features import FLOW_PRESETS, flow_preset
from anabranch.attention.flow import Flows, flow_attention, flow_attention_matrix
from anabranch.attention.layers import AttentionLayer, FlowAttention, row_evenness
from anabranch.attention.listops import LISTOPS_TOKENS, ListOps, listops
from anabranch.attention.models import FlowformerEncoder, FlowformerLM
from anabranch.attention.registry import ATTENTIONS, AttentionFunction
from anabranch.attention.series import LabelledSeries, pad_series, read_series, read_uea, tone_series
from anabranch.attention.training import LearningCurve, NextToken, SequenceClassification, classify, next_token_bits

__all__ = [
    "ATTENTIONS",
    "FLOW_PRESETS",
    "LISTOPS_TOKENS",
    "AttentionFunction",
    "AttentionLayer",
    "FlowAttention",
    "FlowAttentionState",
    "FlowformerEncoder",
    "FlowformerLM",
    "Flows",
    "KeyValueCache",
    "LabelledSeries",
    "LearningCurve",
    "ListOps",
    "NextToken",
    "SequenceClassification",
    "classify",
    "cosformer_attention",
    "flow_attention",
    "flow_attention_causal",
    "flow_attention_cumulative",
    "flow_attention_matrix",
    "flow_attention_step",
    "flow_preset",
    "kernel_attention",
    "linear_attention",
    "listops",
    "local_attention",
    "median_seconds",
    "next_token_bits",
    "pad_series",
    "peak_memory_bytes",
    "performer_attention",
    "performer_projection",
    "read_series",
    "read_uea",
    "row_evenness",
    "softmax_attention",
    "softmax_attention_step",
    "tone_series",
]
