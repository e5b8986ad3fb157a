"""Builds the index by meaning of what is known, in the background or at once, and says how far it is and what went wrong."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sqlite3
import threading
import time
from pathlib import Path

from anabranch.hub import meaning
from anabranch.hub.embedding_apart import MANY, Apart
from anabranch.hub.encoder_files import has_model
from anabranch.hub.known import Known

_BUILD_AGAIN_S = 600.0
_log = logging.getLogger(__name__)


class MeaningBuilder:
    """One at a time; after a failure it is tried again after ten minutes.

    Args:
        encoder: folder of the sentence encoder; None for the usual one, once it is here.
        wanted: False builds nothing.

    Attributes:
        progress: texts embedded and texts to embed, while an index is being built; else None.
        fault: why the index could not be built, until it can.
    """

    def __init__(self, encoder: Path | None = None, *, wanted: bool = True) -> None:
        self.encoder = encoder
        self.progress: tuple[int, int] | None = None
        self.fault = ""
        self._wanted = wanted
        self._embedder: meaning.Embedder | None = None
        self._apart = Apart()
        self._again = 0.0
        self._embedding, self._starting = threading.Lock(), threading.Lock()

    @property
    def has_encoder(self) -> bool:
        """Whether there is an encoder to search with."""
        return self._wanted and (self.encoder is not None or has_model())

    def start(self, known: Known) -> None:
        """Build in a thread of its own, unless one is at it already."""
        if not self._may():
            return
        with self._starting:
            start, known.building = not known.building, True
        if start:
            threading.Thread(target=self._build, args=(known,), name="meaning", daemon=True).start()

    def build(self, known: Known) -> None:
        """Build now, in this thread; nothing is done without an encoder, or where building failed a moment ago."""
        if known.by_meaning is None and self._may():
            self._build(known)

    def close(self) -> None:
        self._apart.close()

    def _may(self) -> bool:
        return time.monotonic() >= self._again and self.has_encoder

    def _build(self, known: Known) -> None:
        try:
            with self._embedding:  # a later one finds in the store what an earlier one has made
                if known.by_meaning is None:
                    self._embed(known)
        except (ValueError, OSError, ImportError, RuntimeError, sqlite3.Error) as error:  # words stay
            self.fault = f"{type(error).__name__}: {error}"
            self._again = time.monotonic() + _BUILD_AGAIN_S
            _log.warning("the index by meaning could not be built: %s", self.fault)
        else:
            self.fault = ""
        finally:
            known.building = False
        _give_back()

    def _embed(self, known: Known) -> None:
        if self._embedder is None:
            self._embedder = meaning.Remembering(meaning.load_embedder(self.encoder))
        path = meaning.vectors_path(self._embedder)
        store = meaning.VectorStore(self._embedder, path)
        try:
            missing = store.missing(meaning.texts_of(known.documents))
            if len(missing) >= MANY:
                self._apart.fill(missing, path, self._progressed, encoder=self.encoder)
            del missing
            parts = known.documents, known.words, self._embedder, store, self._progressed
            known.by_meaning = meaning.MeaningIndex(*parts)
        finally:
            store.close()
            self.progress = None

    def _progressed(self, done: int, of: int) -> None:
        self.progress = (done, of)


def _give_back() -> None:
    """Memory that embedding thousands of texts took goes back to the system; glibc would keep it."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
