"""Embeddings of sentences by a BERT-like encoder: mean over the tokens, length one."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from anabranch.language.loading import quiet

_ROUND = 8  # lengths are padded to multiples of this: few shapes, so few compiled kernels are kept in memory
_GIVE_BACK_EVERY = 10  # passes


class SentenceEmbedder:
    """Sentences as unit vectors whose products are cosines; the pooling of sentence-transformers (Reimers and Gurevych, 2019).

    Args:
        path: a folder with an encoder of ``transformers`` and its tokenizer, or a name in the hub's local cache.
        device: where it runs.
        max_tokens: what is longer is cut there.
        tokens: in one pass, padding counted; texts of like length go together. 512 is as fast as more on one core, and
            takes the least memory.
        fast: embed more than ``few`` texts in bfloat16 where the processor multiplies it (1.6 times as fast on one core with
            AVX512-BF16). Cosines then change by less than 0.005; few texts, such as a query, keep single precision.
        few: texts at once that keep single precision in any case.

    Raises:
        ValueError: there is no encoder at ``path``.
    """

    def __init__(
        self, path: str | Path, *, device: str | torch.device = "cpu", max_tokens: int = 256, tokens: int = 512,
        fast: bool = False, few: int = 8,
    ) -> None:  # fmt: skip
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
        self._device, self._max_tokens, self._tokens = device, max_tokens, tokens
        self._few = few if fast and _has_bfloat16(torch.device(device)) else None
        config = model.config.to_json_string() + str(max_tokens)
        self.dimensions: int = model.config.hidden_size
        self.name = f"{Path(source).name}-{hashlib.sha256(config.encode()).hexdigest()[:8]}"

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """One row a text. Time grows with the number of tokens; a text's vector does not depend on the others (to 1e-5 in
        single precision)."""
        found = np.zeros((len(texts), self.dimensions), np.float32)
        if not texts:
            return found
        plain = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates would stop the tokenizer
        ids: list[list[int]] = self._tokenizer(plain, truncation=True, max_length=self._max_tokens)["input_ids"]
        order = sorted(
            range(len(ids)), key=lambda i: -len(ids[i])
        )  # the longest first: the most memory is taken at once
        half = self._few is not None and len(texts) > self._few
        begin = passes = 0
        while begin < len(order):
            length = min(-(-len(ids[order[begin]]) // _ROUND) * _ROUND, max(self._max_tokens, _ROUND))
            rows = order[begin : begin + max(1, self._tokens // length)]
            found[rows] = self._embed([ids[i] for i in rows], length, half)
            begin, passes = begin + len(rows), passes + 1
            if passes % _GIVE_BACK_EVERY == 0:
                _give_back()
        return found

    @torch.inference_mode()
    def _embed(self, ids: list[list[int]], length: int, half: bool) -> np.ndarray:
        """Rows of token ids, padded to ``length``, as vectors."""
        tokens = torch.full((len(ids), length), self._tokenizer.pad_token_id or 0, dtype=torch.long)
        real = torch.zeros_like(tokens)
        for row, own in enumerate(ids):
            tokens[row, : len(own)] = torch.tensor(own)
            real[row, : len(own)] = 1
        tokens, real = tokens.to(self._device), real.to(self._device)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=half):
            states = self._model(input_ids=tokens, attention_mask=real).last_hidden_state
        weights = real.unsqueeze(-1).to(torch.float32)
        mean = (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
        vectors: np.ndarray = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        return vectors


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself: emulated it would be slower than single precision."""
    if device.type != "cpu":
        return True
    with suppress(AttributeError):  # an older torch does not tell
        return bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return False


def _give_back() -> None:
    """Memory of past passes goes back to the system; glibc would keep it."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
