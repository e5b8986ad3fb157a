"""The variational bound on the likelihood, as an objective and as a measurement (Kingma et al., 2107.00630)."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_count, time_dtype
from anabranch.generative.denoising_objectives import prediction_target
from anabranch.generative.fields import VelocityField
from anabranch.generative.level_samplers import Stratified
from anabranch.generative.loss_weights import elbo_weight, error_ratio
from anabranch.generative.objectives import Loss
from anabranch.generative.parametrization import Prediction, check_prediction
from anabranch.generative.paths import GaussianPath, LinearPath
from anabranch.generative.transitions import snr


@dataclass(frozen=True)
class VariationalBound:
    """An upper bound on ``-log p(x1)``, nats per entry: prior, diffusion and reconstruction terms.

    - diffusion: ``int SNR' / 2 |x1 - denoised|^2 dt`` over ``[start, end]``, or its sum over ``steps`` equal steps, each by
      one draw of the time per sample;
    - prior: divergence of ``q(x_start | x1)`` from ``N(0, prior_std^2 I)``;
    - reconstruction: ``-log p(x1 | x_end)``. With ``levels`` that of discrete data, p in proportion to the Gaussian kernel
      at each level (Kingma et al., section 3.3); without, a Gaussian decoder ``N(x_end / alpha, (sigma / alpha)^2 I)``, and
      the whole bounds the density of the data blurred by ``sigma(end) / alpha(end)``.

    With the exact predictor and no ``steps`` the bound of a density is tight on average. The network is raw, of kind
    ``predicts``; kinds that are singular at ``start`` (noise and score where alpha is 0) need ``start`` > 0.

    Args:
        steps: T of the discrete bound; None is its continuous limit.
        start, end: the times the bound spans; ``sigma(end)`` must not be 0.
        prior_std: None is ``sqrt(alpha^2 + sigma^2)`` at ``start``, that of data of variance 1.
        levels: number of equally spaced values in [-1, 1] that the data take (256 for bytes).

    Raises:
        ValueError: steps or levels too small, an interval that is none, ``sigma(end) = 0``.
    """

    predicts: Prediction = "noise"
    path: GaussianPath = field(default_factory=LinearPath)
    steps: int | None = None
    start: float = 0.001
    end: float = 0.999
    prior_std: float | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        check_prediction("predicts", self.predicts)
        if self.steps is not None:
            check_count("steps", self.steps)
        if self.levels is not None:
            check_count("levels", self.levels, 2)
        Stratified(self.start, self.end)  # checks the interval
        if not float(self._at(self.end, self.path.sigma)) > 0:
            raise ValueError(f"end = {self.end}: sigma is 0 there on {self.path}, expected an earlier time")

    @staticmethod
    def _at(t: float, function: Any) -> Tensor:
        return function(torch.tensor(t, dtype=torch.float64))

    def __call__(
        self, net: VelocityField, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None, **condition: Any
    ) -> Loss:
        t = Stratified(self.start, self.end).sample(len(x1), x1, generator)
        if self.steps is not None:
            t = self.noisy_ends(t)
        decoding = torch.randn(x1.shape, generator=generator, dtype=x1.dtype, device=x1.device)
        return self.at(net, x0, x1, t, decoding, **condition)

    def noisy_ends(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The beginning of the step that each time lies in."""
        steps = self.steps or 1
        length = (self.end - self.start) / steps
        return self.start + length * ((t - self.start) / length).floor().clamp(0, steps - 1)

    def at(
        self,
        net: VelocityField,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        decoding: Float[Tensor, "batch *shape"],
        **condition: Any,
    ) -> Loss:
        """The bound with the diffusion term at times ``t`` (the steps' noisy ends if there are steps).

        Args:
            decoding: standard noise of the reconstruction term.

        Raises:
            ValueError: shapes that differ.
        """
        size = x1[0].numel()
        point = self.path.sample(x0, x1, t)
        error = net(point.x_t, point.t, **condition) - prediction_target(self.path, self.predicts, x0, x1, t)
        squared = error.reshape(len(x1), -1).to(time_dtype(error)).square().sum(1)
        span = self.end - self.start
        if self.steps is None:
            weight = elbo_weight(self.path, self.predicts, t) * span
        else:
            gap = snr(self.path, t + span / self.steps) - snr(self.path, t)
            weight = 0.5 * self.steps * gap * error_ratio(self.path, self.predicts, "denoised", t) ** 2
        diffusion = weight * squared / size
        prior, reconstruction = self.prior(x1), self.reconstruction(x1, decoding)
        per_sample = diffusion + prior + reconstruction
        parts = {"prior": prior, "diffusion": diffusion, "reconstruction": reconstruction}
        return Loss(per_sample.mean(), per_sample, {name: part.detach().mean() for name, part in parts.items()})

    def prior(self, x1: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """Divergence of ``q(x_start | x1)`` from the prior, nats per entry."""
        alpha, sigma = (float(self._at(self.start, f)) for f in (self.path.alpha, self.path.sigma))
        std = math.hypot(alpha, sigma) if self.prior_std is None else self.prior_std
        ratio = (sigma / std) ** 2
        squares = x1.reshape(len(x1), -1).to(time_dtype(x1)).square().mean(1)
        return 0.5 * (ratio - 1 - math.log(ratio) + (alpha / std) ** 2 * squares)

    def reconstruction(
        self, x1: Float[Tensor, "batch *shape"], decoding: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, " batch"]:
        """``-log p(x1 | x_end)`` nats per entry, ``x_end`` made with the noise ``decoding``.

        Memory with ``levels``: that many times the batch.
        """
        alpha, sigma = (float(self._at(self.end, f)) for f in (self.path.alpha, self.path.sigma))
        noise, width = decoding.reshape(len(x1), -1).to(time_dtype(x1)), sigma / alpha
        if self.levels is None:
            return 0.5 * (noise.square().mean(1) + math.log(2 * math.pi * width**2))
        flat = x1.reshape(len(x1), -1).to(noise.dtype)
        values = torch.linspace(-1, 1, self.levels, dtype=noise.dtype, device=noise.device)
        logits = -(((flat + width * noise)[..., None] - values) ** 2) / (2 * width**2)
        level = ((flat + 1) * (self.levels - 1) / 2).round().long().clamp(0, self.levels - 1)
        chosen = logits.gather(-1, level[..., None])[..., 0]
        return (torch.logsumexp(logits, -1) - chosen).mean(1)
