"""Windows of time and what is trending, against hand-made tables."""

from __future__ import annotations

import sqlite3
from datetime import UTC, date, datetime, timedelta

import pytest

from anabranch.hub.votes import Activity, Votes, name_of, trending, trending_score, window_of

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def test_the_score_is_the_formula() -> None:
    today = Activity(1, date(2026, 11, 28), votes=3, runs=2, confirmed=1)  # 12 hours old
    assert trending_score(today, NOW) == pytest.approx((3 + 4 + 3) / 14**1.5)
    old = Activity(2, date(2026, 11, 27), votes=10)
    assert trending_score(old, NOW) == pytest.approx(10 / 38**1.5)
    assert trending_score(Activity(3, date(2027, 1, 1), votes=1), NOW) == pytest.approx(
        1 / 2**1.5
    )  # a clock that runs behind


def test_the_order_of_five_papers_by_hand() -> None:
    five = [
        Activity(1, date(2026, 11, 28), votes=1),  # 1 / 52.4 = 0.0191
        Activity(2, date(2026, 11, 27), votes=5),  # 5 / 234.2 = 0.0213
        Activity(3, date(2026, 11, 26), runs=3, confirmed=4),  # 18 / 488.2 = 0.0369
        Activity(4, date(2026, 11, 28)),  # 0, newer
        Activity(5, date(2026, 11, 20)),  # 0, older
    ]
    assert [a.entry for a in trending(five, NOW)] == [3, 2, 1, 4, 5]


@pytest.mark.parametrize(
    ("kind", "text", "first", "end"),
    [
        ("day", "2026-02-28", date(2026, 2, 28), date(2026, 3, 1)),
        ("week", "2026-W53", date(2026, 12, 28), date(2027, 1, 4)),
        ("week", "2025-W01", date(2024, 12, 30), date(2025, 1, 6)),
        ("month", "2026-12", date(2026, 12, 1), date(2027, 1, 1)),
        ("month", "2024-02", date(2024, 2, 1), date(2024, 3, 1)),
    ],
)
def test_windows(kind, text: str, first: date, end: date) -> None:
    assert window_of(kind, text) == (first, end)
    assert name_of(kind, first) == text
    assert name_of(kind, end - timedelta(days=1)) == text


@pytest.mark.parametrize(
    ("kind", "text"),
    [("week", "2025-W53"), ("week", "2026W01"), ("day", "2026-02-29"), ("month", "2026-13"), ("day", "20260228")],
)
def test_what_is_no_window_is_refused(kind, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        window_of(kind, text)


def test_votes_toggle_and_fall_into_windows() -> None:
    votes = Votes(sqlite3.connect(":memory:", isolation_level=None))
    assert votes.toggle(1, "a", now=NOW - timedelta(days=3))
    assert votes.toggle(1, "b", now=NOW)
    assert votes.toggle(2, "a", now=NOW)
    assert votes.count() == {1: 2, 2: 1}
    assert votes.count(since=NOW - timedelta(days=1)) == {1: 1, 2: 1}
    assert not votes.toggle(1, "b", now=NOW)
    assert votes.count() == {1: 1, 2: 1}
    assert votes.has(2, "a")
    assert not votes.has(1, "b")
