"""Size a cluster that serves a language model, measure a model for it, and serve one with its phases apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Size a cluster that serves a language model, measure a model for it, and serve one with its phases apart.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script; times in seconds.")]
Seed = Annotated[int, typer.Option(help="Of everything random.", min=0)]
_LOAD, _MACHINES, _LIMITS = "Load", "Machines", "Limits (slowdowns at P50,P90,P99)"


@app.callback()
def _root() -> None:
    """A callback keeps the commands named."""


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
            help="JSON of your machines instead of DGX-A100, DGX-H100 and its capped form.", rich_help_panel=_MACHINES
        ),
    ] = None,
    ttft: Annotated[str, typer.Option(help="Time to the first token.", rich_help_panel=_LIMITS)] = "2,3,6",
    tbt: Annotated[str, typer.Option(help="Time between tokens.", rich_help_panel=_LIMITS)] = "1.25,1.5,5",
    e2e: Annotated[str, typer.Option(help="Time to the last token.", rich_help_panel=_LIMITS)] = "1.25,1.5,5",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for a table and a figure.")] = None,
    as_json: Json = False,
) -> None:
    """How many prompt and token machines, at what cost and power, for limits on latency.

    anabranch serving provision --trace my.csv --budget-power 200kW
    """
    from anabranch.serving import _provision_command as command

    job = command.Job.of(
        trace=trace, service=service, rate=rate, budget_power=budget_power, budget_cost=budget_cost, minimise=minimise,
        seconds=seconds, profile=profile, model=model, config=config, machines=machines, limits=(ttft, tbt, e2e), seed=seed,
        out=out,
    )  # fmt: skip
    found = command.search(job, _progress)
    _erase()
    written = command.write(job, found, out) if out is not None else []
    typer.echo(command.as_json(job, found, written) if as_json else command.words(job, found, written))


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
    max_new_tokens: Annotated[int, typer.Option("--tokens", help="Most tokens of an answer.", min=1)] = 64,
) -> None:
    """Answer prompts, one a line from the standard input; shows the times of each.

    printf 'The capital of France is\\n' | anabranch serving serve SmolLM2-135M-Instruct.gguf
    """
    from anabranch.serving import _serve_command as command

    command.serve(
        model, colocated=colocated, transport=transport, counts=(prefill, decode), threads=threads,
        max_new_tokens=max_new_tokens, say=lambda text, end: typer.echo(text, nl=end),
    )  # fmt: skip


def _progress(done: float, total: float, metrics: dict[str, float]) -> None:
    """One line on the terminal that is written over; nothing in a pipe."""
    import sys

    if sys.stderr.isatty():
        facts = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        typer.echo(f"\r\033[K{done:g} of {total:g}  {facts}", nl=False, err=True)


def _erase() -> None:
    import sys

    if sys.stderr.isatty():
        typer.echo("\r\033[K", nl=False, err=True)
