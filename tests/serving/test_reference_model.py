"""A model in another process gives what it gives here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
import torch

from anabranch.language import tiny_causal
from anabranch.serving import ReferenceModel, unsplit_tokens


def test_answers_are_those_of_the_model_here() -> None:
    loaded = tiny_causal(generator=torch.Generator().manual_seed(3))
    prompts = [[2, 3, 4], [5] * 9]
    with ReferenceModel(seed=3) as model:
        assert model.vocabulary == loaded.config.vocab_size
        assert model.answers(prompts, [4, 7]) == [
            unsplit_tokens(loaded, prompt, most) for prompt, most in zip(prompts, [4, 7], strict=True)
        ]
        with pytest.raises(ValueError, match="has 1 numbers for 2 prompts"):
            model.answers(prompts, [4])
        with ReferenceModel(model.path) as same:
            assert same.answers(prompts, [4, 7]) == model.answers(prompts, [4, 7])
        folder = model.path
    assert not folder.exists()


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder"):
        ReferenceModel(tmp_path / "nothing")


def test_nothing_heavy_is_loaded_here() -> None:
    code = """
import sys
from anabranch.serving import ReferenceModel
if __name__ == "__main__":
    with ReferenceModel() as model:
        assert len(model.answers([[2, 3]], [3])[0]) == 3
    assert "torch" not in sys.modules
    assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
