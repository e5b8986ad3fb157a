"""Production traces of requests to language models, and measured times of two models on two accelerators."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from anabranch.worlds.cards import Card, File, Note, Way


def _card(name: str, title: str, licence: str, origin: str, base: str, *files: File) -> Card:
    def accepts(folder: Path) -> dict[str, Path] | None:
        found = {file.name: folder / file.name for file in files}
        return found if all(path.is_file() for path in found.values()) else None

    def download(folder: Path, note: Note) -> None:
        for file in files:
            note(f"downloading {file.name}")
            try:
                with urllib.request.urlopen(f"{base}/{file.name}", timeout=60) as answer:
                    (folder / file.name).write_bytes(answer.read())
            except (urllib.error.URLError, TimeoutError) as error:
                raise OSError(f"{file.name}: {error}") from error

    return Card(
        name, title, licence, origin, files, accepts, Path.read_bytes, (Way("its public repository", download),)
    )


AZURE_LLM_2023 = _card(
    "azure-llm-2023",
    "Azure LLM inference traces of 2023: 8,819 requests of a coding and 19,366 of a conversation service",
    "CC BY 4.0",
    "Microsoft Azure, github.com/Azure/AzurePublicDataset; Patel et al., Splitwise, ISCA 2024",
    "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data",
    File(
        "AzureLLMInferenceTrace_code.csv", "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6", 320_117
    ),
    File(
        "AzureLLMInferenceTrace_conv.csv", "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8", 719_188
    ),
)
SPLITWISE_PROFILES = _card(
    "splitwise-profiles",
    "Times of BLOOM-176B and Llama-2-70B on A100 and H100 machines, 1,260 measurements",
    "MIT",
    "Pratyush Patel, github.com/Mutinifni/splitwise-sim",
    "https://raw.githubusercontent.com/Mutinifni/splitwise-sim/main/data",
    File("perf_model.csv", "dbbe505d1d64fc4bd1ec03c50edf944643586de4f68a81e94cbd55dd5bdfbf41", 127_281),
)
