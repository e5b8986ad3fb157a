"""Reads the HTML of a saved page: the properties of its components, its articles, its text. Damage is forgiven."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

_BLOCK_NAMES = (
    "address article aside blockquote body br button dd div dl dt figcaption footer form h1 h2 h3 h4 h5 h6 header hr "
    "html li main nav ol option p pre section table td th time title tr ul"
)
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_SILENT = frozenset(("script", "style", "svg", "template", "noscript"))
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_PAPER_LINK = re.compile(r"(?:https?://[^/]+)?/papers/(\d{4}\.\d{4,5})(?:v\d+)?(?:[#?].*)?")
_UNFINISHED_TAG = re.compile(r"<(?:[/!a-zA-Z][^<>]*)?\Z")  # at the end of a page that was cut off; not text
_MIN_ABSTRACT = 40  # characters; shorter paragraphs are labels


@dataclass
class Article:
    """An ``article`` element: what one paper of a list shows.

    Args:
        title: its first heading with text, else the text of its first link to a paper.
        arxiv: id in its first link to a paper.
        abstract: its longest paragraph, where that is longer than a label.
        time: ``datetime`` of its first ``time`` element.
        lines: its text, a line for every block.
    """

    title: str = ""
    arxiv: str | None = None
    abstract: str = ""
    time: str = ""
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """What a page holds.

    Args:
        props: JSON text of the components asked for.
        articles: its articles.
        text: all visible text, a line for every block.
    """

    props: list[str]
    articles: list[Article]
    text: str


def read_html(html: str, component: str) -> Page:
    """Read a page; ``component`` names the ``data-target`` whose ``data-props`` are wanted. Never fails on damage."""
    reader = _Reader(component)
    reader.feed(_UNFINISHED_TAG.sub("", html))
    reader.close()
    reader.end_article()
    return Page(reader.props, reader.articles, "\n".join(_joined(reader.pieces)))


class _Reader(HTMLParser):
    def __init__(self, component: str) -> None:
        super().__init__(convert_charrefs=True)
        self.component = component
        self.props: list[str] = []
        self.articles: list[Article] = []
        self.pieces: list[str] = []
        self._silent: str | None = None
        self._article: Article | None = None
        self._start = 0
        self._linked = ""
        self._heading: list[str] | None = None
        self._link: list[str] | None = None
        self._paragraph: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("data-target") == self.component and values.get("data-props"):
            self.props.append(str(values["data-props"]))
        if tag in _SILENT:
            self._silent = self._silent or tag
        if tag in _BLOCKS:
            self.pieces.append("\n")
        if tag == "article":
            self.end_article()
            self._article, self._start = Article(), len(self.pieces)
        if self._article is None:
            return
        if tag in _BLOCKS:  # a new block ends an open paragraph, whose end tag is optional, and a heading left open
            self._end_paragraph()
            if self._heading and "".join(self._heading).strip():
                self._end_heading()
        if tag in _HEADINGS:
            self._heading = []
        elif tag == "p":
            self._paragraph = []
        elif tag == "time" and not self._article.time:
            self._article.time = values.get("datetime") or ""
        elif tag == "a" and (match := _PAPER_LINK.fullmatch(values.get("href") or "")):
            self._article.arxiv = self._article.arxiv or match.group(1)
            self._link = []

    def handle_endtag(self, tag: str) -> None:
        if tag == self._silent:
            self._silent = None
        if tag in _BLOCKS:
            self.pieces.append("\n")
        if tag == "article":
            self.end_article()
        elif self._article is not None:
            if tag in _HEADINGS:
                self._end_heading()
            elif tag == "p":
                self._end_paragraph()
            elif tag == "a":
                self._end_link()

    def handle_data(self, data: str) -> None:
        if self._silent is not None:
            return
        self.pieces.append(data)
        for open_text in (self._heading, self._link, self._paragraph):
            if open_text is not None:
                open_text.append(data)

    def end_article(self) -> None:
        """Close the article that is open, by its end tag, the next article or the end of the page."""
        article, self._article = self._article, None
        if article is None:
            return
        self._article = article
        self._end_heading()
        self._end_link()
        self._end_paragraph()
        self._article = None
        article.title = article.title or self._linked
        article.lines = _joined(self.pieces[self._start :])
        self.articles.append(article)
        self._linked = ""

    def _end_heading(self) -> None:
        if self._article is not None and self._heading is not None:
            self._article.title = self._article.title or "".join(self._heading).strip()
        self._heading = None

    def _end_link(self) -> None:
        if self._link is not None:
            self._linked = self._linked or "".join(self._link).strip()
        self._link = None

    def _end_paragraph(self) -> None:
        if self._article is not None and self._paragraph is not None:
            text = "".join(self._paragraph).strip()
            if len(text) >= _MIN_ABSTRACT and len(text) > len(self._article.abstract):
                self._article.abstract = text
        self._paragraph = None


def _joined(pieces: list[str]) -> list[str]:
    """Text of ``pieces`` as lines; only the blocks' own breaks count."""
    flat = "".join(piece if piece == "\n" else re.sub(r"\s", " ", piece) for piece in pieces)
    return [" ".join(line.split()) for line in flat.split("\n") if line.strip()]
