"""Puts the page together: routes, templates, the guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from anabranch.hub.config import HubConfig, load_config
from anabranch.hub.digest import Digest
from anabranch.hub.import_schedule import ImportSchedule
from anabranch.hub.outbox import Outbox
from anabranch.hub.postman import Postman
from anabranch.hub.run_queue import RunQueue
from anabranch.hub.signing import load_secret
from anabranch.hub.site import Site
from anabranch.hub.subscriptions import Subscriptions
from anabranch.hub.web import api, api_runs, mails, pages, runs
from anabranch.hub.web.context import Context, context_of
from anabranch.hub.web.safety import HEADERS, LOOPBACK, Access, BodyTooLarge, BodyTooSlow, Guard
from anabranch.lab import LabError
from anabranch.lab.places import home


def create_app(
    site: Site,
    queue: RunQueue,
    *,
    token: str | None = None,
    hosts: frozenset[str] = LOOPBACK,
    access: Access = "login",
    config: HubConfig | None = None,
    imports: ImportSchedule | None = None,
) -> Starlette:
    """The application.

    Args:
        site: what is shown.
        queue: does the runs; it is started with the application and stopped with it.
        token: asked for once in every browser; None where only this machine can reach the page.
        hosts: names under which it answers.
        access: whether all need the token, or only those who start runs.
        config: addresses and mail; default is ``hub.toml``.
        imports: brings Daily Papers in while the application is up; None brings nothing.
    """
    secret = load_secret(home() / "hub.secret")
    digest = Digest(site, Subscriptions(site.db, secret), Outbox(site.db), config or load_config())
    context = Context(site, queue, secret, digest, Postman(digest), token=token, imports=imports)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        queue.start()
        context.post.start()
        if imports is not None:
            imports.start()
        yield
        if imports is not None:
            imports.stop()
        context.post.stop()
        queue.stop()

    app = Starlette(
        routes=[
            *pages.ROUTES,
            *runs.ROUTES,
            *mails.ROUTES,
            *api_runs.ROUTES,
            *api.ROUTES,
            *context.render.static.routes(),
        ],
        middleware=[Middleware(Guard, secret=context.secret, token=token, hosts=hosts, access=access)],
        exception_handlers={
            HTTPException: _http_error,
            LabError: _lab_error,
            BodyTooLarge: _too_large,
            BodyTooSlow: _too_slow,
            Exception: _bug,
        },
        lifespan=lifespan,
    )
    app.state.context = context
    return app


def _wants_json(request: Request) -> bool:
    return str(request.scope["path"]).startswith("/api/") or "application/json" in request.headers.get("accept", "")


def _error(request: Request, status: int, title: str, text: str) -> Response:
    if _wants_json(request):
        return JSONResponse({"error": text}, status)
    return context_of(request).render(request, "error.html.j2", status=status, title=title, text=text)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    titles = {404: "Not here", 405: "Not like this", 403: "Not allowed", 400: "Not understood", 409: "Not now"}
    text = error.detail if error.detail != "Not Found" else "Nothing is kept under that address."
    return _error(request, error.status_code, titles.get(error.status_code, "It did not work"), text)


async def _lab_error(request: Request, error: Exception) -> Response:
    return _error(request, 400, "Not understood", str(error))


async def _too_large(request: Request, error: Exception) -> Response:
    return PlainTextResponse("the body is too large", 413)


async def _too_slow(request: Request, error: Exception) -> Response:
    return PlainTextResponse("the body did not come in time", 408, {"connection": "close"})


async def _bug(request: Request, error: Exception) -> Response:
    text = f"{type(error).__name__}: an error of ours; the server's log says more."
    answer = _error(request, 500, "It did not work", text)
    answer.headers.update(HEADERS)  # it is made outside the guard
    return answer
