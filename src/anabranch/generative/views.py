"""The views of the literature as data: what each fixes of path, prediction, objective and sampler, and translation between.

A view is trained by its ``objective`` on a raw network, and ``view.field(net)`` is the velocity field of that network on
``view.path``; every solver then samples it. Two views of one law differ by a change of path and of prediction, and nothing
else: :func:`anabranch.generative.translate`.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from anabranch.generative._checks import check_count
from anabranch.generative.denoising_objectives import DenoisingScoreMatching
from anabranch.generative.edm import EDMDenoising
from anabranch.generative.fields import VelocityField
from anabranch.generative.langevin import AnnealedLangevin, PredictorCorrector
from anabranch.generative.level_samplers import Levels
from anabranch.generative.objectives import FlowMatching
from anabranch.generative.parametrization import Parametrized, Prediction, convert
from anabranch.generative.paths import GaussianPath, LinearPath, ScheduledPath, VEPath, VPPath
from anabranch.generative.sde_paths import GeometricVEPath, SubVPPath
from anabranch.generative.time_samplers import TimeSampler, Uniform
from anabranch.generative.times import uniform_times


class View(ABC):
    """A way to train and sample: path, prediction, objective, and the sampler that came with it."""

    @property
    @abstractmethod
    def path(self) -> GaussianPath:
        """The probability path."""

    @property
    @abstractmethod
    def predicts(self) -> Prediction:
        """What the network gives."""

    @property
    @abstractmethod
    def objective(self) -> Any:
        """The training objective, called ``(net, x0, x1, *, generator, **condition) -> Loss`` on the raw network."""

    @property
    @abstractmethod
    def recommended_solver(self) -> Any:
        """The sampler of the view's own paper, as ``solve`` takes it."""

    @property
    def source_scale(self) -> float:
        """Standard deviation of the noise at t = 0: sampling starts from ``source_scale`` times N(0, I)."""
        return float(self.path.sigma(torch.zeros((), dtype=torch.float64)))

    def field(self, net: VelocityField, *, clamp: float | None = None) -> VelocityField:
        """The velocity field of a raw network, with ``.path``.

        Args:
            clamp: see :class:`Parametrized`.
        """
        return Parametrized(net, self.predicts, self.path, clamp)

    def ends(self, net: VelocityField, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        """Noise and denoised that the raw network implies at ``(x, t)``, one call: what no path enters but by its weights.

        Raises:
            SingularTimeError: the view's prediction says nothing of one of them at t.
        """
        value, kind = net(x, t, **condition), self.predicts
        noise = convert(value, x, t, self.path, kind, "noise")
        return noise, convert(value, x, t, self.path, kind, "denoised")

    def times(self, n: int) -> Float64[Tensor, " times"]:
        """``n`` steps of the view's own sampler.

        Raises:
            ValueError: n < 1.
        """
        return uniform_times(n)


@dataclass(frozen=True)
class DDPM(View):
    """Denoising diffusion: noise prediction on a table of levels (Ho et al., 2006.11239; Nichol and Dhariwal, 2102.09672).

    Args:
        steps: K entries of the table.
        schedule: "linear" betas from 1e-4 to 0.02 at K = 1000, scaled by 1000 / K otherwise; "cosine" of the second paper
            (s = 0.008, betas at most 0.999).

    Raises:
        ValueError: steps < 2, an unknown schedule, or so few steps that a linear beta reaches 1.
    """

    steps: int = 1000
    schedule: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 2)
        if self.schedule not in ("linear", "cosine"):
            raise ValueError(f"schedule must be 'linear' or 'cosine', got {self.schedule!r}")
        if self.schedule == "linear" and self.steps <= 20:
            raise ValueError(f"steps = {self.steps}: a linear schedule needs more than 20, or its last beta is 1")

    @cached_property
    def path(self) -> ScheduledPath:
        scale = 1000 / self.steps
        if self.schedule == "linear":
            betas = torch.linspace(1e-4 * scale, 0.02 * scale, self.steps, dtype=torch.float64)
        else:
            place = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
            kept = torch.cos((place + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
        return ScheduledPath(torch.cumprod(1 - betas, 0))

    @property
    def predicts(self) -> Prediction:
        return "noise"

    @property
    def objective(self) -> DenoisingScoreMatching:
        return DenoisingScoreMatching("noise", self.path, Levels(self.steps))

    @property
    def recommended_solver(self) -> str:
        return "ancestral"


@dataclass(frozen=True)
class NCSN(View):
    """Noise-conditional score network: the score at geometric levels, sampled by annealed Langevin dynamics.

    Song and Ermon, 1907.05600 (defaults of section 5: 10 levels from 1 to 0.01, 100 steps each, epsilon 2e-5).

    Args:
        sigma_min, sigma_max: last and first noise level, in units of the data.
        levels: their number, both ends counted.
    """

    sigma_min: float = 0.01
    sigma_max: float = 1.0
    levels: int = 10

    def __post_init__(self) -> None:
        check_count("levels", self.levels, 2)
        GeometricVEPath(self.sigma_min, self.sigma_max)  # checks both

    @property
    def path(self) -> GeometricVEPath:
        return GeometricVEPath(self.sigma_min, self.sigma_max)

    @property
    def predicts(self) -> Prediction:
        return "score"

    @property
    def objective(self) -> DenoisingScoreMatching:
        times = Levels(self.levels, self.levels - 1)
        return DenoisingScoreMatching("score", self.path, times, measured_in="noise")

    @property
    def recommended_solver(self) -> AnnealedLangevin:
        return AnnealedLangevin()

    def times(self, n: int | None = None) -> Float64[Tensor, " times"]:
        """The levels themselves (``n`` is their number less 1; another number takes other levels of the path)."""
        return uniform_times(self.levels - 1 if n is None else n)


@dataclass(frozen=True)
class ScoreSDE(View):
    """Score-based models by stochastic equations (Song et al., 2011.13456): "vp", "ve" or "subvp".

    The network predicts noise, the score times ``-sigma``, which is how the authors scale theirs.
    """

    kind: Literal["vp", "ve", "subvp"] = "vp"

    def __post_init__(self) -> None:
        if self.kind not in ("vp", "ve", "subvp"):
            raise ValueError(f"kind must be 'vp', 've' or 'subvp', got {self.kind!r}")

    @property
    def path(self) -> GaussianPath:
        return {"vp": VPPath(), "ve": GeometricVEPath(), "subvp": SubVPPath()}[self.kind]

    @property
    def predicts(self) -> Prediction:
        return "noise"

    @property
    def objective(self) -> DenoisingScoreMatching:
        return DenoisingScoreMatching("noise", self.path)

    @property
    def recommended_solver(self) -> PredictorCorrector:
        return PredictorCorrector()


@dataclass(frozen=True)
class EDM(View):
    """Preconditioned denoising with Heun's method (Karras et al., 2206.00364): uniform times are their levels.

    Args:
        sigma_min, sigma_max, rho: of the sampling levels.
        data_std: of the data's entries.
        mean, std: of the training levels' logarithm.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    data_std: float = 0.5
    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        VEPath(self.sigma_min, self.sigma_max, self.rho)  # checks the three

    @property
    def path(self) -> VEPath:
        return VEPath(self.sigma_min, self.sigma_max, self.rho)

    @property
    def predicts(self) -> Prediction:
        return "denoised"

    @property
    def objective(self) -> EDMDenoising:
        levels = (self.sigma_min, self.sigma_max)
        return EDMDenoising(self.path, self.data_std, self.mean, self.std, levels)

    @property
    def recommended_solver(self) -> str:
        return "heun"

    def field(self, net: VelocityField, *, clamp: float | None = None) -> VelocityField:
        """The preconditioned network as a velocity field; ``clamp`` is not needed: it is finite everywhere."""
        return self.objective.preconditioned(net)

    def ends(self, net: VelocityField, x: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor]:
        return self.objective.preconditioned(net).ends(x, t, **condition)


@dataclass(frozen=True)
class FlowMatchingView(View):
    """Velocity regression (Lipman et al., 2210.02747), linear path by default, sampled by the midpoint method.

    Args:
        interpolant: the path.
        training_times: law of the training times.
    """

    interpolant: GaussianPath = dataclasses.field(default_factory=LinearPath)
    training_times: TimeSampler = dataclasses.field(default_factory=Uniform)

    @property
    def path(self) -> GaussianPath:
        return self.interpolant

    @property
    def predicts(self) -> Prediction:
        return "velocity"

    @property
    def objective(self) -> FlowMatching:
        return FlowMatching(self.interpolant, self.training_times)

    @property
    def recommended_solver(self) -> str:
        return "midpoint"
