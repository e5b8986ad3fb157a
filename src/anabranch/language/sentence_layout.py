"""The layout of a sentence-transformers folder: how the states of tokens become one vector, and what texts begin with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int

# In the order in which older folders, which say yes or no to each, join them.
_MODES = {
    "cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens", "lasttoken": "lasttoken",
}  # fmt: skip
_ACTIVATIONS = {"Identity": torch.nn.Identity, "Tanh": torch.nn.Tanh, "ReLU": torch.nn.ReLU, "GELU": torch.nn.GELU}


@dataclass(frozen=True)
class SentenceLayout:
    """What is done around the transformer.

    Args:
        transformer: the folder with its ``config.json``, weights and tokenizer.
        modes: poolings, joined in this order: "cls" (the first token), "max", "mean", "mean_sqrt_len_tokens" (the sum
            over the root of the number), "weightedmean" (by position from 1), "lasttoken".
        layers: dense layers that follow.
        normalized: whether the model's own vectors have length one.
        query_prompt, document_prompt: what texts begin with.
        max_tokens: what the folder says; None where it says nothing.
        lower: whether texts are put into lower case.
        digest: SHA-256 of the settings and of all weights: another model, pooling or prompt gives another.
    """

    transformer: Path
    modes: tuple[str, ...] = ("mean",)
    layers: tuple[torch.nn.Module, ...] = ()
    normalized: bool = False
    query_prompt: str = ""
    document_prompt: str = ""
    max_tokens: int | None = None
    lower: bool = False
    digest: str = field(default="", compare=False)

    def __call__(
        self, states: Float[torch.Tensor, "batch length d"], real: Int[torch.Tensor, "batch length"]
    ) -> Float[torch.Tensor, "batch out"]:
        """The model's own vectors, from the last hidden states of texts padded on the right; ``real`` is 1 on their tokens."""
        weights = real.unsqueeze(-1).to(states.dtype)
        count = weights.sum(1).clamp(min=1)
        found = []
        for mode in self.modes:
            if mode == "cls":
                found.append(states[:, 0])
            elif mode == "lasttoken":
                last = real.sum(1).clamp(min=1).long() - 1
                found.append(states[torch.arange(len(states), device=states.device), last])
            elif mode == "max":
                found.append(states.masked_fill(weights == 0, float("-inf")).amax(1))
            elif mode == "weightedmean":
                rising = weights * torch.arange(1, states.shape[1] + 1, device=states.device).view(1, -1, 1)
                found.append((states * rising).sum(1) / rising.sum(1).clamp(min=1))
            else:
                found.append((states * weights).sum(1) / (count if mode == "mean" else count.sqrt()))
        vectors = torch.cat(found, -1)
        for layer in self.layers:
            vectors = layer(vectors)
        return torch.nn.functional.normalize(vectors, dim=-1) if self.normalized else vectors


def read_layout(folder: Path) -> SentenceLayout:
    """The layout of ``folder``; a plain ``transformers`` folder, without ``modules.json``, is pooled by the mean.

    Raises:
        ValueError: the folder names a module, pooling or activation that is not known here, or cannot be read.
    """
    if not (folder / "modules.json").is_file():
        named = _lengths(folder)
        return SentenceLayout(folder, **named, digest=_digest(folder, [folder], named))
    modules = _json(folder / "modules.json")
    kinds = [(str(module["type"]).rpartition(".")[2], folder / module["path"]) for module in modules]
    names = [kind for kind, _ in kinds]
    if names[:2] != ["Transformer", "Pooling"] or {*names[2:]} - {"Dense", "Normalize"}:
        raise ValueError(
            f"{folder / 'modules.json'}: {', '.join(names)}: expected Transformer, Pooling, Dense, Normalize"
        )
    if "Normalize" in names[:-1]:
        raise ValueError(f"{folder / 'modules.json'}: {', '.join(names)}: Normalize is expected at the end")
    transformer, pooling = kinds[0][1], _json(kinds[1][1] / "config.json")
    query, document = _prompts(folder)
    if (query or document) and not pooling.get("include_prompt", True):
        raise ValueError(f"{kinds[1][1] / 'config.json'}: include_prompt=false with prompts is not known here")
    dense = [place for kind, place in kinds if kind == "Dense"]
    found: dict[str, Any] = {
        "modes": _modes(kinds[1][1], pooling), "normalized": names[-1] == "Normalize",
        "query_prompt": query, "document_prompt": document, **_lengths(transformer),
    }  # fmt: skip
    digest = _digest(folder, [transformer, *dense], found)
    return SentenceLayout(transformer, **found, layers=tuple(map(_dense, dense)), digest=digest)


def _modes(place: Path, pooling: dict[str, Any]) -> tuple[str, ...]:
    given = (
        pooling.get("pooling_mode") or [m for m, key in _MODES.items() if pooling.get(f"pooling_mode_{key}")] or "mean"
    )
    modes = (given,) if isinstance(given, str) else tuple(given)
    if {*modes} - {*_MODES}:
        raise ValueError(f"{place / 'config.json'}: pooling {', '.join(modes)}: expected {', '.join(_MODES)}")
    return modes


def _prompts(folder: Path) -> tuple[str, str]:
    """What queries and documents begin with, by the names that sentence-transformers looks for."""
    prompts = _json(folder / "config_sentence_transformers.json").get("prompts") or {}
    documents = (prompts[name] for name in ("document", "passage", "corpus") if name in prompts)
    return str(prompts.get("query", "")), str(next(documents, ""))


def _lengths(transformer: Path) -> dict[str, Any]:
    said = _json(transformer / "sentence_bert_config.json")
    tokenizer = _json(transformer / "tokenizer_config.json")
    most = said.get("max_seq_length") or (tokenizer.get("model_max_length") if said else None)
    return {"max_tokens": most, "lower": bool(said.get("do_lower_case"))}


def _dense(place: Path) -> torch.nn.Module:
    from safetensors.torch import load_file

    said = _json(place / "config.json")
    kind = str(said.get("activation_function", "Tanh")).rpartition(".")[2]
    if kind not in _ACTIVATIONS or said.get("use_residual"):
        raise ValueError(f"{place / 'config.json'}: activation {kind}: expected {', '.join(_ACTIVATIONS)}, no residual")
    linear = torch.nn.Linear(said["in_features"], said["out_features"], bias=said.get("bias", True))
    path = place / "model.safetensors"
    weights = load_file(path) if path.is_file() else torch.load(place / "pytorch_model.bin", weights_only=True)
    linear.load_state_dict({name.removeprefix("linear."): value for name, value in weights.items()})
    return torch.nn.Sequential(linear, _ACTIVATIONS[kind]()).eval().requires_grad_(False)


def _digest(folder: Path, places: Sequence[Path], settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for place in places:
        files = [
            p for end in ("config.json", "tokenizer*", "vocab*", "*.safetensors", "*.bin") for p in place.glob(end)
        ]
        for path in sorted({*files}):
            digest.update(f"\0{path.relative_to(folder)}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
