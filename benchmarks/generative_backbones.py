"""Where bf16, channels-last and compilation pay on this processor: backbones of ``anabranch.generative``, ratios in one process.

One training step (forward, backward, clip, fused AdamW) and one forward, batch 128 of 28 x 28 images; the base is float32 as it
comes, and diffusers' ``UNet2DModel`` of as many parameters is the peer. Compilation takes half a minute a network: ``--compile``.
Run: ``python benchmarks/generative_backbones.py [--batch 128] [--compile]``.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from generative_core import measure, report
from torch import nn

from anabranch import generative as ge


def peer() -> nn.Module | None:
    """A U-Net of diffusers behind the same pixel-unshuffle, at about the same size."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return None

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = UNet2DModel(
                sample_size=14, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
                norm_num_groups=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=11, attention_head_dim=16,
            )  # fmt: skip

        def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            folded = nn.functional.pixel_unshuffle(x, 2)
            return nn.functional.pixel_shuffle(self.net(folded, 1000 * t, class_labels=label).sample, 2)

    return Folded()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    x, t = torch.randn(options.batch, 1, 28, 28), torch.rand(options.batch)
    label = torch.randint(10, (options.batch,))
    networks: dict[str, Any] = {"PixelUNet": ge.PixelUNet(classes=10), "DiT": ge.DiT(classes=10, depth=4)}
    other = peer()
    if other is not None:
        networks["UNet2DModel (diffusers)"] = other
    for name, net in networks.items():
        size = sum(p.numel() for p in net.parameters()) / 1e6
        variants: dict[str, tuple[Any, bool]] = {"float32": (net, False), "bf16": (net, True)}
        if name == "PixelUNet":
            last = ge.PixelUNet(classes=10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            variants |= {"float32, channels-last": (last, False), "bf16, channels-last": (last, True)}
        if options.compile:
            variants |= {"bf16, compiled": (torch.compile(net), True)}
        train, draw = {}, {}
        for variant, (model, bf16) in variants.items():
            train[variant], draw[variant] = arms(model, bf16, x, t, label)
        report(f"{name}, {size:.2f} M parameters: training step", measure(train, options.repetitions), "float32")
        report(f"{name}: forward", measure(draw, options.repetitions), "float32")


def arms(net: Any, bf16: bool, *batch: torch.Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, fused=True)

    def cast() -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with cast():
            loss = (net(*batch) - batch[0]).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    def draw() -> None:
        with torch.inference_mode(), cast():
            net(*batch)

    return train, draw


if __name__ == "__main__":
    main()
