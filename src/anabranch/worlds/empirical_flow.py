"""The exact flow to a finite data set."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative import GaussianPath, LinearPath, SingularTimeError


@dataclass(frozen=True)
class EmpiricalFlow:
    """The flow to a finite data set, the exact minimiser of the flow-matching loss on it: a check for memorisation.

    The same formulas with point masses: ``E[x_1 | x_t]`` is a softmax over all data points. At sigma = 0 the field is
    singular.

    Args:
        data: ``[N, ...]``.
        chunk: data points held against the batch at once; memory O(B chunk), a call costs O(B N D).
    """

    data: Float[Tensor, "n *shape"] = field(kw_only=True)
    chunk: int = field(default=4096, kw_only=True)

    def __post_init__(self) -> None:
        if len(self.data) == 0 or self.chunk < 1:
            raise ValueError(f"data must hold a point and chunk be >= 1, got {len(self.data)} and {self.chunk}")

    def velocity(self, path: GaussianPath | None = None) -> "EmpiricalField":
        """The exact velocity field of ``path`` (default linear) from N(0, I) to the data."""
        return EmpiricalField(self, path or LinearPath(), "velocity")

    def score(self, path: GaussianPath | None = None) -> "EmpiricalField":
        """The exact score."""
        return EmpiricalField(self, path or LinearPath(), "score")

    def denoised(self, x: Tensor, t: float | Tensor, path: GaussianPath) -> tuple[Tensor, Tensor]:
        """``E[x_1 | x_t = x]`` and the log density of ``x``, by one pass over the data (online softmax)."""
        flat = x.reshape(len(x), -1)
        time = torch.as_tensor(t, dtype=x.dtype, device=x.device).reshape(-1, 1)
        alpha, sigma = path.alpha(time), path.sigma(time)
        if bool((sigma == 0).any()):
            raise SingularTimeError("the field of a finite data set is singular at sigma = 0: stop at an earlier time")
        points = self.data.reshape(len(self.data), -1)
        top = x.new_full((len(x), 1), -math.inf)
        total, mean = torch.zeros_like(top), torch.zeros_like(flat)
        for start in range(0, len(points), self.chunk):
            part = points[start : start + self.chunk].to(flat)
            squares = (flat**2).sum(1, keepdim=True) - 2 * alpha * (flat @ part.T) + alpha**2 * (part**2).sum(1)
            logits = -0.5 * squares / sigma**2
            new_top = torch.maximum(top, logits.amax(1, keepdim=True))
            keep, weights = torch.exp(top - new_top), torch.exp(logits - new_top)
            total, mean, top = total * keep + weights.sum(1, keepdim=True), mean * keep + weights @ part, new_top
        dim = flat.shape[1]
        constant = math.log(len(points)) + dim * torch.log(sigma) + dim / 2 * math.log(2 * math.pi)
        return (mean / total).reshape(x.shape), (top + torch.log(total) - constant).squeeze(1)

    def log_density(
        self, x: Float[Tensor, "batch *shape"], t: float | Tensor, path: GaussianPath | None = None
    ) -> Float[Tensor, " batch"]:
        """Log density in nats of the state at ``t`` < 1."""
        return self.denoised(x, t, path or LinearPath())[1]


@dataclass(frozen=True)
class EmpiricalField:
    """The exact velocity or score of an :class:`EmpiricalFlow`."""

    flow: EmpiricalFlow
    path: GaussianPath
    kind: str

    def __call__(
        self, x: Float[Tensor, "batch *shape"], t: float | Float[Tensor, ""] | Float[Tensor, " batch"], /
    ) -> Float[Tensor, "batch *shape"]:
        denoised, _ = self.flow.denoised(x, t, self.path)
        time = torch.as_tensor(t, dtype=x.dtype, device=x.device).reshape(-1, *([1] * (x.ndim - 1)))
        alpha, sigma = self.path.alpha(time), self.path.sigma(time)
        noise = (x - alpha * denoised) / sigma
        if self.kind == "score":
            return -noise / sigma
        return self.path.d_alpha(time) * denoised + self.path.d_sigma(time) * noise
