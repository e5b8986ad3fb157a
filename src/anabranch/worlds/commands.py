"""The command ``anabranch data``: cards of data sets and shared weights, and getting one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from anabranch.worlds import CARDS as CARDS
from anabranch.worlds import Card, Weights


def describe(card: Card | Weights, root: Path) -> dict[str, Any]:
    """The card as plain data, and whether the data set is here."""
    common = {
        "name": card.name, "title": card.title, "licence": card.licence, "origin": card.origin, "recipe": card.recipe,
        "size_bytes": card.size_bytes,
    }  # fmt: skip
    if isinstance(card, Weights):
        files = [{"name": card.path.name, "sha256": card.card["sha256"], "size_bytes": card.size_bytes}]
        return {**common, "files": files, "ways": ["shipped with the package", "--build"], "gates": card.card["gates"],
                "here": card.path.is_file(), "folder": str(card.path.parent)}  # fmt: skip
    return {
        **common, "files": [asdict(file) for file in card.files], "ways": [way.name for way in card.ways],
        "here": card.here(root), "folder": str(card.folder(root)),
    }  # fmt: skip


def find_card(name: str) -> Card | Weights:
    """Raises ValueError with the nearest names."""
    if name not in CARDS:
        near = get_close_matches(name, CARDS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(CARDS)}"
        raise ValueError(f"unknown data set {name!r}; {hint}")
    return CARDS[name]


def cards(name: str | None) -> list[Card | Weights]:
    """The one of that name, or all."""
    return [find_card(name)] if name else list(CARDS.values())


def print_cards(console: Console, root: Path) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("data set", "what", "size", "licence", "here"):
        table.add_column(heading)
    for card in CARDS.values():
        here = (
            "shipped" if isinstance(card, Weights) else "yes" if card.here(root) else f"no: anabranch data {card.name}"
        )
        table.add_row(card.name, card.title, f"{card.size_bytes / 1e6:.1f} MB", card.licence, here)
    console.print(table)
    console.print(f"data folder  {root}", soft_wrap=True)


def fetch(name: str, root: Path, source: Path | None, note: Callable[[str], None]) -> str:
    """Get data set ``name`` into ``root`` (shared weights are shipped: their file is checked) and say where it is.

    Raises:
        ValueError: an unknown name, or a folder for shared weights.
    """
    card = find_card(name)
    if not isinstance(card, Weights):
        return str(card.get(root, source=source, note=note))
    if source is not None:
        raise ValueError(f"{name} are shared weights, shipped with the package: --from is for data sets")
    return str(card.checked())


def build(name: str, root: Path, source: Path | None, note: Callable[[str], None]) -> str:
    """Train shared weights ``name`` again into ``root``; say where the new file is, and its card.

    Raises:
        ValueError: a data set, which is not built.
    """
    card = find_card(name)
    if not isinstance(card, Weights) or source is not None:
        raise ValueError(f"--build trains shared weights and takes no --from: {name} is got by `anabranch data {name}`")
    path = card.build(root, note=note)
    return f"{path}\n{path.with_suffix('.json').read_text().rstrip()}"
