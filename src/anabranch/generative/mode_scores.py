"""Scores of generated points against real ones that tell quality from the shares of modes (2512.18184)."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from torch import Tensor

from anabranch.generative._checks import check_count
from anabranch.generative.metrics import wasserstein2
from anabranch.generative.spherical_clusters import KMeans


def nearest_distance(generated: Float[Tensor, "n ..."], real: Float[Tensor, "m ..."]) -> Float[Tensor, " n"]:
    """Distance of every generated point to the nearest real one, float64. Cost: O((n + m) log m) in low dimensions."""
    tree = KDTree(_points(real, "real"))
    return torch.from_numpy(tree.query(_points(generated, "generated"))[0])


class OneToOne(NamedTuple):
    """Shares of the real points that are matched, and of the generated ones."""

    coverage: float
    precision: float


def coverage_one_to_one(generated: Float[Tensor, "n ..."], real: Float[Tensor, "m ..."], *, radius: float) -> OneToOne:
    """Greedy matching, nearest pairs first, each point at most once, none farther than ``radius``.

    Unlike nearest-neighbor coverage, many copies of one point cover one real point. At least half the size of the largest
    matching. Cost: O(P log P) for P pairs within the radius.

    Raises:
        ValueError: radius <= 0, no points, different dimensions.
    """
    if not radius > 0:
        raise ValueError(f"radius must be > 0, got {radius}")
    a, b = _points(generated, "generated"), _points(real, "real")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"generated has {a.shape[1]} dimensions, real {b.shape[1]}: expected the same")
    pairs = KDTree(a).sparse_distance_matrix(KDTree(b), radius, output_type="ndarray")
    order = np.lexsort((pairs["j"], pairs["i"], pairs["v"]))
    free_a, free_b = np.ones(len(a), bool), np.ones(len(b), bool)
    matched = 0
    for i, j in zip(pairs["i"][order].tolist(), pairs["j"][order].tolist(), strict=True):
        if free_a[i] and free_b[j]:
            free_a[i] = free_b[j] = False
            matched += 1
    return OneToOne(matched / len(b), matched / len(a))


def mode_kl(
    generated: Float[Tensor, "n ..."],
    real: Float[Tensor, "m ..."],
    *,
    cells: int = 8,
    generator: torch.Generator | None,
) -> float:
    """``KL(real || generated)`` in nats of the shares of ``cells`` k-means cells of the real points.

    Half a point is added to every cell of the generated ones, so that an empty cell counts and stays finite (ours).

    Raises:
        ValueError: fewer real points than cells.
    """
    check_count("cells", cells, 2)
    clusters = KMeans(cells).fit(real.reshape(len(real), -1).double(), generator=generator)
    found = torch.cdist(generated.reshape(len(generated), -1).double(), clusters.centers).argmin(1)
    p = torch.bincount(clusters.label, minlength=cells).double() / len(real)
    q = (torch.bincount(found, minlength=cells).double() + 0.5) / (len(generated) + 0.5 * cells)
    return float((torch.special.xlogy(p, p) - p * q.log()).sum())


def normalized_wasserstein(
    generated: Float[Tensor, "n *shape"],
    real: Float[Tensor, "m *shape"],
    mode: Int[Tensor, " m"],
    centers: Float[Tensor, "k *shape"],
    *,
    generator: torch.Generator | None,
) -> float:
    """2-Wasserstein distance to real points drawn with the GENERATED points' mode shares: quality without mode shares.

    A generated point belongs to the nearest center. Cost: O(n^3), an assignment; n of a few thousand at most.

    Args:
        real: fresh samples; those of a mode are drawn without replacement as long as there are enough.
        mode: of every real point, 0 to K - 1.

    Raises:
        ValueError: labels that do not fit, a mode with generated points and no real ones.
    """
    if mode.shape != (len(real),):
        raise ValueError(f"mode has shape {tuple(mode.shape)}: expected [{len(real)}]")
    a, c = generated.reshape(len(generated), -1), centers.reshape(len(centers), -1)
    wanted = torch.bincount(torch.cdist(a.double(), c.double()).argmin(1), minlength=len(c)).tolist()
    rows = []
    for k, count in enumerate(wanted):
        if not count:
            continue
        own = (mode == k).nonzero().squeeze(1)
        if not len(own):
            raise ValueError(f"mode {k} has {count} generated points and no real ones")
        times = -(-count // len(own))
        shuffled = [own[torch.randperm(len(own), generator=generator)] for _ in range(times)]
        rows.append(torch.cat(shuffled)[:count])
    return wasserstein2(a, real.reshape(len(real), -1)[torch.cat(rows)])


def _points(x: Tensor, name: str) -> "np.ndarray":
    if len(x) == 0:
        raise ValueError(f"{name} holds no points")
    return x.reshape(len(x), -1).double().cpu().numpy()
