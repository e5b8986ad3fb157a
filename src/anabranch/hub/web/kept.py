"""Pages that are the same for everybody are made once for each state of what they show."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from anabranch.hub.site import Version
from anabranch.hub.web.context import context_of

Key = tuple[str, bytes, Version, tuple[int, int] | None]  # path, query, state of the catalogue, state of the trends
_KEPT, _CLOCK_S = 200, 30


@dataclass(frozen=True)
class Kept:
    """The bytes of a page and their name."""

    body: bytes
    etag: str


def kept(*, trend: bool = False) -> Callable[[Callable[[Request], Response]], Callable[[Request], Awaitable[Response]]]:
    """Keeps the answers of a page with status 200 until the catalogue, a vote or a committed result changes.

    The state is asked for at every request, so a change shows in the next answer. A browser that has the page already is
    told so (304). Answers to ``?q=`` are not kept.

    Args:
        trend: the page also goes by runs that have ended and by the clock, in steps of 30 s.
    """

    def decorator(page: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        @wraps(page)
        async def handler(request: Request) -> Response:
            if "q" in request.query_params:
                return await run_in_threadpool(page, request)
            context = context_of(request)
            trends = None
            if trend:
                trends = (await run_in_threadpool(context.site.runs.edition), int(time.time() / _CLOCK_S))
            key = (request.scope["path"], request.scope["query_string"], context.site.version, trends)
            found = context.pages.get(key)
            if found is None:
                found = await _made(context.pages, context.making, key, page, request)
            if isinstance(found, Response):
                return found
            headers = {"etag": found.etag, "cache-control": "private, no-cache"}
            if found.etag in request.headers.get("if-none-match", ""):
                return Response(status_code=304, headers=headers)
            return HTMLResponse(found.body, headers=headers)

        return handler

    return decorator


async def _made(
    pages: dict[Key, Kept],
    making: dict[Key, asyncio.Future[Kept | Response]],
    key: Key,
    page: Callable[[Request], Response],
    request: Request,
) -> Kept | Response:
    """The page, made by the first who asks; others wait for it. What is no page (a redirect, an error) is not kept."""
    if key in making:
        return await asyncio.shield(making[key])
    task = making[key] = asyncio.ensure_future(_make(page, request))
    task.add_done_callback(lambda _: making.pop(key, None))
    found = await asyncio.shield(task)
    if isinstance(found, Kept):
        if len(pages) >= _KEPT or any(other[2] != key[2] for other in pages):
            pages.clear()  # pages of an earlier state are never asked for again
        pages[key] = found
    return found


async def _make(page: Callable[[Request], Response], request: Request) -> Kept | Response:
    # What one reader alone may see is taken away, so that a page that shows it fails and is not kept for others.
    of_all = {key: value for key, value in request.scope.items() if key not in ("csrf", "session_id", "voter")}
    answer = await run_in_threadpool(page, Request(of_all))
    if answer.status_code != 200:
        return answer
    body = bytes(answer.body)
    return Kept(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
