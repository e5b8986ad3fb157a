"""What chosen times cost and gain, as ratios measured side by side in one process.

1. The table: the form by one Gram matrix against the naive double loop over the same trajectories, and the dynamic
   programme against a shortest path of networkx on the layered graph and against the paper's integer programme (scipy).
2. The gain on an exact flow (eight modes in the plane): error at the end against the true flow, chosen over uniform times,
   for Euler, Heun, AB2 and DPM-Solver++(2M), held-out noises; also with :func:`endpoint_times`.
3. How many trajectories a table needs: the cost, on a table of 1,024, of the times that a small one chooses.

Run: ``python benchmarks/optimal_times.py``. Medians of five alternating repetitions in part 1.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anabranch.generative import (
    StepCosts,
    endpoint_times,
    optimal_frontier,
    optimal_times,
    solve,
    step_costs,
    times_cost,
    uniform_times,
)
from anabranch.generative._step_cost_forms import euler_costs
from anabranch.worlds import GaussianMixture


def eight_modes() -> GaussianMixture:
    angle = 2 * math.pi * torch.arange(8) / 8
    return GaussianMixture(
        weights=torch.arange(1.0, 9.0) / 36, means=2 * torch.stack([angle.cos(), angle.sin()], 1), covariances=0.15**2
    )


def alternate(arms: dict[str, Callable[[], object]], repetitions: int = 5) -> dict[str, float]:
    """Median seconds of each arm, after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(repetitions + 1):
        for name, arm in arms.items():
            begin = time.perf_counter()
            arm()
            if i:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(title: str, seconds: dict[str, float], ours: str) -> None:
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:44s} {1e3 * value:10.2f} ms   x{value / seconds[ours]:.1f}")


def naive(grid: Tensor, states: Tensor, velocities: Tensor) -> Tensor:
    table = torch.full((len(grid), len(grid)), torch.inf, dtype=torch.float64)
    for j in range(len(grid) - 1):
        for k in range(j + 1, len(grid)):
            error = states[k] - states[j] - (grid[k] - grid[j]) * velocities[j]
            table[j, k] = error.square().flatten(1).sum(1).mean()
    return table


def tables() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(784, 784, generator=generator) / 28
    x0 = torch.randn(64, 784, generator=generator)
    grid = uniform_times(100)
    fine = solve(lambda x, t: torch.tanh(x @ matrix) * (1 + t), x0, grid, return_trajectory=True)
    arms: dict[str, Callable[[], object]] = {
        "one Gram matrix": lambda: euler_costs(grid, fine.velocities),
        "naive double loop": lambda: naive(grid, fine.states, fine.velocities),
    }
    report("table of 100 anchors, 64 trajectories of 784 numbers, float32", alternate(arms, 3), "one Gram matrix")


def programmes() -> None:
    draw = np.random.default_rng(0)
    costs = StepCosts(torch.from_numpy(draw.random((101, 101))), uniform_times(100), 1)
    three = StepCosts(torch.from_numpy(draw.random((101, 101, 101))), uniform_times(100), 1)
    arms: dict[str, Callable[[], object]] = {
        "ours, 8 steps": lambda: optimal_times(costs, 8),
        "ours, all of 1 to 15 steps": lambda: optimal_frontier(costs, 15),
        "ours, costs of three times, 8 steps": lambda: optimal_times(three, 8),
    }
    report("dynamic programme on 100 intervals", alternate(arms), "ours, 8 steps")
    small = StepCosts(costs.costs[:41, :41], uniform_times(40), 1)
    arms = {"ours": lambda: optimal_times(small, 6)}
    try:
        import networkx

        def shortest() -> Any:
            graph = networkx.DiGraph()
            graph.add_weighted_edges_from(
                ((m, j), (m + 1, k), float(small.costs[j, k]))
                for m in range(6)
                for j in range(41)
                for k in range(j + 1, 41)
            )
            return networkx.shortest_path(graph, (0, 0), (6, 40), weight="weight")

        arms["networkx, layered graph"] = shortest
    except ImportError:
        pass
    from scipy.optimize import LinearConstraint, milp

    edges = [(j, k) for j in range(41) for k in range(j + 1, 41)]
    balance, wanted = np.zeros((42, len(edges))), np.zeros(42)
    for column, (j, k) in enumerate(edges):
        balance[j, column], balance[k, column], balance[41, column] = 1, -1, 1
    wanted[0], wanted[40], wanted[41] = 1, -1, 6
    weights = [float(small.costs[edge]) for edge in edges]
    rule = LinearConstraint(balance, wanted, wanted)
    arms["scipy milp, the paper's programme"] = lambda: milp(
        weights, integrality=np.ones(len(edges)), bounds=(0, 1), constraints=rule
    )
    report("six of 40 intervals", alternate(arms, 3), "ours")


def gains() -> None:
    field = eight_modes().velocity()
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(256, 2, generator=generator).double(), torch.randn(1024, 2, generator=generator).double()
    end = solve(field, test, uniform_times(400), "rk4")
    train_end = solve(field, train, uniform_times(400), "rk4")
    print("\nRMSE at the end on held-out noises, eight modes in the plane: ratio to uniform times (RMSE of these)")
    euler = step_costs(field, train, 120, batch_size=256)
    for solver, anchors, numbers in (("euler", 120, (4, 6, 8, 10)), ("heun", 40, (2, 4, 5)), ("ab2", 60, (4, 6, 10)),
                                     ("dpmpp_2m", 60, (4, 6, 10))):  # fmt: skip

        def rmse(times: Tensor, solver: str = solver) -> float:
            return float((solve(field, test, times, solver) - end).square().sum(1).mean().sqrt())

        reference = None if solver == "euler" else "rk4"
        own = step_costs(field, train, anchors, solver=solver, reference=reference, batch_size=256)
        for n in numbers:
            base = rmse(uniform_times(n))
            direct = endpoint_times(field, train, own, n, solver=solver, end=train_end)
            print(
                f"  {solver:9s} {n:2d} steps   uniform ({base:.4f})   chosen {rmse(optimal_times(own, n)) / base:.3f}"
                f"   chosen for Euler {rmse(optimal_times(euler, n)) / base:.3f}   for the endpoint {rmse(direct) / base:.3f}"
                f"   table cost {times_cost(own, optimal_times(own, n)) / times_cost(own, uniform_times(n), snap=True):.3f}"
            )


def samples_needed() -> None:
    field = eight_modes().velocity()
    x0 = torch.randn(1024, 2, generator=torch.Generator().manual_seed(1)).double()
    whole = step_costs(field, x0, 100, batch_size=1024)
    print(
        "\ncost on a table of 1,024 of the times that a smaller one chooses, over the least: worst of 4, 6, 8 and 10 steps"
    )
    for n in (8, 16, 32, 64, 128):
        ratios = []
        for part in x0.split(n)[:8]:
            small = step_costs(field, part, 100)
            ratios.append(max(times_cost(whole, optimal_times(small, k)) / optimal_frontier(whole, k)[-1].cost
                              for k in (4, 6, 8, 10)))  # fmt: skip
        print(f"  N = {n:4d}   median of 8 draws {statistics.median(ratios):.3f}   worst {max(ratios):.3f}")


if __name__ == "__main__":
    torch.manual_seed(0)
    tables()
    programmes()
    gains()
    samples_needed()
