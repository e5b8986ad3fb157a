"""Search by meaning: embeddings of papers and of their sentences, mixed with BM25.

The score is ``0.7 (cos(query, paper) + largest cos(query, sentence)) / 2 + 0.3 BM25 / largest BM25``: of the rankers that were
tried, the only one that found the paper among the first three for every question of both sets.
"""

from __future__ import annotations

import hashlib
import mmap
import sqlite3
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from anabranch.hub.encoder_files import model_folder
from anabranch.hub.search import Document, Ranker, sentences
from anabranch.lab.places import cache_folder

MEANING, WORDS = 0.7, 0.3
_LEAST_COSINE = 0.12  # below it a paper without a common word is not about the query
_AT_ONCE = 512  # texts between two writes
_CANDIDATES = 200  # papers whose sentences are looked at, where there are more

Progress = Callable[[int, int], None]  # texts embedded, texts to embed


class Embedder(Protocol):
    """Texts as unit vectors."""

    @property
    def name(self) -> str: ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...


@runtime_checkable
class PromptedEmbedder(Embedder, Protocol):
    """An embedder to which a question is not a text like others."""

    def query(self, text: str) -> np.ndarray: ...


def load_embedder(path: str | Path | None = None) -> Embedder:
    """The encoder in folder ``path`` (default: the one that the data card names). Takes seconds; needs ``anabranch[hub]``.

    Raises:
        ValueError: it is not there.
    """
    from anabranch.language import SentenceEmbedder

    return SentenceEmbedder(path or model_folder(), fast=True)


class Remembering:
    """An embedder that threads take turns with, with the vectors of the latest queries remembered.

    Args:
        inner: does the work.
        most: queries that are remembered.
    """

    def __init__(self, inner: Embedder, most: int = 256) -> None:
        self.name = inner.name
        self._inner, self._most = inner, most
        self._working, self._looking = threading.Lock(), threading.Lock()
        self._latest: OrderedDict[str, np.ndarray] = OrderedDict()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        with self._working:
            return self._inner(texts)

    def query(self, text: str) -> np.ndarray:
        """The vector ``[d]`` of a query."""
        if (vector := self._remembered(text)) is not None:
            return vector
        with self._working:
            if (vector := self._remembered(text)) is not None:  # made while this thread waited
                return vector
            inner = self._inner
            made: np.ndarray = inner.query(text) if isinstance(inner, PromptedEmbedder) else inner([text])[0]
            with self._looking:
                self._latest[text] = made
                while len(self._latest) > self._most:
                    self._latest.popitem(last=False)
            return made

    def _remembered(self, text: str) -> np.ndarray | None:
        with self._looking:
            if text in self._latest:
                self._latest.move_to_end(text)
            return self._latest.get(text)


def vectors_path(embedder: Embedder) -> Path:
    """Where vectors are kept: the name tells weights, pooling and prompts apart, so those of two encoders never mix."""
    return cache_folder() / f"embeddings-{embedder.name}.sqlite"


class VectorStore:
    """Vectors of texts, kept in a file by the text's hash; a text is embedded once.

    Args:
        embedder: makes what is missing.
        path: the SQLite file; None keeps nothing.
    """

    def __init__(self, embedder: Embedder, path: Path | None = None) -> None:
        self._embedder = embedder
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(":memory:" if path is None else path, timeout=30, check_same_thread=False)
        self._db.execute("CREATE TABLE IF NOT EXISTS vector (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")

    def close(self) -> None:
        self._db.close()

    def get(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """``[n, d]`` float16, in a file that only this array has open: rows that nobody looks at take no memory.

        Missing ones are embedded, the longest first, and kept, 512 at a time: an interruption loses no more, and the next
        call goes on from there. O(total length of the texts)."""
        places: dict[bytes, list[int]] = {}
        for i, text in enumerate(texts):
            places.setdefault(_key(text), []).append(i)
        rows = _Rows(len(texts))
        for key, value in self._read(list(places)):
            rows.put(places.pop(key), np.frombuffer(value, np.float16))
        rows.let_go()
        missing = sorted(places.items(), key=lambda item: -len(texts[item[1][0]]))  # of like length in one pass
        for begin in range(0, len(missing), _AT_ONCE):
            if progress is not None:
                progress(begin, len(missing))
            part = missing[begin : begin + _AT_ONCE]
            made = self._embedder([texts[where[0]] for _, where in part]).astype(np.float16)
            with self._db:
                self._db.executemany(
                    "INSERT OR REPLACE INTO vector VALUES (?, ?)",
                    [(key, row.tobytes()) for (key, _), row in zip(part, made, strict=True)],
                )
            for (_, where), row in zip(part, made, strict=True):
                rows.put(where, row)
            rows.let_go()
        if progress is not None and missing:
            progress(len(missing), len(missing))
        return rows.all

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Those of ``texts`` that are not kept yet, each once."""
        by_key = {_key(text): text for text in texts}
        for key, _ in self._read(list(by_key)):
            del by_key[key]
        return list(by_key.values())

    def _read(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for begin in range(0, len(keys), 500):
            part = keys[begin : begin + 500]
            marks = ", ".join("?" * len(part))
            yield from self._db.execute(f"SELECT key, value FROM vector WHERE key IN ({marks})", part)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()[:16]


class _Rows:
    """Rows of a matrix in a file without a name, whose width the first row tells."""

    def __init__(self, n: int) -> None:
        self.all: np.ndarray = np.zeros((n, 0), np.float16)

    def put(self, where: Sequence[int], row: np.ndarray) -> None:
        if self.all.shape[1] == 0:
            with tempfile.TemporaryFile() as file:
                self.all = np.memmap(file, np.float16, "w+", shape=(len(self.all), len(row)))
        self.all[where] = row

    def let_go(self) -> None:
        """Written rows stay in the file; the process no longer counts them as its memory."""
        if isinstance(self.all, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.all._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def nearest(vectors: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    """Positions of the ``k`` rows with the largest product with ``query``, best first, ties by position. O(n d + k log k)."""
    products = vectors @ query
    k = min(k, len(products))
    if k < len(products):
        floor = np.partition(products, len(products) - k)[len(products) - k]
        chosen = np.flatnonzero(products >= floor)
    else:
        chosen = np.arange(len(products))
    return chosen[np.lexsort((chosen, -products[chosen]))][:k]


def texts_of(documents: Sequence[Document]) -> list[str]:
    """What a :class:`MeaningIndex` embeds: every document whole, then the parts of all."""
    return [*(f"{doc.title}. {doc.text}" for doc in documents), *(part for doc in documents for part in _parts_of(doc))]


def _parts_of(document: Document) -> list[str]:
    return [document.title, *sentences(document.text)]


@dataclass
class MeaningIndex:
    """A :class:`Ranker` by meaning and words over documents; also gives the sentence that is nearest, and similar papers.

    Building embeds every title, text and sentence that the store does not hold: about 10 ms each on one core. A query
    takes one embedding and O(documents) products; in a large catalogue sentences are compared for the 200 nearest
    documents and the 200 that BM25 ranks first.

    Args:
        documents: what is searched, by position.
        words: the ranker by words over the same documents.
        embedder: turns queries into vectors.
        store: holds the vectors of documents and sentences.
    """

    documents: Sequence[Document]
    words: Ranker
    embedder: Embedder
    store: VectorStore
    progress: Progress | None = None
    _queries: Remembering = field(init=False, repr=False)
    _texts: list[list[str]] = field(init=False, repr=False)
    _whole: np.ndarray = field(init=False, repr=False)
    _parts: np.ndarray = field(init=False, repr=False)
    _starts: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given = self.embedder
        self._queries = given if isinstance(given, Remembering) else Remembering(given)
        self._texts = [_parts_of(doc) for doc in self.documents]
        rows = self.store.get(texts_of(self.documents), self.progress)
        self._whole = rows[: len(self.documents)].astype(np.float32)
        self._parts = rows[len(self.documents) :]
        self._starts = np.cumsum([0, *(len(texts) for texts in self._texts)])

    def scores(self, query: str) -> Mapping[int, float]:
        """Score by position; documents without a common word or a near meaning are left out."""
        if not len(self.documents):
            return {}
        vector, by_words = self._queries.query(query), self.words.scores(query)
        near = nearest(self._whole, vector, _CANDIDATES)
        best = sorted(by_words, key=by_words.__getitem__, reverse=True)[:_CANDIDATES]
        return self._scored(sorted({*near.tolist(), *best}), vector, by_words)

    def scores_among(self, query: str, among: Sequence[int]) -> Mapping[int, float]:
        """The same for these positions only, every one of them looked at. O(their sentences)."""
        return self._scored(among, self._queries.query(query), self.words.scores(query)) if among else {}

    def best_sentence(self, query: str, position: int) -> str:
        """The sentence of a document nearest to the query; the title only where there is no other."""
        own = slice(self._starts[position] + 1, self._starts[position + 1])
        if own.start == own.stop:
            return ""
        products = self._parts[own].astype(np.float32) @ self._queries.query(query)
        return self._texts[position][1 + int(products.argmax())]

    def similar(self, position: int, k: int = 5) -> list[tuple[int, float]]:
        """The ``k`` documents nearest in meaning to one of them, with their cosines."""
        near = nearest(self._whole, self._whole[position], k + 1)
        return [(int(i), float(self._whole[i] @ self._whole[position])) for i in near if i != position][:k]

    def _scored(self, positions: Sequence[int], vector: np.ndarray, by_words: Mapping[int, float]) -> dict[int, float]:
        most = max(by_words.values(), default=1.0) or 1.0
        found = {}
        for i in positions:
            parts = self._parts[self._starts[i] : self._starts[i + 1]].astype(np.float32) @ vector
            cosine = (float(self._whole[i] @ vector) + float(parts.max())) / 2
            if i in by_words or cosine >= _LEAST_COSINE:
                found[i] = MEANING * cosine + WORDS * by_words.get(i, 0.0) / most
        return found
