"""Conversions between the five predictions."""

import itertools

import pytest
import torch
from jaxtyping import TypeCheckError

from anabranch.generative import (
    GaussianPath,
    LinearPath,
    Parametrized,
    SingularTimeError,
    TrigPath,
    VPPath,
    convert,
    loss_weight,
)
from anabranch.generative.parametrization import PREDICTIONS
from anabranch.worlds import GaussianMixture

from .test_paths import PATHS, path_cases

TIMES = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


def predictions(path: GaussianPath, x0: torch.Tensor, x1: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
    """All five for a known pair, from their definitions."""
    point = path.sample(x0, x1, t)
    a, s = path.alpha(t)[:, None], path.sigma(t)[:, None]
    return {
        "velocity": point.velocity,
        "denoised": x1,
        "noise": x0,
        "score": -x0 / s,
        "diffusion_v": a * x0 - s * x1,
    }


@path_cases
def test_every_conversion_against_the_definitions(path: GaussianPath, generator: torch.Generator) -> None:
    x0, x1 = torch.randn(2, 19, 4, generator=generator, dtype=torch.float64)
    known, x = predictions(path, x0, x1, TIMES), path.sample(x0, x1, TIMES).x_t
    # VEPath's weights reach 80: errors are relative to the size of what is converted.
    for frm, to in itertools.product(PREDICTIONS, repeat=2):
        error = (convert(known[frm], x, TIMES, path, frm, to) - known[to]).abs().max()
        size = max(1.0, float(known[to].abs().max()), float(x.abs().max()))
        assert float(error) <= 1e-10 * size, (frm, to)


@path_cases
def test_round_trips(path: GaussianPath, generator: torch.Generator) -> None:
    value, x = torch.randn(2, 19, 4, generator=generator, dtype=torch.float64)
    for frm, to in itertools.permutations(PREDICTIONS, 2):
        there = convert(value, x, TIMES, path, frm, to)
        back = convert(there, x, TIMES, path, to, frm)
        size = max(1.0, float(there.abs().max()))
        assert float((back - value).abs().max()) <= 1e-10 * size, (frm, to)


@path_cases
def test_loss_weights(path: GaussianPath, generator: torch.Generator) -> None:
    value, other, x = torch.randn(3, 19, 4, generator=generator, dtype=torch.float64)
    for kind in PREDICTIONS:
        error = (value - other).square().mean(1)
        a, b = (convert(p, x, TIMES, path, kind, "velocity") for p in (value, other))
        torch.testing.assert_close(error, loss_weight(path, kind, TIMES) * (a - b).square().mean(1), rtol=1e-8, atol=0)


SINGULAR = [
    (LinearPath(), 0.0, "noise", "velocity"),
    (LinearPath(), 0.0, "noise", "denoised"),
    (LinearPath(), 0.0, "score", "velocity"),
    (LinearPath(), 1.0, "denoised", "noise"),
    (LinearPath(), 1.0, "denoised", "velocity"),
    (LinearPath(), 1.0, "velocity", "score"),
    (TrigPath(), 1.0, "noise", "score"),
    (VPPath(), 1.0, "velocity", "noise"),
    (VPPath(), 1.0, "noise", "velocity"),
]
REGULAR = [
    (LinearPath(), 0.0, "velocity", "denoised"),
    (LinearPath(), 0.0, "velocity", "score"),
    (LinearPath(), 0.0, "denoised", "velocity"),
    (LinearPath(), 0.0, "noise", "score"),
    (LinearPath(), 1.0, "velocity", "noise"),
    (LinearPath(), 1.0, "noise", "velocity"),
    (TrigPath(), 0.0, "diffusion_v", "velocity"),
    (TrigPath(), 1.0, "diffusion_v", "velocity"),
    (LinearPath(), 1.0, "score", "velocity"),
]


@pytest.mark.parametrize(("path", "t", "frm", "to"), SINGULAR)
def test_singular_times_raise_and_name_themselves(path: GaussianPath, t: float, frm: str, to: str) -> None:
    x = torch.ones(3, 2, dtype=torch.float64)
    with pytest.raises(SingularTimeError, match=f"{frm} cannot be converted to {to} at t = {t}"):
        convert(x, x, t, path, frm, to)
    times = torch.tensor([0.5, t, 0.5], dtype=torch.float64)
    with pytest.raises(SingularTimeError, match=f"t = {t}"):
        convert(x, x, times, path, frm, to)
    assert bool(torch.isfinite(convert(x, x, times, path, frm, to, clamp=1e-5)).all())


@pytest.mark.parametrize(("path", "t", "frm", "to"), REGULAR)
def test_regular_ends_are_exact(path: GaussianPath, t: float, frm: str, to: str, generator: torch.Generator) -> None:
    x0, x1 = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    times = torch.full((5,), t, dtype=torch.float64)
    known, x = predictions(path, x0, x1, times), path.sample(x0, x1, times).x_t
    if frm == "score" and t == 1:
        known["score"] = torch.zeros_like(x0)  # any finite score is multiplied by sigma = 0
        known["velocity"] = path.d_alpha(times)[:, None] * x1
    torch.testing.assert_close(convert(known[frm], x, t, path, frm, to), known[to], rtol=1e-12, atol=1e-12)


def test_every_view_of_a_mixture_is_its_velocity(generator: torch.Generator) -> None:
    mixture = GaussianMixture(weights=[1, 3], means=[[1.0, 0.0], [-1.0, 2.0]], covariances=[0.1, 0.3])
    x = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    for path in (PATHS["linear"], PATHS["vp"], PATHS["trig"], PATHS["table"]):
        velocity, t = mixture.velocity(path), torch.linspace(0.1, 0.9, 64, dtype=torch.float64)
        exact = velocity(x, t)
        torch.testing.assert_close(convert(exact, x, t, path, "velocity", "score"), mixture.score(path)(x, t))
        for kind in PREDICTIONS:

            def view(x: torch.Tensor, t: torch.Tensor, path: GaussianPath = path, kind: str = kind) -> torch.Tensor:
                return convert(mixture.velocity(path)(x, t), x, t, path, "velocity", kind)

            torch.testing.assert_close(Parametrized(view, kind, path)(x, t), exact, rtol=1e-9, atol=1e-9)


def test_bad_input() -> None:
    x = torch.ones(1, 1)
    with pytest.raises((ValueError, TypeCheckError), match="epsilon"):
        convert(x, x, 0.5, LinearPath(), "epsilon", "velocity")
    with pytest.raises(ValueError, match="kind must be one of 'velocity'"):
        loss_weight.__wrapped__(LinearPath(), "eps", x[0])
    with pytest.raises((ValueError, TypeCheckError), match="t"):
        convert(x, x, torch.zeros(2), LinearPath(), "noise", "velocity")
