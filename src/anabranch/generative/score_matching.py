"""Score matching without a target: the score's norm and its divergence."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import time_dtype
from anabranch.generative.fields import VelocityField
from anabranch.generative.objectives import Loss
from anabranch.generative.paths import GaussianPath, LinearPath
from anabranch.generative.time_samplers import TimeSampler, Uniform


@dataclass(frozen=True)
class ScoreMatching:
    """Hyvarinen's score matching on noised data: ``sigma^2 (|s|^2 / 2 + tr ds/dx)`` per entry, no target needed.

    Hyvarinen (2005); with ``probes`` the sliced form of reduced variance (Song et al., 1905.07088, equation 8): the trace
    by Rademacher directions, the norm exact. It equals half the denoising loss of the score, measured as noise, up to a
    constant, and can be negative. The network gives the score.

    Cost: one backward pass through the network per entry of a sample (exact: small samples only) or per probe, each
    differentiated again in training.

    Args:
        probes: directions per sample; None is the exact trace.
        weight: ``weight(t) -> [B]``; None is ``sigma(t)^2``.
    """

    path: GaussianPath = field(default_factory=LinearPath)
    times: TimeSampler = field(default_factory=Uniform)
    probes: int | None = None
    weight: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.probes is not None and self.probes < 1:
            raise ValueError(f"probes must be >= 1 or None, got {self.probes}")

    def __call__(
        self, net: VelocityField, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None, **condition: Any
    ) -> Loss:
        t = self.times.sample(len(x1), x1, generator)
        return self.at(net, x0, x1, t, self.directions(x1, generator), **condition)

    def directions(self, like: Float[Tensor, "batch *shape"], generator: torch.Generator | None) -> Tensor:
        """``[probes, B, D]`` Rademacher, or the D unit vectors."""
        size = like[0].numel()
        if self.probes is None:
            return torch.eye(size, dtype=like.dtype, device=like.device)[:, None].expand(size, len(like), size)
        draws = torch.randint(0, 2, (self.probes, len(like), size), generator=generator, device=like.device)
        return draws.to(like.dtype) * 2 - 1

    def at(
        self,
        net: VelocityField,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        directions: Float[Tensor, "probes batch size"],
        **condition: Any,
    ) -> Loss:
        """The loss at times ``t`` with these directions.

        Raises:
            ValueError: shapes that differ.
        """
        point = self.path.sample(x0, x1, t)
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            flat = point.x_t.detach().reshape(len(x1), -1).requires_grad_()
            score = net(flat.reshape(x1.shape), point.t, **condition).reshape(len(x1), -1)
            trace = score.new_zeros(len(x1))
            for direction in directions:
                if not score.requires_grad:  # a network that does not depend on x has no divergence
                    break
                (gradient,) = torch.autograd.grad(
                    score, flat, direction, create_graph=training, retain_graph=True, allow_unused=True
                )
                if gradient is not None:
                    trace = trace + (gradient * direction).sum(1)
        trace = trace * (1 if self.probes is None else 1 / self.probes)
        weight = self.path.sigma(t) ** 2 if self.weight is None else self.weight(t)
        per_sample = (weight * (score.square().sum(1) / 2 + trace) / score.shape[1]).to(time_dtype(score))
        if not training:
            per_sample = per_sample.detach()
        return Loss(per_sample.mean(), per_sample)
