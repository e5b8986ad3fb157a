"""The bound is tight for the exact denoiser, and every term is its closed form. Expectations by quadrature."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    GaussianPath,
    GeometricVEPath,
    LinearPath,
    TrigPath,
    VariationalBound,
    VPPath,
    convert,
    posterior_kl,
    snr,
)
from anabranch.generative.parametrization import PREDICTIONS
from anabranch.worlds import GaussianMixture

from .test_denoising_objectives import STD, TARGET, WEIGHTS, X0, X1

PATHS = [LinearPath(), TrigPath(), VPPath(), GeometricVEPath(0.05, 20.0)]
paths = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


def exact_net(kind: str, path: GaussianPath) -> object:
    def net(x: Tensor, t: Tensor) -> Tensor:
        return convert(TARGET.velocity(path)(x, t), x, t, path, "velocity", kind)  # type: ignore[arg-type]

    return net


def expected(bound: VariationalBound, net: object, times: Tensor, weights: Tensor) -> dict[str, float]:
    """Parts averaged exactly over noise and data, and over times with the given weights (sum 1)."""
    totals = {"prior": 0.0, "diffusion": 0.0, "reconstruction": 0.0}
    for t, w in zip(times.tolist(), weights.tolist(), strict=True):
        at = torch.full((len(X0),), t, dtype=torch.float64)
        loss = bound.at(net, X0, X1, at, X0)  # type: ignore[arg-type]
        prior, rest = bound.prior(X1), bound.reconstruction(X1, X0)
        diffusion = loss.per_sample - prior - rest
        for name, part in (("prior", prior), ("diffusion", diffusion), ("reconstruction", rest)):
            totals[name] += w * float(WEIGHTS @ part)
    return totals


def legendre(start: float, end: float, nodes: int = 200) -> tuple[Tensor, Tensor]:
    points, weights = np.polynomial.legendre.leggauss(nodes)
    # Nodes crowd towards both ends, where the weight varies fastest.
    u = torch.from_numpy((points + 1) / 2)
    times = start + (end - start) * u**2 * (3 - 2 * u)
    return times, torch.from_numpy(weights / 2) * 6 * u * (1 - u)


@paths
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_exact_denoiser_has_a_tight_bound(path: GaussianPath, kind: str) -> None:
    """Continuous bound = entropy of the blurred data + what the prior misses: 1/2 log(2 pi e (c^2 + 1 / SNR))."""
    bound = VariationalBound(kind, path, start=0.01, end=0.99, prior_std=1.0)  # type: ignore[arg-type]
    parts = expected(bound, exact_net(kind, path), *legendre(0.01, 0.99))
    ends = torch.tensor([0.01, 0.99], dtype=torch.float64)
    low, high = snr(path, ends).tolist()
    # The terms apart: the diffusion term is the mutual information between the two ends' signal (I-MMSE).
    assert parts["diffusion"] == pytest.approx(0.5 * math.log((1 + STD**2 * high) / (1 + STD**2 * low)), rel=1e-5)
    assert parts["reconstruction"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e / high), rel=1e-9)
    alpha, sigma = float(path.alpha(ends)[0]), float(path.sigma(ends)[0])
    second = float(WEIGHTS @ X1[:, 0] ** 2)
    assert parts["prior"] == pytest.approx(
        0.5 * (sigma**2 - 1 - 2 * math.log(sigma) + alpha**2 * second), rel=1e-9, abs=1e-12
    )


def test_from_the_pure_source_the_bound_is_the_entropy() -> None:
    path = LinearPath()
    bound = VariationalBound("denoised", path, start=0.0, end=0.999)
    parts = expected(bound, exact_net("denoised", path), *legendre(0.0, 0.999))
    blurred = STD**2 + 1 / float(snr(path, torch.tensor(0.999, dtype=torch.float64)))
    assert parts["prior"] == 0
    assert sum(parts.values()) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * blurred), abs=1e-5)


@paths
def test_fewer_steps_bound_less_tightly(path: GaussianPath) -> None:
    """The discrete bound falls with the number of steps, like 1 / T, to the continuous one (VDM, section 4.2)."""
    net, start, end = exact_net("denoised", path), 0.02, 0.9
    limit = sum(expected(VariationalBound("denoised", path, start=start, end=end), net, *legendre(start, end)).values())
    gaps = []
    for steps in (8, 16, 32, 64, 128):
        bound = VariationalBound("denoised", path, steps, start, end)
        times = start + (end - start) / steps * torch.arange(steps, dtype=torch.float64)
        gaps.append(sum(expected(bound, net, times, torch.full((steps,), 1 / steps)).values()) - limit)
    assert all(one > two > 0 for one, two in pairwise(gaps))
    assert 1.7 < gaps[-2] / gaps[-1] < 2.3


def test_a_step_is_the_posteriors_divergence(generator: torch.Generator) -> None:
    x0, x1 = torch.randn(2, 10, 3, generator=generator, dtype=torch.float64)
    path, steps = TrigPath(), 10
    bound = VariationalBound("noise", path, steps, 0.1, 0.9)
    u = 0.1 + 0.8 * torch.rand(10, generator=generator, dtype=torch.float64)
    t = bound.noisy_ends(u)
    assert bool(((u - t >= -1e-12) & (u - t <= 0.08 + 1e-12)).all())

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x)

    point = path.sample(x0, x1, t)
    denoised = convert(net(point.x_t, t), point.x_t, t, path, "noise", "denoised")
    expected_terms = steps * posterior_kl(path, t, t + 0.08, x1, denoised) / 3
    loss = bound.at(net, x0, x1, t, x0)
    ours = loss.per_sample - bound.prior(x1) - bound.reconstruction(x1, x0)
    torch.testing.assert_close(ours, expected_terms, rtol=1e-8, atol=1e-10)
    assert float(sum(loss.parts.values())) == pytest.approx(float(loss.value))


def test_reconstruction_of_levels(generator: torch.Generator) -> None:
    """With little noise the level is known; with much, nothing is but the number of levels."""
    k = torch.randint(4, (500, 8), generator=generator)
    x1, noise = 2 * k.double() / 3 - 1, torch.randn(500, 8, generator=generator, dtype=torch.float64)
    sharp = VariationalBound(end=0.999, levels=4).reconstruction(x1, noise)
    assert float(sharp.max()) < 1e-12
    vague = VariationalBound(start=1e-5, end=1e-4, levels=4).reconstruction(x1, noise)
    assert float(vague.mean()) == pytest.approx(math.log(4), rel=1e-3)


def test_reconstruction_against_bayes_rule() -> None:
    path, values = LinearPath(), torch.linspace(-1, 1, 5, dtype=torch.float64)
    bound = VariationalBound(path=path, end=0.8, levels=5)
    x1, noise = values[[3]][:, None], torch.tensor([[0.4]], dtype=torch.float64)
    state = 0.8 * x1 + 0.2 * noise
    likelihood = torch.distributions.Normal(0.8 * values, 0.2).log_prob(state[0])
    torch.testing.assert_close(bound.reconstruction(x1, noise)[0], -torch.log_softmax(likelihood, 0)[3])


def test_it_is_an_upper_bound_and_trains(generator: torch.Generator) -> None:
    """On the mixture the mean bound of the exact field is its cross entropy, and of a worse field more."""
    law = GaussianMixture(weights=[1, 2], means=[[1.0, 0.0], [-1.0, 1.0]], covariances=[0.3, 0.5])
    path, n = LinearPath(), 20_000
    x1 = law.sample(n, generator=generator)
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    bound = VariationalBound("denoised", path, start=0.0, end=0.99)

    def net(scale: float) -> object:
        return lambda x, t: scale * convert(law.velocity(path)(x, t), x, t, path, "velocity", "denoised")

    good, bad = (bound(net(s), x0, x1, generator=torch.Generator().manual_seed(1)).per_sample for s in (1.0, 0.9))  # type: ignore[arg-type]
    truth = -law.log_density(x1) / 2
    standard_error = float(((good - truth).var() / n).sqrt())
    assert abs(float((good - truth).mean())) < 4 * standard_error + 1e-3  # the blur of the last time is 1e-4
    assert float(bad.mean()) > float(good.mean())


def test_bad_input() -> None:
    for make, words in (
        (lambda: VariationalBound(steps=0), "steps"),
        (lambda: VariationalBound(levels=1), "levels"),
        (lambda: VariationalBound(start=0.9, end=0.1), "start"),
        (lambda: VariationalBound(end=1.0), "sigma is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
