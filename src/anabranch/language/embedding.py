"""Embeddings of sentences by an encoder, pooled as its folder says."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from anabranch.language.loading import quiet
from anabranch.language.sentence_layout import read_layout

_USUAL_TOKENS, _MOST_TOKENS = 256, 512
_ROUND = 8  # lengths are padded to multiples of this: few shapes, so few compiled kernels are kept in memory
_GIVE_BACK_EVERY = 10  # passes


class SentenceEmbedder:
    """Sentences as unit vectors whose products are cosines, as sentence-transformers makes them (Reimers and Gurevych, 2019).

    Pooling, dense layers, prompts and the longest text are those of the model's folder (``modules.json`` and what it names);
    a plain ``transformers`` folder is pooled by the mean.

    Args:
        path: a folder with an encoder and its tokenizer, or a name in the hub's local cache.
        device: where it runs.
        max_tokens: what is longer is cut there; default is what the folder says, up to 512, else 256.
        tokens: in one pass, padding counted; texts of like length go together. 512 is as fast as more on one core, and
            takes the least memory.
        fast: embed more than ``few`` texts in bfloat16 where the processor multiplies it (1.6 times as fast on one core with
            AVX512-BF16). Cosines then change by less than 0.005; few texts, such as a query, keep single precision.
        few: texts at once that keep single precision in any case.
        unit: whether vectors have length one also where the model's own have not.

    Raises:
        ValueError: there is no encoder at ``path``, or its folder asks for what is not known here.
    """

    def __init__(
        self, path: str | Path, *, device: str | torch.device = "cpu", max_tokens: int | None = None, tokens: int = 512,
        fast: bool = False, few: int = 8, unit: bool = True,
    ) -> None:  # fmt: skip
        from transformers import AutoModel, AutoModelForTextEncoding, AutoTokenizer

        place = _folder(path)
        try:
            self._layout = read_layout(place)
            source = str(self._layout.transformer)
            with quiet():
                self._tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
                # Of an encoder with a decoder (T5) only the first half is wanted.
                halves = _is_encoder_decoder(self._layout.transformer)
                kind = AutoModelForTextEncoding if halves else AutoModel
                model = kind.from_pretrained(source, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"path={str(path)!r}: no encoder ({str(error).splitlines()[0]})") from error
        self._model: torch.nn.Module = model.to(device).eval().requires_grad_(False)
        for layer in self._layout.layers:
            layer.to(device)
        most = getattr(model.config, "max_position_embeddings", None) or _MOST_TOKENS
        self._max_tokens = max_tokens or min(self._layout.max_tokens or _USUAL_TOKENS, most, _MOST_TOKENS)
        self._device, self._tokens, self._unit = device, tokens, unit
        self._few = few if fast and _has_bfloat16(torch.device(device)) else None
        identity = f"{self._layout.digest} {self._max_tokens} {unit}"
        self.name = f"{_label(place)}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        self.dimensions: int = self._embed([[0]], 1, False).shape[1]

    def query(self, text: str) -> Float[np.ndarray, " d"]:
        """The vector of a question, which may begin with another prompt than the texts it is held against."""
        vector: np.ndarray = self._vectors([self._layout.query_prompt + text])[0]
        return vector

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """One row a text. Time grows with the number of tokens; a text's vector does not depend on the others (to 1e-5 in
        single precision)."""
        return self._vectors([self._layout.document_prompt + text for text in texts])

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(texts), self.dimensions), np.float32)
        if not texts:
            return found
        plain = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates would stop the tokenizer
        if self._layout.lower:
            plain = [text.lower() for text in plain]
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
        vectors = self._layout(states.float(), real)
        if self._unit:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        found: np.ndarray = vectors.cpu().numpy()
        return found


def _folder(path: str | Path) -> Path:
    """The folder of an encoder: ``path`` itself, or that of a name in the hub's local cache."""
    place = Path(path).expanduser()
    if place.is_dir() or place.is_absolute():
        if not any((place / name).is_file() for name in ("modules.json", "config.json")):
            raise ValueError(f"path={str(path)!r}: expected a folder with config.json or modules.json")
        return place
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), local_files_only=True))
    except (OSError, ValueError) as error:
        raise ValueError(f"path={str(path)!r}: no folder, and no encoder in the hub's local cache") from error


def _label(place: Path) -> str:
    """A name for people; a snapshot in the hub's cache is called by its model."""
    parts = place.resolve().parts
    if len(parts) > 2 and parts[-2] == "snapshots":
        return parts[-3].removeprefix("models--").replace("--", "-")
    return parts[-1]


def _is_encoder_decoder(folder: Path) -> bool:
    return bool(json.loads((folder / "config.json").read_bytes()).get("is_encoder_decoder"))


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
