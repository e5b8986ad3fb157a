"""What is known of the catalogue's file between two changes of it: its entries and their indices."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from anabranch.hub.catalogue import Entry
from anabranch.hub.meaning import MeaningIndex
from anabranch.hub.search import Document, TextIndex, document


@dataclass
class Locked:
    """A ranker that threads take turns with: one SQLite connection serves one at a time."""

    ranker: TextIndex
    lock: threading.Lock

    def scores(self, query: str) -> dict[int, float]:
        with self.lock:
            return self.ranker.scores(query)

    def shares(self, query: str) -> dict[int, float]:
        with self.lock:
            return self.ranker.shares(query)


@dataclass
class Known:
    """Everything that changes only with the catalogue's file."""

    version: int
    entries: list[Entry]
    by_key: dict[str, int]
    documents: list[Document]
    words: Locked
    by_meaning: MeaningIndex | None = None
    building: bool = False


def known_of(version: int, entries: list[Entry], before: Known | None) -> Known:
    """``entries`` with their indices; those of ``before`` stay where the texts are the same."""
    by_key: dict[str, int] = {}
    for i, entry in enumerate(entries):
        by_key[f"entry-{entry.id}"] = i
        for key in (entry.arxiv, entry.slug):
            if key:
                by_key[key] = i
    documents = [document(entry) for entry in entries]
    if before is not None and before.documents == documents:
        building = before.by_meaning is not None  # else a new thread begins, and finds what the old one has embedded
        return replace(before, version=version, entries=entries, by_key=by_key, building=building)
    return Known(version, entries, by_key, documents, Locked(TextIndex(documents), threading.Lock()))
