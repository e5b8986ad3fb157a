"""The best time steps of a flow model by dynamic programming, then a network straightened on exactly those steps."""

from dataclasses import dataclass
from datetime import date
from typing import Literal

from anabranch.lab import Claim, Paper


@dataclass(frozen=True)
class Settings:
    """What a run may change."""

    anchors: int  # steps of the fine trajectories, whose times are chosen from
    heun_anchors: int  # the same for the table of Heun's method, which costs its square in network calls
    trajectories: int  # behind each table of the teacher; four times as many on the mixture
    points: int  # of the mixture, on which errors are taken
    images: int  # drawn by each sampler
    sources: int  # trajectories that the students learn from
    student_steps: int  # training steps of each student
    batch_size: int  # of the students
    timing_pairs: int  # interleaved pairs of the timing
    images_from: Literal["fashion-mnist", "teacher"] = "fashion-mnist"  # the reference of FFD

    def __post_init__(self) -> None:
        for name, least in (
            ("anchors", 20),
            ("heun_anchors", 4),
            ("trajectories", 2),
            ("points", 1),
            ("images", 10),
            ("sources", 1),
            ("student_steps", 1),
            ("batch_size", 1),
            ("timing_pairs", 3),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")


PAPER = Paper(
    slug="boss",
    title="Bellman Optimal Step-size Straightening of Flow-Matching Models",
    authors=("Bao Nguyen", "Binh Nguyen", "Viet Anh Nguyen"),
    published=date(2023, 12, 27),
    arxiv="2312.16414",
    repository="nguyenngocbaocmt02/BOSS",
    summary=(
        "Given a trained flow-matching model and a budget of a few network calls, dynamic programming on a table of "
        "one-step errors chooses the time steps that cost the least, which improves any sampler for nothing. A short "
        "fine-tuning then teaches the network the chord of its own path on those steps only. For anyone who has to "
        "sample with four to ten calls and cannot afford to distil from scratch."
    ),
    package="generative",
    extra="generative",
    parts=(
        "anabranch.generative:step_costs",
        "anabranch.generative:merge_step_costs",
        "anabranch.generative:optimal_times",
        "anabranch.generative:optimal_frontier",
        "anabranch.generative:times_cost",
        "anabranch.generative:endpoint_times",
        "anabranch.generative:teacher_chords",
        "anabranch.generative:Straighten",
        "anabranch.generative:straighten",
        "anabranch.generative:add_low_rank",
        "anabranch.generative:to_diffusers_scheduler",
    ),
    data=("fashion-mnist",),
    example="""\
import torch
from anabranch.generative import PixelUNet, optimal_times, solve, step_costs, straighten, teacher_chords

generator = torch.Generator().manual_seed(0)
net = PixelUNet(classes=10)  # your trained velocity network: net(x, t, label)
noise, label = torch.randn(8, 1, 28, 28, generator=generator), torch.arange(8)
times = optimal_times(step_costs(net, noise, 20, label=label), 4)  # no training
chords = teacher_chords(net, noise, times, 20, label=label)
student = straighten(net, chords, steps=3, batch_size=4, generator=generator).ema  # four calls, straightened
samples = solve(student, noise, times, label=label)
assert len(times) == 5 and samples.shape == noise.shape
""",
    scales={
        "smoke": Settings(
            anchors=20,
            heun_anchors=4,
            trajectories=2,
            points=64,
            images=10,
            sources=4,
            student_steps=2,
            batch_size=4,
            timing_pairs=3,
            images_from="teacher",
        ),
        "laptop": Settings(
            anchors=100,
            heun_anchors=24,
            trajectories=64,
            points=1024,
            images=1000,
            sources=800,
            student_steps=900,
            batch_size=32,
            timing_pairs=4,
        ),
        "paper": Settings(
            anchors=100,
            heun_anchors=100,
            trajectories=100,
            points=20_000,
            images=50_000,
            sources=5000,
            student_steps=12_000,
            batch_size=15,
            timing_pairs=9,
        ),
    },
    seconds={"smoke": 8, "laptop": 540, "paper": 20_000},
    claims=(
        Claim(
            name="bellman-beats-uniform",
            says="At four calls the chosen steps give a lower FID than uniform ones, without training, on all five data "
            "sets.",
            published="CIFAR-10 51.95 to 47.57, CelebA-HQ 158.95 to 92.03, Church 106.94 to 80.91, AFHQ-Cat 68.95 to "
            "45.54, Bedroom 84.35 to 61.60",
            where="Table 1, from a third-party report",
            read_in="secondary",
            published_setting="official Rectified Flow checkpoints, Euler, 50k samples",
            measure="ffd-over-uniform-4",
            at_most=0.93,
            setting_here="Fashion-MNIST, the shipped teacher, Euler, FFD over that of uniform steps",
        ),
        Claim(
            name="gain-shrinks-with-steps",
            says="At eight calls the chosen steps still win on all five data sets.",
            published="CIFAR-10 16.82 to 15.74, CelebA-HQ 109.42 to 49.80, Church 34.74 to 33.22, AFHQ-Cat 56.96 to "
            "33.94, Bedroom 32.15 to 25.80",
            where="Table 1, from a third-party report",
            read_in="secondary",
            published_setting="official Rectified Flow checkpoints, Euler, 50k samples",
            measure="ffd-over-uniform-8",
            at_most=0.96,
            setting_here="Fashion-MNIST, the shipped teacher, Euler, FFD over that of uniform steps",
        ),
        Claim(
            name="straightening-beats-reflow",
            says="After the same number of fine-tuning steps it beats distilled and uniform reflow at 256 pixels and "
            "loses on CIFAR-10.",
            published="FID at 6 calls: CelebA-HQ 18.67 (34.56, 43.57), Church 17.43 (34.52, 40.45), AFHQ-Cat 26.10 "
            "(46.24, 51.24), Bedroom 18.45 (41.17, 45.13), CIFAR-10 4.80 (4.35, 4.33)",
            where="Table 2, from a third-party report",
            read_in="secondary",
            published_setting="12,000 fine-tuning steps; in brackets distilled reflow, uniform reflow",
            measure="excess-over-reflow",
            at_most=0.7,
            setting_here="Fashion-MNIST, the shipped teacher, 6 calls, FFD above the teacher's, over the better reflow's",
        ),
        Claim(
            name="search-is-cheap",
            says="The whole search for the steps takes about two minutes.",
            published="about 115 s",
            where="Table 3 and appendix B, from a third-party report",
            read_in="secondary",
            published_setting="256x256, one RTX A5000",
            measure="sampling-over-search",
            at_least=0.1,
            setting_here="Fashion-MNIST, the shipped teacher, seconds of 50 images at 100 steps over those of the search",
            kind="timing",
        ),
        Claim(
            name="steps-look-alike",
            says="The chosen steps are small at both ends and large in the middle.",
            published=".02 .05 .11 .17 .21 .20 .16 .08",
            where="Tables 4 and 5, from a third-party report",
            read_in="secondary",
            published_setting="CelebA-HQ, 8 steps",
            measure="middle-step-over-end-step",
            at_least=1.2,
            setting_here="Fashion-MNIST, the shipped teacher, 8 steps, smallest of the middle four over the larger end",
        ),
        Claim(
            name="steps-transfer",
            says="Steps chosen on one data set still beat uniform ones on another.",
            published="FID 132.04 (own steps 92.03, uniform 158.95)",
            where="Table 6, from a third-party report",
            read_in="secondary",
            published_setting="LSUN Church's steps on CelebA-HQ, 4 calls",
            measure="ffd-over-uniform-transferred-from-mixture-in-the-plane",
            at_most=1.0,
            setting_here="Fashion-MNIST, the shipped teacher, steps of the eight-mode mixture, FFD at 4 calls over uniform",
        ),
        Claim(
            name="low-rank-is-enough",
            says="Tuning a fiftieth of the parameters comes near the quality of tuning them all.",
            published="FID 36.70 with 2.02 % (all: 33.86)",
            where="Table 8, from a third-party report",
            read_in="secondary",
            published_setting="CelebA-HQ, LoRA of rank 4, 175k steps",
            measure="ffd-low-rank-over-full",
            at_most=1.15,
            setting_here="Fashion-MNIST, the shipped teacher, 6 calls, rank 4, FFD over that of tuning all, as many steps",
        ),
        Claim(
            name="close-to-adaptive-solver",
            says="Twenty Bellman steps with Heun come within about one percent of an adaptive solver.",
            published="within about 1 %, equal at 50 steps",
            where="Fig. 4, from a third-party report",
            read_in="secondary",
            published_setting="Heun against RK45",
            measure="ffd-heun-over-adaptive",
            at_most=1.01,
            setting_here="Fashion-MNIST, the shipped teacher, 20 Heun steps, FFD over that of dopri5 at 1e-3",
        ),
    ),
)
