"""The digest: who gets what and when, each mail once, against a real SMTP server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra hub is not installed")
pytest.importorskip("aiosmtpd", reason="aiosmtpd is not installed")
from aiosmtpd import controller

from anabranch.hub import Catalogue, Entry
from anabranch.hub.config import HubConfig, SmtpConfig, load_config
from anabranch.hub.digest import Digest
from anabranch.hub.mail import FolderMailer, Refused, SmtpMailer, Unreached
from anabranch.hub.outbox import Outbox
from anabranch.hub.signing import load_secret
from anabranch.hub.site import Site
from anabranch.hub.subscriptions import Subscription, Subscriptions
from anabranch.hub.views import catalogue_path
from anabranch.lab import LabError, papers
from support import CommandLine

from .page_server import page_server

FRIDAY = datetime(2026, 11, 27, 9, tzinfo=UTC)
SECRET = b"s" * 32


@dataclass
class Inbox:
    """What a mail server took; ``answer`` may refuse."""

    port: int = 0
    answer: str = "250 taken"
    farewell: str = "221 bye"
    mails: list[EmailMessage] = field(default_factory=list)
    slow_s: float = 0.0

    async def handle_RCPT(self, server, session, envelope, address, options) -> str:
        if self.answer.startswith(("4", "5")):
            return self.answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope) -> str:
        self.mails.append(message_from_bytes(envelope.content))
        await asyncio.sleep(self.slow_s)
        return self.answer

    async def handle_QUIT(self, server, session, envelope) -> str:
        return self.farewell


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    handler = Inbox()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        handler.port = probe.getsockname()[1]
    server = controller.Controller(handler, hostname="127.0.0.1", port=handler.port)
    server.start()
    yield handler
    server.stop()


def smtp(inbox: Inbox) -> SmtpConfig:
    return SmtpConfig("127.0.0.1", inbox.port, "none", sender="digest@anabranch.example")


@pytest.fixture
def digest(home: Path) -> Iterator[Digest]:
    with Catalogue(catalogue_path(), papers()) as catalogue:
        for number, title, abstract, day in (
            (1, "Über Flüsse: 河流 und Ströme", "Rivers split and join.", 26),
            (2, "Of Bread", "Ovens and dough.", 26),
            (3, "Older River", "Rivers again.", 2),
        ):
            published = date(2026, 11, day)
            catalogue.add(Entry(title=title, abstract=abstract, published=published, arxiv=f"2611.0000{number}"))
    site = Site(use_meaning=False)
    yield Digest(site, Subscriptions(site.db, SECRET), Outbox(site.db), HubConfig("http://hub.example"))
    site.close()


def subscribe(digest: Digest, address: str, **wishes: str) -> Subscription:
    asked = digest.subscriptions.ask(address, **wishes)
    return digest.subscriptions.confirm(digest.subscriptions.token(asked, "confirm"))


def test_when_it_is_due() -> None:
    def reader(cadence: str, zone: str) -> Subscription:
        return Subscription(1, "a@b.c", "", cadence, zone, "confirmed", FRIDAY)  # type: ignore[arg-type]

    daily, weekly = reader("daily", "UTC"), reader("weekly", "UTC")
    assert daily.due(FRIDAY) == "2026-11-27"
    assert daily.due(FRIDAY.replace(hour=7)) is None
    assert daily.due(FRIDAY + timedelta(days=1)) is None  # Saturday
    assert weekly.due(FRIDAY) is None  # asked on Friday: the next Monday's is the first
    assert weekly.due(FRIDAY + timedelta(days=3)) == "2026-W49"
    assert reader("daily", "Asia/Tokyo").due(datetime(2026, 11, 26, 23, tzinfo=UTC)) == "2026-11-27"
    assert reader("daily", "America/Los_Angeles").due(FRIDAY) is None  # one in the night there
    assert weekly.due(datetime(2027, 1, 4, 9, tzinfo=UTC)) == "2027-W01"  # after W53
    assert daily.covers(date(2026, 11, 30)) == (date(2026, 11, 27), date(2026, 11, 29))  # Monday: the weekend, too
    assert weekly.covers(date(2026, 11, 30)) == (date(2026, 11, 23), date(2026, 11, 29))


def test_only_who_confirmed_is_told_and_topics_filter(digest: Digest) -> None:
    everything, rivers = subscribe(digest, "all@example.org"), subscribe(digest, "river@example.org", topic="rivers")
    subscribe(digest, "nothing@example.org", topic="quantum chromodynamics")
    digest.subscriptions.ask("never@example.org")
    assert {card.entry.arxiv for card in digest.issue(everything, FRIDAY.date()).cards} == {"2611.00001", "2611.00002"}
    assert [card.entry.arxiv for card in digest.issue(rivers, FRIDAY.date()).cards] == ["2611.00001"]
    assert digest.queue_due(FRIDAY) == 2
    assert digest.queue_due(FRIDAY + timedelta(hours=3)) == 0  # the same day again
    assert digest.queue_due(FRIDAY + timedelta(days=1)) == 0  # Saturday


def test_the_mail_is_whole(digest: Digest, inbox: Inbox) -> None:
    reader = subscribe(digest, "all@example.org")
    digest.queue_due(FRIDAY)
    assert digest.outbox.send(SmtpMailer(smtp(inbox)), now=FRIDAY) == 1
    (mail,) = inbox.mails
    assert mail["To"] == "all@example.org"
    assert [part.get_content_type() for part in mail.walk()] == ["multipart/alternative", "text/plain", "text/html"]
    for part in mail.get_payload():
        text = part.get_payload(decode=True).decode(part.get_content_charset())
        assert "Über Flüsse: 河流 und Ströme" in text
        assert "http://hub.example/papers/2611.00001" in text
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    link = re.search(r"<(http://hub\.example/unsubscribe\?token=([^>]+))>", mail["List-Unsubscribe"])
    assert link is not None
    assert digest.message(reader, digest.issue(reader, FRIDAY.date()))["Message-ID"] == mail["Message-ID"]
    assert digest.subscriptions.unsubscribe(link.group(2)).state == "ended"
    assert not digest.subscriptions.confirmed()


def test_forged_and_foreign_links_are_refused(digest: Digest) -> None:
    reader, other = subscribe(digest, "a@example.org"), subscribe(digest, "b@example.org")
    good = digest.subscriptions.token(reader, "unsubscribe")
    confirm = digest.subscriptions.token(reader, "confirm")
    signature = good.partition(".")[2]
    bent = good[:-1] + ("0" if good[-1] != "0" else "1")
    for token in (
        "",
        "x",
        f"{reader.id}.",
        bent,
        confirm,
        f"999.{signature}",
        f"{other.id}.{signature}",
        "9" * 40 + ".a",
    ):
        with pytest.raises(ValueError, match="not one of ours"):
            digest.subscriptions.unsubscribe(token)
    assert len(digest.subscriptions.confirmed()) == 2


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "nobody",
        "a@",
        "@b",
        "a b@c.d",
        "a@b.c\nBcc: x@y.z",
        "a@b.c,d@e.f",
        "<a@b.c>",
        "group:x@b.de",
        "x" * 300 + "@b.c",
    ],
)
def test_bad_addresses_are_refused(digest: Digest, bad: str) -> None:
    with pytest.raises(ValueError, match="address="):
        digest.subscriptions.ask(bad)


def test_other_bad_wishes_are_refused(digest: Digest) -> None:
    for name, value in (("cadence", "hourly"), ("zone", "Mars/Olympus"), ("zone", "../x"), ("topic", "x" * 201)):
        with pytest.raises(ValueError, match=name):
            digest.subscriptions.ask("a@b.c", **{name: value})


def test_failures_wait_longer_each_time_and_a_refusal_is_final(digest: Digest, inbox: Inbox) -> None:
    subscribe(digest, "a@example.org")
    digest.queue_due(FRIDAY)
    inbox.answer = "451 later"
    now, waits = FRIDAY, []
    for _ in range(4):
        assert digest.outbox.send(SmtpMailer(smtp(inbox)), now=now) == 0
        (next_try,) = digest.site.db.execute("SELECT next_try FROM outbox").fetchone()
        waits.append((datetime.fromisoformat(next_try) - now).total_seconds() / 60)
        assert digest.outbox.send(SmtpMailer(smtp(inbox)), now=now) == 0  # not yet
        now = datetime.fromisoformat(next_try)
    assert waits == [1, 4, 16, 64]
    inbox.answer = "550 no such user"
    assert digest.outbox.send(SmtpMailer(smtp(inbox)), now=now) == 0
    inbox.answer = "250 taken"
    assert digest.outbox.send(SmtpMailer(smtp(inbox)), now=now + timedelta(days=9)) == 0
    assert digest.outbox.states() == {"refused": 1}


def test_a_server_that_is_not_there(digest: Digest) -> None:
    message = EmailMessage()
    message["To"], message["From"] = "a@b.c", "d@e.f"
    with pytest.raises(Unreached):
        SmtpMailer(SmtpConfig("127.0.0.1", 9, "none"), timeout_s=2).send(message)


def test_a_refused_receiver(inbox: Inbox) -> None:
    message = EmailMessage()
    message["To"], message["From"] = "a@b.c", "d@e.f"
    inbox.answer = "553 no"
    with pytest.raises(Refused, match="553"):
        SmtpMailer(smtp(inbox)).send(message)


_SENDER = """
import sys, sqlite3
from anabranch.hub.config import SmtpConfig
from anabranch.hub.mail import SmtpMailer
from anabranch.hub.outbox import Outbox
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
Outbox(db).send(SmtpMailer(SmtpConfig("127.0.0.1", int(sys.argv[2]), "none")))
"""


def test_killed_between_the_receiver_and_the_word_that_it_is_taken(tmp_path: Path) -> None:
    """A server of our own that halts after RCPT: the sender dies there, and a second one delivers."""
    db = sqlite3.connect(tmp_path / "hub.sqlite", isolation_level=None)
    outbox, message = Outbox(db), EmailMessage()
    message["To"], message["From"], message["Message-ID"] = "a@b.c", "d@e.f", "<one@x>"
    message.set_content("hello")
    assert outbox.put("one", message, now=datetime.now(UTC) - timedelta(minutes=1))
    assert not outbox.put("one", message)
    with socket.create_server(("127.0.0.1", 0)) as halting:
        sender = subprocess.Popen(
            [sys.executable, "-c", _SENDER, str(tmp_path / "hub.sqlite"), str(halting.getsockname()[1])]
        )
        peer, _ = halting.accept()
        with peer, peer.makefile("rwb") as talk:
            talk.write(b"220 hello\r\n")
            talk.flush()
            while (line := talk.readline().upper()) and not line.startswith(b"RCPT"):
                talk.write(b"250 go on\r\n")
                talk.flush()
            assert line.startswith(b"RCPT")
            os.kill(sender.pid, signal.SIGKILL)
            sender.wait(timeout=20)
    assert outbox.states() == {"queued": 1}
    taken: list[bytes] = []

    class Taking:
        sender = "d@e.f"

        def send(self, message: EmailMessage) -> None:
            taken.append(message.as_bytes())

    assert outbox.send(Taking()) == 0  # for half an hour nobody else touches it
    later = datetime.now(UTC) + timedelta(minutes=31)
    assert outbox.send(Taking(), now=later) == 1
    assert outbox.send(Taking(), now=later) == 0
    assert len(taken) == 1
    assert b"<one@x>" in taken[0]


def test_two_senders_take_turns(tmp_path: Path) -> None:
    first, second = (Outbox(sqlite3.connect(tmp_path / "x", isolation_level=None)) for _ in range(2))
    for i in range(20):
        message = EmailMessage()
        message["To"] = f"{i}@b.c"
        first.put(str(i), message, now=FRIDAY)
    taken: list[str] = []

    class Handing:
        sender = "d@e.f"

        def send(self, message: EmailMessage) -> None:
            taken.append(message["To"])
            if len(taken) < 20:
                second.send(self, now=FRIDAY)

    first.send(Handing(), now=FRIDAY)
    assert sorted(taken, key=lambda to: int(to.partition("@")[0])) == [f"{i}@b.c" for i in range(20)]


def test_without_a_server_mails_are_files(digest: Digest, tmp_path: Path) -> None:
    subscribe(digest, "all@example.org")
    digest.queue_due(FRIDAY)
    assert digest.outbox.send(FolderMailer(tmp_path / "mails"), now=FRIDAY) == 1
    (path,) = (tmp_path / "mails").glob("*.eml")
    assert message_from_bytes(path.read_bytes())["To"] == "all@example.org"


def test_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hub.toml"
    assert load_config(path) == HubConfig(address="")
    path.write_text(
        '[server]\naddress = "https://x.example/"\n[smtp]\nhost = "h"\nport = 25\nsecurity = "none"\nfrom = "a@b.c"\n'
    )
    assert load_config(path) == HubConfig("https://x.example", SmtpConfig("h", 25, "none", sender="a@b.c"))
    for text, said in (
        ("[smtp\n", "cannot be read"),
        ('[smtp]\nhost = "h"\nsecurity = "tls"\n', "security='tls'"),
        ('[smtp]\nhost = "h"\nprt = 1\n', "prt"),
        ('[smtp]\nhost = "h"\nport = 0\n', "port=0"),
        ('[smtp]\nhost = "h"\nuser = "u"\npassword_env = "NOT_SET_HERE"\n', "NOT_SET_HERE"),
        ("[other]\nx = 1\n", "other is not known"),
    ):
        path.write_text(text)
        with pytest.raises(LabError, match=re.escape(said)):
            load_config(path)


def test_the_whole_way_over_the_page(digest: Digest, inbox: Inbox, home: Path) -> None:
    config = HubConfig("", smtp(inbox))
    with page_server(config=config) as browser:
        asked = browser.submit(
            "/subscribe", "/subscribe", address="Reader@Example.org", topic="", cadence="daily", zone="UTC"
        )
        assert asked.status == 200
        assert "One more step" in asked.text
        deadline = time.monotonic() + 20
        while not inbox.mails and time.monotonic() < deadline:
            time.sleep(0.05)
        (mail,) = inbox.mails
        text = mail.get_payload(decode=True).decode()
        link = re.search(rf"http://localhost:{browser.port}(/confirm\?token=\S+)", text)
        assert link is not None
        assert not digest.subscriptions.confirmed()
        assert "Confirm" in browser.get(link.group(1)).text
        assert browser.ask("HEAD", link.group(1), None, {}).status == 200
        assert not digest.subscriptions.confirmed()  # opening the link is not enough
        assert "Confirmed" in browser.submit(link.group(1), link.group(1)).text
        (reader,) = digest.subscriptions.confirmed()
        assert reader.address == "reader@example.org"
        forged = "/unsubscribe?token=" + digest.subscriptions.token(reader, "unsubscribe")
        assert browser.post(forged, {"List-Unsubscribe": "One-Click"}).status == 400  # signed with another key
        own = Subscriptions(digest.site.db, load_secret(home / "hub.secret"))
        end = "/unsubscribe?token=" + own.token(reader, "unsubscribe")
        assert browser.ask("HEAD", end, None, {}).status == 200
        assert "Unsubscribe" in browser.get(end).text
        assert digest.subscriptions.confirmed() == [reader]  # nor is opening this one
        assert browser.post(end, {"List-Unsubscribe": "One-Click"}).status == 200
        assert digest.subscriptions.confirmed() == []
        assert browser.submit("/subscribe", "/subscribe", address="nobody").status == 400
        shown = browser.get("/digest/preview?topic=rivers")
        assert shown.status == 200
        assert "anabranch" in shown.text
        assert digest.outbox.note("served") == f"http://localhost:{browser.port}"


def test_from_the_command_line(digest: Digest, anabranch: CommandLine, tmp_path: Path) -> None:
    done = anabranch("digest", "preview", "-o", str(tmp_path / "mail.html"))
    assert done.returncode == 0, done.stderr
    assert "anabranch - " in done.stdout
    assert "<html" in (tmp_path / "mail.html").read_text()
    done = anabranch("digest", "send")
    assert done.returncode == 0, done.stderr
    assert "0 queued, 0 sent" in done.stdout
