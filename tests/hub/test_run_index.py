"""Lists of runs cost what they show, however many runs there are."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra hub is not installed")
from anabranch.hub.run_index import RunIndex, RunSummary
from anabranch.hub.run_queue import RunQueue
from anabranch.lab import Verdict, list_runs
from anabranch.lab.places import cache_folder, runs_folder
from anabranch.lab.runs import RunFolder

from .page_server import HEADER, page_server

SLUGS = ("udc", "gpipe", "boss", "splitwise")
MANY = 2000


def many_runs(n: int = MANY) -> list[str]:
    """Ended runs of four papers, the oldest first: one in five failed, one in seven drew a figure."""
    root, began, ids = runs_folder(), datetime(2026, 1, 1, tzinfo=UTC), []
    for i in range(n):
        slug, created = SLUGS[i % 4], began + timedelta(minutes=i)
        run_id = f"{created:%Y%m%d-%H%M%S}-{i:06d}-{slug}-{i:04x}"
        folder = root / run_id
        (folder / "artefacts").mkdir(parents=True)
        header = {**HEADER, "id": run_id, "slug": slug, "seed": i, "created": created.isoformat(), "queued": False}
        (folder / "run.json").write_text(json.dumps(header))
        events: list[dict[str, object]] = [{"type": "start", "slug": slug}]
        events += [{"type": "series", "name": "a", "x": x, "values": {"y": x}} for x in range(20)]
        if i % 7 == 0:
            events.append(
                {"type": "figure", "name": "f", "caption": f"figure {i}", "files": {"svg": "artefacts/f.svg"}}
            )
        verdict = Verdict(f"c{i % 3}", "holds" if i % 2 else "falls short", 1.0, 0.9, 1.1, "", "", 1)
        events.append(
            {"type": "verdict", "claim": verdict.claim, "outcome": verdict.outcome, "verdict": asdict(verdict)}
        )
        events.append({"type": "end", "state": "failed" if i % 5 == 0 else "finished", "error": None})
        lines = [json.dumps({"n": n, "at_s": float(n + i % 3), **event}) for n, event in enumerate(events)]
        (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
        ids.append(run_id)
    return ids


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The runs whose logs were read."""
    import anabranch.lab.runs as module

    found: list[str] = []
    true = module.read_events
    monkeypatch.setattr(
        module, "read_events", lambda path, after=-1: (found.append(path.parent.name), true(path, after))[1]
    )
    return found


def test_pages_read_the_logs_of_what_they_show_and_no_other(home: Path, read: list[str]) -> None:
    ids = many_runs()
    RunIndex().edition()
    assert len(read) == MANY
    read.clear()
    with page_server(queue=RunQueue(poll_s=0.05)) as page:  # a new process finds what the earlier one has read
        time.sleep(0.5)
        assert read == []  # nor does the queue read what has ended
        text = page.get("/papers/udc").text
        shown = re.findall(r'href="/runs/([^"/]+)">', text)
        of_paper = [name for name in reversed(ids) if "-udc-" in name]
        assert shown == of_paper[:8]
        drawn = max(i for i in range(MANY) if i % 4 == 0 and i % 7 == 0 and i % 5)
        assert f"figure {drawn}" in text
        assert read == [ids[drawn]]
        read.clear()
        text = page.get("/runs").text
        assert re.findall(r'href="/runs/([^"]+)"', text) == ids[::-1][:100]
        assert "Nothing runs" in text
        assert page.get("/papers/trending").status == 200
        assert read == []
        text = page.get(f"/runs/{of_paper[3]}").text
        assert len(re.findall("/compare", text)) == 8
        assert read == [of_paper[3]]
        read.clear()
        assert len(json.loads(page.get("/api/runs?slug=gpipe").text)) == 100
        assert len(read) == 100
        took = []
        for _ in range(5):
            begin = time.perf_counter()
            page.get("/papers/udc")
            took.append(time.perf_counter() - begin)
        assert sorted(took)[0] < 0.25  # measured: 0.02 s; every log would take seconds


def test_the_index_says_what_the_logs_say(home: Path) -> None:
    many_runs(60)
    wanted = [RunSummary.of(run) for run in reversed(list_runs())]
    for index in (RunIndex(), RunIndex()):  # read from the logs, and from what was kept
        assert index.latest() == wanted
        assert index.latest("boss", most=4) == [run for run in wanted if run.slug == "boss"][:4]
        assert index.latest(finished=True) == [run for run in wanted if run.state == "finished"]
        assert {run.id for run in index.ended()} == {run.id for run in wanted}
        assert index.active() == []
        took = [run.seconds for run in wanted if run.slug == "gpipe" and run.state == "finished"]
        assert index.expected_seconds("gpipe", "smoke") == statistics.median(took)
        assert index.expected_seconds("gpipe", "laptop") > 0  # the paper's own word


def test_a_run_is_followed_from_the_queue_to_its_end(home: Path) -> None:
    index = RunIndex()
    assert index.latest() == []
    with RunFolder.create({**HEADER, "created": datetime.now(UTC).isoformat()}, queued=True) as folder:
        assert [run.state for run in index.latest()] == ["running"]
    assert [run.state for run in index.active()] == ["queued"]
    with RunFolder.adopt(folder.folder) as adopted:
        adopted.log.write("start", slug="udc", scale="smoke", seed=0, pid=1)
        assert [run.state for run in index.active()] == ["running"]
        before = index.edition()
        adopted.log.write("series", name="a", x=0, values={"end": 1})  # not the end
        assert (index.ended(), index.edition()) == ([], before)
        adopted.log.write("verdict", claim="c", outcome="holds")
        adopted.log.write("end", state="finished", error=None)
        (run,) = index.ended()
        assert (run.slug, run.finished, run.held) == ("udc", True, ("c",))
        assert index.edition() != before
    assert index.active() == []
    after = index.edition()
    shutil.rmtree(folder.folder)
    assert index.latest() == []
    assert index.edition() != after


def test_a_run_whose_process_died_is_interrupted_and_not_read_again(home: Path, read: list[str]) -> None:
    index = RunIndex()
    with RunFolder.create(HEADER) as folder:
        folder.log.write("start", slug="udc", scale="smoke", seed=0, pid=1)
        assert [run.state for run in index.active()] == ["running"]
    assert [run.state for run in index.latest()] == ["interrupted"]
    read.clear()
    assert [run.state for run in index.latest()] == ["interrupted"]
    assert read == []


def test_damaged_runs_and_a_damaged_index_are_left_out(home: Path) -> None:
    ids = many_runs(8)
    (runs_folder() / ids[3] / "run.json").write_text("{")
    (runs_folder() / "note.txt").write_text("")
    index = RunIndex()
    assert [run.id for run in index.latest()] == [name for name in reversed(ids) if name != ids[3]]
    (kept,) = cache_folder().glob("runs-*.sqlite")
    kept.write_bytes(b"no database" * 100)
    assert len(RunIndex().latest()) == 7
    log = runs_folder() / ids[4] / "events.jsonl"
    kept.unlink()
    RunIndex().edition()
    log.write_text(log.read_text().replace('"falls short"', '"holds"'))  # another log than the one that was kept
    assert next(run for run in RunIndex().latest() if run.id == ids[4]).held == ("c1",)
