"""Pages are made once for each state of what they show, and every change shows in the very next answer."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra hub is not installed")
from anabranch.hub import Catalogue, Entry
from anabranch.hub.serving import _listen
from anabranch.hub.views import catalogue_path
from anabranch.hub.web import kept as kept_module
from anabranch.lab import papers
from anabranch.lab.results import write_result
from anabranch.lab.runs import RunFolder

from .page_server import HEADER, Browser, page_server


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of committed results of the test's own, with a copy of the real ones."""
    from anabranch.lab.places import results_folder

    folder = tmp_path / "results"
    folder.mkdir()
    for path in results_folder().glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    for module in ("anabranch.hub.committed", "anabranch.lab.results"):
        monkeypatch.setattr(f"{module}.results_folder", lambda: folder)
    return folder


@pytest.fixture
def page(home: Path, results: Path) -> Iterator[Browser]:
    with page_server() as browser:
        yield browser


def forget(results: Path) -> None:
    """Confirmed claims count in the trends: without results only what a test does counts."""
    for path in results.glob("*.json"):
        path.unlink()


def titles(text: str) -> list[str]:
    return [part.partition("</a>")[0].rpartition(">")[2] for part in text.split("<h2>")[1:]]


def test_the_same_state_gives_the_same_bytes_and_not_again(page: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    true = kept_module._make

    async def counted(handler, request):
        made.append(request.url.path)
        return await true(handler, request)

    monkeypatch.setattr(kept_module, "_make", counted)
    first = page.get("/papers")
    again = page.get("/papers")
    assert made == ["/papers"]
    assert first.text == again.text
    told = page.get("/papers", **{"if-none-match": first.headers["etag"]})
    assert (told.status, told.text) == (304, "")
    assert page.get("/papers", **{"if-none-match": '"another"'}).text == first.text
    assert page.get("/papers?page=1").status == 200
    assert made == ["/papers", "/papers"]


def test_twenty_at_once_make_a_page_once(page: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    true = kept_module._make

    async def slow(handler, request):
        made.append(request.url.path)
        await asyncio.sleep(0.3)
        return await true(handler, request)

    monkeypatch.setattr(kept_module, "_make", slow)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(page.get("/claims").text)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert len(set(found)) == 1
    assert made.count("/claims") < 20  # one for all that came within the pause


def test_a_vote_shows_at_once_and_so_does_taking_it_back(page: Browser, results: Path) -> None:
    forget(results)
    before = {path: page.get(path) for path in ("/", "/papers", "/papers/trending", "/papers/month/2024-06")}
    page.submit("/papers/flow-splitting", "/papers/flow-splitting/vote")
    for path, old in before.items():
        new = page.get(path, **{"if-none-match": old.headers["etag"]})
        assert new.status == 200, path
        assert "</span>1<span" in new.text
        assert "</span>1<span" not in old.text
    assert titles(page.get("/papers/trending").text)[0].startswith("Challenging the Need")
    page.submit("/papers/flow-splitting", "/papers/flow-splitting/vote")
    assert page.get("/papers").text == before["/papers"].text


def test_an_import_of_another_process_shows_at_once(page: Browser) -> None:
    assert "Brand new rivers" not in page.get("/papers").text
    assert page.get("/papers/date/2031-01-02").text.count("card") == 0
    code = (
        "from datetime import date; from anabranch.hub import Catalogue, Entry; from anabranch.hub.views import "
        "catalogue_path; c = Catalogue(catalogue_path()); "
        "c.add(Entry(title='Brand new rivers', published=date(2031, 1, 2), arxiv='3101.00001', abstract='Deltas.'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
    assert titles(page.get("/papers").text)[0] == "Brand new rivers"
    assert titles(page.get("/papers/date/2031-01-02").text) == ["Brand new rivers"]
    assert page.get("/papers/date").headers["location"].endswith("/papers/date/2031-01-02")
    assert titles(page.get("/papers?q=deltas").text)[0] == "Brand new rivers"


def test_a_new_committed_result_shows_at_once(page: Browser, results: Path) -> None:
    path = results / "flow-splitting.json"
    assert "8 hold" in page.get("/").text
    result = json.loads(path.read_bytes())
    result["claims"][0]["verdict"] = "falls short"
    before = page.get("/").text.count("7 hold")
    write_result(result, results)
    assert page.get("/").text.count("7 hold") == before + 1
    assert "1 falls short" in page.get("/papers/flow-splitting").text
    fallen = page.get("/claims").text.count("chip falls-short")
    result["claims"][1]["verdict"] = "falls short"
    before = page.get("/").text.count("6 hold")
    path.write_text(json.dumps(result))  # in place, as an editor does
    assert page.get("/").text.count("6 hold") == before + 1
    assert page.get("/claims").text.count("chip falls-short") > fallen
    path.unlink()
    assert page.get("/").text.count("6 hold") == before


def test_the_verdict_of_a_run_shows_in_the_trends_at_once(page: Browser, results: Path) -> None:
    forget(results)
    add = Entry(title="Of today", published=datetime.now(UTC).date(), arxiv="3101.00002", abstract="x")
    with Catalogue(catalogue_path(), papers()) as catalogue:
        catalogue.add(add)
    assert titles(page.get("/papers/trending").text)[0] == "Of today"  # nothing has points: the newest
    with RunFolder.create({**HEADER, "created": datetime.now(UTC).isoformat()}) as folder:
        folder.log.write("start", slug="udc", scale="smoke", seed=0, pid=1)
        folder.log.write("verdict", claim="c", outcome="holds")
        assert titles(page.get("/papers/trending").text)[0] == "Of today"
        folder.log.write("end", state="finished", error=None)
        assert "UDC" in titles(page.get("/papers/trending").text)[0]


def test_the_trends_go_by_the_clock(home: Path) -> None:
    """Over a day the order turns: points count less with age, and an old paper's age hardly changes."""
    from anabranch.hub.site import Site

    with Catalogue(catalogue_path(), papers()) as catalogue:
        catalogue.add(Entry(title="Old", published=date(2031, 1, 1), arxiv="3101.00001"))
        catalogue.add(Entry(title="New", published=date(2031, 1, 10), arxiv="3101.00002"))
    site = Site(use_meaning=False)
    old, new = (site.entry(f"3101.0000{i}").id for i in (1, 2))
    for voter in range(20):
        site.votes.toggle(old, str(voter), now=datetime(2031, 1, 10, tzinfo=UTC))
    site.votes.toggle(new, "x", now=datetime(2031, 1, 10, tzinfo=UTC))
    first = [e.title for e in site.trending(now=datetime(2031, 1, 10, 1, tzinfo=UTC))][:2]
    later = [e.title for e in site.trending(now=datetime(2031, 1, 14, tzinfo=UTC))][:2]
    site.close()
    assert (first, later) == (["New", "Old"], ["Old", "New"])


def test_another_half_minute_makes_the_trends_anew(page: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    true, clock = kept_module._make, [1e9]

    async def counted(handler, request):
        made.append(request.url.path)
        return await true(handler, request)

    monkeypatch.setattr(kept_module, "_make", counted)
    monkeypatch.setattr(kept_module.time, "time", lambda: clock[0])
    for moment in (1e9, 1e9 + 1, 1e9 + 86_400):
        clock[0] = moment
        page.get("/papers/trending")
        page.get("/papers")
    assert made.count("/papers/trending") == 2
    assert made.count("/papers") == 1  # it does not depend on the day


def test_the_index_by_words_stays_while_the_texts_do(home: Path) -> None:
    from anabranch.hub.site import Site

    site = Site(use_meaning=False)
    words = site.known().words
    with Catalogue(catalogue_path(), papers()) as catalogue:
        catalogue._db.execute("UPDATE entry SET page_count = 7 WHERE slug = 'udc'")
    assert site.entry("udc").page_count == 7
    assert site.known().words is words
    with Catalogue(catalogue_path(), papers()) as catalogue:
        catalogue.add(Entry(title="Zyzzyva", published=date(2031, 1, 2)))
    assert [hit.entry.title for hit in site.search("zyzzyva")] == ["Zyzzyva"]
    site.close()


def test_bodies_do_not_wait_for_the_word_that_headers_have_come() -> None:
    """Accepted connections have Nagle's algorithm off: else every page takes 40 ms more."""

    async def main() -> int:
        said: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            said.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = _listen("127.0.0.1", 0)
        async with await asyncio.start_server(serve, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            found = await asyncio.wait_for(said, 10)
            writer.close()
        return found

    assert asyncio.run(main()) == 1


def test_asking_for_the_state_is_cheap(home: Path) -> None:
    from anabranch.hub.site import Site

    site = Site(use_meaning=False)
    took = []
    for _ in range(200):
        begin = time.perf_counter()
        _ = site.version
        took.append(time.perf_counter() - begin)
    site.close()
    assert sorted(took)[20] < 0.002  # measured: 0.06 ms
