"""Noise with the data's spectrum: block-DCT coefficients that are weak in the data are set to 0 (2512.18184)."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anabranch.generative._checks import check_count
from anabranch.generative._spheres import gaussian_mean_norm

# ITU-R BT.601, as JPEG uses it, without offsets: luma, blue and red difference.
_YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


def dct_matrix(n: int, *, dtype: torch.dtype = torch.float64) -> Float[Tensor, "n n"]:
    """The orthonormal DCT-II of length ``n``: ``coefficients = matrix @ values``."""
    check_count("n", n)
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * i + 1) * k / (2 * n)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.to(dtype)


def block_dct(x: Float[Tensor, "n c h w"], block: int = 8) -> Float[Tensor, "n c h w"]:
    """Orthonormal DCT of every ``block x block`` tile; coefficients stand where their tile stood.

    Raises:
        ValueError: sides that are no multiple of the block.
    """
    return _tiles(x, dct_matrix(block, dtype=x.dtype).to(x.device))


def inverse_block_dct(x: Float[Tensor, "n c h w"], block: int = 8) -> Float[Tensor, "n c h w"]:
    """The inverse of :func:`block_dct`."""
    return _tiles(x, dct_matrix(block, dtype=x.dtype).T.to(x.device))


def _tiles(x: Tensor, matrix: Tensor) -> Tensor:
    n, c, h, w = x.shape
    block = len(matrix)
    if h % block or w % block:
        raise ValueError(f"images of {h} x {w}: expected sides that are multiples of the block, {block}")
    tiles = x.reshape(n, c, h // block, block, w // block, block)
    return torch.einsum("ki,ncaibj,lj->ncakbl", matrix, tiles, matrix).reshape(n, c, h, w)


@dataclass(frozen=True, eq=False)
class DCTMaskSource:
    """Gaussian noise, as luma and colour differences where it has three channels, with block-DCT coefficients set to 0, and
    scaled to mean variance 1.

    The variance is exact (the authors estimate it from a million draws). The mask is common to all blocks of an image (our
    reading). Where it drops a coefficient the law lives on a subspace and has no density.

    Args:
        shape: ``(C, H, W)``.
        mask: ``[C, block, block]``, True for coefficients that stay.
        dtype, device: of the draws.

    Raises:
        ValueError: a mask of another shape or that keeps nothing, sides that are no multiple of its block.
    """

    shape: tuple[int, ...]
    mask: Bool[Tensor, "c block block2"]
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or self.mask.shape != (self.shape[0], self.block, self.block):
            raise ValueError(
                f"shape {self.shape} with mask {tuple(self.mask.shape)}: expected (C, H, W), [C, block, block]"
            )
        if self.shape[1] % self.block or self.shape[2] % self.block:
            raise ValueError(f"shape {self.shape}: expected sides that are multiples of the block, {self.block}")
        if not bool(self.mask.any()):
            raise ValueError("mask keeps no coefficient")

    @classmethod
    def fit(
        cls,
        data: Float[Tensor, "n c h w"],
        *,
        block: int = 8,
        max_mean: float = 0.1,
        max_variance: float = 2.0,
        dtype: torch.dtype = torch.float32,
    ) -> "DCTMaskSource":
        """Drops coefficients whose mean is below ``max_mean`` in size and whose variance is below ``max_variance`` over the
        data (the paper: 2.0 weak, 4.0 strong). Cost: one pass.

        Raises:
            ValueError: fewer than two images, sides that are no multiple of the block, thresholds that keep nothing.
        """
        if len(data) < 2:
            raise ValueError(f"data has {len(data)} images: expected at least 2")
        n, c, h, w = data.shape
        coefficients = block_dct(_to_luma(data), block).reshape(n, c, h // block, block, w // block, block)
        coefficients = coefficients.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, block, block).double()
        weak = (coefficients.mean(0).abs() < max_mean) & (coefficients.var(0) < max_variance)
        return cls((c, h, w), (~weak).to(data.device), dtype, data.device)

    @property
    def block(self) -> int:
        """Side of a tile."""
        return self.mask.shape[-1]

    @property
    def mean_norm(self) -> float:
        """By quadrature, to 1e-10."""
        tile = torch.linalg.eigvalsh(self._tile @ self._tile.T) / self._scale**2
        return gaussian_mean_norm(tile.cpu().repeat(self._tiles).numpy())

    @property
    def _tiles(self) -> int:
        return (self.shape[1] // self.block) * (self.shape[2] // self.block)

    @cached_property
    def _tile(self) -> Tensor:
        """The linear map of one tile, ``[C b^2, C b^2]``, float64."""
        size = self.mask.numel()
        unit = torch.eye(size, dtype=torch.float64).reshape(size, len(self.mask), self.block, self.block)
        return _masked(unit, self.mask.cpu()).reshape(size, size).T

    @cached_property
    def _scale(self) -> float:
        return math.sqrt(float(self._tile.square().sum()) / len(self._tile))

    def filter(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Images through the same mask, not scaled: what the paper trains on beside this source."""
        return _masked(x, self.mask.to(x.device))

    def sample(self, n: int, *, generator: torch.Generator | None, condition: Any = None) -> Float[Tensor, "n c h w"]:
        check_count("n", n)
        z = torch.randn(n, *self.shape, generator=generator, dtype=self.dtype, device=self.device)
        return self.filter(z) / self._scale

    def log_prob(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Log density in nats.

        Raises:
            NotImplementedError: a mask that drops a coefficient.
        """
        if not bool(self.mask.all()):
            raise NotImplementedError("noise with coefficients set to 0 lives on a subspace: it has no density")
        flat = x.reshape(len(x), -1)  # nothing dropped: a standard Gaussian
        return -0.5 * (flat**2).sum(1) - 0.5 * flat.shape[1] * math.log(2 * math.pi)


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    h, w = x.shape[2:]
    block = mask.shape[-1]
    tiled = mask.to(x.dtype).repeat(1, h // block, w // block)
    return _from_luma(inverse_block_dct(block_dct(_to_luma(x), block) * tiled, block))


def _to_luma(x: Tensor) -> Tensor:
    return torch.einsum("kc,nchw->nkhw", torch.tensor(_YCBCR, dtype=torch.float64).to(x), x) if x.shape[1] == 3 else x


def _from_luma(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x
    inverse = torch.linalg.inv(torch.tensor(_YCBCR, dtype=torch.float64))
    return torch.einsum("kc,nchw->nkhw", inverse.to(x), x)
