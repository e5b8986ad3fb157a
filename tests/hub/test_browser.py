"""The page in a real browser: a newcomer's whole tour, keyboard, contrast and landmarks, hostile text."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
pytest.importorskip("starlette", reason="the extra hub is not installed")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from anabranch.hub import Catalogue, Entry
from anabranch.hub.config import HubConfig
from anabranch.hub.run_queue import RunQueue
from anabranch.hub.views import catalogue_path
from anabranch.lab import Verdict, papers
from anabranch.lab.runs import RunFolder

from .page_server import HEADER, page_server
from .test_digest import Inbox, inbox, smtp  # noqa: F401
from .test_page import XSS

pytestmark = pytest.mark.xdist_group("browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium) -> Iterator[object]:
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "console", lambda said: faults.append(said.text) if said.type == "error" and "404" not in said.text else None
    )
    yield page
    context.close()
    assert not faults


def test_the_whole_tour(tab, home: Path, inbox: Inbox, plugin: str) -> None:  # noqa: F811
    """Search, open, run, watch, read the verdict, subscribe, confirm, receive the mail."""
    with page_server(config=HubConfig("", smtp(inbox)), queue=RunQueue(poll_s=0.05)) as server:
        root = f"http://127.0.0.1:{server.port}"
        tab.goto(root)
        assert tab.get_by_role("heading", level=1).inner_text() == "Papers that run"
        tab.get_by_role("searchbox").fill("flow splitting")
        tab.keyboard.press("Enter")
        tab.get_by_role("link", name=re.compile("Challenging the Need for Packet Spraying")).click()
        assert "8 hold" in tab.locator(".kicker").inner_text()
        tab.get_by_role("radio", name=re.compile("smoke")).check()
        tab.get_by_role("button", name="Run flow-splitting").click()
        tab.wait_for_url(re.compile("/runs/"))
        expect(tab.locator("#stages li").first).to_be_visible(timeout=90_000)  # live, by the script
        expect(tab.locator("#state")).to_have_text("finished", timeout=120_000)
        expect(tab.locator("#verdicts")).to_contain_text("smoke scale")
        expect(tab.locator("#figures img").first).to_be_visible()
        tab.get_by_role("link", name="Digest").click()
        tab.get_by_label("Address").fill("reader@example.org")
        tab.get_by_label("Topic").fill("rivers")
        tab.get_by_role("button", name="Subscribe").click()
        assert tab.get_by_role("heading", level=1).inner_text() == "One more step"
        deadline = time.monotonic() + 30
        while not inbox.mails and time.monotonic() < deadline:
            time.sleep(0.05)
        link = re.search(r"/confirm\?token=\S+", inbox.mails[0].get_payload(decode=True).decode())
        assert link is not None
        tab.goto(root + link.group())
        tab.get_by_role("button", name="Confirm").click()
        assert tab.get_by_role("heading", level=1).inner_text() == "Confirmed"
        noon = datetime.now(UTC).replace(hour=12, minute=0) + timedelta(days=7)
        monday = noon - timedelta(days=noon.weekday())
        with Catalogue(catalogue_path(), papers()) as catalogue:
            day = monday.date() - timedelta(days=1)
            catalogue.add(Entry(title="Where Rivers Split", arxiv="2611.00001", published=day))
            catalogue.add(Entry(title="Of Bread", arxiv="2611.00002", published=day))
        assert server.post_office is not None
        server.post_office.queue(monday)
        server.post_office.send(monday)
        deadline = time.monotonic() + 30
        while len(inbox.mails) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        digest = inbox.mails[1]
        assert digest["To"] == "reader@example.org"
        text = digest.get_payload()[0].get_payload(decode=True).decode()
        assert "Where Rivers Split" in text
        assert "Of Bread" not in text
        shown = re.search(rf"{re.escape(f'http://localhost:{server.port}')}(/papers/\S+)", text)
        assert shown is not None  # the mail leads back to the page
        tab.goto(root + shown.group(1))
        assert tab.get_by_role("heading", level=1).inner_text() == "Where Rivers Split"


@pytest.fixture
def many(home: Path) -> Iterator[str]:
    with Catalogue(catalogue_path(), papers()) as catalogue:
        for i, bad in enumerate(XSS):
            catalogue.add(
                Entry(
                    title=f"{bad} paper",
                    abstract=bad,
                    authors=(bad,),
                    arxiv=f"2601.0000{i}",
                    published=date(2026, 1, 2),
                )
            )
    with page_server() as server:
        yield f"http://127.0.0.1:{server.port}"


PAGES = (
    "/",
    "/papers",
    "/papers/flow-splitting",
    "/papers?q=attention",
    "/claims",
    "/runs",
    "/subscribe",
    "/papers/2601.00001",
    "/nowhere",
)


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1200, "dark")])
def test_everybody_can_use_it(tab, many: str, width: int, scheme: str) -> None:
    """axe: contrast (AA), landmarks, names of controls, order of headings, at the width of a phone and of a desk."""
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 900})
    for path in PAGES:
        tab.goto(many + path)
        found = Axe().run(tab, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
        assert found.violations_count == 0, f"{path} at {width}, {scheme}: {found.generate_report()[:3000]}"
        overflow = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{path} at {width} is {overflow} pixels too wide"


@pytest.mark.parametrize("width", [390, 820, 1440])
def test_runs_can_be_read_at_every_width(tab, home: Path, width: int) -> None:
    """A run, two side by side, the list of runs: axe passes, nothing is cut off, verdicts are in sight."""
    ids = []
    for seed in (0, 1):
        with RunFolder.create({**HEADER, "seed": seed, "slug": "flow-splitting"}) as folder:
            folder.log.write("start", slug="flow-splitting", scale="smoke", seed=seed, pid=1)
            folder.log.write(
                "measure", name="split-congestion-over-optimum", value=1.0 + seed, unit="x", scale="linear"
            )
            verdict = Verdict("congestion-equals-spraying", "holds", 1.0, 0.9, 1.1, "x", "", 3)
            folder.log.write("verdict", claim=verdict.claim, outcome="holds", verdict=asdict(verdict))
            folder.log.write("end", state="finished", error=None)
            ids.append(folder.folder.name)
    tab.set_viewport_size({"width": width, "height": 900})
    with page_server() as server:
        root = f"http://127.0.0.1:{server.port}"
        for path in ("/runs", f"/runs/{ids[0]}", f"/compare?runs={ids[0]},{ids[1]}", "/papers/flow-splitting"):
            tab.goto(root + path)
            found = Axe().run(tab, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
            assert found.violations_count == 0, f"{path} at {width}: {found.generate_report()[:3000]}"
            cut = "e => e.getBoundingClientRect().right > e.closest('.scroll').getBoundingClientRect().right + 1"
            chips = tab.locator(".scroll .chip")
            assert chips.count() > 0
            assert not any(chips.nth(i).evaluate(cut) for i in range(chips.count())), path
        tab.goto(f"{root}/compare?runs={ids[0]},{ids[1]}")
        assert tab.locator("tr", has_text="seed").locator("td").all_inner_texts()[:2] == ["0", "1"]


def test_hostile_text_runs_nothing(tab, many: str) -> None:
    for path in ("/papers", "/papers?q=paper", "/papers/trending", *(f"/papers/2601.0000{i}" for i in range(len(XSS)))):
        tab.goto(many + path)
        assert tab.evaluate("document.querySelectorAll('main script, main [onerror], main [onload]').length") == 0
        assert tab.evaluate("[...document.querySelectorAll('a')].every(a => !a.href.startsWith('javascript:'))")


def test_the_keyboard_is_enough(tab, many: str) -> None:
    tab.goto(many)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the content"
    seen = []
    for _ in range(12):
        tab.keyboard.press("Tab")
        seen.append(tab.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert "q" in seen
    assert "Runs here" in seen
    tab.focus("#q")
    tab.keyboard.type("attention in linear time")
    tab.keyboard.press("Enter")
    expect(tab.locator("article.card").first).to_be_visible()


def test_results_follow_the_typing(tab, many: str) -> None:
    tab.goto(many + "/papers?q=rivers")
    before = tab.locator("#results").inner_text()
    tab.locator("#q").fill("pipeline micro-batches")
    expect(tab.locator("#results")).to_contain_text("GPipe")
    assert tab.locator("#results").inner_text() != before
    assert "micro-batches" in tab.url


def test_it_can_be_read_without_a_script(chromium, many: str) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    for path in PAGES:
        page.goto(many + path)
        assert len(page.locator("main").inner_text()) > 40
    context.close()
