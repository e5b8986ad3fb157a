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
from anabranch.worlds import Card


def describe(card: Card, root: Path) -> dict[str, Any]:
    """The card as plain data, and whether the data set is here."""
    return {
        "name": card.name, "title": card.title, "licence": card.licence, "origin": card.origin, "recipe": card.recipe,
        "size_bytes": card.size_bytes, "files": [asdict(file) for file in card.files],
        "ways": [way.name for way in card.ways], "here": card.here(root), "folder": str(card.folder(root)),
    }  # fmt: skip


def find_card(name: str) -> Card:
    """Raises ValueError with the nearest names."""
    if name not in CARDS:
        near = get_close_matches(name, CARDS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(CARDS)}"
        raise ValueError(f"unknown data set {name!r}; {hint}")
    return CARDS[name]


def print_cards(console: Console, root: Path) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("data set", "what", "size", "licence", "here"):
        table.add_column(heading)
    for card in CARDS.values():
        here = "yes" if card.here(root) else f"no: anabranch data {card.name}"
        table.add_row(card.name, card.title, f"{card.size_bytes / 1e6:.1f} MB", card.licence, here)
    console.print(table)
    console.print(f"data folder  {root}", soft_wrap=True)


def fetch(name: str, root: Path, source: Path | None, note: Callable[[str], None]) -> Path:
    """Get data set ``name`` into ``root``."""
    return find_card(name).get(root, source=source, note=note)
