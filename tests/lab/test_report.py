"""The report: one file, nothing fetched, nothing executed."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from anabranch.lab import Claim, Lab, LabError, Request, execute, read_run
from anabranch.lab.figures import new_figure
from anabranch.lab.report import render_report, reproduce_command, write_report

NASTY = '<script>alert("x")</script>'


@pytest.fixture
def run(register: Callable[..., Any]) -> Any:
    def experiment(lab: Lab, settings: Any) -> None:
        with lab.stage("a stage"):
            lab.series("curve", 0, y=1.0)
            lab.series("curve", 1, y=float("nan"))
            lab.series("curve", 2, y=3.0)
        lab.measure("a", 1.5, unit="x")
        lab.table("rows", [{"name": NASTY, "n": 1, "flag": True, "none": None}], caption=NASTY)
        figure, axes = new_figure()
        axes.plot([1, 2])
        lab.figure("picture", figure, caption="A picture")

    claim = Claim(
        name="c", says=f"Nothing {NASTY} runs.", measure="a", at_least=1, kind="exact", setting_here="a stand-in, here"
    )
    register(experiment, claims=(claim,))
    return execute(Request("test-paper", settings={"name": NASTY}))


def test_nothing_is_fetched_and_nothing_runs(run: Any) -> None:
    html = render_report(run)

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "iframe", "link", "object", "form"), tag
            for name, value in attrs:
                assert not name.startswith("on")
                if name == "src":
                    assert (value or "").startswith("data:image/svg+xml;base64,")
                if name == "href":
                    assert (value or "").startswith("https://arxiv.org/")

    Reader().feed(html)
    assert NASTY not in html
    assert "url(" not in html
    assert "@import" not in html


def test_it_says_what_matters(run: Any) -> None:
    html = render_report(run)
    for text in ("holds on the stand-in (a stand-in)", "1.5 x", "A picture", "a stage", "test-paper", "numpy"):
        assert text in html, text
    assert len(re.findall(r"<polyline", html)) == 1
    assert reproduce_command(run).startswith("anabranch run test-paper --scale laptop --seed 0 --set 'name=<script>")


def test_a_failed_run_has_a_report_too(register: Callable[..., Any]) -> None:
    register(lambda lab, settings: 1 / 0)
    html = render_report(execute(Request("test-paper")))
    assert "ZeroDivisionError: division by zero" in html
    assert "nothing was measured" in html


def test_a_figure_that_was_deleted_is_told(run: Any) -> None:
    (run.folder / run.figures["picture"]["files"]["svg"]).unlink()
    assert "no longer in the run" in render_report(read_run(run.folder))


def test_where_it_cannot_be_written(run: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(LabError, match="cannot write the report"):
        write_report(run, blocked / "report.html")
