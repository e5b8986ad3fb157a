"""The shared core of diffusion, score and flow models as checkable statements: paths, predictions, solvers, guidance."""

from dataclasses import dataclass
from datetime import date
from typing import Literal

from anabranch.lab import Claim, Paper


@dataclass(frozen=True)
class Settings:
    """What a run may change."""

    points: int  # of the mixtures, on which solvers are compared
    calls: tuple[int, ...]  # numbers of network calls at which they are
    view_seconds: float  # of training, for the network of each view
    view_steps: int  # most training steps of each
    batch_size: int  # of the views' networks
    channels: int  # of the views' U-Nets at their first level
    images: int  # drawn by each sampler
    likelihood_images: int  # on which bits per dimension are taken
    timing_pairs: int  # interleaved pairs of the timing
    images_from: Literal["fashion-mnist", "teacher"] = "fashion-mnist"  # training images, and the reference of FFD

    def __post_init__(self) -> None:
        for name in ("points", "view_steps", "batch_size", "channels", "likelihood_images", "timing_pairs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.images < 20:
            raise ValueError(f"images={self.images}: expected at least 20, two of each class")
        if not {10, 20} <= set(self.calls) or min(self.calls) < 4:
            raise ValueError(f"calls={self.calls}: expected numbers from 4 on, 10 and 20 among them")
        if not self.view_seconds > 0:
            raise ValueError(f"view_seconds={self.view_seconds}: expected seconds above 0")


PAPER = Paper(
    slug="principles",
    title="The Principles of Diffusion Models",
    authors=("Chieh-Hsin Lai", "Yang Song", "Dongjun Kim", "Yuki Mitsufuji", "Stefano Ermon"),
    published=date(2025, 10, 23),
    arxiv="2510.21890",
    summary=(
        "A textbook of more than 400 pages that shows denoising models, score models and flow matching to be one thing: "
        "a velocity that changes with time and carries simple noise to data. Noise, clean data, score and velocity are "
        "four names for the same prediction, any differential-equation solver samples it, guidance steers it, and flow "
        "maps jump along it. For students who want to see each statement of generative modelling run, and for "
        "researchers who need one trusted set of paths, conversions and samplers."
    ),
    package="generative",
    extra="generative",
    parts=(
        "anabranch.generative:convert",
        "anabranch.generative:change_path",
        "anabranch.generative:translate",
        "anabranch.generative:solve",
        "anabranch.generative:solver_benchmark",
        "anabranch.generative:equivalence_report",
        "anabranch.generative:LinearSDE",
        "anabranch.generative:ClassifierFreeGuidance",
        "anabranch.generative:log_likelihood",
        "anabranch.generative:from_diffusers",
        "anabranch.worlds:GaussianMixture",
    ),
    data=("fashion-mnist",),
    example="""\
import torch
from anabranch.generative import LinearPath, TrigPath, change_path, solve, uniform_times
from anabranch.worlds import GaussianMixture

world = GaussianMixture(weights=[1, 2], means=[[2.0, 0.0], [-2.0, 0.0]], covariances=0.05)
noise = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
exact = solve(world.velocity(), noise, uniform_times(400), "rk4")
for solver, steps in (("euler", 20), ("midpoint", 10), ("ab2", 20), ("dpmpp_2m", 20)):  # 20 calls each
    print(solver, float((solve(world.velocity(), noise, uniform_times(steps), solver) - exact).norm(dim=1).median()))
moved = change_path(world.velocity(), LinearPath(), TrigPath())  # the same flow on another path
assert (solve(moved, noise, uniform_times(400), "rk4") - exact).abs().median() < 1e-6
""",
    scales={
        "smoke": Settings(
            points=64,
            calls=(10, 20),
            view_seconds=60.0,
            view_steps=2,
            batch_size=8,
            channels=8,
            images=20,
            likelihood_images=1,
            timing_pairs=3,
            images_from="teacher",
        ),
        "laptop": Settings(
            points=4096,
            calls=(5, 10, 20, 40, 80, 160, 320),
            view_seconds=35.0,
            view_steps=5000,
            batch_size=64,
            channels=24,
            images=1000,
            likelihood_images=32,
            timing_pairs=9,
        ),
        "paper": Settings(
            points=65_536,
            calls=(5, 10, 20, 40, 80, 160, 320, 640),
            view_seconds=14_400.0,
            view_steps=400_000,
            batch_size=512,
            channels=64,
            images=50_000,
            likelihood_images=1000,
            timing_pairs=15,
        ),
    },
    seconds={"smoke": 9, "laptop": 330, "paper": 100_000},
    claims=(
        Claim(
            name="four-predictions",
            says="Predictions of noise, clean data, score and velocity convert into each other exactly.",
            measure="worst-conversion-error",
            at_most=1e-10,
            published="identity",
            where="chapter 6 (from general knowledge of the field)",
            read_in="secondary",
            published_setting="theory",
            setting_here="every pair of five kinds, round trip, three paths, float64, relative",
            same_setting=True,
            kind="exact",
        ),
        Claim(
            name="closed-forms",
            says="Forward kernel and linear stochastic equation determine each other, the ancestral posterior and the terms "
            "of the likelihood bound have closed forms, guidance is Bayes' rule, and jumps of a flow map compose.",
            measure="worst-identity-error",
            at_most=1e-8,
            published="identities",
            where="sections 4.4 and 4.5, lemma 4.4.2, equations 4.4.7 and 4.4.8 (from notes), and later chapters",
            read_in="secondary",
            published_setting="theory",
            setting_here="eight-mode mixture in the plane, three paths, float64; the worst of all",
            same_setting=True,
            kind="exact",
        ),
        Claim(
            name="same-marginals",
            says="Stochastic equations and the probability-flow equation share every marginal: samples on the way are as "
            "near to exact draws as other exact draws are, within half.",
            measure="marginal-distance-over-floor",
            at_most=1.5,
            published="theorem",
            where="section 4.5, from notes",
            read_in="secondary",
            published_setting="theory",
            setting_here="eight-mode mixture, sliced Wasserstein distance, four strengths of noise, times 0.3, 0.6, 1; the worst",
            same_setting=True,
        ),
        Claim(
            name="conditional-targets-suffice",
            says="Regressing on conditional targets has the same minimiser as regressing on the marginal ones: the losses "
            "differ by one constant.",
            measure="conditional-gap-spread",
            at_most=1e-10,
            published="theorem",
            where="chapters 3 and 5 (5 from general knowledge of the field)",
            read_in="secondary",
            published_setting="theory",
            setting_here="four kinds of prediction, a two-mode target on the line, Gauss-Hermite quadrature, 20 predictors",
            same_setting=True,
            kind="exact",
        ),
        Claim(
            name="higher-order-solvers",
            says="Solvers of higher order reach the accuracy of first-order ones in a sixth of the calls.",
            measure="calls-euler-over-ab2",
            at_least=6.0,
            published=None,
            where="chapter on solvers (from general knowledge of the field)",
            read_in="secondary",
            published_setting="Heun, DPM-Solver, multistep; DDIM",
            setting_here="eight-mode mixture with exact velocity, calls for an RMSE of 0.03, Adams-Bashforth against Euler",
        ),
        Claim(
            name="higher-order-on-images",
            says="On a trained image model ten calls of a higher-order solver are at least as good as ten of Euler's.",
            measure="ffd-higher-order-over-euler",
            at_most=1.0,
            origin="ours",
            setting_here="Fashion-MNIST teacher, the better of ab2 and DPM-Solver++(2M), feature distance to the training images",
            same_setting=True,
        ),
        Claim(
            name="views-translate",
            says="A network trained under one view and sampled under another gives the same images, without training.",
            measure="translated-pixel-difference",
            at_most=1e-3,
            origin="ours",
            setting_here="networks that predict noise, clean image and velocity; linear against trigonometric path, from "
            "t = 0.02 on (a noise prediction is divided by alpha, 0 at t = 0), float32",
            same_setting=True,
            kind="exact",
        ),
        Claim(
            name="guidance-sharpens",
            says="Classifier-free guidance of scale 2 puts at least 3 more images in 100 into the class asked for.",
            measure="accuracy-gained-by-guidance",
            at_least=0.03,
            origin="ours",
            setting_here="Fashion-MNIST teacher and shipped classifier",
            same_setting=True,
        ),
    ),
)
