"""Likelihoods against the closed form."""

import pytest
import torch

from anabranch.generative import GaussianSource, LinearPath, TrigPath, log_likelihood, uniform_times
from anabranch.worlds import GaussianMixture

MIXTURE = GaussianMixture(weights=[1, 2], means=[[1.0, 0.0], [-1.0, 1.0]], covariances=[0.3, 0.5])
SOURCE = GaussianSource((2,), dtype=torch.float64)


@pytest.mark.parametrize("path", [LinearPath(), TrigPath()])
def test_exact_divergence(path: LinearPath, generator: torch.Generator) -> None:
    x = MIXTURE.sample(32, generator=generator)
    ours = log_likelihood(MIXTURE.velocity(path), x, uniform_times(400), SOURCE)
    assert float((ours - MIXTURE.log_density(x)).abs().max()) <= 1e-6


def test_conditional_and_shapes(generator: torch.Generator) -> None:
    x, label = MIXTURE.sample_labelled(16, generator=generator)
    images = x.reshape(16, 1, 2, 1)
    source = GaussianSource((1, 2, 1), dtype=torch.float64)
    ours = log_likelihood(MIXTURE.velocity(), images, uniform_times(200), source, label=label)
    torch.testing.assert_close(ours, MIXTURE.log_density(x, label=label), rtol=0, atol=1e-5)


def test_hutchinson_is_unbiased(generator: torch.Generator) -> None:
    x = MIXTURE.sample(1, generator=generator).expand(2000, 2).contiguous()
    draws = log_likelihood(
        MIXTURE.velocity(), x, uniform_times(20), SOURCE, solver="heun", divergence="hutchinson", generator=generator
    )
    exact = log_likelihood(MIXTURE.velocity(), x[:1], uniform_times(20), SOURCE, solver="heun")
    assert float(draws.std()) > 0
    assert abs(float(draws.mean() - exact)) < 4 * float(draws.std()) / 2000**0.5


def test_pure_translation_keeps_the_density() -> None:
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = log_likelihood(lambda x, t: torch.ones_like(x), x, uniform_times(3), SOURCE)
    torch.testing.assert_close(ours, SOURCE.log_prob(x - 1))


def test_bad_input() -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises((ValueError, TypeError), match="divergence"):
        log_likelihood(MIXTURE.velocity(), x, uniform_times(3), SOURCE, divergence="trace")
    with pytest.raises(ValueError, match="probes"):
        log_likelihood(MIXTURE.velocity(), x, uniform_times(3), SOURCE, probes=0)
    with pytest.raises(ValueError, match="reverse"):
        log_likelihood(MIXTURE.velocity(), x, uniform_times(3), SOURCE, solver="ancestral")
