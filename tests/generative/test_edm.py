"""Preconditioning: the table of Karras et al. written out, unit variances, both ends."""

import math

import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    EDMDenoising,
    EDMPreconditioned,
    GaussianPath,
    LinearPath,
    LogNormalLevel,
    TrigPath,
    VEPath,
    VPPath,
    convert,
    solve,
    uniform_times,
)

SD = 0.5
PATHS = [LinearPath(), TrigPath(), VPPath(), VEPath()]
paths = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
TIMES = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


def raw(x: Tensor, level: Tensor) -> Tensor:
    return torch.sin(3 * x) + level[:, None]


@paths
def test_the_denoiser_is_that_of_the_paper(path: GaussianPath, generator: torch.Generator) -> None:
    x = torch.randn(19, 3, generator=generator, dtype=torch.float64) * (1 + path.sigma(TIMES)[:, None])
    s = (path.sigma(TIMES) / path.alpha(TIMES))[:, None]
    y = x / path.alpha(TIMES)[:, None]
    c_skip, c_out = SD**2 / (s**2 + SD**2), s * SD / torch.sqrt(s**2 + SD**2)
    c_in, c_noise = 1 / torch.sqrt(s**2 + SD**2), torch.log(s[:, 0]) / 4
    expected = c_skip * y + c_out * raw(c_in * y, c_noise)
    field = EDMPreconditioned(raw, path, SD, levels=(1e-6, 1e6))
    torch.testing.assert_close(field.denoised(x, TIMES), expected, rtol=1e-10, atol=1e-10)
    velocity = convert(expected, x, TIMES, path, "denoised", "velocity")
    torch.testing.assert_close(field(x, TIMES), velocity, rtol=1e-8, atol=1e-7)


@paths
def test_the_loss_is_the_weighted_one_of_the_paper(path: GaussianPath, generator: torch.Generator) -> None:
    x0, x1 = torch.randn(2, 19, 3, generator=generator, dtype=torch.float64)
    objective = EDMDenoising(path, SD, levels=(1e-6, 1e6))
    s = (path.sigma(TIMES) / path.alpha(TIMES))[:, None]
    x = path.sample(x0, x1, TIMES).x_t
    error = objective.preconditioned(raw).denoised(x, TIMES) - x1
    expected = ((s**2 + SD**2) / (s * SD) ** 2 * error**2).mean(1)
    torch.testing.assert_close(objective.at(raw, x0, x1, TIMES).per_sample, expected, rtol=1e-7, atol=0)


@paths
def test_input_and_target_have_unit_variance(path: GaussianPath) -> None:
    """Coefficients of x0 (variance 1) and x1 (variance SD^2): sums of squares, no sampling."""
    field = EDMPreconditioned(raw, path, SD)
    one, zero = torch.ones(19, 1, dtype=torch.float64), torch.zeros(19, 1, dtype=torch.float64)
    of_noise, of_data = field.target(one, zero, TIMES), field.target(zero, one, TIMES)
    torch.testing.assert_close(of_noise**2 + SD**2 * of_data**2, one, rtol=1e-12, atol=0)
    seen = []
    keeps = EDMPreconditioned(lambda x, level: seen.append(x) or x, path, SD)
    for a, b in ((1.0, 0.0), (0.0, 1.0)):
        keeps.network(path.sample(a * one, b * one, TIMES).x_t, TIMES)
    torch.testing.assert_close(seen[0] ** 2 + SD**2 * seen[1] ** 2, one, rtol=1e-12, atol=0)
    cross = of_noise * seen[0] + SD**2 * of_data * seen[1]  # and the target is uncorrelated with the input
    torch.testing.assert_close(cross, zero, rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", [LinearPath(), TrigPath(), VEPath()], ids=lambda p: type(p).__name__)
def test_both_ends_are_finite_and_exact(path: GaussianPath, generator: torch.Generator) -> None:
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    field = EDMPreconditioned(raw, path, SD)
    for t in (0.0, 1.0):
        assert bool(torch.isfinite(field(x, t)).all())
    if path.sigma(torch.ones(())) == 0:
        assert torch.equal(field.denoised(x, 1.0), x)  # clean data are their own denoised
    end = solve(field, x * float(path.sigma(torch.zeros(()))), uniform_times(8), "heun")
    assert bool(torch.isfinite(end).all())


def test_a_perfect_network_gives_the_exact_field(generator: torch.Generator) -> None:
    """For Gaussian data of that deviation F = 0 is optimal: the skip alone is the denoiser, the field the law's own."""
    from anabranch.worlds import GaussianMixture

    law = GaussianMixture(weights=[1.0], means=[[0.0, 0.0]], covariances=SD**2)
    x = torch.randn(19, 2, generator=generator, dtype=torch.float64)
    for path in (LinearPath(), VEPath(), VPPath()):
        field = EDMPreconditioned(lambda x, level: 0 * x, path, SD)
        torch.testing.assert_close(field(x, TIMES), law.velocity(path)(x, TIMES), rtol=1e-8, atol=1e-8)


def test_training_levels(generator: torch.Generator) -> None:
    path, n = VEPath(), 40_000
    t = LogNormalLevel(path, -1.2, 1.2).sample(n, torch.zeros(1, dtype=torch.float64), generator)
    logs = torch.log(path.sigma(t))
    assert abs(float(logs.mean()) + 1.2) < 4 * 1.2 / math.sqrt(n)
    assert abs(float(logs.std()) - 1.2) < 4 * 1.2 / math.sqrt(2 * n)
    wide = LogNormalLevel(path, 0.0, 20.0).sample(1000, torch.zeros(1), generator)
    assert float(wide.min()) == 0
    assert float(wide.max()) == 1


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="data_std"):
        EDMPreconditioned(raw, LinearPath(), 0.0)
    with pytest.raises(ValueError, match="levels"):
        EDMPreconditioned(raw, LinearPath(), 0.5, (1.0, 0.5))
    with pytest.raises(ValueError, match="std"):
        LogNormalLevel(VEPath(), 0.0, 0.0)
