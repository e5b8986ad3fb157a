"""Solvers as data.

Every fixed-step solver here is one of two things:

- a :class:`RungeKutta` method: a Butcher tableau;
- a :class:`LinearMultistep` method: one network call a step, and the next state is a linear combination of the state,
  the last few predictions (velocity or denoised) and, for stochastic ones, noise. Its coefficients are a function of the
  path and the times. Euler, Adams-Bashforth, DDIM, DPM-Solver++, Euler-Maruyama and ancestral sampling are all of this
  kind; which prediction is combined, and how, is the whole difference between them.

All coefficients are computed once, in float64, before the first call, in forms that are finite at t = 0 (alpha = 0) and
t = 1 (sigma = 0); nothing is clipped. A new solver is a tableau, a coefficient function of ten lines, or any object with
:meth:`Solver.prepare`; ``solve`` takes it as it is.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from anabranch.generative._checks import SingularTimeError, time_dtype
from anabranch.generative.paths import GaussianPath

Evaluate = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[], Tensor]
Step = Callable[[int, Tensor, Evaluate, Draw], tuple[Tensor, Tensor]]
"""``step(i, x, evaluate, draw) -> (x at times[i + 1], velocity at (x, times[i]))``; draw gives standard normal noise."""


@runtime_checkable
class Solver(Protocol):
    """What ``solve`` needs of a fixed-step solver."""

    stochastic: bool
    """Whether it draws noise (then it only runs forwards)."""
    reversible: bool
    """Whether it can run from the data to the source (``solve(..., reverse=True)``)."""

    def prepare(self, times: Tensor, path: GaussianPath, like: Tensor) -> Step:
        """The stepping function for ``times`` (float64, CPU) and states like ``like``; keeps history between steps."""


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge-Kutta method by its Butcher tableau.

    Args:
        nodes: c, one per stage, the first 0.
        matrix: a, one row per stage after the first, of growing length.
        weights: b, one per stage.
        order: of convergence.

    Raises:
        ValueError: a tableau that is not explicit or not consistent (row sums of a equal c, b sums to 1).
    """

    nodes: tuple[float | int, ...]
    matrix: tuple[tuple[float | int, ...], ...]
    weights: tuple[float | int, ...]
    order: int
    stochastic = False
    reversible = True

    def __post_init__(self) -> None:
        stages = len(self.weights)
        if len(self.nodes) != stages or len(self.matrix) != stages - 1 or self.nodes[0] != 0:
            raise ValueError(f"a tableau of {stages} stages needs {stages} nodes (the first 0) and {stages - 1} rows")
        for i, row in enumerate(self.matrix):
            if len(row) != i + 1 or abs(sum(row) - self.nodes[i + 1]) > 1e-12:
                raise ValueError(f"row {i} of the matrix must have {i + 1} entries that sum to {self.nodes[i + 1]}")
        if abs(sum(self.weights) - 1) > 1e-12:
            raise ValueError(f"weights must sum to 1, got {sum(self.weights)}")

    def prepare(self, times: Tensor, path: GaussianPath, like: Tensor) -> Step:
        h = times.diff()
        steps = h.tolist()
        stage_times = times[:-1, None] + h[:, None] * torch.tensor(self.nodes, dtype=torch.float64)
        stage_times[:, [c == 1 for c in self.nodes]] = times[1:, None]  # exactly the next time, not a rounding of it
        at = [row.unbind() for row in stage_times.to(like.device, time_dtype(like)).unbind()]

        def combine(x: Tensor, step: float, coefficients: Sequence[float | int], stages: list[Tensor]) -> Tensor:
            for coefficient, stage in zip(coefficients, stages, strict=True):
                if coefficient:
                    x = torch.add(x, stage, alpha=step * coefficient)
            return x

        def advance(i: int, x: Tensor, evaluate: Evaluate, draw: Draw) -> tuple[Tensor, Tensor]:
            step, now = steps[i], at[i]
            stages = [evaluate(x, now[0])]
            for j, row in enumerate(self.matrix):
                stages.append(evaluate(combine(x, step, row, stages), now[j + 1]))
            return combine(x, step, self.weights, stages), stages[0]

        return advance


class Coefficients(NamedTuple):
    """``x_{i+1} = state[i] x_i + sum_j predictions[i, j] q_{i-j} + noise[i] z_i``, j = 0 the newest prediction."""

    state: Float64[Tensor, " steps"]
    predictions: Float64[Tensor, "steps history"]
    noise: Float64[Tensor, " steps"] | None = None


@dataclass(frozen=True)
class LinearMultistep:
    """A method that makes one call a step and combines linearly.

    Args:
        coefficients: ``coefficients(times, path) -> Coefficients``, times float64 ``[n + 1]``. Predictions that do not
            exist yet (j > i) must have coefficient 0.
        prediction: what is combined, and kept as history: "velocity" or "denoised".
        order: of convergence.
        stochastic: whether there is noise.
    """

    coefficients: Callable[[Tensor, GaussianPath], Coefficients]
    prediction: Literal["velocity", "denoised"] = "velocity"
    order: int = 1
    stochastic: bool = False

    @property
    def reversible(self) -> bool:
        return self.prediction == "velocity" and not self.stochastic

    def prepare(self, times: Tensor, path: GaussianPath, like: Tensor) -> Step:
        table = self.coefficients(times, path)
        history_length = table.predictions.shape[1]
        state, rows, noise = table.state, table.predictions, table.noise
        if self.prediction == "denoised":
            a = times[:-1]
            w = path.wronskian(a)
            on_state, on_velocity = -path.d_sigma(a) / w, path.sigma(a) / w
            if history_length == 1:  # nothing to remember: combine state and velocity at once
                state, rows = state + rows[:, 0] * on_state, rows * on_velocity[:, None]
        columns = [state[:, None], rows, *([] if noise is None else [noise[:, None]])]
        if self.prediction == "denoised":
            columns += [on_state[:, None], on_velocity[:, None]]
        finite = torch.isfinite(torch.cat(columns, 1)).all(1).tolist()
        if not all(finite):
            step = finite.index(False)
            raise SingularTimeError(
                f"step {step} of this solver, from t = {float(times[step])} to {float(times[step + 1])}, is singular on "
                f"{path}: start or end at another time"
            )
        at = times.to(like.device, time_dtype(like)).unbind()
        scales, weights = state.tolist(), rows.tolist()
        noises = [0.0] * len(scales) if noise is None else noise.tolist()
        convert = self.prediction == "denoised" and history_length > 1
        if convert:
            from_state, from_velocity = on_state.tolist(), on_velocity.tolist()
        history: deque[Tensor] = deque(maxlen=history_length)

        def advance(i: int, x: Tensor, evaluate: Evaluate, draw: Draw) -> tuple[Tensor, Tensor]:
            velocity = evaluate(x, at[i])
            out = x if scales[i] == 1 else x * scales[i]
            if history_length == 1:
                out = torch.add(out, velocity, alpha=weights[i][0])
            else:
                if convert:
                    prediction = torch.add(x * from_state[i], velocity, alpha=from_velocity[i])
                else:
                    prediction = velocity
                history.appendleft(prediction)
                for coefficient, past in zip(weights[i], history):  # noqa: B905 (the history is still filling)
                    if coefficient:
                        out = torch.add(out, past, alpha=coefficient)
            return (torch.add(out, draw(), alpha=noises[i]) if noises[i] else out), velocity

        return advance


def _adams_bashforth_2(times: Tensor, path: GaussianPath) -> Coefficients:
    h = times.diff()
    ratio = torch.zeros_like(h)
    ratio[1:] = h[1:] / (2 * h[:-1])  # the first step is Euler's
    return Coefficients(torch.ones_like(h), torch.stack([h * (1 + ratio), -h * ratio], 1))


def _euler(times: Tensor, path: GaussianPath) -> Coefficients:
    h = times.diff()
    return Coefficients(torch.ones_like(h), h[:, None])


def _weights(times: Tensor, path: GaussianPath) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    alpha, sigma = path.alpha(times), path.sigma(times)
    return alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]


def _ddim(times: Tensor, path: GaussianPath) -> Coefficients:
    a, s, b, r = _weights(times, path)
    return Coefficients(r / s, (b - a * r / s)[:, None])


def dpmpp_2m(eta: float = 0.0) -> LinearMultistep:
    """DPM-Solver++(2M) (Lu et al., 2211.01095, algorithm 2, midpoint form); ``eta`` > 0 adds noise, 1 is its SDE form.

    With ``q = exp(-(lambda_b - lambda_a))``: ``x_b = (sigma_b / sigma_a) q^eta x + alpha_b (1 - q^(1 + eta)) D +
    sigma_b sqrt(1 - q^(2 eta)) z``, where D extrapolates the last two denoised predictions to the step's middle in
    lambda. The first step, one next to an infinite lambda, and the last to sigma = 0 use the newest prediction alone.
    """
    if not eta >= 0:
        raise ValueError(f"eta must be >= 0, got {eta}")

    def coefficients(times: Tensor, path: GaussianPath) -> Coefficients:
        a, s, b, r = _weights(times, path)
        q = a * r / (b * s)
        lam = path.log_snr_half(times)
        extrapolation = torch.zeros_like(q)
        inner = torch.isfinite(lam[:-2]) & torch.isfinite(lam[2:])
        extrapolation[1:] = torch.where(inner, (lam[2:] - lam[1:-1]) / (lam[1:-1] - lam[:-2]) / 2, 0.0)
        gain = b * (1 - q ** (1 + eta))
        return Coefficients(
            r / s * q**eta,
            torch.stack([gain * (1 + extrapolation), -gain * extrapolation], 1),
            r * torch.sqrt(1 - q ** (2 * eta)) if eta else None,
        )

    return LinearMultistep(coefficients, "denoised", order=2 if not eta else 1, stochastic=eta > 0)


def euler_maruyama(noise: float = 1.0) -> LinearMultistep:
    """``dx = [v + eta^2 / 2 score] dt + eta dW`` with ``eta^2 = 2 noise sigma w``, the same marginals for every noise.

    The score is linear in state and velocity, and this choice cancels its division by sigma: the step is
    ``x (1 - h noise d_alpha) + h (1 + noise alpha) v + sqrt(2 noise sigma w h) z``, finite at both ends (ours).
    """
    if not noise >= 0:
        raise ValueError(f"noise must be >= 0, got {noise}")

    def coefficients(times: Tensor, path: GaussianPath) -> Coefficients:
        a, h = times[:-1], times.diff()
        return Coefficients(
            1 - noise * h * path.d_alpha(a),
            (h * (1 + noise * path.alpha(a)))[:, None],
            torch.sqrt(2 * noise * path.sigma_wronskian(a) * h) if noise else None,
        )

    return LinearMultistep(coefficients, "velocity", order=1, stochastic=noise > 0)


def ancestral(eta: float = 1.0) -> LinearMultistep:
    """The posterior of the Gaussian chain given the denoised prediction (Ho et al., 2006.11239; Song et al., 2010.02502,
    equation 16): eta = 1 is q(x_b | x_a, x1 = D), eta = 0 is DDIM.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")

    def coefficients(times: Tensor, path: GaussianPath) -> Coefficients:
        a, s, b, r = _weights(times, path)
        variance = eta**2 * r**2 / s**2 * (s**2 - (a / b) ** 2 * r**2)
        kept = torch.sqrt((r**2 - variance).clamp(min=0)) / s
        return Coefficients(kept, (b - a * kept)[:, None], torch.sqrt(variance) if eta else None)

    return LinearMultistep(coefficients, "denoised", order=1, stochastic=eta > 0)


@dataclass(frozen=True)
class Dopri5:
    """The adaptive Dormand-Prince method of torchdiffeq, for reference solutions; ``times`` are where states are kept.

    Args:
        rtol, atol: tolerances of a step.
        max_calls: evaluations after which :class:`CallsExceeded` is raised.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_calls: int = 10_000
    stochastic = False
    reversible = True


class CallsExceeded(RuntimeError):
    """An adaptive solver ran out of calls: ``state`` is the last one evaluated, at ``time``."""

    def __init__(self, calls: int, time: float, state: Tensor) -> None:
        super().__init__(
            f"the adaptive solver made {calls} calls and has reached only t = {time:.6g}: raise max_calls or the "
            "tolerances, or use a fixed-step solver; .state holds the last state evaluated"
        )
        self.calls, self.time, self.state = calls, time, state


SOLVERS: dict[str, Any] = {
    "euler": LinearMultistep(_euler),
    "midpoint": RungeKutta((0, 0.5), ((0.5,),), (0, 1), order=2),
    "heun": RungeKutta((0, 1), ((1,),), (0.5, 0.5), order=2),
    "ralston": RungeKutta((0, 2 / 3), ((2 / 3,),), (0.25, 0.75), order=2),
    "rk4": RungeKutta((0, 0.5, 0.5, 1), ((0.5,), (0, 0.5), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4),
    "ab2": LinearMultistep(_adams_bashforth_2, order=2),
    "ddim": LinearMultistep(_ddim, "denoised"),
    "dpmpp_2m": dpmpp_2m(),
    "dpmpp_2m_sde": dpmpp_2m(eta=1.0),
    "euler_maruyama": euler_maruyama(),
    "ancestral": ancestral(),
    "dopri5": Dopri5(),
}
"""The solvers by name."""


def get_solver(solver: Any) -> Any:
    """A solver by name, or the solver itself.

    Raises:
        ValueError: an unknown name. TypeError: no solver.
    """
    if isinstance(solver, str):
        if solver not in SOLVERS:
            raise ValueError(f"solver {solver!r} is unknown: one of {', '.join(SOLVERS)}, or a solver object")
        return SOLVERS[solver]
    if isinstance(solver, Dopri5) or hasattr(solver, "prepare"):
        return solver
    raise TypeError(f"solver must be a name or have .prepare(times, path, like), got {type(solver).__name__}")
