"""One self-contained HTML file about a run: what was claimed, what was measured, with what, and how to do it again."""

from __future__ import annotations

import base64
from importlib import resources
from pathlib import Path
from typing import Any

from anabranch.lab.contract import Paper
from anabranch.lab.discover import find_paper
from anabranch.lab.errors import LabError
from anabranch.lab.events import Event
from anabranch.lab.results import load_result, result_verdicts, verdicts_of_run
from anabranch.lab.runs import Run, write_atomically
from anabranch.lab.settings import describe_settings
from anabranch.lab.verdicts import format_number, threshold_text

_WIDTH, _HEIGHT = 640.0, 180.0


def write_report(run: Run, path: Path | None = None) -> Path:
    """Write the report of ``run`` (default: ``report.html`` in its folder) and give its path back."""
    path = path or run.folder / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, render_report(run).encode())
    except OSError as error:
        raise LabError(f"cannot write the report to {path}: {(error.strerror or str(error)).lower()}") from error
    return path


def render_report(run: Run) -> str:
    """The report as HTML; nothing in it is fetched from anywhere."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = lambda value: format_number(value) if isinstance(value, int | float) else str(value)
    environment.filters["cell"] = _cell
    template = environment.from_string(resources.files("anabranch.lab").joinpath("report.html.j2").read_text())
    paper = find_paper(run.slug)
    return template.render(
        paper=paper,
        run=run,
        claims=claims_of_run(paper, run),
        counts=_counts(run),
        figures=[_figure(run, event) for event in run.figures.values()],
        tables=list(run.tables.values()),
        curves=[curve_of(name, points) for name, points in run.series.items()],
        settings=_settings(paper, run),
        environment=_flat(run.header["environment"]),
        command=reproduce_command(run),
        longest=max((stage.seconds or 0 for stage in run.stages), default=0) or 1,
    )


def reproduce_command(run: Run) -> str:
    """The exact command that repeats the run."""
    import shlex

    words = ["anabranch", "run", run.slug, "--scale", run.scale, "--seed", str(run.seed)]
    for key, value in (run.header.get("overrides") or {}).items():
        words += ["--set", f"{key}={value}"]
    if run.header["device"] != "cpu":
        words += ["--device", run.header["device"]]
    return shlex.join(words)


def claims_of_run(paper: Paper, run: Run) -> list[dict[str, Any]]:
    verdicts = verdicts_of_run(run)
    result = load_result(run.slug)
    committed = result_verdicts(result) if result else {}
    rows = []
    for claim in paper.claims:
        if claim.name not in verdicts:
            continue
        verdict, earlier = verdicts[claim.name], committed.get(claim.name)
        rows.append(
            {
                "claim": claim,
                "number": verdict.number(),
                "threshold": threshold_text(claim),
                "outcome": verdict.outcome,
                "words": verdict.words(claim),
                "details": {key: _cell(value) for key, value in (verdict.details or {}).items()},
                "committed": f"{earlier.number()}, {earlier.outcome}" if earlier else "",
            }
        )
    return rows


def _counts(run: Run) -> list[tuple[str, int]]:
    outcomes = [event["outcome"] for event in run.verdicts.values()]
    return [(o, outcomes.count(o)) for o in ("holds", "falls short", "undecided", "not checked") if o in outcomes]


def _figure(run: Run, event: Event) -> dict[str, str]:
    try:
        body = (run.folder / event["files"]["svg"]).read_bytes()
    except OSError:
        return {"name": event["name"], "caption": event["caption"], "source": ""}
    return {
        "name": event["name"],
        "caption": event["caption"],
        "source": "data:image/svg+xml;base64," + base64.b64encode(body).decode(),
    }


def curve_of(name: str, points: list[Event]) -> dict[str, Any]:
    """A series as polylines in a box of 640 x 180, at most 800 points a line."""
    keys = list(dict.fromkeys(key for point in points for key in point["values"]))
    step = max(1, len(points) // 800)
    kept = points[::step]
    values = [p["values"][k] for p in kept for k in keys if p["values"].get(k) is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    first, last = kept[0]["x"], kept[-1]["x"]
    lines = []
    for key in keys:
        pairs = [(p["x"], p["values"][key]) for p in kept if p["values"].get(key) is not None]
        path = " ".join(
            f"{_WIDTH * (x - first) / ((last - first) or 1):.1f},{_HEIGHT * (1 - (y - low) / ((high - low) or 1)):.1f}"
            for x, y in pairs
        )
        lines.append({"key": key, "path": path, "last": pairs[-1][1] if pairs else None})
    return {"name": name, "lines": lines, "low": low, "high": high, "first": first, "last": last}


def _settings(paper: Paper, run: Run) -> list[tuple[str, str, Any, bool]]:
    kinds = (
        {name: kind for name, kind, _ in describe_settings(paper.scales[run.scale])}
        if run.scale in paper.scales
        else {}
    )
    changed = set(run.header.get("overrides") or {})
    return [(name, kinds.get(name, ""), value, name in changed) for name, value in run.header["settings"].items()]


def _flat(environment: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(key, str(value)) for key, value in environment.items() if key != "packages"]
    return rows + [(name, version) for name, version in environment.get("packages", {}).items()]


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return format_number(value) if isinstance(value, float) else str(value)
