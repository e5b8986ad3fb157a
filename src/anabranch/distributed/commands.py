"""Plan how a model is trained over several devices: stages, micro-batches, schedule, recomputation."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from anabranch.distributed import LayerProfile, PipelinePlan, PipelineTimeline

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
    _check_figure(out)
    if profile_out is not None and not profile_out.absolute().parent.is_dir():
        raise ValueError(f"--profile-out {profile_out}: there is no folder {profile_out.parent}")
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


@app.command()
def schedules(
    stages: Annotated[int, typer.Option("--stages", "-k", help="Equal ones, one a device.", min=1)] = 4,
    micro_batches: Annotated[int, typer.Option("--micro-batches", "-m", help="Of a mini-batch.", min=1)] = 8,
    forward_s: Annotated[float, typer.Option(help="Seconds of a micro-batch's forward on a stage.")] = 1.0,
    inputs_s: Annotated[float, typer.Option(help="The same of its gradient of the inputs.")] = 1.0,
    weights_s: Annotated[float, typer.Option(help="The same of its gradient of the weights.")] = 1.0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Every schedule's step, .svg or .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Compare GPipe, 1F1B, interleaved 1F1B (two chunks a stage) and ZB-H1: time of a step, idle share, what is held.

    Simulated without recomputation or sending. ZB-H1 takes gradients of weights apart from those of inputs.

    anabranch distributed schedules --stages 4 --micro-batches 8 --out schedules.svg
    """
    seconds = {"forward_s": forward_s, "inputs_s": inputs_s, "weights_s": weights_s}
    for name, value in seconds.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected seconds, 0 or more")
    if not 0 < sum(seconds.values()) * stages * micro_batches < math.inf:
        raise ValueError(f"--forward-s, --inputs-s and --weights-s have a sum of {sum(seconds.values())}: expected > 0")
    _check_figure(out)
    drawn = 11 * stages * micro_batches
    if out is not None and drawn > _MOST_BARS:
        raise ValueError(f"--out {out}: {drawn:,} bars are too many to be seen (at most {_MOST_BARS:,}); leave it out")
    from anabranch.distributed import compare_schedules

    rows = compare_schedules(stages, micro_batches, **seconds)
    left_out = "" if len(rows) == len(_SCHEDULES) else f"interleaved: {micro_batches} is no multiple of {stages}"
    if out is not None:
        _draw_schedules([play_schedule(str(row["schedule"]), stages, micro_batches, **seconds) for row in rows], out)
    if as_json:
        keys = {"schedule": "schedule", "seconds": "step_s", "bubble": "bubble_fraction", "in flight": "in_flight"}
        shown = {
            "stages": stages, "micro_batches": micro_batches, **seconds,
            "schedules": [{name: row[key] for key, name in keys.items()} for row in rows],
            "left_out": left_out, "written": [] if out is None else [str(out)],
        }  # fmt: skip
        typer.echo(json.dumps(shown, indent=1, allow_nan=False))
        return
    console = _console()
    console.print(
        f"step      {stages} equal stages, {micro_batches} micro-batches of {sum(seconds.values()):.4g} s a stage"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("schedule", "step", "idle", "micro-batches held"):
        table.add_column(heading, justify="left" if heading == "schedule" else "right")
    for row in rows:
        step, idle, held = f"{row['seconds']:.4g} s", f"{row['bubble']:.1%}", f"{row['in flight']:g}"
        table.add_row(_SCHEDULES[str(row["schedule"])], step, idle, held)
    console.print(table)
    if left_out:
        console.print(f"left out  {left_out}", soft_wrap=True)
    if out is not None:
        console.print(f"wrote     {out}", soft_wrap=True)


_SCHEDULES = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "interleaved 1F1B", "zero-bubble": "ZB-H1"}
_MOST_BARS = 20_000


def play_schedule(
    name: str, stages: int, micro_batches: int, *, forward_s: float, inputs_s: float, weights_s: float
) -> PipelineTimeline:
    """One of the schedules that ``compare_schedules`` has rows of, by its name there, with the same times."""
    import anabranch.distributed as pp

    made = {
        "gpipe": lambda: pp.fill_drain(stages, micro_batches, checkpoint="never"),
        "1f1b": lambda: pp.one_forward_one_backward(stages, micro_batches),
        "interleaved": lambda: pp.interleaved(stages, micro_batches, 2),
        "zero-bubble": lambda: pp.zero_bubble(stages, micro_batches),
    }[name]()
    backward = inputs_s if made.splits_backward else inputs_s + weights_s
    parts = made.chunks
    return pp.simulate_pipeline(made, forward_s / parts, backward / parts, weights_s=weights_s / parts)


def _check_figure(out: Path | None) -> None:
    if out is not None and out.suffix not in (".svg", ".png"):
        raise ValueError(f"--out {out}: expected .svg or .png")
    if out is not None and not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")


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


def _draw_schedules(timelines: Sequence[PipelineTimeline], out: Path) -> None:
    """A step of every schedule, one below the other on one axis of time; what is idle is grey, second chunks are paler."""
    from anabranch.lab.figures import new_figure, plot_gantt, render

    stages, longest = timelines[0].schedule.stages, max(one.step_s for one in timelines)
    tall = 0.75 + min(6.0, 0.25 * stages)
    figure, panels = new_figure(
        len(timelines), 1, figsize=(9.6, tall * len(timelines) + 0.5), sharex=True, squeeze=False
    )
    idle: Any = None
    for axes, found in zip(panels[:, 0], timelines, strict=True):
        actions = [action for k in range(stages) for action in found.schedule.actions(k)]
        bars = found.bars()
        later = [bar for bar, action in zip(bars, actions, strict=True) if action.chunk > 0]
        narrowest = min(end - begin for _, begin, end, _, _ in bars if end > begin) / longest
        if narrowest * 8.5 < 0.07 * len(str(found.schedule.micro_batches - 1)) + 0.03:  # inches; numbers would overlap
            bars = [(*bar[:-1], "") for bar in bars]
        paler = " (second chunks paler)" if later else ""
        title = f"{_SCHEDULES[found.schedule.name]}{paler}: {found.step_s:.4g} s, {found.bubble_fraction:.1%} idle"
        plot_gantt(bars, title=title, axes=axes, x="")
        axes.get_legend().remove()
        idle = axes.barh(range(stages), [found.step_s] * stages, height=0.8, color="#d0d4da", zorder=0)
        axes.barh(
            [int(bar[0].removeprefix("stage ")) for bar in later], [bar[2] - bar[1] for bar in later],
            left=[bar[1] for bar in later], height=0.8, color="white", alpha=0.35,
        )  # fmt: skip
    panels[-1, 0].set(xlabel="seconds", xlim=(0, longest * 1.01))
    handles, labels = panels[-1, 0].get_legend_handles_labels()
    split = {"backward": "backward (ZB-H1: of inputs)", "weights": "backward of weights"}
    words = [split.get(label, label) for label in labels]
    figure.legend([*handles, idle], [*words, "idle"], loc="outside lower center", ncols=4, frameon=False, fontsize=9)
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
