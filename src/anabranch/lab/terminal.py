"""What a person sees in the terminal: live bars while a run goes on, tables when it has ended, plain lines in a pipe.

Everything here is a view: it folds events and results and decides nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from anabranch.lab.checking import Check
from anabranch.lab.contract import Claim, Paper
from anabranch.lab.events import Event
from anabranch.lab.execution import Request
from anabranch.lab.runs import Run
from anabranch.lab.verdicts import Verdict, format_number, threshold_text

CHIPS = {"holds": "green", "falls short": "red", "undecided": "yellow", "not checked": "dim"}
STATES = {
    "finished": "green",
    "failed": "red",
    "cancelled": "yellow",
    "interrupted": "yellow",
    "running": "cyan",
    "queued": "dim",
}


def make_console(*, stderr: bool = False) -> Console:
    """A console that respects ``NO_COLOR`` and pipes: plain and unwrapped where nobody looks at it live."""
    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty():
        return Console(stderr=stderr, highlight=False)
    width = int(os.environ.get("COLUMNS", "0")) or 160
    return Console(stderr=stderr, highlight=False, force_terminal=False, color_system=None, width=width)


class RunView:
    """Shows the events of one run as they come. Use as a context manager; call it with each event."""

    def __init__(self, console: Console, label: str = "") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console, self._label = console, f"{label} " if label else ""
        self._live = console.is_terminal
        self._tasks: dict[str, Any] = {}
        self._finished: set[str] = set()
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
        )

    def __enter__(self) -> RunView:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def __call__(self, event: Event) -> None:
        handler = getattr(self, f"_on_{event['type']}", None)
        if handler is not None:
            handler(event)

    def _on_stage(self, event: Event) -> None:
        name, ended = event["name"], event["seconds"] is not None
        note = ", ".join(f"{key} {_short(value)}" for key, value in (event["metrics"] or {}).items())
        if not self._live:
            if ended and name not in self._finished:
                self._finished.add(name)
                self._line(event, f"{name}: done in {event['seconds']:.2f} s{f' ({note})' if note else ''}")
            return
        total = event["total"] if event["total"] is not None else 1 if ended else None
        done = total if ended and total is not None else event["done"]
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(f"{escape(self._label + name)}", total=total, note=note)
        self._progress.update(self._tasks[name], completed=done, total=total, note=note)

    def _on_measure(self, event: Event) -> None:
        unit = f" {event['unit']}" if event["unit"] else ""
        self._line(event, f"{event['name']} = {format_number(event['value'])}{unit}")

    def _on_warning(self, event: Event) -> None:
        self._line(event, f"warning: {event['text']}", "yellow")

    def _on_figure(self, event: Event) -> None:
        self._line(event, f"figure {event['files']['svg']}", "dim")

    def _on_cached(self, event: Event) -> None:
        what = "found in the cache" if event["found"] else f"built in {event['seconds']:.1f} s and kept"
        self._line(event, f"{event['name']}: {what}", "dim")

    def _line(self, event: Event, text: str, style: str = "") -> None:
        self._console.print(
            f"{self._label}{event['at_s']:7.1f} s  {text}", style=style or None, markup=False, soft_wrap=True
        )


class SeedViews:
    """One :class:`RunView` after another, for the seeds of a check."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open: RunView | None = None

    def next(self, request: Request) -> RunView:
        """Close the view of the seed before, open the one of this request."""
        self.__exit__(None, None, None)
        self._open = RunView(self._console, f"seed {request.seed}").__enter__()
        return self._open

    def __enter__(self) -> SeedViews:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            self._open.__exit__(kind, error, trace)
            self._open = None


def claims_table(claims: Sequence[Claim], verdicts: Mapping[str, Verdict], *, title: str = "") -> Table:
    """Claims beside their published value, what was measured, the threshold and the verdict."""
    table = Table(title=title or None, title_justify="left", box=box.HORIZONTALS, show_lines=True, pad_edge=False)
    for name, options in (
        ("claim", {"ratio": 5}),
        ("paper", {"ratio": 2}),
        ("measured here", {"ratio": 3}),
        ("threshold", {"no_wrap": True}),
        ("verdict", {"ratio": 3}),
    ):
        table.add_column(name, **options)
    for claim in claims:
        verdict = verdicts.get(claim.name) or Verdict(
            claim.name, "not checked", reason="no result yet" if claim.checked else "no experiment yet"
        )
        table.add_row(
            f"{escape(claim.says)}",
            escape(claim.published or ("not found" if claim.origin == "paper" else "-")),
            escape(verdict.number()),
            threshold_text(claim),
            f"[{CHIPS[verdict.outcome]}]{escape(verdict.words(claim))}[/]",
        )
    return table


def print_run_end(console: Console, paper: Paper, run: Run, report: str | None) -> None:
    """How a run ended: state, claims, where things are."""
    from anabranch.lab.results import verdicts_of_run

    console.print()
    if run.state == "finished":
        if run.verdicts:
            console.print(claims_table(paper.claims, verdicts_of_run(run), title=f"Claims of {paper.slug}"))
        console.print(f"[green]finished[/] in {run.elapsed_s:.1f} s")
        if any(event["outcome"] == "undecided" for event in run.verdicts.values()):
            console.print(f"one run is one seed; `anabranch check {paper.slug}` judges over several")
    else:
        console.print(
            f"[{STATES[run.state]}]{run.state}[/] after {run.elapsed_s:.1f} s: {escape(run.error or 'no error given')}"
        )
        kept = len(run.measures)
        console.print(
            f"{kept} measure{'s' if kept != 1 else ''} kept; traceback in {run.folder / 'artefacts' / 'traceback.txt'}"
        )
    if report:
        console.print(f"report  {report}", soft_wrap=True)
    console.print(f"folder  {run.folder}", soft_wrap=True)


def print_check_end(console: Console, outcome: Check, written: str | None) -> None:
    """What a check found: claims, crashes, verdicts that got worse, where the result is."""
    verdicts = {verdict.claim: verdict for verdict in outcome.verdicts}
    console.print(claims_table(outcome.paper.claims, verdicts, title=f"Claims of {outcome.paper.slug}"))
    for run in outcome.crashed:
        console.print(f"[red]seed {run.seed} {run.state}[/]: {escape(run.error or 'no end was written')}")
        console.print(f"folder  {run.folder}", soft_wrap=True)
    for name in outcome.worse_than_committed:
        console.print(f"[red]worse than the committed result:[/] {name}")
    if written:
        console.print(f"result  {written}", soft_wrap=True)


def runs_table(runs: Iterable[Run]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("run", "paper", "scale", "seed", "state", "seconds", "claims"):
        table.add_column(name, justify="right" if name in ("seed", "seconds") else "left", no_wrap=name == "run")
    for run in runs:
        counts = count_outcomes(v["outcome"] for v in run.verdicts.values())
        table.add_row(
            run.id,
            run.slug,
            run.scale,
            str(run.seed),
            f"[{STATES[run.state]}]{run.state}[/]",
            f"{run.elapsed_s:.1f}",
            counts,
        )
    return table


def count_outcomes(outcomes: Iterable[str]) -> str:
    """``5 hold, 1 falls short`` of a list of outcomes; not-checked ones are left out."""
    from collections import Counter

    count = Counter(outcomes)
    words = {
        "holds": ("holds", "hold"),
        "falls short": ("falls short", "fall short"),
        "undecided": ("undecided", "undecided"),
    }
    return ", ".join(f"{count[key]} {pair[count[key] != 1]}" for key, pair in words.items() if count[key]) or "-"


def _short(value: Any) -> str:
    return format_number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def print_comparison(console: Console, found: Mapping[str, Any]) -> None:
    """The result of :func:`anabranch.lab.compare.compare_runs`."""
    first, second = found["runs"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "first", "second", "second / first"):
        table.add_column(name, justify="left" if not name else "right")
    for key in ("id", "slug", "scale", "seed", "state", "seconds", "commit"):
        table.add_row(key, str(first[key])[:48], str(second[key])[:48], "")
    for name, (a, b) in found["settings"].items():
        table.add_row(f"setting {name}", str(a), str(b), "", style="yellow")
    for row in found["measures"]:
        a, b = ("-" if value is None else format_number(value) for value in row["values"])
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.4g}"
        table.add_row(f"{row['name']}{' (' + row['unit'] + ')' if row['unit'] else ''}", a, b, ratio)
    for claim, (a, b) in found["verdicts"].items():
        table.add_row(f"claim {claim}", a or "-", b or "-", "", style=None if a == b else "yellow")
    console.print(table)
