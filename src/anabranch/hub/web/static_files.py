"""Styles, script and icon, under addresses that name their content: a browser asks for each version once."""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent / "static"
_FOR_EVER, _ASK_AGAIN = "public, max-age=31536000, immutable", "no-cache"


@dataclass(frozen=True)
class _File:
    content: bytes
    kind: str
    digest: str


class StaticFiles:
    """The files of a folder as they were at the start, in memory.

    ``/static/DIGEST/NAME`` may be kept for ever; under another digest (a page from before an update) or none the file as it is
    now is given out, to be asked for again.
    """

    def __init__(self, folder: Path = _FOLDER) -> None:
        self._files = {}
        for path in folder.iterdir():
            content, kind = path.read_bytes(), mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            kind = "text/javascript" if path.suffix == ".js" else kind  # some systems' tables say otherwise
            self._files[path.name] = _File(content, kind, hashlib.sha256(content).hexdigest()[:16])

    def address(self, name: str) -> str:
        """Where a page finds the file."""
        return f"/static/{self._files[name].digest}/{name}"

    def routes(self) -> list[Route]:
        return [Route("/static/{digest}/{name}", self._give), Route("/static/{name}", self._give)]

    def _give(self, request: Request) -> Response:
        file = self._files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404)
        is_this = request.path_params.get("digest") == file.digest
        headers = {"etag": f'"{file.digest}"', "cache-control": _FOR_EVER if is_this else _ASK_AGAIN}
        if f'"{file.digest}"' in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.kind, headers=headers)
