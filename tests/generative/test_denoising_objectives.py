"""Regression in five kinds: one minimiser, one constant between conditional and marginal losses, the known weightings.

Expectations are exact: products of Gauss-Hermite rules integrate the polynomials of these losses without error.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    DenoisingScoreMatching,
    FlowMatching,
    GaussianPath,
    LinearPath,
    Parametrized,
    ScheduledPath,
    ScoreMatching,
    SubVPPath,
    TrigPath,
    VPPath,
    convert,
    elbo_weight,
    loss_weight,
)
from anabranch.generative.denoising_objectives import prediction_target
from anabranch.generative.loss_weights import error_ratio
from anabranch.generative.parametrization import PREDICTIONS
from anabranch.worlds import GaussianMixture

MEAN, STD = 0.7, 0.6
TARGET = GaussianMixture(weights=[1.0], means=[[MEAN]], covariances=STD**2)
PATHS = [LinearPath(), TrigPath(), VPPath(), SubVPPath()]
paths = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
kinds = pytest.mark.parametrize("kind", PREDICTIONS)


def rule(nodes: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """x0 and x1 ``[B, 1]`` with weights ``[B]``: exact means of polynomials up to degree 2 nodes - 1 in each."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    z, w = torch.from_numpy(points), torch.from_numpy(weights / math.sqrt(2 * math.pi))
    x0, x1 = torch.meshgrid(z, MEAN + STD * z, indexing="ij")
    return x0.reshape(-1, 1), x1.reshape(-1, 1), (w[:, None] * w).reshape(-1)


X0, X1, WEIGHTS = rule()


def times(t: float) -> Tensor:
    return torch.full((len(X0),), t, dtype=torch.float64)


def marginal(kind: str, path: GaussianPath, x: Tensor, t: float) -> Tensor:
    return convert(TARGET.velocity(path)(x, t), x, t, path, "velocity", kind)  # type: ignore[arg-type]


@paths
@kinds
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_conditional_and_marginal_losses_differ_by_one_constant(kind: str, path: GaussianPath, t: float) -> None:
    """P3, without sampling: the gap is the same for every network of the family a x + b."""
    x, gaps = path.sample(X0, X1, times(t)).x_t, []
    g = torch.Generator().manual_seed(0)
    for a, b in torch.randn(8, 2, generator=g, dtype=torch.float64).tolist():
        loss = DenoisingScoreMatching(kind, path).at(lambda x, t, a=a, b=b: a * x + b, X0, X1, times(t))  # type: ignore[arg-type]
        to_marginal = (a * x + b - marginal(kind, path, x, t)).square().mean(1)
        gaps.append(float(WEIGHTS @ (loss.per_sample - to_marginal)))
    assert max(gaps) - min(gaps) <= 1e-10 * max(1.0, abs(gaps[0]))
    # The constant is the variance of the target given the state: of noise alpha^2 c^2 / V, of the others by their ratio.
    now = times(t)[:1]
    signal = (path.alpha(now) * STD) ** 2
    variance = signal / (signal + path.sigma(now) ** 2) * error_ratio(path, "noise", kind, now) ** 2  # type: ignore[arg-type]
    assert gaps[0] == pytest.approx(float(variance), rel=1e-8)


@paths
@kinds
def test_the_best_linear_network_is_the_marginal_prediction(kind: str, path: GaussianPath) -> None:
    """For a Gaussian the marginal prediction is affine, so the least-squares solution of the loss is it."""
    t = 0.4
    x = path.sample(X0, X1, times(t)).x_t
    target = prediction_target(path, kind, X0, X1, times(t))  # type: ignore[arg-type]
    design = torch.cat([x, torch.ones_like(x)], 1) * WEIGHTS.sqrt()[:, None]
    a, b = torch.linalg.lstsq(design, target * WEIGHTS.sqrt()[:, None])[0][:, 0].tolist()
    torch.testing.assert_close(a * x + b, marginal(kind, path, x, t), rtol=1e-9, atol=1e-9)
    best = WEIGHTS @ DenoisingScoreMatching(kind, path).at(lambda x, t: a * x + b, X0, X1, times(t)).per_sample  # type: ignore[arg-type]
    for da, db in ((1e-3, 0.0), (0.0, 1e-3), (-1e-3, 1e-3)):
        other = DenoisingScoreMatching(kind, path).at(
            lambda x, t, da=da, db=db: (a + da) * x + b + db, X0, X1, times(t)
        )  # type: ignore[arg-type]
        assert float(WEIGHTS @ other.per_sample) > float(best)


@paths
@kinds
def test_measured_in_velocity_every_kind_is_flow_matching(
    kind: str, path: GaussianPath, generator: torch.Generator
) -> None:
    x0, x1 = torch.randn(2, 32, 3, generator=generator, dtype=torch.float64)
    t = 0.05 + 0.9 * torch.rand(32, generator=generator, dtype=torch.float64)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x) + t[:, None]

    ours = DenoisingScoreMatching(kind, path, measured_in="velocity").at(net, x0, x1, t)  # type: ignore[arg-type]
    flow = FlowMatching(path).at(Parametrized(net, kind, path), x0, x1, t)  # type: ignore[arg-type]
    torch.testing.assert_close(ours.per_sample, flow.per_sample, rtol=1e-8, atol=0)
    plain = DenoisingScoreMatching(kind, path).at(net, x0, x1, t)  # type: ignore[arg-type]
    torch.testing.assert_close(plain.per_sample, loss_weight(path, kind, t) * flow.per_sample, rtol=1e-8, atol=0)  # type: ignore[arg-type]


def test_ncsn_weighting(generator: torch.Generator) -> None:
    """sigma^2 |s + (x_t - x1) / sigma^2|^2 on a path with alpha = 1 (Song and Ermon, equations 5 and 6, twice)."""
    from anabranch.generative import NCSN

    view = NCSN()
    x0, x1 = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    t = torch.randint(10, (50,), generator=generator).double() / 9

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.cos(x)

    sigma = view.path.sigma(t)[:, None]
    x = x1 + sigma * x0
    expected = (sigma * (net(x, t) + (x - x1) / sigma**2)).square().mean(1)
    torch.testing.assert_close(view.objective.at(net, x0, x1, t).per_sample, expected, rtol=1e-10, atol=0)


def test_weight_on_top(generator: torch.Generator) -> None:
    x0, x1 = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    path = TrigPath()
    weighted = DenoisingScoreMatching("noise", path, weight=lambda t: elbo_weight(path, "noise", t))
    plain = DenoisingScoreMatching("noise", path)
    ours, base = (objective.at(lambda x, t: x, x0, x1, t).per_sample for objective in (weighted, plain))
    torch.testing.assert_close(ours, elbo_weight(path, "noise", t) * base)


def test_clamp_bounds_an_infinite_ratio() -> None:
    x0, x1, t = torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1)
    open_, bounded = (DenoisingScoreMatching("noise", measured_in="velocity", clamp=clamp) for clamp in (None, 1e-3))
    assert not bool(torch.isfinite(open_.at(lambda x, t: 0 * x, x0, x1, t).value))
    assert float(bounded.at(lambda x, t: 0 * x, x0, x1, t).value) == pytest.approx(1e6, rel=1e-3)


@paths
def test_score_matching_is_denoising_score_matching(path: GaussianPath) -> None:
    """Hyvarinen's loss, exact and sliced, is half the denoising one up to a constant of the data, for any network."""
    x0, x1, weights = rule(40)
    gaps = []
    for scale in (0.0, 0.3, 1.1):

        def net(x: Tensor, t: Tensor, scale: float = scale) -> Tensor:
            return scale * torch.sin(x) - x

        t = torch.full((len(x0),), 0.6, dtype=torch.float64)
        explicit = DenoisingScoreMatching("score", path, measured_in="noise").at(net, x0, x1, t)
        objective = ScoreMatching(path)
        implicit = objective.at(net, x0, x1, t, objective.directions(x0, None))
        gaps.append(float(weights @ (explicit.per_sample / 2 - implicit.per_sample).detach()))
    assert max(gaps) - min(gaps) < 1e-9
    assert gaps[0] == pytest.approx(0.5)  # E |x0|^2 / 2 per entry


def test_sliced_score_matching_is_unbiased(generator: torch.Generator) -> None:
    x0, x1 = torch.randn(2, 1, 4, generator=generator, dtype=torch.float64)
    matrix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    n, path = 20_000, LinearPath()
    many = [value.expand(n, 4).contiguous() for value in (x0, x1)]
    t = torch.full((n,), 0.5, dtype=torch.float64)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x @ matrix.T)

    sliced, exact = ScoreMatching(path, probes=1), ScoreMatching(path)
    draws = sliced.at(net, *many, t, sliced.directions(many[0], generator)).per_sample.detach()
    truth = exact.at(net, x0, x1, t[:1], exact.directions(x0, None)).per_sample.detach()
    assert float(draws.std()) > 0
    assert abs(float(draws.mean() - truth)) < 4 * float(draws.std()) / n**0.5


def test_score_matching_trains(generator: torch.Generator) -> None:
    """On Gaussian data the two parameters of an affine score come to the true ones, without a target."""
    path = LinearPath()
    x1 = TARGET.sample(20_000, generator=generator)
    x0 = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    t = torch.full((20_000,), 0.7, dtype=torch.float64)
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    objective = ScoreMatching(path)
    optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective.at(lambda x, t: weights[0] * x + weights[1], x0, x1, t, objective.directions(x1, None)).value
        loss.backward()
        return loss

    optimizer.step(closure)
    variance = 0.7**2 * STD**2 + 0.3**2
    x = 0.7 * x1 + 0.3 * x0
    fitted, sample = weights.detach(), (x.var(correction=0), x.mean())
    torch.testing.assert_close(fitted[0], -1 / sample[0], rtol=1e-4, atol=0)  # the sample's own law, exactly
    torch.testing.assert_close(fitted[1], sample[1] / sample[0], rtol=1e-4, atol=0)
    assert abs(float(fitted[0]) + 1 / variance) < 0.1


def test_gradients_reach_the_network_and_none_are_kept_without(generator: torch.Generator) -> None:
    layer = torch.nn.Linear(3, 3).double()
    x0, x1 = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    for objective in (DenoisingScoreMatching(), ScoreMatching(), ScoreMatching(probes=2)):
        loss = objective(lambda x, t: layer(x), x0, x1, generator=generator)
        assert all(
            bool(p.isfinite().all())
            for p in torch.autograd.grad(loss.value, list(layer.parameters()), allow_unused=True)
            if p is not None
        )
        with torch.no_grad():
            assert not objective(lambda x, t: layer(x), x0, x1, generator=generator).value.requires_grad


def test_condition_is_given_and_calls_repeat(generator: torch.Generator) -> None:
    x0, x1 = torch.randn(2, 8, 3, generator=generator)
    seen = []

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append((label, t.dtype))
        return x

    label = torch.arange(8)
    for objective in (
        DenoisingScoreMatching(path=ScheduledPath(torch.tensor([0.9, 0.5, 0.1]))),
        ScoreMatching(probes=1),
    ):
        values = [
            objective(net, x0, x1, generator=torch.Generator().manual_seed(3), label=label).value for _ in range(2)
        ]
        assert torch.equal(*values)
    assert all(one is label and dtype == torch.float32 for one, dtype in seen)


def test_bad_input() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(Exception, match=r"predicts|epsilon"):
        DenoisingScoreMatching("epsilon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="probes"):
        ScoreMatching(probes=0)
    with pytest.raises(ValueError, match="x0 is"):
        DenoisingScoreMatching.at.__wrapped__(DenoisingScoreMatching(), lambda x, t: x, x, x.double(), torch.rand(2))
