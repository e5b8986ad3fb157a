"""The page and its search with 10,000 papers: latencies, requests a second, memory, and peers in the same minute.

1. Search by meaning, embedding of the query included (p50, p99), against the same vectors sorted in full and against
   scikit-learn's exact nearest neighbours; what building the index takes.
2. The feed over a real socket: requests a second, with ``wrk`` where it is installed, else with threads of http.client; against
   Python's own http.server giving out the same bytes.
3. Seconds from the command to the first answer, first contentful paint in Chromium where it is installed, resident memory with
   the encoder loaded.

Run: ``python benchmarks/hub.py [--papers N] [--seconds S]``. Needs the encoder for 1: ``anabranch data all-minilm-l6-v2``.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import http.server
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from anabranch.hub import Catalogue, Entry, TextIndex, document, search
from anabranch.hub.encoder_files import has_model
from anabranch.hub.search import sentences
from anabranch.lab import papers


def recombined(n: int) -> list[Entry]:
    """Titles and texts put together anew from the catalogue's sentences."""
    draw = random.Random(0)
    pool = [s for paper in papers() for s in sentences(paper.summary + " " + " ".join(c.says for c in paper.claims))]
    words = [word for paper in papers() for word in paper.title.split()]
    return [
        Entry(
            title=" ".join(draw.sample(words, 8)), abstract=" ".join(draw.sample(pool, 3)), arxiv=f"2601.{i:05d}",
            published=date(2026, 1, 1) + timedelta(days=i % 300),
        )
        for i in range(n)
    ]  # fmt: skip


def percentiles(seconds: list[float]) -> str:
    return f"p50 {1e3 * statistics.median(seconds):.1f} ms, p99 {1e3 * np.percentile(seconds, 99):.1f} ms"


def searching(n: int) -> None:
    from sklearn.neighbors import NearestNeighbors

    from anabranch.hub import meaning

    entries = [*(Entry.of(p) for p in papers()), *recombined(n)]
    documents = [document(entry) for entry in entries]
    begin = time.perf_counter()
    embedder = meaning.load_embedder()
    print(f"encoder loaded in {time.perf_counter() - begin:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        store = meaning.VectorStore(embedder, Path(folder) / "vectors.sqlite")
        begin = time.perf_counter()
        words = TextIndex(documents)
        index = meaning.MeaningIndex(documents, words, embedder, store)
        took = time.perf_counter() - begin
        print(
            f"index of {len(entries):,} papers, {len(index._parts):,} sentences: {took:.0f} s, {len(entries) / took:.0f} papers/s"
        )
        begin = time.perf_counter()
        index = meaning.MeaningIndex(documents, words, embedder, store)
        print(f"again, from the store: {time.perf_counter() - begin:.1f} s")
    queries = [claim.says for paper in papers() for claim in paper.claims][:200]
    ours, full, sklearn = [], [], []
    peer = NearestNeighbors(n_neighbors=10, algorithm="brute", metric="cosine").fit(index._whole)
    for query in queries:
        begin = time.perf_counter()
        search(entries, query, 20, ranker=index)
        ours.append(time.perf_counter() - begin)
        vector = embedder([query])[0]
        begin = time.perf_counter()
        np.argsort(-(index._whole @ vector))[:10]
        full.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        peer.kneighbors(vector[None])
        sklearn.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        meaning.nearest(index._whole, vector, 10)
        nearest = time.perf_counter() - begin
        full[-1] /= nearest
        sklearn[-1] /= nearest
    print(f"search, embedding included: {percentiles(ours)} (goal p99 150 ms)")
    print(
        f"nearest 10 of the vectors: a full sort / ours {statistics.median(full):.2f}, "
        f"scikit-learn / ours {statistics.median(sklearn):.2f}"
    )


def rate(address: str, seconds: float) -> float:
    """Requests a second."""
    if shutil.which("wrk"):
        done = subprocess.run(
            ["wrk", "-t1", "-c16", f"-d{int(seconds)}s", address], capture_output=True, text=True, check=True
        )
        return float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout).group(1))  # type: ignore[union-attr]
    host, _, path = address.removeprefix("http://").partition("/")
    count, end = [0] * 8, time.monotonic() + seconds

    def ask(i: int) -> None:
        connection = http.client.HTTPConnection(host, timeout=30)
        while time.monotonic() < end:
            connection.request("GET", f"/{path}")
            connection.getresponse().read()
            count[i] += 1

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(count) / seconds


def painting(root: str, paths: Sequence[str], tries: int = 5) -> None:
    """First contentful paint, each time in a browser without a cache; beside it that of a page of one word from http.server:
    what the browser itself takes on this machine at this moment."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        chromium = None
    if chromium is None:
        print("first paint: Chromium or playwright is not installed")
        return
    ask = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        (Path(folder) / "index.html").write_text("<!doctype html><title>word</title>word")
        word = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder))
        threading.Thread(target=word.serve_forever, daemon=True).start()
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for address in (f"http://127.0.0.1:{word.server_port}/", *(root + path for path in paths)):
            took: list[float] = []
            while len(took) < tries:
                context = browser.new_context(viewport={"width": 1200, "height": 900})
                page = context.new_page()
                page.goto(address)
                while (painted := page.evaluate(ask)) is None:
                    time.sleep(0.01)
                took.append(painted)
                context.close()
            print(
                f"first paint of {address.removeprefix(root)}: median {statistics.median(took):.0f} ms, "
                f"worst {max(took):.0f} ms (goal 500 ms)"
            )
        browser.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass


def serving(n: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ.setdefault("ANABRANCH_DATA", str(Path.home() / ".local/share/anabranch/data"))
        with Catalogue(home / "hub.sqlite", papers()) as catalogue:
            catalogue.add_all(recombined(n))
        begin = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "-m", "anabranch.cli", "serve", "--port", "0"], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "ANABRANCH_HOME": folder},
        )  # fmt: skip
        assert server.stdout is not None
        root = re.search(r"http://[^/]+", server.stdout.readline()).group()  # type: ignore[union-attr]
        try:
            urllib.request.urlopen(f"{root}/health").read()
            print(f"from the command to the first answer: {time.perf_counter() - begin:.2f} s (goal 3 s)")
            painting(root, ("/", "/papers", "/claims"))  # before what has the texts embedded beside it
            for path in ("/", "/papers", "/papers/flow-splitting", "/claims", "/papers?q=flow+splitting"):
                begin = time.perf_counter()
                body = urllib.request.urlopen(root + path).read()
                first = time.perf_counter() - begin
                begin = time.perf_counter()
                urllib.request.urlopen(root + path).read()
                print(
                    f"{path}: {len(body):,} bytes, first {1e3 * first:.0f} ms, then {1e3 * (time.perf_counter() - begin):.1f} ms"
                )
            deadline = time.monotonic() + 120
            while (
                b"by meaning and by words" not in urllib.request.urlopen(f"{root}/papers?q=rivers").read()
                and time.monotonic() < deadline
            ):
                time.sleep(1)
            painting(root, ("/papers/flow-splitting", "/papers?q=flow+splitting"))
            status = Path(f"/proc/{server.pid}/status").read_text()
            resident = int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024
            print(f"resident with the encoder: {resident:.0f} MB (goal 600)")
            body = urllib.request.urlopen(f"{root}/papers").read()
            (home / "plain").mkdir()
            (home / "plain" / "papers.html").write_bytes(body)
            plain = http.server.ThreadingHTTPServer(
                ("127.0.0.1", 0), functools.partial(_Quiet, directory=home / "plain")
            )
            threading.Thread(target=plain.serve_forever, daemon=True).start()
            ours = rate(f"{root}/papers", seconds)
            peer = rate(f"http://127.0.0.1:{plain.server_port}/papers.html", seconds)
            print(
                f"feed: {ours:.0f} requests/s (goal 500); http.server with the same bytes {peer:.0f}; ours / it {ours / peer:.2f}"
            )
        finally:
            server.terminate()
            server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--papers", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    serving(options.papers, options.seconds)
    if has_model():
        searching(options.papers)
    else:
        print("search by meaning: the encoder is not here (anabranch data all-minilm-l6-v2)")


if __name__ == "__main__":
    main()
