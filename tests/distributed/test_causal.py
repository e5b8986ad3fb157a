"""Llama-like models in stages: the model's own logits and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anabranch.distributed import LocalPipeline, causal_layers, next_token_loss
from anabranch.language import tiny_causal


def tiny(tied: bool = True) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    sizes = {"layers": 3, "hidden": 16, "heads": 2, "kv_heads": 1, "vocab": 31}
    model = tiny_causal(**sizes, tied=tied, generator=generator).model
    return model.double().requires_grad_(True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 2), (2, 3), (4, 5), (5, 11)])
def test_logits_and_gradients(tied: bool, stages: int, micro_batches: int) -> None:
    model = tiny(tied)
    tokens = torch.randint(31, (11, 7), generator=torch.Generator().manual_seed(1))
    logits = model(tokens).logits
    loss = next_token_loss(logits, tokens)
    assert loss.item() == pytest.approx(model(tokens, labels=tokens).loss.item(), rel=1e-6)
    loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    layers, prefixes = causal_layers(model)
    pipeline = LocalPipeline(layers, stages=stages, micro_batches=micro_batches, prefixes=prefixes)
    assert pipeline.step(tokens, tokens, next_token_loss).item() == pytest.approx(loss.item(), rel=1e-12)
    for name, parameter in model.named_parameters():
        assert (parameter.grad - wanted[name]).norm() <= 1e-12 * wanted[name].norm() + 1e-15, name
    assert torch.allclose(pipeline.predict(tokens), logits)
    assert set(pipeline.state_dict_full()) == set(model.state_dict())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_travels_with_the_hidden_states(attention: str) -> None:
    model = tiny()
    model.set_attn_implementation(attention)
    tokens = torch.randint(31, (4, 6), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(4, 6, dtype=torch.long)
    mask[1, 4:] = 0
    mask[2, 2:] = 0
    wanted = model(tokens, attention_mask=mask).logits
    layers, prefixes = causal_layers(model)
    pipeline = LocalPipeline(layers, stages=3, micro_batches=2, prefixes=prefixes)
    found = pipeline.predict((tokens, mask))
    assert torch.allclose(found[mask.bool()], wanted[mask.bool()])
    assert torch.allclose(pipeline.predict(tokens), model(tokens).logits)
    pipeline.step((tokens, mask), tokens, next_token_loss)  # integers on the cut carry no gradient


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="model is a Linear: expected one built like Llama"):
        causal_layers(nn.Linear(2, 2))
