"""The catalogue: every paper known here, built in or imported, in one SQLite file."""

from __future__ import annotations

import json
import re
import sqlite3
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

from anabranch.lab import Paper

Change = Literal["added", "updated", "matched"]

BUILT_IN = "built-in"
SCHEMA = 1
_PATIENCE_S = 30.0

_ARXIV = re.compile(r"(?:arxiv:)?(\d{4}\.\d{4,5}|[a-z][a-z.-]*/\d{7})(?:v\d+)?", re.IGNORECASE)
_TABLES = """
CREATE TABLE IF NOT EXISTS entry (
    id INTEGER PRIMARY KEY,
    arxiv TEXT UNIQUE,
    title_key TEXT NOT NULL,
    slug TEXT UNIQUE,
    title TEXT NOT NULL,
    published TEXT,
    authors TEXT NOT NULL,
    n_authors INTEGER,
    abstract TEXT NOT NULL,
    page_count INTEGER,
    listed TEXT,
    source TEXT NOT NULL,
    raw TEXT
);
CREATE INDEX IF NOT EXISTS entry_by_title ON entry (title_key);
"""
_COLUMN_NAMES = "arxiv title_key slug title published authors n_authors abstract page_count listed source raw"
_COLUMNS = tuple(_COLUMN_NAMES.split())


def normalize_arxiv(text: str) -> str | None:
    """The bare arXiv id in ``text`` (``arXiv:2505.12849v2`` gives ``2505.12849``); ``None`` where it is none."""
    match = _ARXIV.fullmatch(text.strip())
    return match.group(1).lower() if match else None


def normalize_title(title: str) -> str:
    """What two spellings of one title share: NFKC, lower case, letters, marks and digits only."""
    folded = unicodedata.normalize("NFKC", title).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LMN") or folded.strip()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A paper as the hub knows it.

    Args:
        title: full title, subtitle included.
        published: day of first publication; may be unknown only where ``arxiv`` is known.
        arxiv: bare arXiv id.
        authors: names, where they are known.
        n_authors: number of authors, which pages tell more often than the names.
        abstract: the authors' abstract, kept locally and never shipped.
        page_count: the small number a saved page prints behind the date. Its text does not say whether it counts
            comments or votes; from the page's JSON it is the number of comments.
        listed: day the paper was first listed on such a page.
        source: where the entry came from first.
        raw: the JSON it was read from, kept whole because its fields change without notice.
        paper: the paper of this project, where it is one.
        id: its row in the catalogue, stable over imports; ``None`` outside a catalogue.

    Raises:
        ValueError: an empty title, a malformed arXiv id, a negative count, or neither an arXiv id nor a date.
    """

    title: str
    published: date | None = None
    arxiv: str | None = None
    authors: tuple[str, ...] = ()
    n_authors: int | None = None
    abstract: str = ""
    page_count: int | None = None
    listed: date | None = None
    source: str = "import"
    raw: str | None = None
    paper: Paper | None = field(default=None, repr=False)
    id: int | None = None

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise ValueError(f"title={self.title!r}: expected the title of a paper")
        if self.arxiv is not None and normalize_arxiv(self.arxiv) != self.arxiv:
            raise ValueError(f"arxiv={self.arxiv!r}: expected a bare arXiv id such as '2505.12849'")
        if self.arxiv is None and self.published is None:
            raise ValueError(f"{self.title!r} has neither an arXiv id nor a date, so it could not be told apart")
        for argument, value in (("n_authors", self.n_authors), ("page_count", self.page_count)):
            if value is not None and value < 0:
                raise ValueError(f"{argument}={value} of {self.title!r}: expected a count")

    @classmethod
    def of(cls, paper: Paper) -> Entry:
        """The entry of a paper of this project."""
        return cls(
            title=paper.title,
            published=paper.published,
            arxiv=paper.arxiv,
            authors=paper.authors,
            n_authors=paper.n_authors,
            source=BUILT_IN,
            paper=paper,
        )

    @property
    def slug(self) -> str | None:
        return self.paper.slug if self.paper else None

    @property
    def url(self) -> str | None:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None


class Catalogue:
    """Every paper known here, in one SQLite file in write-ahead mode.

    Two processes may use one file: writes take turns. Adding is idempotent and looks for the same paper first by arXiv id,
    then by normalised title and date, where dates may differ by a day, because pages print them in the reader's time
    zone. What is known stays: a later import fills what is missing and refreshes the abstract, the page's count and the
    raw JSON; only this project's own papers overwrite title, date and names.

    Args:
        path: the file, made with its folder where absent, or ``":memory:"``.
        papers: the papers of this project (``anabranch.lab.papers()``); they are added first, and entries that are one
            of them carry it as ``.paper``.

    Raises:
        ValueError: ``path`` is not such a file, or was written by a later version.
        OSError: its folder cannot be made.
        TimeoutError: another process keeps it locked.
    """

    def __init__(self, path: str | Path, papers: Iterable[Paper] = ()) -> None:
        self.path = str(path)
        self._papers = {paper.slug: paper for paper in papers}
        if self.path != ":memory:":
            Path(path).expanduser().parent.mkdir(parents=True, exist_ok=True)
            self.path = str(Path(path).expanduser())
        try:
            self._db = sqlite3.connect(self.path, timeout=_PATIENCE_S, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise ValueError(f"path={self.path!r}: {error}; expected a file that can be written") from error
        self._db.row_factory = sqlite3.Row
        try:
            self._open()
            self.add_all(Entry.of(paper) for paper in self._papers.values())
        except sqlite3.DatabaseError as error:
            self._db.close()
            if _is_locked(error):
                raise TimeoutError(
                    f"path={self.path!r}: another process kept it locked for {_PATIENCE_S:g} s"
                ) from error
            raise ValueError(
                f"path={self.path!r}: {error}; expected a catalogue that can be written, or no file"
            ) from error
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise ValueError(f"path={self.path!r} was written by a later version (schema {version}, here {SCHEMA})")
        self._db.execute("PRAGMA synchronous=NORMAL")
        if version < SCHEMA:
            self._write_ahead()
            with writing(self._db):
                for statement in _TABLES.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={SCHEMA}")

    def _write_ahead(self) -> None:
        """Switch the file to write-ahead mode; SQLite does not itself wait while another process does the same."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if not _is_locked(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        count: int = self._db.execute("SELECT count(*) FROM entry").fetchone()[0]
        return count

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries())

    def entries(self, *, raw: bool = False) -> list[Entry]:
        """All entries, newest first, those without a date last; with the JSON they were read from only where ``raw``."""
        names = ", ".join(name if raw or name != "raw" else "NULL AS raw" for name in _COLUMNS)
        rows = self._db.execute(
            f"SELECT id, {names} FROM entry ORDER BY published IS NULL, published DESC, title_key, id"
        )
        return [self._entry(row) for row in rows]

    def votes(self) -> dict[int, int]:
        """Votes by entry; none where the page has never been used."""
        if self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'vote'").fetchone() is None:
            return {}
        rows = self._db.execute("SELECT entry, count(*) FROM vote GROUP BY entry")
        return {row[0]: row[1] for row in rows}

    def get(self, key: str) -> Entry | None:
        """The entry with this slug, arXiv id or full title; the newest where a title is there twice."""
        row = self._db.execute(
            "SELECT * FROM entry WHERE slug = ? OR arxiv = ? OR title_key = ? ORDER BY published DESC, id LIMIT 1",
            (key, normalize_arxiv(key), normalize_title(key)),
        ).fetchone()
        return self._entry(row) if row else None

    def add(self, entry: Entry) -> Change:
        """Add one entry, or fill the one that is there with what is new."""
        return self.add_all([entry])[0]

    def add_all(self, entries: Iterable[Entry]) -> list[Change]:
        """Add entries in one transaction, all or none; what became of each. Time grows with their number."""
        wanted = list(entries)
        changes = [self._plan(entry)[0] for entry in wanted]
        if all(change == "matched" for change in changes):  # nothing to write: do not wait for another writer
            return changes
        with writing(self._db):
            return [self._put(entry) for entry in wanted]

    def _plan(self, entry: Entry) -> tuple[Change, sqlite3.Row | None, dict[str, Any]]:
        new, old = _columns(entry), self._same(entry)
        if old is None:
            return "added", None, new
        merged = _merge(old, new)
        return ("updated" if merged else "matched"), old, merged

    def _put(self, entry: Entry) -> Change:
        change, old, values = self._plan(entry)
        if "slug" in values:  # the paper's arXiv id or title has changed: its former row stays, as an import
            self._db.execute("UPDATE entry SET slug = NULL WHERE slug = ?", (entry.slug,))
        if old is None:
            marks = ", ".join("?" * len(_COLUMNS))
            self._db.execute(
                f"INSERT INTO entry ({', '.join(_COLUMNS)}) VALUES ({marks})", [values[name] for name in _COLUMNS]
            )
        elif values:
            sets = ", ".join(f"{name} = ?" for name in values)
            self._db.execute(f"UPDATE entry SET {sets} WHERE id = ?", [*values.values(), old["id"]])
        return change

    def _same(self, entry: Entry) -> sqlite3.Row | None:
        """The row of the same paper."""
        if entry.arxiv is not None:
            row = self._db.execute("SELECT * FROM entry WHERE arxiv = ?", (entry.arxiv,)).fetchone()
            if row is not None:
                return row  # type: ignore[no-any-return]
        rows = self._db.execute("SELECT * FROM entry WHERE title_key = ? ORDER BY id", (normalize_title(entry.title),))
        for row in rows:
            both_known = entry.arxiv is not None and row["arxiv"] is not None  # and differ: two papers
            if not both_known and _same_day(entry.published, _date(row["published"])):
                return row  # type: ignore[no-any-return]
        return self._db.execute("SELECT * FROM entry WHERE slug = ?", (entry.slug,)).fetchone()  # type: ignore[no-any-return]

    def _entry(self, row: sqlite3.Row) -> Entry:
        return Entry(
            title=row["title"],
            published=_date(row["published"]),
            arxiv=row["arxiv"],
            authors=tuple(json.loads(row["authors"])),
            n_authors=row["n_authors"],
            abstract=row["abstract"],
            page_count=row["page_count"],
            listed=_date(row["listed"]),
            source=row["source"],
            raw=row["raw"],
            paper=self._papers.get(row["slug"]),
            id=row["id"],
        )


@contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction of a connection in autocommit mode: all of the block is written, or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _columns(entry: Entry) -> dict[str, Any]:
    return {
        "arxiv": entry.arxiv,
        "title_key": normalize_title(entry.title),
        "slug": entry.slug,
        "title": entry.title,
        "published": entry.published.isoformat() if entry.published else None,
        "authors": json.dumps(entry.authors, ensure_ascii=False),
        "n_authors": entry.n_authors,
        "abstract": entry.abstract,
        "page_count": entry.page_count,
        "listed": entry.listed.isoformat() if entry.listed else None,
        "source": entry.source,
        "raw": entry.raw,
    }


def _merge(old: sqlite3.Row, new: dict[str, Any]) -> dict[str, Any]:
    """The columns of ``old`` that ``new`` changes."""
    changed: dict[str, Any] = {}
    for name in _COLUMNS:
        value = new[name]
        if value in (None, "", "[]") or value == old[name]:
            continue
        empty = old[name] in (None, "", "[]")
        if name == "source":
            keep = True  # where it came from first
        elif name == "listed":
            keep = not empty and old[name] <= value
        elif name in ("abstract", "page_count", "raw"):
            keep = False  # what pages know best
        else:
            keep = not empty and new["slug"] is None  # a page never corrects us, nor an earlier page
        if not keep:
            changed[name] = value
    return changed


def _is_locked(error: sqlite3.Error) -> bool:
    return "locked" in str(error)


def _same_day(first: date | None, second: date | None) -> bool:
    if first is None or second is None:
        return True
    return abs(first - second) <= timedelta(days=1)


def _date(text: str | None) -> date | None:
    return date.fromisoformat(text) if text else None
