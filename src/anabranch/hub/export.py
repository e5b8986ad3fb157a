"""The whole catalogue as open JSON, CSV or BibTeX, readable without any server or program of ours."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from anabranch.hub.catalogue import Catalogue, Entry
from anabranch.lab.errors import LabError
from anabranch.lab.events import to_jsonable
from anabranch.lab.results import Result, is_stale, load_result
from anabranch.lab.runs import write_atomically

Format = Literal["json", "csv", "bibtex"]
FORMATS: tuple[Format, ...] = ("json", "csv", "bibtex")
VERSION = 1
_CSV = (
    "slug",
    "arxiv",
    "title",
    "published",
    "listed",
    "authors",
    "n_authors",
    "url",
    "source",
    "votes",
    "holds",
    "claims",
)


def records(entries: Iterable[Entry], votes: Mapping[int, int] | None = None) -> list[dict[str, Any]]:
    """A JSON object for each entry: facts, abstract where one is kept, our claims, and the committed result.

    Args:
        entries: what is exported.
        votes: by the entry's id.
    """
    return [_record(entry, (votes or {}).get(entry.id or -1, 0)) for entry in entries]


def _record(entry: Entry, votes: int) -> dict[str, Any]:
    ours: dict[str, Any] | None = None
    if entry.paper is not None:
        paper = entry.paper
        result = load_result(paper.slug)
        ours = {
            "summary": paper.summary, "package": paper.package, "runnable": paper.runnable, "parts": paper.parts,
            "repository": paper.repository, "claims": [_claim(claim, result) for claim in paper.claims],
            "result": result, "stale": is_stale(result) if result else None,
        }  # fmt: skip
    record = {
        "slug": entry.slug, "arxiv": entry.arxiv, "title": entry.title, "authors": entry.authors,
        "n_authors": entry.n_authors, "published": entry.published, "listed": entry.listed, "url": entry.url,
        "abstract": entry.abstract, "source": entry.source, "page_count": entry.page_count, "votes": votes,
        "raw": json.loads(entry.raw) if entry.raw else None, "anabranch": ours,
    }  # fmt: skip
    jsonable: dict[str, Any] = to_jsonable(record)
    return jsonable


def _claim(claim: Any, result: Result | None) -> dict[str, Any]:
    measured = next((c for c in (result or {}).get("claims", []) if c["name"] == claim.name), None)
    return {
        "name": claim.name, "says": claim.says, "published": claim.published, "where": claim.where,
        "comparison": claim.comparison, "threshold": claim.threshold, "kind": claim.kind, "measured": measured,
    }  # fmt: skip


def render(found: list[dict[str, Any]], form: Format) -> str:
    """``found`` as text in one of :data:`FORMATS`. JSON loses nothing; the others leave out what they have no place for."""
    if form == "json":
        return json.dumps({"format": VERSION, "papers": found}, ensure_ascii=False, indent=1) + "\n"
    if form == "csv":
        return _csv(found)
    return _bibtex(found)


def export(catalogue: Catalogue, form: Format = "json", *, path: Path | None = None) -> str:
    """The catalogue with its votes as text, newest paper first; also written to ``path``, whole or not at all.

    Time and memory grow with the length of all texts.

    Raises:
        LabError: ``path`` cannot be written.
    """
    text = render(records(catalogue.entries(raw=True), catalogue.votes()), form)
    if path is not None:
        try:
            write_atomically(path, text.encode("utf-8", "replace"))
        except OSError as error:
            raise LabError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error
    return text


def _csv(found: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(_CSV)
    for paper in found:
        claims = (paper["anabranch"] or {}).get("claims", [])
        outcomes = [claim["measured"]["verdict"] for claim in claims if claim["measured"]]
        row = {
            **paper, "authors": "; ".join(paper["authors"]), "holds": outcomes.count("holds"), "claims": len(claims)
        }  # fmt: skip
        table.writerow([_cell(row[name]) for name in _CSV])
    return out.getvalue()


def _cell(value: Any) -> str:
    """A leading sign would make a spreadsheet take a title for a formula."""
    text = "" if value is None else str(value)
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _bibtex(found: list[dict[str, Any]]) -> str:
    taken: set[str] = set()
    return "\n".join(_bibtex_entry(paper, taken) for paper in found)


def _bibtex_entry(paper: dict[str, Any], taken: set[str]) -> str:
    key = base = (
        paper["slug"] or paper["arxiv"] or re.sub("[^a-z0-9]+", "-", paper["title"].lower()).strip("-") or "paper"
    )
    n = 1
    while key in taken:
        n += 1
        key = f"{base}-{n}"
    taken.add(key)
    authors = [*paper["authors"]]
    if (paper["n_authors"] or 0) > len(authors):
        authors.append("others")
    fields = {
        "title": f"{{{_tex(paper['title'])}}}",
        "author": " and ".join(map(_tex, authors)),
        "year": (paper["published"] or "")[:4],
        "eprint": paper["arxiv"],
        "archiveprefix": "arXiv" if paper["arxiv"] else None,
        "url": paper["url"],
    }
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@misc{{{key},", *lines, "}", ""])


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in " ".join(text.split()))
