"""A real server for tests of the page."""

from __future__ import annotations

import http.client
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn

from anabranch.hub.postman import Postman
from anabranch.hub.run_queue import RunQueue
from anabranch.hub.serving import _listen, server_config
from anabranch.hub.site import Site
from anabranch.hub.web import create_app

# Of a run that a test writes by itself.
HEADER = {
    "slug": "udc", "scale": "smoke", "seed": 0, "settings": {}, "overrides": {}, "device": "cpu", "environment": {},
}  # fmt: skip


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str


@dataclass
class Browser:
    """Keeps cookies, as a browser would; follows nothing by itself."""

    port: int
    cookies: dict[str, str] = field(default_factory=dict)
    post_office: Postman | None = None

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, fields: dict[str, str], **headers: str) -> Answer:
        body = urllib.parse.urlencode(fields)
        return self.ask("POST", path, body, {"content-type": "application/x-www-form-urlencoded", **headers})

    def submit(self, page: str, action: str, **fields: str) -> Answer:
        """Sends a form of ``page`` with the token it holds."""
        token = re.search(r'name="csrf" value="([^"]+)"', self.get(page).text)
        assert token is not None
        return self.post(action, {"csrf": token.group(1), **fields}, origin=f"http://127.0.0.1:{self.port}")

    def ask(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Answer:
        if self.cookies:
            headers = {"cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items()), **headers}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            found = connection.getresponse()
            for name, value in found.getheaders():
                if name.lower() == "set-cookie":
                    key, _, rest = value.partition("=")
                    self.cookies[key] = rest.partition(";")[0]
            text = found.read().decode("utf-8", "replace")
            return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, text)
        finally:
            connection.close()


@contextmanager
def page_server(*, queue: RunQueue | None = None, site: Site | None = None, **options: object) -> Iterator[Browser]:
    """The page on a free port of the loopback, until the block ends."""
    site = site or Site(use_meaning=False)
    listener = _listen("127.0.0.1", 0)
    app = create_app(site, queue or RunQueue(), **options)  # type: ignore[arg-type]
    server = uvicorn.Server(server_config(app, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        yield Browser(listener.getsockname()[1], post_office=app.state.context.post)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        site.close()
