"""The page over a real socket: what is shown, and what is refused."""

from __future__ import annotations

import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import date
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra hub is not installed")
from anabranch.hub import Catalogue, Entry
from anabranch.hub.views import catalogue_path
from anabranch.hub.web import safety
from anabranch.lab import papers
from anabranch.lab.runs import RunFolder

from .page_server import HEADER, Browser, page_server

XSS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<svg/onload=alert(1)>",
    "{{ 7 * 7 }}",
    "javascript:alert(1)",
    "'; DROP TABLE entry; --",
)


@pytest.fixture
def page(home: Path) -> Iterator[Browser]:
    with page_server() as browser:
        yield browser


def add(*entries: Entry) -> None:
    with Catalogue(catalogue_path(), papers()) as catalogue:
        catalogue.add_all(entries)


def test_every_page_answers(page: Browser) -> None:
    for path in ("/", "/papers", "/papers/trending", "/claims", "/claims?sort=paper", "/runs", "/papers/flow-splitting",
                 "/papers/2407.00550", "/papers?q=flow+splitting", "/papers?q=", "/health", "/login", "/papers/udc"):  # fmt: skip
        answer = page.get(path)
        assert answer.status == 200, path
        assert "Traceback" not in answer.text
    for kind, name in (("date", "2024-06-29"), ("week", "2024-W26"), ("month", "2024-06")):
        assert "Challenging the Need for Packet Spraying" in page.get(f"/papers/{kind}/{name}").text
        assert page.get(f"/papers/{kind}").status == 307


def test_committed_results_are_seen_before_anything_was_run(page: Browser) -> None:
    text = page.get("/papers/flow-splitting").text
    assert "8 hold" in text
    assert "≤ 1.51" in text
    assert "2.033 x<" in text
    assert "[1.876, 2.202]" in text
    assert "plan_konig" in text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/papers/nothing-of-that-name", 404),
        ("/runs/nothing", 404),
        ("/runs/..%2f..%2fetc", 404),
        ("/papers/date/2026-13-01", 404),
        ("/papers/week/2026-W60", 404),
        ("/papers/month/26-1", 404),
        ("/papers?page=x", 400),
        ("/claims?sort=size", 400),
        ("/compare?runs=a", 400),
        ("/api/daily_papers?limit=101", 400),
        ("/api/daily_papers?date=today", 400),
        ("/nowhere", 404),
    ],
)
def test_what_is_not_there_is_said_in_words(page: Browser, path: str, status: int) -> None:
    answer = page.get(path)
    assert answer.status == status
    assert "Traceback" not in answer.text
    assert len(answer.text) > 20


def test_imported_text_is_shown_as_text(page: Browser) -> None:
    add(
        *(
            Entry(title=f"{bad} paper {i}", abstract=f"{bad} abstract", authors=(bad,), arxiv=f"2601.0000{i}")
            for i, bad in enumerate(XSS)
        )
    )
    for path in ("/papers", "/papers?q=abstract", *(f"/papers/2601.0000{i}" for i in range(len(XSS)))):
        text = page.get(path).text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "<svg/onload" not in text
        assert "49 paper" not in text
    assert "&lt;script&gt;" in page.get("/papers/2601.00000").text


def test_headers_keep_strangers_out(page: Browser) -> None:
    headers = page.get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie  # a link in a mail finds the cookie; forms have their token and origin


def test_other_names_of_this_machine_are_refused(page: Browser) -> None:
    assert page.get("/", host="evil.example").status == 421
    assert page.get("/", host=f"localhost:{page.port}").status == 200


def test_forms_need_the_token_of_this_browser(page: Browser) -> None:
    page.get("/")
    assert page.post("/papers/udc/vote", {}).status == 403
    assert page.post("/papers/udc/vote", {"csrf": "0" * 64}).status == 403
    other = Browser(page.port)
    taken = other.get("/papers/udc").text.split('name="csrf" value="')[1].split('"')[0]
    assert page.post("/papers/udc/vote", {"csrf": taken}).status == 403
    assert page.submit("/papers/udc", "/papers/udc/vote").status == 303
    assert page.post("/papers/udc/vote", {"csrf": taken}, origin="http://evil.example").status == 403


def test_one_vote_a_reader_and_a_second_takes_it_back(page: Browser) -> None:
    for shown in ("1", "0", "1"):
        page.submit("/papers/udc", "/papers/udc/vote")
        assert f"· {shown}</button>" in page.get("/papers/udc").text
    other = Browser(page.port)
    other.submit("/papers/udc", "/papers/udc/vote")
    assert "· 2</button>" in page.get("/papers/udc").text
    assert page.get("/papers/trending").text.index("UDC") < page.get("/papers/trending").text.index("SplitFlux")


def test_bodies_are_limited_with_and_without_a_length(page: Browser) -> None:
    page.get("/")
    assert page.post("/papers/udc/vote", {"csrf": "x" * 70_000}).status == 413
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as raw:
        raw.sendall(
            b"POST /papers/udc/vote HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n"
            b"content-type: application/x-www-form-urlencoded\r\n\r\n"
        )
        chunk = b"4000\r\n" + b"a" * 0x4000 + b"\r\n"
        answer = b""
        try:
            for _ in range(8):
                raw.sendall(chunk)
            raw.sendall(b"0\r\n\r\n")
        except OSError:
            pass  # it hung up on us
        with suppress(OSError):  # a reset, since more came than was read: the answer may be lost on the way
            answer = raw.recv(200)
    assert answer.startswith(b"HTTP/1.1 413") or not answer
    assert page.get("/papers/udc").text.count("· 0</button>") == 1  # no vote came of it
    assert page.get("/health").status == 200


def test_a_body_that_trickles_is_given_up_as_a_whole(page: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safety, "BODY_PATIENCE_S", 1.0)
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as raw:
        raw.sendall(b"POST /papers/udc/vote HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1000\r\n\r\n")
        begin = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - begin < 15:  # each piece is in time, all of them are not
                raw.sendall(b"a")
                raw.settimeout(0.3)
                with suppress(TimeoutError):
                    answer = raw.recv(100)
                    break
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    "path",
    ["/papers?page=%C2%B2", "/papers?page=99999999999999999999", "/papers?page=0", "/papers/date/9999-12-31",
     "/papers/month/9999-12", "/papers/week/9999-W52", "/api/daily_papers?date=9999-12-31", "/api/runs/x/events?after=-5"],
)  # fmt: skip
def test_odd_addresses_are_answered_in_words(page: Browser, path: str) -> None:
    answer = page.get(path)
    assert answer.status in (400, 404)
    assert "Traceback" not in answer.text


def test_a_host_that_is_none_is_refused(page: Browser) -> None:
    assert page.get("/", host="[").status in (400, 421)
    assert page.get("/", host="x/static/?").status in (400, 421)


def test_two_homes_on_one_machine_keep_their_cookies_apart(tmp_path: Path) -> None:
    guards = [safety.Guard(None, secret=secret * 32, token=None, hosts=frozenset()) for secret in (b"a", b"b")]  # type: ignore[arg-type]
    assert guards[0]._session_cookie != guards[1]._session_cookie


def test_votes_do_not_keep_the_cookie(page: Browser, home: Path) -> None:
    page.submit("/papers/udc", "/papers/udc/vote")
    (session,) = (value for name, value in page.cookies.items() if "session" in name)
    with closing(sqlite3.connect(catalogue_path())) as db:
        ((voter,),) = db.execute("SELECT voter FROM vote").fetchall()
    assert voter not in session
    assert session.partition(".")[0] not in voter


def test_two_runs_are_chosen_from_the_list(page: Browser) -> None:
    names = []
    for seed in (0, 1):
        with RunFolder.create({**HEADER, "seed": seed}) as folder:
            folder.log.write("start")
            folder.log.write("measure", name="x", value=1.0 + seed, unit="s", scale="linear")
            folder.log.write("end", state="finished")
            names.append(folder.folder.name)
    text = page.get("/runs").text
    assert all(f'name="runs" value="{name}"' in text for name in names)
    assert page.get(f"/compare?runs={names[0]}&runs={names[1]}").status == 200
    assert page.get(f"/compare?runs={names[0]},{names[1]}").status == 200
    answer = page.get(f"/compare?runs={names[0]}")
    assert answer.status == 400
    assert "1 were chosen" in answer.text
    assert page.get(f"/runs/{names[0]}/log").status == 200


def test_a_foreign_page_asks_for_its_token_once(home: Path) -> None:
    with page_server(token="the-token", hosts=frozenset({"127.0.0.1"})) as browser:
        assert browser.get("/").status == 303
        assert browser.get("/papers/udc").headers["location"] == "/login"
        assert browser.get("/api/daily_papers").status == 401
        assert browser.get("/api/daily_papers", authorization="Bearer the-token").status == 200
        assert browser.get("/?token=wrong").status == 303
        assert browser.get("/papers").status == 303
        answer = browser.get("/papers?token=the-token&q=flow")
        assert answer.headers["location"] == "/papers?q=flow"
        assert browser.get("/papers").status == 200
        assert Browser(browser.port).get("/papers").status == 303
        assert browser.get("/static/style.css").status == 200


def test_the_token_is_typed_in_and_a_wrong_one_is_said(home: Path) -> None:
    with page_server(token="the-token", hosts=frozenset({"127.0.0.1"})) as browser:
        answer = browser.submit("/login", "/login", token="wrong")
        assert answer.status == 403
        assert "not the token" in answer.text
        answer = browser.submit("/login", "/login", token="the-token")
        assert answer.headers["location"] == "/"
        assert browser.get("/papers").status == 200
        cookies = browser.cookies
    with page_server(token="another-token", hosts=frozenset({"127.0.0.1"})) as browser:
        browser.cookies = cookies
        assert browser.get("/papers").status == 303  # a new token asks everybody again


def test_a_public_page_is_read_by_all_and_run_by_those_who_logged_in(home: Path) -> None:
    with page_server(token="the-token", hosts=frozenset({"127.0.0.1"}), access="public") as browser:
        for path in ("/", "/papers/udc", "/runs", "/claims", "/api/daily_papers", "/subscribe"):
            assert browser.get(path).status == 200, path
        assert browser.submit("/papers/udc", "/papers/udc/vote").status == 303
        fields = {"slug": "flow-splitting", "scale": "smoke"}
        answer = browser.submit("/papers/flow-splitting", "/runs", **fields)
        assert answer.headers["location"] == "/login"
        browser.submit("/login", "/login", token="the-token")
        answer = browser.submit("/papers/flow-splitting", "/runs", **fields)
        assert answer.headers["location"].startswith("/runs/")
        browser.submit(answer.headers["location"], f"{answer.headers['location']}/cancel")


def test_who_logs_in_is_not_led_elsewhere(home: Path) -> None:
    with page_server(token="the-token", hosts=frozenset({"127.0.0.1"})) as browser:
        answer = browser.get("//evil.example/papers?token=the-token")
        assert answer.headers["location"] == "/evil.example/papers"


def test_only_artefacts_of_the_run_are_given_out(page: Browser, home: Path) -> None:
    with RunFolder.create(HEADER) as folder:
        (folder.artefacts / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>")
        (folder.artefacts / "b.bin").write_bytes(b"\0")
        folder.log.write("start")
        run = folder.folder.name
    given = page.get(f"/runs/{run}/artefacts/a.svg")
    assert given.status == 200
    assert "sandbox" in given.headers["content-security-policy"]
    assert page.get(f"/runs/{run}/artefacts/b.bin").headers["content-disposition"] == "attachment"
    (home / "secret.txt").write_text("secret")
    for name in (
        "../run.json",
        "..%2frun.json",
        "%2e%2e/run.json",
        "....//run.json",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "a.svg/../../run.json",
    ):
        answer = page.get(f"/runs/{run}/artefacts/{name}")
        assert answer.status in (404, 400), name
        assert "root:" not in answer.text
        assert '"slug"' not in answer.text


def test_a_later_import_shows_without_a_restart(page: Browser) -> None:
    assert "Of Reeds" not in page.get("/papers").text
    add(Entry(title="Of Reeds and Rivers", published=date(2026, 5, 4), abstract="Water flows around reeds."))
    assert "Of Reeds" in page.get("/papers").text
    assert "Of Reeds" in page.get("/papers?q=reeds").text


def test_markdown_has_the_claims(page: Browser) -> None:
    answer = page.get("/papers/flow-splitting.md")
    assert answer.headers["content-type"].startswith("text/markdown")
    assert answer.text.startswith("# Challenging the Need for Packet Spraying")
    assert "| holds" in answer.text


def test_the_feed_is_quick_with_ten_thousand_papers(home: Path) -> None:
    add(*(Entry(title=f"Paper {i} of many", abstract="A few words. " * 20, arxiv=f"26{i // 100000:02d}.{i % 100000:05d}",
                published=date(2026, 1 + i % 9, 1 + i % 28)) for i in range(10_000)))  # fmt: skip
    with page_server() as browser:
        browser.get("/papers")
        begin = time.perf_counter()
        text = browser.get("/papers?page=100").text
        assert time.perf_counter() - begin < 5  # a bound against disasters; benchmarks measure
        assert text.count('<article class="card">') == 30
