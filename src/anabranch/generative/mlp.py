"""Backbones for vectors: points in the plane, latents, small states."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anabranch.generative._checks import as_time, check_count
from anabranch.generative.embeddings import Condition, TimeEmbedding, zero_last


class ResMLP(Condition):
    """Residual MLP whose blocks are scaled, shifted and gated by the embedding of time and label (adaLN-zero).

    ``net(x, t, label=None)``: ``x`` ``[B, dim]``. The output layer starts at 0.

    Args:
        dim: of the vectors.
        width: of the hidden layers.
        depth: number of residual blocks.
        classes: number of labels; None is an unconditional network.
    """

    def __init__(self, dim: int, width: int = 192, depth: int = 3, *, classes: int | None = None) -> None:
        super().__init__(width, classes)
        self.config: dict[str, Any] = {"dim": dim, "width": width, "depth": depth, "classes": classes}
        for name, value in (("dim", dim), ("width", width), ("depth", depth)):
            check_count(name, value)
        self.enter = nn.Linear(dim, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(depth))
        self.modulations = nn.ModuleList(zero_last(nn.Linear(width, 3 * width)) for _ in range(depth))
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = zero_last(nn.Linear(width, dim))

    def forward(
        self,
        x: Float[Tensor, "batch dim"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        label: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        embedding = self.embed(x, t, label)
        h = self.enter(x)
        for norm, modulation, first, second in zip(self.norms, self.modulations, self.first, self.second, strict=True):
            scale, shift, gate = modulation(embedding).chunk(3, 1)
            inner = torch.addcmul(shift, norm(h), 1 + scale)
            h = torch.addcmul(h, gate, second(nn.functional.silu(first(inner))))
        return self.leave(nn.functional.silu(self.norm(h))).to(x.dtype)


class TinyMLP(nn.Module):
    """Three hidden SiLU layers on the state and its time's embedding: for two or three dimensions, unconditional.

    Args:
        dim: of the vectors.
        width: of the hidden layers.
    """

    classes = None

    def __init__(self, dim: int = 2, width: int = 128) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"dim": dim, "width": width}
        for name, value in (("dim", dim), ("width", width)):
            check_count(name, value)
        self.time_embedding = TimeEmbedding(width)
        self.enter = nn.Linear(dim, width)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.leave = zero_last(nn.Linear(width, dim))

    def forward(
        self, x: Float[Tensor, "batch dim"], t: float | Float[Tensor, ""] | Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        embedding = self.time_embedding(as_time(t, x).expand(len(x)))
        return self.leave(self.body(self.enter(x) + embedding)).to(x.dtype)
