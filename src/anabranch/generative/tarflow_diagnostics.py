"""Which blocks of a TarFlow are tough, and where to start: the paper's two diagnostics (2505.12849).

Both need pairs (x, z) of a block, from a forward pass of some hundred images. They are cheap rankings; :func:`plan_sampling`
measures instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anabranch.generative._checks import check_count
from anabranch.generative.autoregressive import AutoregressiveMap, entered
from anabranch.generative.tarflow import TarFlow

Reduction = Literal["mean_then_norm", "norm_then_mean"]


@dataclass(frozen=True)
class BlockDiagnostics:
    """Of one block, blocks in the order of generation (the last block of the model first).

    Attributes:
        block: its index in the model, 0 next to the data.
        initial_guess: IGM by ``(start, reduction)``, start "z" or "zero".
        ranking: CRM by kind, "code" or "theory"; a relative number.
        ranking_share: CRM over its sum over the blocks, in percent.
    """

    block: int
    initial_guess: dict[tuple[str, str], float]
    ranking: dict[str, float]
    ranking_share: dict[str, float]

    def better_start(self, reduction: Reduction = "norm_then_mean") -> Literal["z", "zero"]:
        """The start with the smaller IGM."""
        return "z" if self.initial_guess["z", reduction] <= self.initial_guess["zero", reduction] else "zero"


@torch.no_grad()
def initial_guess_metric(
    one_map: AutoregressiveMap,
    z: Tensor,
    x: Tensor,
    guess: Tensor,
    *,
    reduction: Reduction = "norm_then_mean",
) -> float:
    """IGM of a first guess: size of ``F(guess) - x`` where ``x`` is the exact inverse of ``z`` (2505.12849).

    Spectral norm of the matrix tokens x features. "mean_then_norm" averages the residual over the batch before the norm, as
    the released code does (errors of opposite sign cancel); "norm_then_mean" averages the norms.

    Raises:
        ValueError: shapes that do not fit, another reduction.
    """
    if reduction not in ("mean_then_norm", "norm_then_mean"):
        raise ValueError(f"reduction must be 'mean_then_norm' or 'norm_then_mean', got {reduction!r}")
    return _reduced(_residual(one_map, z, x, guess), reduction)


def _residual(one_map: AutoregressiveMap, z: Tensor, x: Tensor, guess: Tensor) -> Tensor:
    source, exact, at = (entered(one_map, tensor) for tensor in (z, x, guess))
    at = torch.cat([one_map.first(source[:, 0])[:, None], at[:, 1:]], 1)
    image = one_map.advance(at[:, :-1], source[:, 1:], 0, one_map.new_cache(source))
    return image - exact[:, 1:]


def _reduced(residual: Tensor, reduction: str) -> float:
    if reduction == "mean_then_norm":
        return float(torch.linalg.matrix_norm(residual.mean(0), 2))
    return float(torch.linalg.matrix_norm(residual, 2).mean())


@torch.no_grad()
def diagnose_blocks(
    flow: TarFlow,
    images: Float[Tensor, "batch channels side side"],
    label: Int[Tensor, " batch"] | None = None,
    *,
    chunk: int = 128,
) -> list[BlockDiagnostics]:
    """IGM and CRM of every block from images (noise as in the training added by the caller), in the order of generation.

    CRM is ``|mean(exp(-s) x)| |W_s| + |W_m|`` in spectral norms, with W_s and W_m the halves of the last layer
    ("code": what the release computes). "theory" has ``exp(s) z = x - m`` in place of ``exp(-s) x``, which the
    derivation suggests. Cost: one forward pass and two sweeps a block.

    Raises:
        ValueError: images or labels that do not fit the model.
    """
    check_count("chunk", chunk)
    flow.check_label(label, len(images))
    labels: Sequence[Any] = [None] * len(images) if label is None else label.split(chunk)
    parts = list(zip((flow.patchify(piece) for piece in images.split(chunk)), labels, strict=False))
    found: list[tuple[dict[tuple[str, str], float], dict[str, float]]] = []
    for index, block in enumerate(flow.blocks):
        parts, guesses, ranking = _diagnose(block, index, flow, parts)
        found.insert(0, (guesses, ranking))
    total = {kind: sum(ranking[kind] for _, ranking in found) for kind in ("code", "theory")}
    return [
        BlockDiagnostics(
            len(found) - 1 - i, guesses, ranking, {kind: 100 * ranking[kind] / total[kind] for kind in ranking}
        )
        for i, (guesses, ranking) in enumerate(found)
    ]


def _diagnose(block: Any, index: int, flow: TarFlow, parts: list[tuple[Tensor, Any]]) -> tuple[Any, Any, Any]:
    sums: dict[str, Tensor] = {}
    count, after = 0, []

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros_like(value[0])) + value.sum(0)

    for x, label in parts:
        z, _ = block(x, label)
        one_map = flow.inverse_maps(label)[len(flow.blocks) - 1 - index]
        for start, guess in (("z", z), ("zero", torch.zeros_like(z))):
            residual = _residual(one_map, z, x, guess)
            add(f"{start} residual", residual)
            add(f"{start} norm", torch.linalg.matrix_norm(residual, 2))
        ordered = one_map.enter(x)
        s, m = block.affine(ordered, label)
        add("code", torch.exp(-s) * ordered)
        add("theory", ordered - m)
        count += len(x)
        after.append((z, label))
    guesses = {}
    for start in ("z", "zero"):
        guesses[start, "mean_then_norm"] = float(torch.linalg.matrix_norm(sums[f"{start} residual"] / count, 2))
        guesses[start, "norm_then_mean"] = float(sums[f"{start} norm"] / count)
    of_s, of_m = (float(torch.linalg.matrix_norm(half, 2)) for half in block.proj_out.weight.chunk(2))
    ranking = {
        kind: float(torch.linalg.matrix_norm(sums[kind] / count, 2)) * of_s + of_m for kind in ("code", "theory")
    }
    return after, guesses, ranking
