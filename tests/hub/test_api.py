"""Our interface in the original's shape, asked by the original's own client; and the original's, asked by us."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra hub is not installed")
pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from anabranch.hub import Catalogue, Entry
from anabranch.hub.daily_papers import DailyPapers, NotReached, import_daily
from anabranch.hub.views import catalogue_path
from anabranch.lab import papers
from support import CommandLine

from .daily_papers_server import Original, item, reader
from .page_server import Browser, page_server


@pytest.fixture
def ours(home: Path) -> Iterator[tuple[HfApi, Browser]]:
    with page_server() as browser:
        yield HfApi(endpoint=f"http://127.0.0.1:{browser.port}", token=False), browser


def test_the_original_client_lists_searches_and_shows_our_papers(ours: tuple[HfApi, Browser]) -> None:
    client, _ = ours
    known = {paper.arxiv: paper for paper in papers() if paper.arxiv}
    pages = [list(client.list_daily_papers(p=p, limit=10)) for p in range(4)]
    assert [len(page) for page in pages] == [10, 10, 8, 0]
    listed = [info for page in pages for info in page]
    assert {info.id for info in listed} == set(known)
    assert all(info.title == known[info.id].title for info in listed)
    assert [info.published_at.date() for info in listed] == sorted((p.published for p in known.values()), reverse=True)
    assert next(iter(client.list_papers(query="packet spraying"))).id == "2407.00550"
    shown = client.paper_info("2407.00550")
    assert shown.title == known["2407.00550"].title
    assert shown.authors[0].name == known["2407.00550"].authors[0]
    assert "packet" in client.read_paper("2407.00550").lower()
    with pytest.raises(HfHubHTTPError):
        client.paper_info("1234.56789")


def test_windows_and_orders_of_the_feed(ours: tuple[HfApi, Browser]) -> None:
    client, browser = ours
    for window in ({"date": "2024-06-29"}, {"week": "2024-W26"}, {"month": "2024-06"}):
        assert "2407.00550" in {info.id for info in client.list_daily_papers(**window)}
    assert not list(client.list_daily_papers(date="2024-06-28"))
    browser.submit("/papers/udc", "/papers/udc/vote")
    order = [info.id for info in client.list_daily_papers(sort="trending")]
    by_slug = {paper.slug: paper.arxiv for paper in papers()}
    assert order.index(by_slug["udc"]) < order.index(by_slug["splitflux"])  # newer, but without a vote
    assert json.loads(browser.get("/api/claims").text)[0].keys() >= {"slug", "claim", "outcome", "published"}


def test_a_day_comes_in_whole_and_only_once(original: Original, tmp_path: Path) -> None:
    with Catalogue(tmp_path / "hub.sqlite", papers()) as catalogue:
        report = import_daily(catalogue, ("day", "2026-01-07"), reader(original))
        assert (report.found, report.added) == (250, 250)
        assert [asked["p"] for asked in original.asked] == ["0", "1", "2"]
        again = import_daily(catalogue, ("day", "2026-01-07"), reader(original))
        assert (again.added, again.updated, again.matched) == (0, 0, 250)
        entry = catalogue.get("2601.00003")
        assert entry is not None
        assert entry.listed == date(2026, 1, 7)  # the client library loses it
        assert entry.published == date(2026, 1, 5)
        assert entry.authors == ("Ada 3",)
        assert json.loads(entry.raw or "")["paper"]["ai_summary"] == "short"


def test_an_import_loses_no_field_of_ours(original: Original, tmp_path: Path) -> None:
    ours = next(paper for paper in papers() if paper.slug == "flow-splitting")
    original.items = [item(0, id=ours.arxiv, title="Another spelling", authors=[], publishedAt="2020-01-01T00:00:00Z")]
    with Catalogue(tmp_path / "hub.sqlite", papers()) as catalogue:
        import_daily(catalogue, ("week", "2026-W02"), reader(original))
        entry = catalogue.get("flow-splitting")
        assert entry is not None
        assert (entry.title, entry.published, entry.authors) == (ours.title, ours.published, ours.authors)
        assert entry.abstract == "Water 0 flows."
        assert len(catalogue) == len(list(papers()))


def test_faults_are_waited_out_as_told(original: Original, tmp_path: Path) -> None:
    original.items = original.items[:3]
    original.faults = [(429, {"retry-after": "7"}), (503, {}), (502, {"retry-after": "soon"})]
    waits: list[float] = []
    with Catalogue(tmp_path / "hub.sqlite") as catalogue:
        assert import_daily(catalogue, ("month", "2026-01"), reader(original, waits)).added == 3
    assert waits == [7.0, 4.0, 8.0]


def test_a_service_that_stays_away_changes_nothing(original: Original, tmp_path: Path) -> None:
    original.faults = [(500, {})] * 20
    with Catalogue(tmp_path / "hub.sqlite") as catalogue:
        with pytest.raises(NotReached, match="after 5 attempts"):
            import_daily(catalogue, ("day", "2026-01-07"), reader(original))
        assert len(catalogue) == 0
    nobody = DailyPapers("http://127.0.0.1:9", sleep=lambda s: None)
    with pytest.raises(NotReached, match="attempts"):
        list(nobody.listed("day", "2026-01-07"))


def test_changed_shapes_are_named(original: Original, tmp_path: Path) -> None:
    original.items = [{"surprise": 1}, item(1), item(2)]
    del original.items[1]["paper"]["title"]
    with Catalogue(tmp_path / "hub.sqlite") as catalogue:
        report = import_daily(catalogue, ("day", "2026-01-07"), reader(original))
        assert report.added == 2  # the outer title stands in for the inner one
        assert len(report.skipped) == 1
        original.items = []
        with pytest.raises(ValueError, match="no paper"):
            import_daily(catalogue, ("day", "2026-01-07"), reader(original))
        with pytest.raises(ValueError, match="day='yesterday'"):
            import_daily(catalogue, ("day", "yesterday"), reader(original))


def test_search_goes_through_the_originals_search(original: Original, tmp_path: Path) -> None:
    with Catalogue(tmp_path / "hub.sqlite") as catalogue:
        assert import_daily(catalogue, ("search", "part 24"), reader(original)).added == 11  # 24, 240 to 249
        with pytest.raises(ValueError, match="query is empty"):
            import_daily(catalogue, ("search", " "), reader(original))


def test_from_the_command_line_and_out_again_through_our_own_interface(
    original: Original, home: Path, anabranch: CommandLine
) -> None:
    endpoint = f"http://127.0.0.1:{original.server_port}"
    done = anabranch("import", "--daily", "2026-01-07", "--endpoint", endpoint)
    assert done.returncode == 0, done.stderr
    assert "250 papers found: 250 new" in done.stdout
    assert anabranch("import", "--daily", "2026-01-07", "--week", "2026-W02").returncode == 2
    with page_server() as browser:
        client = HfApi(endpoint=f"http://127.0.0.1:{browser.port}", token=False)
        assert len(list(client.list_daily_papers(date="2026-01-07", limit=100))) == 100
        assert len(list(client.list_daily_papers(date="2026-01-07", submitter="user1", limit=100, p=1))) == 25
        raw = json.loads(browser.get("/api/daily_papers?date=2026-01-07&limit=1&p=0").text)[0]
        assert raw["paper"]["submittedOnDailyAt"].startswith("2026-01-07")
        assert raw["paper"]["ai_summary"] == "short"
        assert raw["submittedBy"]["name"].startswith("user")


def test_entries_without_an_id_can_be_shown(home: Path) -> None:
    with Catalogue(catalogue_path(), papers()) as catalogue:
        catalogue.add(Entry(title="No Number", published=date(2026, 1, 1)))
    with page_server() as browser:
        listed = json.loads(browser.get("/api/daily_papers?date=2026-01-01").text)
        assert json.loads(browser.get(f"/api/papers/{listed[0]['paper']['id']}").text)["title"] == "No Number"
