"""Shared trained weights: shipped with the package, checked by hash, rebuilt by their recipe on request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from anabranch.worlds.cards import DataMissing, Note

SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Weights:
    """Shared weights ``NAME.safetensors`` and their card ``NAME.json``, which the build writes.

    Args:
        name: on the command line.
        title: what they are, in one line.
        builder: ``module:function`` of ours, called ``(folder, data_root, note) -> (safetensors file, gates)``; resumes what it
            finds in the folder.
    """

    name: str
    title: str
    builder: str
    licence: str = "Apache-2.0"
    origin: str = "trained by this project"

    @property
    def path(self) -> Path:
        return SHIPPED / f"{self.name}.safetensors"

    @cached_property
    def card(self) -> dict[str, Any]:
        """Recipe, gate values, sha256 and size in bytes of the shipped file."""
        card: dict[str, Any] = json.loads(self.path.with_suffix(".json").read_text())
        return card

    @property
    def recipe(self) -> str:
        return str(self.card["recipe"])

    @property
    def size_bytes(self) -> int:
        return int(self.card["size_bytes"])

    def checked(self) -> Path:
        """The shipped file.

        Raises:
            DataMissing: it is not there.
            ValueError: its content is not that of the card.
        """
        if not self.path.is_file():
            raise DataMissing(f"the weights {self.name} are missing from this installation: reinstall anabranch")
        if hashlib.sha256(self.path.read_bytes()).hexdigest() != self.card["sha256"]:
            raise ValueError(f"{self.path.name} is damaged: its checksum is not that of its card; reinstall anabranch")
        return self.path

    def build(self, root: Path, *, note: Note = lambda text: None) -> Path:
        """Train them again into ``root/NAME``, going on where an earlier build stopped; gives the new file.

        The shipped file stays. To replace it, copy the new ``.safetensors`` and ``.json`` over it.

        Raises:
            DataMissing: the data they are trained on is not in ``root``.
        """
        module, _, function = self.builder.partition(":")
        build: Callable[..., tuple[Path, str, dict[str, float]]] = getattr(import_module(module), function)
        folder = root / self.name
        folder.mkdir(parents=True, exist_ok=True)
        path, recipe, gates = build(folder, root, note)
        card = {
            "name": self.name, "recipe": recipe, "gates": gates, "size_bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }  # fmt: skip
        path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
        return path


FASHION_TEACHER = Weights(
    "fashion-teacher",
    "class-conditional flow-matching velocity on Fashion-MNIST, with a null label for guidance",
    "anabranch.worlds.fashion_teacher:build_teacher",
)
FASHION_CLASSIFIER = Weights(
    "fashion-classifier",
    "classifier of Fashion-MNIST whose 64 penultimate features are those of the Fashion Frechet distance",
    "anabranch.worlds.fashion_classifier:build_classifier",
)
