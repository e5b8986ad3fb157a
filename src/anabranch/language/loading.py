"""Causal language models of ``transformers``, and the errors a user should see when one cannot be had."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class CausalModel:
    """A causal language model ready to run, and the tokenizer that goes with it.

    Args:
        model: a ``transformers`` model in evaluation mode, its parameters without gradients.
        tokenizer: its tokenizer, or None where there is none beside the weights.
    """

    model: nn.Module
    tokenizer: Any

    @property
    def config(self) -> Any:
        """The model's ``transformers`` configuration."""
        return self.model.config


def load_causal(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: str = "sdpa",
    download: bool = False,
) -> CausalModel:
    """A causal language model from a folder of ``transformers``, a ``.gguf`` file, or a name in the local cache of the hub.

    Args:
        path: the folder, the file, or the hub's name.
        dtype: of the weights; GGUF files are dequantized to it.
        attention: ``attn_implementation`` of ``transformers``.
        download: whether a name that is not in the cache may be fetched from the hub; nothing is fetched otherwise.

    Raises:
        ValueError: there is no such folder, file or cached name, or it holds no causal language model.
    """
    from transformers import AutoModelForCausalLM

    place = Path(path).expanduser()
    options: dict[str, Any] = {"local_files_only": not download}
    if place.suffix == ".gguf":
        if not place.is_file():
            raise ValueError(f"path={str(path)!r}: there is no such file")
        source, options["gguf_file"] = str(place.parent.resolve()), place.name
    elif place.is_dir():
        if not (place / "config.json").is_file():
            raise ValueError(f"path={str(path)!r}: expected a folder with config.json, or a .gguf file")
        source = str(place)
    elif place.is_absolute() or str(path).startswith((".", "~")):
        raise ValueError(f"path={str(path)!r}: there is no such folder")
    else:
        source = str(path)
    try:
        with quiet():
            model: nn.Module = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, attn_implementation=attention, **options
            )
    except (OSError, ValueError) as error:
        hint = "" if download or place.exists() else "; pass download=True to fetch it from the hub"
        raise ValueError(f"path={str(path)!r}: no causal language model ({_first_line(error)}){hint}") from error
    return CausalModel(model.to(device).eval().requires_grad_(False), _tokenizer(source, options))


def tiny_causal(
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 128,
    tied: bool = True,
    generator: torch.Generator,
) -> CausalModel:
    """A Llama of random weights, small enough for a test, with the same code path as a real one; without a tokenizer.

    Weights have a standard deviation of 0.2, so that greedy continuations differ from prompt to prompt.

    Raises:
        ValueError: ``hidden`` is no multiple of ``heads``, or ``heads`` none of ``kv_heads``.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if hidden % heads or heads % kv_heads:
        raise ValueError(f"hidden={hidden}, heads={heads}, kv_heads={kv_heads}: expected each to divide the one before")
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied, max_position_embeddings=4096,
        bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with quiet():
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.2, generator=generator)
    return CausalModel(model.eval().requires_grad_(False), None)


def _tokenizer(source: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError):  # weights without a tokenizer are a model all the same
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no notes of transformers; its errors come through."""
    from transformers.utils import logging as hub_logging

    before, bars = hub_logging.get_verbosity(), hub_logging.is_progress_bar_enabled()
    hub_logging.set_verbosity(logging.ERROR)
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)
        if bars:
            hub_logging.enable_progress_bar()
