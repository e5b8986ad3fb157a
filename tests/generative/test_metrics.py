"""Distances against closed forms, brute force and POT."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance

from anabranch.generative import uniform_times
from anabranch.generative.metrics import (
    frechet_distance,
    frechet_infinity,
    mmd,
    precision_recall,
    sliced_wasserstein,
    straightness,
    wasserstein2,
)


def draw(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(x: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Samples whose mean and unbiased covariance are exactly those."""
    centered = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), centered.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_equals_the_formula_on_exact_moments() -> None:
    d = 5
    factors = [draw(d, d, seed) for seed in (1, 2)]
    covariances = [f @ f.T + 0.1 * torch.eye(d, dtype=torch.float64) for f in factors]
    means = [draw(1, d, seed)[0] for seed in (3, 4)]
    samples = [with_moments(draw(200, d, 5 + i), means[i], covariances[i]) for i in range(2)]
    root = sqrtm((covariances[0] @ covariances[1]).numpy()).real
    expected = float(
        ((means[0] - means[1]) ** 2).sum() + covariances[0].trace() + covariances[1].trace()
    ) - 2 * np.trace(root)
    assert frechet_distance(*samples) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(*samples) == pytest.approx(frechet_distance(*reversed(samples)), rel=1e-9)


def test_frechet_of_a_set_to_itself_and_to_its_shift() -> None:
    x = draw(50, 4)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(x, x + 2) == pytest.approx(16, rel=1e-10)
    few = draw(3, 8)  # covariances of rank 2
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-8)


def test_frechet_infinity_removes_most_of_the_bias() -> None:
    reference = with_moments(draw(500, 8, 9), torch.zeros(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64))
    plain = np.mean([frechet_distance(draw(100, 8, seed), reference) for seed in range(20)])
    extrapolated = np.mean(
        [frechet_infinity(draw(100, 8, s), reference, generator=torch.Generator().manual_seed(s)) for s in range(20)]
    )
    assert abs(extrapolated) < plain / 3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_sliced_wasserstein_in_one_dimension_is_exact(n: int, m: int, seed: int) -> None:
    x, y = draw(n, 1, seed), draw(m, 1, seed + 1)
    got = sliced_wasserstein(x, y, generator=torch.Generator().manual_seed(0), projections=3, p=1.0)
    assert got == pytest.approx(wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy()), rel=1e-9, abs=1e-12)


def test_sliced_wasserstein_of_a_shift() -> None:
    x, shift = draw(64, 6), torch.tensor([3.0, 0, 0, -4, 0, 0], dtype=torch.float64)
    directions = torch.randn(6, 512, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    expected = math.sqrt(float(((shift @ directions) ** 2).mean()))
    got = sliced_wasserstein(x, x + shift, generator=torch.Generator().manual_seed(7))
    assert got == pytest.approx(expected, rel=1e-10)
    assert got == pytest.approx(5 / math.sqrt(6), rel=0.1)
    twice = sliced_wasserstein(x, (x + shift).repeat(2, 1), generator=torch.Generator().manual_seed(7))
    assert twice == pytest.approx(got, rel=1e-10)  # sizes differ, distributions do not


@pytest.mark.parametrize("kernel", ["rbf", "poly3"])
def test_mmd_equals_its_double_sums(kernel: str) -> None:
    x, y = draw(7, 3, 1).numpy(), draw(5, 3, 2).numpy() + 0.5
    widths = (0.7, 1.9)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        if kernel == "poly3":
            return float((a @ b / 3 + 1) ** 3)
        return sum(math.exp(-((a - b) ** 2).sum() / (2 * h * h)) for h in widths)

    within = [
        sum(k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) / (len(s) * (len(s) - 1))
        for s in (x, y)
    ]
    across = sum(k(a, b) for a in x for b in y) / (len(x) * len(y))
    got = mmd(torch.tensor(x), torch.tensor(y), kernel=kernel, bandwidths=widths)
    assert got == pytest.approx(sum(within) - 2 * across, rel=1e-10)


def test_mmd_is_unbiased_and_sees_a_shift() -> None:
    same = np.mean([mmd(draw(40, 2, 2 * s), draw(40, 2, 2 * s + 1)) for s in range(50)])
    assert abs(same) < 0.01
    assert mmd(draw(40, 2), draw(40, 2, 1) + 1) > 0.2


def test_wasserstein2_equals_the_linear_program() -> None:
    ot = pytest.importorskip("ot", reason="the extra generative is not installed")
    x, y = draw(30, 4, 1), draw(30, 4, 2) * 2
    cost = ((x[:, None] - y[None]) ** 2).sum(-1).numpy()
    weights = np.full(30, 1 / 30)
    assert wasserstein2(x, y) ** 2 == pytest.approx(ot.emd2(weights, weights, cost), rel=1e-9)
    assert wasserstein2(x, x[torch.randperm(30, generator=torch.Generator().manual_seed(0))]) == pytest.approx(
        0, abs=1e-12
    )


def test_precision_recall_by_brute_force() -> None:
    x, y, k = draw(23, 2, 1), draw(31, 2, 2) * 1.5 + 0.3, 3

    def radius(s: np.ndarray, i: int) -> float:
        return sorted(np.linalg.norm(s[j] - s[i]) for j in range(len(s)) if j != i)[k - 1]

    a, b = x.numpy(), y.numpy()
    ra, rb = [radius(a, i) for i in range(len(a))], [radius(b, j) for j in range(len(b))]
    inside = np.array([[np.linalg.norm(p - q) <= rb[j] for j, q in enumerate(b)] for p in a])
    back = np.array([[np.linalg.norm(p - q) <= ra[i] for q in b] for i, p in enumerate(a)])
    expected = (inside.any(1).mean(), back.any(0).mean(), inside.sum() / k / len(a), inside.any(0).mean())
    assert precision_recall(x, y, k=k) == pytest.approx(expected, abs=1e-12)


def test_precision_recall_of_equal_and_of_distant_sets() -> None:
    x = draw(3000, 3)  # more than one block of rows
    same = precision_recall(x, x)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    far = precision_recall(x, x + 1000)
    assert far == (0, 0, 0, 0)


def test_straightness_in_closed_form() -> None:
    x0, times = draw(6, 2), uniform_times(400)
    direction = torch.tensor([3.0, -1.0], dtype=torch.float64)
    straight = straightness(lambda x, t: direction.expand_as(x), x0, times)
    assert straight.shape == (6,)
    assert straight.abs().max() < 1e-20
    speeding = straightness(lambda x, t: 2 * t * direction.expand_as(x), x0, times)
    assert torch.allclose(speeding, torch.full((6,), 10 / 3, dtype=torch.float64), rtol=1e-4)  # |c|^2 times 1/3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(draw(1, 2), draw(5, 2)), "at least 2"),
        (lambda: frechet_distance(draw(5, 3), draw(5, 2)), "3 and 2 dimensions"),
        (lambda: frechet_infinity(draw(5, 2), draw(5, 2), generator=torch.Generator()), "at least 10"),
        (lambda: sliced_wasserstein(draw(2, 2), draw(2, 2), generator=torch.Generator(), p=0.5), "p must be"),
        (lambda: mmd(draw(4, 2), draw(4, 2), kernel="laplace"), "expected 'rbf' or 'poly3'"),
        (lambda: mmd(draw(4, 2), draw(4, 2), bandwidths=[0.0]), "bandwidths must be > 0"),
        (lambda: wasserstein2(draw(4, 2), draw(5, 2)), "equally many"),
        (lambda: precision_recall(draw(5, 2), draw(50, 2)), "at least 6"),
        (lambda: straightness(lambda x, t: x, draw(2, 2), uniform_times(4, end=0.5)), "expected 0 to 1"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
