"""Styles and script are kept by browsers for ever, and are new at once after an update."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra hub is not installed")
from anabranch.hub.web import static_files
from anabranch.hub.web.static_files import StaticFiles

from .page_server import page_server

FOLDER = Path(static_files.__file__).parent / "static"
NAMED = re.compile(r'(?:href|src)="(/static/[^"]+)"')


def test_pages_name_the_content_of_what_they_load(home: Path) -> None:
    with page_server() as page:
        for path in ("/", "/claims", "/nowhere", "/papers/udc"):
            named = NAMED.findall(page.get(path).text)
            assert sorted(address.rpartition("/")[2] for address in named) == sorted(p.name for p in FOLDER.iterdir())
        for address in named:
            content = (FOLDER / address.rpartition("/")[2]).read_bytes()
            assert address.split("/")[2] == hashlib.sha256(content).hexdigest()[:16]
            answer = page.get(address)
            assert answer.status == 200
            assert answer.text.encode() == content
            assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert page.get(address, **{"if-none-match": answer.headers["etag"]}).status == 304
        kinds = {address.rpartition(".")[2]: page.get(address).headers["content-type"] for address in named}
        plain = {key: kind.partition(";")[0] for key, kind in kinds.items()}
        assert plain == {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def test_another_or_no_version_is_never_kept(home: Path) -> None:
    """A page from before an update still finds its styles, but no browser keeps them under the old name."""
    with page_server() as page:
        for address in ("/static/style.css", f"/static/{'0' * 16}/style.css"):
            answer = page.get(address)
            assert answer.status == 200
            assert answer.headers["cache-control"] == "no-cache"
        for name in ("nothing.css", "../pages.py", "x/../pages.py", "%2e%2e/app.py", "%2e%2e%2fapp.py", ""):
            assert page.get(f"/static/{name}").status == 404


def test_new_content_has_a_new_address(tmp_path: Path) -> None:
    (tmp_path / "style.css").write_text("a {}")
    (tmp_path / "page.js").write_text("1")
    before = StaticFiles(tmp_path)
    (tmp_path / "style.css").write_text("b {}")
    after = StaticFiles(tmp_path)
    assert before.address("style.css") != after.address("style.css")
    assert before.address("page.js") == after.address("page.js")


def test_the_login_page_has_its_styles_before_the_token_is_shown(home: Path) -> None:
    with page_server(token="the-token", hosts=frozenset({"127.0.0.1"})) as page:
        assert {page.get(address).status for address in NAMED.findall(page.get("/login").text)} == {200}
