"""Embeddings of sentences by a BERT-like encoder: mean over the tokens, length one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from anabranch.language.loading import quiet


class SentenceEmbedder:
    """Sentences as unit vectors whose products are cosines; the pooling of sentence-transformers (Reimers and Gurevych, 2019).

    Args:
        path: a folder with an encoder of ``transformers`` and its tokenizer, or a name in the hub's local cache.
        device: where it runs.
        max_tokens: what is longer is cut there.
        batch: texts in one pass; texts of like length go together.

    Raises:
        ValueError: there is no encoder at ``path``.
    """

    def __init__(
        self, path: str | Path, *, device: str | torch.device = "cpu", max_tokens: int = 256, batch: int = 32
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        place = Path(path).expanduser()
        if place.is_absolute() and not (place / "config.json").is_file():
            raise ValueError(f"path={str(path)!r}: expected a folder with config.json")
        source = str(place) if place.is_dir() else str(path)
        try:
            with quiet():
                self._tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
                model = AutoModel.from_pretrained(source, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(f"path={str(path)!r}: no encoder ({str(error).splitlines()[0]})") from error
        self._model: torch.nn.Module = model.to(device).eval().requires_grad_(False)
        self._device, self._max_tokens, self._batch = device, max_tokens, batch
        config = model.config.to_json_string() + str(max_tokens)
        self.dimensions: int = model.config.hidden_size
        self.name = f"{Path(source).name}-{hashlib.sha256(config.encode()).hexdigest()[:8]}"

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """One row a text. Time grows with the number of tokens; a text's vector does not depend on the others (to 1e-5)."""
        found = np.zeros((len(texts), self.dimensions), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for begin in range(0, len(order), self._batch):
            rows = order[begin : begin + self._batch]
            found[rows] = self._embed([texts[i] for i in rows])
        return found

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> np.ndarray:
        tokens: Any = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._device)
        states = self._model(**tokens).last_hidden_state
        real = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)
        mean = (states * real).sum(1) / real.sum(1).clamp(min=1)
        vectors: np.ndarray = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        return vectors
