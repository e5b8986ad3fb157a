"""Five predictions of one thing, exactly interchangeable: velocity, denoised, noise, score, diffusion_v.

With ``w = d_alpha sigma - alpha d_sigma`` and a source N(0, I):

- noise ``x0 = (d_alpha x - alpha v) / w``, denoised ``x1 = (sigma v - d_sigma x) / w``, ``v = d_alpha x1 + d_sigma x0``;
- score ``-x0 / sigma``; ``x1 = (x - sigma x0) / alpha``, ``x0 = (x - alpha x1) / sigma``;
- diffusion_v ``alpha x0 - sigma x1`` (Salimans and Ho, 2202.00512; on LinearPath it has no established meaning, but the
  formula inverts wherever ``alpha^2 + sigma^2 > 0``). For VPPath it points against our velocity.

The denoiser ``D(y; s)`` of Karras et al. (2206.00364) is denoised at ``x = alpha y`` where ``sigma / alpha = s``.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import SingularTimeError, as_time, expand
from anabranch.generative.fields import VelocityField, calls_per_evaluation
from anabranch.generative.paths import GaussianPath

Prediction = Literal["velocity", "denoised", "noise", "score", "diffusion_v"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)


def check_prediction(name: str, kind: str) -> None:
    """``kind`` is one of :data:`PREDICTIONS`."""
    if kind not in PREDICTIONS:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, PREDICTIONS))}, got {kind!r}")


def convert(
    value: Float[Tensor, "batch *shape"],
    x: Float[Tensor, "batch *shape"],
    t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
    path: GaussianPath,
    frm: Prediction,
    to: Prediction,
    *,
    clamp: float | None = None,
) -> Float[Tensor, "batch *shape"]:
    """The prediction ``value`` of kind ``frm`` at ``(x, t)`` as kind ``to``.

    Args:
        clamp: evaluate the path's weights at ``t`` clamped to ``[clamp, 1 - clamp]`` in place of the check (which on a
            GPU waits for the device).

    Raises:
        SingularTimeError: the conversion divides by zero at ``t``: noise or score to the rest at ``alpha = 0``,
            denoised to the rest at ``sigma = 0``, anything to score at ``sigma = 0``, velocity where ``w`` is 0 or
            infinite.
        ValueError: an unknown kind.
    """
    check_prediction("frm", frm)
    check_prediction("to", to)
    if frm == to:
        return value
    time = as_time(t, x)
    if clamp is not None:
        time = time.clamp(clamp, 1 - clamp)
    alpha, sigma = path.alpha(time), path.sigma(time)
    need_noise = to in ("noise", "score", "velocity", "diffusion_v")
    need_denoised = to in ("denoised", "velocity", "diffusion_v")
    if clamp is None:
        divisors = []
        if frm in ("noise", "score") and need_denoised:
            divisors.append(alpha)
        if (frm == "denoised" and need_noise) or to == "score":
            divisors.append(sigma)
        if "velocity" in (frm, to):
            divisors.append(path.wronskian(time))
        for divisor in divisors:
            if not bool((torch.isfinite(divisor) & (divisor != 0)).all()):
                bad = ~(torch.isfinite(divisor) & (divisor != 0))
                at = float(time.expand(bad.shape)[bad][0] if bad.ndim else time)
                raise SingularTimeError(
                    f"{frm} cannot be converted to {to} at t = {at} on {path}: the formula divides by zero there. "
                    "Start or end at another time, or pass clamp=1e-5"
                )
    a, s = expand(alpha, x), expand(sigma, x)
    noise = denoised = value
    if frm == "velocity":
        w = expand(path.wronskian(time), x)
        if need_noise:
            noise = (expand(path.d_alpha(time), x) * x - a * value) / w
        if need_denoised:
            denoised = (s * value - expand(path.d_sigma(time), x) * x) / w
    elif frm == "diffusion_v":
        norm = a * a + s * s
        noise, denoised = (s * x + a * value) / norm, (a * x - s * value) / norm
    elif frm == "denoised":
        if need_noise:
            noise = (x - a * value) / s
    else:
        noise = -s * value if frm == "score" else value
        if need_denoised:
            denoised = (x - s * noise) / a
    if to == "denoised":
        result = denoised
    elif to == "noise":
        result = noise
    elif to == "score":
        result = -noise / s
    elif to == "diffusion_v":
        result = a * noise - s * denoised
    else:
        result = expand(path.d_alpha(time), x) * denoised + expand(path.d_sigma(time), x) * noise
    return result.to(value.dtype)


def loss_weight(path: GaussianPath, kind: Prediction, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``omega(t)``: the mean squared error of ``kind`` is ``omega(t)`` times that of the velocity it converts to.

    Raises:
        ValueError: an unknown kind.
    """
    check_prediction("kind", kind)
    if kind == "velocity":
        return torch.ones_like(t)
    alpha, sigma, w = path.alpha(t), path.sigma(t), path.wronskian(t)
    if kind == "denoised":
        return (sigma / w) ** 2
    if kind == "noise":
        return (alpha / w) ** 2
    if kind == "score":
        return (alpha / (w * sigma)) ** 2
    return ((alpha**2 + sigma**2) / w) ** 2


@dataclass(frozen=True)
class Parametrized:
    """A network that predicts ``kind`` on ``path``, as a velocity field.

    Args:
        net: ``net(x, t, **condition)``, called at the true ``t``.
        clamp: see :func:`convert`; without it times where the conversion is singular raise.
    """

    net: VelocityField
    kind: Prediction
    path: GaussianPath
    clamp: float | None = None

    def __post_init__(self) -> None:
        check_prediction("kind", self.kind)

    def calls_at(self, t: float | Tensor) -> int:
        return calls_per_evaluation(self.net, t)

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        t: float | Float[Tensor, ""] | Float[Tensor, " batch"],
        **condition: Any,
    ) -> Float[Tensor, "batch *shape"]:
        return convert(self.net(x, t, **condition), x, t, self.path, self.kind, "velocity", clamp=self.clamp)
