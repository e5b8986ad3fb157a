"""Paths: derivatives, inverses, samples, and a field moved from one path to another."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from anabranch.generative import (
    GaussianPath,
    LinearPath,
    ScheduledPath,
    TrigPath,
    VEPath,
    VPPath,
    change_path,
    solve,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

TABLE = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
PATHS: dict[str, GaussianPath] = {
    "linear": LinearPath(),
    "linear with a floor": LinearPath(sigma_floor=0.01),
    "trig": TrigPath(),
    "vp": VPPath(),
    "ve": VEPath(),
    "table": ScheduledPath(TABLE),
    "short table": ScheduledPath(torch.tensor([0.9, 0.5, 0.1, 0.0], dtype=torch.float64)),
}
path_cases = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
TIMES = torch.linspace(0.05, 0.95, 37, dtype=torch.float64) + 1e-4  # off the knots of the tables


@path_cases
def test_derivatives_are_those_of_automatic_differentiation(path: GaussianPath) -> None:
    for function, derivative in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        t = TIMES.clone().requires_grad_()
        value = function(t)
        expected = torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(derivative(TIMES), expected, rtol=1e-9, atol=1e-12)


@path_cases
def test_lambda_and_its_derivative_and_inverse(path: GaussianPath) -> None:
    lam = path.log_snr_half(TIMES)
    assert bool((lam.diff() > 0).all())
    torch.testing.assert_close(lam, torch.log(path.alpha(TIMES) / path.sigma(TIMES)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(path.t_from_lambda(lam), TIMES, rtol=1e-10, atol=1e-10)
    h = 1e-6
    slope = (path.log_snr_half(TIMES + h) - path.log_snr_half(TIMES - h)) / (2 * h)
    torch.testing.assert_close(
        path.wronskian(TIMES) / (path.alpha(TIMES) * path.sigma(TIMES)), slope, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(path.sigma_wronskian(TIMES), path.sigma(TIMES) * path.wronskian(TIMES))


@path_cases
def test_ends(path: GaussianPath) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for value in (path.alpha(ends), path.sigma(ends), path.d_alpha(ends), path.sigma_d_sigma(ends)):
        assert bool(torch.isfinite(value).all())
    left = {"linear with a floor": 0.01, "ve": 0.002}
    name = next(name for name, other in PATHS.items() if other == path)
    assert float(path.alpha(ends)[1]) == 1
    assert float(path.sigma(ends)[1]) == pytest.approx(left.get(name, 0.0), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("path", [LinearPath(), TrigPath(), PATHS["short table"]])
def test_ends_of_lambda_are_infinite_and_invertible(path: GaussianPath) -> None:
    lam = path.log_snr_half(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert lam.tolist() == [-math.inf, math.inf]
    assert path.t_from_lambda(lam).tolist() == [0.0, 1.0]


def test_vp_is_the_integral_of_its_beta() -> None:
    path = VPPath(beta_min=0.1, beta_max=20.0)
    t = torch.tensor([0.0, 0.3, 0.8], dtype=torch.float64)
    tau = torch.linspace(0, 1, 20001, dtype=torch.float64)[None] * (1 - t)[:, None]
    integral = torch.trapezoid(0.1 + 19.9 * tau, tau, dim=1)
    torch.testing.assert_close(path.alpha(t), torch.exp(-integral / 2), rtol=1e-12, atol=0)


def test_table_goes_through_its_entries() -> None:
    path = ScheduledPath(TABLE)
    k = torch.arange(1000)
    torch.testing.assert_close(path.alpha(path.t_of_index(k)) ** 2, TABLE, rtol=1e-11, atol=0)
    assert torch.equal(path.index_of_t(path.t_of_index(k).float()), k.double())
    assert path == ScheduledPath(TABLE)
    assert path != ScheduledPath(TABLE[:500])


@given(st.floats(0, 1), st.integers(1, 5))
def test_sample_is_the_interpolant(t: float, batch: int) -> None:
    g = torch.Generator().manual_seed(batch)
    x0, x1 = torch.randn(2, batch, 2, 3, generator=g, dtype=torch.float64)
    for path in PATHS.values():
        if path == PATHS["vp"] and t == 1:
            continue  # its conditional velocity is infinite there
        point = path.sample(x0, x1, t)
        now = torch.tensor(t, dtype=torch.float64)
        torch.testing.assert_close(point.x_t, path.sigma(now) * x0 + path.alpha(now) * x1)
        torch.testing.assert_close(point.velocity, path.d_sigma(now) * x0 + path.d_alpha(now) * x1)


def test_change_path_keeps_the_flow_of_a_gaussian(generator: torch.Generator) -> None:
    mixture = GaussianMixture(weights=[1.0], means=[[1.0, -0.5]], covariances=[[[0.5, 0.2], [0.2, 0.3]]])
    x = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    for new in (VPPath(), TrigPath()):
        field = change_path(mixture.velocity(LinearPath()), LinearPath(), new)
        ours = solve(field, x, uniform_times(200), "rk4")
        # The new path starts at the ratio that the linear one has at t0, in a scaled state.
        zero = torch.zeros((), dtype=torch.float64)
        t0 = LinearPath().t_from_lambda(new.log_snr_half(zero))
        scale = float(new.sigma(zero) / (1 - t0))
        times = uniform_times(200, start=float(t0))
        linear = solve(mixture.velocity(LinearPath()), x / scale, times, "rk4")
        assert float((ours - linear).abs().max()) <= 1e-6


@pytest.mark.parametrize("new", [VPPath(), TrigPath(), VEPath(), PATHS["table"]])
def test_change_path_is_the_exact_field_of_the_other_path(new: GaussianPath, generator: torch.Generator) -> None:
    mixture = GaussianMixture(weights=[1, 2], means=[[1.0, -0.5], [-1.0, 1.0]], covariances=[0.2, 0.1])
    x = torch.randn(32, 2, generator=generator, dtype=torch.float64)
    changed, exact = change_path(mixture.velocity(LinearPath()), LinearPath(), new), mixture.velocity(new)
    for t in (0.2, 0.5, 0.8):
        scale = float(new.sigma(torch.tensor(t, dtype=torch.float64))) + 1
        torch.testing.assert_close(changed(x * scale, t), exact(x * scale, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearPath(sigma_floor=1.0), "sigma_floor"),
        (lambda: VPPath(beta_min=0.0), "beta_min"),
        (lambda: VEPath(sigma_min=90.0), "sigma_min"),
        (lambda: ScheduledPath(torch.tensor([0.5, 0.6])), "alphas_cumprod"),
        (lambda: ScheduledPath(torch.tensor([0.5])), "alphas_cumprod"),
        (lambda: LinearPath().sample(torch.zeros(2, 3), torch.zeros(2, 4), 0.5), "x0"),
    ],
)
def test_bad_input(make: Callable[[], object], words: str) -> None:
    with pytest.raises((ValueError, TypeCheckError), match=words):
        make()
