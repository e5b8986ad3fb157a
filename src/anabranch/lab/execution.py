"""Runs one paper once: makes the run folder, calls the experiment, writes down how it ended."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from anabranch.lab.code import code_hash
from anabranch.lab.discover import experiment_of, find_paper, module_of
from anabranch.lab.environment import command_line, commit, describe_environment
from anabranch.lab.errors import LabError
from anabranch.lab.events import DISK_FULL, Listener
from anabranch.lab.laboratory import Lab
from anabranch.lab.runs import Run, RunFolder, read_run, remove_leftovers, write_atomically
from anabranch.lab.settings import settings_for
from anabranch.lab.verdicts import judge


class Cancelled(KeyboardInterrupt):
    """The run was asked to stop (SIGTERM)."""


@dataclass(frozen=True)
class Request:
    """What to run. ``settings`` are overrides of the scale's own; ``resumes`` is the id of an earlier run."""

    slug: str
    scale: str = "laptop"
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    fresh: bool = False
    resumes: str | None = None


def validate(request: Request) -> Any:
    """The full settings of ``request``; raises what is wrong with it before anything is made."""
    if request.seed < 0:
        raise LabError(f"seed={request.seed}: expected 0 or more")
    return settings_for(find_paper(request.slug), request.scale, request.settings)


def header_for(request: Request, *, executor: str = "here", shares_machine: bool = False) -> dict[str, Any]:
    """The header of the request's run."""
    paper, settings = find_paper(request.slug), validate(request)
    head, dirty = commit()
    return {
        "slug": paper.slug,
        "title": paper.title,
        "scale": request.scale,
        "seed": request.seed,
        "settings": asdict(settings),
        "overrides": dict(request.settings),
        "device": request.device,
        "fresh": request.fresh,
        "resumes": request.resumes,
        "expected_seconds": paper.seconds.get(request.scale),
        "command": command_line(),
        "executor": executor,
        "shares_machine": shares_machine,
        "commit": head,
        "dirty": dirty,
        "code": code_hash(module_of(paper.slug)),
        "environment": describe_environment(),
    }


def execute(
    request: Request,
    *,
    listener: Listener | None = None,
    root: Path | None = None,
    executor: str = "here",
    shares_machine: bool = False,
) -> Run:
    """Run ``request`` in this process. A failing experiment gives a run in state *failed*; nothing measured is lost.

    Raises:
        LabError: bad input, found before the run folder is made.
        KeyboardInterrupt: the run was cancelled; its folder says so.
    """
    header = header_for(request, executor=executor, shares_machine=shares_machine)
    experiment_of(request.slug)
    remove_leftovers(root=root)
    with RunFolder.create(header, root=root) as folder:
        _run(folder, listener)
        where = folder.folder
    return read_run(where)


def execute_queued(path: Path, *, listener: Listener | None = None) -> Run:
    """Run the queued run in folder ``path`` in this process."""
    with RunFolder.adopt(path) as folder:
        _restate(folder)
        _run(folder, listener)
    return read_run(path)


def _restate(folder: RunFolder) -> None:
    """Write down the code and the machine that really do the run: it may have waited while both changed."""
    head, dirty = commit()
    found = {
        "commit": head,
        "dirty": dirty,
        "code": code_hash(module_of(folder.header["slug"])),
        "environment": describe_environment(),
    }
    folder.restate(found)


def _run(folder: RunFolder, listener: Listener | None) -> None:
    header = folder.header
    if listener is not None:
        folder.log.listen(listener)
    paper = find_paper(header["slug"])
    lab = Lab(
        folder,
        seed=header["seed"],
        device=header["device"],
        fresh=header["fresh"],
        shares_machine=header["shares_machine"],
    )
    begin = time.monotonic()
    try:
        folder.log.write("start", slug=paper.slug, scale=header["scale"], seed=header["seed"], pid=os.getpid())
        settings = settings_for(paper, header["scale"], header["overrides"])
        experiment = experiment_of(paper.slug)
        with _terminable(), _warnings_kept(folder), _imports_not_collected():
            experiment(lab, settings)
        _judge(folder, header["scale"])
        _note_overrun(folder, header.get("expected_seconds"), time.monotonic() - begin)
        _end(folder, "finished")
    except KeyboardInterrupt:
        _end(folder, "cancelled")
        raise
    except Exception as error:
        _end(folder, "failed", error=_describe(error, folder), trace=traceback.format_exc())


@contextmanager
def _imports_not_collected() -> Iterator[None]:
    """Collections of garbage do not look at what was there before: with torch it is a fifth of a second each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _judge(folder: RunFolder, scale: str) -> None:
    run = read_run(folder.folder)
    for verdict in judge(find_paper(run.slug), [run.measures], scale=scale):
        folder.log.write("verdict", claim=verdict.claim, outcome=verdict.outcome, verdict=verdict.as_dict())


def _note_overrun(folder: RunFolder, expected: float | None, taken: float) -> None:
    if expected and taken > 1.5 * expected:
        folder.log.write("warning", text=f"took {taken:.0f} s, more than 1.5 times the {expected:.0f} s it states")


def _end(folder: RunFolder, state: str, error: str | None = None, trace: str | None = None) -> None:
    if trace is not None:
        with suppress(OSError):
            write_atomically(folder.artefacts / "traceback.txt", trace.encode())
    try:
        folder.log.write("end", state=state, error=error)
    except OSError:
        # The disk is full: give the reserve back, so that at least how it ended is written down.
        folder.log.release_reserve()
        folder.log.write("end", state=state, error=error)


def _describe(error: Exception, folder: RunFolder) -> str:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"the disk of {folder.folder.parent} is full; what was measured before is kept"
    text = str(error).strip()
    return text if isinstance(error, LabError) else f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Cancelled

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _warnings_kept(folder: RunFolder) -> Iterator[None]:
    def show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        folder.log.write("warning", text=f"{category.__name__}: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.simplefilter("default", RuntimeWarning)
        warnings.showwarning = show
        yield
