"""Faster sampling of autoregressive normalizing flows: all tokens of a module updated at once until they settle."""

from dataclasses import dataclass
from datetime import date

from anabranch.lab import Claim, Paper


@dataclass(frozen=True)
class Settings:
    """What a run may change."""

    images: str  # "fashion-mnist", "generated", or the user's: a folder of pictures or an .npz
    patch: int  # side of the squares that are tokens, pixels; a second model has twice that
    width: int  # of the transformers
    blocks: int
    layers: int  # of each block's transformer
    noise: float  # standard deviation of the noise in training; images are in [-1, 1]
    train_seconds: float  # of the model; 0 takes random weights
    coarse_seconds: float  # of the second model
    batches: tuple[int, ...]  # batch sizes of the race, the first one is 1
    draws: int  # noises behind each timing and count at small batches
    samples: int  # images in each set of the comparison of quality
    tol: float  # largest residual of an answer; halved until the error is at most 1e-3

    def __post_init__(self) -> None:
        for name in ("patch", "width", "blocks", "layers", "tol"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number above 0")
        if not self.batches or self.batches[0] != 1 or min(self.batches) < 1:
            raise ValueError(f"batches={self.batches}: expected batch sizes, the first one 1")
        if self.draws < 2 or self.samples < 8:
            raise ValueError(f"draws={self.draws}, samples={self.samples}: expected at least 2 and 8")
        for name in ("noise", "train_seconds", "coarse_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 0")


PAPER = Paper(
    slug="gs-jacobi",
    title="Accelerate TarFlow Sampling with GS-Jacobi Iteration",
    authors=("Ben Liu", "Zhen Qin"),
    published=date(2025, 5, 19),
    arxiv="2505.12849",
    repository="encoreus/GS-Jacobi_for_TarFlow",
    summary=(
        "A TarFlow draws an image token by token, block after block, although its likelihood is one parallel pass. "
        "Written as a fixed-point equation, a block can be inverted by parallel Jacobi iterations over all tokens, or "
        "over modules of them one after another (Gauss-Seidel-Jacobi); the answer is exact after as many sweeps as "
        "there are tokens, and usually there after a few. Two diagnostics tell which blocks are hard and where to "
        "start. For anyone who samples autoregressive flows of images, densities or simulators and cannot wait."
    ),
    package="generative",
    extra="generative",
    data=("fashion-mnist",),
    parts=(
        "anabranch.generative:TarFlow",
        "anabranch.generative:NoisyLikelihood",
        "anabranch.generative:AutoregressiveMap",
        "anabranch.generative:SweepStrategy",
        "anabranch.generative:invert_autoregressive",
        "anabranch.generative:plan_sampling",
        "anabranch.generative:evaluation_seconds",
        "anabranch.generative:diagnose_blocks",
        "anabranch.generative:initial_guess_metric",
        "anabranch.generative:maps_from_zuko",
        "anabranch.generative:reference_sequential",
        "anabranch.generative:released_gs_jacobi",
    ),
    example="""\
import torch

from anabranch.generative import NoisyLikelihood, TarFlow, fit, invert_autoregressive, plan_sampling

generator = torch.Generator().manual_seed(0)
images = torch.rand(256, 1, 8, 8, generator=generator).cumsum(3) / 4 - 1
flow = TarFlow(side=8, patch=2, width=32, blocks=3, layers=1, head_size=16)
flow = fit(flow, NoisyLikelihood(0.1), images, steps=30, generator=generator, batch_size=32).ema
maps = flow.inverse_maps()
plan = plan_sampling(maps, [torch.randn(4, 16, 4, generator=generator)], tol=1e-4)
z, _ = flow(images[:4])
back, infos = invert_autoregressive(maps, z.detach(), plan.strategies, tol=1e-4)
assert (flow.unpatchify(back) - images[:4]).abs().max() < 1e-2
assert all(float(info.residual.max()) <= 1e-4 for info in infos)
new = flow.sample(4, strategies=plan.strategies, tol=1e-4, denoise=0.1, generator=generator)
""",
    scales={
        "smoke": Settings(
            images="generated",
            patch=2,
            width=16,
            blocks=2,
            layers=1,
            noise=0.1,
            train_seconds=0,
            coarse_seconds=0,
            batches=(1, 2),
            draws=2,
            samples=16,
            tol=2e-4,
        ),
        "laptop": Settings(
            images="fashion-mnist",
            patch=2,
            width=64,
            blocks=4,
            layers=2,
            noise=0.1,
            train_seconds=200,
            coarse_seconds=30,
            batches=(1, 4, 16, 64),
            draws=8,
            samples=800,
            tol=2e-4,
        ),
        "paper": Settings(
            images="imagenet-64.npz",
            patch=4,
            width=1024,
            blocks=8,
            layers=8,
            noise=0.05,
            train_seconds=1e6,
            coarse_seconds=1e5,
            batches=(1, 8, 64),
            draws=8,
            samples=50_000,
            tol=2e-4,
        ),
    },
    seconds={"smoke": 9, "laptop": 580, "paper": 2_000_000},
    claims=(
        Claim(
            name="speed-up-img128",
            says="Class-conditional images of 128 pixels are drawn several times faster at the same quality.",
            published="4.53x (133.19 to 29.41); FID 5.06 to 5.09",
            where="abstract; main table as in the authors' README, unit of time not stated",
            read_in="code",
            published_setting="ImageNet 128x128, 1,024 tokens, 8 A800; token by token with a key-value cache",
            kind="timing",
            measure="plan-over-reference",
            at_least=4.5,
            setting_here="Fashion-MNIST, one class-conditional image, 196 tokens, 2 CPU cores, error at most 1e-3; against the "
            "authors' sampler",
        ),
        Claim(
            name="speed-up-afhq",
            says="Animal faces of 256 pixels gain most.",
            published="5.32x (109.24 to 20.54); FID 13.60 to 13.73",
            where="abstract; main table as in the authors' README, unit of time not stated",
            read_in="code",
            published_setting="AFHQ 256x256, 1,024 tokens, 8 A800; token by token with a key-value cache",
            kind="timing",
            measure="plan-over-reference-guided",
            at_least=5.32,
            setting_here="Fashion-MNIST, one image with guidance 3.4 as there, 196 tokens, 2 CPU cores, error at most 1e-3; "
            "against the authors' sampler",
        ),
        Claim(
            name="speed-up-img64-uncond",
            says="Unconditional images of 64 pixels are drawn about three times faster.",
            published="2.96x (109.05 to 36.84); FID 14.67 to 14.80",
            where="abstract; main table as in the authors' README, unit of time not stated",
            read_in="code",
            published_setting="ImageNet 64x64, 1,024 tokens, 8 A800; token by token with a key-value cache",
            kind="timing",
            measure="plan-over-reference-unconditional",
            at_least=2.96,
            setting_here="Fashion-MNIST, one image without a label, 196 tokens, 2 CPU cores, error at most 1e-3; against the "
            "authors' sampler",
        ),
        Claim(
            name="speed-up-img64-cond",
            says="With a quarter of the tokens the gain is smallest.",
            published="2.51x (12.16 to 4.97); FID 4.42 to 4.42",
            where="abstract; main table as in the authors' README, unit of time not stated",
            read_in="code",
            published_setting="ImageNet 64x64, 256 tokens, 8 A800; token by token with a key-value cache",
            kind="timing",
            measure="plan-over-sequential",
            at_least=3.0,
            setting_here="Fashion-MNIST, one class-conditional image, 196 tokens, 2 CPU cores, error at most 1e-3; against our "
            "own, faster sequential sampler",
        ),
        Claim(
            name="few-blocks-are-tough",
            says="One or two blocks of a model hold most of the difficulty of its convergence.",
            published="56.57 % (128), 42.60 % (AFHQ), 50.71 + 33.62 % (64), 74.58 + 10.46 % (64, conditional)",
            where="table of the convergence ranking metric",
            read_in="paper",
            published_setting="four TarFlow models, 1,000 training images, spectral norm",
            measure="tough-block-share",
            at_least=42.6,
            setting_here="Fashion-MNIST, a model of 4 blocks, 256 test images, share of its toughest block in percent",
        ),
        Claim(
            name="the-plan-is-never-slower",
            says="Measuring every strategy block by block costs no more than 5 % against the best fixed one, at any batch size.",
            measure="best-fixed-over-plan",
            at_least=0.95,
            origin="ours",
            kind="timing",
            setting_here="batches of 1, 4, 16 and 64, the one where the plan does worst; nine fixed strategies, also sequential",
            same_setting=True,
        ),
        Claim(
            name="no-loss-of-quality",
            says="Images of the parallel solver are as near to sequential ones as a second set of sequential ones is.",
            measure="frechet-ratio",
            at_most=1.1,
            origin="ours",
            setting_here="Fashion-MNIST, sets of 800 images, FFD",
            same_setting=True,
        ),
        Claim(
            name="a-window-evaluates-fewer-tokens",
            says="A sliding window evaluates at most nine tenths of the tokens that eight fixed modules do, at equal error.",
            measure="tokens-window-over-modules",
            at_most=0.9,
            origin="ours",
            setting_here="Fashion-MNIST, single images, a window of 32 tokens, mean error at most 2e-4",
            same_setting=True,
        ),
    ),
)
