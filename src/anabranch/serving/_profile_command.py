"""What ``anabranch serving profile`` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anabranch.serving._serving_words import numbers, table_text


def measure(
    model: str, output: Path, *, device: str, prompt_sizes: str, batch_sizes: str, repeats: int, threads: int | None,
    hardware: str | None, seed: int, progress: Callable[..., None],
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows, which are written to ``output`` too."""
    if not output.absolute().parent.is_dir():
        raise ValueError(f"--output {output}: there is no folder {output.parent}")
    prompts = [int(value) for value in numbers("--prompt-sizes", prompt_sizes)]
    batches = [int(value) for value in numbers("--batch-sizes", batch_sizes)]
    import torch

    from anabranch.serving.profiling import profile_model, write_profile

    rows = profile_model(
        model, device, generator=torch.Generator().manual_seed(seed), prompt_sizes=prompts, batch_sizes=batches,
        batch_prompt=min(128, max(prompts)), repeats=repeats, threads=threads, hardware=hardware, progress=progress,
    )  # fmt: skip
    write_profile(rows, output)
    return rows


def as_json(rows: list[dict[str, Any]], output: Path) -> str:
    seconds = [
        {key: value for key, value in row.items() if not key.endswith("_time")}
        | {"prompt_s": row["prompt_time"] / 1e3, "token_s": row["token_time"] / 1e3}
        for row in rows
    ]
    return json.dumps({"written": str(output), "rows": seconds}, indent=1)


def words(rows: list[dict[str, Any]], output: Path) -> str:
    from statistics import median

    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["prompt_size"], row["batch_size"]), []).append(row)
    lines = [
        {
            "prompt": prompt, "batch": batch, "prefill, ms": f"{median(one['prompt_time'] for one in group):.1f}",
            "token, ms": f"{median(one['token_time'] for one in group):.1f}",
        }
        for (prompt, batch), group in groups.items()
    ]  # fmt: skip
    head = f"{rows[0]['model']} on {rows[0]['hardware']}, medians of {len(next(iter(groups.values())))}\n\n"
    return f"{head}{table_text(lines)}\nwrote     {output}"
