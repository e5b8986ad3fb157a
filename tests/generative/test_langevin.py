"""Langevin steps, the corrector's size, and the two solvers made of them."""

import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    NCSN,
    AnnealedLangevin,
    Counted,
    GaussianPath,
    GeometricVEPath,
    LinearPath,
    PredictorCorrector,
    SingularTimeError,
    SubVPPath,
    TrigPath,
    VPPath,
    ancestral,
    euler_maruyama,
    langevin,
    solve,
    uniform_times,
)
from anabranch.generative.langevin import calls_per_step, corrector_step_size, langevin_step
from anabranch.generative.solvers import SOLVERS
from anabranch.worlds import GaussianMixture

TARGET = GaussianMixture(weights=[1.0], means=[[1.0, -0.5]], covariances=[[[0.5, 0.2], [0.2, 0.3]]])


def start(path: GaussianPath, n: int, g: torch.Generator) -> Tensor:
    """Exact draws of the state at t = 0."""
    zero = torch.zeros((), dtype=torch.float64)
    noise = torch.randn(n, 2, generator=g, dtype=torch.float64)
    return path.sigma(zero) * noise + path.alpha(zero) * TARGET.sample(n, generator=g)


def test_the_step_written_out(generator: torch.Generator) -> None:
    x, score, z = torch.randn(3, 5, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(langevin_step(x, score, z, 0.02), x + 0.02 * score + 0.04**0.5 * z)
    each = torch.linspace(0.01, 0.05, 5, dtype=torch.float64)
    torch.testing.assert_close(
        langevin_step(x, score, z, each)[3], x[3] + each[3] * score[3] + (2 * each[3]).sqrt() * z[3]
    )


def test_the_step_size_is_that_of_the_paper(generator: torch.Generator) -> None:
    score, z = torch.randn(2, 6, 2, 2, generator=generator, dtype=torch.float64)
    norms = [sum(float(sample.norm()) for sample in part) / 6 for part in (z, score)]
    assert float(corrector_step_size(score, z)) == pytest.approx(2 * (0.16 * norms[0] / norms[1]) ** 2)


@pytest.mark.parametrize("path", [LinearPath(), VPPath(), TrigPath()], ids=lambda p: type(p).__name__)
def test_langevin_forgets_its_start_and_keeps_the_marginal(path: GaussianPath) -> None:
    """For a Gaussian the chain is an AR(1) process: its stationary mean is exact, its covariance off by O(step)."""
    g, n, t = torch.Generator().manual_seed(0), 20_000, 0.6
    x = 3 + torch.randn(n, 2, generator=g, dtype=torch.float64)
    end = langevin(TARGET.velocity(path), x, t, path, steps=400, step_size=0.02, generator=g)
    now = torch.tensor(t, dtype=torch.float64)
    covariance = path.alpha(now) ** 2 * TARGET.covariance + path.sigma(now) ** 2 * torch.eye(2, dtype=torch.float64)
    assert float((end.mean(0) - path.alpha(now) * TARGET.mean).abs().max()) < 0.02
    # Stationary: (2 I - step V^-1)^-1 2 V, per eigendirection.
    values, basis = torch.linalg.eigh(covariance)
    stationary = basis @ torch.diag(2 * values / (2 - 0.02 / values)) @ basis.T
    assert float((end.T.cov() - stationary).abs().max()) < 0.02


@pytest.mark.parametrize(
    "path", [LinearPath(), VPPath(), SubVPPath(), GeometricVEPath(0.01, 5.0)], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("predictor", [euler_maruyama(), ancestral(), SOLVERS["heun"]])
def test_predictor_corrector_samples_the_target(path: GaussianPath, predictor: object) -> None:
    if predictor is SOLVERS["heun"] and isinstance(path, VPPath) and not isinstance(path, SubVPPath):
        predictor = SOLVERS["midpoint"]
    g, n = torch.Generator().manual_seed(1), 20_000
    solver = PredictorCorrector(predictor, corrections=1, ratio=0.05)
    end = solve(TARGET.velocity(path), start(path, n, g), uniform_times(200), solver, path=path, generator=g)
    assert float((end.mean(0) - TARGET.mean).abs().max()) < 0.03
    assert float((end.T.cov() - TARGET.covariance).abs().max()) < 0.03


def test_the_corrector_repairs_a_coarse_predictor() -> None:
    """Few steps of Euler-Maruyama leave the covariance wrong; with corrections it is nearer (what Song et al. claim)."""
    path, errors = VPPath(), []
    for corrections in (0, 8):
        g = torch.Generator().manual_seed(2)
        x = start(path, 20_000, g)
        solver = PredictorCorrector(corrections=corrections, ratio=0.08)
        end = solve(TARGET.velocity(path), x, uniform_times(25), solver, path=path, generator=g)
        errors.append(float((end.T.cov() - TARGET.covariance).abs().max() + (end.mean(0) - TARGET.mean).abs().max()))
    assert errors[1] < 0.7 * errors[0], errors


def test_without_corrections_it_is_the_predictor() -> None:
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    runs = [
        solve(TARGET.velocity(), x, uniform_times(9), solver, generator=torch.Generator().manual_seed(4))
        for solver in (euler_maruyama(), PredictorCorrector(corrections=0))
    ]
    assert torch.equal(*runs)


def test_calls_and_repetition() -> None:
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(3))
    for solver, calls in (
        (PredictorCorrector(corrections=2), 3 * 10),
        (PredictorCorrector(SOLVERS["rk4"], corrections=1), 5 * 10),
    ):
        field, runs = Counted(TARGET.velocity()), []
        for _ in range(2):
            field.reset()
            runs.append(solve(field, x, uniform_times(10), solver, generator=torch.Generator().manual_seed(5)))
            assert field.calls == calls == 10 * calls_per_step(solver)
        assert torch.equal(*runs)
        assert bool(torch.isfinite(runs[0]).all())  # both ends of the linear path, nothing clipped


def test_annealed_langevin_samples_the_target() -> None:
    """The NCSN sampler on an exact score: mixture weights and all, from noise alone."""
    view = NCSN(0.05, 5.0, levels=30)
    law = GaussianMixture(weights=[1, 3], means=[[1.0, 0.0], [-1.0, 0.5]], covariances=0.05)
    g, n = torch.Generator().manual_seed(0), 4000
    x = view.source_scale * torch.randn(n, 2, generator=g, dtype=torch.float64)
    solver = AnnealedLangevin(corrections=30, step_size=2e-3)
    field = Counted(law.velocity(view.path))
    end = solve(field, x, view.times(), solver, path=view.path, generator=g)
    assert field.calls == 30 * 30  # every level, both ends
    right = end[:, 0] > 0
    assert abs(float(right.double().mean()) - 0.25) < 0.04  # what annealing is for: the modes' weights
    for mode, centre in ((right, law.means[0]), (~right, law.means[1])):
        se = (0.0525 / int(mode.sum())) ** 0.5
        assert float((end[mode].mean(0) - centre).abs().max()) < 5 * se
        assert (
            float((end[mode].T.cov() - 0.0525 * torch.eye(2)).abs().max()) < 5 * 0.0525 * (2 / int(mode.sum())) ** 0.5
        )


def test_annealed_sizes_are_those_of_the_paper() -> None:
    """One correction at each of two levels, with the noise known: epsilon (sigma_i / sigma_L)^2 / 2."""
    path, times = GeometricVEPath(0.5, 2.0), uniform_times(1)
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    law = GaussianMixture(weights=[1.0], means=[[0.0, 0.0]], covariances=1.0)
    end = solve(
        law.velocity(path), x, times, AnnealedLangevin(1, 0.01), path=path, generator=torch.Generator().manual_seed(6)
    )
    g = torch.Generator().manual_seed(6)
    for sigma, size in ((2.0, 0.01 * 16 / 2), (0.5, 0.01 / 2)):
        z = torch.randn(1, 2, generator=g, dtype=torch.float64)
        x = x - size * x / (1 + sigma**2) + (2 * size) ** 0.5 * z
    torch.testing.assert_close(end, x, rtol=1e-10, atol=1e-10)


def test_velocities_of_the_trajectory_are_the_fields() -> None:
    path = GeometricVEPath(0.1, 2.0)
    x = 2 * torch.randn(8, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    for solver in (PredictorCorrector(), AnnealedLangevin(2, 1e-3)):
        g = torch.Generator().manual_seed(8)
        run = solve(TARGET.velocity(path), x, uniform_times(4), solver, path=path, generator=g, return_trajectory=True)
        for i in range(4):
            assert torch.equal(run.velocities[i], TARGET.velocity(path)(run.states[i], run.times[i]))


def test_bad_input() -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)
    for make, words in (
        (lambda: PredictorCorrector(corrections=-1), "corrections"),
        (lambda: PredictorCorrector(ratio=0.0), "ratio"),
        (lambda: AnnealedLangevin(corrections=0), "corrections"),
        (lambda: AnnealedLangevin(step_size=0.0), "step_size"),
        (lambda: langevin(TARGET.velocity(), x, 0.5, LinearPath(), steps=0, generator=None), "steps"),
        (
            lambda: langevin(TARGET.velocity(), x, 0.5, LinearPath(), steps=1, step_size=-1.0, generator=None),
            "step_size",
        ),
        (lambda: solve(TARGET.velocity(), x, uniform_times(3), AnnealedLangevin()), "alpha > 0"),
        (lambda: solve(TARGET.velocity(), x, uniform_times(3), PredictorCorrector(), reverse=True), "reverse"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    with pytest.raises(TypeError, match="prepare"):
        PredictorCorrector("heun")
    with pytest.raises(SingularTimeError):
        langevin(TARGET.velocity(), x, 1.0, LinearPath(), steps=1, generator=None)
    with pytest.raises(TypeError, match="calls_per_step"):
        calls_per_step(object())
