"""Server-sent events of a run: the run's own log, line by line, with resume from any line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from anabranch.lab.events import read_events
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

    async def follow(self, after: int) -> AsyncIterator[bytes]:
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
        size, idle = -1, 0
        while not self.over:
            try:
                now = (self.folder / "events.jsonl").stat().st_size
            except FileNotFoundError:
                now = 0
            found = read_events(self.folder / "events.jsonl", after=len(self.lines) - 1) if now != size else []
            size, idle = now, 0 if found else idle + 1
            ended = any(event["type"] == "end" for event in found)
            # A run that died wrote no end: its lock tells.
            if idle % _LOCK_EVERY == 1 and read_run(self.folder).state not in ("running", "queued"):
                found = read_events(self.folder / "events.jsonl", after=len(self.lines) - 1)
                ended = True
            if found or ended:
                self.lines += [_line(event) for event in found]
                if ended:
                    state = read_run(self.folder).state
                    self.lines.append(_text(len(self.lines), "over", json.dumps({"state": state})))
                    self.over = True
                async with self._changed:
                    self._changed.notify_all()
            await asyncio.sleep(_POLL_S)


class Tails:
    """The tails of all runs that somebody listens to."""

    def __init__(self) -> None:
        self._tails: dict[Path, Tail] = {}

    async def follow(self, folder: Path, after: int) -> AsyncIterator[bytes]:
        for known, tail in list(self._tails.items()):
            if tail.listeners == 0:
                del self._tails[known]
        tail = self._tails.setdefault(folder, Tail(folder))
        async for piece in tail.follow(after):
            yield piece


def _line(event: dict[str, object]) -> bytes:
    return _text(int(str(event["n"])), str(event["type"]), json.dumps(event, ensure_ascii=False))


def _text(number: int, kind: str, data: str) -> bytes:
    return f"id: {number}\nevent: {kind}\ndata: {data}\n\n".encode()
