"""A run is a folder, and the folder is the only truth.

``runs/<id>/`` holds ``run.json`` (the header, fixed once the run begins), ``events.jsonl`` (append-only), ``artefacts/`` and
``lock``, which the running process holds. The state of a run is a fold over these; nothing else is stored. A folder appears
under its name only when it is complete (it is made beside and renamed), so a crash at any moment leaves every folder
readable.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from anabranch.lab.errors import LabError, UnknownName
from anabranch.lab.events import Event, EventLog, read_events, to_jsonable
from anabranch.lab.locks import is_locked, release_lock, take_lock
from anabranch.lab.places import ensure, runs_folder

State = Literal["queued", "running", "finished", "failed", "cancelled", "interrupted"]
FORMAT = 1
_ID = re.compile(r"\d+-\d+-\d+-[\w.-]+-[0-9a-f]+")
_NEW = ".new-"
_LAST_LINE_BYTES = 65_536


class DamagedRun(LabError):
    """A run folder whose header or log cannot be read."""


@dataclass(frozen=True)
class Stage:
    name: str
    done: float
    total: float | None
    metrics: dict[str, Any]
    seconds: float | None  # None while it is going on


@dataclass(frozen=True)
class Measure:
    """A measured scalar; ``samples`` are timed pairs where there are any."""

    name: str
    value: float
    unit: str = ""
    scale: Literal["linear", "log"] = "linear"
    samples: tuple[float, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What a run folder says: header plus events. Derived views are computed once, on first use."""

    folder: Path
    header: dict[str, Any]
    events: tuple[Event, ...]
    locked: bool

    @property
    def id(self) -> str:
        return str(self.header["id"])

    @property
    def slug(self) -> str:
        return str(self.header["slug"])

    @property
    def scale(self) -> str:
        return str(self.header["scale"])

    @property
    def seed(self) -> int:
        return int(self.header["seed"])

    @cached_property
    def end(self) -> Event | None:
        return next((e for e in reversed(self.events) if e["type"] == "end"), None)

    @cached_property
    def state(self) -> State:
        if self.end is not None:
            state: State = self.end["state"]
            return state
        if self.locked:
            return "running"
        started = any(e["type"] == "start" for e in self.events)
        return "queued" if self.header.get("queued") and not started else "interrupted"

    @property
    def error(self) -> str | None:
        return None if self.end is None else self.end.get("error")

    @property
    def elapsed_s(self) -> float:
        return float(self.events[-1]["at_s"]) if self.events else 0.0

    @cached_property
    def stages(self) -> list[Stage]:
        stages: dict[str, Stage] = {}
        for e in self.events:
            if e["type"] == "stage":
                stages[e["name"]] = Stage(
                    e["name"], e.get("done", 0), e.get("total"), e.get("metrics") or {}, e.get("seconds")
                )
        return list(stages.values())

    @cached_property
    def measures(self) -> dict[str, Measure]:
        return {
            e["name"]: Measure(
                e["name"], e["value"], e.get("unit", ""), e.get("scale", "linear"), tuple(e.get("samples") or ()),
                e.get("details") or {},
            )
            for e in self._of("measure")
        }  # fmt: skip

    @cached_property
    def series(self) -> dict[str, list[Event]]:
        series: dict[str, list[Event]] = {}
        for e in self._of("series"):
            series.setdefault(e["name"], []).append(e)
        return series

    @cached_property
    def tables(self) -> dict[str, Event]:
        return {e["name"]: e for e in self._of("table")}

    @cached_property
    def figures(self) -> dict[str, Event]:
        return {e["name"]: e for e in self._of("figure")}

    @cached_property
    def verdicts(self) -> dict[str, Event]:
        return {e["claim"]: e for e in self._of("verdict")}

    @cached_property
    def warnings(self) -> list[str]:
        return [str(e["text"]) for e in self._of("warning")]

    def as_dict(self) -> dict[str, Any]:
        """The run in short, for a script."""
        return {
            "id": self.id,
            "slug": self.slug,
            "scale": self.scale,
            "seed": self.seed,
            "state": self.state,
            "seconds": self.elapsed_s,
            "folder": str(self.folder),
            "error": self.error,
            "measures": {measure.name: measure.value for measure in self.measures.values()},
            "verdicts": {name: event["outcome"] for name, event in self.verdicts.items()},
        }

    def _of(self, type_: str) -> Iterator[Event]:
        return (e for e in self.events if e["type"] == type_)


class RunFolder:
    """The writing side of a run: holds the lock, appends events, keeps artefacts. Use as a context manager."""

    def __init__(self, folder: Path, header: dict[str, Any], lock: int) -> None:
        self.folder, self.header = folder, header
        self._lock = lock
        self.log = EventLog(folder)

    @classmethod
    def create(cls, header: dict[str, Any], *, root: Path | None = None, queued: bool = False) -> RunFolder:
        """A new run folder, locked by this process. With ``queued`` it waits in state *queued* once it is closed.

        Raises:
            LabError: the data folder cannot be written.
        """
        root = ensure(root or runs_folder(), "runs")
        now = datetime.now(UTC)
        stamp = now.strftime("%Y%m%d-%H%M%S-") + f"{now.microsecond:06d}"
        run_id = f"{stamp}-{header['slug']}-{secrets.token_hex(2)}"
        header = to_jsonable(
            {
                "format": FORMAT,
                "id": run_id,
                **header,
                "created": now.isoformat(timespec="milliseconds"),
                "queued": queued,
            }
        )
        making = root / f"{_NEW}{run_id}"
        making.mkdir()
        lock = take_lock(making / "lock")
        (making / "artefacts").mkdir()
        write_atomically(making / "run.json", json.dumps(header, indent=1, ensure_ascii=False).encode())
        folder = root / run_id
        making.rename(folder)
        return cls(folder, header, lock)

    @classmethod
    def adopt(cls, folder: Path) -> RunFolder:
        """Take a queued run to run it in this process.

        Raises:
            LabError: another process has it, or it has been started before.
        """
        try:
            lock = take_lock(folder / "lock", wait_s=1.0)
        except BlockingIOError as error:
            raise LabError(f"run {folder.name} is being run by another process") from error
        run = read_run(folder)
        if any(e["type"] == "start" for e in run.events):
            release_lock(lock)
            raise LabError(f"run {folder.name} was started before; start a new one with --resume {folder.name}")
        return cls(folder, run.header, lock)

    def restate(self, fields: dict[str, Any]) -> None:
        """Change the header of a run that has not begun."""
        changed = to_jsonable({**self.header, **fields})
        if changed != self.header:
            self.header = changed
            content = json.dumps(changed, indent=1, ensure_ascii=False).encode()
            write_atomically(self.folder / "run.json", content)

    @property
    def artefacts(self) -> Path:
        return self.folder / "artefacts"

    def close(self) -> None:
        self.log.close()
        if self._lock >= 0:
            release_lock(self._lock)
            self._lock = -1

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_atomically(path: Path, content: bytes) -> None:
    """``content`` in ``path``, whole or not at all: written beside it, flushed to the disk, renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_run(folder: Path) -> Run:
    """The run in ``folder``.

    Raises:
        DamagedRun: its header or its log cannot be read; the message names the file.
    """
    # The lock first: a run that ends between the two reads then shows its end line.
    locked = is_locked(folder)
    try:
        header = json.loads((folder / "run.json").read_bytes())
        if not isinstance(header, dict) or not {"id", "slug", "scale", "seed"} <= header.keys():
            raise ValueError("keys are missing")
    except (OSError, ValueError) as error:
        raise DamagedRun(f"{folder / 'run.json'} cannot be read: {error}") from error
    try:
        events = read_events(folder / "events.jsonl")
    except (OSError, LabError) as error:
        raise DamagedRun(str(error)) from error
    return Run(folder, header, tuple(events), locked)


def list_runs(slug: str | None = None, *, root: Path | None = None) -> list[Run]:
    """All runs, oldest first; a damaged folder is skipped with a warning. Cost: one read of every log."""
    root = root or runs_folder()
    runs = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        if slug is not None and not re.fullmatch(rf"\d+-\d+-\d+-{re.escape(slug)}-[0-9a-f]+", folder.name):
            continue
        try:
            runs.append(read_run(folder))
        except DamagedRun as error:
            warnings.warn(f"run folder skipped: {error}", stacklevel=2)
    return runs


def find_run(name: str, *, root: Path | None = None) -> Run:
    """A run by id, unique part of an id, path, ``latest``, or slug (its latest run).

    Raises:
        UnknownName: there is none. LabError: several match.
    """
    root = root or runs_folder()
    if Path(name).is_dir() and (Path(name) / "run.json").exists():
        return read_run(Path(name))
    if _ID.fullmatch(name) and (root / name / "run.json").exists():
        return read_run(root / name)
    folders = sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")) if root.is_dir() else []
    if not folders:
        raise LabError("there are no runs yet; `anabranch run SLUG` makes one")
    if name == "latest":
        return read_run(folders[-1])
    of_slug = [f for f in folders if re.fullmatch(rf"\d+-\d+-\d+-{re.escape(name)}-[0-9a-f]+", f.name)]
    if of_slug:
        return read_run(of_slug[-1])
    matching = [f for f in folders if name and name in f.name]
    if len(matching) == 1:
        return read_run(matching[0])
    if matching:
        raise LabError(f"run {name!r} matches {len(matching)} runs, the latest being {matching[-1].name}")
    raise UnknownName("run", name, [f.name for f in folders[-50:]], "`anabranch runs` lists them")


def active_runs(*, root: Path | None = None) -> list[str]:
    """Ids of the runs that some process is running now (by their locks: no log is read)."""
    root = root or runs_folder()
    if not root.is_dir():
        return []
    return [f.name for f in sorted(root.iterdir()) if not f.name.startswith(".") and is_locked(f)]


def has_ended(folder: Path) -> bool:
    """Whether the log's last line says so; nothing before it is read."""
    try:
        with (folder / "events.jsonl").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_LINE_BYTES))
            lines = log.read().split(b"\n")
        return lines[-1] == b"" and json.loads(lines[-2])["type"] == "end"
    except (OSError, ValueError, LookupError, TypeError):
        return False


def remove_leftovers(*, root: Path | None = None, older_than_s: float = 3600.0) -> None:
    """Remove half-made folders of crashed processes."""
    root = root or runs_folder()
    if not root.is_dir():
        return
    for folder in root.glob(f"{_NEW}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > older_than_s and not is_locked(folder):
                shutil.rmtree(folder)
