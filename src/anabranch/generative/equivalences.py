"""The statements of the core as measured errors: every equivalence between views, on a field or a law that is given.

For a field alone what does not need the truth is measured: conversions, exponential integrators, changes of path, the
chain's posterior. With its law (density, score and classifier known, as of ``worlds.GaussianMixture``) also what does: the
score, both transport equations, Bayes' rule of guidance, likelihood.
"""

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anabranch.generative._checks import expand
from anabranch.generative.fields import VelocityField
from anabranch.generative.flow_maps import flow_map_from_field
from anabranch.generative.guidance import ClassifierGuidance
from anabranch.generative.likelihood import log_likelihood
from anabranch.generative.parametrization import PREDICTIONS, convert
from anabranch.generative.path_changes import change_path
from anabranch.generative.paths import GaussianPath, LinearPath, TrigPath
from anabranch.generative.sde import LinearSDE
from anabranch.generative.solve import solve
from anabranch.generative.solvers import ancestral, dpmpp_2m
from anabranch.generative.splitting_objectives import interval_split_residual
from anabranch.generative.times import uniform_times
from anabranch.generative.transitions import forward_transition, posterior_kl, posterior_transition


@runtime_checkable
class ExactLaw(Protocol):
    """A data law whose noised density, score, velocity and classifier are known (``worlds.GaussianMixture`` is one)."""

    def velocity(self, path: Any = None, /) -> Any:
        """The field ``v(x, t, label=None)``."""

    def score(self, path: Any = None, /) -> Any:
        """The score ``s(x, t, label=None)``."""

    def log_density(self, x: Any, t: Any = 1.0, path: Any = None, /) -> Any:
        """Log density ``[B]`` of the state at t."""

    def class_log_prob(self, x: Any, t: Any, label: Any, path: Any = None, /) -> Any:
        """``log p(label | x_t)`` ``[B]``."""


class Equivalence(NamedTuple):
    """One statement and how far it is from exact here.

    Args:
        name: short.
        between: the two things that are one.
        error: largest absolute difference over the batch (relative to the largest value above 1 where it says so).
        says: the statement.
    """

    name: str
    between: tuple[str, str]
    error: float
    says: str


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / max(1.0, float(b.abs().max())))


def equivalence_report(
    field: VelocityField,
    x: Float[Tensor, "batch *shape"],
    *,
    path: GaussianPath | None = None,
    law: ExactLaw | None = None,
    label: Int[Tensor, " batch"] | None = None,
    steps: int = 20,
    fine_steps: int = 200,
) -> list[Equivalence]:
    """The error of each equivalence for ``field`` at the states ``x``; all are 0 up to rounding and quadrature.

    Cost: about ``70 steps`` calls of the field, most of them for the solved flow map; with ``law`` and at most 8 entries per
    sample also the likelihood (``4 fine_steps`` calls, one backward pass per entry each) and the transport equations
    (second derivatives).

    Args:
        x: samples of standard noise, float64 for errors near 1e-12.
        path: the field's; default its own ``path``, else linear.
        law: whose exact field this is; adds what needs the truth.
        label: classes for the guidance identity.

    Raises:
        ValueError: a path that covers neither end well enough to convert (sigma or alpha 0 inside).
    """
    own = path or getattr(field, "path", None)
    own = own if isinstance(own, GaussianPath) else LinearPath()
    found = list(_of_predictions(field, x, own))
    found += _of_paths(field, x, own, steps)
    found += _of_chain(own, x)
    found.append(_of_flow_maps(field, x, own, steps))
    if law is not None:
        found += _of_law(law, x, own, label)
        if x[0].numel() <= 8:
            found += _of_transport(law, x, own, fine_steps)
    return found


def _times(x: Tensor) -> Tensor:
    return torch.linspace(0.05, 0.95, len(x), dtype=x.dtype, device=x.device)


def _at(field: Callable[..., Tensor], x: Tensor, path: GaussianPath) -> tuple[Tensor, Tensor, Tensor]:
    """Times, states of a fitting size there, and the field's value."""
    t = _times(x)
    state = x * expand(torch.sqrt(path.alpha(t) ** 2 + path.sigma(t) ** 2), x)
    with torch.no_grad():
        return t, state, field(state, t)


def _of_predictions(field: VelocityField, x: Tensor, path: GaussianPath) -> Iterator[Equivalence]:
    t, state, velocity = _at(field, x, path)
    kinds = {kind: convert(velocity, state, t, path, "velocity", kind) for kind in PREDICTIONS}  # type: ignore[arg-type]
    for frm, to in permutations(PREDICTIONS, 2):
        if frm == "velocity":  # the kinds come from it: its row would compare a conversion with itself
            continue
        direct = convert(kinds[frm], state, t, path, frm, to)  # type: ignore[arg-type]
        says = f"{frm} and {to} are one prediction (relative)"
        yield Equivalence(f"{frm} to {to}", (frm, to), _gap(direct, kinds[to]), says)
    sde = LinearSDE.from_path(path)
    yield Equivalence(
        "probability flow",
        ("score", "velocity"),
        _gap(sde.velocity(state, t, kinds["score"]), velocity),
        "the velocity is -(f x - g^2 score / 2) of the linear stochastic equation (relative)",
    )
    rebuilt = sde.path()
    weights = [(path.alpha, rebuilt.alpha), (path.sigma, rebuilt.sigma)]
    yield Equivalence(
        "kernel and equation",
        ("path", "stochastic equation"),
        max(_gap(b(t), a(t)) for a, b in weights),
        "the path gives the equation and the equation, integrated, the path (relative)",
    )


def _of_paths(field: VelocityField, x: Tensor, path: GaussianPath, steps: int) -> Iterator[Equivalence]:
    linear, other = LinearPath(), TrigPath()
    on_linear = field if path == linear else change_path(field, path, linear)
    start, end = _inner(path, linear)
    times = uniform_times(steps, start=start, end=end)
    euler, ddim = (solve(on_linear, x, times, name, path=linear) for name in ("euler", "ddim"))
    yield Equivalence(
        "DDIM is Euler", ("ddim", "euler"), _gap(ddim, euler), "on the linear path DDIM is Euler (relative)"
    )
    silent = solve(on_linear, x, times, ancestral(0.0), path=linear)
    yield Equivalence(
        "ancestral without noise",
        ("ancestral", "ddim"),
        _gap(silent, ddim),
        "ancestral sampling at eta = 0 is DDIM (relative)",
    )
    # Equal signal-to-noise ratios: x_other = c x_linear, with c the ratio of the sigmas.
    matched = other.t_from_lambda(linear.log_snr_half(times))
    scale = other.sigma(matched) / linear.sigma(times)
    on_other = change_path(on_linear, linear, other)
    for name, solver in (("DDIM", "ddim"), ("DPM-Solver++", dpmpp_2m())):
        here = solve(on_linear, x, times, solver, path=linear)
        there = solve(on_other, float(scale[0]) * x, matched, solver, path=other) / float(scale[-1])
        says = f"{name} makes one trajectory on every path of equal signal-to-noise ratios (relative)"
        yield Equivalence(
            f"{name} does not see the path", ("linear path", "trigonometric path"), _gap(there, here), says
        )
    t, state, velocity = _at(field, x, path)
    back = change_path(on_other, other, path)
    with torch.no_grad():
        error = _gap(back(state, t), velocity)
    yield Equivalence(
        "change of path and back", ("path", "other path"), error, "changes of path undo each other (relative)"
    )


def _inner(path: GaussianPath, linear: LinearPath) -> tuple[float, float]:
    """Linear times whose signal-to-noise ratios the path covers, away from its ends."""
    ends = torch.tensor([0.02, 0.98], dtype=torch.float64)
    low, high = linear.t_from_lambda(path.log_snr_half(ends)).tolist()
    return max(low, 0.02), min(high, 0.98)


def _of_chain(path: GaussianPath, x: Tensor) -> Iterator[Equivalence]:
    """The posterior by Bayes' rule of precisions, and the divergence of two Gaussians, against their closed forms."""
    noisy = torch.linspace(0.05, 0.9, 18, dtype=torch.float64)
    clean = noisy + 0.05
    step, posterior = forward_transition(path, noisy, clean), posterior_transition(path, noisy, clean)
    prior = path.sigma(clean) ** 2
    precision = 1 / prior + step.scale**2 / step.variance
    bayes = (step.scale / step.variance / precision, path.alpha(clean) / prior / precision, 1 / precision)
    error = max(_gap(a, b) for a, b in zip(posterior, bayes, strict=True))
    says = "the ancestral step is the Gaussian chain's posterior (relative)"
    yield Equivalence("posterior step", ("ancestral step", "Bayes' rule"), error, says)
    table = torch.stack(
        [torch.stack(_ancestral_weights(path, float(a), float(b))) for a, b in zip(noisy, clean, strict=True)]
    )
    error = _gap(table, torch.stack(posterior, 1))
    yield Equivalence(
        "ancestral sampler", ("ancestral step", "posterior step"), error, "the solver takes that step (relative)"
    )
    guess = torch.roll(x, 1, 0)
    squares = (x - guess).reshape(len(x), -1).square().sum(1)
    errors = []
    for a, b in zip(noisy, clean, strict=True):
        exact = (
            0.5 * posterior_transition(path, a, b).on_data ** 2 / posterior_transition(path, a, b).variance * squares
        )
        errors.append(_gap(posterior_kl(path, a, b, x, guess), exact.to(x.dtype)))
    says = "the bound's terms are (SNR(t) - SNR(s)) |error|^2 / 2 (relative)"
    yield Equivalence("likelihood bound", ("bound's term", "denoising error"), max(errors), says)


def _ancestral_weights(path: GaussianPath, noisy: float, clean: float) -> list[Tensor]:
    table = ancestral(1.0).coefficients(torch.tensor([noisy, clean], dtype=torch.float64), path)
    assert table.noise is not None
    return [table.state[0], table.predictions[0, 0], table.noise[0] ** 2]


def _of_flow_maps(field: VelocityField, x: Tensor, path: GaussianPath, steps: int) -> Equivalence:
    u = flow_map_from_field(field, "rk4", 5 * steps)
    s, m, t = (torch.full((len(x),), value, dtype=x.dtype, device=x.device) for value in (0.1, 0.4, 0.8))
    with torch.no_grad():
        residual = interval_split_residual(u, x * float(path.sigma(s[0])), s, m, t)
    size = max(1.0, float(path.sigma(s[0])))
    says = "a map from s to t is the map to m and then to t (of the solved map; relative)"
    return Equivalence("semigroup", ("one jump", "two jumps"), float(residual.max()) / size, says)


def _of_law(law: ExactLaw, x: Tensor, path: GaussianPath, label: Tensor | None) -> Iterator[Equivalence]:
    t, state, velocity = _at(law.velocity(path), x, path)
    score = law.score(path)(state, t)
    converted = convert(velocity, state, t, path, "velocity", "score")
    says = "the score converted from the velocity is the law's (relative)"
    yield Equivalence("score of the law", ("velocity", "score of the law"), _gap(converted, score), says)
    point = state.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_density(point, t, path).sum(), point)
    yield Equivalence(
        "score is a gradient",
        ("score of the law", "density"),
        _gap(gradient, score),
        "the score is grad log p (relative)",
    )
    if label is not None:
        guided = ClassifierGuidance(
            law.velocity(path), lambda y, s, label: law.class_log_prob(y, s, label, path), 1.0, path
        )
        error = _gap(guided(state, t, label=label), law.velocity(path)(state, t, label=label))
        says = "guidance at scale 1 by the exact classifier is the conditional field (relative)"
        yield Equivalence("guidance is Bayes", ("guidance", "conditional field"), error, says)


def _of_transport(law: ExactLaw, x: Tensor, path: GaussianPath, fine_steps: int) -> Iterator[Equivalence]:
    t, state, _ = _at(law.velocity(path), x, path)
    for share, name, says in (
        (0.0, "continuity equation", "d/dt log p + div v + v . score = 0"),
        (1.0, "Fokker-Planck equation", "the same density solves the reverse-time stochastic equation's"),
    ):
        residual = transport_residual(law, state, t, path, share)
        yield Equivalence(name, ("density", "flow" if not share else "diffusion"), float(residual.abs().max()), says)
    # The flow may start from a law that is not the source (VPPath does): compare from a time where it is the law's own.
    start = 0.05
    times = uniform_times(fine_steps, start=start, end=0.95)
    source = _Marginal(law, path, start)
    held = x * float(path.sigma(torch.tensor(0.95, dtype=torch.float64))) + float(path.alpha(torch.tensor(0.95)))
    ours = log_likelihood(law.velocity(path), held, times, source)
    error = float((ours - law.log_density(held, 0.95, path)).abs().max())
    says = "the divergence integrated along the flow is the change of log density, in nats"
    yield Equivalence("likelihood", ("flow", "density"), error, says)


class _Marginal(NamedTuple):
    """The law's own state at a time, as a source."""

    law: ExactLaw
    path: GaussianPath
    t: float

    def log_prob(self, x: Tensor, /) -> Tensor:
        return self.law.log_density(x, self.t, self.path)


def transport_residual(
    law: ExactLaw,
    x: Float[Tensor, "batch *shape"],
    t: Float[Tensor, " batch"],
    path: GaussianPath,
    noise: float = 0.0,
) -> Float[Tensor, " batch"]:
    """What the Fokker-Planck equation of ``dx = [v + eta^2 / 2 score] dt + eta dW`` leaves over, in log density per time.

    ``d/dt log p + div b + b . grad log p - eta^2 / 2 (laplacian log p + |grad log p|^2)``, b the drift and
    ``eta^2 = noise g^2`` with the path's g: 0 for every ``noise`` if the law is the path's. ``noise`` 0 is the continuity
    equation, 1 the reverse-time equation. All derivatives by automatic differentiation of the density and of the fields.

    Cost: two backward passes per entry of a sample.
    """
    time, point = t.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    rate, score = torch.autograd.grad(law.log_density(point, time, path).sum(), (time, point), create_graph=True)
    eta = noise * LinearSDE.from_path(path).diffusion_squared(t) / 2

    def divergence(value: Tensor) -> Tensor:
        total, flat = torch.zeros_like(t), value.reshape(len(x), -1)
        for i in range(flat.shape[1]):
            (gradient,) = torch.autograd.grad(flat[:, i].sum(), point, retain_graph=True)
            total = total + gradient.reshape(len(x), -1)[:, i]
        return total

    drift = law.velocity(path)(point, t) + expand(eta, x) * law.score(path)(point, t)
    laplacian, div_drift = divergence(score), divergence(drift)
    drift, score = (part.detach().reshape(len(x), -1) for part in (drift, score))
    return rate.detach() + div_drift + (drift * score).sum(1) - eta * (laplacian + (score * score).sum(1))
