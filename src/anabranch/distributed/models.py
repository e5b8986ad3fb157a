"""Small image models as lists of layers, to be cut anywhere."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """Square patches of an image as tokens, with a learned position each."""

    def __init__(self, *, size: int, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))

    def forward(self, images: Float[Tensor, "n channels size size"]) -> Float[Tensor, "n tokens width"]:
        """Tokens, row by row."""
        tokens = self.project(images).flatten(2).transpose(1, 2)
        return (tokens + self.position).contiguous()


class MeanHead(nn.Module):
    """Classes from the mean of all tokens."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm, self.leave = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, tokens: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        return self.leave(self.norm(tokens).mean(1))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "n width rows columns"]) -> Float[Tensor, "n width rows columns"]:
        """Of the same shape."""
        return torch.relu(x + self.body(x))


def vision_transformer_layers(
    *, blocks: int, width: int, heads: int = 4, size: int = 28, patch: int = 4, channels: int = 1, classes: int = 10
) -> list[nn.Module]:
    """Patches, pre-norm transformer blocks without dropout, mean head: ``blocks + 2`` layers, from torch's own generator.

    Raises:
        ValueError: numbers that do not fit each other.
    """
    if blocks < 1 or width % heads or size % patch:
        raise ValueError(
            f"blocks={blocks}, width={width}, heads={heads}, size={size}, patch={patch}: expected at least one block, "
            "heads that divide the width and a patch that divides the size"
        )
    middle = [
        nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        for _ in range(blocks)
    ]
    first = PatchEmbedding(size=size, patch=patch, channels=channels, width=width)
    return [first, *middle, MeanHead(width, classes)]


def residual_network_layers(*, blocks: int, width: int, channels: int = 1, classes: int = 10) -> list[nn.Module]:
    """Stem of stride 2, residual blocks with batch norm, mean over the image: ``blocks + 2`` layers."""
    if blocks < 1:
        raise ValueError(f"blocks={blocks}: expected at least 1")
    stem = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return [stem, *(ResidualBlock(width) for _ in range(blocks)), head]
