"""Plan the serving of language models: the best throughput of a model on a device, and what is lost on the way."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from anabranch.serving._bound_command import Bound

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Plan the serving of language models: the best throughput of a model on a device, and what is lost on the way.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script; times in seconds.")]


@app.callback()
def _root() -> None:
    """A callback keeps the commands named."""


@app.command()
def bound(
    model: Annotated[
        str, typer.Option("--model", "-m", help="config.json, its folder, or a name such as llama-2-70b.")
    ],
    device: Annotated[
        str, typer.Option("--device", "-d", help="A100-80, H100, ... or a JSON file with the fields of a Device.")
    ],
    count: Annotated[int, typer.Option("--count", "-n", help="Devices, tensor parallel.", min=1)] = 1,
    trace: Annotated[
        Path | None, typer.Option(help="csv of requests: an Azure trace, or columns input,output.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(metavar="INPUT,OUTPUT", help="Mean lengths instead of a trace.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Tokens of an iteration.", min=1)] = 2048,
    practical_tflops: Annotated[
        float | None,
        typer.Option(help="Arithmetic of one device in practice; its data sheet without (an A100: 260, as published)."),
    ] = None,
    kernels: Annotated[
        Path | None, typer.Option(help="csv op,batch,ms of measured operations; projected from an A100's without.")
    ] = None,
    interference: Annotated[
        Path | None, typer.Option(help="csv kind,R,P of measured speeds; the paper's table without.")
    ] = None,
    rereads: Annotated[
        bool, typer.Option("--rereads", help="Charge the schedule for weights that both nano-batches read.")
    ] = False,
    gap: Annotated[float, typer.Option(help="Of the searched schedule to the proven bound.")] = 0.01,
    seconds: Annotated[float, typer.Option(help="Limit of the search.")] = 60.0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Schedule as .json, figure as .svg or .png.")] = None,
    as_json: Json = False,
) -> None:
    """Tell the best possible throughput, what limits it, and what engines in turn and overlapped leave of it.

    anabranch serving bound -m llama-2-70b -d A100-80 -n 8 --lengths 512,1024
    """
    from anabranch.serving import _bound_command as command
    from anabranch.simulation import read_device

    if out is not None and out.suffix not in (".json", ".svg", ".png"):
        raise ValueError(f"--out {out}: expected .json, .svg or .png")
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
    practical = None if practical_tflops is None else practical_tflops * 1e12
    workload = command.read_workload(trace, lengths)
    costs = command.costs_of(command.read_shape(model), read_device(device), count, workload, batch, practical)
    found = command.find_bound(
        costs,
        seconds=None if kernels is None else command.read_kernel_seconds(kernels, batch),
        interference=None if interference is None else command.read_interference(interference),
        rereads=rereads, gap=gap, time_limit_s=seconds,
    )  # fmt: skip
    if out is not None:
        _write(found, out)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
        return
    _print(found)
    if out is not None:
        _console().print(f"wrote     {out}", soft_wrap=True)


def _print(found: Bound) -> None:
    console, costs, schedule = _console(), found.costs, found.schedule
    answers, prompts = costs.workload.output_mean, costs.workload.input_mean
    console.print(
        f"model     {costs.shape.name}: {costs.shape.parameters / 1e9:.1f} B parameters, {costs.active_parameters / 1e9:.1f} B "
        f"a token, on {costs.count} {costs.device.name}", soft_wrap=True,
    )  # fmt: skip
    console.print(
        f"workload  {prompts:.0f} tokens in, {answers:.0f} out; {costs.batch:,} tokens an iteration; caches of "
        f"{costs.max_requests:,} requests fit", soft_wrap=True,
    )  # fmt: skip
    console.print(
        f"bound by  {costs.bound}: compute {1e3 * costs.compute_s:.1f} ms, memory {1e3 * costs.memory_s:.1f} ms, network "
        f"{1e3 * costs.network_s:.1f} ms an iteration; memory / compute {costs.ratio:.2f}", soft_wrap=True,
    )  # fmt: skip
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("engine", no_wrap=True)
    for heading in ("tokens/s/device", "of optimum", "lost"):
        table.add_column(heading, justify="right")
    best = found.rates["optimum"]
    for name, rate in found.rates.items():
        style = "bold" if name == "searched overlap" else "dim" if name == "optimum" else None
        table.add_row(name, f"{rate:,.0f}", f"{rate / best:.1%}", f"{1 - rate / best:.1%}", style=style)
    console.print(table)
    state = (
        f"proven within {schedule.gap:.1%} of the best of two lanes"
        if schedule.status == "optimal"
        else schedule.status
    )
    console.print(f"schedule  {schedule.gain:.3f}x the operations of its nano-batches in turn; {state}", soft_wrap=True)
    if costs.bound != "compute":
        console.print(
            f"note      {costs.bound} takes longest: the optimum counts arithmetic only and cannot be reached"
        )


def _write(found: Bound, out: Path) -> None:
    if out.suffix == ".json":
        found.schedule.to_json(out)
        return
    from anabranch.lab.figures import new_figure, plot_gantt, render

    figure, (bars, lanes) = new_figure(2, 1)
    names = list(found.rates)
    bars.barh(names, [found.rates[name] for name in names])
    bars.set(
        title=f"{found.costs.shape.name} on {found.costs.count} {found.costs.device.name}", xlabel="tokens/s/device"
    )
    plot_gantt(found.schedule.rows(), title="One layer of every nano-batch", x="ms", unit=1e-3, axes=lanes)
    out.write_bytes(render(figure)[out.suffix[1:]])


def _console() -> Console:
    """Plain and wide in a pipe; ``NO_COLOR`` is rich's."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, force_terminal=False, color_system=None, width=160)
