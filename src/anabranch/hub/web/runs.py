"""Pages of runs: start one, watch it, cancel it, start it again, compare two."""

from __future__ import annotations

from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from anabranch.hub.run_index import RunIndex
from anabranch.hub.run_queue import PAGE
from anabranch.hub.web.context import context_of
from anabranch.hub.web.pages import checked_form, is_count
from anabranch.lab import LabError, Run, find_run
from anabranch.lab.compare import compare_runs
from anabranch.lab.discover import find_paper
from anabranch.lab.report import claims_of_run, curve_of, render_report, reproduce_command

_SHOWN = {
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".csv": "text/csv",
    ".txt": "text/plain",
    ".json": "application/json",
}
_LOG_TAIL_BYTES = 20_000
LISTED = 100


def index(request: Request) -> Response:
    index = context_of(request).site.runs
    runs, active = index.latest(most=LISTED), len(index.active())
    return context_of(request).render(request, "runs.html.j2", runs=runs, active=active, title="Runs")


async def start(request: Request) -> Response:
    """Queue a run of a catalogue paper; settings come as ``set.NAME`` fields and are validated before anything is made."""
    context, form = context_of(request), await checked_form(request)
    seed = form.get("seed", "0")
    if not is_count(seed):
        raise HTTPException(400, f"seed={seed!r}: expected a whole number from 0 to 999999999")
    settings = {name.removeprefix("set."): value for name, value in form.items() if name.startswith("set.") and value}
    run_id = await run_in_threadpool(
        context.queue.submit, form.get("slug", ""), form.get("scale", "smoke"), seed=int(seed), settings=settings
    )
    return RedirectResponse(f"/runs/{run_id}", 303)


async def cancel(request: Request) -> Response:
    context = context_of(request)
    await checked_form(request)
    await run_in_threadpool(context.queue.cancel, run_of(request).id)
    return RedirectResponse(f"/runs/{request.path_params['run']}", 303)


async def again(request: Request) -> Response:
    context = context_of(request)
    await checked_form(request)
    run_id = await run_in_threadpool(context.queue.again, run_of(request).id)
    return RedirectResponse(f"/runs/{run_id}", 303)


def show(request: Request) -> Response:
    """A run as it stands; the script goes on from its last line."""
    context, run = context_of(request), run_of(request)
    paper = find_paper(run.slug)
    index = context.site.runs
    expected = index.expected_seconds(run.slug, run.scale)
    others = [other for other in index.latest(run.slug, most=9, finished=True) if other.id != run.id][:8]
    return context.render(
        request, "run.html.j2", run=run, paper=paper, expected=expected, claims=claims_of_run(paper, run),
        curves=[curve_of(name, points) for name, points in run.series.items()], command=reproduce_command(run),
        log=_log_tail(run.folder), others=others,
        ours=run.header.get("executor") == PAGE, title=f"{run.slug} - run", artefacts=_artefacts(run),
        position=_position(run, index),
    )  # fmt: skip


def report(request: Request) -> Response:
    """The run's report, which carries its own styles."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return Response(
        render_report(run_of(request)),
        media_type="text/html; charset=utf-8",
        headers={"content-security-policy": policy},
    )


def artefact(request: Request) -> Response:
    """A file of the run's ``artefacts`` folder, and of no other."""
    run = run_of(request)
    root = (run.folder / "artefacts").resolve()
    try:
        path = (root / request.path_params["name"]).resolve()
    except ValueError:  # no name of a file: it holds a null
        path = root
    if not path.is_relative_to(root) or not path.is_file():
        raise HTTPException(404, "That file is not in the run's folder.")
    kind = _SHOWN.get(path.suffix)
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}
    if kind is None:
        headers["content-disposition"] = "attachment"
    return FileResponse(path, media_type=kind or "application/octet-stream", headers=headers)


async def events(request: Request) -> Response:
    """The run's log as server-sent events, from ``Last-Event-ID`` or ``?after=`` on."""
    run = await run_in_threadpool(run_of, request)
    given = request.headers.get("last-event-id") or request.query_params.get("after", "-1")
    try:
        after = int(given)
        if after < -1:
            raise ValueError
    except ValueError:
        raise HTTPException(400, f"after={given!r}: expected the number of an event, from -1 on") from None
    return StreamingResponse(
        context_of(request).tails.follow(run.folder, after),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


def log(request: Request) -> Response:
    """The end of what the run has printed, for a page that watches it."""
    return Response(_log_tail(run_of(request).folder), media_type="text/plain; charset=utf-8")


def compare(request: Request) -> Response:
    """``/compare?runs=a,b``: two runs side by side."""
    names = [name for given in request.query_params.getlist("runs") for name in given.split(",") if name]
    if len(names) != 2:
        raise HTTPException(400, f"Two runs are compared, and {len(names)} were chosen: tick two of the list of runs.")
    first, second = (_found(name) for name in names)
    return context_of(request).render(request, "compare.html.j2", found=compare_runs(first, second), title="Two runs")


def run_of(request: Request) -> Run:
    return _found(request.path_params["run"])


def _found(name: str) -> Run:
    if "/" in name or "\\" in name or name.startswith("."):
        raise HTTPException(404, "There is no such run.")
    try:
        return find_run(name)
    except LabError as error:
        raise HTTPException(404, f"There is no run {name!r}.") from error


def _position(run: Run, index: RunIndex) -> int:
    """How many runs of the page are before a queued one."""
    if run.state != "queued":
        return 0
    before = [find_run(other.id) for other in index.active() if other.id < run.id]
    return sum(other.header.get("executor") == PAGE for other in before)


def _artefacts(run: Run) -> list[tuple[str, int]]:
    root = run.folder / "artefacts"
    return sorted((str(p.relative_to(root)), p.stat().st_size) for p in root.rglob("*") if p.is_file())


def _log_tail(folder: Path) -> str:
    path = folder / "log.txt"
    if not path.is_file():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
        return log.read().decode("utf-8", "replace")


ROUTES = [
    Route("/runs", index),
    Route("/runs", start, methods=["POST"]),
    Route("/runs/{run}", show),
    Route("/runs/{run}/cancel", cancel, methods=["POST"]),
    Route("/runs/{run}/again", again, methods=["POST"]),
    Route("/runs/{run}/report", report),
    Route("/runs/{run}/log", log),
    Route("/runs/{run}/artefacts/{name:path}", artefact),
    Route("/compare", compare),
    Route("/api/runs/{run}/events", events),
]
