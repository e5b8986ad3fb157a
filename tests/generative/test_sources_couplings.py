"""Sources and couplings."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anabranch.generative import ClasswiseOT, EmpiricalSource, Fixed, GaussianSource, Independent, MinibatchOT
from anabranch.generative.couplings import squared_distances


def test_gaussian_source(generator: torch.Generator) -> None:
    source = GaussianSource((3, 2), scale=1.7, mean=0.4, dtype=torch.float64)
    x = source.sample(50_000, generator=generator)
    assert x.shape == (50_000, 3, 2)
    law = torch.distributions.Normal(0.4, 1.7)
    torch.testing.assert_close(source.log_prob(x), law.log_prob(x).sum((1, 2)))
    assert abs(float(x.mean()) - 0.4) < 4 * 1.7 / 300_000**0.5
    centred = GaussianSource((784,), dtype=torch.float64)
    norms = centred.sample(4000, generator=generator).norm(dim=1)
    assert abs(float(norms.mean()) - centred.mean_norm) < 4 * float(norms.std()) / 4000**0.5
    assert round(centred.mean_norm, 2) == 27.99
    with pytest.raises(NotImplementedError):
        _ = source.mean_norm
    with pytest.raises(ValueError, match="scale"):
        GaussianSource((2,), scale=0.0)


def test_empirical_source(generator: torch.Generator) -> None:
    data = torch.randn(7, 2, generator=generator)
    source = EmpiricalSource(data)
    x = source.sample(500, generator=generator)
    assert bool((x[:, None] == data).all(2).any(1).all())
    assert source.shape == (2,)
    assert source.mean_norm == pytest.approx(float(data.norm(dim=1).mean()))
    with pytest.raises(NotImplementedError):
        source.log_prob(x)


def cost(x0: Tensor, x1: Tensor) -> float:
    return float((x0 - x1).square().sum())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_exact_transport_is_the_best_permutation(n: int, seed: int) -> None:
    x0, x1 = torch.randn(2, n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    paired = MinibatchOT().pair(x0, x1, torch.arange(n))
    assert torch.equal(paired.x1, x1)
    assert torch.equal(paired.label, torch.arange(n))
    assert sorted(paired.x0.tolist()) == sorted(x0.tolist())
    best = min(cost(x0[list(order)], x1) for order in itertools.permutations(range(n)))
    assert cost(paired.x0, x1) == pytest.approx(best, rel=1e-12)


def test_exact_transport_against_pot(generator: torch.Generator) -> None:
    ot = pytest.importorskip("ot", reason="POT is not installed")
    x0, x1 = torch.randn(2, 128, 5, generator=generator, dtype=torch.float64)
    mass = torch.full((128,), 1 / 128, dtype=torch.float64)
    reference = float(ot.emd2(mass, mass, squared_distances(x0, x1)))
    assert abs(cost(MinibatchOT().pair(x0, x1).x0, x1) / 128 - reference) <= 1e-9


def test_sinkhorn(generator: torch.Generator) -> None:
    pytest.importorskip("ot", reason="POT is not installed")
    x0, x1 = torch.randn(2, 64, 2, generator=generator, dtype=torch.float64)
    coupling = MinibatchOT("sinkhorn", reg=0.05)
    plan = coupling.plan(x0, x1)
    torch.testing.assert_close(plan.sum(0), torch.full((64,), 1 / 64, dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(plan.sum(1), torch.full((64,), 1 / 64, dtype=torch.float64), rtol=0, atol=1e-8)
    # The entropic plan has the form diag(a) K diag(b): its log, plus cost / reg, is of rank one (a sum of two vectors).
    c = squared_distances(x0, x1)
    potential = plan.log() + c / (0.05 * c.mean())
    mixed = potential[1:, 1:] - potential[1:, :1] - potential[:1, 1:] + potential[0, 0]
    assert float(mixed.abs().max()) < 1e-8
    paired = coupling.pair(x0, x1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(paired.x0, coupling.pair(x0, x1, generator=torch.Generator().manual_seed(0)).x0)
    exact, independent = cost(MinibatchOT().pair(x0, x1).x0, x1), cost(x0, x1)
    assert exact <= cost(paired.x0, x1) < independent
    many = torch.multinomial(plan.T, 4000, replacement=True, generator=generator)
    mean = c.gather(0, many.T).mean()  # of the pairs drawn: the plan's cost
    assert float(mean) == pytest.approx(float((plan * c).sum()), rel=0.02)


def test_classwise_transport(generator: torch.Generator) -> None:
    x0, x1 = torch.randn(2, 60, 2, generator=generator, dtype=torch.float64)
    label = torch.randint(4, (60,), generator=generator)
    paired = ClasswiseOT().pair(x0, x1, label)
    for value in range(4):
        rows = label == value
        alone = MinibatchOT().pair(x0[rows], x1[rows])
        assert torch.equal(paired.x0[rows], alone.x0)
    assert cost(paired.x0, x1) < cost(x0, x1)
    with pytest.raises(ValueError, match="label"):
        ClasswiseOT().pair(x0, x1)


def test_classwise_transport_keeps_the_source_of_a_class() -> None:
    """Two classes on two sides: transport over the batch gives each a half of the source, inside classes the whole."""
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(2000, 1, generator=g, dtype=torch.float64)
    label = torch.arange(2000) % 2
    x1 = 10.0 * (2 * label[:, None].double() - 1) + 0.1 * torch.randn(2000, 1, generator=g, dtype=torch.float64)
    batch, classes = MinibatchOT().pair(x0, x1, label), ClasswiseOT().pair(x0, x1, label)
    assert float(batch.x0[label == 1].mean()) == pytest.approx(math.sqrt(2 / math.pi), abs=0.1)
    assert abs(float(classes.x0[label == 1].mean())) < 4 / 1000**0.5


def test_independent_and_fixed(generator: torch.Generator) -> None:
    x0, x1 = torch.randn(2, 5, 2, generator=generator)
    assert torch.equal(Independent().pair(x0, x1).x0, x0)
    pairs = Fixed(x0, x0 + 1, torch.arange(5))
    drawn = pairs.pair(x1, x1, generator=generator)
    assert torch.equal(drawn.x1, drawn.x0 + 1)
    assert torch.equal(x0[drawn.label], drawn.x0)
    assert len(pairs.draw(40, generator=generator).x0) == 40
    for make, words in (
        (lambda: MinibatchOT("sinkhorn", reg=0.0), "reg"),
        (lambda: Independent().pair(x0, x1[:, :1]), "x0|x1"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            make()


def test_bound_of_a_whole_transport_plan(generator: torch.Generator) -> None:
    """The assignment costs what torchcfm's plan costs: POT's exact solver, called as torchcfm calls it."""
    ot = pytest.importorskip("ot", reason="POT is not installed")
    x0, x1 = torch.randn(2, 64, 3, 4, generator=generator)
    cost = torch.cdist(x0.reshape(64, -1), x1.reshape(64, -1)) ** 2
    plan = ot.emd(ot.unif(64), ot.unif(64), cost.numpy())
    ours = MinibatchOT().pair(x0, x1)
    assert float((ours.x0 - ours.x1).square().sum()) / 64 == pytest.approx(float((plan * cost.numpy()).sum()), rel=1e-5)
