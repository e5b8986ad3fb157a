"""Every source: its density, its draws, its mean norm; and all of them with every coupling and solver."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import fft, integrate, stats
from torch import Tensor, nn

from anabranch import generative as ge
from anabranch.generative import uniform_times
from anabranch.generative._spheres import bessel_ratio
from anabranch.generative.dct_source import block_dct, inverse_block_dct

F64 = torch.float64


def draw(source: Any, n: int, seed: int = 0) -> Tensor:
    return source.sample(n, generator=torch.Generator().manual_seed(seed))


PLANE = {
    "chi": ge.ChiSphereSource((2,), 5.0, dtype=F64),
    "aligned": ge.NormAlignedSource(ge.GaussianSource((2,), dtype=F64), 0.6),
    "vmf": ge.VonMisesFisherSource(
        directions=torch.tensor([[1.0, 0.5], [-1.0, 2.0]], dtype=F64),
        kappa=torch.tensor([3.0, 8.0]),
        weights=torch.tensor([1.0, 3.0]),
    ),
    "cap": ge.CapSource(directions=torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=F64), min_cosine=0.7, degrees=4.0),
    "mixture": ge.GaussianMixtureSource(
        weights=torch.tensor([1.0, 2.0], dtype=F64),
        means=torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=F64),
        covariances=torch.tensor([[[1.0, 0.3], [0.3, 0.5]], [[0.4, 0.0], [0.0, 0.9]]], dtype=F64),
    ),
    "pruned": ge.PrunedSource(
        ge.GaussianSource((2,), dtype=F64),
        ge.mean_direction_axes(torch.tensor([[1.0, 0.2], [1.0, -0.1]])),
        0.6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANE)
def test_density_integrates_to_one_and_gives_the_mean_norm(name: str) -> None:
    """Polar quadrature of the density, whose first moment is ``mean_norm``; the draws' norms agree with both."""
    source = PLANE[name]
    angle = (torch.arange(4000, dtype=F64) + 0.5) * 2 * math.pi / 4000
    nodes, weights = np.polynomial.legendre.leggauss(120)
    r = torch.from_numpy(5.5 * (nodes + 1))
    x = r[:, None, None] * torch.stack([angle.cos(), angle.sin()], 1)
    p = (
        source.log_prob(x.reshape(-1, 2)).exp().reshape(120, 4000).mean(1)
        * 2
        * math.pi
        * r
        * torch.from_numpy(5.5 * weights)
    )
    tolerance = 2e-3 if name in ("cap", "pruned") else 1e-8  # edges in the angle
    assert float(p.sum()) == pytest.approx(1, abs=tolerance)
    assert float((p * r).sum()) == pytest.approx(source.mean_norm, rel=tolerance)
    norms = draw(source, 40_000).norm(dim=1)
    assert abs(float(norms.mean()) - source.mean_norm) < 4 * float(norms.std()) / 200


@pytest.mark.parametrize("name", PLANE)
def test_draws_have_the_density(name: str) -> None:
    """Counts in 24 sectors and two rings against the density's integrals."""
    source = PLANE[name]
    x = draw(source, 20_000, seed=3).numpy()
    middle = 1.2 * source.mean_norm
    sector = ((np.arctan2(x[:, 1], x[:, 0]) % (2 * math.pi)) / (2 * math.pi) * 24).astype(int)
    found = np.bincount(2 * sector + (np.hypot(*x.T) > middle), minlength=48)
    angle = (torch.arange(24 * 200, dtype=F64) + 0.5) * 2 * math.pi / (24 * 200)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    wanted = np.empty(48)
    for ring, (low, high) in enumerate(((0.0, middle), (middle, 11.0))):
        r = torch.from_numpy(low + (high - low) * (nodes + 1) / 2)
        p = source.log_prob((r[:, None, None] * torch.stack([angle.cos(), angle.sin()], 1)).reshape(-1, 2)).exp()
        area = (
            p.reshape(60, 24, 200).mean(2)
            * 2
            * math.pi
            / 24
            * (r * torch.from_numpy(weights) * (high - low) / 2)[:, None]
        )
        wanted[ring::2] = area.sum(0).numpy()
    kept = wanted > 5e-4
    assert found[wanted < 1e-12].sum() == 0
    statistic = ((found[kept] - 20_000 * wanted[kept]) ** 2 / (20_000 * wanted[kept])).sum()
    assert statistic < stats.chi2(kept.sum() - 1).ppf(0.999) * 1.1


def test_the_chi_sphere_of_its_own_dimension_is_the_gaussian(generator: torch.Generator) -> None:
    x = torch.randn(50, 3, 4, generator=generator, dtype=F64)
    torch.testing.assert_close(ge.ChiSphereSource((3, 4)).log_prob(x), ge.GaussianSource((3, 4)).log_prob(x))
    assert ge.ChiSphereSource((2,), 3072.0).mean_norm == pytest.approx(55.42112, abs=1e-4)
    y = ge.project_to_chi_sphere(x, generator=generator, degrees=5000.0)
    torch.testing.assert_close(y / y.flatten(1).norm(dim=1)[:, None, None], x / x.flatten(1).norm(dim=1)[:, None, None])
    with pytest.raises(ValueError, match=r"x\[0\] has norm 0"):
        ge.project_to_chi_sphere(torch.zeros(1, 3), generator=generator)


def test_norm_alignment(generator: torch.Generator) -> None:
    """The figures of CIFAR-10; the mean norm of 50,000 draws; the density by scipy."""
    base = ge.GaussianSource((3, 32, 32))
    data = torch.randn(20, 3, 32, 32, generator=generator)
    data *= (27.1981 / data.flatten(1).norm(dim=1))[:, None, None, None]
    c = ge.norm_alignment(data, base)
    assert c == pytest.approx(0.4908, abs=1e-4)
    small = torch.randn(100, 64, generator=generator).abs() * 0.3
    aligned = ge.NormAlignedSource(ge.GaussianSource((64,)), ge.norm_alignment(small, ge.GaussianSource((64,))))
    assert float(draw(aligned, 50_000).norm(dim=1).mean()) == pytest.approx(float(small.norm(dim=1).mean()), rel=2e-3)
    x = torch.randn(5, 64, generator=generator, dtype=F64)
    wanted = stats.norm(scale=aligned.scale).logpdf(x.numpy()).sum(1)
    np.testing.assert_allclose(aligned.log_prob(x), wanted, rtol=1e-10)
    for bad in (torch.zeros(3, 64), torch.full((3, 64), math.nan), small[:, :5]):
        with pytest.raises(ValueError, match="data"):
            ge.norm_alignment(bad, ge.GaussianSource((64,)))
    with pytest.raises(ValueError, match="scale"):
        ge.NormAlignedSource(base, 0.0)


@pytest.mark.parametrize(("d", "kappa"), [(3, 10.0), (784, 300.0), (3072, 1500.0)])
def test_von_mises_fisher(d: int, kappa: float) -> None:
    """Mean cosine, density against scipy, concentration recovered."""
    mu = torch.zeros(1, d, dtype=F64)
    mu[0, 1] = 2.0
    source = ge.VonMisesFisherSource(directions=mu, kappa=kappa, radius=1.0)
    n = 20_000 if d < 1000 else 4000
    x = draw(source, n)
    cosine = x[:, 1]
    wanted = bessel_ratio(d / 2 - 1, kappa)
    assert abs(float(cosine.mean()) - wanted) < 3 * float(cosine.std()) / n**0.5
    assert ge.vmf_kappa(wanted, d) == pytest.approx(kappa, rel=1e-8)
    if d < 1000:
        assert ge.vmf_kappa(float(x.mean(0).norm()), d) == pytest.approx(kappa, rel=0.03)
        law = stats.vonmises_fisher(np.eye(d)[1], kappa)
        np.testing.assert_allclose(source.log_prob_direction(x[:20]), law.logpdf(x[:20].numpy()), rtol=1e-9)
    if d == 3:
        law_of_cosine = stats.truncexpon(b=2 * kappa, scale=1 / kappa)  # 1 - cosine is a truncated exponential in space
        assert stats.kstest(1 - cosine.numpy(), law_of_cosine.cdf).pvalue > 0.01
    with pytest.raises(NotImplementedError, match="fixed norm"):
        source.log_prob(x)
    with pytest.raises(ValueError, match="kappa"):
        ge.VonMisesFisherSource(directions=mu, kappa=-1.0)


def test_von_mises_fisher_fit_finds_the_clusters(generator: torch.Generator) -> None:
    truth = ge.VonMisesFisherSource(
        directions=torch.eye(6)[:3], kappa=torch.tensor([60.0, 90.0, 120.0]), weights=torch.tensor([1.0, 2.0, 3.0])
    )
    fitted = ge.VonMisesFisherSource.fit(truth.sample(6000, generator=generator), 3, generator=generator)
    order = (fitted.directions @ torch.eye(6)[:, :3]).argmax(0)
    assert float((fitted.directions[order] * torch.eye(6)[:3]).sum(1).min()) > 0.999
    torch.testing.assert_close(fitted.kappa[order].float(), truth.kappa, rtol=0.1, atol=0)
    torch.testing.assert_close(fitted.weights[order] / 6000, torch.tensor([1, 2, 3], dtype=F64) / 6, rtol=0.1, atol=0)


def test_caps_in_many_dimensions() -> None:
    """The cosine's law is a truncated Beta, also in float64's far tail."""
    source = ge.CapSource(directions=torch.eye(50, dtype=F64)[:1], min_cosine=0.5, radius=1.0)
    cosine = draw(source, 5000)[:, 0].numpy()
    law = stats.beta(24.5, 24.5)
    assert cosine.min() >= 0.5
    assert stats.kstest(cosine, lambda c: 1 - law.sf((1 + c) / 2) / law.sf(0.75)).pvalue > 0.01


def test_mixture_fit_against_scikit_learn(generator: torch.Generator) -> None:
    mixture = pytest.importorskip("sklearn.mixture", reason="scikit-learn is not installed")
    data = draw(PLANE["mixture"], 3000) + torch.tensor([[3.0, 0.0]]) * (torch.arange(3000) % 2)[:, None]
    ours = ge.GaussianMixtureSource.fit(data, 3, generator=generator, iterations=500, tolerance=1e-10)
    theirs = mixture.GaussianMixture(
        3, means_init=ours.means.numpy(), weights_init=ours.weights.numpy(), tol=1e-10, max_iter=500, random_state=0,
        precisions_init=torch.linalg.inv(ours.covariances).numpy(),
    ).fit(data.numpy())  # fmt: skip
    assert float(ours.log_prob(data).mean()) == pytest.approx(theirs.score(data.numpy()), abs=1e-6)
    one = ge.GaussianMixtureSource.fit(data, 1, generator=generator, floor=1e-12)
    torch.testing.assert_close(one.covariances[0], torch.cov(data.T, correction=0))
    round_ = ge.GaussianMixtureSource.fit(data, 1, generator=generator, shrinkage=1.0, floor=1e-12)
    torch.testing.assert_close(
        round_.covariances[0], float(torch.cov(data.T, correction=0).trace()) / 2 * torch.eye(2, dtype=F64)
    )
    unit = draw(ours.standardized(), 50_000)
    assert float(unit.mean(0).abs().max()) < 0.03
    assert float(unit.var(0).mean()) == pytest.approx(1, abs=0.02)


def test_block_dct(generator: torch.Generator) -> None:
    x = torch.randn(3, 2, 16, 24, generator=generator, dtype=F64)
    y = block_dct(x)
    torch.testing.assert_close(inverse_block_dct(y), x, rtol=0, atol=1e-12)
    for i, j in itertools.product(range(2), range(3)):
        tile = np.s_[:, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
        wanted = fft.dctn(x[tile].numpy(), axes=(2, 3), norm="ortho")
        np.testing.assert_allclose(y[tile].numpy(), wanted, atol=1e-12)
    with pytest.raises(ValueError, match="multiples"):
        block_dct(x[..., :20])


@pytest.mark.parametrize("channels", [1, 3])
def test_dct_source(channels: int, generator: torch.Generator) -> None:
    low = torch.nn.functional.interpolate(
        torch.randn(300, channels, 4, 4, generator=generator, dtype=F64), size=(16, 16), mode="bilinear"
    )
    source = ge.DCTMaskSource.fit(low, max_variance=0.3, dtype=F64)
    assert 0 < int(source.mask.sum()) < source.mask.numel()
    x = draw(source, 8000)
    assert float(x.square().mean()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(source.filter(x), x, rtol=0, atol=1e-10)  # a projection
    norms = x.flatten(1).norm(dim=1)
    assert abs(float(norms.mean()) - source.mean_norm) < 4 * float(norms.std()) / 8000**0.5
    with pytest.raises(NotImplementedError, match="subspace"):
        source.log_prob(x)
    whole = ge.DCTMaskSource((channels, 16, 16), torch.ones_like(source.mask), F64)
    torch.testing.assert_close(
        draw(whole, 5), draw(ge.GaussianSource((channels, 16, 16), dtype=F64), 5), rtol=0, atol=1e-8
    )
    with pytest.raises(ValueError, match="keeps no"):
        ge.DCTMaskSource((channels, 16, 16), torch.zeros_like(source.mask))


def test_learned_source_has_the_density_of_its_flow() -> None:
    """x -> 2 x + 1 as a linear flow."""
    rate = math.log(2.0)
    source = ge.LearnedSource(lambda x, t: rate * (x + 1), ge.GaussianSource((2,), dtype=F64))
    x = draw(source, 20)
    torch.testing.assert_close(x, 2 * draw(ge.GaussianSource((2,), dtype=F64), 20) + 1, rtol=0, atol=1e-3)
    wanted = stats.norm(1, 2).logpdf(x.numpy()).sum(1)
    np.testing.assert_allclose(source.log_prob(x), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="knows it"):
        ge.norm_alignment(x, source)


def test_oracle_coupling(generator: torch.Generator) -> None:
    x0, x1 = torch.randn(2, 2000, 10, generator=generator, dtype=F64)
    paired = ge.OracleVMF(80.0).pair(x0, x1, torch.arange(2000), generator=generator)
    torch.testing.assert_close(paired.x0.norm(dim=1), x0.norm(dim=1))
    cosine = torch.cosine_similarity(paired.x0, x1)
    assert abs(float(cosine.mean()) - bessel_ratio(4.0, 80.0)) < 4 * float(cosine.std()) / 2000**0.5


def test_scale_of_the_source_and_scale_of_the_data_are_one(generator: torch.Generator) -> None:
    """Source c on data x is the unit source on data x / c, times c: exact fields of Gaussian data."""
    from anabranch.worlds import GaussianMixture

    c, m = 0.4, torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=F64)
    z = torch.randn(50, 2, generator=generator, dtype=F64)
    small = GaussianMixture(weights=[1, 2], means=m / c, covariances=0.3 / c**2)
    aligned = ge.NormAlignedField(GaussianMixture(weights=[1, 2], means=m, covariances=0.3).velocity(), c)
    ours = ge.solve(aligned, c * z, uniform_times(7), "heun")
    theirs = ge.solve(small.velocity(), z, uniform_times(7), "heun")
    torch.testing.assert_close(ours, c * theirs, rtol=0, atol=1e-10)


class Flat(nn.Module):
    """An MLP on images."""

    classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.net = ge.ResMLP(64, 16, 1, classes=3)

    def forward(self, x: Tensor, t: Any, label: Any = None) -> Tensor:
        return self.net(x.flatten(1), t, label).reshape(x.shape)


IMAGES = torch.nn.functional.avg_pool2d(
    torch.rand(60, 1, 10, 10, generator=torch.Generator().manual_seed(0)) * 2 - 1, 3, 1
)
ANY = torch.Generator().manual_seed(1)
GAUSS = ge.GaussianSource((1, 8, 8))
SOURCES: dict[str, Any] = {
    "gaussian": GAUSS,
    "empirical": ge.EmpiricalSource(torch.randn(40, 1, 8, 8, generator=ANY)),
    "chi": ge.ChiSphereSource((1, 8, 8), 100.0),
    "aligned": ge.NormAlignedSource(GAUSS, 0.3),
    "vmf": ge.VonMisesFisherSource.fit(IMAGES, 3, generator=ANY),
    "cap": ge.CapSource(directions=IMAGES[:2], min_cosine=0.2),
    "mixture": ge.GaussianMixtureSource.fit(IMAGES, 2, generator=ANY, shrinkage=0.2),
    "dct": ge.DCTMaskSource.fit(IMAGES, max_variance=0.05),
    "learned": ge.LearnedSource(lambda x, t, **_: -0.5 * x, GAUSS, uniform_times(2)),
    "pruned": ge.PrunedSource(GAUSS, ge.mean_direction_axes(IMAGES), accept=0.7),
}
COUPLINGS: dict[str, Any] = {
    "independent": ge.Independent(),
    "ot": ge.MinibatchOT(),
    "sinkhorn": ge.MinibatchOT("sinkhorn", reg=0.1),
    "classwise": ge.ClasswiseOT(),
    "oracle": ge.OracleVMF(50.0),
}


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_with_every_coupling_and_solver(source: str, coupling: str) -> None:
    if coupling == "sinkhorn":
        pytest.importorskip("ot", reason="POT is not installed")
    torch.manual_seed(0)
    given = SOURCES[source]
    shifted = IMAGES[:48] + 0.1  # no datum of norm 0
    fitted = ge.fit(
        Flat(), ge.FlowMatching(), (shifted, torch.arange(48) % 3), steps=2, batch_size=24, source=given,
        coupling=COUPLINGS[coupling], generator=torch.Generator().manual_seed(0), precision="f32",
    )  # fmt: skip
    assert all(math.isfinite(entry["loss"]) for entry in fitted.history)
    x0 = draw(given, 4)
    assert x0.shape == (4, 1, 8, 8)
    assert torch.equal(x0, draw(given, 4))
    for name in ge.SOLVERS:
        x = ge.solve(
            fitted.ema, x0, torch.linspace(0.05, 0.9, 3, dtype=F64), name,
            generator=torch.Generator().manual_seed(0), label=torch.tensor([0, 1, 2, 0]),
        )  # fmt: skip
        assert x.shape == x0.shape
        assert bool(torch.isfinite(x).all()), name


def test_quadrature_of_a_cap_in_space() -> None:
    """The density of a direction integrates to one on the sphere in three dimensions."""
    source = ge.CapSource(directions=torch.eye(3, dtype=F64)[:1], min_cosine=0.3)

    def density(u: float) -> float:
        return float(source.log_prob_direction(torch.tensor([[u, math.sqrt(1 - u * u), 0.0]], dtype=F64)).exp())

    assert integrate.quad(density, 0.3, 1)[0] * 2 * math.pi == pytest.approx(1, rel=1e-9)
    assert density(0.29) == 0


@pytest.mark.parametrize(("d", "kappa"), [(3, 10.0), (784, 300.0), (3072, 1500.0)])
def test_concentration_from_twenty_thousand_draws(d: int, kappa: float) -> None:
    """Mean cosine within three standard errors, the concentration within 2 %."""
    direction = torch.zeros(1, d)
    direction[0, 0] = 1
    source = ge.VonMisesFisherSource(directions=direction, kappa=kappa, radius=1.0)
    g = torch.Generator().manual_seed(0)
    total, cosines = torch.zeros(d, dtype=F64), []
    for _ in range(10):
        x = source.sample(2000, generator=g)
        total += x.sum(0, dtype=F64)
        cosines.append(x[:, 0].double())
    cosine = torch.cat(cosines)
    assert abs(float(cosine.mean()) - bessel_ratio(d / 2 - 1, kappa)) <= 3 * float(cosine.std()) / 20_000**0.5
    assert ge.vmf_kappa(float(total.norm()) / 20_000, d) == pytest.approx(kappa, rel=0.02)
