"""Plan the paths of training traffic on a network fabric, and compare with hashing and spraying."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import anabranch.fabric as fb

if TYPE_CHECKING:
    from anabranch.fabric._comparison import Bounds, Row
    from anabranch.fabric._jobs import Job

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Plan the paths of training traffic on a network fabric, and compare with hashing and spraying.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_TRAFFIC, _COLLECTIVE, _MODEL = "Traffic (one of these)", "With --collective", "With --model"
_FILES = "Files to write"
_MANY_HOPS = 400_000_000
_HOPS_PER_S = 1.5e7

Fabric = Annotated[
    str, typer.Option("--topology", "-t", help="JSON file of nodes and links, or LEAVESxSPINESxNICS such as 16x16x16.")
]
Fail = Annotated[
    list[str] | None,
    typer.Option(
        "--fail", metavar="A-B", help="Cable that is down, by the names of its ends (A->B: one way). Repeatable."
    ),
]
Seed = Annotated[int, typer.Option(help="Of the hash, of sprayed packets and of a model's expert routing.", min=0)]
PacketBytes = Annotated[int, typer.Option(help="Size of a packet in the packet simulation.", min=1)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script; times in seconds.")]


@app.callback()
def _root() -> None:
    """A callback keeps the commands named."""


@app.command()
def plan(
    topology: Fabric,
    traffic: Annotated[Path | None, typer.Option(help="csv src,dst,bytes[,start_s].", rich_help_panel=_TRAFFIC)] = None,
    chakra: Annotated[
        Path | None, typer.Option(help="JSON list of communication nodes of a Chakra trace.", rich_help_panel=_TRAFFIC)
    ] = None,
    collective: Annotated[
        str | None,
        typer.Option(help="all-reduce, all-to-all, all-gather, reduce-scatter or pipeline.", rich_help_panel=_TRAFFIC),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="One training iteration of smollm2-135m, llama-2-70b, mixtral-8x7b or a config.json.",
            rich_help_panel=_TRAFFIC,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--bytes", help="Message of a rank, such as 64MiB or 4e6.", rich_help_panel=_COLLECTIVE),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            help="ring (default), halving-doubling, recursive-doubling, double-binary-tree, hierarchical; direct "
            "(default), linear-shift. With --model and --chakra: of their all-reduces.",
            rich_help_panel=_COLLECTIVE,
        ),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(help="All placed ranks, or all NICs, if not given.", rich_help_panel=_COLLECTIVE)
    ] = None,
    ranks_per_host: Annotated[
        int | None, typer.Option(help="Of a hierarchical all-reduce (default 8).", rich_help_panel=_COLLECTIVE)
    ] = None,
    fold: Annotated[
        bool,
        typer.Option("--fold", help="Let halving-doubling run on any number of ranks.", rich_help_panel=_COLLECTIVE),
    ] = False,
    parallel: Annotated[
        str | None,
        typer.Option(
            metavar="T,P,D[,E]", help="Tensor, pipeline, data and expert parallelism.", rich_help_panel=_MODEL
        ),
    ] = None,
    sequence: Annotated[int, typer.Option(help="Tokens of a sequence.", min=1, rich_help_panel=_MODEL)] = 4096,
    micro_batches: Annotated[
        int,
        typer.Option(help="Micro-batches of one sequence in an iteration, per replica.", min=1, rich_help_panel=_MODEL),
    ] = 8,
    placement: Annotated[
        Path | None,
        typer.Option(help="csv rank,nic; without it rank r is on NIC r. With it --traffic is between ranks."),
    ] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="konig, split, greedy, ecmp or spray.")] = "konig",
    parts: Annotated[int, typer.Option(help="ECMP also with every flow cut into so many equal parts.", min=1)] = 1,
    seed: Seed = 0,
    fail: Fail = None,
    packets: Annotated[
        bool, typer.Option("--packets", help="Simulate every packet too (endless queues, no congestion control).")
    ] = False,
    packet_bytes: PacketBytes = 4096,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The plan: csv, one line a piece.", rich_help_panel=_FILES)
    ] = None,
    paths_json: Annotated[
        Path | None,
        typer.Option(help="The plan with the links of every piece, for source routing.", rich_help_panel=_FILES),
    ] = None,
    nccl: Annotated[
        Path | None, typer.Option(help="NCCL's settings, for its configuration file.", rich_help_panel=_FILES)
    ] = None,
    as_json: Json = False,
) -> None:
    """Give every flow its path, cut where that evens the load, and compare with the other methods.

    anabranch fabric plan -t 16x16x16 --collective all-reduce --algorithm halving-doubling --bytes 64MiB -o paths.csv
    """
    from anabranch.fabric import _comparison as cmp
    from anabranch.fabric import _jobs as jobs
    from anabranch.fabric import _words as words

    if method.startswith("ecmp-x"):
        raise ValueError(f"unknown method {method!r}; write --method ecmp --parts {method[6:]}")
    jobs.nearest("method", method, cmp.METHODS)
    files = {"output": output, "paths-json": paths_json, "nccl": nccl}
    for option, file in files.items():
        if file is not None and method == "spray":
            raise ValueError(f"--{option}: spraying picks a path for every packet, there is no plan to write")
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"--{option} {file}: there is no folder {file.parent}")
    options = {
        "bytes": size, "algorithm": algorithm, "ranks": ranks, "ranks_per_host": ranks_per_host, "fold": fold or None,
        "parallel": parallel, "sequence": sequence, "micro_batches": micro_batches, "seed": seed,
    }  # fmt: skip
    with _busy("reading"):
        fabric = jobs.fail_cables(jobs.read_fabric(topology), fail or [])
        sources = {"traffic": traffic, "chakra": chakra, "collective": collective, "model": model}
        job = jobs.read_job(fabric, sources, placement, options)
    chosen = f"ecmp-x{parts}" if method == "ecmp" and parts > 1 else method
    everyone = cmp.planners(seed, parts)
    if packets:
        _warn_if_long(cmp.packet_hops(fabric, job.traffic, packet_bytes) * len(everyone))
    with _busy("finding the optimum"):
        bounds = cmp.find_bounds(fabric, job)
    rows = []
    for name in sorted(everyone, key=lambda name: name != chosen):
        with _busy(f"{name}: planning and simulating"):
            size_of_packets = packet_bytes if packets else None
            made, row = cmp.measure(name, everyone[name], fabric, job, packet_bytes=size_of_packets, seed=seed)
            rows.append(row)
            if name == chosen:
                best = made
    settings = fb.nccl_settings(best) if isinstance(best, fb.Plan) else None
    pieces = None
    if output or paths_json:
        with _busy("writing"):
            full = everyone[chosen](fabric, job.whole)
            assert isinstance(full, fb.Plan)
            pieces = full.n_pieces
            if output:
                full.to_csv(output)
            if paths_json:
                fb.write_path_table(full, paths_json)
    if nccl and settings:
        lines = [f"{name}={value}\n" for name, value in settings.environment().items()]
        nccl.write_text("".join(lines), encoding="utf-8")
    written = {option: str(file) for option, file in files.items() if file is not None}
    if as_json:
        _print_json(words.as_dict(fabric, job, chosen, bounds, rows, settings, written))
        return
    console = _console()
    _print_heading(console, fabric, f"{job.name}: {words.job_words(job)}")
    console.print(f"bound     {words.bounds_words(bounds)}", soft_wrap=True)
    if job.n_flows:
        for table in _tables(job, rows, bounds):
            console.print(table)
        console.print(f"result    {words.verdict_words(rows, bounds)}", soft_wrap=True)
    if nccl and settings:
        console.print(f"nccl      {words.nccl_words(settings)}", soft_wrap=True)
    for option, name in written.items():
        what = "" if option == "nccl" else f" ({pieces:,} pieces{', every phase once' if len(job.phases) > 1 else ''})"
        console.print(f"wrote     {escape(name)}{what}", soft_wrap=True)


@app.command()
def simulate(
    paths: Annotated[Path, typer.Argument(help="A plan that `plan --output` wrote.")],
    topology: Fabric,
    fail: Fail = None,
    packets: Annotated[bool, typer.Option("--packets/--no-packets", help="Simulate every packet too.")] = True,
    packet_bytes: PacketBytes = 4096,
    as_json: Json = False,
) -> None:
    """How long a plan takes on a fabric; pieces on cables that are down move to living paths.

    anabranch fabric simulate paths.csv -t 16x16x16 --fail leaf0-spine3
    """
    from anabranch.fabric import _comparison as cmp
    from anabranch.fabric import _jobs as jobs
    from anabranch.fabric import _words as words

    with _busy("reading"):
        whole = jobs.read_fabric(topology)
        fabric = jobs.fail_cables(whole, fail or [])
        before = fb.Plan.from_csv(paths, whole)
        moved = fb.replan(before, fabric)
        made, times = jobs.once(moved)
    if packets:
        _warn_if_long(cmp.packet_hops(fabric, made.traffic, packet_bytes))
    job = jobs.Job(str(paths), moved.traffic, made.traffic, (str(paths),), times[None, :], 0)
    with _busy("simulating"):
        bounds = cmp.find_bounds(fabric, job)
        _, row = cmp.measure(
            "plan", lambda _, __: made, fabric, job, packet_bytes=packet_bytes if packets else None, seed=0
        )
    n_moved = int((moved.path != before.path).sum())
    busiest = list(cmp.busiest_links(made, times, 3))
    if as_json:
        found = words.as_dict(fabric, job, "plan", bounds, [row], None, {})
        _print_json(found | {"moved_pieces": n_moved, "busiest_links_s": dict(busiest)})
        return
    console = _console()
    _print_heading(console, fabric, f"{paths}: {words.job_words(job)}, {moved.n_pieces:,} pieces")
    if fail:
        console.print(f"moved     {n_moved:,} of {moved.n_pieces:,} pieces off cables that are down")
    console.print(f"bound     {words.bounds_words(bounds)}", soft_wrap=True)
    if job.n_flows:
        for table in _tables(job, [row], bounds):
            console.print(table)
    for name, seconds in busiest:
        console.print(f"busy      {escape(name)}  {seconds / row.completion_s:.0%} of the time")


@contextmanager
def _busy(what: str) -> Iterator[None]:
    """Says on the terminal what goes on; nothing in a pipe."""
    if sys.stderr.isatty():
        with Console(stderr=True).status(f"{what} ..."):
            yield
    else:
        yield


def _warn_if_long(hops: int) -> None:
    if hops > _MANY_HOPS:
        minutes = max(1.0, hops / _HOPS_PER_S / 60)
        typer.echo(
            f"simulating {hops:,} packet hops, about {minutes:.0f} min; --packet-bytes 65536 is coarser and quicker",
            err=True,
        )


def _console() -> Console:
    """Plain and wide in a pipe; ``NO_COLOR`` is rich's."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, force_terminal=False, color_system=None, width=160)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def _print_heading(console: Console, fabric: fb.Topology, traffic: str) -> None:
    from anabranch.fabric import _words as words

    console.print(f"fabric    {words.fabric_words(fabric)}", soft_wrap=True)
    if len(fabric.failed):
        names = [fabric.link_name(int(link)) for link in fabric.failed[:6]]
        more = f" and {len(fabric.failed) - 6} more" if len(fabric.failed) > 6 else ""
        console.print(f"down      [red]{escape(', '.join(names))}{more}[/]", soft_wrap=True)
    console.print(f"traffic   {escape(traffic)}", soft_wrap=True)


def _new_table(first: str, headings: Sequence[tuple[str, int]]) -> Table:
    """Right-justified columns of at least the given widths, narrow enough for 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for heading, width in headings:
        table.add_column(heading, justify="right", min_width=width, max_width=9)
    return table


def _tables(job: Job, rows: list[Row], bounds: Bounds) -> Iterator[Table]:
    """The methods; their packets, if simulated; the phases, if there are several."""
    from anabranch.fabric import _words as words

    first = rows[0]
    against, reference = (first.method, first.completion_s) if len(rows) > 1 else ("bound", bounds.completion_s)
    relative = f"/ {against}"
    headings = [
        ("busiest link / optimum", 7),
        ("pieces / flow", 7),
        ("most QPs on a NIC", 8),
        ("time", 8),
        (relative, 4),
    ]
    table = _new_table("method", headings)
    for row in rows:
        table.add_row(
            row.method,
            words.as_ratio(row.congestion_s, bounds.congestion_s, 3),
            "-" if row.pieces_per_flow is None else f"{row.pieces_per_flow:.2f}",
            "-" if row.queue_pairs is None else f"{row.queue_pairs:,}",
            words.as_time(row.completion_s),
            words.as_ratio(row.completion_s, reference, 2),
            style="bold" if row is first else None,
            end_section=row in (first, rows[-1]),
        )
    at_best = words.as_ratio(bounds.congestion_s, bounds.congestion_s, 3), "", "", words.as_time(bounds.completion_s)
    table.add_row("bound", *at_best, words.as_ratio(bounds.completion_s, reference, 2), style="dim")
    yield table
    if first.packets:
        reference = first.packets.completion_s if len(rows) > 1 else bounds.completion_s
        table = _new_table("packets", [("time", 8), (relative, 4), ("reordered", 9), ("longest queue", 8)])
        for row in rows:
            if packets := row.packets:
                times = words.as_time(packets.completion_s), words.as_ratio(packets.completion_s, reference, 2)
                table.add_row(
                    row.method, *times, f"{packets.reordered_fraction:.1%}", words.as_size(packets.max_queue_bytes)
                )
        yield table
    if len(job.phases) > 1:
        table = _new_table("phase", [("bytes", 7), *((row.method, 8) for row in rows)])
        for p, (name, size) in enumerate(zip(job.phases, job.phase_bytes().tolist(), strict=True)):
            table.add_row(escape(name), words.as_size(size), *(words.as_time(row.phase_s[p]) for row in rows))
        yield table
