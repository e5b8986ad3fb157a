"""Imports saved pages of Daily Papers: as text, as HTML, or the JSON that its feed and search endpoints give.

The page's rendered articles, the JSON it hydrates from and the feed were read in public scrapers; every field of the JSON
but id and title is treated as optional, because they change without notice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from anabranch.hub._html import Article, read_html
from anabranch.hub.catalogue import Catalogue, Entry, normalize_arxiv

_EXPECTED = (
    "no paper found; expected a saved Daily Papers page: as text, where each paper is a title, an abstract, "
    "'• N authors' and a date such as 'Jun 29, 2024'; as HTML; or the JSON of its feed"
)

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = r"(?P<month>Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_AUTHORS = re.compile(r"[•·*-]?\s*(?P<count>\d+) authors?", re.IGNORECASE)
_DATES = (
    re.compile(rf"{_MONTH} (?P<day>\d{{1,2}}), (?P<year>\d{{4}})(?: (?P<count>\d+))?"),
    re.compile(rf"(?P<day>\d{{1,2}}) {_MONTH} (?P<year>\d{{4}})(?: (?P<count>\d+))?"),
    re.compile(r"(?P<year>\d{4})-(?P<monthnumber>\d{2})-(?P<day>\d{2})(?: (?P<count>\d+))?"),
)
_SEPARATOR = re.compile(r"[•·|*-]+")
_ONE_LINE = re.compile(r"[•·]?\s*\d+ authors?\s*[•·].*", re.IGNORECASE)
_HEADER_END = re.compile(r"by ?AK\b.*|Daily Papers|Subscribe|" + _MONTH + r" \d{1,2}")
_ABSTRACT_LENGTH = 200  # characters; no title, menu or slogan is as long
_HTML = re.compile(r"<(!doctype|html|head|body|main|article|section|div|h[1-6]|p|a)\b", re.IGNORECASE)
_COMPONENT = "DailyPapers"


@dataclass(frozen=True)
class Skipped:
    """Something on a page that looked like a paper and was left out.

    Args:
        title: what stood in the place of its title, shortened.
        reason: why.
    """

    title: str
    reason: str


@dataclass(frozen=True)
class ImportReport:
    """What an import did; ``found == added + updated + matched``.

    Args:
        found: papers read.
        added: new in the catalogue.
        updated: known, and filled or refreshed.
        matched: known, with nothing new.
        skipped: left out, with reasons.
    """

    found: int
    added: int
    updated: int
    matched: int
    skipped: tuple[Skipped, ...] = ()


def parse_saved_page(text_or_html: str) -> list[Entry]:
    """The papers on a saved page, in its order; what is unreadable is left out.

    Time grows in proportion to the length of the page.

    Raises:
        ValueError: no paper is found.
        TypeError: not text.
    """
    return _read(text_or_html)[0]


def import_page(catalogue: Catalogue, text_or_html: str) -> ImportReport:
    """Add the papers of a saved page to ``catalogue``, all or none; importing a page again changes nothing.

    Raises:
        ValueError: no paper is found.
        TypeError: not text.
    """
    entries, skipped = _read(text_or_html)
    changes = catalogue.add_all(entries)
    return ImportReport(
        found=len(entries),
        added=changes.count("added"),
        updated=changes.count("updated"),
        matched=changes.count("matched"),
        skipped=tuple(skipped),
    )


@dataclass
class _Reading:
    entries: list[Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, **values: Any) -> None:
        title = values["title"]
        try:
            self.entries.append(Entry(**values))
        except ValueError as error:
            self.skip(title, str(error))

    def skip(self, title: str, reason: str) -> None:
        self.skipped.append(Skipped(title if len(title) <= 80 else title[:77] + "...", reason))


def _read(text: str) -> tuple[list[Entry], list[Skipped]]:
    if not isinstance(text, str):
        raise TypeError(f"text_or_html is a {type(text).__name__}: expected the page as str")
    text = text.encode("utf-8", "replace").decode().removeprefix("\ufeff").replace("\0", " ")
    reading = _Reading()
    if text.lstrip()[:1] in ("[", "{"):
        _read_json(text, reading)
    elif _HTML.search(text):
        _read_html(text, reading)
    else:
        _read_text(text, reading)
    if not reading.entries:
        why = f" (left out: {reading.skipped[0].title!r}: {reading.skipped[0].reason})" if reading.skipped else ""
        raise ValueError(_EXPECTED + why)
    return reading.entries, reading.skipped


# --- text -----------------------------------------------------------------------------------------------------------


def _read_text(text: str, reading: _Reading) -> None:
    block: list[str] = []
    authors: int | None = None
    past_authors = False
    for line in [*_lines(text), ""]:
        dated = _read_date(line)
        if dated is not None or (past_authors and _looks_dated(line)):
            _finish(block, authors, dated, line, reading)
            block, authors, past_authors = [], None, False
        elif match := _AUTHORS.fullmatch(line):
            authors, past_authors = int(match["count"]), True
        elif line and not _SEPARATOR.fullmatch(line):
            if past_authors:
                _finish(block, authors, None, "", reading)
                block, authors, past_authors = [], None, False
            block.append(line)
    if past_authors:
        _finish(block, authors, None, "", reading)


def _lines(text: str) -> Iterator[str]:
    """Lines with every run of white space, non-breaking and zero-width included, as one blank."""
    for line in re.sub(r"\r\n?|[\u2028\u2029]", "\n", text).split("\n"):
        plain = " ".join(re.sub(r"[\u200b-\u200d\u2060\ufeff]", "", line).split())
        if _ONE_LINE.fullmatch(plain):  # authors and date in one line
            yield from (part.strip() for part in re.split("[•·]", plain) if part.strip())
        else:
            yield plain


def _finish(
    block: list[str], authors: int | None, dated: tuple[date, int | None] | None, line: str, reading: _Reading
) -> None:
    """Make an entry of the lines before a date."""
    first = not reading.entries and not reading.skipped
    lines = _without_header(block) if first else block
    if not lines:
        return
    title, abstract = lines[0], " ".join(lines[1:])
    if dated is None:
        reason = f"its date {line!r} is not of the form 'Jun 29, 2024'" if line else "it has no date"
        reading.skip(title, reason)
        return
    published, count = dated
    reading.add(
        title=title,
        published=published,
        n_authors=authors,
        abstract=abstract,
        page_count=count,
        source="saved page",
    )


def _without_header(lines: list[str]) -> list[str]:
    """The lines after the page's own header, which stands above the first paper and ends with a day without a year; where
    the header is not known, the title is the line above the one long line."""
    ends = [i for i, line in enumerate(lines) if _HEADER_END.fullmatch(line)]
    if ends:
        return lines[ends[-1] + 1 :]
    long = [i for i, line in enumerate(lines) if len(line) >= _ABSTRACT_LENGTH]
    return lines[max(long[0] - 1, 0) :] if len(long) == 1 else lines


def _looks_dated(line: str) -> bool:
    """Whether ``line`` may be a date in another language: short, with a year and a day."""
    digits = sum(c.isdigit() for c in line)
    return len(line) <= 40 and 5 <= digits <= 10 and re.search(r"\d{4}", line) is not None


def _read_date(line: str) -> tuple[date, int | None] | None:
    """A date and the count behind it, where ``line`` is nothing else."""
    for pattern in _DATES:
        if match := pattern.fullmatch(line):
            parts = match.groupdict()
            month = int(parts.get("monthnumber") or 0) or _MONTHS.index(parts["month"].lower()) + 1
            try:
                day = date(int(parts["year"]), month, int(parts["day"]))
            except ValueError:
                return None
            return day, int(parts["count"]) if parts["count"] else None
    return None


# --- HTML -----------------------------------------------------------------------------------------------------------


def _read_html(html: str, reading: _Reading) -> None:
    """From the JSON that the page hydrates from; else from its articles; else from its text."""
    page = read_html(html, _COMPONENT)
    for props in page.props:
        try:
            _read_feed(json.loads(props), reading)
        except ValueError:  # cut off or changed: the articles say nearly as much
            continue
    if reading.entries:
        return
    for article in page.articles:
        _read_article(article, reading)
    if not reading.entries:
        _read_text(page.text, reading)


def _read_article(article: Article, reading: _Reading) -> None:
    parts = [part for line in article.lines for part in _lines(re.sub("[•·|]", "\n", line))]
    authors = next((int(match["count"]) for part in parts if (match := _AUTHORS.fullmatch(part))), None)
    dated = next((found for part in parts if (found := _read_date(part))), None)
    published = _iso_date(article.time) or (dated[0] if dated else None)
    title = " ".join(article.title.split())
    if not title:
        return
    reading.add(
        title=title,
        published=published,
        arxiv=article.arxiv,
        n_authors=authors,
        abstract=" ".join(article.abstract.split()),
        page_count=dated[1] if dated else None,
        source="saved page",
    )


# --- JSON -----------------------------------------------------------------------------------------------------------


def _read_json(text: str, reading: _Reading) -> None:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{_EXPECTED} (it looks like JSON, but: {error})") from error
    _read_feed(data, reading)


def _read_feed(data: Any, reading: _Reading) -> None:
    """Items of a feed: a list of them, or the page's properties.

    On a page of search results the properties hold the results *and* the papers of the day, which are not on the page.
    """
    listed = None
    if isinstance(data, Mapping):
        listed = _iso_date(data.get("dateString")) if data.get("periodType") == "day" else None
        found = data.get("searchResults") or data.get("dailyPapers") or ([data] if "title" in data else [])
    else:
        found = data
    for item in found if isinstance(found, list) else []:
        _read_item(item, listed, reading)


def _read_item(item: Any, listed: date | None, reading: _Reading) -> None:
    if not isinstance(item, Mapping):
        reading.skip(str(item), "not a JSON object")
        return
    paper = item.get("paper")
    inner: Mapping[str, Any] = paper if isinstance(paper, Mapping) else item
    title = _text(inner.get("title")) or _text(item.get("title"))
    if not title:
        reading.skip(str(inner.get("id", "?")), "it has no title")
        return
    people = inner.get("authors")
    names = tuple(
        name
        for person in (people if isinstance(people, list) else [])
        if (name := _text(person.get("name") if isinstance(person, Mapping) else person))
    )
    comments = item.get("numComments")
    reading.add(
        title=title,
        published=_iso_date(inner.get("publishedAt")) or _iso_date(item.get("publishedAt")),
        arxiv=normalize_arxiv(str(inner.get("id", ""))),
        authors=names,
        n_authors=len(people) if isinstance(people, list) and people else None,
        abstract=_text(inner.get("summary")) or _text(item.get("summary")),
        page_count=comments if isinstance(comments, int) and not isinstance(comments, bool) and comments > 0 else None,
        listed=_iso_date(inner.get("submittedOnDailyAt")) or _iso_date(item.get("submittedOnDailyAt")) or listed,
        source="daily papers",
        raw=json.dumps(item),
    )


def _text(value: Any) -> str:
    return " ".join(value.encode("utf-8", "replace").decode().split()) if isinstance(value, str) else ""


def _iso_date(value: Any) -> date | None:
    """The day of an ISO date or time (UTC as written); ``None`` for anything else."""
    try:
        return date.fromisoformat(str(value)[:10]) if value else None
    except ValueError:
        return None
