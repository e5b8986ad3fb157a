"""The commands that look at papers: search, start one, show one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anabranch._printing import console, near, print_json
from anabranch.lab.errors import LabError

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Encoder = Annotated[
    str | None, typer.Option(metavar="NAME_OR_DIR", help="Another sentence encoder: a folder, or a name on the hub.")
]


class SearchGroup(TyperGroup):
    """A group whose first word, when it names no subcommand, starts a search."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--help" not in args and (not args or args[0] not in self.commands):
            args = ["search", *args]
        return super().parse_args(ctx, args)


papers_app = typer.Typer(cls=SearchGroup, invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Put the commands on the top level."""
    app.add_typer(papers_app, name="papers")
    app.command()(show)


@papers_app.callback()
def _papers() -> None:
    """Find papers: `anabranch papers [QUERY]` searches, `papers new SLUG` starts one."""


@papers_app.command("search")
def papers_search(
    query: Annotated[list[str] | None, typer.Argument(help="Words to look for; all papers without.")] = None,
    runnable: Annotated[bool, typer.Option("--runnable", help="Only papers that run here.")] = False,
    package: Annotated[str | None, typer.Option(help="Only papers whose parts are in this package.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many.")] = 50,
    words: Annotated[
        bool, typer.Option("--words", help="By words only: at once, also where the encoder is here.")
    ] = False,
    encoder: Annotated[
        str | None,
        typer.Option(metavar="NAME_OR_DIR", help="Another sentence encoder: a folder, or a name on the hub."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List papers, best match first: by meaning after `anabranch data all-minilm-l6-v2`, else by words."""
    from anabranch.hub import views

    if words and encoder is not None:
        raise LabError("give one of --words and --encoder")
    found = " ".join(query or [])
    rows = views.find(found, runnable=runnable, package=package, limit=limit, words_only=words, encoder=encoder)
    if as_json:
        print_json([row.as_dict() for row in rows])
    else:
        views.print_found(console(), rows, searched=bool(query))


@papers_app.command("new")
def papers_new(
    slug: Annotated[str, typer.Argument(help="Name of the new paper, kebab-case.")],
    into: Annotated[Path | None, typer.Option(help="Folder to write to.")] = None,
) -> None:
    """Write the skeleton of a paper: it runs at once."""
    from anabranch.lab.skeleton import write_skeleton

    for path in write_skeleton(slug, into):
        typer.echo(near(path))
    typer.echo(f"try it: anabranch run {slug} --scale smoke")


def show(slug: Annotated[str, typer.Argument(help="A paper.")], as_json: Json = False) -> None:
    """Show a paper: what it is, its claims beside what was measured, how to run and import it."""
    from anabranch.hub import views

    if as_json:
        print_json(views.paper_as_dict(slug))
    else:
        views.print_paper(console(), slug)
