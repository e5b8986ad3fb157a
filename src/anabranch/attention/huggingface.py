"""Flow-Attention inside models of ``transformers``: an attention implementation by name, and a patch of models that exist.

Needs the optional package ``transformers`` (5 or later). Importing this module registers ``"anabranch_flow"``.
"""

from typing import Any

from torch import Tensor, nn

from anabranch.attention._extra import missing
from anabranch.attention.baselines import linear_attention, softmax_attention
from anabranch.attention.flow import flow_attention
from anabranch.attention.layers import FlowAttention

try:
    from transformers import AttentionInterface, PreTrainedModel
    from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, causal_mask_function
except ModuleNotFoundError as _error:
    if _error.name != "transformers":
        raise
    raise ModuleNotFoundError(missing("transformers", "anabranch.attention.huggingface"), name="transformers") from None

IMPLEMENTATION = "anabranch_flow"
_KINDS = {"flow": flow_attention, "linear": linear_attention, "softmax": softmax_attention}


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    **rest: Any,
) -> Tensor | None:
    """The padding mask ``[B, tokens]`` instead of a square; None where nothing is padded.

    Raises:
        ValueError: a pattern other than causal or bidirectional (sliding windows, packed sequences).
    """
    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        raise ValueError(
            f"{IMPLEMENTATION} has causal and bidirectional attention with padding, no other pattern of masks"
        )
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return attention_mask.bool()


def _forward(kind: str) -> Any:
    attend = _KINDS[kind]

    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **rest: Any,
    ) -> tuple[Tensor, None]:
        causal = bool(getattr(module, "is_causal", True)) if is_causal is None else bool(is_causal)
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        if causal and query.shape[2] != key.shape[2]:
            raise ValueError(
                f"{query.shape[2]} queries and {key.shape[2]} keys: a cache of keys and values does not hold the flows of "
                "past queries; generate with use_cache=False, or decode with FlowformerLM.step"
            )
        mask = attention_mask
        if mask is not None and mask.ndim != 2:
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}: expected padding only, [B, tokens]")
        alone = query.shape[2] == key.shape[2] and not _is_cross(module)
        y = attend(query, key, value, is_causal=causal, q_mask=mask if alone else None, kv_mask=mask)
        return y.transpose(1, 2).contiguous(), None

    return forward


def _is_cross(module: nn.Module) -> bool:
    return bool(getattr(module, "is_cross_attention", False)) or "Cross" in type(module).__name__


for _kind in _KINDS:
    _name = f"anabranch_{_kind}"
    AttentionInterface.register(_name, _forward(_kind))
    AttentionMaskInterface.register(_name, _mask)


def patch_attention(model: nn.Module, kind: str = "flow", *, preset: str = "paper") -> nn.Module:
    """Swap the attention of ``model`` in place, keeping its weights, and give it back.

    A model of ``transformers`` gets the implementation ``anabranch_<kind>`` (its ``"paper"`` preset); in other models every
    ``nn.MultiheadAttention(batch_first=True)`` becomes a :class:`FlowAttention` (kind "flow" only).

    Raises:
        ValueError: an unknown kind, or nothing to swap.
    """
    if kind not in _KINDS:
        raise ValueError(f"unknown kind {kind!r}: there are {', '.join(_KINDS)}")
    if isinstance(model, PreTrainedModel):
        model.set_attn_implementation(f"anabranch_{kind}")
        return model
    if kind != "flow":
        raise ValueError(f"kind={kind!r} is for models of transformers; others take 'flow'")
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.MultiheadAttention)
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} is no model of transformers and holds no nn.MultiheadAttention")
    for parent, name, child in found:
        setattr(parent, name, FlowAttention.from_softmax(child, preset=preset))
    return model
