"""The interface for programs to runs: list them, read one, start one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from anabranch.hub.web.context import context_of
from anabranch.hub.web.runs import LISTED, run_of
from anabranch.hub.web.safety import check_program
from anabranch.lab import LabError, find_run
from anabranch.lab.events import to_jsonable

_MOST_SEED = 999_999_999
_KEYS = ("slug", "scale", "seed", "settings")


def listed(request: Request) -> Response:
    """``GET /api/runs?slug=``: the latest runs, newest first."""
    found = []
    for summary in context_of(request).site.runs.latest(request.query_params.get("slug"), most=LISTED):
        with suppress(LabError):  # removed, or damaged, a moment ago
            found.append({**find_run(summary.id).as_dict(), "folder": summary.id})
    return JSONResponse(to_jsonable(found))


def one(request: Request) -> Response:
    """``GET /api/runs/ID``: a run with all its events."""
    run = run_of(request)
    return JSONResponse(to_jsonable({**run.as_dict(), "folder": run.id, "events": run.events}))


async def start(request: Request) -> Response:
    """``POST /api/runs``: queue a run of a catalogue paper, ``{"slug": ..., "scale": ..., "seed": ..., "settings": {...}}``.

    What is wrong with it is said before anything is made. The answer, 201, gives the addresses of the run.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "Send a JSON object, with content-type: application/json.")
    if not check_program(request.scope):
        raise HTTPException(
            403, "From a browser this needs the page's own token in x-csrf-token, or the login token as bearer."
        )
    asked = _asked(await request.body())
    slug: Any = asked.get("slug")
    scale, seed = asked.get("scale", "smoke"), asked.get("seed", 0)
    for name, value in (("slug", slug), ("scale", scale)):
        if not isinstance(value, str):
            raise HTTPException(400, f"{name}={json.dumps(value)}: expected text")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= _MOST_SEED:
        raise HTTPException(400, f"seed={json.dumps(seed)}: expected a whole number from 0 to {_MOST_SEED}")
    settings = _settings(asked.get("settings", {}))
    context = context_of(request)
    run_id = await run_in_threadpool(context.queue.submit, slug, scale, seed=seed, settings=settings)
    addresses = {"page": f"/runs/{run_id}", "run": f"/api/runs/{run_id}", "events": f"/api/runs/{run_id}/events"}
    return JSONResponse({"id": run_id, **addresses}, 201, headers={"location": addresses["run"]})


def _asked(body: bytes) -> dict[str, Any]:
    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands there twice")
        return found

    try:
        asked = json.loads(body, parse_constant=constant, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"The body is not JSON: {error}") from error
    if not isinstance(asked, dict):
        raise HTTPException(400, "The body is not an object of JSON.")
    if unknown := [name for name in asked if name not in _KEYS]:
        raise HTTPException(400, f"{', '.join(unknown)}: expected {', '.join(_KEYS)}")
    return asked


def _settings(given: Any) -> Mapping[str, Any]:
    """Settings by name; their values are validated by the paper's own types."""
    if not isinstance(given, dict):
        raise HTTPException(400, f"settings={json.dumps(given)[:200]}: expected an object of names and values")
    for name, value in given.items():
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, dict | list) for part in parts):
            raise HTTPException(400, f"settings.{name}: expected a value, or a list of values")
    return given


ROUTES = [
    Route("/api/runs", listed),
    Route("/api/runs", start, methods=["POST"]),
    Route("/api/runs/{run}", one),
]
