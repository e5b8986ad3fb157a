"""A linear latent space: principal components of image patches."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_count


@dataclass(frozen=True, eq=False)
class PatchPCA:
    """Images to the principal components of their patches and back (a patch as wide as the image is plain PCA).

    Latents are divided by ``scale``, so that their mean variance is 1.

    Args:
        mean: ``[C patch patch]``.
        components: orthonormal rows ``[k, C patch patch]``.
        scale: root mean variance of the kept components.
        explained: share of the variance they keep.
    """

    patch: int
    channels: int
    mean: Float[Tensor, " features"]
    components: Float[Tensor, "k features"]
    scale: float
    explained: float

    @classmethod
    def fit(cls, images: Float[Tensor, "n channels height width"], components: int, patch: int) -> "PatchPCA":
        """From images. Cost: O(n H W f + f^3) for f = channels patch^2 features.

        Raises:
            ValueError: a patch that does not divide the images, or more components than features.
        """
        channels = images.shape[1]
        features = channels * patch**2
        if check_count("components", components) > features:
            raise ValueError(f"components={components}: a patch has {features} features")
        rows = _to_patches(images, patch).permute(0, 2, 3, 1).reshape(-1, features)
        mean = rows.mean(0, dtype=torch.float64)
        centered = rows.to(torch.float64) - mean
        values, vectors = torch.linalg.eigh(centered.T @ centered / (len(rows) - 1))
        kept = values[-components:]
        return cls(
            patch, channels, mean.to(images), vectors[:, -components:].flip(1).T.contiguous().to(images),
            float(kept.mean().sqrt()), float(kept.sum() / values.sum()),
        )  # fmt: skip

    def encode(self, images: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n k rows columns"]:
        """Latents ``[n, k, H / patch, W / patch]``."""
        squares = _to_patches(images, self.patch) - self.mean.to(images)[:, None, None]
        return torch.einsum("kf,nfhw->nkhw", self.components.to(images), squares) / self.scale

    def decode(self, latents: Float[Tensor, "n k rows columns"]) -> Float[Tensor, "n channels height width"]:
        """The images nearest to the data that have these latents."""
        squares = torch.einsum("kf,nkhw->nfhw", self.components.to(latents), latents * self.scale)
        return torch.nn.functional.pixel_shuffle(squares + self.mean.to(latents)[:, None, None], self.patch)


def _to_patches(images: Tensor, patch: int) -> Tensor:
    check_count("patch", patch)
    if images.shape[-1] % patch or images.shape[-2] % patch:
        raise ValueError(f"patch={patch} does not divide images of {images.shape[-2]} x {images.shape[-1]}")
    return torch.nn.functional.pixel_unshuffle(images, patch)
