"""``anabranch generative source``: the geometry of a data set, its sparse axes, and pruned starting noise for any pipeline."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import torch

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A better starting noise: its norm, and the directions it should leave out.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[
    Path,
    typer.Argument(
        help="Folder of pictures, .npz with x, IDX file, .npy of floats, or .safetensors with latents [N, ...]."
    ),
]
Flips = Annotated[bool, typer.Option(help="Mirrored images count too.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]


@app.callback()
def _root() -> None:
    """A callback keeps the commands named."""


@app.command()
def report(
    data: Data,
    threshold: Annotated[list[float] | None, typer.Option(help="Largest cosine of a sparse axis, repeatable.")] = None,
    max_cosine: Annotated[float | None, typer.Option(help="Of pruning; default 2.66 / sqrt(D).")] = None,
    flips: Flips = True,
    as_json: Json = False,
) -> None:
    """Norms, directions and empty axes of a data set.

    anabranch generative source report pictures/
    """
    from anabranch.generative.geometry_report import geometry_report

    found = geometry_report(
        read_data(data), thresholds=threshold or (0.005, 0.01, 0.02, 0.05), max_cosine=max_cosine, flips=flips
    )
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    console = Console(soft_wrap=True, highlight=False)
    left_out = f", {found.excluded} of norm 0 left out" if found.excluded else ""
    console.print(f"data      {found.images} of {found.dimensions} entries{left_out}", markup=False)
    console.print(
        f"norm      {found.data_norm:.2f} +- {found.data_norm_std:.2f}; Gaussian noise has {found.source_norm:.2f}"
    )
    console.print(f"align     multiply the noise by {found.scale:.4f} when you train")
    console.print(
        f"cosine    {found.mean_cosine:.3f} to the mean direction; random directions 0 +- {found.random_cosine_std:.4f}"
    )
    table = Table(box=None)
    for title in ("axis is sparse up to", f"axes of {found.candidates}", f"kept at cosine <= {found.max_cosine:.3f}"):
        table.add_column(title, justify="right")
    for row in found.sparse:
        table.add_row(f"{row.threshold:g}", str(row.axes), f"{100 * row.acceptance:.2f} %")
    console.print(table)


@app.command()
def axes(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Ends in .safetensors.")],
    threshold: Annotated[float, typer.Option(help="Largest cosine of any datum to a sparse axis.")] = 0.01,
    mean: Annotated[bool, typer.Option("--mean", help="Instead: one axis, away from the mean datum.")] = False,
    flips: Flips = True,
    as_json: Json = False,
) -> None:
    """Find the axes no datum points to, and keep them in a file.

    anabranch generative source axes pictures/ --out axes.safetensors
    """
    from anabranch.generative.sparse_axes import mean_direction_axes, save_axes, sparse_axes

    _check(out, (".safetensors",))
    x = read_data(data)
    found = mean_direction_axes(x, flips=flips) if mean else sparse_axes(x, threshold, flips=flips)
    save_axes(found, out)
    said = {"axes": len(found.vectors), "candidates": len(found.max_similarity), "images": found.images,
            "excluded": found.excluded, "threshold": found.threshold, "out": str(out)}  # fmt: skip
    typer.echo(json.dumps(said) if as_json else f"{said['axes']} axes of {said['candidates']} candidates: {out}")


@app.command()
def noise(
    axes_file: Annotated[Path, typer.Argument(metavar="AXES", help="What `source axes` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Ends in .npz (x) or .safetensors (latents).")],
    n: Annotated[int, typer.Option("--n", "-n", help="Number of draws.", min=1)] = 64,
    max_cosine: Annotated[float | None, typer.Option(help="Default 2.66 / sqrt(D).")] = None,
    accept: Annotated[float | None, typer.Option(help="Instead: share of the noise to keep.")] = None,
    scale: Annotated[float, typer.Option(help="Multiply the noise; for a model trained with aligned norms.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Draw Gaussian starts that point along none of the axes: give them to a pipeline as its `latents`.

    anabranch generative source noise axes.safetensors -n 16 -o latents.safetensors
    """
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from anabranch.generative.norm_alignment import NormAlignedSource
    from anabranch.generative.pruned_source import PrunedSource
    from anabranch.generative.sources import GaussianSource
    from anabranch.generative.sparse_axes import load_axes

    _check(out, (".npz", ".safetensors"))
    found = load_axes(axes_file)
    base = GaussianSource(found.shape)
    source = PrunedSource(base, found, "auto" if max_cosine is None else max_cosine, accept)
    x = NormAlignedSource(source, scale).sample(n, generator=torch.Generator().manual_seed(seed))
    if out.suffix == ".npz":
        np.savez(out, x=x.numpy())
    else:
        save_file({"latents": x.contiguous()}, out)
    said = {"draws": n, "acceptance": source.acceptance_rate, "max_cosine": source.threshold, "out": str(out)}
    words = f"{n} draws, {100 * source.acceptance_rate:.2f} % of the proposals kept at cosine <= {source.threshold:.4g}: {out}"
    typer.echo(json.dumps(said) if as_json else words)


def read_data(path: Path) -> torch.Tensor:
    """Images of a file or folder in [-1, 1]; or latents as they are.

    Raises:
        FileNotFoundError: nothing there. ValueError: no array of floats ``[N, ...]`` in it.
    """
    import numpy as np
    import torch

    from anabranch.generative.image_files import load_images

    if path.suffix == ".npy" and path.is_file():
        x = torch.from_numpy(np.load(path, allow_pickle=False))
    elif path.suffix == ".safetensors" and path.is_file():
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                x = file.get_tensor("latents")
        except SafetensorError as error:
            raise ValueError(f"{path} holds no tensor 'latents': {error}") from error
    else:
        return load_images(path).x
    if x.ndim < 2 or not x.is_floating_point() or len(x) == 0:
        raise ValueError(f"{path} holds {x.dtype} {tuple(x.shape)}: expected floats [N, ...]")
    return x.float()


def _check(out: Path, suffixes: tuple[str, ...]) -> None:
    if out.suffix not in suffixes:
        raise ValueError(f"--out {out}: expected a name that ends in {' or '.join(suffixes)}")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
