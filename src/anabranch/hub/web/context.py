"""What every handler may use."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from anabranch.hub.digest import Digest
from anabranch.hub.import_schedule import ImportSchedule
from anabranch.hub.postman import Postman
from anabranch.hub.run_queue import RunQueue
from anabranch.hub.site import Site
from anabranch.hub.web.live import Tails
from anabranch.hub.web.render import Renderer


@dataclass
class Context:
    """The page's parts."""

    site: Site
    queue: RunQueue
    secret: bytes
    digest: Digest
    post: Postman
    token: str | None = None
    imports: ImportSchedule | None = None
    render: Renderer = field(default_factory=Renderer)
    tails: Tails = field(default_factory=Tails)
    pages: dict[Any, Any] = field(default_factory=dict)
    making: dict[Any, asyncio.Future[Any]] = field(default_factory=dict)


def context_of(request: Request) -> Context:
    context: Context = request.app.state.context
    return context
