"""The simulation in the plane and its scores."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from anabranch import generative as ge
from anabranch.generative.plane_scores import plane_scores
from anabranch.generative.plane_simulation import PlaneNets, _PlaneMatching

F64 = torch.float64


def test_target(generator: torch.Generator) -> None:
    target = ge.PlaneTarget(torch.tensor([0.0, 2.0, 4.0], dtype=F64))
    x, mode = target.sample(2000, generator=generator)
    assert torch.bincount(mode).tolist() == [100, 600, 1300]
    assert float(x.norm(dim=1).mean()) == pytest.approx(24.99, abs=0.1)
    cosine = torch.cosine_similarity(x.double(), target.directions[mode])
    assert float(cosine.min()) > math.cos(math.radians(16))
    assert target.centers.norm(dim=1).tolist() == pytest.approx([24.989] * 3, abs=0.01)


def test_runs_learn_as_if_alone(generator: torch.Generator) -> None:
    """The gradient of a run does not see the others."""
    targets = [ge.PlaneTarget.draw(generator=generator) for _ in range(3)]
    fixed = torch.stack([t.sample(64, generator=generator)[0] for t in targets])
    circle = ge.ChiSphereSource((2,), 3072.0)
    net = PlaneNets(3, generator=generator)
    sources = [circle] * 3
    loss = _PlaneMatching(sources, fixed, ge.PlaneScenario(), 32)(net, generator=generator)
    loss.per_sample[1].backward()
    for weight in net.parameters():
        assert float(weight.grad[[0, 2]].abs().max()) == 0
        assert float(weight.grad[1].abs().max()) > 0


def test_one_network_equals_torchs_layers(generator: torch.Generator) -> None:
    net = PlaneNets(2, generator=generator)
    layers = []
    for weight, bias in zip(net.weights, net.biases, strict=True):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[2])
        layer.weight.data, layer.bias.data = weight[1].T, bias[1, 0]
        layers += [layer, torch.nn.SELU()]
    x = torch.randn(2, 7, 2, generator=generator)
    wanted = torch.nn.Sequential(*layers[:-1])(torch.cat([x[1], torch.full((7, 1), 0.3)], 1))
    torch.testing.assert_close(net(x, 0.3)[1], wanted)


@pytest.mark.parametrize("name", ge.PLANE_SCENARIOS)
def test_every_scenario_runs(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    targets = tuple(ge.PlaneTarget.draw(generator=g) for _ in range(2))
    scenario = ge.PLANE_SCENARIOS[name]
    if scenario.source_steps is not None:
        scenario = replace(scenario, source_steps=min(scenario.source_steps, 40))
    runs = ge.simulate_plane(scenario, targets, steps=2, batch=32, points=64, draws=50, generator=g)
    assert runs.samples.shape == (2, 50, 2)
    assert bool(torch.isfinite(runs.samples).all())
    if runs.axes is None:
        assert runs.kept.tolist() == [1, 1]
    else:
        cosine = torch.einsum("rnd,rd->rn", runs.starts, runs.axes) / runs.starts.norm(dim=2)
        assert float(cosine.max()) <= ge.PLANE_SCENARIOS[name].max_cosine + 1e-6
        half = math.acos(ge.PLANE_SCENARIOS[name].max_cosine)
        assert runs.kept.tolist() == pytest.approx([1 - half / math.pi] * 2, abs=1e-6)
    norm = float(runs.starts.norm(dim=2).mean())
    if name == "aligned":
        assert norm == pytest.approx(float(runs.points.norm(dim=2).mean()), rel=0.02)
    elif "density" not in name:
        assert norm == pytest.approx(55.42, abs=0.5)


def test_training_brings_samples_to_the_data() -> None:
    """The networks are reused for pruned sampling, which starts from fewer directions."""
    g = torch.Generator().manual_seed(0)
    targets = (ge.PlaneTarget(torch.tensor([0.3, 2.0, 3.5], dtype=F64)),)
    before = ge.simulate_plane(ge.PLANE_SCENARIOS["independent"], targets, steps=1, draws=500, generator=g)
    runs = ge.simulate_plane(ge.PLANE_SCENARIOS["independent"], targets, steps=500, draws=500, lr=3e-3, generator=g)
    far = [float(ge.nearest_distance(r.samples[0], r.points[0]).mean()) for r in (before, runs)]
    assert far[1] < 0.2 * far[0]
    pruned = ge.simulate_plane(
        ge.PLANE_SCENARIOS["pruned-mean"], targets, steps=1, draws=500, net=runs.net, generator=g
    )
    assert pruned.net is runs.net


def test_scores(generator: torch.Generator) -> None:
    a, b = torch.randn(40, 2, generator=generator, dtype=F64), torch.randn(50, 2, generator=generator, dtype=F64)
    torch.testing.assert_close(ge.nearest_distance(a, b), torch.cdist(a, b).amin(1))
    copies = a[:1].repeat(30, 1)
    assert ge.coverage_one_to_one(copies, a, radius=1e-6) == (1 / 40, 1 / 30)
    assert ge.coverage_one_to_one(a, a, radius=1e-6) == (1, 1)
    small_a, small_b = a[:5], b[:5]
    close = torch.cdist(small_a, small_b) <= 1.0
    best = max(sum(bool(close[i, j]) for i, j in enumerate(order)) for order in itertools.permutations(range(5)))
    greedy = round(5 * ge.coverage_one_to_one(small_a, small_b, radius=1.0).coverage)
    assert best / 2 <= greedy <= best
    with pytest.raises(ValueError, match="radius"):
        ge.coverage_one_to_one(a, b, radius=0.0)


def test_mode_scores_tell_quality_from_shares() -> None:
    """Right points in wrong shares: no quality is lost, only the KL sees it."""
    g = torch.Generator().manual_seed(0)
    target = ge.PlaneTarget(torch.tensor([0.0, 2.0, 4.0], dtype=F64))
    real, mode = target.sample(1500, generator=g)
    fresh, own = target.sample(6000, generator=g)
    points = [fresh[own == k] for k in range(3)]  # ordered by angle: a subset must be drawn
    skewed = torch.cat([p[torch.randperm(len(p), generator=g)[:100]] for p in points])
    quality = ge.normalized_wasserstein(skewed, real, mode, target.centers, generator=g)
    assert quality < 1.5
    assert ge.metrics.wasserstein2(skewed, real[torch.randperm(1500, generator=g)[:300]]) > 5 * quality
    shifted = ge.normalized_wasserstein(skewed * 1.2, real, mode, target.centers, generator=g)
    assert shifted > 3 * quality
    kl = [ge.mode_kl(x, real, generator=torch.Generator().manual_seed(0)) for x in (fresh, skewed)]
    assert kl[0] < 0.02 < 0.2 < kl[1]
    assert ge.mode_kl(fresh[own == 0], real, cells=3, generator=torch.Generator().manual_seed(0)) > 1


def test_aligned_norms_and_pruned_directions_bring_samples_nearer() -> None:
    """The two findings that tell what to do, after a short training of three targets, all from one seed."""
    g = torch.Generator().manual_seed(5000)
    targets = tuple(ge.PlaneTarget.draw(generator=g) for _ in range(3))

    def simulate(name: str, net: PlaneNets | None = None) -> tuple[float, float, PlaneNets]:
        runs = ge.simulate_plane(
            ge.PLANE_SCENARIOS[name], targets, steps=1500, batch=32, lr=2e-3, points=256, draws=600, net=net,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        scores = plane_scores(runs, exact=20, generator=torch.Generator().manual_seed(2))
        return (
            sum(score.distance for score in scores) / 3,
            sum(score.bad_share for score in scores) / 3,
            runs.net,
        )

    plain, bad, net = simulate("independent")
    aligned, bad_aligned, _ = simulate("aligned")
    pruned, bad_pruned, _ = simulate("pruned-mean", net)
    assert aligned < 0.9 * plain
    assert bad_aligned < 0.9 * bad
    assert pruned < 0.9 * plain
    assert bad_pruned < 0.9 * bad
