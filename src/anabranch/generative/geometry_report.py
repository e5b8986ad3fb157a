"""What a data set's geometry says about its source, before anything is trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._acceptance import clear_share
from anabranch.generative.pruned_source import AUTO_DEVIATIONS
from anabranch.generative.sources import GaussianSource, Source
from anabranch.generative.sparse_axes import Axes, sparse_axes


@dataclass(frozen=True)
class SparseCount:
    """Axes whose largest cosine is at most ``threshold``, and the share of uniform directions that pruning by them keeps."""

    threshold: float
    axes: int
    acceptance: float


@dataclass(frozen=True)
class GeometryReport:
    """Norms and directions of data beside a source (see :func:`geometry_report`).

    Args:
        images, dimensions, excluded: data, entries of one, data of norm 0.
        data_norm, data_norm_std, source_norm: mean norms, and the data's spread.
        scale: data_norm / source_norm, what norm alignment multiplies the source by.
        mean_cosine: of the data to their mean direction; 0 for data that point everywhere.
        random_cosine_std: ``1 / sqrt(D)``, of a random direction to any axis.
        candidates: axes tried, both signs.
        sparse: one row a threshold.
        max_cosine: of pruning, on which the acceptances are taken.
    """

    images: int
    dimensions: int
    excluded: int
    data_norm: float
    data_norm_std: float
    source_norm: float
    scale: float
    mean_cosine: float
    random_cosine_std: float
    candidates: int
    sparse: tuple[SparseCount, ...]
    max_cosine: float


def geometry_report(
    data: Float[Tensor, "n *shape"],
    source: Source | None = None,
    *,
    axes: Axes | None = None,
    thresholds: Sequence[float] = (0.005, 0.01, 0.02, 0.05),
    max_cosine: float | None = None,
    flips: bool = True,
) -> GeometryReport:
    """Norm ratio, spread of directions, sparse axes and the acceptance of pruning. Cost: that of :func:`sparse_axes`.

    Args:
        source: default the standard Gaussian.
        axes: of these data, where they are there already.
        max_cosine: of pruning, default 2.66 / sqrt(D).

    Raises:
        ValueError: as :func:`sparse_axes`.
    """
    found = sparse_axes(data, thresholds[0] if thresholds else 0.0, flips=flips) if axes is None else axes
    d = data[0].numel()
    source = GaussianSource(tuple(data.shape[1:])) if source is None else source
    cosine = AUTO_DEVIATIONS / math.sqrt(d) if max_cosine is None else max_cosine
    flat = data.reshape(len(data), -1)
    norms = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    used = norms > 0
    unit_sum = (flat[used] / norms[used, None].to(flat)).sum(0, dtype=torch.float64)
    mean_direction = float(unit_sum.norm()) / int(used.sum())  # the mean of the cosines to the mean direction
    rows = []
    for threshold in thresholds:
        chosen = found.at(threshold).vectors.double().cpu().numpy()
        rows.append(SparseCount(threshold, len(chosen), clear_share(chosen, cosine)[0]))
    return GeometryReport(
        images=len(data), dimensions=d, excluded=int((~used).sum()), data_norm=float(norms.mean()),
        data_norm_std=float(norms.std(correction=0)), source_norm=source.mean_norm,
        scale=float(norms.mean()) / source.mean_norm, mean_cosine=mean_direction, random_cosine_std=1 / math.sqrt(d),
        candidates=len(found.max_similarity), sparse=tuple(rows), max_cosine=cosine,
    )  # fmt: skip
