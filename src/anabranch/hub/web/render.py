"""Templates: every value is escaped, every page has the same frame."""

from __future__ import annotations

import re
from datetime import date, datetime
from pathlib import Path
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from anabranch.hub.web.static_files import StaticFiles
from anabranch.lab.verdicts import format_number

_FOLDER = Path(__file__).parent / "templates"
TABS = (
    ("/", "Runs here"),
    ("/papers/date", "Day"),
    ("/papers/week", "Week"),
    ("/papers/month", "Month"),
    ("/papers/trending", "Trending"),
    ("/papers", "All"),
)


class Renderer:
    """Renders templates of the folder; undefined names are errors."""

    def __init__(self) -> None:
        self.static = StaticFiles()
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._environment.filters.update(
            number=lambda v: format_number(v) if isinstance(v, int | float) else str(v),
            day=_day,
            moment=_moment,
            seconds=_seconds,
            chip=_chip,
            cut=str.partition,
            beyond=_beyond,
            started=_started,
        )
        self._environment.globals["static"] = self.static.address

    def __call__(self, request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        return HTMLResponse(self.text(request, name, status=status, **values), status)

    def text(self, request: Request, name: str, **values: Any) -> str:
        path = request.scope["path"]
        if "csrf" in request.scope:  # it is not where a page is made for everybody
            values["csrf"] = request.scope["csrf"]
        return self._environment.get_template(name).render(
            path=path, tabs=TABS, query=values.pop("query", ""), **values
        )


def _day(value: date | datetime | None) -> str:
    return f"{value.day} {value:%B %Y}" if value else ""


def _moment(value: datetime) -> str:
    return f"{value.day} {value:%B, %H:%M} UTC"


def _seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def _beyond(words: str, outcome: str) -> str:
    """What the words of a verdict say beyond its outcome, which stands above them."""
    rest = words.removeprefix(outcome).strip(" :")
    return rest[1:-1] if rest.startswith("(") and rest.endswith(")") and rest.count("(") == 1 else rest


def _started(run_id: str) -> str:
    """When a run was made, by its id."""
    return f"{datetime.strptime(run_id[:15], '%Y%m%d-%H%M%S'):%Y-%m-%d %H:%M:%S}"


def _chip(outcome: str) -> str:
    """The CSS class of a verdict or a state."""
    return re.sub("[^a-z]+", "-", outcome.lower())
