"""The digest over days that were missed, papers that came late, and faults; mail over servers that are slow or odd."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra hub is not installed")
pytest.importorskip("aiosmtpd", reason="aiosmtpd is not installed")

from anabranch.hub import Catalogue, Document, Entry, TextIndex
from anabranch.hub.committed import CommittedResults
from anabranch.hub.digest import Digest
from anabranch.hub.mail import FolderMailer, SmtpMailer, Unreached
from anabranch.hub.meaning import MeaningIndex, VectorStore
from anabranch.hub.postman import Postman
from anabranch.hub.site import Site
from anabranch.hub.subscriptions import Subscription
from anabranch.hub.topics import fitting
from anabranch.hub.views import catalogue_path
from anabranch.lab import papers
from anabranch.lab.places import results_folder

from .page_server import page_server
from .test_digest import FRIDAY, Inbox, digest, inbox, smtp, subscribe  # noqa: F401
from .test_meaning import Letters

MONDAY = FRIDAY + timedelta(days=3)


@pytest.fixture
def no_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had been measured: results are committed on any day."""
    monkeypatch.setattr(Site, "results", lambda self: {})


def asked_at(digest: Digest, now: datetime, **wishes: str) -> Subscription:  # noqa: F811
    asked = digest.subscriptions.ask("reader@example.org", now=now, **wishes)
    return digest.subscriptions.confirm(digest.subscriptions.token(asked, "confirm"))


def add(number: int, day: date, title: str = "Of Something") -> None:
    with Catalogue(catalogue_path(), papers()) as catalogue:
        catalogue.add(Entry(title=f"{title} {number}", published=day, arxiv=f"2611.1{number:04d}"))


def told(digest: Digest, reader: Subscription, now: datetime) -> list[str]:  # noqa: F811
    """What goes out at this moment, by arXiv id."""
    issue = digest.issue(reader, now.date())
    assert digest.queue_due(now) == bool(issue.cards)
    return sorted(card.entry.arxiv or "" for card in issue.cards)


@pytest.mark.usefixtures("no_verdicts")
def test_days_without_the_program_are_made_up_for(digest: Digest) -> None:  # noqa: F811
    reader = asked_at(digest, FRIDAY - timedelta(days=1))
    assert told(digest, reader, FRIDAY) == ["2611.00001", "2611.00002"]
    for number, day in ((1, 27), (2, 30)):  # Friday, Monday
        add(number, date(2026, 11, day))
    assert told(digest, reader, MONDAY + timedelta(days=2)) == ["2611.10001", "2611.10002"]  # on Wednesday
    assert told(digest, reader, MONDAY + timedelta(days=3)) == []
    add(3, date(2026, 12, 3))
    add(4, date(2026, 12, 30))
    assert told(digest, reader, datetime(2027, 1, 4, 9, tzinfo=UTC)) == ["2611.10004"]  # fourteen days back, no more


@pytest.mark.usefixtures("no_verdicts")
def test_papers_that_came_late_come_with_the_next(digest: Digest) -> None:  # noqa: F811
    reader = asked_at(digest, FRIDAY - timedelta(days=1))
    assert told(digest, reader, FRIDAY) == ["2611.00001", "2611.00002"]
    add(1, date(2026, 11, 26))  # a day that has been told of
    add(2, date(2026, 11, 1))  # too long ago
    assert digest.queue_due(FRIDAY + timedelta(hours=2)) == 0
    assert told(digest, reader, MONDAY) == ["2611.10001"]
    assert told(digest, reader, MONDAY + timedelta(days=1)) == []


@pytest.mark.usefixtures("no_verdicts")
def test_what_has_not_arrived_is_told_again(digest: Digest) -> None:  # noqa: F811
    reader = asked_at(digest, FRIDAY - timedelta(days=1))
    assert len(told(digest, reader, FRIDAY)) == 2

    class Away:
        sender = "d@e.f"

        def send(self, message: EmailMessage) -> None:
            raise Unreached("away")

    assert digest.outbox.send(Away(), now=FRIDAY + timedelta(days=3)) == 0
    assert digest.outbox.states() == {"expired": 1}
    assert told(digest, reader, MONDAY) == ["2611.00001", "2611.00002"]


@pytest.mark.usefixtures("no_verdicts")
def test_a_weekly_one_is_due_until_the_week_is_over(digest: Digest) -> None:  # noqa: F811
    reader = asked_at(digest, FRIDAY, cadence="weekly")
    assert reader.due(FRIDAY) is None
    assert {reader.due(MONDAY + timedelta(days=i)) for i in range(7)} == {"2026-W49"}
    wednesday = MONDAY + timedelta(days=2)
    add(1, wednesday.date() - timedelta(days=1))
    assert told(digest, reader, wednesday) == ["2611.00001", "2611.00002"]
    assert digest.queue_due(wednesday + timedelta(days=1)) == 0  # once a week
    assert told(digest, reader, MONDAY + timedelta(days=7)) == ["2611.10001"]


@pytest.mark.usefixtures("no_verdicts")
def test_an_empty_issue_is_made_once(digest: Digest, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    asked_at(digest, FRIDAY - timedelta(days=1), topic="rivers")
    assert digest.queue_due(FRIDAY) == 1
    made, true = [], Digest.issue
    monkeypatch.setattr(Digest, "issue", lambda self, *given: (made.append(1), true(self, *given))[1])
    for minute in range(5):
        assert digest.queue_due(MONDAY + timedelta(minutes=minute)) == 0
    assert len(made) == 1
    add(1, date(2026, 11, 28), "A River")
    assert digest.queue_due(MONDAY + timedelta(minutes=6)) == 1
    assert len(made) == 2


def test_one_reader_holds_up_no_other(
    digest: Digest,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, _ = subscribe(digest, "bad@example.org"), subscribe(digest, "good@example.org")
    true = Digest.issue

    def issue(self: Digest, subscription: Subscription, day: date) -> object:
        if subscription.id == bad.id:
            raise KeyError("odd")
        return true(self, subscription, day)

    monkeypatch.setattr(Digest, "issue", issue)
    monkeypatch.setattr(Digest, "mailer", FolderMailer(tmp_path / "mails"))
    post = Postman(digest)
    assert post.last_error is None
    with caplog.at_level(logging.WARNING):
        post.queue(FRIDAY)
        post.queue(FRIDAY)
    post.send(FRIDAY)
    assert [path.suffix for path in (tmp_path / "mails").iterdir()] == [".eml"]
    assert digest.faults == {bad.id: "KeyError: 'odd'"}
    assert post.last_error is not None
    assert "KeyError" in post.last_error[1]
    assert len(caplog.records) == 1  # not once a minute
    monkeypatch.setattr(Digest, "queue_due", lambda self, now: 1 / 0)
    post.queue(FRIDAY)
    assert post.last_error[1] == "queueing: ZeroDivisionError: division by zero"


def test_a_mail_that_cannot_be_sent_holds_up_no_other(digest: Digest) -> None:  # noqa: F811
    taken = []

    class Odd:
        sender = "d@e.f"

        def send(self, message: EmailMessage) -> None:
            if message["To"] == "1@b.c":
                raise UnicodeEncodeError("ascii", "ü", 0, 1, "no")
            taken.append(str(message["To"]))

    for i in range(3):
        message = EmailMessage()
        message["To"] = f"{i}@b.c"
        digest.outbox.put(str(i), message, now=FRIDAY)
    assert digest.outbox.send(Odd(), now=FRIDAY) == 2
    assert taken == ["0@b.c", "2@b.c"]


def test_a_mail_that_was_taken_is_sent_once(digest: Digest, inbox: Inbox) -> None:  # noqa: F811
    """Whatever the server says when it is told goodbye, and however long it looks into the mail."""
    subscribe(digest, "all@example.org")
    digest.queue_due(FRIDAY)
    inbox.farewell, inbox.slow_s = "421 too busy to say goodbye", 4.0
    mailer = SmtpMailer(smtp(inbox), timeout_s=3.0)
    assert digest.outbox.send(mailer, now=FRIDAY) == 1
    assert digest.outbox.send(mailer, now=FRIDAY + timedelta(hours=1)) == 0
    assert len(inbox.mails) == 1
    assert mailer.data_timeout_s >= 300


def test_only_the_link_changes_what_a_reader_has_confirmed(digest: Digest) -> None:  # noqa: F811
    reader = subscribe(digest, "reader@example.org", zone="Europe/Berlin")
    digest.ask_to_confirm(digest.subscriptions.ask("reader@example.org", zone="Europe/Berlin"))
    assert digest.outbox.states() == {}  # it is so already
    wish = digest.subscriptions.ask("reader@example.org", zone="Asia/Tokyo")
    assert digest.subscriptions.confirmed() == [reader]
    digest.ask_to_confirm(wish)
    assert digest.outbox.states() == {"queued": 1}
    token = digest.subscriptions.token(wish, "confirm")
    with pytest.raises(ValueError, match="not one of ours"):
        digest.subscriptions.confirm(token.replace(b"Asia/Tokyo".hex(), b"Asia/Seoul".hex()))
    digest.subscriptions.confirm(token)
    assert [each.zone for each in digest.subscriptions.confirmed()] == ["Asia/Tokyo"]


def test_one_address_is_asked_five_times_a_day(digest: Digest) -> None:  # noqa: F811
    for i in range(9):
        digest.ask_to_confirm(digest.subscriptions.ask("a@b.c", topic=f"topic {i}", now=FRIDAY))
    assert digest.outbox.states() == {"queued": 5}
    digest.ask_to_confirm(digest.subscriptions.ask("other@b.c", now=FRIDAY))
    digest.ask_to_confirm(digest.subscriptions.ask("a@b.c", topic="topic 8", now=FRIDAY + timedelta(days=1)))
    assert digest.outbox.states() == {"queued": 7}


def test_wishes_that_nobody_confirms_are_forgotten(digest: Digest) -> None:  # noqa: F811
    asked = digest.subscriptions.ask("never@b.c", now=FRIDAY)
    kept = asked_at(digest, FRIDAY)
    digest.queue_due(FRIDAY + timedelta(days=7))
    assert digest.subscriptions.get(asked.id) is not None
    digest.queue_due(FRIDAY + timedelta(days=7, seconds=1))
    assert digest.subscriptions.get(asked.id) is None
    assert digest.subscriptions.get(kept.id) == kept


def test_an_unreadable_result_is_that_papers_only(
    digest: Digest,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for path in results_folder().glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    slugs = sorted(path.stem for path in tmp_path.glob("*.json"))
    torn, odd = slugs[:2]
    (tmp_path / f"{torn}.json").write_text('{"format": 1, "sl')
    (tmp_path / f"{odd}.json").write_text('{"format": 1}')
    for module in ("hub.committed", "lab.results"):
        monkeypatch.setattr(f"anabranch.{module}.results_folder", lambda: tmp_path)
    digest.site.committed = CommittedResults()
    with caplog.at_level(logging.WARNING):
        assert sorted(digest.site.committed.faults()) == [torn, odd]
        (tmp_path / "touched").write_text("")  # the folder has changed: all are read again
        assert sorted(digest.site.results()) == slugs[2:]
    assert len(caplog.records) == 2
    subscribe(digest, "all@example.org")
    assert digest.queue_due(FRIDAY) == 1
    with page_server(site=digest.site) as browser:
        for path in ("/", "/papers", "/claims"):
            assert browser.get(path).status == 200, path
        assert "the file of the result cannot be read" in browser.get(f"/papers/{torn}").text
        assert "cannot be read" not in browser.get(f"/papers/{slugs[2]}").text


def entries(titles: Mapping[int, str]) -> list[Entry]:
    return [Entry(title=title, published=date(2026, 1, 1), arxiv=f"2601.{i:05d}") for i, title in titles.items()]


def test_a_new_paper_is_found_behind_thousands_that_fit_better() -> None:
    known = entries({i: "abc" if i < 1200 else "abcz" if i == 1200 else "xyz" for i in range(1202)})
    docs = [Document(entry.title, "") for entry in known]
    embed = Letters()
    words = TextIndex(docs)
    by_meaning = MeaningIndex(docs, words, embed, VectorStore(embed))
    assert 1200 not in by_meaning.scores("abc")  # a search looks at the nearest only
    assert [hit.entry.title for hit in fitting(known, "abc", [1200, 1201], 20, ranker=by_meaning)] == ["abcz"]


def test_half_the_weight_of_a_topics_words_is_enough_and_less_is_not() -> None:
    common = {i: f"models of thing {i}" for i in range(40)}
    known = entries(
        {**common, 40: "Serving models", 41: "Unserved models", 42: "Serving and nothing else", 43: "A model"}
    )
    index = TextIndex([Document(entry.title, "") for entry in known])
    among = range(len(known))
    found = fitting(known, "serving models", list(among), 50, ranker=index)
    assert [hit.entry.title for hit in found] == ["Serving models", "Serving and nothing else"]
    shares = index.shares("serving models")
    assert shares[40] == pytest.approx(1.0)
    assert (
        0.5 < shares[42] < 1 == pytest.approx(shares[42] + shares[0])
    )  # the rare word weighs more than the common one
    assert fitting(known, "quantum chromodynamics of models", list(among), 50, ranker=index) == []
    assert len(fitting(known, "models", list(among), 7, ranker=index)) == 7
