"""Convolutional backbones for small images: a U-Net, and one behind a pixel-unshuffle, which costs a fifth of it.

Measured on 28 x 28 images, batch 128, one thread, see ``benchmarks/generative_backbones.py``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anabranch.generative._checks import check_count
from anabranch.generative.embeddings import Condition, zero_last


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution; norm scaled and shifted by the embedding, SiLU, convolution that starts at 0; skip."""

    def __init__(self, inputs: int, outputs: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs), nn.GroupNorm(groups, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = zero_last(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.modulation = nn.Linear(width, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        h = self.conv2(nn.functional.silu(torch.addcmul(shift, self.norm2(h), 1 + scale)))
        return self.skip(x) + h


class PixelAttention(nn.Module):
    """Self-attention over the pixels of a feature map, residual; starts as the identity."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.to_out = zero_last(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        h = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.to_out(h.transpose(-1, -2).reshape(x.shape))


class UNet(Condition):
    """A U-Net of residual blocks with attention at its lowest level; the output layer starts at 0.

    ``net(x, t, label=None)``: ``x`` ``[B, C, H, W]`` (any H and W), ``t`` a number, 0-d or ``[B]``, ``label`` ``[B]``.

    Args:
        image_channels: C.
        channels: of the first level.
        mult: each level's channels as a multiple of ``channels``; a level has half the side of the one above.
        blocks: residual blocks a level, on the way down and on the way up.
        classes: number of labels; None is an unconditional network.
        heads: of the attention; 0 leaves it out.

    Raises:
        ValueError: channels that 8 groups or the heads do not divide.
    """

    def __init__(
        self,
        image_channels: int = 1,
        channels: int = 32,
        mult: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        *,
        classes: int | None = None,
        heads: int = 4,
    ) -> None:
        width, groups = 4 * channels, 8
        super().__init__(width, classes)
        self.config: dict[str, Any] = {
            "image_channels": image_channels, "channels": channels, "mult": list(mult), "blocks": blocks,
            "classes": classes, "heads": heads,
        }  # fmt: skip
        check_count("image_channels", image_channels)
        check_count("blocks", blocks)
        if not mult or channels % groups or (heads and channels * mult[-1] % heads):
            raise ValueError(
                f"channels={channels}, mult={tuple(mult)}, heads={heads}: expected channels that {groups} divides and "
                "heads that divide those of the lowest level"
            )
        levels = [channels * m for m in mult]
        self.enter = nn.Conv2d(image_channels, levels[0], 3, padding=1)
        self.down, self.lower = nn.ModuleList(), nn.ModuleList()
        at = levels[0]
        for i, size in enumerate(levels):
            self.lower.append(nn.Conv2d(at, at, 3, stride=2, padding=1) if i else nn.Identity())
            for _ in range(blocks):
                self.down.append(ResidualBlock(at, size, width, groups))
                at = size
        self.middle = nn.ModuleList([ResidualBlock(at, at, width, groups) for _ in range(2)])
        self.attention = PixelAttention(at, heads, groups) if heads else nn.Identity()
        self.up, self.raise_ = nn.ModuleList(), nn.ModuleList()
        for i, size in reversed(list(enumerate(levels))):
            for _ in range(blocks):
                self.up.append(ResidualBlock(at + size, size, width, groups))
                at = size
            self.raise_.append(nn.Conv2d(at, at, 3, padding=1) if i else nn.Identity())
        self.norm = nn.GroupNorm(groups, at)
        self.leave = zero_last(nn.Conv2d(at, image_channels, 3, padding=1))
        self.blocks = blocks

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        label: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        embedding = self.embed(x, t, label)
        h, skips = self.enter(x), []
        for i, block in enumerate(self.down):
            if i % self.blocks == 0:
                h = self.lower[i // self.blocks](h)
            h = block(h, embedding)
            skips.append(h)
        h = self.middle[1](self.attention(self.middle[0](h, embedding)), embedding)
        for i, block in enumerate(self.up):
            h = block(torch.cat([h, skips.pop()], 1), embedding)
            if skips and (i + 1) % self.blocks == 0:
                h = self.raise_[i // self.blocks](nn.functional.interpolate(h, size=skips[-1].shape[-2:]))
        return self.leave(nn.functional.silu(self.norm(h))).to(x.dtype)


class PixelUNet(UNet):
    """:class:`UNet` on the image with each ``patch x patch`` square folded into channels: the recommended one here.

    On 28 x 28 images and ``patch=2`` its levels are 14 and 7 pixels wide.

    Args:
        image_channels: of the image.
        channels, mult, blocks, classes, heads: as of :class:`UNet`.
        patch: side of the squares; height and width must be multiples of it.
    """

    def __init__(
        self,
        image_channels: int = 1,
        channels: int = 32,
        mult: Sequence[int] = (1, 2),
        blocks: int = 1,
        *,
        classes: int | None = None,
        heads: int = 4,
        patch: int = 2,
    ) -> None:
        super().__init__(
            image_channels * check_count("patch", patch) ** 2, channels, mult, blocks, classes=classes, heads=heads
        )
        self.patch = patch
        self.config = {**self.config, "image_channels": image_channels, "patch": patch}

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        label: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        folded = nn.functional.pixel_unshuffle(x, self.patch)
        return nn.functional.pixel_shuffle(super().forward(folded, t, label), self.patch)
