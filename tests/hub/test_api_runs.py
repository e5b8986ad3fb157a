"""Runs started by programs: what is queued, and what is refused before anything is made."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra hub is not installed")
from anabranch.hub.run_queue import RunQueue
from anabranch.lab import find_run, list_runs
from anabranch.lab.places import runs_folder

from .page_server import Answer, Browser, page_server

JSON = {"content-type": "application/json"}
RUN = {"slug": "flow-splitting", "scale": "smoke"}


@pytest.fixture
def page(home: Path) -> Iterator[Browser]:
    queue = RunQueue()
    queue.start = lambda: None  # type: ignore[method-assign]  # what is queued stays queued
    with page_server(queue=queue) as browser:
        yield browser


def ask(page: Browser, body: object, **headers: str) -> Answer:
    text = body if isinstance(body, str) else json.dumps(body)
    return page.ask("POST", "/api/runs", text, {**JSON, **headers})


def test_a_run_is_queued_and_its_addresses_answer(page: Browser) -> None:
    answer = ask(page, {**RUN, "seed": 7})
    assert answer.status == 201
    told = json.loads(answer.text)
    assert told == {
        "id": told["id"], "page": f"/runs/{told['id']}", "run": f"/api/runs/{told['id']}",
        "events": f"/api/runs/{told['id']}/events",
    }  # fmt: skip
    assert answer.headers["location"] == told["run"]
    run = find_run(told["id"])
    assert (run.slug, run.scale, run.seed, run.state) == ("flow-splitting", "smoke", 7, "queued")
    assert json.loads(page.get(told["run"]).text)["state"] == "queued"
    assert "It waits" in page.get(told["page"]).text
    assert json.loads(page.get("/api/runs").text)[0]["id"] == told["id"]


def test_settings_are_those_of_the_paper(page: Browser, plugin: str) -> None:
    told = json.loads(ask(page, {"slug": plugin, "settings": {"pause_s": 0.5, "rounds": 3}}).text)
    run = find_run(told["id"])
    assert (run.header["settings"]["pause_s"], run.header["settings"]["rounds"]) == (0.5, 3)
    assert run.seed == 0


def test_it_runs_to_its_end(home: Path, plugin: str) -> None:
    with page_server(queue=RunQueue(poll_s=0.05)) as page:
        told = json.loads(ask(page, {"slug": plugin, "settings": {"pause_s": 0.01}}).text)
        until = time.monotonic() + 60
        while json.loads(page.get(told["run"]).text)["state"] != "finished" and time.monotonic() < until:
            time.sleep(0.1)
        assert "event: end" in page.get(told["events"]).text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "not an object"),
        ('"flow-splitting"', "not an object"),
        ("[" * 30_000, "not JSON"),
        ('{"slug": "udc", "slug": "gpipe"}', "twice"),
        ('{"slug": "flow-splitting", "seed": NaN}', "NaN"),
        ({}, "slug=null: expected text"),
        ({"slug": 3}, "slug=3: expected text"),
        ({"slug": "../../etc/passwd"}, "paper"),
        ({"slug": "no-such-paper"}, "no-such-paper"),
        ({"slug": "udc"}, "no experiment"),
        ({**RUN, "scale": "galaxy"}, "galaxy"),
        ({**RUN, "scale": None}, "scale=null"),
        ({**RUN, "seed": -1}, "seed=-1"),
        ({**RUN, "seed": 10**9}, "seed=1000000000"),
        ({**RUN, "seed": True}, "seed=true"),
        ({**RUN, "seed": "1"}, 'seed="1"'),
        ({**RUN, "seed": 1.5}, "seed=1.5"),
        ({**RUN, "settings": [1]}, "settings=[1]"),
        ({**RUN, "settings": {"no_such": 1}}, "no_such"),
        ({**RUN, "settings": {"x": {"y": 1}}}, "settings.x"),
        ({**RUN, "on": "ray"}, "on: expected slug, scale, seed, settings"),
        ({**RUN, "argv": ["rm"]}, "argv: expected"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_nothing_is_made(page: Browser, body: object, words: str) -> None:
    answer = ask(page, body)
    assert answer.status == 400
    assert words in json.loads(answer.text)["error"]
    assert not runs_folder().exists() or list_runs() == []


def test_a_setting_of_the_wrong_kind_is_refused(page: Browser, plugin: str) -> None:
    answer = ask(page, {"slug": plugin, "settings": {"rounds": "many"}})
    assert answer.status == 400
    assert "rounds" in json.loads(answer.text)["error"]


def test_pages_of_others_cannot_start_runs(page: Browser) -> None:
    """What a browser sends on behalf of a foreign page: no JSON without being asked first, an origin, our cookies."""
    page.get("/")
    cookies = {"cookie": "; ".join(f"{k}={v}" for k, v in page.cookies.items())}
    stranger, own = Browser(page.port), f"http://127.0.0.1:{page.port}"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert stranger.ask("POST", "/api/runs", json.dumps(RUN), {"content-type": kind}).status == 415
    for headers in (
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": own}, cookies, {**cookies, "origin": own},
        {"sec-fetch-site": "cross-site"}, {**cookies, "origin": own, "x-csrf-token": "0" * 64},
    ):  # fmt: skip
        assert ask(stranger, RUN, **headers).status == 403, headers
    assert stranger.ask("OPTIONS", "/api/runs", None, {"origin": "http://evil.example"}).status == 405
    assert ask(stranger, RUN, host="evil.example").status == 421
    assert not runs_folder().exists() or list_runs() == []
    token = page.get("/papers/flow-splitting").text.split('name="csrf" value="')[1].split('"')[0]
    assert ask(page, RUN, origin=own, **{"x-csrf-token": token}).status == 201  # a script of the page itself
    assert ask(stranger, RUN, origin=own, **{"x-csrf-token": token}).status == 403  # another browser's


@pytest.mark.parametrize("access", ["login", "public"])
def test_where_others_reach_the_page_the_login_token_is_needed(home: Path, access: str) -> None:
    queue = RunQueue()
    queue.start = lambda: None  # type: ignore[method-assign]
    with page_server(queue=queue, token="the-token", hosts=frozenset({"127.0.0.1"}), access=access) as page:
        assert ask(page, RUN).status == 401
        assert ask(page, RUN, authorization="Bearer wrong").status == 401
        assert not runs_folder().exists() or list_runs() == []
        assert ask(page, RUN, authorization="Bearer the-token").status == 201
        logged_in = Browser(page.port)
        logged_in.get("/?token=the-token")
        assert ask(logged_in, RUN).status == 403  # the cookie alone may be another page's doing
        assert ask(logged_in, RUN, origin="http://evil.example", authorization="Bearer the-token").status == 403


def test_bodies_are_limited(page: Browser) -> None:
    assert ask(page, {**RUN, "settings": {"x": "y" * 70_000}}).status == 413
