"""Embeddings of times and labels that the backbones share."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anabranch.generative._checks import as_time, check_count


class TimeEmbedding(nn.Module):
    """Features of a time in [0, 1]: itself and sines and cosines of ``octaves`` doublings of half a period, then an MLP.

    Few octaves, because the highest frequency bounds the network's slope in time, which MeanFlow differentiates: on an
    eight-mode mixture six octaves instead of two made its one-step error 2.6 times larger (one seed, 600 steps) and helped
    nobody else much (a noise level can also be read off the state).
    """

    def __init__(self, width: int, *, octaves: int = 2) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(octaves), persistent=False)
        self.frequencies: Tensor
        self.hidden = nn.Linear(2 * octaves + 1, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        t = t.to(self.hidden.weight.dtype)
        phases = t[:, None] * self.frequencies.to(t.dtype)
        return self.out(nn.functional.silu(self.hidden(torch.cat([t[:, None], phases.sin(), phases.cos()], 1))))


class Condition(nn.Module):
    """Base of the backbones: the embedding ``[B, width]`` of a time and, with ``classes``, of a label.

    Label ``classes`` is the null label, which a missing label means. The submodule ``time_embedding`` is where
    ``FlowMapModel.from_velocity`` adds the second time.
    """

    def __init__(self, width: int, classes: int | None) -> None:
        super().__init__()
        if classes is not None:
            check_count("classes", classes)
        self.classes = classes
        self.time_embedding = TimeEmbedding(width)
        self.label_embedding = None if classes is None else nn.Embedding(classes + 1, width)

    def embed(self, x: Tensor, t: float | Tensor, label: Int[Tensor, "..."] | None) -> Float[Tensor, "batch width"]:
        """SiLU of the embedding.

        Raises:
            ValueError: a label for a network without classes, or of another shape than ``[B]``.
        """
        out = self.time_embedding(as_time(t, x).expand(len(x)))
        if self.label_embedding is None:
            if label is not None:
                raise ValueError("label is given to a network without classes")
            return nn.functional.silu(out)
        assert self.classes is not None
        if label is None:
            label = torch.full((len(x),), self.classes, device=x.device)
        elif label.ndim == 0:
            label = label.expand(len(x))
        if label.shape != (len(x),):
            raise ValueError(f"label has shape {tuple(label.shape)}: expected one class per sample, [{len(x)}]")
        return nn.functional.silu(out + self.label_embedding(label).to(out.dtype))


def zero_last(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """``layer`` with weights and bias 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
