"""Daily Papers in, live: its feed and search over ``huggingface_hub``'s transport, read as raw JSON.

The client's own ``list_daily_papers`` loses the day of listing, summaries, repositories and the submitter's name, and reads a
vote count of 0 as unknown; so only its session and its address are used.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from anabranch.hub.catalogue import Catalogue
from anabranch.hub.importers import ImportReport, import_page
from anabranch.hub.votes import Window, window_of

PAGE_LIMIT = 100
_MAX_PAGES = 50
_ATTEMPTS = 5
_RETRY_STATUS = frozenset({429, 500, 502, 503, 504})


class NotReached(ValueError):
    """The service did not answer as it should."""


@dataclass
class DailyPapers:
    """A polite reader of the feed: pages of 100, waits as told or longer each time, gives up after five attempts.

    Args:
        endpoint: address of the service; None for ``huggingface_hub``'s own.
        sleep, jitter: replaced in tests.
        timeout_s: for one answer.
    """

    endpoint: str | None = None
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = field(default=lambda: random.uniform(0.5, 1.5))
    timeout_s: float = 30.0

    def listed(self, kind: Window, text: str) -> Iterator[dict[str, Any]]:
        """Items of a day, week or month (``2026-11-28``, ``2026-W48``, ``2026-11``), all pages.

        Raises:
            ValueError: no such window. NotReached: the service did not answer, or not with a list.
        """
        window_of(kind, text)
        seen: set[str] = set()
        for page in range(_MAX_PAGES):
            items = self._get(
                "/api/daily_papers", {"date" if kind == "day" else kind: text, "p": page, "limit": PAGE_LIMIT}
            )
            new = [item for item in items if (key := _key(item)) not in seen and not seen.add(key)]  # type: ignore[func-returns-value]
            yield from new
            if len(items) < PAGE_LIMIT or not new:  # a service that ignores p would repeat itself for ever
                return

    def found(self, query: str, limit: int = PAGE_LIMIT) -> Iterator[dict[str, Any]]:
        """Items that the service's own search finds.

        Raises:
            ValueError: an empty query. NotReached: as for :meth:`listed`.
        """
        if not query.strip():
            raise ValueError("query is empty: expected words to search for")
        yield from self._get("/api/papers/search", {"q": query, "limit": limit})

    def _get(self, path: str, params: dict[str, Any]) -> list[dict[str, Any]]:
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

        url = (self.endpoint or constants.ENDPOINT).rstrip("/") + path
        reason = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                self.sleep(max(self._asked, 2.0**attempt) * self.jitter())
            self._asked = 0.0
            try:
                answer = get_session().get(url, params=params, timeout=self.timeout_s)
            except Exception as error:  # which one depends on the HTTP library
                if not _is_transport(error):
                    raise
                reason = f"{type(error).__name__}: {error}"
                continue
            if answer.status_code in _RETRY_STATUS:
                reason = f"status {answer.status_code}"
                self._asked = _seconds(answer.headers.get("retry-after"))
                continue
            if answer.status_code >= 400:
                raise NotReached(f"{url} answered with status {answer.status_code}")
            return _list(url, answer.text)
        raise NotReached(f"{url} did not answer after {_ATTEMPTS} attempts ({reason})")

    _asked: float = field(default=0.0, init=False, repr=False)


Source = tuple[Literal["day", "week", "month", "search"], str]


def import_daily(catalogue: Catalogue, source: Source, reader: DailyPapers | None = None) -> ImportReport:
    """Add a day, week or month of Daily Papers, or the answer to a search, to the catalogue; all or none, idempotent.

    Raises:
        ValueError: no such window, an empty query, or no paper was found. NotReached: the service did not answer.
    """
    return import_page(catalogue, fetch_daily(source, reader))


def fetch_daily(source: Source, reader: DailyPapers | None = None) -> str:
    """The items of a source as the JSON of one feed, which :func:`~anabranch.hub.parse_saved_page` reads.

    Raises:
        ValueError, NotReached: as for :func:`import_daily`.
    """
    reader = reader or DailyPapers()
    kind, text = source
    items = list(reader.found(text) if kind == "search" else reader.listed(kind, text))
    if not items:
        raise ValueError(f"{kind} {text!r}: no paper is listed there")
    return json.dumps(items)


def _list(url: str, text: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise NotReached(f"{url} did not answer with JSON: {error}") from error
    if not isinstance(found, list):
        raise NotReached(f"{url} answered with {type(found).__name__}, where a list of papers was expected")
    return [item for item in found if isinstance(item, dict)]


def _key(item: dict[str, Any]) -> str:
    inner = item.get("paper")
    inner = inner if isinstance(inner, dict) else item
    return str(inner.get("id") or inner.get("title"))


def _seconds(text: str | None) -> float:
    try:
        return min(120.0, max(0.0, float(text))) if text else 0.0
    except ValueError:  # a date: the usual wait does
        return 0.0


def _is_transport(error: Exception) -> bool:
    if isinstance(error, OSError):
        return True
    return any(base.__name__ in ("TransportError", "RequestException") for base in type(error).__mro__)
