"""Better starting noise for image flow matching: match its norm to the data's, drop directions where no data lie."""

from dataclasses import dataclass
from datetime import date

from anabranch.lab import Claim, Paper

SCENARIOS = (
    "ot",
    "independent",
    "pruned-released",
    "pruned-mean",
    "pruned-sparsest",
    "aligned",
    "density-20",
    "density-200",
    "density-6000",
    "density-10000",
    "directional-loose",
    "directional-tight",
    "directional-paired",
)


@dataclass(frozen=True)
class Settings:
    """What a run may change."""

    runs: int  # of the simulation in the plane, each with a target of its own
    plane_steps: int  # training steps of each run, batches of 32
    plane_draws: int  # samples of each run
    scenarios: tuple[str, ...]  # of the simulation
    train_steps: int  # of each network on images, batches of 32
    images: int  # noises for each of them, half as many above 20 calls
    patch_steps: int  # of each network on colour patches, batches of 64
    patch_noises: int  # for each of them, half as many above 20 calls
    patches: int  # 16 x 16 patches to train on, and as many mirrored
    calls: tuple[int, ...]  # Euler steps, increasing
    images_from: str  # "fashion-mnist", or "teacher": the shipped model's own
    patches_from: str  # "photographs" of scikit-learn, "generated", or a folder of pictures

    def __post_init__(self) -> None:
        for name in ("runs", "plane_steps", "train_steps", "patch_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name, least in (("plane_draws", 40), ("images", 40), ("patch_noises", 40), ("patches", 400)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if len(self.calls) < 2 or list(self.calls) != sorted(set(self.calls)) or self.calls[0] < 1:
            raise ValueError(f"calls={self.calls}: expected at least two numbers of calls, increasing")
        unknown = [name for name in self.scenarios if name not in SCENARIOS]
        if unknown:
            raise ValueError(f"scenarios holds {unknown[0]!r}: expected some of {', '.join(SCENARIOS)}")
        needed = {"ot", "independent", "pruned-mean", "aligned", "directional-loose", "directional-tight"}
        lacking = needed - set(self.scenarios) or (set() if self.density else {"density-..."})
        if lacking:
            raise ValueError(f"scenarios={self.scenarios}: expected also {', '.join(sorted(lacking))}")
        if self.images_from not in ("fashion-mnist", "teacher"):
            raise ValueError(f"images_from={self.images_from!r}: expected 'fashion-mnist' or 'teacher'")

    @property
    def density(self) -> str:
        """The scenario whose learned source comes nearest to the data; empty without one."""
        learned = [name for name in self.scenarios if name.startswith("density-")]
        return max(learned, key=lambda name: int(name.split("-")[1]), default="")


PAPER = Paper(
    slug="sourcefm",
    title="Is There a Better Source Distribution than Gaussian? Exploring Source Distributions for Image Flow Matching",
    authors=("Junho Lee", "Kwanseok Kim", "Joonseok Lee"),
    published=date(2025, 12, 19),
    arxiv="2512.18184",
    repository="kwanseokk/SourceFM",
    summary=(
        "Flow matching may start from any prior noise, not only a Gaussian. A toy in two dimensions that imitates the "
        "geometry of many shows why the obvious choices, noise that resembles the images or points towards them, do "
        "harm; what helps is noise of the same mean norm as the data in training, and in sampling to reject draws that "
        "point where no data lie. For anyone who trains or serves an image flow model: the second trick works on a "
        "checkpoint that exists."
    ),
    package="generative",
    extra="generative",
    parts=(
        "anabranch.generative:norm_alignment",
        "anabranch.generative:NormAlignedSource",
        "anabranch.generative:NormAlignedField",
        "anabranch.generative:ChiSphereSource",
        "anabranch.generative:sparse_axes",
        "anabranch.generative:mean_direction_axes",
        "anabranch.generative:PrunedSource",
        "anabranch.generative:geometry_report",
        "anabranch.generative:VonMisesFisherSource",
        "anabranch.generative:CapSource",
        "anabranch.generative:OracleVMF",
        "anabranch.generative:GaussianMixtureSource",
        "anabranch.generative:DCTMaskSource",
        "anabranch.generative:LearnedSource",
        "anabranch.generative:simulate_plane",
        "anabranch.generative:normalized_wasserstein",
    ),
    data=("fashion-mnist",),
    example="""\
import torch
from anabranch.generative import GaussianSource, NormAlignedField, PrunedSource, norm_alignment, solve, sparse_axes, uniform_times
from anabranch.worlds import balanced_labels, load_fashion_teacher

teacher = load_fashion_teacher()  # your velocity network, trained from Gaussian noise: net(x, t, ...)
images = torch.rand(2000, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1  # your training images
base = GaussianSource((1, 28, 28))
source = PrunedSource(base, sparse_axes(images, threshold=0.05).sparsest(20))
noise = source.sample(8, generator=torch.Generator().manual_seed(1))
samples = solve(teacher, noise, uniform_times(5), label=balanced_labels(8))
assert bool(source.keeps(noise).all()) and 0.9 < source.acceptance_rate < 1
c = norm_alignment(images, base)  # the same model from noise of the data's norm, without training
moved = solve(NormAlignedField(teacher, c), c * noise, uniform_times(5), label=balanced_labels(8))
assert moved.shape == samples.shape
""",
    scales={
        "smoke": Settings(
            runs=1,
            plane_steps=10,
            plane_draws=60,
            scenarios=(
                "ot",
                "independent",
                "pruned-mean",
                "aligned",
                "density-20",
                "directional-loose",
                "directional-tight",
            ),
            train_steps=1,
            images=40,
            patch_steps=1,
            patch_noises=40,
            patches=400,
            calls=(1, 2),
            images_from="teacher",
            patches_from="generated",
        ),
        "laptop": Settings(
            runs=10,
            plane_steps=8000,
            plane_draws=1000,
            scenarios=SCENARIOS,
            train_steps=1600,
            images=1500,
            patch_steps=1000,
            patch_noises=4000,
            patches=30_000,
            calls=(5, 10, 20, 100),
            images_from="fashion-mnist",
            patches_from="photographs",
        ),
        "paper": Settings(
            runs=10,
            plane_steps=100_000,
            plane_draws=2000,
            scenarios=SCENARIOS,
            train_steps=200_000,
            images=50_000,
            patch_steps=200_000,
            patch_noises=150_000,
            patches=100_000,
            calls=(5, 10, 20, 100),
            images_from="fashion-mnist",
            patches_from="photographs",
        ),
    },
    seconds={"smoke": 10, "laptop": 530, "paper": 100_000},
    claims=(
        Claim(
            name="pruning-few-steps",
            says="Rejecting empty directions lowers the FID of a finished model at five calls.",
            published="19.80 to 17.24",
            where="table of the authors' README",
            read_in="code",
            published_setting="CIFAR-10, OT-CFM, Euler, 50k samples",
            measure="patches-pruned-over-plain-few-calls",
            at_most=0.98,
            setting_here="natural colour patches, 16 x 16 of two photographs, transport in the batch, Frechet distance of 64 "
            "principal scores, 5 Euler steps",
        ),
        Claim(
            name="pruning-many-steps",
            says="The gain remains at a hundred calls.",
            published="4.40 to 4.15",
            where="table of the authors' README",
            read_in="code",
            published_setting="CIFAR-10, OT-CFM, Euler, 50k samples",
            measure="patches-pruned-over-plain-many-calls",
            at_most=0.98,
            setting_here="natural colour patches, 16 x 16 of two photographs, transport in the batch, Frechet distance of 64 "
            "principal scores, 100 Euler steps",
        ),
        Claim(
            name="pruning-independent-coupling",
            says="The gain is larger where noise and images are paired at random.",
            published="34.49 to 28.78 at 5 calls, 4.35 to 3.97 at 100",
            where="table of the authors' README",
            read_in="code",
            published_setting="CIFAR-10, I-CFM, Euler, 50k samples",
            measure="patches-gain-independent-over-ot",
            at_most=0.98,
            setting_here="natural colour patches, the ratio pruned over plain with random pairs, over that with transport, "
            "geometric mean over 5, 10, 20 and 100 Euler steps",
        ),
        Claim(
            name="pruning-imagenet",
            says="It carries over to larger images of a thousand classes.",
            published="53.95 to 49.56 at 5 calls, 9.10 to 8.78 at 100",
            where="table of the authors' README",
            read_in="code",
            published_setting="ImageNet 64x64, OT-CFM",
        ),
        Claim(
            name="both-best-at-many-steps",
            says="Norm alignment with pruning is best at a hundred calls.",
            published="3.88 (OT-CFM 4.40), 3.64 (I-CFM 4.35)",
            where="table of the authors' README",
            read_in="code",
            published_setting="CIFAR-10, Euler, 50k samples",
            measure="aligned-pruned-over-gaussian-many-calls",
            at_most=0.92,
            setting_here="Fashion-MNIST, random pairs, FFD over that of the plain Gaussian after equal training, 100 Euler steps",
        ),
        Claim(
            name="alignment-hurts-few-steps",
            says="At five calls norm alignment is worse than the plain Gaussian.",
            published="21.52 (OT-CFM 19.80), 48.10 (I-CFM 34.49)",
            where="table of the authors' README",
            read_in="code",
            published_setting="CIFAR-10, with pruning, Euler, 50k samples",
            measure="aligned-pruned-over-gaussian-few-calls",
            at_least=1.0,
            setting_here="Fashion-MNIST, random pairs, FFD over that of the plain Gaussian after equal training, 5 Euler steps",
        ),
        Claim(
            name="density-approximation-hurts",
            says="The closer the source comes to the data's density, the worse the samples.",
            published=None,
            where="abstract and README; figures per method were not found",
            read_in="abstract",
            published_setting="DCT masks, Gaussian mixtures, FFJORD as sources",
            measure="plane-density-mode-kl",
            at_least=1.0,
            setting_here="simulation in the plane, KL of the modes' shares from a source trained 10,000 steps, over that "
            "from the circle, mean of ten runs",
        ),
        Claim(
            name="narrow-directions-hurt",
            says="A source concentrated on the data's directions is worse unless every draw is paired with its own "
            "target.",
            published=None,
            where="abstract and README; figures per method were not found",
            read_in="abstract",
            published_setting="von Mises-Fisher sources of growing concentration",
            measure="plane-tight-over-loose",
            at_least=1.0,
            setting_here="simulation in the plane, Wasserstein distance at equal shares of modes, cosine 0.98 over 0.9, mean of "
            "ten runs",
        ),
    ),
)
