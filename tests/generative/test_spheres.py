"""Special functions of spheres against mpmath, SciPy and quadrature; draws of Gamma laws."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from anabranch.generative import GaussianSource
from anabranch.generative._acceptance import clear_share, orthonormal_share
from anabranch.generative._spheres import (
    bessel_ratio,
    cap_probability,
    chi_log_density,
    chi_mean,
    draw_gamma,
    gaussian_mean_norm,
    log_bessel_i,
    log_sphere_area,
)


@pytest.mark.parametrize(
    ("order", "x"),
    [(0.5, 10.0), (0.0, 1e-3), (391.0, 300.0), (1535.0, 1500.0), (1535.0, 50.0), (1535.0, 3e3), (1535.0, 1e-3), (2e4, 500.0),
     (5.0, 1e5), (250.0, 40.0), (600.0, 3.0)],
)  # fmt: skip
def test_bessel_functions_of_large_order(order: float, x: float) -> None:
    with mpmath.workdps(40):
        here, above = mpmath.besseli(order, x), mpmath.besseli(order + 1, x)
        assert log_bessel_i(order, x) == pytest.approx(float(mpmath.log(here)), rel=1e-12, abs=1e-11)
        assert bessel_ratio(order, x) == pytest.approx(float(above / here), rel=1e-12)


@pytest.mark.parametrize("d", [2, 3, 17, 784])
@pytest.mark.parametrize("cosine", [-0.4, 0.0, 0.05, 0.9])
def test_caps(d: int, cosine: float) -> None:
    """The formula of the specification, and the integral of the density of one coordinate."""
    share = (1 - math.copysign(1, cosine) * float(stats.beta(0.5, (d - 1) / 2).cdf(cosine**2))) / 2
    assert cap_probability(cosine, d) == pytest.approx(share, rel=1e-9, abs=1e-13)
    if d > 2:
        ratio = math.exp(log_sphere_area(d - 1) - log_sphere_area(d))
        area = integrate.quad(lambda u: ratio * (1 - u * u) ** ((d - 3) / 2), cosine, 1, epsabs=1e-14)[0]
        assert cap_probability(cosine, d) == pytest.approx(area, rel=1e-7, abs=1e-12)


def test_chi() -> None:
    for d in (1.0, 2.0, 3.0, 784.0, 3072.0):
        assert chi_mean(d) == pytest.approx(float(stats.chi(d).mean()), rel=1e-9)
        r = torch.linspace(0.1, 60, 50, dtype=torch.float64)
        np.testing.assert_allclose(chi_log_density(r, d), stats.chi(d).logpdf(r.numpy()), rtol=1e-9)
    assert chi_mean(3072.0) == pytest.approx(55.42112, abs=1e-4)
    assert float(chi_log_density(torch.tensor([-1.0]), 3.0)) == -math.inf


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 9), min_size=1, max_size=4), st.floats(0, 4))
def test_mean_norm_of_a_gaussian(values: list[float], square: float) -> None:
    """Against the distribution of one coordinate (folded normal), isotropic laws, and bounds for the rest."""
    one = stats.foldnorm(math.sqrt(square / values[0]), scale=math.sqrt(values[0])).mean()
    assert gaussian_mean_norm(values[:1], [square]) == pytest.approx(float(one), rel=1e-9)
    same = [values[0]] * len(values)
    assert gaussian_mean_norm(same) == pytest.approx(math.sqrt(values[0]) * chi_mean(float(len(values))), rel=1e-10)
    mean = gaussian_mean_norm(values)
    assert math.sqrt(min(values)) * chi_mean(float(len(values))) * (1 - 1e-12) <= mean <= math.sqrt(sum(values)) + 1e-12


def test_mean_norm_in_the_plane_by_quadrature() -> None:
    def integrand(y: float, x: float) -> float:
        return math.hypot(x, y) * math.exp(-((x - 1) ** 2) / 8 - (y + 2) ** 2) / (2 * math.pi * 2 * math.sqrt(0.5))

    wanted = integrate.dblquad(integrand, -16, 18, -8, 4, epsabs=1e-9)[0]
    assert gaussian_mean_norm([4.0, 0.5], [1.0, 4.0]) == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize("shape", [0.5, 1.0, 1.5, 391.5, 1536.0])
def test_gamma_draws(shape: float) -> None:
    x = draw_gamma(shape, 20_000, generator=torch.Generator().manual_seed(1)).numpy()
    assert x.shape == (20_000,)
    assert stats.kstest(x, stats.gamma(shape).cdf).pvalue > 0.01
    again = draw_gamma(shape, 20_000, generator=torch.Generator().manual_seed(1)).numpy()
    assert np.array_equal(x, again)


def test_shares_are_exact_where_they_say_so() -> None:
    """One cap and two disjoint ones by their areas; in the plane by arcs."""
    for d in (3, 16, 784):
        axis = np.eye(d)[:1]
        for c in (-0.1, 0.02, 0.9):
            assert clear_share(axis, c) == (pytest.approx(1 - cap_probability(c, d), rel=1e-12), True)
        both = np.concatenate([axis, -axis])
        assert clear_share(both, 0.1) == (pytest.approx(1 - 2 * cap_probability(0.1, d), rel=1e-12), True)
    angle = math.radians(30)
    three = np.array([[1.0, 0.0], [math.cos(angle), math.sin(angle)], [-1.0, 0.0]])
    half = math.acos(0.9)  # arcs of 25.8 degrees to either side: the first two overlap
    assert clear_share(three, 0.9)[0] == pytest.approx(1 - (4 * half + angle) / (2 * math.pi), rel=1e-12)
    assert clear_share(np.empty((0, 5)), 0.1) == (1.0, True)


@pytest.mark.parametrize("d", [16, 40, 784])
def test_the_inversion_equals_the_area_of_caps(d: int) -> None:
    """The formula for many axes, on cases whose share is known otherwise."""
    for c in (0.02, 0.1, 0.75):
        assert orthonormal_share(d, 1, 0, c) == pytest.approx(1 - cap_probability(c, d), abs=1e-11)
        assert orthonormal_share(d, 0, 1, c) == pytest.approx(1 - 2 * cap_probability(c, d), abs=1e-11)
        assert orthonormal_share(d, d, 0, 1.0) == pytest.approx(1, abs=1e-11)
    assert orthonormal_share(d, d, 0, 0.0) == pytest.approx(2.0**-d, abs=1e-13)  # one orthant
    assert orthonormal_share(d, 3, 0, 0.0) == pytest.approx(1 / 8, abs=1e-11)
    assert orthonormal_share(d, 0, d, 1 / math.sqrt(d) - 1e-9) == pytest.approx(0, abs=1e-11)  # some entry is larger


@pytest.mark.parametrize(("single", "both", "c"), [(5, 0, 0.1), (3, 4, 0.3), (12, 2, 0.2)])
def test_the_inversion_against_monte_carlo(single: int, both: int, c: float) -> None:
    d, n = 20, 200_000
    z = np.random.default_rng(0).normal(size=(n, d))
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    clear = (u[:, :single] <= c).all(1) & (np.abs(u[:, single : single + both]) <= c).all(1)
    exact = orthonormal_share(d, single, both, c)
    assert abs(clear.mean() - exact) < 4 * math.sqrt(exact * (1 - exact) / n)
    basis = np.eye(d)
    axes = np.concatenate([basis[: single + both], -basis[single : single + both]])
    assert clear_share(axes, c) == (pytest.approx(exact, abs=1e-12), True)


def test_other_axes_are_estimated() -> None:
    axes = np.random.default_rng(0).normal(size=(6, 5))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    share, exact = clear_share(axes, 0.4)
    assert not exact
    z = np.random.default_rng(1).normal(size=(200_000, 5))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    assert share == pytest.approx(((z @ axes.T).max(1) <= 0.4).mean(), abs=0.01)


def test_mean_norm_against_monte_carlo() -> None:
    """100,000 draws, three standard errors."""
    g = torch.Generator().manual_seed(0)
    for d in (2, 48, 784):
        norms = torch.cat([GaussianSource((d,)).sample(10_000, generator=g).norm(dim=1).double() for _ in range(10)])
        assert abs(float(norms.mean()) - chi_mean(float(d))) <= 3 * float(norms.std()) / len(norms) ** 0.5
    assert 27.1981 / chi_mean(3072.0) == pytest.approx(0.4908, abs=1e-4)
