"""Cards of the serving data: from a folder, damaged, from a server."""

from __future__ import annotations

import http.server
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from anabranch.worlds import AZURE_LLM_2023, SPLITWISE_PROFILES, Card, DataMissing
from anabranch.worlds import serving_traces as module

CARDS = [AZURE_LLM_2023, SPLITWISE_PROFILES]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_folder_is_taken_and_checked(card: Card, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / card.name
    if not source.is_dir():
        pytest.skip(f"{card.name} is not beside this checkout")
    folder = card.get(tmp_path, source=source)
    for file in card.files:
        assert len(card.read(file.name, tmp_path)) == file.size_bytes
    (folder / card.files[0].name).write_text("x")
    with pytest.raises(ValueError, match="damaged or another version"):
        card.read(card.files[0].name, tmp_path)


def test_downloads_are_checked(tmp_path: Path) -> None:
    """From a server of our own: the right bytes are kept, wrong ones are not, a missing file says so."""
    import hashlib

    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.csv").write_text("1,2\n")
    handler: Any = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    handler.func.log_message = lambda *args: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    try:
        good = module.File("a.csv", hashlib.sha256(b"1,2\n").hexdigest(), 4)
        card = module._card("some-data", "t", "l", "o", base, good)
        assert card.read("a.csv", card.get(tmp_path).parent) == b"1,2\n"
        other = module._card("other-data", "t", "l", "o", base, replace(good, sha256="0" * 64))
        with pytest.raises(DataMissing, match="damaged or another version"):
            other.get(tmp_path)
        missing = module._card("third-data", "t", "l", "o", base, replace(good, name="b.csv"))
        with pytest.raises(DataMissing, match=r"b\.csv: HTTP Error 404"):
            missing.get(tmp_path)
    finally:
        server.shutdown()
