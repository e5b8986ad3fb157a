"""Sample a flow, choose its times, and distill it to a few steps."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    import torch

    from anabranch.generative.open_model import OpenModel

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Sample a flow, choose its times, and distill it to a few steps.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

METHODS = ("splitmeanflow", "meanflow", "shortcut", "consistency")
_BATCH = 64

Model = Annotated[
    Path,
    typer.Option(
        "--model", "-m", help="File of ours (`anabranch data fashion-teacher` prints one) or diffusers folder."
    ),
]
Guidance = Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.", min=0)]
NullLabel = Annotated[
    int | None, typer.Option(help="Class of the unconditional branch, where the model does not say it.", min=0)
]
Side = Annotated[int | None, typer.Option(help="Side of the images, where the model does not say it.", min=1)]
Seed = Annotated[int, typer.Option(help="Of the noise.", min=0)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script; times in seconds.")]


@app.callback()
def _root() -> None:
    """A callback keeps the commands named."""


@app.command()
def sample(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Ends in .png (a grid) or .npz (the values, [0, 1]).")],
    n: Annotated[int, typer.Option("--n", "-n", help="Number of samples.", min=1)] = 64,
    steps: Annotated[int, typer.Option(help="Steps of the solver, or jumps of a flow map.", min=1)] = 20,
    solver: Annotated[
        str, typer.Option(help="euler, ab2, midpoint, heun, rk4, dpmpp_2m, ddim, ancestral, ...")
    ] = "ab2",
    label: Annotated[list[int] | None, typer.Option(help="Class to draw, repeatable; all in turn without.")] = None,
    guidance: Guidance = 1.0,
    null_label: NullLabel = None,
    side: Side = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Draw samples of a velocity model by a solver, or of a flow map by jumps.

    anabranch generative sample -m student.safetensors --steps 2 -n 100 -o grid.png
    """
    import torch

    from anabranch.generative import ClassifierFreeGuidance, Counted, jump, solve, uniform_times
    from anabranch.generative.image_files import save_images
    from anabranch.generative.solvers import get_solver

    _check_out(out, (".png", ".npz"))
    get_solver(solver)
    opened = open_(model, device, null_label)
    shape = _shape(opened, side)
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(n, *shape, generator=generator).to(device)
    labels = _labels(opened, label, n, device)
    if opened.is_flow_map and guidance != 1:
        raise ValueError("--guidance is for velocity models: a distilled flow map has its teacher's guidance inside")
    field: Any = Counted(opened.net) if guidance == 1 else Counted(
        ClassifierFreeGuidance(opened.net, guidance, null_condition=_null(opened, labels, null_label))
    )  # fmt: skip
    parts, begin = [], time.perf_counter()
    noise = torch.Generator(device).manual_seed(seed)
    with _bar("sampling", -(-n // _BATCH)) as advance:
        for first in range(0, n, _BATCH):
            rows = slice(first, first + _BATCH)
            condition: dict[str, Any] = {} if labels is None else {"label": labels[rows]}
            if opened.is_flow_map:
                parts.append(jump(opened.net, x0[rows], uniform_times(steps), **condition))
            else:
                path = getattr(opened.net, "path", None)
                drawn = solve(field, x0[rows], uniform_times(steps), solver, path=path, generator=noise, **condition)
                parts.append(drawn)
            advance(first // _BATCH + 1, None, {})
    seconds = time.perf_counter() - begin
    calls = steps if opened.is_flow_map else field.calls // len(parts)
    save_images(torch.cat(parts), out, labels)
    said = {"model": str(model), "samples": n, "calls_per_sample": calls, "seconds": round(seconds, 3), "out": str(out)}
    _say(said, as_json, f"{n} samples, {calls} network calls each, {seconds:.1f} s: {out}")


@app.command()
def distill(
    method: Annotated[str, typer.Argument(help=f"{', '.join(METHODS)}.")],
    teacher: Annotated[
        Path,
        typer.Option("--teacher", "-t", help="Velocity model: file of ours or folder of a diffusers pipeline."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The student, a .safetensors file.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of pictures (subfolders are classes), .npz with x and y, IDX file.")
    ] = None,
    data_free: Annotated[
        int | None, typer.Option(metavar="N", help="Instead of data: N samples that the teacher draws.", min=1)
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 2000,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long, with the rate at 0 by then.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 1e-3,
    guidance: Guidance = 1.0,
    flow_ratio: Annotated[float | None, typer.Option(help="Share of boundary samples; default the method's.")] = None,
    null_label: NullLabel = None,
    side: Side = None,
    seed: Seed = 0,
    device: Device = "cpu",
    resume: Annotated[bool, typer.Option(help="Go on from OUT.state where it is there.")] = True,
    as_json: Json = False,
) -> None:
    """Distill a velocity model into a flow map that draws in one to four calls, guidance inside.

    anabranch generative distill splitmeanflow -t teacher.safetensors --data pictures/ --guidance 2 -o student.safetensors
    """
    import torch

    from anabranch.generative import distill as distill_
    from anabranch.generative import save_network, teacher_samples
    from anabranch.generative.image_files import load_images

    objective = _objective(method, flow_ratio)
    _check_out(out, (".safetensors",))
    if (data is None) == (data_free is None):
        raise ValueError("give either --data PATH or --data-free N: what the flow map is trained on")
    opened = open_(teacher, device, null_label)
    if opened.is_flow_map:
        raise ValueError(f"--teacher {teacher} is a flow map: expected a velocity model")
    shape = _shape(opened, side, data)
    if data is not None:
        images = load_images(data, side=shape[-1], channels=shape[0])
        x1, labels = images.x, images.label
        if labels is not None and opened.labels is not None and int(labels.max()) >= opened.labels:
            raise ValueError(f"--data {data} has class {int(labels.max())}: the teacher knows 0 to {opened.labels - 1}")
        labels = None if opened.labels is None else labels
        drawn: Any = x1 if labels is None else (x1, labels)
    else:
        assert data_free is not None
        x0 = torch.randn(data_free, *shape, generator=torch.Generator().manual_seed(seed)).to(device)
        drawn = teacher_samples(opened.net, x0, label=_labels(opened, None, data_free, device))
        labels = drawn[1] if isinstance(drawn, tuple) else None
    null = None if guidance == 1 else _null(opened, labels, null_label)
    with _bar(method, steps) as progress:
        student = distill_(
            opened.net, drawn, objective=objective, steps=steps, generator=torch.Generator(device).manual_seed(seed),
            guidance=guidance, null_condition=null, batch_size=min(batch_size, len(x1 if data is not None else x0)), lr=lr,
            time_budget_s=None if minutes is None else 60 * minutes, progress=progress, threads="auto",
            embedding=getattr(opened.net, "embedding", "time_embedding"), resume=resume,
            checkpoint=out.with_name(out.name + ".state"),
        )  # fmt: skip
    notes = {"method": method, "teacher": str(teacher), "steps": student.steps, "guidance": guidance, "seed": seed}
    save_network(student.ema, out, notes=notes)
    out.with_name(out.name + ".state").unlink(missing_ok=True)
    last = student.history[-1]
    said = {"student": str(out), "steps": student.steps, "seconds": round(student.seconds, 1), "loss": last["loss"]}
    _say(said, as_json, f"{student.steps} steps in {student.seconds:.0f} s, loss {last['loss']:.4f}: {out}")


def open_(path: Path, device: str, null_label: int | None) -> OpenModel:
    """The model, or a clear error about the device."""
    import torch

    from anabranch.generative.open_model import open_model

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
    return open_model(path, device=device, null_label=null_label)


def _objective(method: str, flow_ratio: float | None) -> Any:
    from anabranch import generative as ge

    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    if method == "consistency":
        if flow_ratio is not None:
            raise ValueError("--flow-ratio: consistency distillation has no boundary samples")
        return ge.Consistency()
    if method == "meanflow":
        return ge.MeanFlow() if flow_ratio is None else ge.MeanFlow(times=ge.TwoTimes(boundary_fraction=flow_ratio))
    made: Any = ge.SplitMeanFlow if method == "splitmeanflow" else ge.Shortcut
    return made() if flow_ratio is None else made(flow_ratio=flow_ratio)


def _shape(opened: OpenModel, side: int | None, data: Path | None = None) -> tuple[int, ...]:
    if opened.shape is not None:
        return opened.shape
    net: Any = opened.net.net if opened.is_flow_map else opened.net
    config = net.config
    if side is None and data is not None:
        from anabranch.generative.image_files import load_images

        side = load_images(data).x.shape[-1]
    return (int(config["image_channels"]), side or 28, side or 28)


def _labels(opened: OpenModel, asked: list[int] | None, n: int, device: str) -> torch.Tensor | None:
    import torch

    if opened.labels is None:
        if asked:
            raise ValueError("--label: the model takes no classes")
        return None
    if asked and max(asked) >= opened.labels:
        raise ValueError(f"--label {max(asked)}: the model has classes 0 to {opened.labels - 1}")
    chosen = torch.tensor(asked or range(opened.labels))
    return chosen[torch.arange(n) % len(chosen)].to(device)


def _null(opened: OpenModel, labels: Any, null_label: int | None) -> Mapping[str, Any]:
    null = getattr(opened.net, "classes", None) if null_label is None else null_label
    if null is None or labels is None:
        raise ValueError("--guidance needs a model (and data) with classes, and its null class: give --null-label")
    return {"label": null}


def _check_out(out: Path, suffixes: tuple[str, ...]) -> None:
    if out.suffix not in suffixes:
        raise ValueError(f"--out {out}: expected a name that ends in {' or '.join(suffixes)}")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")


def _say(said: Mapping[str, Any], as_json: bool, words: str) -> None:
    if as_json:
        typer.echo(json.dumps(said))
    else:
        Console(soft_wrap=True, highlight=False).print(words, markup=False)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Any]:
    """A bar on the terminal, fed by the library's callback; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda done, total, metrics: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[loss]}"))  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, loss="")

        def progress(done: int, total: int | None, metrics: Mapping[str, float]) -> None:
            bar.update(task, completed=done, loss=f"loss {metrics['loss']:.4f}" if "loss" in metrics else "")

        yield progress


from anabranch.generative._source_command import app as source  # noqa: E402
from anabranch.generative._times_command import times  # noqa: E402

app.command()(times)
app.add_typer(source, name="source")
