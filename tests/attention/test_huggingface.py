"""Flow-Attention by name in models of transformers, and patched into torch's own."""

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="transformers is not installed")
from anabranch.attention import FlowAttention, flow_attention
from anabranch.attention.huggingface import patch_attention

from .samples import gap

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}


def bert(**options: object) -> nn.Module:
    from transformers import AutoModelForSequenceClassification, BertConfig

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(BertConfig(**SMALL, initializer_range=0.3), **options).eval()


def llama(**options: object) -> nn.Module:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, num_key_value_heads=1)
    return AutoModelForCausalLM.from_config(config, **options).eval()


def test_by_name_and_by_patch_are_one() -> None:
    tokens = torch.randint(40, (2, 9))
    named, patched, softmax = bert(attn_implementation="anabranch_flow"), patch_attention(bert()), bert()
    with torch.no_grad():
        y = named(tokens).logits
        assert gap(y, patched(tokens).logits) == 0
        assert gap(y, softmax(tokens).logits) > 1e-4


def test_padding_is_as_if_deleted() -> None:
    model = bert(attn_implementation="anabranch_flow")
    tokens = torch.randint(40, (2, 9))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, 5:] = 0
    with torch.no_grad():
        logits = model(tokens, attention_mask=mask).logits
        assert gap(logits[:1], model(tokens[:1, :5]).logits) <= 1e-6
        assert gap(logits[1:], model(tokens[1:]).logits) <= 1e-6


def test_softmax_by_our_name_is_theirs() -> None:
    tokens = torch.randint(40, (2, 9))
    with torch.no_grad():
        for make in (bert, llama):
            assert gap(make(attn_implementation="anabranch_softmax")(tokens).logits, make()(tokens).logits) <= 1e-5


@pytest.mark.parametrize("kind", ["flow", "linear"])
def test_a_decoder_is_causal_and_shares_key_heads(kind: str) -> None:
    model = llama(attn_implementation=f"anabranch_{kind}")
    tokens = torch.randint(40, (2, 12))
    with torch.no_grad():
        y = model(tokens, use_cache=False).logits
        assert gap(y[:, :7], model(tokens[:, :7], use_cache=False).logits) <= 1e-5
    padded = torch.ones(2, 12, dtype=torch.long)
    padded[0, :4] = 0  # padded at the left, as for generation
    with torch.no_grad():
        positions = (padded.cumsum(1) - 1).clamp(min=0)
        y = model(tokens, attention_mask=padded, position_ids=positions, use_cache=False).logits
        assert gap(y[:1, 4:], model(tokens[:1, 4:], use_cache=False).logits) <= 1e-5


def test_attention_inside_is_the_function() -> None:
    seen = []
    model = llama(attn_implementation="anabranch_flow")
    model.model.layers[0].self_attn.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    from transformers.models.llama import modeling_llama

    calls = []
    rotate = modeling_llama.apply_rotary_pos_emb
    modeling_llama.apply_rotary_pos_emb = lambda *args, **more: calls.append(rotate(*args, **more)) or calls[-1]
    tokens = torch.randint(40, (1, 6))
    try:
        with torch.no_grad():
            hidden = model.model.layers[0].input_layernorm(model.model.embed_tokens(tokens))
            model(tokens, use_cache=False)
            attention = model.model.layers[0].self_attn
            q, k = calls[0]
            v = attention.v_proj(hidden).unflatten(-1, (1, 8)).transpose(1, 2)
            y = flow_attention(q, k.expand_as(q), v.expand_as(q), is_causal=True)
            assert gap(attention.o_proj(y.transpose(1, 2).flatten(2)), seen[0]) <= 1e-6
    finally:
        modeling_llama.apply_rotary_pos_emb = rotate


def test_generation_without_cache_runs_and_with_it_says_why_not() -> None:
    model = llama(attn_implementation="anabranch_flow")
    tokens = torch.randint(40, (1, 6))
    found = model.generate(tokens, max_new_tokens=3, do_sample=False, use_cache=False)
    with torch.no_grad():
        assert int(found[0, 6]) == int(model(tokens, use_cache=False).logits[0, -1].argmax())
    with pytest.raises(ValueError, match="use_cache=False"):
        model.generate(tokens, max_new_tokens=3, do_sample=False, use_cache=True)


@pytest.mark.parametrize("name", ["ViT", "GPT2"])
def test_other_model_classes(name: str) -> None:
    import transformers

    torch.manual_seed(0)
    if name == "ViT":
        config = transformers.ViTConfig(
            **{k: v for k, v in SMALL.items() if k != "vocab_size"}, image_size=16, patch_size=4
        )
        model, x = transformers.ViTModel(config), {"pixel_values": torch.randn(1, 3, 16, 16)}
    else:
        config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40)
        model, x = transformers.GPT2Model(config), {"input_ids": torch.randint(40, (1, 8)), "use_cache": False}
    with torch.no_grad():
        softmax = model.eval()(**x).last_hidden_state
        flow = patch_attention(model)(**x).last_hidden_state
    assert gap(softmax, flow) > 1e-4
    assert bool(torch.isfinite(flow).all())


def test_torch_models_are_patched_too() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    patch_attention(model)
    assert all(isinstance(layer.self_attn, FlowAttention) for layer in model.layers)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="unknown kind 'cubic': there are flow"):
        patch_attention(bert(), "cubic")
    with pytest.raises(ValueError, match="holds no nn"):
        patch_attention(nn.Linear(2, 2))
