"""A server that speaks the shapes of Daily Papers."""

from __future__ import annotations

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from anabranch.hub.daily_papers import DailyPapers


def item(n: int, **inner: Any) -> dict[str, Any]:
    paper = {
        "id": f"2601.{n:05d}", "title": f"Of Rivers, Part {n}", "summary": f"Water {n} flows.", "upvotes": 0,
        "authors": [{"_id": f"a{n}", "name": f"Ada {n}", "hidden": False}], "publishedAt": "2026-01-05T00:00:00.000Z",
        "submittedOnDailyAt": "2026-01-07T00:00:00.000Z", "ai_summary": "short", "githubRepo": "https://github.com/a/b", **inner,
    }  # fmt: skip
    return {
        "paper": paper, "publishedAt": paper["publishedAt"], "title": paper["title"], "summary": paper["summary"],
        "thumbnail": "https://cdn/x.png", "numComments": n, "submittedBy": {"_id": "u", "name": f"user{n % 2}", "fullname": "U"},
        "isAuthorParticipating": False,
    }  # fmt: skip


class Original(ThreadingHTTPServer):
    """Speaks the original's shapes from a list of items, with faults on demand.

    With ``by_day`` a day's list holds the items listed on it; a request for the day ``hangs_on`` is never answered.
    """

    by_day = False
    hangs_on = ""

    items: list[Any]
    faults: list[tuple[int, dict[str, str]]]
    asked: list[dict[str, str]]


class OriginalHandler(BaseHTTPRequestHandler):
    server: Original

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.server.asked.append({"path": parts.path, **query})
        if self.server.faults:
            status, headers = self.server.faults.pop(0)
            self._send(status, b"busy", headers)
            return
        if self.server.hangs_on and query.get("date") == self.server.hangs_on:
            time.sleep(60)
        page, limit = int(query.get("p", 0)), int(query.get("limit", 50))
        items = self.server.items
        if self.server.by_day and "date" in query:
            items = [i for i in items if i["paper"]["submittedOnDailyAt"].startswith(query["date"])]
        if parts.path.endswith("/search"):
            items = [i for i in items if query["q"].lower() in i["title"].lower()]
        self._send(
            200, json.dumps(items[page * limit : (page + 1) * limit]).encode(), {"content-type": "application/json"}
        )

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def reader(server: Original, waits: list[float] | None = None) -> DailyPapers:
    waits = [] if waits is None else waits
    return DailyPapers(f"http://127.0.0.1:{server.server_port}", sleep=waits.append, jitter=lambda: 1.0)
