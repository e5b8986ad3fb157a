"""``anabranch generative times``: the best sampling times for a user's own model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer


def times(
    model: Annotated[
        Path,
        typer.Option(
            "--model", "-m", help="File of ours (`anabranch data fashion-teacher` prints one) or diffusers folder."
        ),
    ],
    steps: Annotated[str, typer.Option(help="Numbers of steps wanted, as 4,6,8.")] = "4,6,8",
    solver: Annotated[str, typer.Option(help="euler, ab2, dpmpp_2m, ddim, midpoint, heun, ...")] = "euler",
    anchors: Annotated[
        int, typer.Option(help="Steps of the fine trajectories, whose times are chosen from.", min=2)
    ] = 100,
    n: Annotated[int, typer.Option("--n", "-n", help="Number of fine trajectories.", min=1)] = 64,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the JSON to this file.")] = None,
    label: Annotated[list[int] | None, typer.Option(help="Class to draw, repeatable; all in turn without.")] = None,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.", min=0)] = 1.0,
    null_label: Annotated[
        int | None, typer.Option(help="Class of the unconditional branch, where the model does not say it.", min=0)
    ] = None,
    side: Annotated[
        int | None, typer.Option(help="Side of the images, where the model does not say it.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Choose the times at which a model is best sampled with few steps: measured, then the exact optimum.

    `sigmas` are for set_timesteps(sigmas=...) of the model's own diffusers scheduler, its shift taken into account.

    anabranch generative times -m pipeline/ --steps 4,6,8 -o times.json
    """
    import torch

    from anabranch.generative import ClassifierFreeGuidance, optimal_frontier, step_costs, times_cost, uniform_times
    from anabranch.generative import commands as shared
    from anabranch.generative.solvers import get_solver

    wanted = _numbers(steps, anchors)
    get_solver(solver)
    if out is not None:
        shared._check_out(out, (".json",))
    opened = shared.open_(model, device, null_label)
    if opened.is_flow_map:
        raise ValueError(f"--model {model} is a flow map, which jumps: expected a velocity model")
    x0 = torch.randn(n, *shared._shape(opened, side), generator=torch.Generator().manual_seed(seed)).to(device)
    labels = shared._labels(opened, label, n, device)
    field: Any = opened.net
    if guidance != 1:
        field = ClassifierFreeGuidance(field, guidance, null_condition=shared._null(opened, labels, null_label))
    condition: dict[str, Any] = {} if labels is None else {"label": labels}
    path = getattr(opened.net, "path", None)
    with shared._bar("trajectories", n) as progress:
        costs = step_costs(field, x0, anchors, solver=solver, path=path, progress=progress, **condition)
    rows = []
    for found in optimal_frontier(costs, max(wanted)):
        count = len(found.times) - 1
        if count in wanted:
            uniform = times_cost(costs, uniform_times(count), snap=True)
            rows.append({
                "steps": count, "times": found.times.tolist(), "sigmas": _sigmas(opened.net, found.times),
                "cost": found.cost, "uniform_cost": uniform,
            })  # fmt: skip
    said = {
        "model": str(model), "sha256": _hash(model), "solver": solver, "anchors": anchors, "n": n, "guidance": guidance,
        "choices": rows,
    }  # fmt: skip
    if out is not None:
        out.write_text(json.dumps(said, indent=1) + "\n")
    lines = [f"{'steps':>5}  {'cost':>10}  {'uniform':>10}  times"] + [
        f"{row['steps']:>5}  {row['cost']:>10.4g}  {row['uniform_cost']:>10.4g}  "
        + " ".join(f"{time:.3g}" for time in row["times"])  # type: ignore[attr-defined]
        for row in rows
    ]
    shared._say(said, as_json, "\n".join([*lines, *([] if out is None else [str(out)])]))


def _numbers(text: str, most: int) -> set[int]:
    try:
        numbers = {int(part) for part in text.split(",")}
    except ValueError:
        raise ValueError(f"--steps {text}: expected whole numbers with commas between, as 4,6,8") from None
    if min(numbers) < 1 or max(numbers) > most:
        raise ValueError(f"--steps {text}: expected numbers from 1 to --anchors, {most}")
    return numbers


def _sigmas(net: Any, times: Any) -> list[float] | None:
    """What the model's own scheduler is to be given; None where it takes no sigmas of flow matching."""
    import copy

    from anabranch.generative import LinearPath, to_diffusers_scheduler

    scheduler = getattr(net, "scheduler", None)
    shift = 1.0
    if scheduler is not None:
        if getattr(net, "path", None) != LinearPath() or getattr(scheduler.config, "use_dynamic_shifting", False):
            return None
        to_diffusers_scheduler(times, copy.deepcopy(scheduler))  # it takes them, and keeps to them
        shift = float(getattr(scheduler.config, "shift", getattr(scheduler.config, "flow_shift", 1.0)))
    sigmas = 1 - times[:-1]
    values: list[float] = (sigmas / (shift - (shift - 1) * sigmas)).tolist()
    return values


def _hash(model: Path) -> str:
    """Of the file, or of the names and hashes of a folder's weights and configurations."""
    if model.is_file():
        with model.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    found = hashlib.sha256()
    for file in sorted(p for p in model.rglob("*") if p.suffix in (".safetensors", ".json")):
        found.update(str(file.relative_to(model)).encode())
        with file.open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()
