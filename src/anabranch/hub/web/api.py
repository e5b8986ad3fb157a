"""The interface for programs, in the shape of Daily Papers, so that ``huggingface_hub.HfApi(endpoint=...)`` works against it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from anabranch.hub.catalogue import Entry
from anabranch.hub.site import Site
from anabranch.hub.votes import Window, window_of
from anabranch.hub.web.context import context_of
from anabranch.lab.events import to_jsonable
from anabranch.lab.settings import describe_settings

MAX_LIMIT = 100
_WINDOWS: dict[str, Window] = {"date": "day", "week": "week", "month": "month"}


def daily_papers(request: Request) -> Response:
    """``GET /api/daily_papers?p=&limit=&date=&week=&month=&submitter=&sort=publishedAt|trending``."""
    site, query = context_of(request).site, request.query_params
    page, limit = _count(query.get("p", "0"), "p", 0), _count(query.get("limit", "50"), "limit", 1)
    if limit > MAX_LIMIT:
        raise HTTPException(400, f"limit={limit}: expected at most {MAX_LIMIT}")
    given = [(name, query[name]) for name in _WINDOWS if query.get(name)]
    if len(given) > 1:
        raise HTTPException(400, "give one of date, week and month")
    sort = query.get("sort", "publishedAt")
    if sort not in ("publishedAt", "trending"):
        raise HTTPException(400, f"sort={sort!r}: expected publishedAt or trending")
    entries: list[Entry] = site.trending() if sort == "trending" else site.known().entries
    if given:
        (name, text) = given[0]
        try:
            first, end = window_of(_WINDOWS[name], text)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        entries = [e for e in entries if (day := e.listed or e.published) and first <= day < end]
    if query.get("submitter"):
        theirs = site.submitted_by(query["submitter"])
        entries = [e for e in entries if e.id in theirs]
    return JSONResponse(_items(site, entries[page * limit : (page + 1) * limit]))


def search(request: Request) -> Response:
    """``GET /api/papers/search?q=&limit=``."""
    site, query = context_of(request).site, request.query_params
    limit = min(_count(query.get("limit", "20"), "limit", 1), MAX_LIMIT)
    hits = site.search(query.get("q", "")[:500], limit)
    items = _items(site, [hit.entry for hit in hits])
    for item, hit in zip(items, hits, strict=True):
        item["anabranch"] |= {"score": round(hit.score, 6), "sentence": hit.sentence}
    return JSONResponse(items)


def paper(request: Request) -> Response:
    """``GET /api/papers/{arxiv_id}``: the inner object, with what is linked; a slug is understood, too."""
    site, key = context_of(request).site, request.path_params["key"]
    entry = site.entry(key)
    if entry is None:
        raise HTTPException(404, "Paper not found")
    item = _items(site, [entry])[0]
    linked = {"linkedModels": [], "linkedDatasets": [], "linkedSpaces": [], "numTotalModels": 0, "numTotalDatasets": 0}
    extra = item["anabranch"]
    if entry.paper is not None:
        result, stale = site.results().get(entry.paper.slug, (None, False))
        extra |= {"summary": entry.paper.summary, "parts": entry.paper.parts, "result": result, "stale": stale}
        extra["scales"] = {name: describe_settings(s) for name, s in entry.paper.scales.items()}
    return JSONResponse(
        to_jsonable({**item["paper"], **linked, "numComments": item["numComments"], "anabranch": extra})
    )


def all_claims(request: Request) -> Response:
    """``GET /api/claims``: every claim beside its verdict."""
    rows = [
        {
            "slug": row.paper.slug, "claim": row.claim.name, "says": row.claim.says, "published": row.claim.published,
            "threshold": row.claim.threshold, "comparison": row.claim.comparison, "kind": row.claim.kind,
            "outcome": row.outcome, "value": row.verdict.value if row.verdict else None,
            "interval": [row.verdict.low, row.verdict.high] if row.verdict and row.verdict.low is not None else None,
            "same_setting": row.claim.same_setting, "stale": row.stale,
        }
        for row in context_of(request).site.claims()
    ]  # fmt: skip
    return JSONResponse(rows)


def _items(site: Site, entries: list[Entry]) -> list[dict[str, Any]]:
    raw = site.raw([entry.id for entry in entries if entry.id is not None])
    return [
        _item(card.entry, _object(raw.get(card.entry.id or -1)), card.votes, dict(card.counts))
        for card in site.cards(entries)
    ]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _item(entry: Entry, raw: dict[str, Any], votes: int, counts: dict[str, int]) -> dict[str, Any]:
    """An item of the feed. Fields that we know better replace those of the JSON that was imported; the rest of it stays."""
    inner = raw["paper"] if isinstance(raw.get("paper"), dict) else {}
    published, listed = _moment(entry.published), _moment(entry.listed or entry.published)
    summary = entry.abstract or (entry.paper.summary if entry.paper else "")
    key = entry.arxiv or entry.slug or f"entry-{entry.id}"
    known = {str(person.get("name")): person for person in _list(inner.get("authors")) if isinstance(person, dict)}
    authors = [
        known.get(name) or {"_id": f"{key}-{i}", "name": name, "hidden": False} for i, name in enumerate(entry.authors)
    ]
    paper = {
        **inner, "id": key, "title": entry.title, "summary": summary, "authors": authors,
        "publishedAt": published, "submittedOnDailyAt": listed, "upvotes": _whole(inner.get("upvotes")) + votes,
    }  # fmt: skip
    if entry.paper is not None:
        paper |= {"ai_summary": entry.paper.summary, "projectPage": f"/papers/{entry.paper.slug}"}
        if entry.paper.repository:
            paper["githubRepo"] = f"https://github.com/{entry.paper.repository}"
    nobody = {
        "_id": "anabranch",
        "fullname": "anabranch",
        "name": "anabranch",
        "type": "user",
        "isPro": False,
        "isHf": False,
    }
    return {
        "paper": paper, "publishedAt": published, "title": entry.title, "summary": summary,
        "thumbnail": raw.get("thumbnail") or "", "numComments": entry.page_count or 0,
        "submittedBy": raw.get("submittedBy") or nobody, "isAuthorParticipating": bool(raw.get("isAuthorParticipating")),
        "anabranch": {"slug": entry.slug, "runnable": bool(entry.paper and entry.paper.runnable), "verdicts": counts},
    }  # fmt: skip


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _moment(day: Any) -> str | None:
    return datetime.combine(day, time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z") if day else None


def _count(text: str, name: str, least: int) -> int:
    if not text.isdigit() or int(text) < least:
        raise HTTPException(400, f"{name}={text!r}: expected a whole number of at least {least}")
    return int(text)


ROUTES = [
    Route("/api/daily_papers", daily_papers),
    Route("/api/papers/search", search),
    Route("/api/papers/{key:path}", paper),
    Route("/api/claims", all_claims),
]
