"""The objective of the denoising and score views: one regression on noised data, in five kinds.

The network is raw: it predicts ``predicts``, and :class:`Parametrized` (or a view) makes the velocity field of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import expand
from anabranch.generative.fields import VelocityField
from anabranch.generative.loss_weights import error_ratio
from anabranch.generative.objectives import Loss, squared_error_loss
from anabranch.generative.parametrization import Prediction, check_prediction
from anabranch.generative.paths import GaussianPath, LinearPath
from anabranch.generative.time_samplers import TimeSampler, Uniform


def prediction_target(
    path: GaussianPath,
    kind: Prediction,
    x0: Float[Tensor, "batch *shape"],
    x1: Float[Tensor, "batch *shape"],
    t: Float[Tensor, " batch"],
) -> Float[Tensor, "batch *shape"]:
    """What a network of ``kind`` is to predict for the pair at ``t``: its mean given ``x_t`` is the marginal prediction."""
    check_prediction("kind", kind)
    if kind == "denoised":
        return x1
    if kind == "noise":
        return x0
    if kind == "velocity":
        return path.sample(x0, x1, t).velocity
    sigma = expand(path.sigma(t), x1)
    if kind == "score":
        return (-x0 / sigma).to(x1.dtype)
    return (expand(path.alpha(t), x1) * x0 - sigma * x1).to(x1.dtype)


@dataclass(frozen=True)
class DenoisingScoreMatching:
    """Regression of a prediction on noised data (Vincent, 2011; Ho et al., 2006.11239; Song et al., 2011.13456).

    All kinds have one minimiser, the marginal prediction; they differ in how errors at different times weigh. With
    ``measured_in`` the error is that of another kind: ``predicts="noise"`` alone is the simple loss of DDPM,
    ``predicts="score", measured_in="noise"`` the NCSN weighting ``sigma^2``, ``predicts="denoised",
    measured_in="velocity"`` flow matching of the velocity that the network implies.

    Args:
        predicts: what the network gives.
        measured_in: the kind whose squared error is the loss; None is ``predicts``.
        weight: ``weight(t) -> [B]`` on top of it (:func:`elbo_weight`, say); None is 1.
        clamp: evaluate the ratio of kinds at times in ``[clamp, 1 - clamp]``. Without it a ratio that is infinite at an
            end (noise measured as velocity at t = 0) is so in the loss, too.
    """

    predicts: Prediction = "noise"
    path: GaussianPath = field(default_factory=LinearPath)
    times: TimeSampler = field(default_factory=Uniform)
    measured_in: Prediction | None = None
    weight: Callable[[Tensor], Tensor] | None = None
    clamp: float | None = None
    weight_power: float = 0.0

    def __post_init__(self) -> None:
        check_prediction("predicts", self.predicts)
        check_prediction("measured_in", self.measured_in or self.predicts)

    def __call__(
        self, net: VelocityField, x0: Tensor, x1: Tensor, *, generator: torch.Generator | None, **condition: Any
    ) -> Loss:
        return self.at(net, x0, x1, self.times.sample(len(x1), x1, generator), **condition)

    def at(
        self,
        net: VelocityField,
        x0: Float[Tensor, "batch *shape"],
        x1: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        **condition: Any,
    ) -> Loss:
        """The loss at times ``t``.

        Raises:
            ValueError: shapes that differ.
        """
        point = self.path.sample(x0, x1, t)
        error = net(point.x_t, point.t, **condition) - prediction_target(self.path, self.predicts, x0, x1, t)
        if self.measured_in is not None and self.measured_in != self.predicts:
            at = t if self.clamp is None else t.clamp(self.clamp, 1 - self.clamp)
            error = expand(error_ratio(self.path, self.predicts, self.measured_in, at), error) * error
        if self.weight is not None:
            error = expand(self.weight(t).sqrt(), error) * error
        return squared_error_loss(error, self.weight_power)
