"""Solvers: update rules, orders of convergence, marginals of the stochastic ones, guards."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    SOLVERS,
    CallsExceeded,
    ClassifierFreeGuidance,
    Coefficients,
    Counted,
    Dopri5,
    GaussianPath,
    LinearMultistep,
    LinearPath,
    Parametrized,
    RungeKutta,
    SingularTimeError,
    TrigPath,
    VEPath,
    VPPath,
    ancestral,
    convert,
    dpmpp_2m,
    edm_times,
    euler_maruyama,
    log_snr_times,
    power_times,
    shifted_times,
    solve,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

ANGLES = torch.arange(8, dtype=torch.float64) * torch.pi / 4
EIGHT = GaussianMixture(
    weights=torch.arange(1, 9), means=2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1), covariances=0.15**2
)
ONE_STEP = [name for name, solver in SOLVERS.items() if not isinstance(solver, Dopri5)]


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(64, 2, generator=generator, dtype=torch.float64)


def test_rules_written_out(x: Tensor) -> None:
    """Each deterministic velocity rule, one uneven step after another, in the words of its definition."""
    v, times = EIGHT.velocity(), power_times(5, 1.4)
    grid = times.tolist()

    def run(rule: Callable[[Tensor, float, float, list], Tensor]) -> Tensor:
        state, past = x, []
        for a, b in pairwise(grid):
            state = rule(state, a, b, past)
        return state

    def ab2(y: Tensor, a: float, b: float, past: list) -> Tensor:
        h, now = b - a, v(y, a)
        past.append((h, now))
        if len(past) == 1:
            return y + h * now
        hp, p = past[-2]
        return y + h * ((1 + h / (2 * hp)) * now - h / (2 * hp) * p)

    def rk4(y: Tensor, a: float, b: float, past: list) -> Tensor:
        h = b - a
        k1 = v(y, a)
        k2 = v(y + h / 2 * k1, a + h / 2)
        k3 = v(y + h / 2 * k2, a + h / 2)
        k4 = v(y + h * k3, b)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    rules = {
        "euler": lambda y, a, b, past: y + (b - a) * v(y, a),
        "midpoint": lambda y, a, b, past: y + (b - a) * v(y + (b - a) / 2 * v(y, a), (a + b) / 2),
        "heun": lambda y, a, b, past: y + (b - a) / 2 * (v(y, a) + v(y + (b - a) * v(y, a), b)),
        "ralston": lambda y, a, b, past: (
            y + (b - a) * (v(y, a) / 4 + 3 / 4 * v(y + 2 / 3 * (b - a) * v(y, a), a + 2 / 3 * (b - a)))
        ),
        "ab2": ab2,
        "rk4": rk4,
    }
    for name, rule in rules.items():
        torch.testing.assert_close(solve(v, x, times, name), run(rule), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", [LinearPath(), VPPath(), TrigPath(), VEPath()])
def test_dpmpp_2m_written_out(path: GaussianPath, x: Tensor) -> None:
    v, times = EIGHT.velocity(path), power_times(6, 1.2)
    y, before = x, None
    for i in range(6):
        a, b = times[i], times[i + 1]
        la, lb = path.log_snr_half(a), path.log_snr_half(b)
        d = convert(v(y, a), y, a, path, "velocity", "denoised")
        if path.sigma(b) == 0:
            y = d
            continue
        mean, h = d, lb - la
        if before is not None and torch.isfinite(path.log_snr_half(times[i - 1])):
            r = (la - path.log_snr_half(times[i - 1])) / h
            mean = (1 + 1 / (2 * r)) * d - before / (2 * r)
        y, before = path.sigma(b) / path.sigma(a) * y + path.alpha(b) * (1 - torch.exp(-h)) * mean, d
    torch.testing.assert_close(solve(v, x, times, "dpmpp_2m"), y, rtol=1e-10, atol=1e-10)


def test_ddim_is_euler_on_the_linear_path(x: Tensor) -> None:
    for times in (uniform_times(20), shifted_times(7, 3.0)):
        difference = solve(EIGHT.velocity(), x, times, "ddim") - solve(EIGHT.velocity(), x, times, "euler")
        assert float(difference.abs().max()) <= 1e-12


def test_exponential_solvers_do_not_see_the_path(x: Tensor) -> None:
    """On times of equal signal-to-noise ratio, VP and linear trajectories are one trajectory, scaled."""
    linear, times = LinearPath(), uniform_times(12, start=0.02)
    for other in (VPPath(), TrigPath()):
        matched = other.t_from_lambda(linear.log_snr_half(times))
        matched[-1] = 1.0
        scale = other.sigma(matched[0]) / linear.sigma(times[0])
        for solver in ("ddim", "dpmpp_2m"):
            ours = solve(EIGHT.velocity(linear), x, times, solver)
            theirs = solve(EIGHT.velocity(other), scale * x, matched, solver)
            assert float((ours - theirs).abs().max()) <= 1e-9


def test_stochastic_solvers_without_noise_are_the_deterministic_ones(x: Tensor) -> None:
    v, times = EIGHT.velocity(), uniform_times(10)
    for silent, plain in ((ancestral(0.0), "ddim"), (dpmpp_2m(0.0), "dpmpp_2m"), (euler_maruyama(0.0), "euler")):
        torch.testing.assert_close(solve(v, x, times, silent), solve(v, x, times, plain), rtol=1e-12, atol=1e-12)


ORDERS = {
    "euler": (1.0, 0.15),
    "ddim": (1.0, 0.15),
    "midpoint": (2.0, 0.3),
    "heun": (2.0, 0.3),
    "ralston": (2.0, 0.3),
    "ab2": (2.0, 0.3),
    "rk4": (4.0, 0.5),
}


def test_orders_of_convergence_on_the_eight_modes() -> None:
    g = torch.Generator().manual_seed(0)
    # The median: the mean is dominated by the few trajectories near a separatrix.
    x, v = torch.randn(512, 2, generator=g, dtype=torch.float64), EIGHT.velocity()
    reference = solve(v, x, uniform_times(1000), "rk4")
    for name, (order, tolerance) in ORDERS.items():
        counts = (80, 160, 320, 640) if order <= 2 else (80, 160, 320)
        errors = [(solve(v, x, uniform_times(n), name) - reference).norm(dim=1).median().log() for n in counts]
        logs = torch.tensor(counts, dtype=torch.float64).log()
        slope = -float(torch.linalg.lstsq(torch.stack([logs, logs * 0 + 1], 1), torch.stack(errors)[:, None])[0][0])
        assert abs(slope - order) <= tolerance, (name, slope)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ab2"])
def test_second_order_on_the_log_snr_grid(solver: str, x: Tensor) -> None:
    """Away from the ends, where lambda is finite, DPM-Solver++(2M) is of second order."""
    path, v = LinearPath(), EIGHT.velocity()

    def grid(n: int) -> Tensor:
        return path.t_from_lambda(torch.linspace(-2, 3, n + 1, dtype=torch.float64))

    reference = solve(v, x, grid(800), "rk4")
    errors = [float((solve(v, x, grid(n), solver) - reference).norm(dim=1).median()) for n in (100, 400)]
    assert 1.6 <= torch.tensor(errors[0] / errors[1]).log2() / 2 <= 2.4


@pytest.mark.parametrize("path", [LinearPath(), VPPath(), TrigPath()])
@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_sde_keeps_mean_and_covariance(path: GaussianPath, noise: float) -> None:
    target = GaussianMixture(weights=[1.0], means=[[1.0, -0.5]], covariances=[[[0.5, 0.2], [0.2, 0.3]]])
    g, n = torch.Generator().manual_seed(1), 20_000
    zero = torch.zeros((), dtype=torch.float64)
    x = path.sigma(zero) * torch.randn(n, 2, generator=g, dtype=torch.float64)
    x = x + path.alpha(zero) * target.sample(n, generator=g)
    times = uniform_times(400)
    ends = solve(target.velocity(path), x, times, euler_maruyama(noise), generator=g)
    se = (target.covariance.diag() / n).sqrt()
    assert float(((ends.mean(0) - target.mean) / se).abs().max()) < 3
    centred = ends - target.mean
    products = centred[:, :, None] * centred[:, None]
    assert float(((products.mean(0) - target.covariance) / (products.var(0) / n).sqrt()).abs().max()) < 3


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_sde_moments_converge_exactly(noise: float) -> None:
    """For a Gaussian target the chain's moments obey a recursion: no sampling, error O(h)."""
    mean, variance, path = 0.7, 0.4, LinearPath()
    errors = []
    for n in (100, 200, 400):
        times = uniform_times(n)
        table = euler_maruyama(noise).coefficients(times, path)
        m, s2 = 0.0, 1.0
        for i in range(n):
            t = float(times[i])
            v_t = t * t * variance + (1 - t) ** 2
            slope = (t * variance - (1 - t)) / v_t  # v = mean + slope (x - t mean)
            a, b = float(table.state[i]), float(table.predictions[i, 0])
            m = a * m + b * (mean + slope * (m - t * mean))
            s2 = (a + b * slope) ** 2 * s2 + float(table.noise[i]) ** 2
        errors.append((abs(m - mean), abs(s2 - variance)))
    for k in (0, 1):
        assert errors[2][k] < 0.02
        assert errors[2][k] < 1e-12 or 1.7 < errors[0][k] / errors[1][k] < 2.4


def test_sde_is_score_and_velocity(x: Tensor) -> None:
    """One step of euler_maruyama is x + h (v + eta^2 / 2 score) + eta sqrt(h) z, with eta^2 = 2 k sigma w."""
    mixture, h, t, k = EIGHT, 0.01, 0.4, 0.7
    times = torch.tensor([t, t + h], dtype=torch.float64)
    for path in (LinearPath(), VPPath(), TrigPath()):
        now = torch.tensor(t, dtype=torch.float64)
        half = k * path.sigma(now) * path.wronskian(now)
        z = torch.randn(64, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        drift = mixture.velocity(path)(x, t) + half * mixture.score(path)(x, t)
        expected = x + h * drift + (2 * half * h).sqrt() * z
        ours = solve(mixture.velocity(path), x, times, euler_maruyama(k), generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", [LinearPath(), VPPath(), TrigPath(), VEPath()])
def test_ancestral_step_is_the_posterior(path: GaussianPath) -> None:
    """q(x_b | x_a, x_1) by Bayes' rule of the two Gaussians q(x_b | x_1) and q(x_a | x_b)."""
    times = torch.tensor([0.3, 0.6], dtype=torch.float64)
    (a, b), (s, r) = path.alpha(times), path.sigma(times)
    ratio, variance = a / b, s**2 - (a / b) ** 2 * r**2
    precision = 1 / r**2 + ratio**2 / variance
    table = ancestral(1.0).coefficients(times, path)
    torch.testing.assert_close(table.noise[0] ** 2, 1 / precision, rtol=1e-12, atol=0)
    torch.testing.assert_close(table.state[0], ratio / variance / precision, rtol=1e-12, atol=0)
    torch.testing.assert_close(table.predictions[0, 0], b / r**2 / precision, rtol=1e-12, atol=0)


def test_ancestral_and_sde_solvers_sample_the_target() -> None:
    target = GaussianMixture(weights=[1.0], means=[[1.0, -0.5]], covariances=[[[0.5, 0.2], [0.2, 0.3]]])
    n = 20_000
    for name in ("ancestral", "dpmpp_2m_sde"):
        g = torch.Generator().manual_seed(2)
        x = torch.randn(n, 2, generator=g, dtype=torch.float64)
        ends = solve(target.velocity(), x, uniform_times(300), name, generator=g)
        assert float((ends.mean(0) - target.mean).abs().max()) < 0.02
        assert float((ends.T.cov() - target.covariance).abs().max()) < 0.02


@pytest.mark.parametrize("name", [*ONE_STEP, "dopri5"])
def test_same_seed_same_bytes_and_both_ends_without_clipping(name: str) -> None:
    if name == "dopri5":
        pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed")
    runs = []
    for _ in range(2):
        g = torch.Generator().manual_seed(7)
        x = torch.randn(128, 2, generator=g)
        state = torch.get_rng_state()
        runs.append(solve(EIGHT.velocity(), x, uniform_times(12), name, generator=g))
        assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched
    assert torch.equal(runs[0], runs[1])
    assert runs[0].dtype == torch.float32


@pytest.mark.parametrize("solver", ["euler", "rk4", "ab2"])
def test_reverse_undoes(solver: str, x: Tensor) -> None:
    smooth = GaussianMixture(weights=[1, 1], means=[[1.0, 0.0], [-1.0, 0.0]], covariances=0.3).velocity()
    there = solve(smooth, x, uniform_times(400), solver)
    back = solve(smooth, there, uniform_times(400), solver, reverse=True)
    assert float((back - x).abs().max()) < {"euler": 0.05, "rk4": 1e-8, "ab2": 1e-3}[solver]


def test_trajectory(x: Tensor) -> None:
    times = shifted_times(6, 2.0)
    for solver, stages in (("euler", 1), ("heun", 2), ("rk4", 4), ("dpmpp_2m", 1)):
        run = solve(EIGHT.velocity(), x, times, solver, return_trajectory=True)
        assert torch.equal(run.times, times)
        assert torch.equal(run.states[0], x)
        assert torch.equal(run.states[-1], solve(EIGHT.velocity(), x, times, solver))
        assert run.calls == 6 * stages
        for i in range(6):
            assert torch.equal(run.velocities[i], EIGHT.velocity()(run.states[i], times[i]))


def test_dopri5_agrees_with_rk4(x: Tensor) -> None:
    pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed")
    run = solve(EIGHT.velocity(), x, uniform_times(4), Dopri5(1e-9, 1e-9), return_trajectory=True)
    exact = solve(EIGHT.velocity(), x, uniform_times(800), "rk4", return_trajectory=True)
    torch.testing.assert_close(run.states, exact.states[::200], rtol=0, atol=1e-5)
    assert run.calls > 20
    with pytest.raises(CallsExceeded, match="made 20 calls") as error:
        solve(EIGHT.velocity(), x, uniform_times(1), Dopri5(1e-9, 1e-9, max_calls=20))
    assert error.value.state.shape == x.shape
    assert 0 < error.value.time < 1


def test_differentiable_and_not() -> None:
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def field(x: Tensor, t: Tensor) -> Tensor:
        return weight * x

    x = torch.ones(1, 1, dtype=torch.float64)
    assert not solve(field, x, uniform_times(10)).requires_grad
    end = solve(field, x, uniform_times(10), differentiable=True)
    (gradient,) = torch.autograd.grad(end.sum(), weight)
    torch.testing.assert_close(gradient, torch.tensor(10 * (1 + 0.05) ** 9 * 0.1, dtype=torch.float64))


@pytest.mark.parametrize("name", ONE_STEP)
def test_half_precision_keeps_times_in_float32(name: str, generator: torch.Generator) -> None:
    seen = set()

    def field(x: Tensor, t: Tensor) -> Tensor:
        seen.add((x.dtype, t.dtype))
        return -x

    x = torch.randn(8, 2, generator=generator).bfloat16()
    assert solve(field, x, uniform_times(7), name, generator=generator).dtype == torch.bfloat16
    assert seen == {(torch.bfloat16, torch.float32)}


def test_a_solver_of_a_user_in_a_few_lines(x: Tensor) -> None:
    kutta3 = RungeKutta((0.0, 0.5, 1.0), ((0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), order=3)

    def adams_bashforth_3(times: Tensor, path: GaussianPath) -> Coefficients:
        h = times.diff()
        rows = torch.tensor([[1.0, 0, 0], [1.5, -0.5, 0]] + [[23 / 12, -16 / 12, 5 / 12]] * (len(h) - 2))
        return Coefficients(torch.ones_like(h), h[:, None] * rows.double())

    v = GaussianMixture(weights=[1, 1], means=[[1.0, 0.0], [-1.0, 0.0]], covariances=0.3).velocity()
    reference = solve(v, x, uniform_times(400), "rk4")
    # One Euler step to start with leaves an error of order h^2 at the end of any multistep method.
    for solver, order in ((kutta3, 3), (LinearMultistep(adams_bashforth_3, order=3), 2)):
        errors = [float((solve(v, x, uniform_times(n), solver) - reference).norm(dim=1).median()) for n in (40, 80)]
        assert abs(torch.tensor(errors[0] / errors[1]).log2() - order) < 0.4


def test_progress_reports_and_cancels(x: Tensor) -> None:
    seen = []

    def progress(done: int, total: int, metrics: object) -> None:
        seen.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(EIGHT.velocity(), x, uniform_times(5), progress=progress)
    assert seen == [(1, 5), (2, 5), (3, 5)]


def test_not_finite_names_the_step(generator: torch.Generator) -> None:
    def broken(x: Tensor, t: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[1] = torch.where(t > 0.55, torch.nan, 0.0)
        return out

    x = torch.zeros(4, 2)
    with pytest.raises(FloatingPointError, match=r"1 of 4 samples \(the first is 1\).*field's output.*step 6, t = 0.6"):
        solve(broken, x, uniform_times(10), "euler")
    with pytest.raises(FloatingPointError, match="step 6"):
        solve(broken, x, uniform_times(10), "euler_maruyama", generator=generator)
    with pytest.raises(FloatingPointError, match="the state given was not"):
        solve(lambda x, t: x, x + torch.inf, uniform_times(2))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"times": torch.tensor([0.0, 0.5, 0.5])}, r"times\[1\] = 0.5 and times\[2\] = 0.5"),
        ({"times": torch.tensor([1.0, 0.0])}, "reverse=True"),
        ({"times": torch.tensor([0.0, 1.5])}, "times holds 1.5"),
        ({"times": torch.tensor([0.5])}, "two entries"),
        ({"solver": "eular"}, "euler, midpoint"),
        ({"path": VPPath()}, "change_path"),
        ({"solver": "ddim", "reverse": True}, "reverse"),
        ({"x": torch.zeros(3, 2, dtype=torch.int64)}, "x must be a floating-point tensor"),
        ({"field": lambda x, t: x[:, :1]}, "the field returned"),
        ({"field": lambda x, t: x.float()}, "the field returned"),
    ],
)
def test_bad_input(arguments: dict[str, object], words: str, x: Tensor) -> None:
    given = {"field": EIGHT.velocity(), "x": x, "times": uniform_times(4), "solver": "euler", **arguments}
    error = TypeError if "x" in arguments else ValueError
    with pytest.raises(error, match=words):
        solve.__wrapped__(given.pop("field"), given.pop("x"), given.pop("times"), given.pop("solver"), **given)


def test_singular_solver_steps_and_bad_tableaus(x: Tensor) -> None:
    def noise_net(x: Tensor, t: Tensor) -> Tensor:
        return x

    with pytest.raises(SingularTimeError, match="noise cannot be converted"):
        solve(Parametrized(noise_net, "noise", LinearPath()), x, uniform_times(4))
    unsteady = LinearMultistep(lambda t, p: Coefficients(1 / t[:-1], t[:-1, None]))
    with pytest.raises(SingularTimeError, match="step 0 of this solver"):
        solve(EIGHT.velocity(), x, uniform_times(4), unsteady)
    with pytest.raises(TypeError, match="solver"):
        solve(EIGHT.velocity(), x, uniform_times(4), 3)
    for tableau in (
        ((0.0, 0.5), ((0.4,),), (0.0, 1.0)),
        ((0.0, 0.5), ((0.5,),), (0.5, 1.0)),
        ((0.1,), (), (1.0,)),
    ):
        with pytest.raises(ValueError, match=r"tableau|row|weights"):
            RungeKutta(*tableau, order=1)
    for make in (lambda: ancestral(1.5), lambda: euler_maruyama(-1.0), lambda: dpmpp_2m(-0.1)):
        with pytest.raises(ValueError, match="must be"):
            make()


def test_calls_are_what_the_network_sees(x: Tensor) -> None:
    rows = []

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        rows.append(len(x))
        return EIGHT.velocity()(x, t, label=label)

    guided = ClassifierFreeGuidance(net, 2.0, (0.3, 0.8), null_condition={"label": -1})
    counted = Counted(guided)
    label = torch.arange(64) % 8
    run = solve(counted, x, uniform_times(10), "euler", return_trajectory=True, label=label)
    # 0.3 ... 0.8 hold six of the ten times (ends included).
    assert run.calls == counted.calls == sum(rows) / 64 == 16
    assert counted.rows == sum(rows)


def test_times() -> None:
    path = LinearPath()
    assert uniform_times(4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert torch.equal(power_times(3, 1.0), uniform_times(3))
    sigma = 1 - uniform_times(9)
    torch.testing.assert_close(1 - shifted_times(9, 3.0), 3 * sigma / (1 + 2 * sigma), rtol=1e-14, atol=1e-15)
    lam = path.log_snr_half(log_snr_times(5, path, lambda_min=-2.0, lambda_max=4.0))
    torch.testing.assert_close(lam[1:-1], torch.tensor([-2.0, 0, 2, 4], dtype=torch.float64))
    levels = edm_times(10, path)
    expected = [(80 ** (1 / 7) + i / 9 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(1, 10)]
    ratio = path.sigma(levels) / path.alpha(levels)
    torch.testing.assert_close(ratio[1:-1], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    for make, words in (
        (lambda: uniform_times(0), "n must be >= 1"),
        (lambda: uniform_times(3, start=0.5, end=0.2), "start"),
        (lambda: power_times(3, 0.0), "rho"),
        (lambda: shifted_times(3, -1.0), "shift"),
        (lambda: log_snr_times(1, path), "n must be >= 2"),
        (lambda: log_snr_times(5, VPPath(), lambda_min=-50.0), "does not cover"),
        (lambda: edm_times(5, path, sigma_min=90.0), "sigma_min"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
