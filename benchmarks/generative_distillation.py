"""What a training step of each few-step objective costs, beside plain flow matching and beside a peer, as ratios in one process.

The U-Net on 28 x 28 images, forward and backward, float32, math attention (MeanFlow's derivative has no fused kernel). The
peer is flow_matching's (Meta) path with a loss written by hand: it has no flow maps, so it is the floor that every objective is
compared with. Arms alternate; medians of paired ratios and the middle half are printed. Run:
``python benchmarks/generative_distillation.py [--batch 32] [--repetitions 9]``.
"""

import argparse
from collections.abc import Callable

import torch
from generative_core import measure, report
from torch.nn.attention import SDPBackend, sdpa_kernel

from anabranch import generative as ge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    velocity = ge.PixelUNet(classes=10)
    flow_map = ge.FlowMapModel.from_velocity(velocity)
    x0, x1 = torch.randn(2, options.batch, 1, 28, 28)
    generator = torch.Generator().manual_seed(0)
    half = ge.TwoTimes(boundary_fraction=0.5)
    objectives = {
        "FlowMatching": (velocity, ge.FlowMatching()),
        "SplitMeanFlow": (flow_map, ge.SplitMeanFlow()),
        "SplitMeanFlow, guided teacher": (flow_map, ge.SplitMeanFlow(velocity=velocity)),
        "Shortcut": (flow_map, ge.Shortcut(flow_ratio=0.5)),
        "Consistency": (flow_map, ge.Consistency()),
        "MeanFlow": (flow_map, ge.MeanFlow(times=half)),
    }

    def arm(net: torch.nn.Module, objective: Callable[..., ge.Loss]) -> Callable[[], None]:
        def step() -> None:
            objective(net, x0, x1, generator=generator).value.backward()
            net.zero_grad(set_to_none=True)

        return step

    arms = {name: arm(*pair) for name, pair in objectives.items()}
    try:
        from flow_matching.path import CondOTProbPath

        path = CondOTProbPath()

        def peer() -> None:
            point = path.sample(t=torch.rand(options.batch, generator=generator), x_0=x0, x_1=x1)
            ((velocity(point.x_t, point.t) - point.dx_t) ** 2).mean().backward()
            velocity.zero_grad(set_to_none=True)

        arms["flow_matching (Meta)"] = peer
    except ImportError:
        pass
    with sdpa_kernel(SDPBackend.MATH):
        seconds = measure(arms, options.repetitions)
    base = "flow_matching (Meta)" if "flow_matching (Meta)" in arms else "FlowMatching"
    report(f"one training step, batch {options.batch}, {torch.get_num_threads()} threads", seconds, base)


if __name__ == "__main__":
    main()
