from __future__ import annotations

import html
import json
from calendar import month_abbr
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.hub import Catalogue, Entry, ImportReport, import_page, normalize_title, parse_saved_page
from anabranch.lab import papers

DAY = date(2024, 6, 29)
HEADER = "new\n\nGet trending papers in your email inbox!\n\nSubscribe\n\nDaily Papers\n\nbyAK and friends\n\nFeb 3\n\n"
WORDS = "An abstract that says a few things about a river, a delta and the branches between them. " * 3


def block(
    title: str = "A Title", abstract: str = WORDS, authors: str = "  • 3 authors", day: str = "Jun 29, 2024"
) -> str:
    return f"{title}\n\n{abstract}\n\n{authors}\n·\n{day}\n\n"


def component(props: dict[str, Any]) -> str:
    return f'<div class="SVELTE_HYDRATER contents" data-target="DailyPapers" data-props="{html.escape(json.dumps(props))}">'


def item(number: int, **changes: Any) -> dict[str, Any]:
    paper = {
        "id": f"2406.{number:05d}",
        "title": f"Paper {number}",
        "summary": f"Abstract\nof {number}.",
        "authors": [{"_id": "x", "name": "A B", "hidden": False}, {"name": "C D"}],
        "publishedAt": "2024-06-29T16:43:03.000Z",
        "submittedOnDailyAt": "2024-07-02T01:00:00.000Z",
        "upvotes": 12,
    }
    return {"paper": {**paper, **changes}, "title": f"Paper {number}", "numComments": 2}


def article(number: int, title: str = "", day: str = "Jun 29, 2024") -> str:
    link = f"/papers/2406.{number:05d}"
    return (
        f'<article><a href="{link}"><img></a><h3><a href="{link}">{title or f"Paper {number}"}</a></h3>'
        f"<p>{WORDS}</p><ul><li>· 4 authors</li></ul><div>· {day} 5</div></article>"
    )


@pytest.fixture(scope="module")
def saved(shared_data: Path) -> str:
    return (shared_data / "daily-papers-flow-splitting.txt").read_text(encoding="utf-8")


def test_the_saved_page(saved: str) -> None:
    found = parse_saved_page(saved)
    assert len(found) == 28
    assert found[0].title == "Challenging the Need for Packet Spraying in Large-Scale Distributed Training"
    assert found[-1].title == "The Principles of Diffusion Models"
    assert sum(entry.n_authors or 0 for entry in found) == 181
    counts = {place: entry.page_count for place, entry in enumerate(found, 1) if entry.page_count}
    assert counts == {12: 2, 13: 2, 14: 1, 18: 1, 20: 2, 21: 2, 23: 3, 26: 1, 28: 3}
    assert (found[0].published, found[0].n_authors) == (DAY, 3)
    assert found[9].published == date(2018, 11, 16)
    for entry in found:
        assert len(entry.abstract) > 500
        assert entry.abstract in saved
        assert entry.title not in entry.abstract.split(".")[0]
        assert (entry.arxiv, entry.authors, entry.listed) == (None, (), None)


def test_the_saved_page_meets_our_papers(saved: str, tmp_path: Path) -> None:
    ours = papers()
    with Catalogue(tmp_path / "hub.sqlite", ours) as catalogue:
        before = len(catalogue)
        assert import_page(catalogue, saved) == ImportReport(found=28, added=0, updated=28, matched=0)
        assert import_page(catalogue, saved) == ImportReport(found=28, added=0, updated=0, matched=28)
        assert len(catalogue) == before
        named = [entry for entry in catalogue if entry.title.startswith("SplatFlow")]
        assert {entry.slug for entry in named} == {"splatflow-motion", "splatflow-3d"}
        assert all("occlusion" in e.abstract for e in named if e.slug == "splatflow-motion")


def test_importing_into_an_empty_catalogue_twice_adds_once(saved: str) -> None:
    with Catalogue(":memory:") as catalogue:
        assert import_page(catalogue, saved) == ImportReport(found=28, added=28, updated=0, matched=0)
        assert import_page(catalogue, saved) == ImportReport(found=28, added=0, updated=0, matched=28)
        titles = {entry.title for entry in catalogue if entry.title.startswith("SplatFlow")}
        assert len(titles) == 2


@pytest.mark.parametrize("change", ["crlf", "cr", "nbsp", "separators", "bom", "spaces", "one line"])
def test_white_space_does_not_matter(saved: str, change: str) -> None:
    changed = {
        "crlf": saved.replace("\n", "\r\n"),
        "cr": saved.replace("\n", "\r"),
        "nbsp": saved.replace(" ", "\u00a0"),
        "separators": saved.replace("\n", "\u2028"),
        "bom": "\ufeff" + saved.replace("authors", "auth\u200bors"),
        "spaces": saved.replace("\n", "  \n\t\n "),
        "one line": saved.replace("authors\n·\n", "authors · "),
    }[change]
    assert parse_saved_page(changed) == parse_saved_page(saved)


def test_a_single_paper() -> None:
    (found,) = parse_saved_page(block(day="Jun 9, 2024 12"))
    assert found == Entry(
        title="A Title",
        published=date(2024, 6, 9),
        n_authors=3,
        abstract=WORDS.strip(),
        page_count=12,
        source="saved page",
    )


def test_an_author_line_may_be_missing() -> None:
    found = parse_saved_page(
        HEADER + block(authors="") + block("Next", authors="• 1 author") + block("Last", authors="")
    )
    assert [(entry.title, entry.n_authors) for entry in found] == [("A Title", None), ("Next", 1), ("Last", None)]
    assert all(entry.abstract == WORDS.strip() for entry in found)


def test_an_abstract_may_have_paragraphs_or_be_missing() -> None:
    found = parse_saved_page(HEADER + block(abstract="One.\n\nTwo.") + block("Bare", abstract="") + block("Last"))
    assert [(entry.title, entry.abstract[:8]) for entry in found] == [
        ("A Title", "One. Two"),
        ("Bare", ""),
        ("Last", "An abstr"),
    ]


def test_an_unknown_header_is_left_out() -> None:
    found = parse_saved_page("Tägliche Arbeiten\n\nAbonnieren\n\n" + block() + block("Next"))
    assert [entry.title for entry in found] == ["A Title", "Next"]


def test_what_follows_the_last_paper_is_left_out() -> None:
    assert len(parse_saved_page(block() + "Previous\n1\n2\nNext\nSystem theme\n")) == 1


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("Jun 29, 2024", DAY),
        ("June 29, 2024", DAY),
        ("Sept 3, 2024", date(2024, 9, 3)),
        ("29 Jun 2024 7", DAY),
        ("2024-06-29", DAY),
        ("Feb 29, 2024", date(2024, 2, 29)),
    ],
)
def test_dates_in_english(text: str, day: date) -> None:
    assert [entry.published for entry in parse_saved_page(block(day=text))] == [day]


@pytest.mark.parametrize("text", ["29 juin 2024", "29.06.2024", "2024年6月29日", "29 июня 2024 г.", "Feb 30, 2024"])
def test_other_dates_are_left_out_with_a_reason(text: str) -> None:
    with Catalogue(":memory:") as catalogue:
        report = import_page(catalogue, HEADER + block("Foreign", day=text) + block("Good"))
        assert [entry.title for entry in catalogue] == ["Good"]
    ((title, reason),) = [(skipped.title, skipped.reason) for skipped in report.skipped]
    assert title == "Foreign"
    assert text in reason
    assert "Jun 29, 2024" in reason


def test_a_missing_date_is_left_out_with_a_reason() -> None:
    with Catalogue(":memory:") as catalogue:
        report = import_page(catalogue, block("Undated", day="") + block("Good") + block("Last undated", day=""))
        assert [entry.title for entry in catalogue] == ["Good"]
    assert [(skipped.title, skipped.reason) for skipped in report.skipped] == [
        ("Undated", "it has no date"),
        ("Last undated", "it has no date"),
    ]


@pytest.mark.parametrize(
    "page",
    [
        "",
        " \n",
        "hello\nworld",
        HEADER,
        "<html><body><p>Nothing here</p></body></html>",
        "<article><h3>No id, no date</h3></article>",
        component({"dailyPapers": []}),
        component({"else": 1}),
        "{}",
        "[]",
        "[1, 2]",
        '{"error": "rate limited"}',
        "{ not json",
        block(day="29 juin 2024"),
    ],
)
def test_a_page_without_papers_says_what_was_expected(page: str) -> None:
    with pytest.raises(ValueError, match="no paper found; expected a saved Daily Papers page"):
        parse_saved_page(page)
    with Catalogue(":memory:") as catalogue:
        with pytest.raises(ValueError, match="no paper found"):
            import_page(catalogue, page)
        assert len(catalogue) == 0


def test_bytes_are_no_page() -> None:
    with pytest.raises(TypeError, match="bytes"):
        parse_saved_page(b"bytes")  # type: ignore[arg-type]


def test_the_feed_inside_a_page() -> None:
    props = {
        "dateString": "2024-07-01",
        "periodType": "day",
        "dailyPapers": [item(1), item(2, submittedOnDailyAt=None)],
    }
    first, second = parse_saved_page(f"<html><body>{component(props)}</div>{article(9)}</body></html>")
    assert first == Entry(
        title="Paper 1",
        published=DAY,
        arxiv="2406.00001",
        authors=("A B", "C D"),
        n_authors=2,
        abstract="Abstract of 1.",
        page_count=2,
        listed=date(2024, 7, 2),
        source="daily papers",
        raw=json.dumps(item(1)),
    )
    assert second.listed == date(2024, 7, 1)


def test_search_results_win_over_the_papers_of_the_day() -> None:
    props = {"query": {"q": "river"}, "dailyPapers": [item(1)], "searchResults": [item(2), item(3)]}
    assert [entry.arxiv for entry in parse_saved_page(component(props))] == ["2406.00002", "2406.00003"]


@pytest.mark.parametrize("data", [[item(1), item(2)], {"dailyPapers": [item(1), item(2)]}, [item(1)["paper"], item(2)]])
def test_the_feed_itself(data: Any) -> None:
    assert [entry.arxiv for entry in parse_saved_page(" \n" + json.dumps(data))] == ["2406.00001", "2406.00002"]


def test_one_paper_of_the_feed() -> None:
    assert [entry.arxiv for entry in parse_saved_page(json.dumps(item(1)["paper"]))] == ["2406.00001"]


def test_changed_json_is_read_as_far_as_it_goes() -> None:
    data = [
        item(1, authors="A B", publishedAt=17, summary=None, id="2406.00001v3"),
        {"paper": {"id": "2406.00002", "title": "Bare"}, "numComments": True},
        {"paper": {"id": "not-arxiv", "title": "No id", "publishedAt": "2024-06-29"}, "new": {"field": [1]}},
        {"paper": {"id": "2406.00004"}},
        {"paper": {"title": "Neither"}},
        "a string",
    ]
    with Catalogue(":memory:") as catalogue:
        report = import_page(catalogue, json.dumps(data))
        assert (report.found, report.added) == (3, 3)
        assert [skipped.reason for skipped in report.skipped] == [
            "it has no title",
            "'Neither' has neither an arXiv id nor a date, so it could not be told apart",
            "not a JSON object",
        ]
        first, bare, other = catalogue.get("2406.00001"), catalogue.get("2406.00002"), catalogue.get("No id")
    assert first is not None
    assert (first.published, first.authors, first.n_authors, first.abstract) == (None, (), None, "")
    assert bare is not None
    assert bare.page_count is None
    assert other is not None
    assert other.arxiv is None
    assert json.loads(other.raw or "")["new"] == {"field": [1]}


def test_articles_are_read_where_there_is_no_feed() -> None:
    damaged = component({"dailyPapers": [item(7)]})[:-60] + '">'
    for start in ("<html>", damaged):
        first, second = parse_saved_page(start + article(1) + article(2, "Two <em>parts</em>", "29 juin 2024"))
        assert first == Entry(
            title="Paper 1",
            published=DAY,
            arxiv="2406.00001",
            n_authors=4,
            abstract=WORDS.strip(),
            page_count=5,
            source="saved page",
        )
        assert (second.title, second.arxiv, second.published) == ("Two parts", "2406.00002", None)


def test_text_is_read_where_there_are_no_articles() -> None:
    lines = (HEADER + block() + block("Next & last", day="Jul 1, 2024 4")).split("\n")
    page = "<html><body>" + "".join(f"<div>{html.escape(line)}</div>" for line in lines) + "</body></html>"
    assert [(entry.title, entry.page_count) for entry in parse_saved_page(page)] == [
        ("A Title", None),
        ("Next & last", 4),
    ]


def test_text_and_page_of_one_paper_meet() -> None:
    with Catalogue(":memory:") as catalogue:
        import_page(catalogue, block("Paper 1"))
        report = import_page(catalogue, component({"dailyPapers": [item(1), item(1)]}))
        assert (report.found, report.added, report.updated, report.matched) == (2, 0, 1, 1)
        (entry,) = catalogue
        assert (entry.arxiv, entry.authors, entry.n_authors, entry.id) == ("2406.00001", ("A B", "C D"), 3, 1)


def test_a_large_page_takes_time_in_proportion() -> None:
    many = "".join(block(f"Paper {n}") for n in range(3000))
    assert len(parse_saved_page(HEADER + many)) == 3000


@pytest.mark.parametrize(
    "title", ["<script>alert(1)</script>", "../../etc/passwd", "'; DROP TABLE entry; --", "\u202eab"]
)
def test_titles_are_kept_as_they_stand(title: str) -> None:
    with Catalogue(":memory:") as catalogue:
        import_page(catalogue, json.dumps([item(1, title=title)]))
        assert [entry.title for entry in catalogue] == [title]


def test_lone_surrogates_and_nul_do_no_harm() -> None:
    with Catalogue(":memory:") as catalogue:
        import_page(catalogue, HEADER + block("A \ud800 title", "An \0 abstract. " * 20))
        import_page(catalogue, json.dumps([item(1, title="B \ud800", summary="\udfff", authors=[{"name": "\ud800"}])]))
        assert [entry.title for entry in catalogue] == ["A ? title", "B ?"]


def read_or_refused(page: str) -> int | None:
    """Number of papers imported, ``None`` for a page refused for want of any; other errors pass."""
    with Catalogue(":memory:") as catalogue:
        try:
            return import_page(catalogue, page).found
        except ValueError as error:
            if "expected a saved Daily Papers page" in str(error):
                return None
            raise


line = st.text(st.characters(codec="utf-8"), max_size=60)
pieces = st.sampled_from(
    ["• 3 authors", "·", "Jun 29, 2024", "Jun 29, 2024 2", "Daily Papers", "Feb 3", "<article>", "{"]
)


@given(st.lists(line | pieces, max_size=12))
def test_any_text_is_read_or_refused(lines: Iterable[str]) -> None:
    assert read_or_refused("\n".join(lines)) != 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["paper", "id", "title", "authors", "name", "publishedAt", "summary", "dailyPapers", "numComments"]
            ),
            inner,
            max_size=5,
        )
    ),
)


@given(st.lists(json_values, max_size=4) | st.dictionaries(st.just("dailyPapers"), json_values))
def test_any_json_is_read_or_refused(data: Any) -> None:
    assert read_or_refused(json.dumps(data)) != 0


words = st.text("abcdefghij", min_size=1, max_size=8)
sentence = st.lists(words, min_size=3, max_size=12).map(lambda several: " ".join(several).capitalize() + ".")


@given(
    st.lists(
        st.tuples(
            st.lists(words, min_size=2, max_size=6).map(" ".join),
            st.lists(sentence, min_size=1, max_size=5).map(" ".join),
            st.integers(1, 30),
            st.dates(date(1995, 1, 1), date(2035, 1, 1)),
            st.none() | st.integers(1, 99),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_what_is_written_as_a_page_is_read_back(several: list[tuple[str, str, int, date, int | None]]) -> None:
    page = HEADER
    for title, abstract, authors, day, count in several:
        tail = f"{month_abbr[day.month]} {day.day}, {day.year}" + (f" {count}" if count else "")
        page += block(title, abstract, f"  • {authors} author{'s' if authors > 1 else ''}", tail)
    found = parse_saved_page(page)
    assert [(e.title, e.abstract, e.n_authors, e.published, e.page_count) for e in found] == several


def test_papers_of_the_page_are_told_apart_by_their_whole_titles(saved: str) -> None:
    titles = [normalize_title(entry.title) for entry in parse_saved_page(saved)]
    assert len(set(titles)) == 28
