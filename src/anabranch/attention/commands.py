"""Classify your own series with attention in linear time, and time every attention at your own sizes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Classify your own series with attention in linear time, and time every attention at your own sizes.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_NAMES = "Names with commas, or all: flow, softmax, linear, performer, cosformer, local."
Names = Annotated[str, typer.Option("--attention", "-a", help=_NAMES)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


@app.callback()
def _root() -> None:
    """A callback keeps the commands named."""


@app.command()
def classify(
    series: Annotated[
        Path, typer.Argument(help="Series with labels: .ts, .csv (series,time,channel,value,label) or .npz (X, y).")
    ],
    test: Annotated[Path | None, typer.Option(help="Series to test on; every fifth of the file without.")] = None,
    attention: Names = "flow,softmax,linear",
    epochs: Annotated[int, typer.Option(min=1)] = 60,
    width: Annotated[int, typer.Option(min=1)] = 128,
    depth: Annotated[int, typer.Option(min=1)] = 3,
    heads: Annotated[int, typer.Option(min=1, help="Divides the width.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the models, one folder an attention.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a classifier of series with each attention, everything else equal, and compare accuracy, time and memory.

    anabranch attention classify my.csv --attention flow,softmax -o models
    """  # fmt: skip
    import torch

    import anabranch.attention as att
    from anabranch.generative import fit

    names = _names(attention)
    data = att.read_series(series)
    if test is None:
        held = torch.arange(len(data.labels)) % 5 == 4
        train, tested = data.rows((~held).nonzero()[:, 0]), data.rows(held.nonzero()[:, 0])
    else:
        train, tested = data, att.read_series(test, data.classes)
    if not len(tested.labels) or len(train.labels) < 2:
        raise ValueError(f"{series}: {len(data.labels)} series, expected at least 5, or some more with --test")
    if train.values.shape[2] != tested.values.shape[2]:
        raise ValueError(
            f"{series} has {train.values.shape[2]} channels and {test} {tested.values.shape[2]}: expected as many"
        )
    train, tested = train.normalized(), tested.normalized(train)
    longest = max(train.values.shape[1], tested.values.shape[1])
    batches = -(-len(train.labels) // batch_size)
    rows: list[dict[str, Any]] = []
    for name in names:
        with _busy(f"training with {name} attention"):
            torch.manual_seed(seed)
            draw = torch.Generator().manual_seed(seed)
            net = att.FlowformerEncoder(
                len(train.classes), channels=train.values.shape[2], max_length=longest, width=width, depth=depth, heads=heads,
                attention=name, dropout=0.1, generator=draw,
            )  # fmt: skip
            objective = att.SequenceClassification(train.values, train.labels, batch_size, train.mask)
            fitted, peak = att.peak_memory_bytes(
                lambda net=net, objective=objective, draw=draw: fit(  # type: ignore[misc]
                    net, objective, steps=epochs * batches, generator=draw, lr=lr, warmup=batches, ema=0.99
                )
            )
            begin = time.perf_counter()
            found = att.classify(net, tested.values, tested.mask)
            seconds = time.perf_counter() - begin
        accuracy = float((found == tested.labels).float().mean())
        row: dict[str, Any] = {
            "attention": name, "accuracy": accuracy, "train_s": fitted.seconds, "test_s_per_series": seconds / len(found),
            "peak_bytes": peak,
        }  # fmt: skip
        if output is not None:
            row["model"] = str(net.save(output / name, classes=list(train.classes), accuracy=accuracy, seed=seed))
        rows.append(row)
    share = max(tested.labels.bincount()).item() / len(tested.labels)
    facts = {
        "train": len(train.labels), "test": len(tested.labels), "channels": train.values.shape[2], "length": longest,
        "classes": list(train.classes), "largest_class_share": share,
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps({**facts, "results": rows}, indent=1))
        return
    console = _console()
    console.print(
        f"series    {facts['train']} to train, {facts['test']} to test; {facts['channels']} channels, up to {longest} long; "
        f"{len(train.classes)} classes, the largest {share:.1%} of the test",
        soft_wrap=True,
    )
    table = _table("attention", "accuracy", "training", "test, a series", "peak memory")
    for row in rows:
        table.add_row(
            row["attention"], f"{row['accuracy']:.1%}", f"{row['train_s']:.1f} s", f"{1e3 * row['test_s_per_series']:.2f} ms",
            f"{row['peak_bytes'] / 1e6:.0f} MB",
        )  # fmt: skip
    console.print(table)
    if output is not None:
        console.print(f"wrote     {output} (FlowformerEncoder.load reads a folder)", soft_wrap=True)


@app.command()
def speed(
    length: Annotated[int, typer.Argument(min=1, help="Tokens.")],
    attention: Names = "flow,softmax,linear",
    batch: Annotated[int, typer.Option(min=1)] = 1,
    heads: Annotated[int, typer.Option(min=1)] = 8,
    width: Annotated[int, typer.Option(min=1, help="Features of a head.")] = 64,
    causal: Annotated[bool, typer.Option("--causal", help="Each token sees its past only.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Forward and backward pass.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; its own choice without.")] = None,
    as_json: Json = False,
) -> None:
    """Time every attention at one size on this machine: median of five calls, and the peak memory of one.

    anabranch attention speed 16384 --causal --train
    """
    import torch

    import anabranch.attention as att

    names = _names(attention)
    if threads is not None:
        torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, heads, length, width, generator=draw, requires_grad=train) for _ in range(3))
    rows: list[dict[str, Any]] = []
    for name in names:
        options: dict[str, Any] = {"is_causal": causal}
        if name == "performer":
            options["projection"] = att.performer_projection(width, 2 * width, generator=draw)

        def call(name: str = name, options: dict[str, Any] = options) -> None:
            y = att.ATTENTIONS[name](q, k, v, **options)
            if train:
                torch.autograd.grad(y.sum(), (q, k, v))

        with _busy(name):
            _, peak = att.peak_memory_bytes(call)
            seconds = att.median_seconds(call, 5)
        rows.append({"attention": name, "seconds": seconds, "peak_bytes": peak})
    if as_json:
        typer.echo(json.dumps({"threads": torch.get_num_threads(), "results": rows}, indent=1))
        return
    table = _table("attention", "time", f"/ {rows[0]['attention']}", "peak memory")
    for row in rows:
        relative = row["seconds"] / rows[0]["seconds"]
        table.add_row(
            row["attention"], f"{1e3 * row['seconds']:,.2f} ms", f"{relative:.2f}", f"{row['peak_bytes'] / 1e6:,.0f} MB"
        )
    _console().print(table)


def _names(text: str) -> list[str]:
    """Raises ValueError for a name that is not in ATTENTIONS."""
    import anabranch.attention as att

    if text == "all":
        return list(att.ATTENTIONS)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in att.ATTENTIONS]:
        raise ValueError(f"--attention: unknown {', '.join(unknown)}; there are {', '.join(att.ATTENTIONS)}")
    if not names:
        raise ValueError("--attention names none")
    return names


def _console() -> Console:
    """Plain and wide in a pipe; ``NO_COLOR`` is rich's."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, force_terminal=False, color_system=None, width=160)


def _table(first: str, *headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


@contextmanager
def _busy(what: str) -> Iterator[None]:
    """Says on the terminal what goes on; nothing in a pipe."""
    if sys.stderr.isatty():
        with Console(stderr=True).status(f"{what} ..."):
            yield
    else:
        yield
