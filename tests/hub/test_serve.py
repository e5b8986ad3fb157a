"""``anabranch serve`` as a user starts and ends it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra hub is not installed")
from support import ROOT, CommandLine


def start(*options: str, **env: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "anabranch.cli", "serve", "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **env})
    assert server.stdout is not None
    said = server.stdout.readline()
    return server, re.search(r"http://\S+", said).group()  # type: ignore[union-attr]


def end(server: subprocess.Popen[str]) -> int:
    server.send_signal(signal.SIGINT)
    return server.wait(timeout=30)


def test_it_answers_when_it_says_so_and_ends_with_ctrl_c(home: Path) -> None:
    server, address = start()
    try:
        text = urllib.request.urlopen(address, timeout=30).read().decode()
        assert "Papers that run" in text
        assert "8 hold" in text
    finally:
        code = end(server)
    assert code in (0, -signal.SIGINT, 130)


def test_code_that_changes_makes_its_result_stale_at_once(home: Path, tmp_path: Path) -> None:
    """In a copy of the sources: the paper whose code was changed, and no other; fresh again when it is changed back."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "results", root / "results")
    shutil.copy(ROOT / "pyproject.toml", root)
    code = root / "src" / "anabranch" / "papers" / "flow_splitting" / "experiment.py"
    server, address = start(PYTHONPATH=str(root / "src"))
    try:

        def stale(slug: str) -> bool:
            text = urllib.request.urlopen(f"{address}api/papers/{slug}", timeout=30).read()
            return bool(json.loads(text)["anabranch"]["stale"])

        def becomes(wanted: bool) -> bool:
            until = time.monotonic() + 5
            while stale("flow-splitting") != wanted and time.monotonic() < until:
                time.sleep(0.1)
            feed = urllib.request.urlopen(address, timeout=30).read().decode()
            card = feed.partition("/papers/flow-splitting")[2].partition("</article>")[0]
            return stale("flow-splitting") == wanted == (">stale<" in card)

        others = ["gpipe", "boss", "splitwise"]
        before, kept = [stale(slug) for slug in others], code.read_text()
        assert becomes(False)
        for text in (f"{kept}\nADDED = 1\n", "def half_written(:\n"):
            code.write_text(text)
            assert becomes(True)
            assert [stale(slug) for slug in others] == before
            code.write_text(kept)
            assert becomes(False)
    finally:
        end(server)


def test_beyond_the_loopback_it_asks_for_the_token_it_printed(home: Path) -> None:
    server, address = start("--host", "0.0.0.0")
    try:
        root, _, token = address.replace("0.0.0.0", "127.0.0.1").partition("?token=")
        assert len(token) >= 32
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{root}api/claims", timeout=30)
        assert refused.value.code == 401
        asked = urllib.request.Request(f"{root}api/claims", headers={"authorization": f"Bearer {token}"})
        assert urllib.request.urlopen(asked, timeout=30).status == 200
    finally:
        end(server)


def test_bad_input_is_one_line(home: Path, anabranch: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = anabranch("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "choose another with --port" in done.stderr
    done = anabranch("serve", "--on", "mars")
    assert done.returncode == 2
    assert "--on mars" in done.stderr
