"""The Gaussian chain: forward, posterior and divergence against numerical integration and Bayes' rule."""

import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    DDPM,
    GaussianPath,
    GeometricVEPath,
    LinearPath,
    SubVPPath,
    TrigPath,
    VPPath,
    ancestral,
    elbo_weight,
    forward_transition,
    posterior_kl,
    posterior_transition,
    snr,
    solve,
)
from anabranch.generative.loss_weights import error_ratio
from anabranch.generative.parametrization import PREDICTIONS, loss_weight

PATHS = [LinearPath(), TrigPath(), VPPath(), SubVPPath(), GeometricVEPath(0.05, 5.0), DDPM().path]
paths = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


def normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return torch.exp(-((x - mean) ** 2) / (2 * variance)) / torch.sqrt(2 * torch.pi * variance)


@paths
def test_forward_steps_compose_to_the_kernel(path: GaussianPath) -> None:
    a, b, c = (torch.tensor(t, dtype=torch.float64) for t in (0.2, 0.5, 0.9))
    one, two, both = forward_transition(path, b, c), forward_transition(path, a, b), forward_transition(path, a, c)
    torch.testing.assert_close(one.scale * two.scale, both.scale, rtol=1e-12, atol=0)
    torch.testing.assert_close(two.scale**2 * one.variance + two.variance, both.variance, rtol=1e-10, atol=1e-12)
    kernel_variance = both.scale**2 * path.sigma(c) ** 2 + both.variance
    torch.testing.assert_close(kernel_variance, path.sigma(a) ** 2, rtol=1e-12, atol=0)


@paths
def test_posterior_is_the_normalized_product(path: GaussianPath) -> None:
    """P6: forward kernel times prior kernel, normalized on a grid in one dimension."""
    for noisy, clean in ((0.1, 0.3), (0.5, 0.55), (0.6, 0.95)):
        a, b = (torch.tensor(t, dtype=torch.float64) for t in (noisy, clean))
        x1, x_a = torch.tensor(0.7, dtype=torch.float64), 1.3 * path.sigma(a)
        step, found = forward_transition(path, a, b), posterior_transition(path, a, b)
        mean, sd = found.on_state * x_a + found.on_data * x1, found.variance.sqrt()
        grid = mean + sd * torch.linspace(-12, 12, 4001, dtype=torch.float64)
        product = normal(x_a, step.scale * grid, step.variance) * normal(grid, path.alpha(b) * x1, path.sigma(b) ** 2)
        product = product / torch.trapezoid(product, grid)
        assert float((product - normal(grid, mean, found.variance)).abs().max() * sd) <= 1e-8


@paths
def test_one_ancestral_step_has_the_posteriors_moments(path: GaussianPath) -> None:
    """A million draws of the solver given the exact denoised prediction, four standard errors."""
    a, b = (torch.tensor(t, dtype=torch.float64) for t in (0.4, 0.6))
    x1, x_a, n = 0.7, float(path.sigma(a)), 1_000_000
    found = posterior_transition(path, a, b)

    def velocity(x: Tensor, t: Tensor) -> Tensor:  # of the point mass at x1
        noise = (x - path.alpha(t) * x1) / path.sigma(t)
        return path.d_alpha(t) * x1 + path.d_sigma(t) * noise

    start = torch.full((n, 1), x_a, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    end = solve(velocity, start, torch.stack([a, b]), ancestral(), path=path, generator=g)
    mean = float(found.on_state * x_a + found.on_data * x1)
    assert abs(float(end.mean()) - mean) < 4 * float(found.variance / n) ** 0.5
    assert abs(float(end.var() / found.variance) - 1) < 4 * (2 / n) ** 0.5


@paths
def test_divergence_of_posteriors_is_the_change_of_snr(path: GaussianPath) -> None:
    """P5: 100 random pairs of times, states and guesses, against the divergence of two Gaussians."""
    g = torch.Generator().manual_seed(1)
    times = (0.02 + 0.96 * torch.rand(2, 100, generator=g, dtype=torch.float64)).sort(0).values
    noisy, clean = times[0], times[1] + 1e-3
    x1, guess, x_a = torch.randn(3, 100, 4, generator=g, dtype=torch.float64)
    found = posterior_transition(path, noisy, clean)
    means = [found.on_state[:, None] * x_a + found.on_data[:, None] * data for data in (x1, guess)]
    exact = ((means[0] - means[1]) ** 2).sum(1) / (2 * found.variance)
    torch.testing.assert_close(posterior_kl(path, noisy, clean, x1, guess), exact, rtol=1e-9, atol=1e-12)
    gap = snr(path, clean) - snr(path, noisy)
    torch.testing.assert_close(found.on_data**2 / found.variance, gap, rtol=1e-9, atol=1e-12)


@paths
def test_the_limit_of_the_divergence_is_the_weight(path: GaussianPath) -> None:
    t, h = torch.linspace(0.1005, 0.9005, 9, dtype=torch.float64), 1e-6
    slope = (snr(path, t + h) - snr(path, t - h)) / (4 * h)
    torch.testing.assert_close(elbo_weight(path, "denoised", t), slope, rtol=1e-6, atol=0)
    half_log = (torch.log(snr(path, t + h)) - torch.log(snr(path, t - h))) / (4 * h)
    torch.testing.assert_close(elbo_weight(path, "noise", t), half_log, rtol=1e-6, atol=0)
    for kind in PREDICTIONS:  # one number, whatever the network predicts
        share = loss_weight(path, kind, t) / loss_weight(path, "denoised", t)
        torch.testing.assert_close(elbo_weight(path, kind, t) * share, elbo_weight(path, "denoised", t))


@paths
def test_error_ratios_are_the_roots_of_the_loss_weights(path: GaussianPath) -> None:
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    for frm in PREDICTIONS:
        for to in PREDICTIONS:
            expected = torch.sqrt(loss_weight(path, to, t) / loss_weight(path, frm, t))
            torch.testing.assert_close(error_ratio(path, frm, to, t), expected, rtol=1e-10, atol=0)


def test_ratios_stay_finite_where_their_parts_are_not() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert error_ratio(LinearPath(), "score", "noise", ends).tolist() == [1.0, 0.0]
    assert error_ratio(VPPath(), "score", "noise", ends)[1] == 0


def test_the_ends() -> None:
    zero, one, half = (torch.tensor(t, dtype=torch.float64) for t in (0.0, 1.0, 0.5))
    found = posterior_transition(LinearPath(), half, one)
    assert (float(found.on_state), float(found.on_data), float(found.variance)) == (0.0, 1.0, 0.0)
    found = posterior_transition(LinearPath(), zero, half)  # from the pure source nothing is known of the state
    assert (float(found.on_state), float(found.on_data)) == (0.0, 0.5)
    assert float(found.variance) == 0.25
    x = torch.ones(2, 3, dtype=torch.float64)
    assert bool(torch.isinf(posterior_kl(LinearPath(), half, one, x, 0 * x)).all())


def test_bad_input() -> None:
    t = torch.tensor([0.5, 0.5], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"noisy = 0\.5 and clean = 0\.5"):
        forward_transition(LinearPath(), t, t)
    with pytest.raises(ValueError, match="x0 is"):
        posterior_kl(LinearPath(), t - 0.1, t, torch.zeros(2, 3).double(), torch.zeros(2, 3))
