"""A model in a process of its own, whose answers are what every server must give; nothing heavy is loaded here."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from anabranch.serving._worker_context import worker_context

_loaded: Any = None  # in the process of the model


class ReferenceModel:
    """Forked where workers are, from the process that has torch and transformers loaded already.

    Args:
        path: folder or ``.gguf`` file; None makes a tiny model of random weights in a folder of its own.
        seed: of the tiny model.

    Attributes:
        path: for servers. vocabulary: tokens that the model knows.

    Raises:
        ValueError: no model at ``path``.
    """

    def __init__(self, path: str | Path | None = None, *, seed: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="anabranch-model-")
        self.path = Path(self._folder.name if path is None else path)
        self._pool = ProcessPoolExecutor(1, mp_context=worker_context())
        try:
            self.vocabulary: int = self._pool.submit(_load, str(self.path), seed if path is None else None).result()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ReferenceModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; a tiny model is gone with it."""
        self._pool.shutdown()
        self._folder.cleanup()

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]) -> list[list[int]]:
        """What ``generate`` gives greedily to every prompt.

        Raises:
            ValueError: another number of limits than of prompts.
        """
        if len(prompts) != len(max_new_tokens):
            raise ValueError(f"max_new_tokens has {len(max_new_tokens)} numbers for {len(prompts)} prompts")
        tasks = [([int(token) for token in one], most) for one, most in zip(prompts, max_new_tokens, strict=True)]
        return self._pool.submit(_answer, tasks).result()


def _load(path: str, seed: int | None) -> int:
    global _loaded
    import torch

    from anabranch.language import load_causal, tiny_causal

    if seed is not None:
        made: Any = tiny_causal(generator=torch.Generator().manual_seed(seed)).model
        made.save_pretrained(path)
    _loaded = load_causal(path)
    return int(_loaded.config.vocab_size)


def _answer(tasks: list[tuple[list[int], int]]) -> list[list[int]]:
    from anabranch.serving.workers import unsplit_tokens

    return [unsplit_tokens(_loaded, prompt, most) for prompt, most in tasks]
