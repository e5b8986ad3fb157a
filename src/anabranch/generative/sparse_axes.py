"""Directions in which no data lie: principal axes of the normalised data, with signs, whose largest cosine is small.

Two passes over the data and no loop over axes: the covariance of the unit vectors, then the largest cosine of any of them to
every candidate ``+-v_j`` by one matrix product a batch (2512.18184; the released script stores the complement of these axes
in the file it names after them, see :meth:`Axes.dense`).
"""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from anabranch.generative._checks import check_count

NULL_VARIANCE = 1e-10  # of the largest: axes below it hold no data at all


@dataclass(frozen=True, eq=False)
class Axes:
    """Axes that draws are kept away from.

    Args:
        vectors: ``[M, D]``, unit rows: the sparse ones among ``+basis`` and ``-basis``.
        basis: ``[k, D]``, unit rows, least variance last.
        max_similarity: ``[2 k]``: the largest cosine of any datum to ``+basis``, then to ``-basis``.
        explained: ``[k]``: variance of the unit vectors along each.
        threshold: what counts as sparse.
        shape: of one datum.
        images: data that were used, mirrored ones not counted.
        excluded: data of norm 0.
    """

    vectors: Tensor
    basis: Tensor
    max_similarity: Tensor
    explained: Tensor
    threshold: float
    shape: tuple[int, ...]
    images: int
    excluded: int = 0

    @property
    def candidates(self) -> Float[Tensor, "candidates d"]:
        """``+basis`` and ``-basis``."""
        return torch.cat([self.basis, -self.basis])

    def at(self, threshold: float) -> "Axes":
        """The same data's axes at another threshold, without a pass over them."""
        _check_threshold(threshold)
        return replace(self, vectors=self.candidates[self.max_similarity <= threshold], threshold=threshold)

    def dense(self) -> "Axes":
        """The complement, axes that data do point to: what the released script stores; not to be used for pruning."""
        return replace(self, vectors=self.candidates[self.max_similarity > self.threshold])

    def sparsest(self, count: int = 1) -> "Axes":
        """The ``count`` candidates of smallest largest cosine (ours: a number instead of a threshold)."""
        check_count("count", count)
        order = self.max_similarity.argsort(stable=True)[:count]
        return replace(self, vectors=self.candidates[order], threshold=float(self.max_similarity[order[-1]]))


def sparse_axes(
    data: Any,
    threshold: float = 0.01,
    *,
    flips: bool = True,
    method: Literal["full", "lanczos"] = "full",
    count: int | None = None,
    quantile: float = 1.0,
    batch: int = 4096,
) -> Axes:
    """Principal axes ``a`` of the unit vectors of the data, with sign, whose largest cosine to any datum is small.

    Cost: O(N D^2) twice and O(D^3) once; memory O(D^2) and a batch.

    Args:
        data: a tensor ``[N, ...]``, a map-style dataset, or an iterable of batches that can be iterated twice; a pair's
            first entry counts. Images in [-1, 1].
        threshold: largest ``max_i a . u_i`` of a sparse axis.
        flips: mirror the last axis of data with three dimensions (images) too, as in training.
        method: "full" diagonalises the covariance; "lanczos" finds only the ``count`` axes of least variance without forming
            it (for D above 20,000; one pass over the data an iteration).
        count: of axes, for "lanczos".
        quantile: of the cosines, in (0, 1], instead of the maximum, which grows with the number of data and obeys one outlier
            (ours).
        batch: rows at once.

    Raises:
        ValueError: no data, NaN, constant data, a threshold outside [-1, 1], quantile outside (0, 1].
        TypeError: data that can be iterated only once.
    Warns: fewer data than dimensions (axes without any variance are left out), images with values outside [-1, 1].
    """
    _check_threshold(threshold)
    check_count("batch", batch)
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], got {quantile}")
    if method not in ("full", "lanczos"):
        raise ValueError(f"method must be 'full' or 'lanczos', got {method!r}")
    if (count is None) == (method == "lanczos"):
        raise ValueError(f"count={count} with method={method!r}: expected a count for 'lanczos' and only there")
    rows = _Rows(data, flips, batch)
    first = _Moments(rows, covariance=method == "full")
    if first.used == 0:
        raise ValueError("data holds no datum of positive norm")
    if first.used < first.dim:
        warnings.warn(f"{first.used} data in {first.dim} dimensions: axes without variance are left out", stacklevel=2)
    pictures = len(first.shape) == 3 and first.shape[0] in (1, 3)  # latents and points have ranges of their own
    if pictures and (first.low < -1.001 or first.high > 1.001):
        warnings.warn(f"data range from {first.low:.3g} to {first.high:.3g}: expected [-1, 1]", stacklevel=2)
    if method == "full":
        explained, vectors = torch.linalg.eigh(first.covariance())
        explained, basis = explained.flip(0), vectors.T.flip(0)
    else:
        assert count is not None
        explained, basis = _least_axes(rows, first, check_count("count", count))
    largest = float(explained[0]) if method == "full" else first.spread
    if not largest > 1e-14:
        raise ValueError("the data are constant: they have no principal axes")
    held = explained > NULL_VARIANCE * largest
    explained, basis = explained[held], basis[held].to(torch.float32)
    similarity = _largest_cosines(rows, basis, quantile)
    axes = Axes(basis[:0], basis, similarity, explained, threshold, first.shape, first.images, first.excluded)
    return axes.at(threshold)


def mean_direction_axes(data: Any, *, flips: bool = True, batch: int = 4096) -> Axes:
    """One axis: minus the mean of the unit vectors (ours). Keeps starts from pointing away from the mean datum.

    Raises:
        ValueError: no data, NaN, data whose directions cancel.
    """
    rows = _Rows(data, flips, batch)
    first = _Moments(rows, covariance=False)
    norm = first.mean.norm() if first.used else torch.zeros(())
    if not float(norm) > 1e-8:
        raise ValueError(f"the mean of the data's directions has norm {float(norm):.2g}: it has no direction")
    basis = (first.mean / norm)[None].to(torch.float32)
    similarity = _largest_cosines(rows, basis, 1.0)
    variance = torch.zeros(1, dtype=torch.float64)
    return Axes(-basis, basis, similarity, variance, float(similarity[1]), first.shape, first.images, first.excluded)


def jaccard(first: Axes, second: Axes, *, cosine: float = 0.9) -> float:
    """How far two sets of axes agree: pairs whose cosine is at least ``cosine``, one to one, over the size of the union."""
    if not len(first.vectors) and not len(second.vectors):
        return 1.0
    matched = 0
    if len(first.vectors) and len(second.vectors):
        near = first.vectors @ second.vectors.T >= cosine  # above 0.71 an axis of a basis has at most one such partner
        matched = min(int(near.any(1).sum()), int(near.any(0).sum()))
    return matched / (len(first.vectors) + len(second.vectors) - matched)


def save_axes(axes: Axes, path: Path) -> Path:
    """Write axes to one safetensors file."""
    from safetensors.torch import save_file

    tensors = {name: getattr(axes, name).contiguous() for name in ("vectors", "basis", "max_similarity", "explained")}
    notes = {"threshold": axes.threshold, "shape": axes.shape, "images": axes.images, "excluded": axes.excluded}
    save_file(tensors, path, metadata={"anabranch.axes": json.dumps(notes)})
    return path


def load_axes(path: Path) -> Axes:
    """Axes of a file that :func:`save_axes` wrote.

    Raises:
        ValueError: another file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {})["anabranch.axes"])
            tensors = {name: file.get_tensor(name) for name in ("vectors", "basis", "max_similarity", "explained")}
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} holds no axes: expected a file that save_axes wrote ({error})") from error
    return Axes(**tensors, **{**notes, "shape": tuple(notes["shape"])})


class _Rows:
    """Unit vectors of the data, batch by batch, as often as asked."""

    def __init__(self, data: Any, flips: bool, batch: int) -> None:
        self.batches = _batches(data, batch)
        self.flips = flips
        self.shape: tuple[int, ...] = ()

    def __call__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Unit vectors (mirrored ones after), norms, and the raw batch."""
        for given in self.batches():
            x = given[0] if isinstance(given, tuple | list) else given
            if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
                found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(f"data holds {found}: expected floating-point tensors [B, ...]")
            if self.shape and tuple(x.shape[1:]) != self.shape:
                raise ValueError(f"data holds shapes {self.shape} and {tuple(x.shape[1:])}: expected one")
            self.shape = tuple(x.shape[1:])
            flat = x.reshape(len(x), -1).float()
            norms = flat.norm(dim=1)
            if not bool(torch.isfinite(norms).all()):
                raise ValueError(
                    f"data has values that are not finite (datum {int((~norms.isfinite()).nonzero()[0])} of a batch)"
                )
            good = norms > 0
            unit = flat[good] / norms[good, None]
            if self.flips and len(self.shape) == 3:
                mirrored = x[good].flip(-1).reshape(len(unit), -1).float()
                unit = torch.cat([unit, mirrored / norms[good, None]])
            yield unit, norms, flat


class _Moments:
    """The first pass: counts, mean, second moment of the unit vectors."""

    def __init__(self, rows: _Rows, *, covariance: bool) -> None:
        self.images = self.excluded = self.used = 0
        self.low, self.high = math.inf, -math.inf
        self.dim = 0
        self.spread = 0.0
        for unit, norms, flat in rows():
            if not self.dim:
                self.dim = flat.shape[1]
                self.total = torch.zeros(self.dim, dtype=torch.float64)
                self.second = torch.zeros(self.dim, self.dim, dtype=torch.float64) if covariance else None
            self.images += len(norms)
            self.excluded += int((norms == 0).sum())
            self.used += len(unit)
            if len(norms):
                self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
            self.total += unit.sum(0, dtype=torch.float64).cpu()
            if self.second is not None:
                wide = unit.double()  # float32 would lose the axes of least variance, which are the ones wanted
                self.second += (wide.T @ wide).cpu()
        self.shape = rows.shape
        if self.used:
            self.mean = self.total / self.used
            self.spread = max(1 - float(self.mean @ self.mean), 0.0)

    def covariance(self) -> Tensor:
        assert self.second is not None
        return self.second / self.used - torch.outer(self.mean, self.mean)


def _least_axes(rows: _Rows, first: _Moments, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` axes of least variance, largest first, by Lanczos on ``x -> spread x - Cov x``."""
    if count >= first.dim:
        raise ValueError(f"count={count}: expected fewer than the {first.dim} dimensions")
    mean = first.mean.float()

    def apply(v: Any) -> Any:
        vector = torch.from_numpy(np.ascontiguousarray(v.reshape(first.dim, -1))).float()
        product = torch.zeros_like(vector)
        for unit, _, _ in rows():
            centered = unit.cpu() - mean
            product += centered.T @ (centered @ vector)
        return (first.spread * vector - product / first.used).numpy().reshape(v.shape)

    operator = LinearOperator((first.dim, first.dim), matvec=apply, matmat=apply, dtype=np.float32)
    # A start vector of its own, since the default one is random.
    start = np.cos(np.arange(first.dim, dtype=np.float32) ** 1.5)
    values, vectors = eigsh(operator, k=count, which="LA", v0=start)
    explained = first.spread - torch.from_numpy(values.astype(np.float64))
    order = explained.argsort(descending=True)
    return explained[order].clamp(min=0), torch.from_numpy(np.ascontiguousarray(vectors.T)).double()[order]


def _largest_cosines(rows: _Rows, basis: Tensor, quantile: float) -> Tensor:
    """``[2 k]``: the quantile over all data of the cosine to ``+basis`` and ``-basis``."""
    if quantile == 1:
        top = torch.full((2, len(basis)), -math.inf)
        for unit, _, _ in rows():
            if len(unit):
                cosines = (unit @ basis.T.to(unit.device)).cpu()
                top = torch.maximum(top, torch.stack([cosines.amax(0), -cosines.amin(0)]))
        return top.reshape(-1)
    total = sum(len(unit) for unit, _, _ in rows())
    keep = total - math.ceil(quantile * total) + 1  # the quantile is the keep-th largest
    best = torch.full((0, 2 * len(basis)), -math.inf)
    for unit, _, _ in rows():
        cosines = (unit @ basis.T.to(unit.device)).cpu()
        both = torch.cat([best, torch.cat([cosines, -cosines], 1)])
        best = both.topk(min(keep, len(both)), dim=0).values
    return best[keep - 1]


def _batches(data: Any, batch: int) -> Callable[[], Iterable[Any]]:
    if isinstance(data, Tensor):
        if data.ndim < 2 or len(data) == 0:
            raise ValueError(f"data has shape {tuple(data.shape)}: expected [N, ...] with N >= 1")
        return lambda: data.split(batch)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, list | tuple):
        from torch.utils.data import DataLoader

        return lambda: DataLoader(data, batch_size=batch)
    if isinstance(data, Iterator) or not isinstance(data, Iterable):
        raise TypeError(
            f"data is a {type(data).__name__}: expected a tensor, a dataset, or batches that can be read twice"
        )
    return lambda: data


def _check_threshold(threshold: float) -> None:
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be in [-1, 1], got {threshold}")
