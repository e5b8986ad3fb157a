"""Thousands of texts are embedded in a process of their own: the page stays quick, and the memory is given back at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from anabranch.hub import meaning

_WORKER = "from anabranch.hub.embedding_apart import work; work()"
MANY = 1000  # texts; fewer are embedded before such a process is up


class Apart:
    """Fills a store of vectors by processes of low priority."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._over = False

    def fill(
        self, texts: Sequence[str], path: Path, progress: meaning.Progress, *, encoder: Path | None = None
    ) -> None:
        """Embed ``texts`` into the store at ``path`` by the encoder in a folder (None: the usual one).

        What a process that dies has not embedded is left to the caller."""
        with self._lock:
            if self._over:
                return
            self._process = process = subprocess.Popen(
                [sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, encoding="ascii",
            )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            try:
                json.dump({"path": str(path), "texts": list(texts), "encoder": encoder and str(encoder)}, process.stdin)
                process.stdin.close()
                for line in process.stdout:
                    done, _, of = line.partition(" ")
                    if done.isdigit() and of.strip().isdigit():
                        progress(int(done), int(of))
            except BrokenPipeError:
                pass
        self._process = None

    def close(self) -> None:
        """End the process, if one is at work; what it has embedded is kept."""
        with self._lock:
            self._over = True
            if self._process is not None:
                self._process.terminate()


def work() -> None:
    """What the process does; it ends with the one that reads its words."""
    os.nice(10)
    asked = json.load(sys.stdin)
    store = meaning.VectorStore(meaning.load_embedder(asked["encoder"]), Path(asked["path"]))
    store.get(asked["texts"], lambda done, of: print(done, of, flush=True))
