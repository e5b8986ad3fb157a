"""The exact fields of Gaussian mixtures and of finite data sets."""

import math

import pytest

torch = pytest.importorskip("torch", reason="the extra generative is not installed")

from anabranch.generative import (  # noqa: E402
    GaussianPath,
    LinearPath,
    SingularTimeError,
    TrigPath,
    VPPath,
    convert,
    flow_map_from_field,
    solve,
    uniform_times,
)
from anabranch.worlds import EmpiricalFlow, GaussianMixture  # noqa: E402

torch.set_num_threads(1)
WEIGHTS, MEANS = [1.0, 2.0, 3.0], torch.tensor([[1.0, 0, 0.5], [-1, 1, 0], [0, -1, 2]], dtype=torch.float64)


def covariances(kind: str) -> object:
    g = torch.Generator().manual_seed(3)
    factors = torch.randn(3, 3, 2, generator=g, dtype=torch.float64) / 2
    return {
        "scalar": 0.2,
        "[K]": [0.1, 0.2, 0.3],
        "[K, D]": [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.2, 0.4]],
        "[K, D, D]": factors @ factors.mT + 0.1 * torch.eye(3, dtype=torch.float64),
        "low rank": (factors, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)),
    }[kind]


def full(kind: str) -> torch.Tensor:
    c, eye = covariances(kind), torch.eye(3, dtype=torch.float64)
    if kind == "low rank":
        return c[0] @ c[0].mT + c[1][:, None, None] * eye
    c = torch.as_tensor(c, dtype=torch.float64)
    return c if c.ndim == 3 else torch.diag_embed(c if c.ndim == 2 else c.expand(3)[:, None].expand(3, 3))


KINDS = ["scalar", "[K]", "[K, D]", "[K, D, D]", "low rank"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def mixture(kind: str) -> GaussianMixture:
    return GaussianMixture(weights=WEIGHTS, means=MEANS, covariances=covariances(kind))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(32, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("path", [LinearPath(), VPPath(), TrigPath()])
def test_density_is_that_of_torch_distributions(
    kind: str, mixture: GaussianMixture, x: torch.Tensor, path: GaussianPath, t: float
) -> None:
    now, c = torch.tensor(t, dtype=torch.float64), 1.3
    alpha, sigma = path.alpha(now), path.sigma(now)
    parts = torch.distributions.MultivariateNormal(
        alpha * MEANS, alpha**2 * full(kind) + (sigma * c) ** 2 * torch.eye(3, dtype=torch.float64)
    )
    law = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.tensor(WEIGHTS).double()), parts)
    ours = mixture.log_density(x, t, path, source_scale=c)
    torch.testing.assert_close(ours, law.log_prob(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mixture.mean, torch.tensor(WEIGHTS).double() @ MEANS / 6)


@pytest.mark.parametrize("path", [LinearPath(), VPPath(), TrigPath()])
def test_score_is_the_gradient_of_the_density(mixture: GaussianMixture, x: torch.Tensor, path: GaussianPath) -> None:
    t = torch.linspace(0, 1, 32, dtype=torch.float64)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_density(point, t, path).sum(), point)
    assert float((mixture.score(path)(x, t) - gradient).abs().max()) <= 1e-10


@pytest.mark.parametrize("path", [LinearPath(), VPPath(), TrigPath()])
def test_velocity_and_score_agree(mixture: GaussianMixture, x: torch.Tensor, path: GaussianPath) -> None:
    t = torch.linspace(0.02, 0.98, 32, dtype=torch.float64)
    converted = convert(mixture.velocity(path)(x, t), x, t, path, "velocity", "score")
    torch.testing.assert_close(converted, mixture.score(path)(x, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", [LinearPath(), VPPath(), TrigPath()])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_continuity_equation(mixture: GaussianMixture, x: torch.Tensor, path: GaussianPath, scale: float) -> None:
    """d/dt log p + div v + v . score = 0, all three by automatic differentiation of the density and of the field."""
    t = torch.linspace(0.05, 0.95, 32, dtype=torch.float64)
    time, point = t.clone().requires_grad_(), x.clone().requires_grad_()
    log_p = mixture.log_density(point, time, path, source_scale=scale).sum()
    d_t, score = torch.autograd.grad(log_p, (time, point))
    field = mixture.velocity(path, source_scale=scale)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y, s: field(y[None], s[None])[0]))(x, t)
    residual = d_t + jacobian.diagonal(dim1=1, dim2=2).sum(1) + (field(x, t) * score).sum(1)
    assert float(residual.abs().max()) <= 1e-8


def test_samples_have_the_moments(mixture: GaussianMixture) -> None:
    g, n = torch.Generator().manual_seed(0), 40_000
    for t in (0.4, 1.0):
        draws = mixture.sample(n, generator=g, t=t)
        mean = t * mixture.mean
        covariance = t * t * mixture.covariance + (1 - t) ** 2 * torch.eye(3, dtype=torch.float64)
        assert float(((draws.mean(0) - mean) / (covariance.diag() / n).sqrt()).abs().max()) < 4
        centred = draws - mean
        products = centred[:, :, None] * centred[:, None]
        error = (products.mean(0) - covariance) / (products.var(0) / n).sqrt()
        assert float(error.abs().max()) < 4


def test_all_kinds_of_covariance_agree() -> None:
    """One law written in five ways."""
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eye, zeros = torch.eye(2, dtype=torch.float64), torch.zeros(2, 2, 1, dtype=torch.float64)
    ways = [
        0.3,
        [0.3, 0.3],
        [[0.3, 0.3]] * 2,
        torch.stack([0.3 * eye] * 2),
        (zeros, torch.tensor([0.3, 0.3], dtype=torch.float64)),
    ]
    fields = [
        GaussianMixture(weights=[1, 1], means=[[0.0, 1], [1, 0]], covariances=way).velocity()(x, 0.6) for way in ways
    ]
    for other in fields[1:]:
        torch.testing.assert_close(other, fields[0], rtol=1e-12, atol=1e-12)


def test_labels_give_the_field_of_the_class(x: torch.Tensor) -> None:
    both = GaussianMixture(weights=WEIGHTS, means=MEANS, covariances=0.2, classes=[0, 1, 1])
    alone = GaussianMixture(weights=WEIGHTS[1:], means=MEANS[1:], covariances=0.2)
    ones = torch.ones(32, dtype=torch.int64)
    torch.testing.assert_close(both.velocity()(x, 0.5, label=ones), alone.velocity()(x, 0.5))
    torch.testing.assert_close(both.log_density(x, 0.5, label=ones), alone.log_density(x, 0.5))
    torch.testing.assert_close(both.velocity()(x, 0.5, label=-ones), both.velocity()(x, 0.5))
    total = sum(both.class_log_prob(x, 0.5, label * ones).exp() for label in (0, 1))
    torch.testing.assert_close(total, torch.ones_like(total))
    with pytest.raises(ValueError, match="label 2"):
        both.velocity()(x, 0.5, label=2 * ones)


@pytest.mark.parametrize("path", [LinearPath(), TrigPath(), VPPath()])
def test_flow_map_of_one_gaussian_is_closed(path: GaussianPath, x: torch.Tensor) -> None:
    mixture = GaussianMixture(weights=[1.0], means=MEANS[:1], covariances=full("[K, D, D]")[:1])
    s = torch.linspace(0, 0.9, 32, dtype=torch.float64)
    t = s + torch.linspace(0.1, 0, 32, dtype=torch.float64)
    t[0] = 1.0
    solved = flow_map_from_field(mixture.velocity(path), "rk4", 64)(x, s, t)
    exact = mixture.flow_map(path)(x, s, t)
    # rk4 over all of VPPath with 64 steps is good to 1e-4 only: its velocity is stiff.
    tolerance = torch.full((32, 1), 1e-8, dtype=torch.float64)
    if isinstance(path, VPPath):
        tolerance[0] = 1e-3
    assert bool(((solved - exact).abs() <= tolerance).all())
    assert torch.equal(exact[-1], mixture.velocity(path)(x, s)[-1])  # t = s


def test_flow_carries_the_source_to_the_mixture() -> None:
    """The density at the end of the exact flow is the source's, changed by the flow: probability mass is kept."""
    mixture = GaussianMixture(weights=WEIGHTS, means=MEANS, covariances=covariances("low rank"))
    x0 = torch.randn(16, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    field = mixture.velocity()

    def end(y: torch.Tensor) -> torch.Tensor:
        return solve(field, y[None], uniform_times(100), "rk4", differentiable=True)[0]

    for y in x0[:2]:
        jacobian = torch.autograd.functional.jacobian(end, y)
        log_p0 = -0.5 * (y @ y) - 1.5 * math.log(2 * math.pi)
        expected = log_p0 - torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(mixture.log_density(end(y)[None])[0], expected, rtol=0, atol=1e-5)


def test_images_and_dtypes(mixture: GaussianMixture) -> None:
    x = torch.randn(4, 3, 1, 1)
    assert mixture.velocity()(x, 0.5).shape == x.shape
    assert mixture.velocity()(x, 0.5).dtype == torch.float32
    with pytest.raises(ValueError, match="3 numbers per sample"):
        mixture.velocity()(torch.randn(4, 2), 0.5)


def test_empirical_flow_is_the_limit_of_narrow_mixtures() -> None:
    g = torch.Generator().manual_seed(0)
    data, x = torch.randn(50, 2, generator=g, dtype=torch.float64), torch.randn(16, 2, generator=g, dtype=torch.float64)
    narrow = GaussianMixture(weights=torch.ones(50), means=data, covariances=0.0)
    flow = EmpiricalFlow(data=data, chunk=7)
    for path in (LinearPath(), VPPath()):
        for t in (0.0, 0.4, 0.9):
            for ours, other in ((flow.velocity(path), narrow.velocity(path)), (flow.score(path), narrow.score(path))):
                torch.testing.assert_close(ours(x, t), other(x, t), rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(flow.log_density(x, t, path), narrow.log_density(x, t, path))
    with pytest.raises(SingularTimeError):
        flow.velocity()(x, 1.0)
    with pytest.raises(SingularTimeError):
        narrow.velocity()(x, 1.0)


def test_empirical_flow_memorises() -> None:
    g = torch.Generator().manual_seed(0)
    data = torch.randn(20, 3, generator=g, dtype=torch.float64)
    ends = solve(
        EmpiricalFlow(data=data).velocity(), torch.randn(64, 3, generator=g, dtype=torch.float64), uniform_times(400)
    )
    assert float(torch.cdist(ends, data).amin(1).max()) < 1e-6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": [1.0, -1.0, 1.0]}, "weights"),
        ({"weights": [1.0, 1.0]}, "weights"),
        ({"means": [1.0, 2.0, 3.0]}, "means"),
        ({"covariances": [0.1, 0.2]}, "covariances"),
        ({"covariances": [-0.1, 0.2, 0.1]}, "covariances"),
        ({"covariances": torch.tensor([[[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]]] * 3)}, "symmetric"),
        ({"covariances": (torch.zeros(3, 3, 4), torch.ones(3))}, "pair"),
        ({"classes": [0, 1]}, "classes"),
    ],
)
def test_bad_input(change: dict[str, object], words: str) -> None:
    good = {"weights": WEIGHTS, "means": MEANS, "covariances": 0.1}
    with pytest.raises(ValueError, match=words):
        GaussianMixture(**{**good, **change})
