"""Pages that are read: feeds, search, a paper, all claims, login."""

from __future__ import annotations

from datetime import timedelta
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from anabranch.hub.catalogue import Entry
from anabranch.hub.votes import Window, name_of, window_of
from anabranch.hub.web.context import context_of
from anabranch.hub.web.kept import kept
from anabranch.hub.web.safety import check_form
from anabranch.lab import find_run
from anabranch.lab.settings import describe_settings

PAGE_SIZE = 30
WINDOWS: dict[str, Window] = {"date": "day", "week": "week", "month": "month"}


def home(request: Request) -> Response:
    """Papers that run here, with what was measured."""
    site = context_of(request).site
    return _feed(request, site.runs_here(), "Papers that run", kind="runs")


def everything(request: Request) -> Response:
    """All entries, or the answer to ``?q=``."""
    context, query = context_of(request), request.query_params.get("q", "").strip()[:500]
    if not query:
        return _feed(request, context.site.known().entries, "All papers", kind="all")
    hits = context.site.search(query, PAGE_SIZE)
    cards = context.site.cards([hit.entry for hit in hits], [hit.sentence for hit in hits])
    return context.render(
        request,
        "search.html.j2",
        query=query,
        cards=cards,
        ranker=context.site.ranker_name(),
        progress=context.site.builder.progress,
        encoder=context.site.builder.has_encoder,
        fault=context.site.builder.fault,
        title=f"{query} - search",
    )


def trending(request: Request) -> Response:
    return _feed(request, context_of(request).site.trending(), "Trending", kind="trending")


def window(request: Request) -> Response:
    """``/papers/date/2026-11-28``, ``/papers/week/2026-W48``, ``/papers/month/2026-11``; without, the newest."""
    site = context_of(request).site
    word = str(request.scope["path"]).split("/")[2]
    kind: Window = WINDOWS[word]
    text = request.path_params.get("text")
    if text is None:
        return RedirectResponse(f"/papers/{word}/{site.latest_window(kind)}", 307)
    try:
        first, end = window_of(kind, text)
    except ValueError as error:
        raise HTTPException(404, str(error)) from error
    around = {"before": name_of(kind, first - timedelta(days=1)), "after": name_of(kind, end), "kind": word}
    return _feed(request, site.window(kind, text), f"{kind.capitalize()} {text}", kind=kind, around=around)


def paper(request: Request) -> Response:
    """One entry: ours with claims and figures, an imported one with its abstract."""
    context, entry = context_of(request), _entry(request)
    card = context.site.cards([entry])[0]
    similar = context.site.cards(context.site.similar(entry))
    voted = context.site.votes.has(entry.id or -1, request.scope["voter"])
    shared: dict[str, Any] = {"entry": entry, "card": card, "similar": similar, "voted": voted, "title": entry.title}
    if entry.paper is None:
        return context.render(request, "entry.html.j2", **shared)
    index = context.site.runs
    finished = index.latest(entry.paper.slug, finished=True)
    scales = [
        {
            "name": scale,
            "seconds": index.expected_seconds(entry.paper.slug, scale),
            "settings": describe_settings(settings),
        }
        for scale, settings in entry.paper.scales.items()
    ]
    result, stale = context.site.results().get(entry.paper.slug, (None, False))
    drawn = next((run.id for run in finished if run.figures), None)
    return context.render(
        request, "paper.html.j2", paper=entry.paper, claims=context.site.claims(entry.paper), result=result, stale=stale,
        fault=context.site.committed.faults().get(entry.paper.slug, ""),
        runs=index.latest(entry.paper.slug, most=8), scales=scales, drawn=find_run(drawn) if drawn else None, **shared,
    )  # fmt: skip


def markdown(request: Request) -> Response:
    """A paper as text, for programs and their readers."""
    context, entry = context_of(request), _entry(request)
    text = context.render.text(
        request, "paper.md.j2", entry=entry, claims=context.site.claims(entry.paper) if entry.paper else []
    )
    return Response(text, media_type="text/markdown; charset=utf-8")


async def vote(request: Request) -> Response:
    await checked_form(request)
    entry = await run_in_threadpool(_entry, request)
    await run_in_threadpool(context_of(request).site.votes.toggle, entry.id or -1, request.scope["voter"])
    return RedirectResponse(f"/papers/{request.path_params['key']}", 303)


def claims(request: Request) -> Response:
    """All claims of all papers, sortable by ``?sort=``."""
    context = context_of(request)
    keys: dict[str, Any] = {
        "paper": lambda row: row.paper.title.lower(),
        "verdict": lambda row: ("holds", "undecided", "falls short", "not checked").index(row.outcome),
        "kind": lambda row: row.claim.kind,
        "origin": lambda row: row.claim.origin,
    }
    sort = request.query_params.get("sort", "verdict")
    if sort not in keys:
        raise HTTPException(400, f"sort={sort!r}: expected one of {', '.join(keys)}")
    rows = sorted(context.site.claims(), key=keys[sort])
    counts = {
        name: sum(row.outcome == name for row in rows) for name in ("holds", "undecided", "falls short", "not checked")
    }
    return context.render(
        request, "claims.html.j2", rows=rows, sort=sort, sorts=list(keys), counts=counts, title="All claims"
    )


async def login(request: Request) -> Response:
    """Where the token is typed in, when the page is not on the loopback."""
    context = context_of(request)
    if request.method == "POST":
        form = await checked_form(request)
        if request.scope["guard"].is_token(form.get("token", "")):
            answer: Response = request.scope["guard"].log_in()
            return answer
    wrong = request.method == "POST"
    return context.render(request, "login.html.j2", title="Log in", wrong=wrong, status=403 if wrong else 200)


def health(request: Request) -> Response:
    return Response("ok", media_type="text/plain")


async def checked_form(request: Request) -> dict[str, str]:
    """The fields of a form that our own page sent.

    Raises:
        HTTPException: it carries no token, or another browser's.
    """
    try:
        fields = dict(parse_qsl((await request.body()).decode(), keep_blank_values=True, max_num_fields=40))
    except ValueError as error:
        raise HTTPException(400, "The form could not be read.") from error
    if not check_form(request.scope, fields.pop("csrf", "")):
        raise HTTPException(403, "This form was made for another browser, or has grown old: load the page again.")
    return fields


def is_count(text: str) -> bool:
    """Whether a parameter is a number of at most nine plain digits."""
    return text.isascii() and text.isdigit() and len(text) <= 9


def _entry(request: Request) -> Entry:
    entry: Entry | None = context_of(request).site.entry(request.path_params["key"])
    if entry is None:
        raise HTTPException(404, f"There is no paper {request.path_params['key']!r} in the catalogue.")
    return entry


def _feed(
    request: Request, entries: list[Entry], title: str, *, kind: str, around: dict[str, str] | None = None
) -> Response:
    context = context_of(request)
    dated = kind in ("all", *WINDOWS.values())
    imported = context.imports.state() if context.imports is not None and dated else None
    number = request.query_params.get("page", "1")
    if not is_count(number) or int(number) < 1:
        raise HTTPException(400, f"page={number!r}: expected a number from 1 on")
    begin = (int(number) - 1) * PAGE_SIZE
    shown = context.site.cards(list(islice(entries, begin, begin + PAGE_SIZE)))
    return context.render(
        request, "feed.html.j2", cards=shown, title=title, kind=kind, around=around, imported=imported,
        number=int(number), total=len(entries), pages=-(-len(entries) // PAGE_SIZE), more=begin + PAGE_SIZE < len(entries),
    )  # fmt: skip


ROUTES = [
    Route("/", kept()(home)),
    Route("/papers", kept()(everything)),
    Route("/papers/trending", kept(trend=True)(trending)),
    Route("/papers/{key}.md", markdown),
    Route("/papers/{key}/vote", vote, methods=["POST"]),
    *(
        Route(path, kept()(window), name=word)
        for word in WINDOWS
        for path in (f"/papers/{word}", f"/papers/{word}/{{text}}")
    ),
    Route("/papers/{key}", paper),
    Route("/claims", kept()(claims)),
    Route("/login", login, methods=["GET", "POST"]),
    Route("/health", health),
]
