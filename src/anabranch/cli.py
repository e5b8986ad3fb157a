"""The command line: thin. It parses, calls the lab, the hub or a package's own commands, and prints."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anabranch._page_commands import register as register_page
from anabranch._paper_commands import register as register_papers
from anabranch._printing import console as _console
from anabranch._printing import near as _near
from anabranch._printing import print_json as _print_json
from anabranch.lab.errors import LabError

# Frozen: what is not here belongs to a package.
TOP_LEVEL = (
    "papers", "show", "run", "check", "runs", "report", "compare", "data", "serve", "import", "export", "digest"
)  # fmt: skip
_PACKAGE = Path(__file__).resolve().parent


class PackageGroup(TyperGroup):
    """The top level: our own commands, and a lazily imported group for every package with a ``commands.py``."""

    def list_commands(self, ctx: Any) -> list[str]:
        own = sorted(super().list_commands(ctx), key=TOP_LEVEL.index)
        return [*own, *sorted(package_commands())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        about = package_commands().get(cmd_name)
        if about is None or cmd_name in self.commands:
            return super().get_command(ctx, cmd_name)
        if cmd_name not in sys.argv:
            # Only the list of commands is shown: one line a package, which costs no import.
            found = typer.main.get_group(typer.Typer(help=about))
        else:
            found = typer.main.get_group(importlib.import_module(f"anabranch.{cmd_name}.commands").app)
        found.name, found.help = cmd_name, about
        return found


def package_commands() -> dict[str, str]:
    """Packages with practitioners' commands (an ``app`` in ``commands.py``), and the first line of what they say."""
    trees = {path.parent.name: ast.parse(path.read_bytes()) for path in sorted(_PACKAGE.glob("*/commands.py"))}
    return {
        name: (ast.get_docstring(tree) or "").partition("\n")[0]
        for name, tree in trees.items()
        if any(isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "app" for n in tree.body)
    }


app = typer.Typer(
    cls=PackageGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Papers that run: find a paper, run it, and hold it against its own claims.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Scale = Annotated[str, typer.Option(help="smoke (seconds), laptop (minutes; claims are judged here), paper.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")]
On = Annotated[str, typer.Option(help="Where: here, pool, pool:N, ray, ray:N or ray:ADDRESS.")]
Device = Annotated[str, typer.Option(help="Device for the arrays of the experiment.")]


@app.callback()
def _root(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from anabranch import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    slug: Annotated[str | None, typer.Argument(help="A paper; not needed with --resume.")] = None,
    scale: Annotated[str | None, typer.Option(help="smoke (seconds), laptop (minutes; the default) or paper.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random (default 0).")] = None,
    set_: Set = None,
    on: On = "here",
    device: Annotated[str | None, typer.Option(help="Device for the arrays of the experiment (default cpu).")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and how large it is; run nothing.")
    ] = False,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Start an interrupted run again, as it was.")
    ] = None,
) -> None:
    """Run a paper once, watch it, and read its claims."""
    from anabranch.lab import discover, execution, executors, report, runs, settings, terminal

    overrides: dict[str, Any] = dict(settings.parse_assignments(set_ or []))
    if resume is not None:
        earlier = runs.find_run(resume)
        if slug not in (None, earlier.slug):
            raise LabError(f"--resume {resume}: that run is of {earlier.slug}, not of {slug}")
        if earlier.state in ("running", "finished"):
            raise LabError(f"--resume {resume}: that run is {earlier.state}; there is nothing to resume")
        slug, scale = earlier.slug, scale or earlier.scale
        seed, device = earlier.seed if seed is None else seed, device or earlier.header["device"]
        overrides, resume = {**earlier.header["overrides"], **overrides}, earlier.id
    if slug is None:
        raise LabError("name a paper to run; `anabranch papers --runnable` lists those that run")
    request = execution.Request(
        slug, scale or "laptop", seed or 0, overrides, device or "cpu", fresh=False, resumes=resume
    )
    chosen = execution.validate(request)
    executor = executors.executor_named(on)
    paper = discover.find_paper(slug)
    console = _console()
    expected = paper.seconds.get(request.scale)
    console.print(
        f"[bold]{paper.title}[/]\n{slug} at scale {request.scale}, seed {request.seed}"
        + (f", about {_duration(expected)}" if expected else "")
        + f"; data: {', '.join(paper.data) or 'none needed'}"
    )
    if dry_run:
        _print_plan(slug, chosen)
        return
    with terminal.RunView(console) as view, _cancellable():
        (ended,) = executor.run([request], listener_for=lambda _: view)
    path = report.write_report(ended)
    terminal.print_run_end(console, paper, ended, _near(path))
    if ended.state != "finished":
        raise typer.Exit(1)


@app.command()
def check(
    slugs: Annotated[list[str], typer.Argument(help="Papers.")],
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 3,
    scale: Scale = "laptop",
    set_: Set = None,
    until_decided: Annotated[
        int | None, typer.Option(metavar="MAX", help="Add seeds while a claim is undecided, up to MAX in all.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when a claim falls short.")] = False,
    write: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the result file.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Build cached artefacts again.")] = False,
    on: On = "here",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Check the claims of papers over several seeds and write results/SLUG.json."""
    from anabranch.lab import checking, discover, execution, executors, settings, terminal

    overrides = settings.parse_assignments(set_ or [])
    executor = executors.executor_named(on)
    for slug in slugs:  # all bad input first: nothing runs before everything can
        execution.validate(execution.Request(slug, scale, 0, overrides, device, fresh))
        discover.experiment_of(slug)
    console = _console(stderr=as_json)
    codes, found = [], []
    for slug in slugs:
        paper = discover.find_paper(slug)
        expected = paper.seconds.get(scale)
        console.print(
            f"[bold]{paper.title}[/]\n{slug} at scale {scale}, {seeds} seeds"
            + (f", about {_duration(expected)} each" if expected else "")
        )
        with terminal.SeedViews(console) as views, _cancellable():
            outcome = checking.check(
                slug,
                seeds=seeds,
                scale=scale,
                settings=overrides,
                until_decided=until_decided,
                executor=executor,
                device=device,
                fresh=fresh,
                write=write,
                listener_for=views.next,
            )
        terminal.print_check_end(console, outcome, _near(outcome.written) if outcome.written else None)
        found.append(outcome.result or {"slug": slug, "claims": []})
        codes.append(outcome.exit_code(strict=strict))
    if as_json:
        _print_json(found)
    raise typer.Exit(max(codes))


@app.command("runs")
def list_runs(
    slug: Annotated[str | None, typer.Argument(help="Only runs of this paper.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The latest so many.")] = 20,
    as_json: Json = False,
) -> None:
    """List runs, latest last."""
    from anabranch.lab import discover, runs, terminal

    if slug is not None:
        discover.find_paper(slug)
    found = runs.list_runs(slug)[-limit:]
    if as_json:
        _print_json([run.as_dict() for run in found])
    elif not found:
        typer.echo("no runs yet; `anabranch run SLUG` makes one")
    else:
        _console().print(terminal.runs_table(found))


@app.command()
def report(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="A run (id, unique part of it, folder), a paper, or latest.")
    ] = "latest",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
) -> None:
    """Write the report of a run: one HTML file."""
    from anabranch.lab import report as reporting
    from anabranch.lab import runs

    typer.echo(_near(reporting.write_report(runs.find_run(name), output)))


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A run.")],
    second: Annotated[str, typer.Argument(help="Another run.")],
    as_json: Json = False,
) -> None:
    """Show two runs side by side."""
    from anabranch.lab import compare as comparing
    from anabranch.lab import runs, terminal

    found = comparing.compare_runs(runs.find_run(first), runs.find_run(second))
    if as_json:
        _print_json(found)
    else:
        terminal.print_comparison(_console(), found)


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="A data set or shared weights; all are listed without.")] = None,
    source: Annotated[Path | None, typer.Option("--from", metavar="DIR", help="Take it from this folder.")] = None,
    build: Annotated[bool, typer.Option(help="Train shared weights again, going on where it stopped.")] = False,
    as_json: Json = False,
) -> None:
    """List data sets with their cards, or get one. Nothing is fetched without being asked for."""
    from anabranch.lab.places import data_folder, ensure
    from anabranch.worlds import commands

    root = data_folder()
    if as_json:
        _print_json([commands.describe(card, root) for card in commands.cards(name)])
    elif name is None:
        commands.print_cards(_console(), root)
    else:
        commands.cards(name)
        get = commands.build if build else commands.fetch
        typer.echo(get(name, ensure(root, "data"), source, lambda text: typer.echo(text, err=True)))


register_papers(app)
register_page(app)


def _print_plan(slug: str, settings: Any) -> None:
    from anabranch.lab import discover
    from anabranch.lab.settings import describe_settings

    console = _console()
    for name, kind, value in describe_settings(settings):
        console.print(f"  {name} = {value}  [dim]({kind})[/]")
    plan = getattr(discover.load_experiment(slug), "plan", None)
    if plan is not None:
        for name, value in plan(settings):
            console.print(f"  {name}: {value}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@contextmanager
def _cancellable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("anabranch: cancelled; what was measured is kept", file=sys.stderr)
        raise typer.Exit(130) from None


def main() -> None:
    """Entry point. Exit codes: 0 done; 1 a run crashed or a verdict got worse; 2 bad input; 130 cancelled."""
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if "--verbose" in sys.argv[1:]:
            raise
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        print(f"anabranch: error: {text}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
