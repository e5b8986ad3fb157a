"""The dynamic programme against brute force, an integer programme and a shortest path; the times in a diffusers pipeline."""

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anabranch.generative import (
    SOLVERS,
    LinearPath,
    StepCosts,
    endpoint_times,
    from_diffusers,
    optimal_frontier,
    optimal_times,
    solve,
    step_costs,
    times_cost,
    times_from_diffusers,
    to_diffusers_scheduler,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

from .test_commands import pipeline  # noqa: F401 (a fixture)

MIXTURE = GaussianMixture(
    weights=torch.arange(1.0, 9.0) / 36,
    means=2 * torch.stack([torch.cos(torch.arange(8) * torch.pi / 4), torch.sin(torch.arange(8) * torch.pi / 4)], 1),
    covariances=0.15**2,
)
FIELD = MIXTURE.velocity()
AXIS = GaussianMixture(weights=[1.0], means=[[1.0]], covariances=0.09)


def path_cost(table: np.ndarray, nodes: tuple[int, ...]) -> float:
    if table.ndim == 2:
        return math.fsum(table[a, b] for a, b in itertools.pairwise(nodes))
    return math.fsum(
        [table[0, 0, nodes[1]]] + [table[nodes[i - 1], nodes[i], nodes[i + 1]] for i in range(1, len(nodes) - 1)]
    )


def brute_force(table: np.ndarray, n: int) -> tuple[float, tuple[int, ...]]:
    last = len(table) - 1
    paths = ((0, *inner, last) for inner in itertools.combinations(range(1, last), n - 1))
    return min((path_cost(table, nodes), nodes) for nodes in paths)


def random_table(size: int, sides: int, draw: np.random.Generator) -> StepCosts:
    grid = np.concatenate([[0], np.sort(draw.random(size - 2)), [1]])
    return StepCosts(torch.from_numpy(draw.random((size,) * sides)), torch.from_numpy(grid), 1)


@pytest.mark.parametrize("seed", range(25))
def test_the_programme_finds_what_brute_force_finds(seed: int) -> None:
    """Random tables of two and of three times, and those of trajectories; 12 intervals (9 for three times), every number."""
    draw = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    solvers = ("euler", "heun", "ab2", "dpmpp_2m", "midpoint")
    tables = [random_table(13, 2, draw), random_table(10, 3, draw), step_costs(FIELD, x0, 9, solver=solvers[seed % 5])]
    for costs in tables:
        table = costs.costs.numpy()
        frontier = optimal_frontier(costs, costs.intervals)
        assert [len(one.times) for one in frontier] == list(range(2, costs.intervals + 2))
        least = math.inf
        for n, one in enumerate(frontier, 1):
            cost, nodes = brute_force(table, n)
            least = min(least, cost)
            assert one.cost == pytest.approx(cost, abs=1e-12, rel=1e-12)
            assert one.least == pytest.approx(least, abs=1e-12, rel=1e-12)
            assert path_cost(table, tuple(one.indices.tolist())) == pytest.approx(cost, abs=1e-12, rel=1e-12)
            if costs is not tables[2]:  # no ties in random tables
                assert tuple(one.indices.tolist()) == nodes
            times = optimal_times(costs, n)
            assert torch.equal(times, one.times)
            assert torch.equal(times, costs.anchors[one.indices])
            assert times_cost(costs, times) == one.cost


FIXED_STEP = sorted(name for name, one in SOLVERS.items() if name != "dopri5" and not one.stochastic)
OWN_COSTS: dict[str, Any] = {
    "squared": None,
    "absolute": lambda a, b: (a - b).abs().sum(1),
    "of features": lambda a, b: (torch.tanh(3 * a) - torch.tanh(3 * b)).square().sum(1).sqrt(),
}


@pytest.mark.parametrize("cost", OWN_COSTS)
@pytest.mark.parametrize("solver", FIXED_STEP)
def test_the_optimum_of_any_solver_and_any_cost(solver: str, cost: str) -> None:
    """Against every choice of times, each step of it taken by ``solve`` itself from the fine trajectory."""
    x0 = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    distance = OWN_COSTS[cost] or (lambda a, b: (a - b).square().sum(1))
    grid, last = uniform_times(6, start=0.02, end=0.97), 6
    fine = solve(FIELD, x0, grid, "rk4", return_trajectory=True)
    costs = step_costs(FIELD, x0, grid, solver=solver, reference="rk4", cost=OWN_COSTS[cost], batch_size=3)
    memory = costs.costs.ndim - 1

    @functools.cache
    def step(nodes: tuple[int, ...]) -> float:
        """Mean distance after the step between the last two of ``nodes``, those before it exact."""
        advance = SOLVERS[solver].prepare(grid[list(nodes)], LinearPath(), x0)
        for i, node in enumerate(nodes[:-1]):
            end = advance(i, fine.states[node], FIELD, x0.clone)[0]
        return float(distance(end, fine.states[nodes[-1]]).mean())

    for n in range(1, last + 1):
        choices = {}
        for inner in itertools.combinations(range(1, last), n - 1):
            nodes = (0, *inner, last)
            choices[nodes] = math.fsum(step(nodes[max(0, i - memory) : i + 1]) for i in range(1, len(nodes)))
        found = optimal_frontier(costs, n)[-1]
        assert found.cost == pytest.approx(min(choices.values()), rel=1e-8, abs=1e-18)
        assert choices[tuple(found.indices.tolist())] == pytest.approx(min(choices.values()), rel=1e-8, abs=1e-18)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ties_go_to_the_earliest_time(data: st.DataObject) -> None:
    """Tables of small whole numbers are full of ties; the first path in dictionary order among the best is taken."""
    size = data.draw(st.integers(2, 8))
    sides = data.draw(st.sampled_from([2, 3]))
    values = data.draw(st.lists(st.integers(0, 2), min_size=size**sides, max_size=size**sides))
    costs = StepCosts(torch.tensor(values, dtype=torch.float64).reshape((size,) * sides), uniform_times(size - 1), 1)
    for n in range(1, size):
        cost, nodes = brute_force(costs.costs.numpy(), n)  # min over (cost, nodes): ties by nodes
        found = optimal_frontier(costs, n)[-1]
        assert found.cost == cost
        assert tuple(found.indices.tolist()) == nodes


def test_the_papers_integer_programme() -> None:
    """Problem 4: unit flow over the edges, exactly K of them."""
    from scipy.optimize import LinearConstraint, milp

    size, steps = 15, 4
    costs = random_table(size, 2, np.random.default_rng(7))
    edges = [(j, k) for j in range(size) for k in range(j + 1, size)]
    balance = np.zeros((size + 1, len(edges)))
    for column, (j, k) in enumerate(edges):
        balance[j, column], balance[k, column], balance[size, column] = 1, -1, 1
    wanted = np.zeros(size + 1)
    wanted[0], wanted[size - 1], wanted[size] = 1, -1, steps
    weights = [float(costs.costs[edge]) for edge in edges]
    found = milp(
        weights, integrality=np.ones(len(edges)), bounds=(0, 1), constraints=LinearConstraint(balance, wanted, wanted)
    )
    assert found.success
    assert optimal_frontier(costs, steps)[-1].cost == pytest.approx(found.fun, abs=1e-7)


def test_a_shortest_path_of_the_layered_graph() -> None:
    networkx = pytest.importorskip("networkx")
    size, steps = 40, 6
    costs = random_table(size, 2, np.random.default_rng(8))
    graph, table = networkx.DiGraph(), costs.costs.tolist()
    for layer in range(steps):
        for j in range(size):
            for k in range(j + 1, size):
                graph.add_edge((layer, j), (layer + 1, k), weight=table[j][k])
    shortest = networkx.shortest_path_length(graph, (0, 0), (steps, size - 1), weight="weight")
    assert optimal_frontier(costs, steps)[-1].cost == pytest.approx(shortest, abs=1e-12)


def test_through_is_the_best_of_those_that_pass() -> None:
    for sides in (2, 3):
        costs = random_table(9, sides, np.random.default_rng(sides))
        table = costs.costs.numpy()
        for n in range(2, 8):
            inner = itertools.combinations(range(1, 8), n - 1)
            paths = [(0, *nodes, 8) for nodes in inner if {3, 6} <= set(nodes)]
            through = costs.anchors[[3, 6]].tolist()
            if not paths:
                with pytest.raises(ValueError, match=rf"no {n} steps of finite cost lead through \["):
                    optimal_times(costs, n, through=through)
                continue
            best = min(paths, key=lambda nodes: path_cost(table, nodes))
            assert torch.equal(optimal_times(costs, n, through=through), costs.anchors[list(best)])


def test_all_intervals_cost_nothing_and_more_steps_can_cost_more() -> None:
    """The counter-example v = sin(2 pi t): errors that cancel over the whole do not over halves."""
    x0 = torch.zeros(1, 1, dtype=torch.float64)
    costs = step_costs(lambda x, t: torch.sin(2 * torch.pi * torch.as_tensor(t)) + 0 * x, x0, 12)
    frontier = optimal_frontier(costs, 12)
    assert frontier[-1].cost == 0
    assert torch.equal(frontier[-1].times, costs.anchors)
    assert frontier[0].cost < 1e-30
    assert frontier[1].cost == pytest.approx(1.7e-3, rel=0.05)
    assert frontier[2].cost == pytest.approx(8.7e-4, rel=0.05)
    assert all(a.least >= b.least for a, b in itertools.pairwise(frontier))


def test_more_anchors_on_the_same_trajectory_never_cost_more(generator: torch.Generator) -> None:
    x0 = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    fine = step_costs(FIELD, x0, 24)
    keep = torch.arange(0, 25, 3)
    coarse = StepCosts(fine.costs[keep][:, keep], fine.anchors[keep], fine.n)
    for n in range(1, 9):
        assert optimal_frontier(fine, n)[-1].cost <= optimal_frontier(coarse, n)[-1].cost


def test_never_dearer_than_uniform(generator: torch.Generator) -> None:
    x0 = torch.randn(32, 1, generator=generator, dtype=torch.float64)
    costs = step_costs(AXIS.velocity(), x0, 60)
    for n in (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60):
        assert optimal_frontier(costs, n)[-1].cost <= times_cost(costs, uniform_times(n))


def test_times_that_are_no_anchors() -> None:
    costs = random_table(101, 2, np.random.default_rng(0))
    costs = StepCosts(costs.costs, uniform_times(100), 1)
    nodes = (0, 12, 25, 38, 50, 62, 75, 88, 100)  # of two equally near anchors the even one
    assert times_cost(costs, uniform_times(8), snap=True) == pytest.approx(
        path_cost(costs.costs.numpy(), nodes), abs=1e-12
    )
    with pytest.raises(ValueError, match=r"times holds 0.125, which is no anchor: pass snap=True"):
        times_cost(costs, uniform_times(8))
    with pytest.raises(ValueError, match="times coincide on the anchors"):
        times_cost(costs, torch.tensor([0, 0.001, 1.0]), snap=True)
    with pytest.raises(ValueError, match="expected the anchors' ends"):
        times_cost(costs, torch.tensor([0.0, 0.5]))


def test_endpoint_times_against_the_best_single_split(generator: torch.Generator) -> None:
    """On a Gaussian, whose flow is known, one time between: the best of all 39, or a neighbour of it."""
    x0 = torch.randn(64, 1, generator=generator, dtype=torch.float64)
    costs = step_costs(AXIS.velocity(), x0, 40)
    exact = AXIS.flow_map()(x0, torch.zeros(64, dtype=torch.float64), torch.ones(64, dtype=torch.float64)) + x0

    def error(split: int) -> float:
        return float((solve(AXIS.velocity(), x0, costs.anchors[[0, split, 40]]) - exact).square().mean())

    best = min(range(1, 40), key=error)
    found = endpoint_times(AXIS.velocity(), x0, costs, 2, end=exact)
    assert abs(round(float(found[1]) * 40) - best) <= 1


@pytest.mark.parametrize("solver", ["euler", "ab2", "heun"])
def test_endpoint_times_never_lose_on_their_own_noises(solver: str, generator: torch.Generator) -> None:
    x0 = torch.randn(64, 2, generator=generator, dtype=torch.float64)
    exact = solve(FIELD, x0, uniform_times(100), "rk4")
    costs = step_costs(FIELD, x0, 20, solver=solver)

    def error(times: Tensor) -> float:
        return float((solve(FIELD, x0, times, solver) - exact).square().mean())

    gains = []
    for n in (2, 4, 5):
        found = endpoint_times(FIELD, x0, costs, n, solver=solver, end=exact)
        others = [error(uniform_times(n)), error(optimal_times(costs, n))]
        assert len(found) == n + 1
        assert error(found) <= min(others) + 1e-15
        gains.append(error(found) / min(others))
    assert min(gains) < 0.97  # and somewhere it helps


def test_a_real_pipeline_takes_the_times_as_sigmas(pipeline: Path, generator: torch.Generator) -> None:  # noqa: F811
    """Costs measured on a diffusers network; its scheduler steps through the chosen times and ends where solve does."""
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.DDPMPipeline.from_pretrained(pipeline)
    field, label = from_diffusers(pipe), torch.arange(6) % 3
    x0 = torch.randn(6, 1, 8, 8, generator=generator)
    with torch.no_grad():
        costs = step_costs(field, x0, 12, batch_size=4, class_labels=label)
    times = optimal_times(costs, 4)
    cost, nodes = brute_force(costs.costs.numpy(), 4)
    assert times_cost(costs, times) == pytest.approx(cost, rel=1e-12)
    assert torch.equal(times, costs.anchors[list(nodes)])
    for shift in (1.0, 3.0):
        scheduler = to_diffusers_scheduler(times, diffusers.FlowMatchEulerDiscreteScheduler(shift=shift))
        torch.testing.assert_close(times_from_diffusers(scheduler), times, rtol=0, atol=1e-6)
        y = x0
        with torch.no_grad():
            for step in scheduler.timesteps:
                y = scheduler.step(pipe.unet(y, step, class_labels=label).sample, step, y).prev_sample
        torch.testing.assert_close(y, solve(field, x0, times, class_labels=label), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_pipeline_called_with_sigmas(shift: float, generator: torch.Generator) -> None:
    """Stable Diffusion 3's pipeline, tiny and with random weights: ``pipe(..., sigmas=...)`` ends where solve does."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers", reason="diffusers' class of this pipeline needs transformers")
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=12,
        pos_embed_max_size=8,
    ).requires_grad_(False)  # fmt: skip
    for p in transformer.parameters():
        torch.nn.init.normal_(p, std=0.2)
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), vae=None,
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    field = from_diffusers(pipe)
    words, pooled = torch.randn(3, 5, 16, generator=generator), torch.randn(3, 12, generator=generator)
    x0 = torch.randn(3, 4, 8, 8, generator=generator)
    condition = {"encoder_hidden_states": words, "pooled_projections": pooled}
    costs = step_costs(field, x0, 12, batch_size=2, **condition)
    times = optimal_times(costs, 4)
    assert not torch.equal(times, uniform_times(4))
    sigmas = (1 - times[:-1]) / (shift - (shift - 1) * (1 - times[:-1]))  # the scheduler shifts what it is given
    drawn = pipe(prompt_embeds=words, pooled_prompt_embeds=pooled, latents=x0, sigmas=sigmas.tolist(), output_type="latent",
                 num_inference_steps=4, guidance_scale=1.0, height=64, width=64).images  # fmt: skip
    torch.testing.assert_close(times_from_diffusers(pipe.scheduler), times, rtol=0, atol=1e-6)
    torch.testing.assert_close(drawn, solve(field, x0, times, **condition), rtol=1e-4, atol=1e-5)


def test_bad_input() -> None:
    costs: Any = random_table(5, 2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="n = 5: expected at most the 4 intervals"):
        optimal_times(costs, 5)
    with pytest.raises(ValueError, match="n must be >= 1"):
        optimal_times(costs, 0)
    with pytest.raises(ValueError, match=r"through holds 0\.123456, which is no anchor"):
        optimal_times(costs, 2, through=[0.123456])
    x0 = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="is stochastic"):
        endpoint_times(FIELD, x0, costs, 2, solver="ancestral")
    with pytest.raises(ValueError, match="end has shape"):
        endpoint_times(FIELD, x0, costs, 2, end=x0[:1])
