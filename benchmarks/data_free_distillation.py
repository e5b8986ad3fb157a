"""What distillation without data costs and what its student saves, as ratios measured side by side in one process.

No package of data-free flow-map distillation exists. Compared are:
1. a training step of the prediction with forward mode (the published way) and with differences, on the U-Net;
2. one call of a student with Euler steps of the teacher by ``solve`` and by flow_matching's (Meta) ``ODESolver``;
3. one-call error and distance to the exact end points of FreeFlow and of reflow (pairs by eight Heun steps, half of the
   budget) after equally many network passes on a mixture in 8 dimensions.

Arms alternate; medians of paired ratios. Run: ``python benchmarks/data_free_distillation.py [--steps 600]``.
"""

import argparse
from typing import Any

import torch
from generative_core import measure, report
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from anabranch import generative as ge
from anabranch.generative import metrics, uniform_times
from anabranch.worlds import GaussianMixture


def derivatives(batch: int, repetitions: int) -> None:
    net = ge.FlowMapModel.from_velocity(ge.PixelUNet(classes=10))
    x0 = torch.randn(batch, 1, 28, 28)

    def arm(derivative: Any) -> Any:
        def step() -> None:
            objective = ge.TrajectoryPrediction(lambda x, t: -x, derivative=derivative)
            objective(net, x0, generator=None).value.backward()
            net.zero_grad(set_to_none=True)

        return step

    with sdpa_kernel(SDPBackend.MATH):  # forward mode has no fused kernel
        seconds = measure({"differences": arm("central"), "forward mode": arm("jvp")}, repetitions)
    report(f"one prediction step of the U-Net, batch {batch}", seconds, "differences")


def sampling(batch: int, repetitions: int, steps: int) -> None:
    net = ge.PixelUNet(classes=10).eval()
    student = ge.FlowMapModel.from_velocity(net).eval()
    x0 = torch.randn(batch, 1, 28, 28)
    arms: dict[str, Any] = {
        "student, one call": lambda: ge.jump(student, x0, uniform_times(1)),
        f"solve, {steps} Euler steps": lambda: ge.solve(net, x0, uniform_times(steps)),
    }
    try:
        from flow_matching.solver import ODESolver
        from flow_matching.utils import ModelWrapper

        class Wrapped(ModelWrapper):
            def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
                return self.model(x, t)

        peer = ODESolver(Wrapped(net))
        arms[f"flow_matching (Meta), {steps} Euler steps"] = lambda: peer.sample(
            x_init=x0, step_size=1 / steps, method="euler"
        )
    except ImportError:
        pass
    seconds = measure(arms, repetitions)
    report(f"drawing {batch} images", seconds, "student, one call")
    for name, values in seconds.items():
        print(f"  {name}: {batch / sorted(values)[len(values) // 2]:.1f} images/s")


def quality(steps: int) -> None:
    draw = torch.Generator().manual_seed(0)
    world = GaussianMixture(
        weights=torch.arange(1.0, 11.0), means=1.5 * torch.randn(10, 8, generator=draw), covariances=0.2
    )
    teacher, source = world.velocity(), ge.GaussianSource((8,))
    x0 = source.sample(4096, generator=draw)
    exact = ge.solve(teacher, x0, uniform_times(64), "rk4")

    def net() -> nn.Module:
        torch.manual_seed(0)
        return ge.ResMLP(8, 96, 2)

    free = ge.distill_without_data(
        teacher, source, steps=steps, student=net(), critic=ge.ResidualField(teacher, net()), ema=0.99,
        correction_warmup=steps // 4, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    passes = 6.25 * steps * 256
    generator = torch.Generator().manual_seed(1)
    pairs = ge.teacher_pairs(teacher, source, round(passes / 2 / 16), uniform_times(8), generator=generator)
    once = ge.Reflow(pairs, 256, ge.FlowMatching(times=ge.Levels(1)))
    flow = ge.fit(net(), once, steps=round(passes / 2 / 3 / 256), ema=0.99, generator=generator)
    found = {
        "FreeFlow": ge.jump(free.ema, x0, uniform_times(1)),
        "reflow": ge.solve(flow.ema, x0, uniform_times(1)),
        **{f"Euler, {n} steps": ge.solve(teacher, x0, uniform_times(n)) for n in (1, 4, 8, 16)},
    }
    print(f"\n{passes / 1e6:.1f} M network passes of training, one call from the same 4,096 noises")
    for name, x in found.items():
        error = float((x - exact).square().mean().sqrt() / exact.std())
        print(f"  {name:<18} Frechet {metrics.frechet_distance(x, exact):.4f}   RMSE / std {error:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--sampling-steps", type=int, default=16)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    torch.manual_seed(0)
    derivatives(options.batch, options.repetitions)
    sampling(options.batch, options.repetitions, options.sampling_steps)
    quality(options.steps)


if __name__ == "__main__":
    main()
