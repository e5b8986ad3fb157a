"""Tables of step costs: against steps taken one by one, against closed forms, and against each other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    SOLVERS,
    Coefficients,
    Counted,
    LinearMultistep,
    LinearPath,
    StepCosts,
    VPPath,
    change_path,
    merge_step_costs,
    solve,
    step_costs,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

MIXTURE = GaussianMixture(weights=[1, 2, 3], means=[[2.0, 0.0], [-1.0, 1.0], [0.0, -2.0]], covariances=0.1)
FIELD = MIXTURE.velocity()


@pytest.fixture
def x0(generator: torch.Generator) -> Tensor:
    return torch.randn(11, 2, generator=generator, dtype=torch.float64)


def smooth_field(dim: int, dtype: torch.dtype) -> Any:
    """A field whose velocity changes slowly: single steps over a hundredth cost 1e-7 of the whole."""
    matrix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / dim**0.5
    matrix = matrix.to(dtype)
    return lambda x, t: torch.tanh(x @ matrix) + 0.3 * torch.sin(torch.as_tensor(t, dtype=dtype))


def naive_euler(field: Any, x0: Tensor, grid: Tensor) -> Tensor:
    """The definition, one entry after the other, in float64 from the trajectory's own states."""
    fine = solve(field, x0, grid, return_trajectory=True)
    states, velocities = fine.states.double(), fine.velocities.double()
    table = torch.full((len(grid), len(grid)), torch.inf, dtype=torch.float64)
    for j in range(len(grid) - 1):
        for k in range(j + 1, len(grid)):
            error = states[k] - states[j] - (grid[k] - grid[j]) * velocities[j]
            table[j, k] = error.square().sum(1).mean()
    return table


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_euler_table_is_the_naive_one(dtype: torch.dtype, generator: torch.Generator) -> None:
    field, x0 = smooth_field(50, dtype), torch.randn(9, 50, generator=generator, dtype=dtype)
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), torch.rand(29, generator=generator, dtype=torch.float64).sort().values,
                      torch.ones(1, dtype=torch.float64)])  # fmt: skip
    found = step_costs(field, x0, grid, batch_size=4)
    exact = naive_euler(smooth_field(50, torch.float64), x0.double(), grid)
    steps = torch.isfinite(exact)
    assert torch.equal(torch.isfinite(found.costs), steps)
    assert bool((found.costs[steps] >= 0).all())
    assert found.costs.diagonal(1).abs().max() == 0
    big = steps & (exact > 1e-12 * exact[steps].max())
    big.diagonal(1).fill_(False)
    error = ((found.costs - exact) / exact)[big].abs().max()
    assert error < (1e-9 if dtype == torch.float64 else 1e-4)


def test_every_entry_of_an_image_sized_table_in_float32(generator: torch.Generator) -> None:
    """100 anchors, 784 numbers a state: nothing cancels, nothing is below zero; one and two intervals are as good."""
    x0 = torch.randn(6, 784, generator=generator)
    for anchors in (100, 2, 1):
        found = step_costs(smooth_field(784, torch.float32), x0, anchors)
        exact = naive_euler(smooth_field(784, torch.float64), x0.double(), uniform_times(anchors))
        steps = torch.isfinite(exact)
        assert bool((found.costs[steps] >= 0).all())
        assert found.costs.diagonal(1).abs().max() == 0
        off = steps.clone()
        off.diagonal(1).fill_(False)
        if bool(off.any()):
            assert float(((found.costs - exact) / exact)[off].abs().max()) < 1e-4


def test_squares_give_the_standard_error(x0: Tensor) -> None:
    """Against tables of single samples."""
    found = step_costs(FIELD, x0, 7, batch_size=3)
    alone = torch.stack([step_costs(FIELD, x0[i : i + 1], 7).costs for i in range(len(x0))])
    steps = torch.isfinite(found.costs)
    torch.testing.assert_close(found.costs[steps], alone.mean(0)[steps])
    torch.testing.assert_close(found.standard_error()[steps], alone.std(0)[steps] / len(x0) ** 0.5)


@pytest.mark.parametrize("solver", ["midpoint", "heun", "ralston", "rk4", "ddim", "euler"])
def test_a_method_without_memory_is_one_call_of_solve(solver: str, x0: Tensor) -> None:
    grid = uniform_times(6)
    found = step_costs(FIELD, x0, 6, solver=solver, reference="rk4", batch_size=4)
    states = solve(FIELD, x0, grid, "rk4", return_trajectory=True).states
    for j in range(6):
        for k in range(j + 1, 7):
            end = solve(FIELD, states[j], grid[[j, k]], solver)
            exact = float((end - states[k]).square().sum(1).mean())
            assert float(found.costs[j, k]) == pytest.approx(exact, rel=1e-9, abs=1e-22)


@pytest.mark.parametrize("path", [LinearPath(), VPPath()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("solver", ["ab2", "dpmpp_2m"])
def test_a_method_of_two_predictions_has_a_table_of_three_times(solver: str, path: Any, x0: Tensor) -> None:
    """Every entry against two steps of the solver itself, the first one's state replaced by the trajectory's."""
    field, points = MIXTURE.velocity(path), 6
    grid = uniform_times(points, start=0.01, end=0.98)
    found = step_costs(field, x0, grid, solver=solver, reference="rk4", path=path, batch_size=4)
    assert found.costs.ndim == 3
    assert found.squares is None
    fine = solve(field, x0, grid, "rk4", path=path, return_trajectory=True)
    cells = 0
    for k in range(1, points + 1):
        end = solve(field, x0, grid[[0, k]], solver, path=path)
        assert float(found.costs[0, 0, k]) == pytest.approx(
            float((end - fine.states[k]).square().sum(1).mean()), rel=1e-8
        )
        for j in range(1, k):
            for i in range(j):
                advance = SOLVERS[solver].prepare(grid[[i, j, k]], path, x0)
                advance(0, fine.states[i], lambda x, t, i=i: fine.velocities[i], x0.clone)
                end = advance(1, fine.states[j], lambda x, t, j=j: fine.velocities[j], x0.clone)[0]
                exact = float((end - fine.states[k]).square().sum(1).mean())
                assert float(found.costs[i, j, k]) == pytest.approx(exact, rel=1e-8, abs=1e-20)
                cells += 1
    assert int(torch.isfinite(found.costs).sum()) == cells + points


@pytest.mark.parametrize("solver", ["euler", "ab2", "dpmpp_2m", "ddim", "heun"])
def test_a_cost_of_ones_own_takes_the_same_steps(solver: str, x0: Tensor) -> None:
    own = step_costs(FIELD, x0, 5, solver=solver, cost=lambda a, b: (a - b).square().sum(1), batch_size=4)
    torch.testing.assert_close(own.costs, step_costs(FIELD, x0, 5, solver=solver).costs, rtol=1e-7, atol=1e-14)
    absolute = step_costs(FIELD, x0, 5, solver=solver, cost=lambda a, b: (a - b).abs().sum(1))
    assert not torch.allclose(absolute.costs, own.costs)
    assert own.squares is not None


def test_a_solver_object_of_ones_own(x0: Tensor) -> None:
    """A multistep method written by a user, and any object with prepare."""

    def half_euler(times: Tensor, path: Any) -> Coefficients:
        return Coefficients(torch.ones(len(times) - 1, dtype=torch.float64), 0.5 * times.diff()[:, None])

    class Own:
        stochastic = False
        reversible = True

        def prepare(self, times: Tensor, path: Any, like: Tensor) -> Any:
            return lambda i, x, evaluate, draw: (x + 0.5 * (times[i + 1] - times[i]) * evaluate(x, times[i]), None)

    a = step_costs(FIELD, x0, 5, solver=LinearMultistep(half_euler), reference="heun")
    b = step_costs(FIELD, x0, 5, solver=Own(), reference="heun")
    torch.testing.assert_close(a.costs, b.costs)


def test_network_calls(x0: Tensor) -> None:
    """J for methods of one call; (s - 1) J (J + 1) / 2 more for s stages."""
    for solver, calls in (("euler", 6), ("ab2", 6), ("dpmpp_2m", 6), ("heun", 12 + 21), ("rk4", 24 + 63)):
        counted = Counted(FIELD)
        step_costs(counted, x0, 6, solver=solver)
        assert counted.calls == calls, solver


def test_a_straight_field_costs_nothing(x0: Tensor) -> None:
    for solver in ("euler", "ab2", "heun", "ddim", "dpmpp_2m"):
        found = step_costs(lambda x, t: torch.ones_like(x) * 1.5, x0, 8, solver=solver).costs
        if solver != "dpmpp_2m":  # exact on lines of the path, not on all straight ones
            assert float(found[torch.isfinite(found)].max()) < 1e-24
    end = solve(lambda x, t: torch.ones_like(x) * 1.5, x0, uniform_times(1))
    torch.testing.assert_close(end, x0 + 1.5, rtol=0, atol=1e-15)  # and one step is exact
    to_the_mean = GaussianMixture(weights=[1.0], means=[[1.0, 2.0]], covariances=0.0)  # every path a line of the path
    found = step_costs(to_the_mean.velocity(), x0, uniform_times(8, end=0.9), solver="dpmpp_2m").costs
    assert float(found[torch.isfinite(found)].max()) < 1e-24


def test_a_field_of_time_alone_has_a_closed_form(x0: Tensor) -> None:
    n, rates = 10, torch.sin(2 * torch.pi * uniform_times(10)) + 0.4
    found = step_costs(lambda x, t: torch.ones_like(x) * (torch.sin(2 * torch.pi * torch.as_tensor(t)) + 0.4), x0, n)
    for j in range(n):
        for k in range(j + 1, n + 1):
            error = float(rates[j:k].sum() / n - (k - j) / n * rates[j])
            assert float(found.costs[j, k]) == pytest.approx(2 * error**2, abs=1e-12)


def test_conditions_are_split_with_the_batches(x0: Tensor) -> None:
    def field(x: Tensor, t: Any, label: Tensor, scale: float) -> Tensor:
        assert len(label) == len(x)
        return scale * label[:, None] * x * torch.as_tensor(t)

    label = torch.arange(11.0, dtype=torch.float64) / 11
    for solver in ("euler", "heun", "ab2"):
        whole = step_costs(field, x0, 5, solver=solver, label=label, scale=0.5)
        parts = step_costs(field, x0, 5, solver=solver, label=label, scale=0.5, batch_size=3)
        torch.testing.assert_close(whole.costs, parts.costs)
        merged = merge_step_costs([
            step_costs(field, x0[:4], 5, solver=solver, label=label[:4], scale=0.5),
            step_costs(field, x0[4:], 5, solver=solver, label=label[4:], scale=0.5),
        ])  # fmt: skip
        torch.testing.assert_close(whole.costs, merged.costs)
        assert merged.n == 11


def test_an_adaptive_reference(x0: Tensor) -> None:
    pytest.importorskip("torchdiffeq")
    fine = step_costs(FIELD, x0, 6, reference="rk4").costs
    adaptive = step_costs(FIELD, x0, 6, reference="dopri5").costs
    steps = torch.isfinite(fine)
    assert float((fine[steps] - adaptive[steps]).abs().max() / fine[steps].max()) < 0.02


def test_saved_and_loaded(x0: Tensor, tmp_path: Path) -> None:
    for solver in ("euler", "ab2"):
        table = step_costs(FIELD, x0, 5, solver=solver)
        again = StepCosts.load(table.save(tmp_path / "a table"))
        assert torch.equal(again.costs, table.costs)
        assert torch.equal(again.anchors, table.anchors)
        assert again.n == table.n
        assert (again.squares is None) == (table.squares is None)
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    with pytest.raises(ValueError, match=r'has no \["anchors", "costs", "n"\]'):
        StepCosts.load(tmp_path / "other.npz")


def test_the_path_of_the_field_is_used(x0: Tensor) -> None:
    """A field that says it lives on another path is stepped there."""
    vp = change_path(FIELD, LinearPath(), VPPath())
    grid = uniform_times(4, start=0.05, end=0.95)
    found = step_costs(vp, x0, grid, solver="ddim", reference="rk4")
    states = solve(vp, x0, grid, "rk4", path=VPPath(), return_trajectory=True).states
    end = solve(vp, states[1], grid[[1, 3]], "ddim", path=VPPath())
    assert float(found.costs[1, 3]) == pytest.approx(float((end - states[3]).square().sum(1).mean()), rel=1e-8)


def test_bad_input(x0: Tensor) -> None:
    for options, message in (
        ({"solver": "dopri5"}, "chooses its own steps"),
        ({"solver": "euler_maruyama"}, "is stochastic"),
        ({"reference": "ancestral"}, "reference 'ancestral' is stochastic"),
        ({"anchors": torch.tensor([0.0, 0.5, 0.5, 1.0])}, "strictly increasing"),
        ({"anchors": 0}, "n must be >= 1"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"cost": lambda a, b: (a - b).square()}, "expected one number a sample"),
        ({"cost": lambda a, b: (a - b).sum(1) - 1e3}, "expected costs >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            step_costs(FIELD, x0, **{"anchors": 4, **options})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the field returned"):
        step_costs(lambda x, t: x[:, :1], x0, 4)
    with pytest.raises(ValueError, match="rows of x0"):
        step_costs(FIELD, x0[:0], 4)
    anchors, costs = uniform_times(2), torch.ones(3, 3, dtype=torch.float64)
    for row, value in ((0, -1.0), (1, float("nan"))):
        bad = costs.clone()
        bad[row, 2] = value
        with pytest.raises(ValueError, match=rf"costs\[{row}, 2\]"):
            StepCosts(bad, anchors, 1)
    with pytest.raises(ValueError, match="expected two or three sides of 3 anchors"):
        StepCosts(torch.ones(3, 4, dtype=torch.float64), anchors, 1)
    with pytest.raises(ValueError, match="no error known"):
        StepCosts(costs, anchors, 5).standard_error()
    with pytest.raises(ValueError, match="tables is empty"):
        merge_step_costs([])
    other = StepCosts(costs, torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64), 1)
    with pytest.raises(ValueError, match=r"tables\[1\] has other anchors"):
        merge_step_costs([StepCosts(costs, anchors, 1), other])
