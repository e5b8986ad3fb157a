"""Prediction and correction: zero at the truth, the right sign away from it, and no gradient where none belongs."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from anabranch.generative import (
    ClassifierFreeGuidance,
    DistributionCorrection,
    FlowMapModel,
    FreeFlow,
    GaussianSource,
    LogitNormal,
    ResMLP,
    StudentAndCritic,
    TrajectoryPrediction,
    UniformLabels,
    end_time_derivative,
    fit,
    jump,
    solve,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

GAUSSIAN = GaussianMixture(weights=[1.0], means=[[1.0, -0.5]], covariances=[[0.5, 0.3]])
MIXTURE = GaussianMixture(weights=[1, 2], means=[[1.0, 0.0], [-1.0, 1.0]], covariances=[0.3, 0.5])
SOURCE = GaussianSource((2,), dtype=torch.float64)
N = 48


@pytest.fixture
def z(generator: torch.Generator) -> Tensor:
    return torch.randn(N, 2, generator=generator, dtype=torch.float64)


def pair(dim: int = 2, seed: int = 0, *, classes: int | None = None) -> StudentAndCritic:
    """Random, not zero, float64."""
    torch.manual_seed(seed)
    made = StudentAndCritic(
        FlowMapModel.from_velocity(ResMLP(dim, 12, 1, classes=classes)), ResMLP(dim, 12, 1, classes=classes)
    ).double()
    for p in made.parameters():
        nn.init.normal_(p, std=0.2)
    return made


def objective(teacher: object, **options: object) -> FreeFlow:
    given = {"batch_size": 16, "warmup": 0, **options}
    return FreeFlow(TrajectoryPrediction(teacher), DistributionCorrection(teacher), SOURCE, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("derivative", "most"), [("jvp", 1e-6), ("central", 1e-4)])
def test_the_exact_student_has_no_mismatch_at_any_time(z: Tensor, derivative: str, most: float) -> None:
    """f(z, t) = t m + (t^2 S + (1 - t)^2 I)^(1/2) z: equal to RK4, and the mismatch is the derivative's error."""
    u, v = GAUSSIAN.flow_map(), GAUSSIAN.velocity()
    variance = torch.tensor([0.5, 0.3], dtype=torch.float64)
    mean = torch.tensor([1.0, -0.5], dtype=torch.float64)
    zero = torch.zeros(N, dtype=torch.float64)
    for t in (0.0, 0.002, 0.3, 0.5, 0.997, 1.0):
        wanted = t * mean + torch.sqrt(t**2 * variance + (1 - t) ** 2) * z
        torch.testing.assert_close(z + t * u(z, zero, zero + t), wanted, rtol=0, atol=1e-12)
        if t:
            solved = solve(v, z, t * uniform_times(40), "rk4")
            torch.testing.assert_close(wanted, solved, rtol=0, atol=1e-6)
        loss = TrajectoryPrediction(v, derivative=derivative).at(u, z, zero, zero + t)  # type: ignore[arg-type]
        assert float(loss.per_sample.max()) ** 0.5 <= most
        # also from later starts, where the state is on the way
        start = torch.full_like(zero, 0.4 * t)
        state = z + expand(start) * u(z, zero, start)
        loss = TrajectoryPrediction(v, derivative=derivative).at(u, state, start, zero + t)  # type: ignore[arg-type]
        assert float(loss.per_sample.max()) ** 0.5 <= most


def expand(t: Tensor) -> Tensor:
    return t[:, None]


def test_the_derivatives_error_falls_with_the_square_of_h_at_the_ends_too(z: Tensor) -> None:
    u, zero = GAUSSIAN.flow_map(), torch.zeros(N, dtype=torch.float64)
    for t in (0.0005, 0.5, 1.0):
        exact = end_time_derivative(u, z, zero, zero + t, method="jvp")
        errors = [
            float((end_time_derivative(u, z, zero, zero + t, u=u(z, zero, zero + t), h=h) - exact).abs().max())
            for h in (0.04, 0.02)
        ]
        assert 3.0 < errors[0] / errors[1] < 5.5, (t, errors)
        without = end_time_derivative(u, z, zero, zero + t, h=0.02)
        torch.testing.assert_close(without, end_time_derivative(u, z, zero, zero + t, u=u(z, zero, zero + t), h=0.02))


def test_at_the_start_the_target_is_the_teachers_velocity(z: Tensor) -> None:
    """At t = 0 the gradient with respect to u is 2 w (u - v(z, 0)) / entries; at the exact student it vanishes."""
    v, zero = MIXTURE.velocity(), torch.zeros(N, dtype=torch.float64)
    value = torch.zeros(N, 2, dtype=torch.float64, requires_grad=True)
    loss = TrajectoryPrediction(v, weight_power=0.0).at(lambda x, s, t: value * torch.ones_like(x[:1]) if len(x) == N else
                                                        torch.zeros_like(x), z, zero, zero)  # fmt: skip
    (gradient,) = torch.autograd.grad(loss.value, value)
    torch.testing.assert_close(gradient, 2 * (0 - v(z, 0.0)) / (2 * N))
    at_v = v(z, 0.0).requires_grad_()
    loss = TrajectoryPrediction(v).at(lambda x, s, t: at_v if len(x) == N else at_v.repeat(2, 1), z, zero, zero)
    (gradient,) = torch.autograd.grad(loss.value, at_v)
    assert float(gradient.abs().max()) <= 1e-6


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_gradient_is_the_weighted_mismatch(z: Tensor, power: float, generator: torch.Generator) -> None:
    """Written out: w = 1 / (mean square + eps)^k, no gradient through teacher, state or derivative."""
    net, v = pair().student, MIXTURE.velocity()
    t = torch.rand(N, generator=generator, dtype=torch.float64)
    s = torch.zeros_like(t)
    seen: list[Tensor] = []

    def watched(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        out = net(x, a, b)
        if out.requires_grad:
            out.retain_grad()
            seen.append(out)
        return out

    TrajectoryPrediction(v, weight_power=power, derivative="jvp").at(watched, z, s, t).value.backward()
    u = seen[0].detach()
    slope = torch.func.jvp(lambda b: net(z, s, b), (t,), (torch.ones_like(t),))[1].detach()
    mismatch = u + expand(t) * slope - v(z + expand(t) * u, t)
    weight = ((mismatch**2).mean(1) + 1e-3) ** -power
    assert len(seen) == 1
    torch.testing.assert_close(seen[0].grad, 2 * weight[:, None] * mismatch / mismatch.numel())


def test_the_correction_points_from_the_student_to_the_teacher() -> None:
    """Teacher N(0, 1), student N(1, 1), exact critic: the mismatch is (1 - t) / (t^2 + (1 - t)^2) > 0 everywhere."""
    teacher = GaussianMixture(weights=[1.0], means=[[0.0]], covariances=1.0).velocity()
    student = GaussianMixture(weights=[1.0], means=[[1.0]], covariances=1.0).velocity()
    y = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    t = torch.linspace(0, 0.99, 50, dtype=torch.float64)
    square = (t**2 + (1 - t) ** 2)[:, None]
    torch.testing.assert_close(teacher(y, t), y * (2 * t - 1)[:, None] / square)
    torch.testing.assert_close(student(y, t) - teacher(y, t), (1 - t)[:, None] / square)
    shift = torch.ones(1, dtype=torch.float64, requires_grad=True)

    def moved(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return shift.expand_as(x)

    z, n = torch.randn(2, 200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = DistributionCorrection(teacher)(moved, student, z, n, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(losses.student.value, shift)
    assert float(gradient) > 0.5  # a step of descent lowers the student's mean


def test_equal_laws_are_not_corrected(z: Tensor, generator: torch.Generator) -> None:
    v, n = MIXTURE.velocity(), torch.randn(N, 2, generator=generator, dtype=torch.float64)
    losses = DistributionCorrection(v)(MIXTURE.flow_map(steps=8), v, z, n, generator=generator)
    assert float(losses.student.value) <= 1e-16


def test_the_critic_learns_the_students_velocity_by_flow_matching(z: Tensor, generator: torch.Generator) -> None:
    net, n = pair(), torch.randn(N, 2, generator=generator, dtype=torch.float64)
    t = torch.rand(N, generator=generator, dtype=torch.float64)
    loss = DistributionCorrection(MIXTURE.velocity()).at(net, net, z, n, t).critic
    output = jump(net.student, z, uniform_times(1))
    y = (1 - expand(t)) * n + expand(t) * output
    torch.testing.assert_close(loss.value, (net.critic(y, t) - (output - n)).square().mean())


def test_levels_reach_the_noise_and_an_interval_bounds_them(z: Tensor, generator: torch.Generator) -> None:
    """1 - sigmoid(0.8 + z) in the paper's law of the level; (0.4, 1) is noise up to 0.6."""
    seen: list[Tensor] = []

    def teacher(y: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return y

    net, x = pair(), torch.zeros(20_000, 2, dtype=torch.float64)
    for interval in ((0.0, 1.0), (0.4, 1.0)):
        DistributionCorrection(teacher, interval=interval)(net, net, x, x, generator=generator)
    assert float(torch.logit(seen[0]).mean()) == pytest.approx(-0.8, abs=0.03)
    assert float(torch.logit(seen[0]).std()) == pytest.approx(1.0, abs=0.03)
    assert float(seen[1].min()) > 0.4
    assert float(seen[0].min()) < 0.05


def test_gradients_reach_only_where_they_belong(generator: torch.Generator) -> None:
    torch.manual_seed(3)
    teacher = ResMLP(2, 12, 1).double()
    net = pair()
    loss = objective(teacher)(net, generator=generator)
    loss.value.backward()
    assert all(p.grad is None for p in teacher.parameters())
    z, n = torch.randn(2, N, 2, generator=generator, dtype=torch.float64)
    for which, mine, other in (("student", net.student, net.critic), ("critic", net.critic, net.student)):
        net.zero_grad(set_to_none=True)
        losses = DistributionCorrection(teacher)(net, net, z, n, generator=generator)
        getattr(losses, which).value.backward()
        assert all(p.grad is None for p in other.parameters())
        assert any(p.grad is not None and bool(p.grad.any()) for p in mine.parameters())
    net.zero_grad(set_to_none=True)
    TrajectoryPrediction(teacher)(net, z, generator=generator).value.backward()
    assert all(p.grad is None for p in [*net.critic.parameters(), *teacher.parameters()])


def test_the_balance_forgets_the_scale_of_the_corrections_mismatch() -> None:
    """A teacher whose mismatch is ten times larger gives the student the same gradient."""
    gradients = []
    for scale in (1.0, 10.0):
        net = pair(seed=4)

        def scaled(y: Tensor, t: Tensor, net: StudentAndCritic = net, scale: float = scale) -> Tensor:
            return net.critic(y, t) + scale * (MIXTURE.velocity()(y, t) - net.critic(y, t))

        free = dataclasses.replace(objective(MIXTURE.velocity()), correction=DistributionCorrection(scaled))
        free(net, generator=torch.Generator().manual_seed(0)).value.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.student.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) <= 1e-6


def test_the_step_is_prediction_correction_and_critic_in_the_stated_shares() -> None:
    """The pieces put together by hand, with the same draws."""
    v = MIXTURE.velocity()
    net, twin = pair(seed=5), pair(seed=5)
    free = objective(v, alpha=2.0)
    assert free.rows == (12, 4)
    loss = free(net, generator=torch.Generator().manual_seed(6))
    loss.value.backward()
    draw = torch.Generator().manual_seed(6)
    first = free.prediction(twin.student, SOURCE.sample(12, generator=draw), generator=draw)
    z, n = SOURCE.sample(4, generator=draw), SOURCE.sample(4, generator=draw)
    student, critic = free.correction(twin.student, twin.critic, z, n, generator=draw)
    balance = 2.0 * first.parts["pull"] / (student.parts["mismatch"] + 1e-6)
    (first.value + balance * student.value + critic.value).backward()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    torch.testing.assert_close(loss.parts["balance"], balance)
    torch.testing.assert_close(loss.parts["critic"], critic.value.detach())


def test_the_correction_waits_for_the_warm_up_and_the_critic_does_not() -> None:
    v = MIXTURE.velocity()
    gradients = []
    for warmup in (2, 0):
        net = pair(seed=5)
        free = objective(v, warmup=warmup, split=0.5)
        free(net, generator=torch.Generator().manual_seed(6)).value.backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters()})
        assert int(net.steps) == 1
    twin = pair(seed=5)
    draw = torch.Generator().manual_seed(6)
    TrajectoryPrediction(v)(twin.student, SOURCE.sample(8, generator=draw), generator=draw).value.backward()
    for name, p in twin.student.named_parameters():
        torch.testing.assert_close(gradients[0][f"student.{name}"], p.grad)
    assert not torch.equal(gradients[0]["student.net.leave.weight"], gradients[1]["student.net.leave.weight"])
    assert torch.equal(gradients[0]["critic.leave.weight"], gradients[1]["critic.leave.weight"])


def test_starts_put_states_where_the_student_itself_goes(generator: torch.Generator) -> None:
    """With the exact student the states are the teacher's own, so that there is nothing to learn; s and t are sorted."""
    u, v = GAUSSIAN.flow_map(), GAUSSIAN.velocity()
    seen: list[tuple[Tensor, Tensor]] = []

    class Watched(TrajectoryPrediction):
        def at(self, net: object, x: Tensor, s: Tensor, t: Tensor, **condition: object) -> object:
            seen.append((s, t))
            return super().at(net, x, s, t, **condition)  # type: ignore[arg-type]

    loss = Watched(v, starts=0.5)(u, SOURCE.sample(400, generator=generator), generator=generator)
    assert float(loss.per_sample.max()) <= 1e-8
    s, t = seen[0]
    assert bool((t >= s).all())
    assert 0.4 < float((s > 0).double().mean()) < 0.6


def test_a_linear_student_learns_the_exact_map_of_a_gaussian() -> None:
    """Three hundred steps of prediction: f(z, t) within 1e-2 of t m + (t^2 S + (1 - t)^2)^(1/2) z."""

    class Affine(nn.Module):
        """u(z, 0, t) = a(t) z + b(t) on a basis of Legendre polynomials: linear in its weights."""

        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.zeros(4, 2, dtype=torch.float64))
            self.shift = nn.Parameter(torch.zeros(4, 2, dtype=torch.float64))

        def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            y = 2 * t - 1
            basis = [torch.ones_like(y), y]
            for n in range(1, 3):
                basis.append(((2 * n + 1) * y * basis[n] - n * basis[n - 1]) / (n + 1))
            features = torch.stack(basis, 1)
            return (features @ self.slope) * x + features @ self.shift

    v, net = GAUSSIAN.velocity(), Affine()
    prediction = TrajectoryPrediction(v, weight_power=0.0, derivative="jvp")

    def drawn(net: nn.Module, *, generator: torch.Generator) -> object:
        return prediction(net, SOURCE.sample(256, generator=generator), generator=generator)

    fit(net, drawn, steps=300, lr=0.03, ema=0.0, generator=torch.Generator().manual_seed(0), grad_clip=None)  # type: ignore[arg-type]
    z = SOURCE.sample(200, generator=torch.Generator().manual_seed(1))
    net.requires_grad_(False)
    for t in (0.25, 0.5, 1.0):
        time = torch.full((200,), t, dtype=torch.float64)
        exact = GAUSSIAN.flow_map()(z, torch.zeros_like(time), time)
        assert float((t * (net(z, torch.zeros_like(time), time) - exact)).abs().max()) <= 1e-2


def test_guidance_outside_its_interval_is_the_conditional_field_to_the_bit(z: Tensor) -> None:
    classes = GaussianMixture(weights=[1, 2], means=[[1.0, 0.0], [-1.0, 1.0]], covariances=[0.3, 0.5], classes=[0, 1])
    v, label = classes.velocity(), torch.arange(N) % 2
    guided = ClassifierFreeGuidance(v, 3.0, interval=(0.3, 1.0), null_condition={"label": -1})
    plain = ClassifierFreeGuidance(v, 1.0, null_condition={"label": -1})
    t = torch.linspace(0, 1, N, dtype=torch.float64)
    outside = t < 0.3
    assert torch.equal(guided(z, t, label=label)[outside], v(z, t, label=label)[outside])
    assert not torch.equal(guided(z, t, label=label)[~outside], v(z, t, label=label)[~outside])
    assert torch.equal(plain(z, t, label=label), v(z, t, label=label))


def test_conditions_are_drawn_uniformly_and_reach_all_three_networks(generator: torch.Generator) -> None:
    seen: list[int] = []

    def teacher(y: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append(len(label))
        return MIXTURE.velocity()(y, t)

    net = pair(classes=3)
    loss = objective(teacher, conditions=UniformLabels(3))(net, generator=generator)
    loss.value.backward()
    assert seen == [12, 4]
    used = net.critic.label_embedding.weight.grad  # type: ignore[union-attr]
    assert not bool(used[3].any())  # the null label is not drawn
    assert UniformLabels(3, "word")(5000, generator)["word"].bincount().tolist() == pytest.approx([1667] * 3, abs=150)


def test_samples_that_are_not_finite_are_dropped_and_in_the_end_refused(generator: torch.Generator) -> None:
    broken, net = [True], pair()

    def teacher(y: Tensor, t: Tensor) -> Tensor:
        v = MIXTURE.velocity()(y, t)
        return torch.where((torch.arange(len(y)) == 1)[:, None] & broken[0], torch.tensor(math.nan).double(), v)

    free = objective(teacher)
    loss = free(net, generator=generator)
    assert float(loss.parts["dropped"]) == pytest.approx(1 / 12 + 1 / 4)
    loss.value.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())
    assert int(net.bad_steps) == 1
    broken[0] = False
    free(net, generator=generator)
    assert int(net.bad_steps) == 0
    broken[0] = True
    for _ in range(9):
        free(net, generator=generator)
    with pytest.raises(FloatingPointError, match="10 steps in a row"):
        free(net, generator=generator)


def test_bad_input(z: Tensor, generator: torch.Generator) -> None:
    v, half = MIXTURE.velocity(), torch.full((N,), 0.5, dtype=torch.float64)
    with pytest.raises((ValueError, TypeError), match="derivative"):  # the type checker of the tests is quicker
        TrajectoryPrediction(v, derivative="exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="starts must be in"):
        TrajectoryPrediction(v, starts=1.5)
    with pytest.raises(ValueError, match="eps = 0"):
        TrajectoryPrediction(v, eps=0.0)
    with pytest.raises(ValueError, match=r"interval must be .* got \(0.6, 0.4\)"):
        DistributionCorrection(v, interval=(0.6, 0.4))
    with pytest.raises(ValueError, match="split must be"):
        objective(v, split=-0.1)
    with pytest.raises(ValueError, match="alpha must be > 0"):
        objective(v, alpha=0.0)
    with pytest.raises(ValueError, match="batch_size must be >= 2"):
        objective(v, batch_size=1)
    with pytest.raises(ValueError, match="classes must be >= 1"):
        UniformLabels(0)
    with pytest.raises(TypeError, match="StudentAndCritic"):
        objective(v)(pair().student, generator=generator)
    with pytest.raises(ValueError, match="before s"):
        TrajectoryPrediction(v).at(pair().student, z, half, half - 0.1)
    with pytest.raises(ValueError, match="the teacher gives"):
        TrajectoryPrediction(lambda x, t: x[:, :1]).at(pair().student, z, 0 * half, half)
    with pytest.raises(ValueError, match="the teacher gives"):
        DistributionCorrection(lambda x, t: x[:, :1]).at(pair(), pair(), z, z, half)
    assert objective(v, batch_size=2, split=0.99).rows == (1, 1)
    assert objective(v, split=1.0).rows == (16, 0)
    assert isinstance(DistributionCorrection(v).times, LogitNormal)
