from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.hub import Catalogue, Entry, normalize_arxiv, normalize_title
from anabranch.hub.catalogue import BUILT_IN, SCHEMA
from anabranch.lab import Paper

DAY = date(2024, 6, 29)
PAPER = Paper(
    slug="spray",
    title="Spraying: Is It Needed?",
    authors=("Ada B", "Cy D"),
    published=DAY,
    arxiv="2407.00550",
    summary="Our words.",
    package="fabric",
)


def entry(title: str = "A Title: And a Subtitle", **values: object) -> Entry:
    return Entry(**{"title": title, "published": DAY, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("2505.12849", "2505.12849"),
        (" arXiv:2505.12849v12 ", "2505.12849"),
        ("ARXIV:1811.06965", "1811.06965"),
        ("cs.LG/0112017v1", "cs.lg/0112017"),
        ("math-ph/9901001", "math-ph/9901001"),
        ("2505.1284", "2505.1284"),
        ("2505.128490", None),
        ("25051.2849", None),
        ("", None),
        ("a title", None),
    ],
)
def test_normalize_arxiv(text: str, bare: str | None) -> None:
    assert normalize_arxiv(text) == bare


def test_normalize_title_drops_case_punctuation_and_width() -> None:
    assert normalize_title("Split\u00a0Flow:  Inversion-Free \uff33plit") == "splitflowinversionfreesplit"
    assert normalize_title("Is It?\n A test") == normalize_title("is it a TEST")
    assert normalize_title("???") == "???"
    assert normalize_title("Ondřej") != normalize_title("Ondrej")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"title": " \n"}, "title"),
        ({"arxiv": "2505.12849v2"}, "arxiv"),
        ({"arxiv": "hello"}, "arxiv"),
        ({"published": None}, "neither an arXiv id nor a date"),
        ({"n_authors": -1}, "n_authors=-1"),
        ({"page_count": -3}, "page_count=-3"),
    ],
)
def test_entries_check_what_they_are_given(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Entry(**{"title": "A", "published": DAY, **values})  # type: ignore[arg-type]


def test_papers_are_there_from_the_start(tmp_path: Path) -> None:
    with Catalogue(tmp_path / "new" / "folder" / "hub.sqlite", [PAPER]) as catalogue:
        (found,) = catalogue
        assert found.paper is PAPER
        assert (found.title, found.arxiv, found.authors, found.n_authors) == (
            PAPER.title,
            "2407.00550",
            PAPER.authors,
            2,
        )
        assert (found.source, found.slug, found.url) == (BUILT_IN, "spray", "https://arxiv.org/abs/2407.00550")
        for key in ("spray", "2407.00550", "arXiv:2407.00550v2", "spraying is it needed"):
            assert catalogue.get(key) == found
        assert catalogue.get("nothing") is None


def test_a_paper_that_is_gone_leaves_its_entry(tmp_path: Path) -> None:
    path = tmp_path / "hub.sqlite"
    Catalogue(path, [PAPER]).close()
    with Catalogue(path) as catalogue:
        assert [found.paper for found in catalogue] == [None]


def test_entries_survive_the_file(tmp_path: Path) -> None:
    full = entry(
        arxiv="2401.00001",
        authors=("Ž. Š", "O'B"),
        n_authors=5,
        abstract="Words.\n\nMore “words”.",
        page_count=3,
        listed=DAY + timedelta(3),
        source="somewhere",
        raw='{"a": 1}',
    )
    with Catalogue(tmp_path / "hub.sqlite") as catalogue:
        assert catalogue.add(full) == "added"
    with Catalogue(tmp_path / "hub.sqlite") as catalogue:
        found = catalogue.get("2401.00001")
        assert found == replace(full, id=1)
        assert catalogue.entries() == [replace(full, id=1, raw=None)]


def test_newest_first_and_undated_last() -> None:
    with Catalogue(":memory:") as catalogue:
        catalogue.add_all(
            [
                entry("Old", published=date(2020, 1, 1)),
                entry("Undated", published=None, arxiv="2401.00001"),
                entry("New"),
                entry("Also new"),
            ]
        )
        assert [found.title for found in catalogue] == ["Also new", "New", "Old", "Undated"]
        assert len(catalogue) == 4


def test_same_short_name_with_other_subtitles_never_merges() -> None:
    first, second = entry("SplatFlow: Learning Flow"), entry("SplatFlow: Multi-View Flow")
    with Catalogue(":memory:") as catalogue:
        assert catalogue.add_all([first, second, first, second]) == ["added", "added", "matched", "matched"]


def test_same_title_with_other_ids_or_far_dates_are_two_papers() -> None:
    with Catalogue(":memory:") as catalogue:
        catalogue.add(entry(arxiv="2401.00001"))
        assert catalogue.add(entry(arxiv="2401.00002")) == "added"
        assert catalogue.add(entry(published=DAY + timedelta(2))) == "added"
        assert len(catalogue) == 3


@pytest.mark.parametrize("days", [-1, 0, 1])
def test_dates_may_differ_by_a_day(days: int) -> None:
    with Catalogue(":memory:") as catalogue:
        catalogue.add(entry())
        assert catalogue.add(entry("a title and a SUBTITLE", published=DAY + timedelta(days))) == "matched"
        assert [found.published for found in catalogue] == [DAY]


def test_an_id_is_learned_and_then_leads() -> None:
    with Catalogue(":memory:") as catalogue:
        catalogue.add(entry())
        assert catalogue.add(entry(arxiv="2401.00001")) == "updated"
        assert catalogue.add(entry("A New Title", arxiv="2401.00001", published=date(2025, 1, 1))) == "matched"
        assert [(found.title, found.arxiv) for found in catalogue] == [("A Title: And a Subtitle", "2401.00001")]


def test_imports_fill_what_is_missing_and_lose_nothing() -> None:
    known = entry(
        arxiv="2401.00001",
        authors=("A B",),
        n_authors=1,
        abstract="Old.",
        page_count=1,
        listed=DAY + timedelta(5),
        source="first",
        raw="{}",
    )
    with Catalogue(":memory:") as catalogue:
        catalogue.add(known)
        assert catalogue.add(entry()) == "matched"  # says nothing new
        assert catalogue.get("2401.00001") == replace(known, id=1)
        later = entry(
            authors=("Q R",), n_authors=9, abstract="New.", page_count=7, listed=DAY + timedelta(9), source="second"
        )
        assert catalogue.add(later) == "updated"
        assert catalogue.get("2401.00001") == replace(known, id=1, abstract="New.", page_count=7)
        assert catalogue.add(entry(listed=DAY)) == "updated"
        assert catalogue.get("2401.00001") == replace(known, id=1, abstract="New.", page_count=7, listed=DAY)


def test_a_page_never_corrects_our_own_papers() -> None:
    wrong = Entry(title="spraying is it needed", published=DAY + timedelta(1), n_authors=4, abstract="Theirs.")
    with Catalogue(":memory:", [PAPER]) as catalogue:
        assert catalogue.add(wrong) == "updated"
        assert catalogue.add(wrong) == "matched"
        (found,) = catalogue
        assert found == replace(Entry.of(PAPER), id=1, abstract="Theirs.")


def test_our_papers_take_over_what_was_imported(tmp_path: Path) -> None:
    path = tmp_path / "hub.sqlite"
    with Catalogue(path) as catalogue:
        catalogue.add(
            Entry(title="spraying is it needed", published=DAY, n_authors=4, abstract="Theirs.", page_count=2)
        )
    for _ in range(2):
        with Catalogue(path, [PAPER]) as catalogue:
            (found,) = catalogue
            assert found == replace(Entry.of(PAPER), id=1, abstract="Theirs.", page_count=2, source="import")


def test_a_paper_whose_identity_changes_keeps_its_row_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "hub.sqlite"
    Catalogue(path, [PAPER]).close()
    with Catalogue(path, [replace(PAPER, title="Renamed", arxiv="2407.00551")]) as catalogue:
        assert [(found.title, found.arxiv, found.slug, found.id) for found in catalogue] == [
            ("Renamed", "2407.00551", "spray", 1)
        ]
        catalogue.add(entry("Twin", arxiv="2401.00009"))
    with Catalogue(path, [replace(PAPER, title="Twin", arxiv="2401.00009")]) as catalogue:
        assert {(found.title, found.slug) for found in catalogue} == {("Renamed", None), ("Twin", "spray")}


def test_columns_that_others_add_survive(tmp_path: Path) -> None:
    path = tmp_path / "hub.sqlite"
    with Catalogue(path, [PAPER]) as catalogue:
        catalogue.add(entry())
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE entry ADD COLUMN note TEXT")
        db.execute("UPDATE entry SET note = 'read ' || title")
    db.close()
    with Catalogue(path, [PAPER]) as catalogue:
        catalogue.add_all([entry(abstract="New."), Entry(title=PAPER.title, published=DAY, abstract="New.")])
    with sqlite3.connect(path) as db:
        assert sorted(db.execute("SELECT note, abstract FROM entry")) == [
            ("read A Title: And a Subtitle", "New."),
            ("read Spraying: Is It Needed?", "New."),
        ]
    db.close()


def test_adding_is_all_or_nothing() -> None:
    with Catalogue(":memory:") as catalogue:
        with pytest.raises(OverflowError):
            catalogue.add_all([entry(), entry("Too many", page_count=2**70)])
        assert len(catalogue) == 0
        assert catalogue.add(entry()) == "added"


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
entries = st.builds(
    Entry,
    title=st.sampled_from(["One", "one!", "Two: a", "Two: b", "三"]),
    published=st.dates(DAY, DAY + timedelta(4)),
    arxiv=st.none() | st.sampled_from(["2401.00001", "2401.00002", "2401.00003"]),
    authors=st.lists(texts, max_size=2).map(tuple),
    n_authors=st.none() | st.integers(0, 9),
    abstract=texts,
    page_count=st.none() | st.integers(0, 9),
    listed=st.none() | st.dates(DAY, DAY + timedelta(4)),
)


@given(st.lists(entries, max_size=8))
def test_adding_again_changes_no_ids_and_no_number(batch: list[Entry]) -> None:
    with Catalogue(":memory:") as catalogue:
        catalogue.add_all(batch)
        before = {found.id: found.arxiv for found in catalogue}
        assert len(before) <= len(batch)
        assert "added" not in catalogue.add_all(batch)
        after = {found.id: found.arxiv for found in catalogue}
        assert before.keys() == after.keys()
        assert all(arxiv in (None, after[row]) for row, arxiv in before.items())


@given(entries)
def test_one_entry_twice_matches(single: Entry) -> None:
    with Catalogue(":memory:") as catalogue:
        assert [catalogue.add(single), catalogue.add(single)] == ["added", "matched"]


def test_two_writers_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "hub.sqlite"
    failures: list[BaseException] = []

    def write(start: int) -> None:
        try:
            with Catalogue(path, [PAPER]) as catalogue:
                for n in range(start, start + 40):
                    catalogue.add(entry(f"Paper {n}"))
        except BaseException as error:  # handed to the main thread
            failures.append(error)

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 20, 40)]  # all make the file at once
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with Catalogue(path) as catalogue:
        assert len(catalogue) == 81  # 80 different ones and ours


def test_a_lock_is_waited_for_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anabranch.hub.catalogue._PATIENCE_S", 0.05)
    path = tmp_path / "hub.sqlite"
    Catalogue(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(TimeoutError, match=r"hub\.sqlite.*locked for 0\.05 s"):
        Catalogue(path, [PAPER])
    Catalogue(path).close()  # reading needs no turn
    other.execute("ROLLBACK")
    other.close()
    Catalogue(path, [PAPER]).close()


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(ValueError, match=r"hub\.sqlite.*expected a catalogue"):
        Catalogue(path)
    with pytest.raises(ValueError, match="expected a file that can be written"):
        Catalogue(tmp_path)


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub.sqlite"
    Catalogue(path).close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        db.execute(f"PRAGMA user_version={SCHEMA + 1}")
    db.close()
    with pytest.raises(ValueError, match="written by a later version"):
        Catalogue(path)
