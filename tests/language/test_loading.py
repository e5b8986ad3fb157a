"""Loading causal language models, tiny ones saved here and the real small one where it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed")
from anabranch.language import load_causal, tiny_causal


def tiny(seed: int = 0, **options: object):
    return tiny_causal(generator=torch.Generator().manual_seed(seed), **options)


def test_a_saved_model_comes_back_the_same(tmp_path: Path) -> None:
    first = tiny()
    first.model.save_pretrained(tmp_path)
    again = load_causal(tmp_path)
    ids = torch.arange(12)[None]
    assert torch.equal(first.model(ids).logits, again.model(ids).logits)
    assert again.tokenizer is None
    assert again.config.num_hidden_layers == 2
    assert not again.model.training
    assert not any(p.requires_grad for p in again.model.parameters())


def test_dtype_is_the_one_asked_for(tmp_path: Path) -> None:
    tiny().model.save_pretrained(tmp_path)
    assert next(load_causal(tmp_path, dtype=torch.bfloat16).model.parameters()).dtype == torch.bfloat16


def test_tiny_models_follow_their_generator_and_listen_to_the_prompt() -> None:
    ids = torch.arange(2, 14).reshape(2, 6)
    first, same, other = (tiny(seed).model.generate(ids, max_new_tokens=12, do_sample=False) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0, 6:], first[1, 6:])


@pytest.mark.parametrize(("path", "said"), [("./nowhere", "no such folder"), ("/none.gguf", "no such file")])
def test_what_is_not_there_is_named(path: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_causal(path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        load_causal(tmp_path)


def test_a_name_is_not_fetched_unasked() -> None:
    with pytest.raises(ValueError, match="download=True"):
        load_causal("nobody/nothing-of-that-name")


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="heads=5"):
        tiny(heads=5)


def test_the_real_small_model_answers(smollm2: Path) -> None:
    loaded = load_causal(smollm2)
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        answer = loaded.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in loaded.tokenizer.decode(answer)
