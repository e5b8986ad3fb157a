"""A diffusion transformer for small images (Peebles and Xie, 2212.09748), with its attention by argument."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anabranch.generative._checks import check_count
from anabranch.generative.embeddings import Condition, zero_last

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def grid_positions(side: int, width: int) -> Float[Tensor, "tokens width"]:
    """Fixed sine-cosine features of a ``side x side`` grid, half of the width for each axis (row-major tokens)."""
    quarter = width // 4
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(quarter) / max(1, quarter))
    phases = torch.arange(side)[:, None] * frequencies
    line = torch.cat([phases.sin(), phases.cos()], 1)
    down = line[:, None].expand(side, side, -1)
    across = line[None].expand(side, side, -1)
    return torch.cat([down, across], 2).reshape(side * side, -1)


class TransformerBlock(nn.Module):
    """Attention and MLP, each behind a norm that the embedding scales and shifts, each gated by it (adaLN-zero)."""

    def __init__(self, width: int, heads: int, attention: Attention) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = zero_last(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(embedding)[:, None].chunk(6, 2)
        inner = torch.addcmul(shift1, self.norm1(x), 1 + scale1)
        q, k, v = self.to_qkv(inner).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = torch.addcmul(x, gate1, self.to_out(mixed))
        return torch.addcmul(x, gate2, self.mlp(torch.addcmul(shift2, self.norm2(x), 1 + scale2)))


class DiT(Condition):
    """A diffusion transformer on square images; the output layer starts at 0.

    ``net(x, t, label=None)``: ``x`` ``[B, C, side, side]``. Cost grows with the square of the tokens unless ``attention``
    is a linear one.

    Args:
        side: of the images; a multiple of ``patch``.
        image_channels: C.
        width, depth, heads: of the transformer.
        patch: side of the squares that are tokens.
        classes: number of labels; None is an unconditional network.
        attention: ``f(q, k, v) -> y``, all ``[B, heads, tokens, width / heads]``; default softmax attention.

    Raises:
        ValueError: a side that the patch does not divide, a width that 4 or the heads do not divide.
    """

    def __init__(
        self,
        side: int = 28,
        image_channels: int = 1,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        patch: int = 4,
        *,
        classes: int | None = None,
        attention: Attention | None = None,
    ) -> None:
        super().__init__(width, classes)
        self.config: dict[str, Any] = {
            "side": side, "image_channels": image_channels, "width": width, "depth": depth, "heads": heads,
            "patch": patch, "classes": classes,
        }  # fmt: skip
        for name in ("side", "image_channels", "width", "depth", "heads", "patch"):
            check_count(name, self.config[name])
        if side % patch or width % heads or width % 4:
            raise ValueError(
                f"side={side}, patch={patch}, width={width}, heads={heads}: expected a patch that divides the side, and "
                "heads and 4 that divide the width"
            )
        attention = nn.functional.scaled_dot_product_attention if attention is None else attention
        self.enter = nn.Conv2d(image_channels, width, patch, stride=patch)
        self.register_buffer("positions", grid_positions(side // patch, width), persistent=False)
        self.positions: Tensor
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, attention) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = zero_last(nn.Linear(width, 2 * width))
        self.leave = zero_last(nn.Linear(width, image_channels * patch**2))
        self.patch = patch

    def forward(
        self,
        x: Float[Tensor, "batch channels side side"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        label: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch channels side side"]:
        embedding = self.embed(x, t, label)
        h = self.enter(x)
        rows = h.shape[-1]
        h = h.flatten(2).transpose(1, 2) + self.positions.to(h.dtype)
        for block in self.blocks:
            h = block(h, embedding)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, 2)
        out = self.leave(torch.addcmul(shift, self.norm(h), 1 + scale))
        squares = out.transpose(1, 2).reshape(len(x), -1, rows, rows)
        return nn.functional.pixel_shuffle(squares, self.patch).to(x.dtype)
