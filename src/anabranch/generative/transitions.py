"""Transitions of the Gaussian chain that adds noise: forward, posterior, and the Kullback-Leibler terms between posteriors.

For a ``noisy`` time and a later, ``clean``er one, both in our t. Lai et al., 2510.21890, lemma 4.4.2 and equations 4.4.7
and 4.4.8; Kingma et al., 2107.00630, appendix A.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_pair
from anabranch.generative.paths import GaussianPath

Times = Float[Tensor, "..."]


class Transition(NamedTuple):
    """``x_noisy = scale x_clean + sqrt(variance) z``."""

    scale: Tensor
    variance: Tensor


class Posterior(NamedTuple):
    """``x_clean = on_state x_noisy + on_data x_1 + sqrt(variance) z``, given the state and the data."""

    on_state: Tensor
    on_data: Tensor
    variance: Tensor


def _check_order(noisy: Tensor, clean: Tensor) -> None:
    if not bool((noisy < clean).all()):
        bad = ~(noisy < clean)
        first = tuple(float(time.expand(bad.shape)[bad][0]) for time in torch.broadcast_tensors(noisy, clean))
        raise ValueError(f"noisy = {first[0]} and clean = {first[1]}: expected noisy < clean (t = 1 is the data)")


def forward_transition(path: GaussianPath, noisy: Times, clean: Times) -> Transition:
    """``q(x_noisy | x_clean)``: scale ``alpha_a / alpha_b``, variance ``sigma_a^2 - (alpha_a / alpha_b)^2 sigma_b^2``.

    Raises:
        ValueError: not noisy < clean.
    """
    _check_order(noisy, clean)
    scale = path.alpha(noisy) / path.alpha(clean)
    return Transition(scale, path.sigma(noisy) ** 2 - (scale * path.sigma(clean)) ** 2)


def posterior_transition(path: GaussianPath, noisy: Times, clean: Times) -> Posterior:
    """``q(x_clean | x_noisy, x_1)``, by Bayes' rule of the two transitions. Finite at both ends.

    Raises:
        ValueError: not noisy < clean.
    """
    step = forward_transition(path, noisy, clean)
    noisy_variance, clean_variance = path.sigma(noisy) ** 2, path.sigma(clean) ** 2
    return Posterior(
        step.scale * clean_variance / noisy_variance,
        path.alpha(clean) * step.variance / noisy_variance,
        step.variance * clean_variance / noisy_variance,
    )


def snr(path: GaussianPath, t: Times) -> Times:
    """Signal-to-noise ratio ``alpha^2 / sigma^2``, infinite where sigma is 0."""
    return (path.alpha(t) / path.sigma(t)) ** 2


def posterior_kl(
    path: GaussianPath,
    noisy: Times,
    clean: Times,
    x1: Float[Tensor, "batch *shape"],
    denoised: Float[Tensor, "batch *shape"],
) -> Float[Tensor, " batch"]:
    """Divergence in nats of the model's step (the posterior at ``denoised``) from the true posterior (at ``x1``).

    ``(SNR(clean) - SNR(noisy)) |x1 - denoised|^2 / 2`` per sample: neither the state nor the path enters but by SNR.
    Infinite for a step to ``sigma = 0``.

    Raises:
        ValueError: not noisy < clean, shapes or dtypes that differ.
    """
    check_pair(denoised, x1)
    _check_order(noisy, clean)
    gap = snr(path, clean) - snr(path, noisy)
    return 0.5 * gap * (x1 - denoised).reshape(len(x1), -1).square().sum(1)
