from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date

from anabranch.hub import catalogue_table
from anabranch.lab import Paper


@dataclass(frozen=True)
class Settings:
    count: int = 1


PAPER = Paper(
    slug="a-b", title="On [A] | B", authors=("X Y",), published=date(2024, 6, 29), summary="S.", package="fabric"
)


def test_rows_keep_the_order_and_tell_what_runs() -> None:
    runs = replace(PAPER, slug="c", title="C", arxiv="2401.00001", scales={"smoke": Settings()})
    assert catalogue_table([PAPER, runs]) == (
        "| paper | slug | package | published | state |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| On \\[A\\] \\| B | `a-b` | `fabric` | 2024-06-29 | not yet |\n"
        "| [C](https://arxiv.org/abs/2401.00001) | `c` | `fabric` | 2024-06-29 | runs |\n"
    )


def test_no_papers_give_an_empty_table() -> None:
    assert catalogue_table([]).count("\n") == 2
