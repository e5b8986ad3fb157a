"""Plan how a model is trained over several devices: stages, micro-batches, schedule, recomputation."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
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
_MODEL, _DEVICES, _TRAINING, _FILES = "Model (one of these)", "Devices", "Training", "Files"


@app.callback()
def _root() -> None:
    """A callback keeps the commands named."""


@app.command()
def plan(
    model: Annotated[
        Path | None, typer.Option(help="config.json of a Llama-like model.", rich_help_panel=_MODEL)
    ] = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            help="csv name,forward_s,backward_s,params,activation_bytes,output_bytes; several for several sizes.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    samples: Annotated[
        list[int] | None,
        typer.Option(help="Samples that the profile was measured on, one a profile; 1.", min=1, rich_help_panel=_MODEL),
    ] = None,
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
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Figure of the best plan, .svg or .png.", rich_help_panel=_FILES)
    ] = None,
    profile_out: Annotated[
        Path | None,
        typer.Option(
            help="The layers' costs of --model as csv, to be edited and given to --profile.", rich_help_panel=_FILES
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Show so many plans.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Choose stages, replicas, micro-batches, schedule and recomputation; the fastest plan that fits comes first.

    anabranch distributed plan --model config.json --devices 4 --memory 16GB --bandwidth 12GB/s
    """
    if (model is None) == (not profile):
        raise ValueError(f"give exactly one of --model, --profile, got {'none' if model is None else 'both'}")
    if out is not None and out.suffix not in (".svg", ".png"):
        raise ValueError(f"--out {out}: expected .svg or .png")
    for option, file in (("--out", out), ("--profile-out", profile_out)):
        if file is not None and not file.absolute().parent.is_dir():
            raise ValueError(f"{option} {file}: there is no folder {file.parent}")
    if profile_out is not None and model is None:
        raise ValueError("--profile-out: a profile that is given as csv is not written again; use it with --model")
    memory_bytes = parse_quantity("memory", memory, "B")
    bandwidth_bytes_per_s = parse_quantity("bandwidth", bandwidth, "B/s")
    from anabranch.distributed import LayerProfile, plan_pipeline

    if model is not None:
        costs = [read_model(model, sequence, parse_quantity("flops", flops, "FLOP/s"))]
    else:
        files, sizes = profile or [], samples or [1]
        if len(sizes) != len(files):
            raise ValueError(f"give --samples once a profile: {len(files)} profiles, --samples {len(sizes)} times")
        costs = [LayerProfile.from_csv(file, samples=size) for file, size in zip(files, sizes, strict=True)]
    layers, parameters = costs[0].layers, int(costs[0].params.sum())
    plans = plan_pipeline(
        costs,
        devices=devices,
        memory_bytes=memory_bytes,
        bandwidth_bytes_per_s=bandwidth_bytes_per_s,
        batch=batch,
        bytes_per_parameter=bytes_per_parameter,
    )
    written = []
    if profile_out is not None:
        costs[0].to_csv(profile_out)
        written.append(str(profile_out))
    if out is not None:
        _draw(costs, plans[0], memory_bytes, bytes_per_parameter, out)
        written.append(str(out))
    if as_json:
        shown = {
            "layers": layers,
            "parameters": parameters,
            "plans": [made.as_dict() for made in plans[:top]],
            "fitting": len(plans),
            "written": written,
        }
        typer.echo(json.dumps(shown, indent=1, allow_nan=False))
        return
    console = _console()
    named = model or ", ".join(map(str, profile or []))
    console.print(f"model     {named}: {layers} layers, {parameters:,} parameters", soft_wrap=True)
    console.print(
        f"devices   {devices} with {memory_bytes / 1e9:.4g} GB, {bandwidth_bytes_per_s / 1e9:.4g} GB/s between them"
    )
    console.print(_table(plans[:top]))
    best = plans[0]
    console.print(f"balance   {' '.join(map(str, best.balance))} layers", soft_wrap=True)
    console.print(f"result    {_words(best, plans, batch)}", soft_wrap=True)
    for name in written:
        console.print(f"wrote     {name}", soft_wrap=True)


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


_MOST_LABELS = 400  # numbers inside of bars, beyond which they cover each other


def _draw(
    costs: Sequence[LayerProfile], best: PipelinePlan, memory: float, bytes_per_parameter: float, out: Path,
) -> None:  # fmt: skip
    """The step of the best plan, and what every stage holds beside what a device has."""
    from anabranch.distributed import profile_at, stage_costs
    from anabranch.lab.figures import COLORS, new_figure, plot_gantt, render

    size = best.batch / best.replicas / best.micro_batches
    timeline = best.timeline(costs)
    bars = timeline.bars()
    if len(bars) > _MOST_LABELS:
        bars = [(*bar[:-1], "") for bar in bars]
    figure, (steps, held) = new_figure(2, 1, figsize=(8.2, 6.4))
    unit, name = (1e-3, "ms") if timeline.step_s < 1 else (1.0, "s")
    title = (
        f"{best.stages} stages, {best.micro_batches} micro-batches, {best.schedule}: {best.bubble_fraction:.1%} idle"
    )
    plot_gantt(bars, title=title, x=name, unit=unit, axes=steps)
    fixed = stage_costs(profile_at(costs, size), best.balance).params * bytes_per_parameter / 1e9
    lanes = [f"stage {k}" for k in range(best.stages)]
    total = [value / 1e9 for value in best.memory_bytes]
    held.barh(lanes, fixed, color=COLORS[0], label="parameters, gradients, optimizer")
    held.barh(
        lanes, [t - f for t, f in zip(total, fixed, strict=True)], left=fixed, color=COLORS[1], label="activations"
    )
    held.axvline(memory / 1e9, color=COLORS[-1], linestyle="--", label="a device")
    held.invert_yaxis()
    held.set(xlabel="GB")
    held.set_title("Memory", loc="left", fontweight="bold")
    held.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(0, -0.22), fontsize=9)
    out.write_bytes(render(figure)[out.suffix[1:]])


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
            str(made.stages), str(made.replicas), str(made.micro_batches), made.schedule, _recomputation(made.checkpoint),
            f"{made.step_s:.4g} s", f"{made.bubble_fraction:.1%}", f"{max(made.memory_bytes) / 1e9:.3g} GB",
            style="bold" if made is plans[0] else None,
        )  # fmt: skip
    return table


def _recomputation(checkpoint: str | tuple[str, ...]) -> str:
    """One word for all stages, or the words of the stages with how often each follows itself."""
    words = (checkpoint,) if isinstance(checkpoint, str) else checkpoint
    groups = [(word.replace("_", " "), len(list(group))) for word, group in itertools.groupby(words)]
    return ", ".join(f"{n} {word}" if len(groups) > 1 else word for word, n in groups)


def _console() -> Console:
    """Plain and wide in a pipe; ``NO_COLOR`` is rich's."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, force_terminal=False, color_system=None, width=160)
