"""What the command line shows of papers: found ones, one with its claims, an import. Each view has its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anabranch.hub.catalogue import Catalogue, Entry
from anabranch.hub.config import encoder_folder
from anabranch.hub.daily_papers import Source
from anabranch.hub.encoder_files import has_model
from anabranch.hub.importers import ImportReport, import_page, parse_saved_page
from anabranch.hub.search import Ranker, TextIndex, document, search
from anabranch.lab.discover import find_paper, papers
from anabranch.lab.errors import LabError, UnknownName
from anabranch.lab.places import ensure, home
from anabranch.lab.results import is_stale, load_result, result_verdicts

if TYPE_CHECKING:
    from rich.console import Console

    from anabranch.hub.meaning import Embedder


def catalogue_path() -> Path:
    return home() / "hub.sqlite"


@dataclass(frozen=True)
class Row:
    """A found paper: the entry, the sentence that matched, its state here."""

    entry: Entry
    score: float
    sentence: str

    @property
    def state(self) -> str:
        """``5 of 6 hold``, ``runs`` (no result yet), ``claims only`` or ``imported``."""
        paper = self.entry.paper
        if paper is None:
            return "imported"
        if not paper.runnable:
            return "claims only"
        result = load_result(paper.slug)
        if result is None:
            return "runs"
        outcomes = [verdict.outcome for verdict in result_verdicts(result).values()]
        text = f"{outcomes.count('holds')} of {len(outcomes)} hold"
        return f"{text} (stale)" if is_stale(result) else text

    def as_dict(self) -> dict[str, Any]:
        entry = self.entry
        return {
            "slug": entry.slug, "title": entry.title, "authors": entry.authors, "n_authors": entry.n_authors,
            "published": str(entry.published) if entry.published else None, "arxiv": entry.arxiv,
            "package": entry.paper.package if entry.paper else None, "runnable": bool(entry.paper and entry.paper.runnable),
            "state": self.state, "score": self.score, "sentence": self.sentence,
        }  # fmt: skip


def find(
    query: str, *, runnable: bool = False, package: str | None = None, limit: int = 50, words_only: bool = False,
    encoder: str | None = None,
) -> list[Row]:  # fmt: skip
    """Papers that fit ``query``, best first; all, newest first, for an empty one.

    By meaning where the encoder is here (it takes seconds to load), else or with ``words_only`` by words.

    Args:
        encoder: a folder or a model of sentence-transformers by name; default is that of ``hub.toml``, else the usual one.

    Raises:
        UnknownName: no paper has its parts in ``package``. LabError: the encoder cannot be had.
    """
    known = {paper.package for paper in papers()}
    if package is not None and package not in known:
        raise UnknownName("package", package, known)
    entries = [
        entry
        for entry in _entries()
        if (not runnable or (entry.paper is not None and entry.paper.runnable))
        and (package is None or (entry.paper is not None and entry.paper.package == package))
    ]
    by_meaning = query.strip() and not words_only
    ranker = ranker_by_meaning(entries, encoder_folder(encoder)) if by_meaning else None
    return [Row(hit.entry, hit.score, hit.sentence) for hit in search(entries, query, limit, ranker=ranker)]


def ranker_by_meaning(entries: list[Entry], encoder: Path | None = None) -> Ranker | None:
    """A ranker over ``entries`` by the encoder in a folder (None: the usual one, or no ranker where that is not here)."""
    if encoder is None and not has_model():
        return None
    from anabranch.hub import meaning  # numpy, and soon torch: not for a search by words

    embedder, documents = _loaded(encoder), [document(entry) for entry in entries]
    store = meaning.VectorStore(embedder, meaning.vectors_path(embedder))
    return meaning.MeaningIndex(documents, TextIndex(documents), embedder, store)


def _loaded(encoder: Path | None) -> Embedder:
    from anabranch.hub import meaning

    try:
        return meaning.load_embedder(encoder)
    except ValueError as error:
        raise LabError(f"the sentence encoder: {error}") from error


def _entries() -> list[Entry]:
    # Looking must work where nothing may be written: the file is opened only where an import has made it.
    if not catalogue_path().exists():
        return [Entry.of(paper) for paper in papers()]
    with Catalogue(catalogue_path(), papers()) as catalogue:
        return catalogue.entries()


def open_catalogue() -> Catalogue:
    """The catalogue to be read; where nothing was imported yet one in memory, with our own papers in it."""
    return Catalogue(catalogue_path() if catalogue_path().exists() else ":memory:", papers())


def embed(console: Console, encoder: str | None = None) -> None:
    """Embed the catalogue with a bar of progress; what is embedded already is not done again.

    Raises:
        LabError: the encoder is not here.
    """
    if (folder := encoder_folder(encoder)) is None and not has_model():
        raise LabError("--embed: the encoder is not here; anabranch data all-minilm-l6-v2 gets it")
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from anabranch.hub import meaning

    documents = [document(entry) for entry in _entries()]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        "{task.completed:,.0f} of {task.total:,.0f}",
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("embedding")
        embedder = _loaded(folder)
        store = meaning.VectorStore(embedder, meaning.vectors_path(embedder))
        texts = meaning.texts_of(documents)
        store.get(texts, lambda done, of: bar.update(task, completed=done, total=of))
        store.close()
    console.print(f"{len(texts):,} texts of {len(documents):,} papers are ready for the search by meaning")


def print_found(console: Console, rows: list[Row], *, searched: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        console.print("nothing found; `anabranch papers` lists all")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("paper", "title", "published", "package", "here"):
        table.add_column(name, no_wrap=name in ("paper", "published", "package"))
    for row in rows:
        entry = row.entry
        title = escape(entry.title) + (f"\n[dim]{escape(row.sentence)}[/]" if searched and row.sentence else "")
        package = entry.paper.package if entry.paper else "-"
        table.add_row(f"[bold]{entry.slug or '-'}[/]", title, str(entry.published or "-"), package, row.state)
    console.print(table)


def paper_as_dict(slug: str) -> dict[str, Any]:
    """Everything known of a paper of ours, its committed result included."""
    paper = find_paper(slug)
    result = load_result(slug)
    facts = asdict(paper)
    facts["published"] = str(paper.published)
    return {
        **facts,
        "url": paper.url,
        "n_authors": paper.n_authors,
        "runnable": paper.runnable,
        "result": result,
        "stale": is_stale(result) if result else None,
    }


def print_paper(console: Console, slug: str) -> None:
    from rich.markup import escape
    from rich.syntax import Syntax

    from anabranch.lab.settings import describe_settings
    from anabranch.lab.terminal import claims_table

    paper = find_paper(slug)
    result = load_result(slug)
    names = ", ".join(paper.authors)
    more = paper.n_authors - len(paper.authors)
    if more:
        names += f"{' and ' if names else ''}{more} {'more' if names else 'authors'}"
    console.print(f"[bold]{escape(paper.title)}[/]")
    console.print(f"[dim]{escape(names)} · {paper.published:%d %B %Y}{f' · {paper.url}' if paper.url else ''}[/]")
    if paper.repository:
        console.print(f"[dim]authors' code: {paper.repository}[/]")
    console.print(f"\n{escape(paper.summary)}\n")
    verdicts = result_verdicts(result) if result else {}
    console.print(claims_table(paper.claims, verdicts))
    if result:
        stale = " [yellow](stale: the code has changed since)[/]" if is_stale(result) else ""
        console.print(f"measured {result['date'][:10]} at scale {result['scale']}, seeds {result['seeds']}{stale}")
    if not paper.runnable:
        console.print("It has no experiment here yet: the published values stand alone.")
        return
    console.print(f"\nparts    {', '.join(paper.parts)}", soft_wrap=True)
    for scale, settings in paper.scales.items():
        seconds = f" (about {paper.seconds[scale]:.0f} s)" if scale in paper.seconds else ""
        fields = ", ".join(f"{name}={value}" for name, _, value in describe_settings(settings))
        console.print(f"{scale:8} {escape(fields)}[dim]{seconds}[/]", soft_wrap=True)
    console.print(f"\nanabranch run {slug} --scale smoke\nanabranch check {slug}")
    if paper.example:
        code = Syntax(paper.example.strip(), "python", background_color="default")
        console.print(code if console.is_terminal else paper.example, markup=False)


@dataclass(frozen=True)
class Imported:
    """An import and the papers of ours that the page holds."""

    report: ImportReport
    page: str
    ours: int
    total: int

    def as_dict(self) -> dict[str, Any]:
        return {"page": self.page, **asdict(self.report), "ours": self.ours, "total": self.total}


def import_file(path: Path) -> Imported:
    """Import a saved page into the catalogue.

    Raises:
        LabError: the file cannot be read or holds no paper.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise LabError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    return _import_text(text, str(path))


def import_live(source: Source, endpoint: str | None = None) -> Imported:
    """Import a day, week, month or search of Daily Papers into the catalogue.

    Raises:
        LabError: the service did not answer, or lists nothing there.
    """
    from anabranch.hub.daily_papers import DailyPapers, fetch_daily

    try:
        text = fetch_daily(source, DailyPapers(endpoint))
    except ModuleNotFoundError as error:
        raise LabError(f"the live import needs {error.name}: pip install 'anabranch[hub]'") from error
    except ValueError as error:
        raise LabError(str(error)) from error
    return _import_text(text, " ".join(source))


def _import_text(text: str, name: str) -> Imported:
    try:
        entries = parse_saved_page(text)
    except ValueError as error:
        raise LabError(f"{name}: {error}") from error
    ensure(home(), "the catalogue")
    with Catalogue(catalogue_path(), papers()) as catalogue:
        report = import_page(catalogue, text)
        known = {entry.title for entry in catalogue.entries() if entry.paper}
        ours = sum(entry.title in known for entry in entries)
        return Imported(report, name, ours, len(catalogue))


def print_import(console: Console, imported: Imported) -> None:
    report = imported.report
    console.print(
        f"{report.found} papers found: {report.added} new, {report.updated} filled in, {report.matched} known already; "
        f"{imported.ours} of them are built in"
    )
    for skipped in report.skipped:
        console.print(f"left out: {skipped.title!r}: {skipped.reason}", markup=False)
    console.print(f"the catalogue holds {imported.total} papers")
