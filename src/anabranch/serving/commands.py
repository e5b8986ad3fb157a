"""Plan the serving of language models: bounds of a model, clusters for a load, real servers with phases apart."""

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
    help="Plan the serving of language models: bounds of a model, clusters for a load, real servers with phases apart.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_LOAD, _MACHINES, _LIMITS = "Load", "Machines", "Limits (slowdowns at P50,P90,P99)"
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script; times in seconds.")]
Seed = Annotated[int, typer.Option(help="Of everything random.", min=0)]


@app.callback()
def _root() -> None:
    """A callback keeps the commands named."""


@app.command()
def bound(
    model: Annotated[
        str, typer.Option("--model", "-m", help="config.json, its folder, or a name such as llama-2-70b.")
    ],
    device: Annotated[
        str,
        typer.Option("--device", "-d", help="A100-80, H100, ..., a JSON file of a Device, measured or measured:cuda."),
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
        bool, typer.Option("--rereads", help="Charge the schedule for weights that every nano-batch reads.")
    ] = False,
    lanes: Annotated[int, typer.Option(help="Nano-batches that run at once, one in each lane.", min=2, max=8)] = 2,
    gap: Annotated[float, typer.Option(help="Of the searched schedule to the proven bound.")] = 0.01,
    seconds: Annotated[float, typer.Option(help="Limit of the search.")] = 60.0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Schedule as .json, figure as .svg or .png.")] = None,
    as_json: Json = False,
) -> None:
    """Tell the best possible throughput, what limits it, and what engines in turn and overlapped leave of it.

    anabranch serving bound -m llama-2-70b -d A100-80 -n 8 --lengths 512,1024
    """
    from anabranch.serving import _bound_command as command

    if out is not None and out.suffix not in (".json", ".svg", ".png"):
        raise ValueError(f"--out {out}: expected .json, .svg or .png")
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
    practical = None if practical_tflops is None else practical_tflops * 1e12
    workload = command.read_workload(trace, lengths)
    costs = command.costs_of(command.read_shape(model), command.device_of(device), count, workload, batch, practical)
    found = command.find_bound(
        costs,
        seconds=None if kernels is None else command.read_kernel_seconds(kernels, batch),
        interference=None if interference is None else command.read_interference(interference),
        rereads=rereads, lanes=lanes, gap=gap, time_limit_s=seconds,
    )  # fmt: skip
    if out is not None:
        _write(found, out)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
        return
    _print(found)
    if out is not None:
        _console().print(f"wrote     {out}", soft_wrap=True)


@app.command()
def provision(
    trace: Annotated[
        Path | None,
        typer.Option(
            help="csv TIMESTAMP,ContextTokens,GeneratedTokens or arrival_s,prompt_tokens,output_tokens.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    service: Annotated[
        str, typer.Option(help="Without a trace: published lengths of conversation or code.", rich_help_panel=_LOAD)
    ] = "conversation",
    rate: Annotated[
        float | None,
        typer.Option(help="Requests a second to be kept; without a budget, the trace's own.", rich_help_panel=_LOAD),
    ] = None,
    budget_power: Annotated[
        str | None, typer.Option(help="Spend this power, such as 200kW.", rich_help_panel=_LOAD)
    ] = None,
    budget_cost: Annotated[
        float | None, typer.Option(help="Spend so much an hour (dollars).", min=0, rich_help_panel=_LOAD)
    ] = None,
    minimise: Annotated[str, typer.Option(help="With a rate: cost or power.", rich_help_panel=_LOAD)] = "cost",
    seconds: Annotated[float, typer.Option(help="Of arrivals in a simulation.", min=1, rich_help_panel=_LOAD)] = 60.0,
    profile: Annotated[
        Path | None,
        typer.Option(help="csv of measured times, as `serving profile` writes it.", rich_help_panel=_MACHINES),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="bloom-176b (default) or llama2-70b; with --profile, its name there.", rich_help_panel=_MACHINES
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="The model's config.json: cache and weights follow from it.", rich_help_panel=_MACHINES),
    ] = None,
    machines: Annotated[
        Path | None,
        typer.Option(
            help="Your machines (JSON, or the [[machines]] of a TOML file) instead of DGX-A100, DGX-H100 and its capped form.",
            rich_help_panel=_MACHINES,
        ),
    ] = None,
    chunk_tokens: Annotated[
        str | None,
        typer.Option(
            help="Also mixed machines that read prompts in chunks (Sarathi-Serve): tokens of an iteration, 512 or 256,512.",
            rich_help_panel=_MACHINES,
        ),
    ] = None,
    ttft: Annotated[str, typer.Option(help="Time to the first token.", rich_help_panel=_LIMITS)] = "2,3,6",
    tbt: Annotated[str, typer.Option(help="Time between tokens.", rich_help_panel=_LIMITS)] = "1.25,1.5,5",
    e2e: Annotated[str, typer.Option(help="Time to the last token.", rich_help_panel=_LIMITS)] = "1.25,1.5,5",
    seed: Seed = 0,
    seeds: Annotated[
        int,
        typer.Option(
            help="From 2 on: rates of the chosen clusters under so many other arrivals, with an interval.", min=1
        ),
    ] = 1,
    workers: Annotated[
        int | None, typer.Option(help="Processes that search designs and arrivals; one a core without.", min=1)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for a table and a figure.")] = None,
    as_json: Json = False,
) -> None:
    """How many prompt and token machines, at what cost and power, for limits on latency.

    anabranch serving provision --trace my.csv --budget-power 200kW
    """
    from anabranch.serving import _provision_command as command
    from anabranch.serving.simulation_pool import usable_processors

    job = command.Job.of(
        trace=trace, service=service, rate=rate, budget_power=budget_power, budget_cost=budget_cost, minimise=minimise,
        seconds=seconds, profile=profile, model=model, config=config, machines=machines, limits=(ttft, tbt, e2e), seed=seed,
        seeds=seeds, workers=workers or usable_processors(), out=out, chunk_tokens=chunk_tokens,
    )  # fmt: skip
    found = command.search(job, _progress)
    _erase()
    written = command.write(job, found, out) if out is not None else []
    typer.echo(command.as_json(job, found, written) if as_json else command.words(job, found, written))


@app.command()
def simulate(
    cluster: Annotated[
        Path, typer.Option("--cluster", "-c", help="TOML of pools and machines; examples/cluster.toml shows the form.")
    ],
    trace: Annotated[
        Path,
        typer.Option(
            "--trace",
            "-t",
            help="csv TIMESTAMP,ContextTokens,GeneratedTokens or arrival_s,prompt_tokens,output_tokens.",
        ),
    ],
    speed: Annotated[float, typer.Option(help="Of the trace: 2 halves the time between arrivals.")] = 1.0,
    fail: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECONDS:MACHINE",
            help="A machine (numbered over the pools) fails, so long after the first arrival, at --speed; may be repeated.",
        ),
    ] = None,
    max_time: Annotated[
        float | None, typer.Option(help="When to stop: seconds since the first arrival, at --speed.")
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Leave out requests that no machine can hold.")] = False,
    ttft: Annotated[str, typer.Option(help="Time to the first token.", rich_help_panel=_LIMITS)] = "2,3,6",
    tbt: Annotated[str, typer.Option(help="Time between tokens.", rich_help_panel=_LIMITS)] = "1.25,1.5,5",
    e2e: Annotated[str, typer.Option(help="Time to the last token.", rich_help_panel=_LIMITS)] = "1.25,1.5,5",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="csv of every request.")] = None,
    as_json: Json = False,
) -> None:
    """Serve a trace with a cluster: latencies, slowdowns against a request alone on its slowest machine, power, cost, idle time.

    anabranch serving simulate --cluster examples/cluster.toml --trace my.csv
    """
    from anabranch.serving import _simulate_command as command

    served = command.serve(
        cluster, trace, speed=speed, failures=fail or [], limits=(ttft, tbt, e2e), max_time=max_time, drop=drop, out=out
    )
    written = [command.write(served, out)] if out is not None else []
    typer.echo(command.as_json(served, written) if as_json else command.words(served, written))


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="Folder, .gguf file or cached name of a causal language model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The profile: csv.")] = Path("profile.csv"),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    prompt_sizes: Annotated[str, typer.Option(help="Prompt lengths.")] = "32,64,128,256,512,1024",
    batch_sizes: Annotated[str, typer.Option(help="Sequences that are decoded together.")] = "1,2,4,8,16",
    repeats: Annotated[int, typer.Option(help="Of each measurement.", min=1)] = 3,
    threads: Annotated[int | None, typer.Option(help="Of the processor; all if not given.", min=1)] = None,
    hardware: Annotated[str | None, typer.Option(help="What the profile calls this machine.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure prefill and decode times of a model on this machine, for `serving provision --profile`.

    anabranch serving profile SmolLM2-135M-Instruct.gguf -o laptop.csv
    """
    from anabranch.serving import _profile_command as command

    found = command.measure(
        model, output, device=device, prompt_sizes=prompt_sizes, batch_sizes=batch_sizes, repeats=repeats, threads=threads,
        hardware=hardware, seed=seed, progress=_progress,
    )  # fmt: skip
    _erase()
    typer.echo(command.as_json(found, output) if as_json else command.words(found, output))


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Folder, .gguf file or cached name of a causal language model.")],
    colocated: Annotated[bool, typer.Option("--colocated", help="Both phases in one worker, for comparison.")] = False,
    transport: Annotated[str, typer.Option(help="shm, tcp or ray.")] = "shm",
    prefill: Annotated[int, typer.Option(help="Prefill workers.", min=1)] = 1,
    decode: Annotated[int, typer.Option(help="Decode workers.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="Of each worker.", min=1)] = 1,
    device: Annotated[
        str, typer.Option(help="For the models: cpu, cuda or cuda:1; two for prefill and decode, as cuda:0,cuda:1.")
    ] = "cpu",
    max_new_tokens: Annotated[int, typer.Option("--tokens", help="Most tokens of an answer.", min=1)] = 64,
) -> None:
    """Answer prompts, one a line from the standard input; shows the times of each.

    printf 'The capital of France is\\n' | anabranch serving serve SmolLM2-135M-Instruct.gguf
    """
    from anabranch.serving import _serve_command as command

    command.serve(
        model, colocated=colocated, transport=transport, counts=(prefill, decode), threads=threads, device=device,
        max_new_tokens=max_new_tokens, say=lambda text, end: typer.echo(text, nl=end),
    )  # fmt: skip


@app.command()
def worker(
    role: Annotated[str, typer.Option(help="prefill or decode.")],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where servers and workers reach it; port 0 is a free one.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Its own copy of the model; without, the path that the server names.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Of the processor.", min=1)] = 1,
    device: Annotated[str, typer.Option(help="For the model: cpu, cuda or cuda:1.")] = "cpu",
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the key of its address (32 hex digits), which others may not read; without, a new one is printed."
        ),
    ] = None,
) -> None:
    """Run one worker of a split server; prints the address for ``PhaseSplitServer(model, workers=[...])``, then works.

    Only the handshake uses the key: messages are pickles, neither encrypted nor authenticated, so use a trusted network or
    a tunnel. A decode worker listens on a second, random port, for caches.

    anabranch serving worker --role decode --listen 10.0.0.7:7000 --model SmolLM2-135M-Instruct.gguf
    """
    from anabranch.serving import _worker_command as command

    command.run(
        role, listen, model=model, threads=threads, device=device, key_file=key_file, say=typer.echo,
        tell=lambda text: typer.echo(text, err=True),
    )  # fmt: skip


def _progress(done: float, total: float, metrics: dict[str, float]) -> None:
    """One line on the terminal that is written over; nothing in a pipe."""
    if sys.stderr.isatty():
        facts = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        typer.echo(f"\r\033[K{done:g} of {total:g}  {facts}", nl=False, err=True)


def _erase() -> None:
    if sys.stderr.isatty():
        typer.echo("\r\033[K", nl=False, err=True)


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
        f"proven within {schedule.gap:.1%} of the best of {len(schedule.lanes)} lanes"
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
