"""Weights of squared errors: between prediction kinds, and of the likelihood bound.

The error of every prediction kind is that of the velocity times a monomial in alpha, sigma, ``w = d_alpha sigma - alpha
d_sigma`` and ``norm = alpha^2 + sigma^2``. Ratios are formed on the exponents, so that what cancels never divides by zero:
score to noise is ``sigma`` at every time.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative.parametrization import Prediction, check_prediction
from anabranch.generative.paths import GaussianPath

_ERROR: dict[str, dict[str, int]] = {  # |error of kind| / |error of velocity|
    "velocity": {},
    "denoised": {"sigma": 1, "w": -1},
    "noise": {"alpha": 1, "w": -1},
    "score": {"alpha": 1, "sigma": -1, "w": -1},
    "diffusion_v": {"norm": 1, "w": -1},
}
_BOUND = {"alpha": 1, "w": 1, "sigma": -3}  # half the derivative of SNR: the weight of the squared denoised error


def _monomial(path: GaussianPath, powers: Mapping[str, int], t: Tensor) -> Tensor:
    result = torch.ones_like(t)
    for name, power in powers.items():
        if power == 0:
            continue
        if name == "norm":
            base = path.alpha(t) ** 2 + path.sigma(t) ** 2
        else:
            base = {"alpha": path.alpha, "sigma": path.sigma, "w": path.wronskian}[name](t)
        result = result * base**power
    return result


def _powers(*terms: tuple[Mapping[str, int], int]) -> dict[str, int]:
    names = ("alpha", "sigma", "w", "norm")
    return {name: sum(times * term.get(name, 0) for term, times in terms) for name in names}


def error_ratio(path: GaussianPath, frm: Prediction, to: Prediction, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Norm of an error measured as kind ``to``, over that of the same error as kind ``frm``; its square weighs losses.

    From "score" to "noise" it is ``sigma``: the weighting of NCSN (Song and Ermon, 1907.05600, section 4.2).

    Raises:
        ValueError: an unknown kind.
    """
    check_prediction("frm", frm)
    check_prediction("to", to)
    return _monomial(path, _powers((_ERROR[to], 1), (_ERROR[frm], -1)), t)


def elbo_weight(path: GaussianPath, kind: Prediction, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``omega(t)`` such that ``int omega |error of kind|^2 dt`` is the diffusion term of the likelihood bound, in nats.

    ``SNR'(t) / 2`` for denoised (``SNR = alpha^2 / sigma^2``) and ``lambda'(t)``, half the derivative of log SNR, for
    noise. Kingma et al., 2107.00630, equation 17; Lai et al., 2510.21890, equation 4.4.7, in our time. The squared error is
    the sum over a sample's entries.

    Raises:
        ValueError: an unknown kind.
    """
    check_prediction("kind", kind)
    return _monomial(path, _powers((_BOUND, 1), (_ERROR["denoised"], 2), (_ERROR[kind], -2)), t)
