"""Whether the sentence encoder is here: asked before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from anabranch.lab.places import data_folder

MODEL = "all-minilm-l6-v2"


def model_folder() -> Path:
    """Where ``anabranch data all-minilm-l6-v2`` puts the encoder."""
    return data_folder() / MODEL


def has_model() -> bool:
    """Whether the encoder and the libraries that run it are here; nothing is loaded to find out."""
    from importlib.util import find_spec

    return (model_folder() / "model.safetensors").is_file() and all(find_spec(n) for n in ("torch", "transformers"))
