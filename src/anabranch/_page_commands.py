"""The commands of the page: serve it, bring papers in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from anabranch._paper_commands import Encoder
from anabranch.lab.errors import LabError

digest_app = typer.Typer(
    no_args_is_help=True, help="The mail to subscribers: see it, send what is due.", pretty_exceptions_enable=False
)


def register(app: typer.Typer) -> None:
    """Put the commands on the top level."""
    app.command()(serve)
    app.command("import")(import_papers)
    app.command("export")(export_catalogue)
    app.add_typer(digest_app, name="digest")


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than the loopback ask for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Runs at once; more than one refuses timing claims.")] = 1,
    on: Annotated[str, typer.Option(help="Where runs go: here, ray, ray:N or ray:ADDRESS.")] = "here",
    name: Annotated[
        list[str] | None, typer.Option(help="A further host name, behind a proxy; a token is asked for.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="All may read, vote, subscribe; runs need the token.")
    ] = False,
    encoder: Encoder = None,
    import_every: Annotated[
        str | None, typer.Option(metavar="TIME", help="Read Daily Papers so often: 30min, 6h, 1d.")
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Serve the page: find papers, run them, watch, read the verdicts."""
    from anabranch.hub.serving import serve as start

    start(
        host=host, port=port, workers=workers, on=on, names=tuple(name or ()), public=public, encoder=encoder,
        import_every=import_every, open_browser=browser, say=lambda text: typer.echo(text),
    )  # fmt: skip


def import_papers(
    page: Annotated[
        Path | None, typer.Argument(help="A saved Daily Papers page, text or HTML, or JSON of its feed.")
    ] = None,
    daily: Annotated[str | None, typer.Option(metavar="DATE", help="A day of Daily Papers, 2026-11-27, live.")] = None,
    week: Annotated[str | None, typer.Option(metavar="WEEK", help="A week, 2026-W48, live.")] = None,
    month: Annotated[str | None, typer.Option(metavar="MONTH", help="A month, 2026-11, live.")] = None,
    search: Annotated[str | None, typer.Option(metavar="QUERY", help="What its own search finds, live.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Another service of the same shape, such as our own.")] = None,
    embed: Annotated[bool, typer.Option("--embed", help="Embed the catalogue for the search by meaning now.")] = False,
    encoder: Encoder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Import papers into the catalogue: a saved page, or Daily Papers itself. Importing again changes nothing."""
    from anabranch.hub import views
    from anabranch.lab.events import to_jsonable

    given: list[tuple[Any, str]] = [
        (kind, text)
        for kind, text in (("day", daily), ("week", week), ("month", month), ("search", search))
        if text is not None
    ]
    if len(given) + (page is not None) != 1:
        raise LabError("give one source: a saved page, or one of --daily, --week, --month and --search")
    outcome = views.import_file(page) if page is not None else views.import_live(given[0], endpoint)
    if as_json:
        import json

        typer.echo(json.dumps(to_jsonable(outcome.as_dict()), indent=1, ensure_ascii=False))
        return
    from anabranch.lab.terminal import make_console

    views.print_import(make_console(), outcome)
    if embed:
        views.embed(make_console(), encoder)


def export_catalogue(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it there; else it is printed.")] = None,
    form: Annotated[str, typer.Option("--format", help="json (nothing is left out), csv or bibtex.")] = "json",
) -> None:
    """Export every paper with its claims and results as open JSON that needs no server to be read."""
    from anabranch.hub.export import FORMATS, export
    from anabranch.hub.views import open_catalogue

    if form not in FORMATS:
        raise LabError(f"--format {form}: expected one of {', '.join(FORMATS)}")
    with open_catalogue() as catalogue:
        text = export(catalogue, form, path=output)
        if output is None:
            typer.echo(text, nl=False)
        else:
            typer.echo(f"{len(catalogue):,} papers in {output}")


@digest_app.command("preview")
def digest_preview(
    topic: Annotated[str, typer.Option(help="A topic, as a subscriber gives it; empty for everything.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it there and open nothing.")] = None,
) -> None:
    """Show the mail in the browser: the week of the newest paper or verdict."""
    import tempfile
    import webbrowser

    digest = _digest()
    if topic:
        digest.site.build_meaning()
    message = digest.example(topic)
    body = message.get_body(("html",))
    assert body is not None
    path = output or Path(tempfile.mkdtemp(prefix="anabranch-")) / "digest.html"
    path.write_text(body.get_content(), encoding="utf-8")
    typer.echo(f"{message['Subject']}\n{path}")
    if output is None:
        webbrowser.open(path.as_uri())


@digest_app.command("send")
def digest_send() -> None:
    """Queue the digests that are due and send what waits; without SMTP in hub.toml mails are files in the data folder."""
    digest = _digest()
    queued = digest.queue_due()
    for number, reason in digest.faults.items():
        typer.echo(f"subscription {number}: {reason}", err=True)
    sent = digest.outbox.send(digest.mailer, said=lambda text: typer.echo(text, err=True))
    states = ", ".join(f"{n} {state}" for state, n in sorted(digest.outbox.states().items())) or "none yet"
    typer.echo(f"{queued} queued, {sent} sent; mails in all: {states}")


def _digest() -> Any:
    from anabranch.hub.config import encoder_folder
    from anabranch.hub.digest import Digest
    from anabranch.hub.outbox import Outbox
    from anabranch.hub.signing import load_secret
    from anabranch.hub.site import Site
    from anabranch.hub.subscriptions import Subscriptions
    from anabranch.lab.places import home

    site = Site(encoder=encoder_folder())
    return Digest(site, Subscriptions(site.db, load_secret(home() / "hub.secret")), Outbox(site.db))
