"""Server-sent events of a run: the run's own log, line by line, with resume from any line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from anabranch.lab import LabError
from anabranch.lab.runs import read_run

_POLL_S = 0.2
_KEEP_ALIVE_S = 15.0
_LOCK_EVERY = 5  # idle polls between looks at the lock


class Tail:
    """One reader of a run's log for all who listen: lines are read once and kept while anybody does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[bytes] = []
        self.over = False
        self.listeners = 0
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._read_bytes = 0

    async def follow(self, after: int) -> AsyncGenerator[bytes, None]:
        """Events with a number above ``after``, each once and in order, until the run has ended."""
        self.listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._read())
        try:
            at = after + 1
            while True:
                while at < len(self.lines):
                    # Many small lines in one piece: one write a wake-up, however far behind the listener is.
                    piece = b"".join(self.lines[at : at + 500])
                    at = min(at + 500, len(self.lines))
                    yield piece
                if self.over:
                    return
                try:
                    async with asyncio.timeout(_KEEP_ALIVE_S), self._changed:
                        await self._changed.wait_for(partial(self._news, at))
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self.listeners -= 1
            if self.listeners == 0 and self._task is not None:
                self._task.cancel()
                self._task = None

    def _news(self, at: int) -> bool:
        return at < len(self.lines) or self.over

    async def _read(self) -> None:
        idle = 0
        while not self.over:
            found = await run_in_threadpool(self._new_events)
            idle = 0 if found else idle + 1
            ended = any(event["type"] == "end" for event in found)
            # A run that died wrote no end: its lock tells. One whose log is damaged or gone has nothing more to say.
            state = None
            if ended or idle % _LOCK_EVERY == 1:
                state = await run_in_threadpool(_state, self.folder)
                ended = state not in ("running", "queued")
            if ended:
                found += await run_in_threadpool(self._new_events)
            if found or ended:
                self.lines += [_line(event) for event in found]
                if ended:
                    self.lines.append(_text(len(self.lines), "over", json.dumps({"state": state})))
                    self.over = True
                async with self._changed:
                    self._changed.notify_all()
            await asyncio.sleep(_POLL_S)

    def _new_events(self) -> list[dict[str, Any]]:
        """What has come since the last look; every byte of the log is read once."""
        try:
            with (self.folder / "events.jsonl").open("rb") as log:
                log.seek(self._read_bytes)
                raw = log.read()
        except FileNotFoundError:
            return []
        whole, newline, _ = raw.rpartition(b"\n")  # what follows the last newline is not whole yet
        self._read_bytes += len(whole) + len(newline)
        found = []
        for line in whole.split(b"\n") if newline else []:
            try:
                event = json.loads(line)
                event["n"], event["type"]
            except (ValueError, KeyError, TypeError):
                break  # `_state` says that the run is damaged
            found.append(event)
        return found


def _state(folder: Path) -> str:
    try:
        return read_run(folder).state
    except LabError:
        return "damaged"
    except FileNotFoundError:
        return "removed"


class Tails:
    """The tails of all runs that somebody listens to."""

    def __init__(self) -> None:
        self._tails: dict[Path, Tail] = {}

    async def follow(self, folder: Path, after: int) -> AsyncIterator[bytes]:
        tail = self._tails.setdefault(folder, Tail(folder))
        try:
            async with aclosing(tail.follow(after)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            if tail.listeners == 0 and self._tails.get(folder) is tail:
                del self._tails[folder]


def _line(event: dict[str, Any]) -> bytes:
    return _text(int(str(event["n"])), str(event["type"]), json.dumps(event, ensure_ascii=False))


def _text(number: int, kind: str, data: str) -> bytes:
    return f"id: {number}\nevent: {kind}\ndata: {data}\n\n".encode()
