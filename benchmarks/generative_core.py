"""What the generative core costs, as ratios measured side by side in one process.

1. Sampling: ``solve`` against the bare network calls it makes (the goal is at most 1.05), and the samplers of
   flow_matching, torchdiffeq and diffusers against the same calls.
2. Training: one step of ``FlowMatching`` (loss, backward, optimizer) against the same step written with torchcfm and with
   flow_matching.

Arms alternate inside each repetition and medians of the paired ratios are printed, with the range of the middle half. Run:
``python benchmarks/generative_core.py``. Peers that are not installed are left out.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anabranch.generative import FlowMatching, solve, uniform_times

STEPS = 20


class ConvNet(nn.Module):
    """A small U-Net on 28 x 28 images: two levels, additive time embedding."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.leave = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = nn.functional.silu(self.enter(x) + self.time(t.expand(len(x))[:, None])[:, :, None, None])
        low = nn.functional.silu(self.middle(nn.functional.silu(self.down(h))))
        return self.leave(torch.cat([h, self.up(low)], 1))


class MLP(nn.Module):
    """A tiny network on the plane."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(torch.cat([x, t.expand(len(x))[:, None]], 1))


def measure(arms: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each arm, alternating, the order turned every repetition; two warm-ups."""
    names, seconds = list(arms), {name: [] for name in arms}
    for i in range(repetitions + 2):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            arms[name]()
            if i >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(title: str, seconds: dict[str, list[float]], base: str, calls: dict[str, int] | None = None) -> None:
    """Medians, and medians of the paired ratios to the base (per call where the arms make different numbers)."""
    print(f"\n{title}")
    for name, values in seconds.items():
        factor = 1.0 if calls is None else calls[base] / calls[name]
        ratios = sorted(factor * a / b for a, b in zip(values, seconds[base], strict=True))
        quarter = len(ratios) // 4
        print(
            f"  {name:32s} {1e3 * statistics.median(values):9.2f} ms   ratio {statistics.median(ratios):.3f}"
            f"   [{ratios[quarter]:.3f}, {ratios[-1 - quarter]:.3f}]"
        )


def sampling(title: str, net: nn.Module, x: Tensor, repetitions: int) -> None:
    """Solvers against as many bare calls."""
    times = uniform_times(STEPS)
    at = times.float().unbind()

    def bare() -> Tensor:
        for i in range(STEPS):
            out = net(x, at[i])
        return out

    arms: dict[str, Callable[[], object]] = {f"{STEPS} bare calls": bare}
    calls = {f"{STEPS} bare calls": STEPS}
    lengths = times.diff().tolist()

    def by_hand() -> Tensor:
        y = x
        for i in range(STEPS):
            y = torch.add(y, net(y, at[i]), alpha=lengths[i])
        return y

    arms["Euler written by hand"], calls["Euler written by hand"] = by_hand, STEPS
    generator = torch.Generator().manual_seed(0)
    for solver, evaluations in (("euler", 1), ("ab2", 1), ("heun", 2), ("rk4", 4), ("dpmpp_2m", 1), ("ancestral", 1)):
        name = f"solve {solver}"
        arms[name] = lambda solver=solver: solve(net, x, times, solver, generator=generator)  # type: ignore[misc]
        calls[name] = STEPS * evaluations
    for name, arm in peers(net, x, times).items():
        arms[name], calls[name] = arm, STEPS
    with torch.no_grad():
        report(f"{title}: time per network call", measure(arms, repetitions), f"{STEPS} bare calls", calls)


def peers(net: nn.Module, x: Tensor, times: Tensor) -> dict[str, Callable[[], object]]:
    """Euler by other libraries on the same times."""
    found: dict[str, Callable[[], object]] = {}
    grid = times.float()
    try:
        from flow_matching.solver import ODESolver

        solver = ODESolver(lambda x, t: net(x, t))
        found["flow_matching ODESolver euler"] = lambda: solver.sample(
            x_init=x, step_size=None, method="euler", time_grid=grid
        )
    except ImportError:
        pass
    try:
        from torchdiffeq import odeint

        found["torchdiffeq euler"] = lambda: odeint(lambda t, y: net(y, t), x, grid, method="euler")
    except ImportError:
        pass
    try:
        from diffusers import FlowMatchEulerDiscreteScheduler

        sigmas = (1 - grid[:-1]).tolist()

        def loop() -> Tensor:
            scheduler = FlowMatchEulerDiscreteScheduler()
            scheduler.set_timesteps(sigmas=sigmas)
            y = x
            for step, t in zip(scheduler.timesteps, grid, strict=False):
                y = scheduler.step(-net(y, t), step, y).prev_sample
            return y

        found["diffusers FlowMatchEuler loop"] = loop
    except ImportError:
        pass
    return found


def training(title: str, make: Callable[[], nn.Module], x1: Tensor, repetitions: int) -> None:
    """One training step, each library with a network and an optimizer of its own."""
    objective, generator = FlowMatching(), torch.Generator().manual_seed(0)

    def step(loss_of: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], object]:
        torch.manual_seed(0)
        net = make()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)

        def run() -> None:
            x0 = torch.randn(x1.shape, generator=generator)
            loss = loss_of(net, x0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return run

    arms = {"FlowMatching": step(lambda net, x0: objective(net, x0, x1, generator=generator).value)}
    try:
        from torchcfm import ConditionalFlowMatcher

        matcher = ConditionalFlowMatcher(sigma=0.0)

        def cfm(net: nn.Module, x0: Tensor) -> Tensor:
            t, x_t, velocity = matcher.sample_location_and_conditional_flow(x0, x1)
            return torch.mean((net(x_t, t) - velocity) ** 2)

        arms["torchcfm"] = step(cfm)
    except ImportError:
        pass
    try:
        from flow_matching.path import CondOTProbPath

        path: Any = CondOTProbPath()

        def meta(net: nn.Module, x0: Tensor) -> Tensor:
            sample = path.sample(x_0=x0, x_1=x1, t=torch.rand(len(x1)))
            return torch.pow(net(sample.x_t, sample.t) - sample.dx_t, 2).mean()

        arms["flow_matching"] = step(meta)
    except ImportError:
        pass
    report(f"{title}: training step", measure(arms, repetitions), "FlowMatching")


def main() -> None:
    """Runs all, about a minute on one core."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, points = torch.randn(32, 1, 28, 28, generator=generator), torch.randn(256, 2, generator=generator)
    print(f"torch {torch.__version__}, 1 thread; ratio below 1 is faster than the first line")
    sampling("conv net, 32 images of 28 x 28", ConvNet(), images, 9)
    sampling("tiny MLP, 256 points", MLP(), points, 200)
    training("conv net, 32 images of 28 x 28", ConvNet, images, 30)
    training("tiny MLP, 256 points", MLP, points, 400)


if __name__ == "__main__":
    main()
