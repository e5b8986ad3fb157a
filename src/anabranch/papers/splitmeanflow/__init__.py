"""Average velocities learned from an algebraic identity: a jump over an interval is the sum of the jumps over its parts."""

from dataclasses import dataclass
from datetime import date
from typing import Literal

from anabranch.lab import Claim, Paper


@dataclass(frozen=True)
class Settings:
    """What a run may change."""

    oracle_steps: int  # training steps of each network on the mixture, batches of 256
    sweep_steps: int  # training steps for each flow ratio of the sweep
    points: int  # of the mixture, on which errors are taken
    student_seconds: float  # of training, the same for every image student
    student_steps: int  # most training steps of an image student
    batch_size: int  # of the image students; the consistency model takes four times as many
    images: int  # drawn by each sampler
    timing_pairs: int  # interleaved pairs of every timing
    guidance: float = 2.0  # scale inside the guided students and their teacher
    images_from: Literal["fashion-mnist", "teacher"] = "fashion-mnist"  # training images, and the reference of FFD

    def __post_init__(self) -> None:
        for name in ("oracle_steps", "sweep_steps", "points", "student_steps", "batch_size", "images", "timing_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not self.student_seconds > 0:
            raise ValueError(f"student_seconds={self.student_seconds}: expected seconds above 0")
        if self.images < 20:
            raise ValueError(f"images={self.images}: expected at least 20, two of each class")
        if not self.guidance > 1:
            raise ValueError(f"guidance={self.guidance}: expected a scale above 1")


PAPER = Paper(
    slug="splitmeanflow",
    title="SplitMeanFlow: Interval Splitting Consistency in Few-Step Generative Modeling",
    authors=(
        "Yi Guo",
        "Wei Wang",
        "Zhihang Yuan",
        "Rong Cao",
        "Kuan Chen",
        "Zhengyang Chen",
        "Yuanyuan Huo",
        "Yang Zhang",
        "Yuping Wang",
        "Shouda Liu",
        "Yuxuan Wang",
    ),
    published=date(2025, 7, 22),
    arxiv="2507.16884",
    summary=(
        "A network that knows the mean velocity over any stretch of time jumps from noise to data in one or two calls. "
        "MeanFlow trains it through a derivative, which costs a Jacobian-vector product in every training step; here "
        "two short jumps must add up to the long one, and ordinary forward passes are enough. For anyone who serves a "
        "flow-matching model of speech, images or robot actions and wants one to four steps on kernels or accelerators "
        "without forward-mode differentiation."
    ),
    package="generative",
    extra="generative",
    parts=(
        "anabranch.generative:SplitMeanFlow",
        "anabranch.generative:interval_split_target",
        "anabranch.generative:interval_split_residual",
        "anabranch.generative:FlowMapModel",
        "anabranch.generative:distill",
        "anabranch.generative:jump",
        "anabranch.generative:MeanFlow",
        "anabranch.generative:Shortcut",
        "anabranch.generative:Consistency",
    ),
    data=("fashion-mnist",),
    example="""\
import torch
from anabranch.generative import PixelUNet, SplitMeanFlow, distill, jump, uniform_times

generator = torch.Generator().manual_seed(0)
teacher = PixelUNet(classes=10)  # your trained velocity network: net(x, t, label)
images, labels = torch.rand(64, 1, 28, 28) * 2 - 1, torch.arange(64) % 10
student = distill(teacher, (images, labels), objective=SplitMeanFlow(), guidance=2.0, steps=3, generator=generator)
noise = torch.randn(4, 1, 28, 28, generator=generator)
samples = jump(student.ema, noise, uniform_times(2), label=torch.tensor([0, 1, 2, 3]))
assert samples.shape == (4, 1, 28, 28)
""",
    scales={
        "smoke": Settings(
            oracle_steps=10,
            sweep_steps=5,
            points=200,
            student_seconds=60.0,
            student_steps=2,
            batch_size=8,
            images=20,
            timing_pairs=3,
            images_from="teacher",
        ),
        "laptop": Settings(
            oracle_steps=1000,
            sweep_steps=400,
            points=4000,
            student_seconds=70.0,
            student_steps=5000,
            batch_size=16,
            images=2000,
            timing_pairs=9,
        ),
        "paper": Settings(
            oracle_steps=20_000,
            sweep_steps=10_000,
            points=20_000,
            student_seconds=7200.0,
            student_steps=100_000,
            batch_size=256,
            images=10_000,
            timing_pairs=15,
        ),
    },
    seconds={"smoke": 9, "laptop": 590, "paper": 50_000},
    claims=(
        Claim(
            name="two-steps-equal-ten",
            says="Two steps of the student are as good as ten of its teacher, with guidance and without.",
            measure="ffd-two-steps-over-ten",
            at_most=1.25,
            published="SIM 0.789, WER 0.0561, CMOS -0.01 (ten steps: 0.787, 0.0551, 0)",
            where="Table 1, from reading notes",
            read_in="secondary",
            published_setting="Seed-TTS fine-tuned to fixed speakers, token diffusion replaced; 10 steps with guidance",
            setting_here="Fashion-MNIST, feature distance to the training images, the worse of guidance 2 and no guidance",
        ),
        Claim(
            name="one-step-equals-ten",
            says="In zero-shot voice cloning a single unguided step matches ten guided ones.",
            measure="ffd-one-step-over-ten",
            at_most=1.25,
            published="SIM 0.685, WER 0.0286, CMOS 0 (ten steps: 0.686, 0.0286, 0)",
            where="Table 2, from reading notes",
            read_in="secondary",
            published_setting="Seed-TTS in-context; 10 flow-matching steps with guidance",
            setting_here="Fashion-MNIST, feature distance to the training images, one call of the student against ten "
            "guided steps of its teacher, guidance 2",
        ),
        Claim(
            name="sampling-compute",
            says="One call replaces the twenty that ten guided steps take: sampling is at least 15 times faster.",
            measure="sampling-speed-up",
            at_least=15.0,
            published="20x (20 network calls to 1)",
            where="abstract; the count of calls from section 5.3",
            read_in="abstract",
            published_setting="Seed-TTS, deployed in Doubao; 10 flow-matching steps with guidance",
            setting_here="Fashion-MNIST teacher of 0.55 M parameters, batch 128, seconds of sampling",
            kind="timing",
        ),
        Claim(
            name="meanflow-is-the-limit",
            says="When the split point moves into the end of the interval, the splitting identity turns into MeanFlow's "
            "differential one.",
            measure="limit-relative-error",
            at_most=1e-5,
            published="proof",
            where="abstract; section 4.3.1",
            read_in="abstract",
            published_setting="theory",
            setting_here="a random smooth network, float64, split 1e-6 of the interval",
            same_setting=True,
            kind="exact",
        ),
        Claim(
            name="no-jacobian-vector-product",
            says="Leaving out the Jacobian-vector product makes a training step at least 1.5 times cheaper than MeanFlow's.",
            measure="meanflow-step-over-split-step",
            at_least=1.5,
            published=None,
            where="section 4.3.2, without a figure in version 1",
            read_in="abstract",
            published_setting="theory; a later version reports MeanFlow at batch size 1 for want of memory on F5-TTS",
            setting_here="the U-Net on 28 x 28 images, batch 32, float32, half of the samples at the boundary",
            kind="timing",
        ),
        Claim(
            name="diffusion-is-the-bottleneck",
            says="At ten steps the diffusion module takes the larger part of the system's inference cost.",
            published="more than 50 %",
            where="section 5.2, from reading notes",
            read_in="secondary",
            published_setting="Seed-TTS",
            kind="timing",
        ),
        Claim(
            name="closer-than-meanflow",
            says="After as many steps, its one-step error to the exact flow is at most 0.8 times MeanFlow's.",
            measure="oracle-error-over-meanflow",
            at_most=0.8,
            origin="ours",
            setting_here="eight-mode mixture in the plane with exact teacher, RMSE of one-step end points",
            same_setting=True,
        ),
        Claim(
            name="classes-kept",
            says="Two guided steps lose at most 2 points of class accuracy to the teacher's ten guided ones.",
            measure="accuracy-lost",
            at_most=0.02,
            origin="ours",
            setting_here="Fashion-MNIST, shipped classifier",
            same_setting=True,
        ),
    ),
)
