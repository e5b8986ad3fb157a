"""A one-step student of a flow model, distilled from its prior alone: no training data."""

from dataclasses import dataclass
from datetime import date
from typing import Literal

from anabranch.lab import Claim, Paper


@dataclass(frozen=True)
class Settings:
    """What a run may change."""

    data: Literal["fashion-mnist", "digits"]  # images of the exact teacher; "digits" also keeps part B off the data set
    dim: int  # principal components
    components: int  # of the mixture
    width: int  # of the students of the exact teacher
    steps: int  # of FreeFlow on the exact teacher; the others get the same cost
    batch_size: int
    points: int  # noises on which errors are taken
    image_steps: int  # of FreeFlow on images; SplitMeanFlow gets the same cost
    image_batch: int
    images: int  # drawn by each sampler
    slow_steps: int  # of the teacher that one call is timed against
    guidance: float = 1.5  # scale inside the image teacher

    # constants of the comparison
    reference_steps = 10  # Euler steps of the guided teacher that stand for its samples
    image_lr = 3e-4  # of the image student, which starts from the teacher's weights

    def __post_init__(self) -> None:
        names = (
            "dim",
            "components",
            "width",
            "steps",
            "batch_size",
            "points",
            "image_steps",
            "image_batch",
            "images",
            "slow_steps",
        )
        for name in names:
            if getattr(self, name) < 2:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 2")
        if self.data not in ("fashion-mnist", "digits"):
            raise ValueError(f"data={self.data!r}: expected 'fashion-mnist' or 'digits'")
        if self.images < 20:
            raise ValueError(f"images={self.images}: expected at least 20, two of each class")
        if not self.guidance > 1:
            raise ValueError(f"guidance={self.guidance}: expected a scale above 1")


PAPER = Paper(
    slug="freeflow",
    title="Flow Map Distillation Without Data",
    authors=("Shangyuan Tong", "Nanye Ma", "Saining Xie", "Tommi Jaakkola"),
    published=date(2025, 11, 24),
    arxiv="2511.19428",
    repository="ShangyuanTong/FreeFlow",
    summary=(
        "Distilling a slow flow model into a one-call student usually feeds it noised data, which teaches the wrong "
        "process where the data set is not what the teacher makes. FreeFlow needs no data: starting from the prior, the "
        "student's own path must move with the teacher's velocity, and its outputs, noised again, must have the "
        "teacher's velocity field. For owners of an image, sound, molecule or simulation model who have the weights "
        "but not, or not fitting, training data."
    ),
    package="generative",
    extra="generative",
    parts=(
        "anabranch.generative:distill_without_data",
        "anabranch.generative:FreeFlow",
        "anabranch.generative:TrajectoryPrediction",
        "anabranch.generative:DistributionCorrection",
        "anabranch.generative:StudentAndCritic",
        "anabranch.generative:end_time_derivative",
        "anabranch.generative:best_of_n",
        "anabranch.generative:ResidualField",
        "anabranch.generative:UniformLabels",
        "anabranch.generative:check_teacher",
    ),
    data=("fashion-mnist",),
    example="""\
import torch
from anabranch.generative import GaussianSource, best_of_n, distill_without_data, jump, uniform_times
from anabranch.worlds import load_fashion_teacher

generator = torch.Generator().manual_seed(0)
teacher, source = load_fashion_teacher(), GaussianSource((1, 28, 28))  # any velocity network net(x, t, label)
student = distill_without_data(teacher, source, steps=2, batch_size=8, guidance=1.5, generator=generator).ema
label = torch.arange(4)
samples = jump(student, source.sample(4, generator=generator), uniform_times(1), label=label)  # one call
best = best_of_n(student, lambda x, label: x.mean((1, 2, 3)), source, 4, 3, generator=generator, label=label)
assert samples.shape == best.x0.shape == (4, 1, 28, 28)
""",
    scales={
        "smoke": Settings(
            data="digits",
            dim=4,
            components=3,
            width=16,
            steps=6,
            batch_size=16,
            points=100,
            image_steps=2,
            image_batch=4,
            images=20,
            slow_steps=2,
        ),
        "laptop": Settings(
            data="fashion-mnist",
            dim=16,
            components=20,
            width=128,
            steps=1000,
            batch_size=256,
            points=4096,
            image_steps=500,
            image_batch=32,
            images=500,
            slow_steps=64,
        ),
        "paper": Settings(
            data="fashion-mnist",
            dim=64,
            components=50,
            width=512,
            steps=100_000,
            batch_size=1024,
            points=20_000,
            image_steps=100_000,
            image_batch=256,
            images=10_000,
            slow_steps=64,
        ),
    },
    seconds={"smoke": 10, "laptop": 540, "paper": 100_000},
    claims=(
        Claim(
            name="one-step-256",
            says="One call comes close to the teacher's hundreds and beats students distilled with data.",
            published="FID 1.45 (teacher 1.37 with 434 calls; with data 2.85 at 1 call, 1.52 at 2)",
            where="Table 2; abstract",
            read_in="paper",
            published_setting="ImageNet 256x256, SiT-XL/2+REPA, FID-50K; pi-Flow, FACM",
            measure="frechet-over-best-with-data",
            at_most=1.1,
            setting_here="Fashion-MNIST mixture, one call over the better of MeanFlow and SplitMeanFlow with true data",
        ),
        Claim(
            name="one-step-512",
            says="The same holds at twice the resolution.",
            published="FID 1.49 (teacher 1.37 with 460 calls)",
            where="Table 2; abstract",
            read_in="paper",
            published_setting="ImageNet 512x512, SiT-XL/2+REPA, FID-50K",
        ),
        Claim(
            name="better-than-its-teacher",
            says="The student of a plainer teacher surpasses it.",
            published="FID 1.69 (teacher 2.06 with 250x2 calls)",
            where="Table 2",
            read_in="paper",
            published_setting="ImageNet 256x256, SiT-XL/2, FID-50K",
            measure="frechet-over-eight-steps",
            at_most=1.0,
            setting_here="Fashion-MNIST mixture, one call over eight Euler steps of the exact teacher",
        ),
        Claim(
            name="fast-training",
            says="About twenty epochs' worth of training already give a good student.",
            published="FID 1.84 after 100,000 iterations",
            where="text",
            read_in="paper",
            published_setting="ImageNet 256x256",
            measure="short-training-over-eight-steps",
            at_most=1.0,
            setting_here="Fashion-MNIST mixture, one call after a quarter of the steps over eight Euler steps of the teacher",
        ),
        Claim(
            name="both-signals-needed",
            says="Prediction alone drifts; correcting the outputs' distribution halves the FID when gradients are "
            "normalised.",
            published="FID 12.40 prediction only, 5.58 with correction (k = 1); 43.53 with it, not normalised (k = 0)",
            where="Table 1",
            read_in="paper",
            published_setting="ablation, DiT-B/2",
            measure="prediction-only-over-both",
            at_least=2.0,
            setting_here="Fashion-MNIST mixture, Frechet distance of prediction alone over both, equal cost",
        ),
        Claim(
            name="correct-at-high-noise",
            says="The correction must reach the highest noise levels.",
            published="FID 91.82 up to noise 0.6, 6.02 over the whole range, 5.63 leaning to high noise",
            where="Table 1",
            read_in="paper",
            published_setting="ablation, DiT-B/2",
            measure="low-noise-over-all-noise",
            at_least=2.0,
            setting_here="Fashion-MNIST mixture, correction at uniform noise up to 0.6 over up to 1",
        ),
        Claim(
            name="search-for-noise",
            says="Good noise found with the cheap student serves the teacher: fewer calls in all than plain guided "
            "sampling.",
            published="80 calls against 128",
            where="text",
            read_in="paper",
            published_setting="ImageNet; best of several draws",
            measure="search-gain",
            at_least=0.0,
            setting_here="Fashion-MNIST teacher, log probability of the class: best of 8, then 6 guided steps (20 calls), "
            "less 16 guided steps (32)",
        ),
        Claim(
            name="data-mismatch-hurts",
            says="Distillation with data gets worse the more the data are changed by augmentation.",
            published=None,
            where="figure; numbers not found",
            read_in="paper",
            published_setting="augmented training data; no data",
            measure="mismatch-order",
            at_least=0.9,
            setting_here="Fashion-MNIST mixture, rank correlation of MeanFlow's distance with the angle of its data, "
            "0 to 20 degrees",
        ),
    ),
)
