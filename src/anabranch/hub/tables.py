"""Tables of the catalogue, as text."""

from __future__ import annotations

from collections.abc import Iterable

from anabranch.lab import Paper

RUNS, NOT_YET = "runs", "not yet"


def catalogue_table(papers: Iterable[Paper]) -> str:
    """A Markdown table of papers, one a row, in the order given; ends with a line break."""
    rows = [
        (
            f"[{_cell(paper.title)}]({paper.url})" if paper.url else _cell(paper.title),
            f"`{paper.slug}`",
            f"`{paper.package}`",
            paper.published.isoformat(),
            RUNS if paper.runnable else NOT_YET,
        )
        for paper in papers
    ]
    lines = ["| paper | slug | package | published | state |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("[", r"\[").replace("]", r"\]")
