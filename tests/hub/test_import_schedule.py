"""Daily Papers on a schedule: due times that survive, back-off, one server at a time, the outcome on the page."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra hub is not installed")
pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
from anabranch.hub import Catalogue
from anabranch.hub.import_schedule import ImportSchedule, interval_s
from anabranch.hub.site import Site
from anabranch.hub.views import catalogue_path
from anabranch.lab import LabError, papers
from support import CommandLine

from .daily_papers_server import Original, item, reader
from .page_server import page_server
from .test_serve import end, start

SIX_HOURS = 6 * 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 27, 9, tzinfo=UTC)  # a Friday

    def __call__(self) -> datetime:
        return self.now

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def daily(original: Original) -> Original:
    """Two papers a day from the 20th to the 30th of November 2026."""
    original.by_day = True
    original.items = [
        item(100 * day + i, submittedOnDailyAt=f"2026-11-{day:02d}T00:00:00.000Z")
        for day in range(20, 31)
        for i in (0, 1)
    ]
    return original


@pytest.fixture
def site(home: Path) -> Iterator[Site]:
    site = Site(use_meaning=False)
    yield site
    site.close()


def schedule(site: Site, server: Original, clock: Clock, every_s: float = SIX_HOURS) -> ImportSchedule:
    return ImportSchedule(site.path, site.db, every_s, reader=reader(server), now=clock, jitter=lambda: 1.0)


def days(server: Original) -> list[str]:
    """The days that were asked for since the last look."""
    asked = [query["date"][-2:] for query in server.asked]
    server.asked.clear()
    return asked


def imported() -> int:
    with Catalogue(catalogue_path(), papers()) as catalogue:
        return sum(entry.paper is None for entry in catalogue.entries())


def test_what_was_listed_since_the_last_import_comes_in_when_it_is_due(site: Site, daily: Original) -> None:
    clock = Clock()
    one = schedule(site, daily, clock)
    assert one.state() is None
    assert one.run_due()
    assert days(daily) == ["26", "27"]
    state = one.state()
    assert (state.failures, state.day, state.words) == (0, date(2026, 11, 27), "4 new and 0 filled in, of 4 listed")
    assert state.due == clock.now + timedelta(hours=6)
    clock.later(SIX_HOURS - 1)
    assert not one.run_due()
    assert not schedule(site, daily, clock).run_due()  # a restart imports nothing again
    daily.items.append(item(9, submittedOnDailyAt="2026-11-27T00:00:00.000Z"))  # today's list has grown
    clock.later(1)
    assert schedule(site, daily, clock).run_due()
    assert days(daily) == ["27"]
    assert one.state().words == "1 new and 0 filled in, of 3 listed"
    clock.later(2 * 86_400)
    assert one.run_due()
    assert days(daily) == ["27", "28", "29"]
    assert imported() == 9
    clock.later(40 * 86_400)  # after a long absence: two weeks, not all
    assert one.run_due()
    assert len(days(daily)) == 14
    assert one.state().failures == 0  # days without a paper are no fault


def test_failures_back_off_and_lose_nothing(site: Site, daily: Original) -> None:
    clock = Clock()
    one = schedule(site, daily, clock, every_s=1500)
    wanted = [300.0, 600.0, 1200.0, 1500.0, 1500.0]
    for failures, wait in enumerate(wanted, 1):
        daily.faults = [(503, {})] * 5
        assert one.run_due()
        state = one.state()
        assert (state.failures, state.due) == (failures, clock.now + timedelta(seconds=wait))
        assert "did not answer after 5 attempts (status 503)" in state.words
        clock.later(wait - 1)
        assert not one.run_due()
        clock.later(1)
    daily.faults, daily.asked = [(200, {})], []  # an answer that is no JSON
    assert one.run_due()
    assert "did not answer with JSON" in one.state().words
    assert imported() == 0
    clock.later(1500)
    assert one.run_due()
    assert (one.state().failures, imported()) == (0, 4)
    assert one.state().due == clock.now + timedelta(seconds=1500)


def test_days_that_were_read_before_a_failure_stay(
    site: Site, daily: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    one = schedule(site, daily, clock)
    one.run_due()
    days(daily)
    clock.later(3 * 86_400)
    true = one._reader.listed

    def failing(kind: str, text: str) -> Iterator[object]:
        if text == "2026-11-29":
            raise OSError("the line is cut")
        return true(kind, text)

    monkeypatch.setattr(one._reader, "listed", failing)
    assert one.run_due()
    assert one.state().day == date(2026, 11, 28)
    assert one.state().words == "OSError: the line is cut"
    assert imported() == 6
    monkeypatch.setattr(one._reader, "listed", true)
    days(daily)
    clock.later(300)
    assert one.run_due()
    assert days(daily) == ["28", "29", "30"]
    assert imported() == 10


def test_servers_of_one_folder_take_turns(site: Site, daily: Original) -> None:
    """Eight at once, each with a connection of its own: one imports."""
    clock, barrier, done = Clock(), threading.Barrier(8), []

    def server() -> None:
        db = sqlite3.connect(site.path, timeout=30, isolation_level=None)
        mine = ImportSchedule(site.path, db, SIX_HOURS, reader=reader(daily), now=clock, jitter=lambda: 1.0)
        barrier.wait()
        done.append(mine.run_due())
        db.close()

    threads = [threading.Thread(target=server) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [False] * 7 + [True]
    assert days(daily) == ["26", "27"]


def test_a_shorter_interval_and_a_clock_put_back_are_not_waited_out(site: Site, daily: Original) -> None:
    clock = Clock()
    assert schedule(site, daily, clock, every_s=86_400).run_due()
    clock.later(3600)
    assert schedule(site, daily, clock, every_s=3600).run_due()
    clock.later(-30 * 86_400)
    days(daily)
    assert schedule(site, daily, clock, every_s=3600).run_due()
    assert days(daily) == ["28"]  # of October: today, as this clock has it
    assert not schedule(site, daily, clock, every_s=3600).run_due()
    clock.later(3600)
    daily.faults = [(503, {})] * 5
    assert schedule(site, daily, clock, every_s=3600).run_due()
    clock.later(-86_400)
    assert schedule(site, daily, clock, every_s=3600).run_due()  # nor is the wait after a failure
    assert schedule(site, daily, clock, every_s=3600).state().failures == 0


def test_the_page_says_what_the_last_import_brought(home: Path, daily: Original) -> None:
    site, clock = Site(use_meaning=False), Clock()
    one = ImportSchedule(
        site.path, site.db, SIX_HOURS, reader=reader(daily), now=clock, poll_s=0.05, jitter=lambda: 1.0
    )
    with page_server(site=site, imports=one) as browser:
        address = f"http://127.0.0.1:{browser.port}/papers"
        wait_for(partial(_says, address, "of 4 listed"))
        said = browser.get("/papers/date/2026-11-27").text
        assert "Daily Papers, 27 November, 09:00 UTC: 4 new and 0 filled in, of 4 listed." in said
        assert "Next about 27 November, 15:00 UTC." in said
        assert "Of Rivers, Part 2700" in said
        assert "Daily Papers, " not in browser.get("/").text
        daily.faults = [(503, {})] * 5
        clock.later(SIX_HOURS)
        wait_for(partial(_says, address, "Tried again"))
        said = browser.get("/papers").text
        assert "(status 503). Tried again about 27 November, 15:05 UTC." in said


def test_serve_imports_once_also_over_restarts_and_kills(
    home: Path, daily: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = datetime.now(UTC).date()
    yesterday = today - timedelta(days=1)
    daily.items = [item(i, submittedOnDailyAt=f"{day}T00:00:00.000Z") for i, day in enumerate((yesterday, today))]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{daily.server_port}")
    daily.hangs_on = str(today)
    server, _ = start("--import-every", "6h")
    wait_for(lambda: len(daily.asked) >= 2)  # in the middle of the second day
    server.send_signal(signal.SIGKILL)
    server.wait()
    daily.hangs_on = ""
    assert imported() == 1  # the first day
    with sqlite3.connect(catalogue_path()) as db:  # as after five minutes
        assert db.execute("SELECT failures FROM import_schedule").fetchone() == (1,)
        db.execute("UPDATE import_schedule SET due = ?", (datetime.now(UTC).isoformat(),))
    for _ in range(2):
        daily.asked.clear()
        server, address = start("--import-every", "6h")
        try:
            wait_for(partial(_says, f"{address}papers", "of 2 listed"))
        finally:
            end(server)
    assert daily.asked == []  # the second of them had nothing to do
    assert imported() == 2


def _says(address: str, words: str) -> bool:
    return words in urllib.request.urlopen(address, timeout=30).read().decode()


def wait_for(condition: object, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10min", 600), ("6h", 21_600), ("1.5 h", 5400), ("1d", 86_400), ("7d", 604_800)]
)
def test_intervals(text: str, seconds: float) -> None:
    assert interval_s(text) == seconds


@pytest.mark.parametrize("text", ["", "6", "5min", "8d", "-1h", "6 hours", "nan h", "0.1h"])
def test_bad_intervals_are_named(text: str) -> None:
    with pytest.raises(LabError, match=f"--import-every {re.escape(text)}: expected a time from 10min to 7d"):
        interval_s(text)


def test_the_command_says_so_in_one_line(home: Path, anabranch: CommandLine) -> None:
    done = anabranch("serve", "--import-every", "often", env=dict(os.environ))
    assert done.returncode == 2
    assert "--import-every often" in done.stderr
