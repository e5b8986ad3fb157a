"""Langevin dynamics: alone at one time, annealed over noise levels, and as the corrector of any solver.

The score it needs is linear in state and velocity: ``-(d_alpha x - alpha v) / (w sigma)``, finite wherever sigma is not 0.
The solvers here run through ``solve`` like any other.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import SingularTimeError, check_count, expand, time_dtype
from anabranch.generative.fields import VelocityField
from anabranch.generative.parametrization import convert
from anabranch.generative.paths import GaussianPath
from anabranch.generative.solvers import Draw, Evaluate, LinearMultistep, RungeKutta, Step, euler_maruyama


def langevin_step(
    x: Float[Tensor, "batch *shape"],
    score: Float[Tensor, "batch *shape"],
    z: Float[Tensor, "batch *shape"],
    step_size: float | Float[Tensor, ""] | Float[Tensor, " batch"],
) -> Float[Tensor, "batch *shape"]:
    """``x + step_size score + sqrt(2 step_size) z``: keeps the law whose score it is, up to O(step_size)."""
    size = expand(torch.as_tensor(step_size, dtype=time_dtype(x), device=x.device), x)
    return (x + size * score + torch.sqrt(2 * size) * z).to(x.dtype)


def corrector_step_size(
    score: Float[Tensor, "batch *shape"], z: Float[Tensor, "batch *shape"], ratio: float = 0.16
) -> Float[Tensor, ""]:
    """``2 (ratio |z| / |score|)^2`` with both norms averaged over the batch (Song et al., 2011.13456, algorithms 4 and 5).

    Averages as in the authors' code: one size for all samples, so that it depends on no single state.
    """
    mean = [part.reshape(len(part), -1).to(time_dtype(part)).norm(dim=1).mean() for part in (z, score)]
    return 2 * (ratio * mean[0] / mean[1]) ** 2


def langevin(
    field: VelocityField,
    x: Float[Tensor, "batch *shape"],
    t: float,
    path: GaussianPath,
    *,
    steps: int,
    generator: torch.Generator | None,
    step_size: float | None = None,
    ratio: float = 0.16,
    **condition: Any,
) -> Float[Tensor, "batch *shape"]:
    """``steps`` unadjusted Langevin steps at time ``t``, one call of the field each.

    Args:
        step_size: fixed; None takes :func:`corrector_step_size` with ``ratio`` at each step.

    Raises:
        ValueError: steps < 1, step_size <= 0. SingularTimeError: sigma is 0 at t.
    """
    check_count("steps", steps)
    if step_size is not None and not step_size > 0:
        raise ValueError(f"step_size must be > 0, got {step_size}")
    with torch.no_grad():
        for _ in range(steps):
            score = convert(field(x, t, **condition), x, t, path, "velocity", "score")
            z = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = langevin_step(x, score, z, corrector_step_size(score, z, ratio) if step_size is None else step_size)
    return x


def _scores(a: Tensor, path: GaussianPath) -> tuple[list[float], list[float]]:
    """The score's coefficients on state and velocity at the times ``a``.

    Raises:
        SingularTimeError: infinite at one of them.
    """
    divisor = path.wronskian(a) * path.sigma(a)
    on_state, on_velocity = -path.d_alpha(a) / divisor, path.alpha(a) / divisor
    finite = torch.isfinite(on_state) & torch.isfinite(on_velocity)
    if not bool(finite.all()):
        raise SingularTimeError(
            f"the score is singular at t = {float(a[~finite][0])} on {path}: start or end at another time"
        )
    return on_state.tolist(), on_velocity.tolist()


@dataclass(frozen=True)
class PredictorCorrector:
    """A solver's step after ``corrections`` Langevin steps at its beginning (Song et al., 2011.13456, appendix G).

    The corrector comes first, as in the authors' code: it repairs the state where the last step left it, and never needs
    the score at sigma = 0. Calls per step: ``corrections`` and the predictor's.

    Args:
        predictor: any solver object but Dopri5; default the reverse-time equation by Euler-Maruyama.
        ratio: signal-to-noise ratio r of the corrector's step, 0.16 in the paper.

    Raises:
        ValueError: corrections < 0 or ratio <= 0. TypeError: a predictor that is no fixed-step solver.
    """

    predictor: Any = dataclasses.field(default_factory=euler_maruyama)
    corrections: int = 1
    ratio: float = 0.16
    stochastic = True
    reversible = False

    def __post_init__(self) -> None:
        check_count("corrections", self.corrections, 0)
        if not self.ratio > 0:
            raise ValueError(f"ratio must be > 0, got {self.ratio}")
        if not hasattr(self.predictor, "prepare"):
            raise TypeError(f"predictor must have .prepare(times, path, like), got {type(self.predictor).__name__}")

    @property
    def calls_per_step(self) -> int:
        """Calls of the field in one step."""
        return self.corrections + calls_per_step(self.predictor)

    def prepare(self, times: Tensor, path: GaussianPath, like: Tensor) -> Step:
        advance = self.predictor.prepare(times, path, like)
        on_state, on_velocity = _scores(times[:-1], path) if self.corrections else ([], [])
        at = times.to(like.device, time_dtype(like)).unbind()

        def step(i: int, x: Tensor, evaluate: Evaluate, draw: Draw) -> tuple[Tensor, Tensor]:
            first = None
            for _ in range(self.corrections):
                velocity = evaluate(x, at[i])
                first = velocity if first is None else first
                score = torch.add(x * on_state[i], velocity, alpha=on_velocity[i])
                z = draw()
                x = langevin_step(x, score, z, corrector_step_size(score, z, self.ratio))
            x, velocity = advance(i, x, evaluate, draw)
            return x, velocity if first is None else first

        return step


@dataclass(frozen=True)
class AnnealedLangevin:
    """Langevin dynamics at each noise level in turn, nothing in between (Song and Ermon, 1907.05600, algorithm 1).

    At ``times[i]`` ``corrections`` steps of size ``step_size (sigma_i / sigma_last)^2 / 2`` (in ``x / alpha``), then the
    state moves to the next level unchanged but for ``alpha``. The last time is a level, too, unless its sigma is 0;
    ``sigma_last`` is the sigma of the last level used. Calls: ``corrections`` per level.

    Args:
        corrections: T of the paper.
        step_size: epsilon of the paper, for the last level.

    Raises:
        ValueError: corrections < 1 or step_size <= 0.
    """

    corrections: int = 100
    step_size: float = 2e-5
    stochastic = True
    reversible = False

    def __post_init__(self) -> None:
        check_count("corrections", self.corrections)
        if not self.step_size > 0:
            raise ValueError(f"step_size must be > 0, got {self.step_size}")

    def prepare(self, times: Tensor, path: GaussianPath, like: Tensor) -> Step:
        alpha, sigma = path.alpha(times), path.sigma(times)
        if not bool((alpha > 0).all()):
            raise SingularTimeError(f"annealed Langevin dynamics needs alpha > 0 at every time; it is 0 at 0 on {path}")
        levels = len(times) if float(sigma[-1]) > 0 else len(times) - 1
        on_state, on_velocity = _scores(times[:levels], path)
        ratio = (sigma / alpha)[:levels]
        sizes = (self.step_size / 2 * (ratio / ratio[-1]) ** 2 * alpha[:levels] ** 2).tolist()
        scales = (alpha[1:] / alpha[:-1]).tolist()
        at = times.to(like.device, time_dtype(like)).unbind()

        def relax(i: int, x: Tensor, evaluate: Evaluate, draw: Draw) -> tuple[Tensor, Tensor]:
            first = x
            for correction in range(self.corrections):
                velocity = evaluate(x, at[i])
                first = first if correction else velocity
                score = torch.add(x * on_state[i], velocity, alpha=on_velocity[i])
                x = langevin_step(x, score, draw(), sizes[i])
            return x, first

        def step(i: int, x: Tensor, evaluate: Evaluate, draw: Draw) -> tuple[Tensor, Tensor]:
            x, first = relax(i, x, evaluate, draw)
            x = x if scales[i] == 1 else x * scales[i]
            return (relax(i + 1, x, evaluate, draw)[0] if i + 2 == levels == len(times) else x), first

        return step


def calls_per_step(solver: Any) -> int:
    """Calls of the field that one step of ``solver`` makes: its own word, a tableau's stages, or 1 for multistep ones.

    Raises:
        TypeError: a solver that does not say.
    """
    if isinstance(solver, RungeKutta):
        return len(solver.weights)
    if isinstance(solver, LinearMultistep):
        return 1
    count = getattr(solver, "calls_per_step", None)
    if not isinstance(count, int):
        raise TypeError(f"{type(solver).__name__} does not say its calls_per_step")
    return count
