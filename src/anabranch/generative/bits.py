"""Bits per dimension of pictures in whole levels, by uniform dequantization (Theis et al., 1511.01844)."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from anabranch.generative._checks import check_count
from anabranch.generative.fields import VelocityField
from anabranch.generative.likelihood import HasLogProb, log_likelihood


def bits_per_dimension(
    field: VelocityField,
    images: Integer[Tensor, "batch *shape"],
    times: Float[Tensor, " points"],
    source: HasLogProb,
    *,
    generator: torch.Generator | None,
    levels: int = 256,
    draws: int = 1,
    dtype: torch.dtype = torch.float32,
    solver: Any = "rk4",
    divergence: Literal["exact", "hutchinson"] = "exact",
    probes: int = 1,
    **condition: Any,
) -> Float[Tensor, " batch"]:
    """An upper bound per image on ``-log2 P(image) / D``, D the number of entries, on average over the noise.

    Level k is where the field saw it, at ``2 k / (levels - 1) - 1`` (in [-1, 1]); uniform noise as wide as a level, ``2 /
    (levels - 1)``, is added, and by Jensen's inequality the mean log density of the sum plus ``D log width`` is at most
    ``log P``. Averaging over ``draws`` lowers the variance, not the bound. Cost: ``draws`` times :func:`log_likelihood`.

    Args:
        images: whole numbers from 0 to levels - 1.
        dtype: of the computation.

    Raises:
        ValueError: levels outside the range, draws < 1, what :func:`log_likelihood` refuses.
    """
    check_count("levels", levels, 2)
    check_count("draws", draws)
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= levels:
        raise ValueError(f"images hold {low if low < 0 else high}: expected whole numbers from 0 to {levels - 1}")
    width, size = 2 / (levels - 1), images[0].numel()
    total = torch.zeros(len(images), dtype=dtype, device=images.device)
    for _ in range(draws):
        noise = torch.rand(images.shape, generator=generator, dtype=dtype, device=images.device) - 0.5
        x = (images.to(dtype) + noise) * width - 1
        total = total + log_likelihood(
            field, x, times, source,
            solver=solver, divergence=divergence, probes=probes, generator=generator, **condition,
        )  # fmt: skip
    return -(total / draws / size + math.log(width)) / math.log(2)
