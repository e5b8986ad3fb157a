"""What the page shows, as data: entries with their verdicts, feeds, trending, search, similar papers, claims.

One :class:`Site` serves many threads; it reads the catalogue's file anew when another process has written to it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from anabranch.hub.catalogue import Catalogue, Entry
from anabranch.hub.committed import CommittedResults, Stamps
from anabranch.hub.known import Known, known_of
from anabranch.hub.meaning import MeaningIndex
from anabranch.hub.meaning_builder import MeaningBuilder
from anabranch.hub.run_index import RunIndex
from anabranch.hub.search import Hit, Ranker, search
from anabranch.hub.topics import fitting
from anabranch.hub.views import catalogue_path
from anabranch.hub.votes import Activity, Votes, Window, name_of, trending, window_of
from anabranch.lab import Claim, Paper
from anabranch.lab.discover import papers
from anabranch.lab.places import ensure, home
from anabranch.lab.results import Result, result_verdicts
from anabranch.lab.verdicts import Verdict, threshold_text

Version = tuple[int, int, Stamps]


@dataclass(frozen=True)
class ClaimRow:
    """A claim beside what the committed result says of it."""

    paper: Paper
    claim: Claim
    verdict: Verdict | None
    stale: bool
    unreadable: bool = False

    @property
    def outcome(self) -> str:
        return self.verdict.outcome if self.verdict else "not checked"

    @property
    def words(self) -> str:
        if self.unreadable:
            return "not checked: the file of the result cannot be read"
        return self.verdict.words(self.claim) if self.verdict else "not checked"

    @property
    def number(self) -> str:
        return self.verdict.number() if self.verdict else "-"

    @property
    def threshold(self) -> str:
        return threshold_text(self.claim)


@dataclass(frozen=True)
class Card:
    """An entry as a feed shows it."""

    entry: Entry
    votes: int = 0
    sentence: str = ""
    counts: tuple[tuple[str, int], ...] = ()
    stale: bool = False

    @property
    def key(self) -> str:
        """What names it in an address: slug, arXiv id, or its row."""
        return self.entry.slug or self.entry.arxiv or f"entry-{self.entry.id}"

    @property
    def line(self) -> str:
        """One line about it: the sentence that was found, our summary's first, or the abstract's."""
        if self.sentence:
            return self.sentence
        text = self.entry.paper.summary if self.entry.paper else self.entry.abstract
        head = text.partition(". ")[0].strip()
        return head + ("." if head and not head.endswith((".", "?", "!")) else "")

    @property
    def day(self) -> date | None:
        return self.entry.listed or self.entry.published


@dataclass
class Site:
    """The hub behind the page and the interface for programs.

    Args:
        path: the catalogue's file; made where absent.
        db: the page's own connection to the file, in autocommit mode.
        committed: the committed results.
        runs: the runs here.
        builder: builds the index by meaning.
        use_meaning: whether to search by meaning where the encoder is here. It is loaded in the background by the first
            search; until it is ready words are searched.
        encoder: folder of the sentence encoder; None for the usual one.
    """

    path: Path = field(default_factory=catalogue_path)
    use_meaning: bool = True
    encoder: Path | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _known: Known | None = field(default=None, repr=False)
    committed: CommittedResults = field(default_factory=CommittedResults, repr=False)
    runs: RunIndex = field(default_factory=RunIndex, repr=False)
    builder: MeaningBuilder = field(init=False, repr=False)
    db: sqlite3.Connection = field(init=False, repr=False)
    votes: Votes = field(init=False, repr=False)
    _reading: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __post_init__(self) -> None:
        if self.path == catalogue_path():
            ensure(home(), "the catalogue")
        with Catalogue(self.path, papers()):
            pass  # made, with our own papers in it
        self.db = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        self.votes = Votes(self.db)
        self.builder = MeaningBuilder(self.encoder, wanted=self.use_meaning)

    def close(self) -> None:
        self.builder.close()
        self.db.close()

    @property
    def version(self) -> Version:
        """Changes when another connection writes to the catalogue, a vote is given here, or a committed result changes.

        It asks the file itself, in 50 microseconds, and waits for nobody who reads."""
        with self._lock:
            return self._data_version(), self.db.total_changes, self.committed.stamps()

    @property
    def state(self) -> tuple[int, Stamps, str]:
        """Changes when what a search finds does: the entries, the committed results, what a search goes by."""
        return self.known().version, self.committed.stamps(), self.ranker_name()

    def _data_version(self) -> int:
        with self._lock:
            return int(self.db.execute("PRAGMA data_version").fetchone()[0])

    def known(self) -> Known:
        """The entries and their index, read anew after a change. O(entries)."""
        known, version = self._known, self._data_version()
        if known is not None and known.version == version:
            return known
        with self._reading:
            version = self._data_version()  # before the entries: what is written meanwhile is read the next time
            if self._known is None or self._known.version != version:
                with Catalogue(self.path, papers()) as catalogue:
                    entries = catalogue.entries()
                self._known = known_of(version, entries, self._known)
            return self._known

    def entry(self, key: str) -> Entry | None:
        """The entry with this slug, arXiv id or row."""
        known = self.known()
        i = known.by_key.get(key)
        return None if i is None else known.entries[i]

    # Feeds

    def cards(self, entries: Sequence[Entry], sentences: Sequence[str] = ()) -> list[Card]:
        with self._lock:
            votes = self.votes.count()
        results = self.results()
        found = []
        for i, entry in enumerate(entries):
            result = results.get(entry.slug or "")
            outcomes = [v.outcome for v in result_verdicts(result[0]).values()] if result else []
            names = ("holds", "falls short", "undecided", "not checked")
            counts = tuple((name, outcomes.count(name)) for name in names if name in outcomes)
            text = sentences[i] if i < len(sentences) else ""
            found.append(Card(entry, votes.get(entry.id or -1, 0), text, counts, bool(result and result[1])))
        return found

    def window(self, kind: Window, text: str) -> list[Entry]:
        """Entries listed (or published, where no listing is known) in a day, week or month, newest first.

        Raises:
            ValueError: no such window.
        """
        first, end = window_of(kind, text)
        return [e for e in self.known().entries if (day := e.listed or e.published) and first <= day < end]

    def latest_window(self, kind: Window) -> str:
        """The newest window that holds an entry, as the feed opens it."""
        days = [day for e in self.known().entries if (day := e.listed or e.published)]
        return name_of(kind, max(days, default=datetime.now(UTC).date()))

    def trending(self, window_days: int = 30, *, now: datetime | None = None) -> list[Entry]:
        """Entries by votes, finished runs and confirmed claims of the last days, over age."""
        now = now or datetime.now(UTC)
        since = now - timedelta(days=window_days)
        with self._lock:
            votes = self.votes.count(since=since)
        runs: dict[str, int] = {}
        confirmed: dict[str, set[str]] = {}
        for run in self.runs.ended():
            if run.finished and run.begun >= since:
                runs[run.slug] = runs.get(run.slug, 0) + 1
                confirmed.setdefault(run.slug, set()).update(run.held)
        for slug, (result, _) in self.results().items():
            if datetime.fromisoformat(result["date"]) >= since:
                held = {name for name, v in result_verdicts(result).items() if v.outcome == "holds"}
                confirmed.setdefault(slug, set()).update(held)
        by_id = {e.id: e for e in self.known().entries}
        activities = [
            Activity(e.id, day, votes.get(e.id, 0), runs.get(e.slug or "", 0), len(confirmed.get(e.slug or "", ())))
            for e in by_id.values()
            if e.id is not None and (day := e.listed or e.published)
        ]
        return [by_id[a.entry] for a in trending(activities, now)]

    def runs_here(self) -> list[Entry]:
        """Papers with an experiment, newest first."""
        return [e for e in self.known().entries if e.paper and e.paper.runnable]

    def raw(self, ids: Sequence[int]) -> dict[int, str]:
        """The JSON that entries were read from, by id."""
        marks = ", ".join("?" * len(ids))
        with self._lock:
            rows = self.db.execute(f"SELECT id, raw FROM entry WHERE raw IS NOT NULL AND id IN ({marks})", list(ids))
            return dict(rows.fetchall())

    def submitted_by(self, name: str) -> set[int]:
        """Entries that this user of Daily Papers submitted there."""
        with self._lock:
            rows = self.db.execute(
                "SELECT id FROM entry WHERE json_valid(raw) AND json_extract(raw, '$.submittedBy.name') = ?", (name,)
            )
            return {row[0] for row in rows}

    # Search

    def search(self, query: str, k: int = 20) -> list[Hit]:
        """The best entries with the sentence that fits; the newest for an empty query."""
        known = self.known()
        return search(known.entries, query, k, ranker=self._ranker(known))

    def similar(self, entry: Entry, k: int = 5) -> list[Entry]:
        """Entries nearest in meaning; by words where the encoder is not here."""
        known = self.known()
        i = known.by_key[f"entry-{entry.id}"]
        if isinstance(ranker := self._ranker(known), MeaningIndex):
            return [known.entries[j] for j, _ in ranker.similar(i, k)]
        scores = known.words.scores(entry.title)
        best = sorted((j for j in scores if j != i), key=lambda j: -scores[j])
        return [known.entries[j] for j in best[:k]]

    def ranker_name(self) -> str:
        """What a search goes by at this moment: ``meaning`` or ``words``."""
        return "meaning" if self.known().by_meaning is not None else "words"

    def _ranker(self, known: Known) -> Ranker:
        if known.by_meaning is None:
            self.builder.start(known)
        return known.by_meaning or known.words

    def build_meaning(self) -> None:
        """Build the index by meaning now, in this thread; seconds for tens of papers, minutes for thousands the first time.

        Nothing is done where it is there, the encoder is not, or building failed in the last ten minutes."""
        self.builder.build(self.known())

    def fitting(self, topic: str, entries: Sequence[Entry], k: int = 20) -> list[Hit]:
        """Those of ``entries`` that are about ``topic``, at most ``k``: :func:`anabranch.hub.topics.fitting`."""
        known = self.known()
        among = [i for e in entries if (i := known.by_key.get(f"entry-{e.id}")) is not None]
        return fitting(known.entries, topic, among, k, ranker=known.by_meaning or known.words)

    # Verdicts

    def results(self) -> dict[str, tuple[Result, bool]]:
        """Committed results by slug, and whether each is stale; read again when a file of them has changed."""
        return self.committed.all()

    def claims(self, paper: Paper | None = None) -> list[ClaimRow]:
        """All claims of a paper, or of all papers."""
        rows = []
        for each in [paper] if paper else papers():
            result, stale = self.results().get(each.slug, (None, False))
            verdicts: dict[str, Verdict] = result_verdicts(result) if result else {}
            bad = each.slug in self.committed.faults()
            rows += [ClaimRow(each, claim, verdicts.get(claim.name), stale, bad) for claim in each.claims]
        return rows

    def badge(self, slug: str) -> dict[str, Any]:
        """``5 of 6 hold``, for a badge."""
        rows = [row for row in self.claims(next(p for p in papers() if p.slug == slug)) if row.claim.checked]
        return {"holds": sum(row.outcome == "holds" for row in rows), "of": len(rows)}
