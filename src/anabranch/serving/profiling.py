"""Prefill and decode times of a model on this machine, in the columns that :class:`ProfileTable` reads."""

from __future__ import annotations

import csv
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from anabranch.language import CausalModel, load_causal
from anabranch.serving.performance import COLUMNS
from anabranch.serving.workers import DecodeWorker, PrefillWorker, device_of

Progress = Callable[[int, int, dict[str, float]], None]


def profile_model(
    model: str | Path | CausalModel,
    device: str = "cpu",
    *,
    generator: torch.Generator,
    name: str | None = None,
    hardware: str | None = None,
    prompt_sizes: Sequence[int] = (32, 64, 128, 256, 512, 1024),
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16),
    batch_prompt: int = 128,
    tokens: int = 8,
    repeats: int = 3,
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Rows of a profile: single prompts of each size, and batches of ``batch_prompt`` tokens each, ``repeats`` times.

    ``prompt_time`` is that of reading the batch's prompts, ``token_time`` that of one token for each sequence, both in
    milliseconds (the median step of ``tokens``). Prompts are random tokens. Cost: a few minutes for a model of 100 million
    parameters on a laptop.

    Args:
        name, hardware: what the rows call the model and the machine; by default the path's last part and the processor.
        threads: of torch; unchanged if None.

    Raises:
        ValueError: a model that cannot be loaded, sizes below 1, prompts beyond the model's positions.
    """
    for what, sizes in (("prompt_sizes", prompt_sizes), ("batch_sizes", batch_sizes)):
        if not sizes or min(sizes) < 1:
            raise ValueError(f"{what}={list(sizes)}: expected sizes of at least 1")
    for what, value in (("batch_prompt", batch_prompt), ("tokens", tokens), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{what} must be >= 1, got {value}")
    loaded = model if isinstance(model, CausalModel) else load_causal(model, dtype=dtype, device=device)
    vocabulary = loaded.config.get_text_config(decoder=True).vocab_size
    most = getattr(loaded.config, "max_position_embeddings", None)
    longest = max(*prompt_sizes, batch_prompt) + tokens + 1
    if most is not None and longest > most:
        raise ValueError(f"prompt_sizes and tokens need {longest} positions: the model has {most}")
    label = name or (Path(str(model)).stem if not isinstance(model, CausalModel) else type(loaded.model).__name__)
    where = hardware or (torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine())
    shapes = [(size, 1) for size in prompt_sizes] + [(batch_prompt, batch) for batch in batch_sizes if batch > 1]
    before = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    try:
        torch.set_num_threads(threads or before)
        _measure(loaded, [[1] * min(prompt_sizes)], 1)  # warm up
        for size, batch in shapes:
            for _ in range(repeats):
                prompts = torch.randint(vocabulary, (batch, size), generator=generator).tolist()
                prompt_s, token_s = _measure(loaded, prompts, tokens)
                values = (label, where, 1, size, batch, 1e3 * prompt_s, 1e3 * token_s)
                rows.append(dict(zip(COLUMNS, values, strict=True)))
                if progress is not None:
                    progress(len(rows), len(shapes) * repeats, {"prompt_s": prompt_s, "token_s": token_s})
    finally:
        torch.set_num_threads(before)
    return rows


def write_profile(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """As CSV, for :meth:`ProfileTable.read`."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _measure(loaded: CausalModel, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
    """Seconds to read the prompts, and the median of a step that gives each a token."""
    prefill, decode = PrefillWorker(loaded), DecodeWorker(loaded)
    begin = _now(loaded)
    done = [prefill.prefill(prompt) for prompt in prompts]
    prompt_s = _now(loaded) - begin
    for i, one in enumerate(done):
        decode.add(i, one.cache, one.first_token, tokens + 1)
    steps = []
    for _ in range(tokens):
        begin = _now(loaded)
        decode.step()
        steps.append(_now(loaded) - begin)
    return prompt_s, sorted(steps)[len(steps) // 2]


def _now(loaded: CausalModel) -> float:
    device = device_of(loaded)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
