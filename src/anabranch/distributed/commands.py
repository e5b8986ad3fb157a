"""Plan how a model is trained over several devices: stages, micro-batches, schedule, recomputation."""

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
    from anabranch.distributed import LayerProfile, PipelinePlan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Plan how a model is trained over several devices: stages, micro-batches, schedule, recomputation.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_MODEL, _DEVICES, _TRAINING = "Model (one of these)", "Devices", "Training"


@app.callback()
def _root() -> None:
    """A callback keeps the commands named."""


@app.command()
def plan(
    model: Annotated[
        Path | None, typer.Option(help="config.json of a Llama-like model.", rich_help_panel=_MODEL)
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="csv name,forward_s,backward_s,params,activation_bytes,output_bytes.", rich_help_panel=_MODEL
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Samples that the profile was measured on.", min=1, rich_help_panel=_MODEL)
    ] = 1,
    devices: Annotated[int, typer.Option(help="At most so many.", min=1, rich_help_panel=_DEVICES)] = 4,
    memory: Annotated[str, typer.Option(help="Of a device, such as 16GB or 16GiB.", rich_help_panel=_DEVICES)] = "16GB",
    bandwidth: Annotated[
        str, typer.Option(help="Between devices, one way, such as 12GB/s.", rich_help_panel=_DEVICES)
    ] = "12GB/s",
    flops: Annotated[
        str,
        typer.Option(
            help="What a device reaches in practice, for --model, such as 100TFLOP/s.", rich_help_panel=_DEVICES
        ),
    ] = "100TFLOP/s",
    batch: Annotated[int, typer.Option(help="Samples of a mini-batch.", min=1, rich_help_panel=_TRAINING)] = 32,
    sequence: Annotated[
        int, typer.Option(help="Tokens of a sample, for --model.", min=1, rich_help_panel=_TRAINING)
    ] = 2048,
    bytes_per_parameter: Annotated[
        float,
        typer.Option(help="Weight, gradient and optimizer; 16 for Adam in float32.", rich_help_panel=_TRAINING),
    ] = 16.0,
    top: Annotated[int, typer.Option(help="Show so many plans.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Choose stages, replicas, micro-batches, schedule and recomputation; the fastest plan that fits comes first.

    anabranch distributed plan --model config.json --devices 4 --memory 16GB --bandwidth 12GB/s
    """
    if (model is None) == (profile is None):
        raise ValueError(f"give exactly one of --model, --profile, got {'none' if model is None else 'both'}")
    memory_bytes = parse_quantity("memory", memory, "B")
    bandwidth_bytes_per_s = parse_quantity("bandwidth", bandwidth, "B/s")
    from anabranch.distributed import LayerProfile, plan_pipeline

    if model is not None:
        costs = read_model(model, sequence, parse_quantity("flops", flops, "FLOP/s"))
    else:
        assert profile is not None
        costs = LayerProfile.from_csv(profile, samples=samples)
    plans = plan_pipeline(
        costs,
        devices=devices,
        memory_bytes=memory_bytes,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        batch=batch,
        bytes_per_parameter=bytes_per_parameter,
    )
    if as_json:
        shown = {
            "layers": costs.layers,
            "parameters": int(costs.params.sum()),
            "plans": [made.as_dict() for made in plans[:top]],
            "fitting": len(plans),
        }
        typer.echo(json.dumps(shown, indent=1, allow_nan=False))
        return
    console = _console()
    console.print(f"model     {model or profile}: {costs.layers} layers, {costs.params.sum():,.0f} parameters")
    console.print(
        f"devices   {devices} with {memory_bytes / 1e9:.4g} GB, {bandwidth_bytes_per_s / 1e9:.4g} GB/s between them"
    )
    console.print(_table(plans[:top]))
    best = plans[0]
    console.print(f"balance   {' '.join(map(str, best.balance))} layers", soft_wrap=True)
    console.print(f"result    {_words(best, plans, batch)}", soft_wrap=True)


def read_model(path: Path, sequence: int, flops_per_s: float) -> LayerProfile:
    """Costs of the model that a ``config.json`` describes.

    Raises:
        ValueError: no JSON object, or one without the numbers that are needed.
    """
    from anabranch.distributed import profile_transformer
    from anabranch.simulation import TransformerShape

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an object")
    try:
        shape = TransformerShape.from_config(path.stem, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return profile_transformer(shape, sequence=sequence, flops_per_s=flops_per_s)


def parse_quantity(name: str, text: str, unit: str) -> float:
    """A number with a unit and a decimal prefix, ``16GB`` or ``12 GB/s``; for bytes also a binary one, ``16GiB``.

    Raises:
        ValueError: anything else, or nothing above zero.
    """
    number, binary = text.strip().removesuffix(unit).strip(), 1
    prefix = ""
    if unit.startswith("B") and number[-2:-1] and number.endswith("i"):
        number, binary = number[:-1], 1024
    if number and number[-1] in "kKMGTP":
        number, prefix = number[:-1].strip(), number[-1]
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    order = " kMGTP".index(prefix.replace("K", "k")) if prefix else 0
    value *= 1024.0**order if binary == 1024 else 1000.0**order
    if not 0 < value < float("inf") or not text.strip().endswith(unit) or (binary == 1024 and not prefix):
        raise ValueError(f"{name} must be a number above 0 with the unit {unit}, such as 16G{unit}, got {text!r}")
    return value


def _words(best: PipelinePlan, plans: list[PipelinePlan], batch: int) -> str:
    said = f"{best.stages} stages x {best.replicas} replicas: {best.step_s:.4g} s a step, {batch / best.step_s:.4g} samples/s"
    alone = [made.step_s for made in plans if made.stages == made.replicas == 1]
    if not alone:
        return f"{said}; one device does not hold the model"
    return f"{said}; {min(alone) / best.step_s:.2f}x one device"


def _table(plans: list[PipelinePlan]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("stages", "replicas", "micro-batches", "schedule", "recompute", "step", "bubble", "memory"):
        table.add_column(heading, justify="left" if heading in ("schedule", "recompute") else "right")
    for made in plans:
        table.add_row(
            str(made.stages), str(made.replicas), str(made.micro_batches), made.schedule, made.checkpoint.replace("_", " "),
            f"{made.step_s:.4g} s", f"{made.bubble_fraction:.1%}", f"{max(made.memory_bytes) / 1e9:.3g} GB",
            style="bold" if made is plans[0] else None,
        )  # fmt: skip
    return table


def _console() -> Console:
    """Plain and wide in a pipe; ``NO_COLOR`` is rich's."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, force_terminal=False, color_system=None, width=160)
