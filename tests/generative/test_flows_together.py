"""The crossing of the papers' parts: times, sources, solvers, students, metrics and attentions in one another's places."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anabranch.attention import flow_attention, flow_attention_causal
from anabranch.generative import (
    SOLVERS,
    DiT,
    FlowMapModel,
    FlowMatching,
    GaussianSource,
    LinearPath,
    NoisyLikelihood,
    NormAlignedSource,
    ResMLP,
    Source,
    SplitMeanFlow,
    TarFlow,
    distill,
    distill_without_data,
    fit,
    jump,
    metrics,
    norm_alignment,
    optimal_times,
    solve,
    step_costs,
    teacher_samples,
    times_cost,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

WORLD = GaussianMixture(weights=[1, 2], means=[[2.0, 0.0], [-1.0, 1.5]], covariances=[0.1, 0.2])
PLAIN = GaussianSource((2,))
DETERMINISTIC = [name for name, solver in SOLVERS.items() if not solver.stochastic]


def drawn(n: int, seed: int) -> Tensor:
    return WORLD.sample(n, generator=torch.Generator().manual_seed(seed)).float()


ALIGNED = NormAlignedSource(PLAIN, norm_alignment(drawn(4000, 0), PLAIN))


def trained(source: Source, steps: int = 300) -> ResMLP:
    torch.manual_seed(0)
    net = ResMLP(2, 64, 2)
    generator = torch.Generator().manual_seed(1)
    done = fit(net, FlowMatching(), drawn(4000, 0), steps=steps, batch_size=128, source=source, lr=3e-3, ema=0.98,
               generator=generator)  # fmt: skip
    assert isinstance(done.ema, ResMLP)
    return done.ema


@pytest.fixture(scope="module")
def aligned_field() -> ResMLP:
    return trained(ALIGNED)


@pytest.fixture(scope="module")
def teacher() -> ResMLP:
    return trained(PLAIN)


def noises(source: Source, n: int) -> Tensor:
    return source.sample(n, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def chosen_times(aligned_field: ResMLP) -> Tensor:
    costs = step_costs(aligned_field, noises(ALIGNED, 128), uniform_times(24))
    times = optimal_times(costs, 6)
    even = costs.anchors[::4]
    assert len(even) == len(times)
    assert times_cost(costs, times) <= times_cost(costs, even)
    assert not torch.equal(times, even)
    return times


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_optimal_times_and_an_aligned_source_under_every_deterministic_solver(
    solver: str, aligned_field: ResMLP, chosen_times: Tensor
) -> None:
    """Six chosen steps end within a third of one Euler step's error of the field's own exact flow, and at the data."""
    x0 = noises(ALIGNED, 400)
    exact = solve(aligned_field, x0, uniform_times(100), "rk4")
    found = solve(aligned_field, x0, chosen_times, solver, path=LinearPath())
    one = solve(aligned_field, x0, uniform_times(1), "euler")
    error, worst = ((x - exact).norm(dim=1).mean() for x in (found, one))
    assert float(error) < float(worst) / 3
    data = drawn(400, 3)
    assert metrics.frechet_distance(found, data) < 0.5 * metrics.frechet_distance(x0, data)


@pytest.fixture(scope="module")
def students(teacher: ResMLP) -> dict[str, nn.Module]:
    """One with the teacher's own samples for data, one with nothing, from the same weights."""
    shared: dict[str, Any] = {"steps": 450, "batch_size": 128, "lr": 2e-3, "ema": 0.98}
    data = teacher_samples(teacher, noises(PLAIN, 1000), steps=16)
    split = distill(teacher, data, objective=SplitMeanFlow(), generator=torch.Generator().manual_seed(3), **shared)
    free = distill_without_data(
        teacher, PLAIN, generator=torch.Generator().manual_seed(3), correction_warmup=50, **shared
    )
    return {"SplitMeanFlow": split.ema, "FreeFlow": free.ema}


def test_both_students_are_sampled_by_one_sampler_and_scored_by_the_same_metrics(
    teacher: ResMLP, students: dict[str, nn.Module]
) -> None:
    x0 = noises(PLAIN, 800)
    truth = solve(teacher, x0, uniform_times(64), "rk4")
    one = solve(teacher, x0, uniform_times(1), "euler")

    def scores(x: Tensor) -> dict[str, float]:
        g = torch.Generator().manual_seed(0)
        return {
            "frechet": metrics.frechet_distance(x, truth),
            "sliced": metrics.sliced_wasserstein(x, truth, generator=g, projections=64),
            "mmd": metrics.mmd(x, truth),
            "error": float((x - truth).norm(dim=1).mean()),
        }

    floor = scores(one)
    for name, student in students.items():
        assert isinstance(student, FlowMapModel)
        found = scores(jump(student, x0, uniform_times(1)))
        assert all(found[key] < 0.75 * floor[key] for key in floor), (name, found, floor)


class CausalFlow:
    """Flow-Attention with its state, as TarFlow's sampler wants it."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        return flow_attention_causal(q, k, v)

    def decode(self, q: Tensor, k: Tensor, v: Tensor, state: Any) -> Any:
        return flow_attention_causal(q, k, v, initial_state=state, return_state=True)


def test_flow_attention_is_the_attention_of_dit_and_a_flow_map_is_made_of_it() -> None:
    torch.manual_seed(0)
    net = DiT(8, 1, width=16, depth=2, heads=2, patch=2, attention=flow_attention)
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)).cumsum(3) / 4 - 1
    done = fit(
        net, FlowMatching(), images, steps=60, batch_size=16, lr=3e-3, generator=torch.Generator().manual_seed(1)
    )
    losses = [entry["loss"] for entry in done.history]
    assert losses[-1] < 0.8 * losses[0]
    shared: dict[str, Any] = {"generator": torch.Generator().manual_seed(2), "steps": 3, "batch_size": 8}
    split = distill(net, images, objective=SplitMeanFlow(), **shared)
    free = distill_without_data(net, GaussianSource((1, 8, 8)), correction_warmup=0, check_convention=False, **shared)
    x0 = GaussianSource((1, 8, 8)).sample(3, generator=shared["generator"])
    for student in (split.ema, free.ema):
        assert jump(student, x0, uniform_times(2)).shape == x0.shape


def test_flow_attention_is_the_attention_of_tarflow_and_its_inverse_is_exact() -> None:
    torch.manual_seed(0)
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)).cumsum(3) / 4 - 1
    flow = TarFlow(8, 1, 2, 16, 2, 1, head_size=8, attention=CausalFlow())
    done = fit(
        flow, NoisyLikelihood(0.1), images, steps=40, batch_size=16, lr=3e-3, generator=torch.Generator().manual_seed(1)
    )
    assert done.history[-1]["loss"] < done.history[0]["loss"]
    trained = done.ema
    assert isinstance(trained, TarFlow)
    trained = trained.double()
    samples = trained.sample(3, generator=torch.Generator().manual_seed(2), strategies="sequential", tol=1e-10)
    swept = trained.sample(3, generator=torch.Generator().manual_seed(2), strategies="jacobi", tol=1e-10)
    assert samples.shape == (3, 1, 8, 8)
    torch.testing.assert_close(samples, swept, rtol=0, atol=1e-6)
    assert float(trained.blocks[0].proj_out.weight.detach().abs().max()) > 0
