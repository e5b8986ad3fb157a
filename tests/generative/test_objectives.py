"""Objectives: zero at the truth, equal to one another where theory says so, and to finite differences."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anabranch.generative import (
    Consistency,
    FlowMatching,
    LinearPath,
    LogitNormal,
    MeanFlow,
    Parametrized,
    Shortcut,
    SplitMeanFlow,
    TrigPath,
    TwoTimes,
    Uniform,
    VPPath,
    interval_split_target,
    loss_weight,
)
from anabranch.worlds import GaussianMixture

TARGET = GaussianMixture(weights=[1.0], means=[[1.0, -0.5]], covariances=[[[0.5, 0.2], [0.2, 0.3]]])
N = 64


class Map(nn.Module):
    """A smooth random flow map with a label."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        extra = torch.zeros_like(s) if label is None else label.to(s)
        return self.body(torch.cat([x, s[:, None], t[:, None], extra[:, None]], 1))


@pytest.fixture
def net() -> Map:
    torch.manual_seed(0)
    return Map().double()


@pytest.fixture
def ends(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(2, N, 2, generator=generator, dtype=torch.float64).unbind()


@pytest.fixture
def times(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.rand(2, N, generator=generator, dtype=torch.float64).sort(0).values.unbind()


def gradients(loss: Tensor, net: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


@pytest.mark.parametrize("path", [LinearPath(), TrigPath()])
def test_exact_maps_have_no_loss(
    path: LinearPath, ends: tuple[Tensor, Tensor], times: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    u, v = TARGET.flow_map(path), TARGET.velocity(path)
    s, t = times
    split = torch.rand(N, generator=generator, dtype=torch.float64)
    half = t.clone()
    half[::2] = s[::2]  # boundary samples too
    losses = {
        "split": SplitMeanFlow(path, velocity=v).at(u, *ends, s, half, split),
        "shortcut": Shortcut(path, velocity=v).at(u, *ends, s, half),
        "mean": MeanFlow(path, velocity=v).at(u, *ends, s, t),
        "flow matching of the marginal": MeanFlow(path, velocity=v).at(u, *ends, s, s),
    }
    for name, loss in losses.items():
        assert float(loss.per_sample.max()) <= 1e-12, name
    # An exact map in the other direction, the state at the end, does not pass.
    wrong = SplitMeanFlow(path, velocity=v).at(lambda x, a, b: u(x, b, a), *ends, s, t, split)
    assert float(wrong.value) > 1e-3


def test_consistency_of_the_exact_map_is_the_teachers_euler_error(ends: tuple[Tensor, Tensor]) -> None:
    u, v = TARGET.flow_map(), TARGET.velocity()
    s = torch.linspace(0, 0.9, N, dtype=torch.float64)
    losses = [Consistency(velocity=v).at(u, *ends, s, s + h).per_sample for h in (0.02, 0.01)]
    ratio = float((losses[0] / losses[1]).median())
    assert 12 < ratio < 20  # the error of one Euler step is O(h^2), its square O(h^4)
    at_end = Consistency(velocity=v).at(u, *ends, s, torch.ones_like(s))
    x_s = LinearPath().sample(*ends, s).x_t
    euler = x_s + (1 - s)[:, None] * v(x_s, s)
    exact = x_s + (1 - s)[:, None] * u(x_s, s, torch.ones_like(s))
    torch.testing.assert_close(at_end.per_sample, (exact - euler).square().mean(1))


def test_split_target_by_hand() -> None:
    """u(x, s, t) = a x + b (t - s) in one dimension."""
    a, b = 0.7, -0.4
    x, s, t, lam = (torch.tensor([value], dtype=torch.float64) for value in (0.3, 0.2, 0.8, 0.25))
    m = 0.2 + 0.25 * 0.6
    u1 = a * 0.3 + b * (m - 0.2)
    x_m = 0.3 + (m - 0.2) * u1
    u2 = a * x_m + b * (0.8 - m)
    target = interval_split_target(lambda x, s, t: a * x + b * (t - s)[:, None], x[:, None], s, t, lam)
    assert abs(float(target) - (0.25 * u1 + 0.75 * u2)) <= 1e-14


def test_split_tends_to_mean_flow(net: Map, ends: tuple[Tensor, Tensor], times: tuple[Tensor, Tensor]) -> None:
    """(split target - u) / lam -> v + (t - s) du/ds - u as lam -> 0, with v(x, s) = u(x, s, s)."""
    (x, _), (s, t) = ends, times
    with torch.no_grad():
        velocity = net(x, s, s)
    u, du = torch.func.jvp(net, (x, s, t), (velocity, torch.ones_like(s), torch.zeros_like(t)))
    limit = velocity + (t - s)[:, None] * du - u
    errors = []
    for lam in (1e-4, 1e-5, 1e-6):
        difference = (interval_split_target(net, x, s, t, torch.full_like(s, lam)) - u) / lam
        errors.append(float(((difference - limit).norm() / limit.norm()).detach()))
    assert errors[2] <= 1e-5
    assert 8 < errors[0] / errors[1] < 12


def test_mean_flow_target_is_the_finite_difference(
    net: Map, ends: tuple[Tensor, Tensor], times: tuple[Tensor, Tensor]
) -> None:
    (x0, x1), (s, t), h = ends, times, 1e-6
    x_s, v = LinearPath().sample(x0, x1, s).x_t, x1 - x0
    du = (net(x_s + h * v, s + h, t) - net(x_s - h * v, s - h, t)) / (2 * h)
    expected = (net(x_s, s, t) - (v + (t - s)[:, None] * du)).square().mean(1)
    loss = MeanFlow().at(net, x0, x1, s, t)
    torch.testing.assert_close(loss.per_sample, expected, rtol=0, atol=1e-6)
    target = (v + (t - s)[:, None] * du).detach()
    for ours, constant in zip(
        gradients(loss.value, net), gradients((net(x_s, s, t) - target).square().mean(), net), strict=True
    ):
        torch.testing.assert_close(ours, constant, rtol=0, atol=1e-6)


def test_shortcut_is_split_in_halves(net: Map, ends: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    length = 2.0 ** -torch.randint(7, (N,), generator=generator)
    s = (torch.rand(N, generator=generator, dtype=torch.float64) / length).floor() * length
    s = s.clamp(max=1 - length)
    t = s + length
    shortcut = Shortcut().at(net, *ends, s, t)
    split = SplitMeanFlow(split="half").at(net, *ends, s, t, torch.full_like(s, 0.5))
    # And both are what the paper writes: two half steps of the network, averaged.
    x, d = LinearPath().sample(*ends, s).x_t, length[:, None] / 2
    with torch.no_grad():
        first = net(x, s, s + length / 2)
        target = (first + net(x + d * first, s + length / 2, t)) / 2
    written = (net(x, s, t) - target).square().mean(1)
    for loss in (shortcut, split):
        torch.testing.assert_close(loss.per_sample, written, rtol=0, atol=1e-12)
        for ours, theirs in zip(gradients(loss.value, net), gradients(written.mean(), net), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        written = (net(x, s, t) - target).square().mean(1)


def test_targets_carry_no_gradient(net: Map, ends: tuple[Tensor, Tensor], times: tuple[Tensor, Tensor]) -> None:
    (s, t), split = times, torch.full((N,), 0.3, dtype=torch.float64)
    x = LinearPath().sample(*ends, s).x_t
    target = interval_split_target(net, x, s, t, split).detach()
    ours = gradients(SplitMeanFlow().at(net, *ends, s, t, split).value, net)
    for a, b in zip(ours, gradients((net(x, s, t) - target).square().mean(), net), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_boundary_only_is_flow_matching(net: Map, ends: tuple[Tensor, Tensor]) -> None:
    g1, g2 = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    s, t = TwoTimes(Uniform(), 1.0).sample_pair(N, ends[0], g1)
    assert torch.equal(s, t)
    split = SplitMeanFlow(flow_ratio=1.0)(net, *ends, generator=g2)
    plain = FlowMatching().at(lambda x, t: net(x, t, t), *ends, s)
    assert torch.equal(split.per_sample, plain.per_sample)
    assert torch.equal(split.value, plain.value)
    assert torch.equal(MeanFlow().at(net, *ends, s, t).per_sample, plain.per_sample)


def test_parts_and_rows(net: Map, ends: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    label = torch.arange(N) % 3
    calls = []

    def counting(x: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        calls.append(len(x))
        return net(x, s, t, label)

    loss = SplitMeanFlow(flow_ratio=0.5)(counting, *ends, generator=generator, label=label)
    consistent = calls[0]
    assert calls == [consistent, consistent, N]
    assert 0 < consistent < N
    total = loss.parts["consistency"] * consistent + loss.parts["boundary"] * (N - consistent)
    torch.testing.assert_close(total / N, loss.value.detach())


def test_target_network_and_teacher_are_used(
    net: Map, ends: tuple[Tensor, Tensor], times: tuple[Tensor, Tensor]
) -> None:
    s, t = times
    slow = copy.deepcopy(net)
    with torch.no_grad():
        slow.body[0].weight.mul_(0.5)
    same = SplitMeanFlow(target=net).at(net, *ends, s, t, torch.full_like(s, 0.5))
    other = SplitMeanFlow(target=slow).at(net, *ends, s, t, torch.full_like(s, 0.5))
    assert torch.equal(same.value, SplitMeanFlow().at(net, *ends, s, t, torch.full_like(s, 0.5)).value)
    assert not torch.equal(other.value, same.value)
    x = LinearPath().sample(*ends, s).x_t
    taught = SplitMeanFlow(velocity=TARGET.velocity()).at(net, *ends, s, s, s)
    torch.testing.assert_close(taught.per_sample, (net(x, s, s) - TARGET.velocity()(x, s)).square().mean(1))


def test_interval_splitting_learns_the_linear_flow(generator: torch.Generator) -> None:
    """For v = A x the map is (expm(A h) - I) / h; a model with a free matrix per interval of a grid learns it."""
    a = torch.tensor([[-0.4, 0.8], [-0.6, 0.2]], dtype=torch.float64)
    grid = 4

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(grid + 1, 2, 2, dtype=torch.float64))

        def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            return torch.einsum("bij,bj->bi", self.table[((t - s) * grid).round().long()], x)

    model = Table()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    objective = SplitMeanFlow(velocity=lambda x, t: x @ a.T)
    for step in range(400):
        if step == 250:
            optimizer.param_groups[0]["lr"] = 0.005
        k = torch.randint(grid + 1, (2, 256), generator=generator).sort(0).values
        s, t = k.double() / grid
        t[::3] = s[::3]
        steps = ((t - s) * grid).round()
        split = (torch.rand(256, generator=generator, dtype=torch.float64) * (steps + 1)).floor() / steps.clamp(min=1)
        split = torch.where(steps == 1, 0.0, split)  # one interval of the grid has only itself and the boundary
        keep = steps != 1
        x0, x1 = torch.randn(2, 256, 2, generator=generator, dtype=torch.float64)
        loss = objective.at(model, x0[keep], x1[keep], s[keep], t[keep], split[keep].clamp(max=1))
        optimizer.zero_grad()
        (loss.value + _one_interval(model, a, x0, grid)).backward()
        optimizer.step()
    for k in range(1, grid + 1):
        h = k / grid
        exact = (torch.linalg.matrix_exp(a * h) - torch.eye(2, dtype=torch.float64)) / h
        assert float((model.table[k] - exact).abs().max()) <= 1e-3


def _one_interval(model: nn.Module, a: Tensor, x: Tensor, grid: int) -> Tensor:
    """What a fixed grid cannot split: its smallest interval, given the exact map."""
    h = 1 / grid
    exact = (torch.linalg.matrix_exp(a * h) - torch.eye(2, dtype=torch.float64)) / h
    s = torch.zeros(len(x), dtype=torch.float64)
    return (model(x, s, s + h) - x @ exact.T).square().mean()


def test_weights(net: Map, ends: tuple[Tensor, Tensor], times: tuple[Tensor, Tensor]) -> None:
    s, _ = times
    field = lambda x, t: net(x, t, t)  # noqa: E731
    plain, adaptive = FlowMatching().at(field, *ends, s), FlowMatching(weight_power=1.0).at(field, *ends, s)
    assert torch.equal(plain.per_sample, adaptive.per_sample)
    torch.testing.assert_close(adaptive.value, (plain.per_sample / (2 * plain.per_sample + 1e-3)).mean())
    for ours, weighted in zip(
        gradients(adaptive.value, net),
        gradients((plain.per_sample / (2 * plain.per_sample.detach() + 1e-3)).mean(), net),
        strict=True,
    ):
        torch.testing.assert_close(ours, weighted)
    # Noise regression is velocity regression with weight omega.
    path = VPPath()
    point = path.sample(*ends, s)
    noise_loss = (field(point.x_t, s) - ends[0]).square().mean(1)
    view = Parametrized(field, "noise", path)
    weighted = FlowMatching(path, weight=lambda t: loss_weight(path, "noise", t)).at(view, *ends, s)
    torch.testing.assert_close(weighted.per_sample, noise_loss, rtol=1e-9, atol=0)


def test_conditional_and_marginal_targets_differ_by_a_constant(generator: torch.Generator) -> None:
    """Same minimiser: the gap of the two losses does not depend on the model (three standard errors)."""
    n, t = 200_000, 0.4
    x0 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    x1 = TARGET.sample(n, generator=generator)
    times, x = torch.full((n,), t, dtype=torch.float64), (1 - t) * x0 + t * x1
    marginal = TARGET.velocity()(x, t)
    gaps = []
    for scale in (0.0, 0.5, 2.0):
        conditional = FlowMatching().at(lambda x, t, scale=scale: scale * x, x0, x1, times).per_sample
        gaps.append(conditional - (scale * x - marginal).square().mean(1))
    for gap in gaps[1:]:
        difference = gap - gaps[0]
        assert abs(float(difference.mean().detach())) < 3 * float(difference.std()) / n**0.5


def test_time_samplers(generator: torch.Generator) -> None:
    like, n = torch.zeros(1), 100_000
    u = Uniform().sample(n, like, generator)
    assert abs(float(u.mean()) - 0.5) < 4 / (12 * n) ** 0.5
    z = torch.logit(LogitNormal(0.3, 0.8).sample(n, like.double(), generator))
    assert abs(float(z.mean()) - 0.3) < 4 * 0.8 / n**0.5
    assert abs(float(z.std()) - 0.8) < 4 * 0.8 / (2 * n) ** 0.5
    s, t = TwoTimes(Uniform(), 0.25).sample_pair(n, like, generator)
    assert bool((s <= t).all())
    assert abs(float((s == t).double().mean()) - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5
    assert abs(float(s.mean()) - 1 / 3) < 4 / (18 * n) ** 0.5
    a, b = 2.0, 3.0
    splits = SplitMeanFlow(split=(a, b))._splits(torch.zeros(n), generator)
    assert abs(float(splits.mean()) - 0.4) < 4 * (0.04 / n) ** 0.5


def test_every_objective_is_reproducible(net: Map, ends: tuple[Tensor, Tensor]) -> None:
    for objective in (MeanFlow(), SplitMeanFlow(), SplitMeanFlow(split=(0.5, 0.5)), Shortcut(), Consistency()):
        values = []
        for _ in range(2):
            state = torch.get_rng_state()
            values.append(objective(net, *ends, generator=torch.Generator().manual_seed(1)).value)
            assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(*values)
        assert bool(torch.isfinite(values[0]))
        values[0].backward()


@pytest.mark.parametrize("objective", [FlowMatching(), MeanFlow(), SplitMeanFlow(), Shortcut(), Consistency()])
def test_half_precision_keeps_times_in_float32(objective: object, net: Map) -> None:
    seen = []

    def low(x: Tensor, s: Tensor, t: Tensor | None = None) -> Tensor:
        seen.append((x.dtype, s.dtype))
        return x * 0.5

    x0, x1 = torch.randn(2, N, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = objective(low, x0, x1, generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(loss.value))
    assert set(seen) == {(torch.bfloat16, torch.float32)}


def test_kernels_without_forward_mode_are_explained(ends: tuple[Tensor, Tensor]) -> None:
    class NoForwardMode(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def setup_context(ctx: object, inputs: object, output: object) -> None:
            pass

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient * 2

    def net(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return NoForwardMode.apply(x)

    s = torch.full((N,), 0.2, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="SplitMeanFlow, which needs no derivative"):
        MeanFlow().at(net, *ends, s, s + 0.1)
    assert bool(torch.isfinite(SplitMeanFlow().at(net, *ends, s, s + 0.1, s).value))


def test_fused_attention(ends: tuple[Tensor, Tensor]) -> None:
    """Either the attention kernel has a forward-mode derivative, or the error says what to do."""

    def net(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        tokens = x.reshape(len(x), 1, 2, 1).expand(-1, 1, 2, 8)
        return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0, :, 0]

    x0, x1 = (end.float() for end in ends)
    s = torch.full((N,), 0.2)
    # torch's fused kernel on the CPU has no forward-mode derivative; should it get one, MeanFlow just works.
    problem = _message(lambda: MeanFlow().at(net, x0, x1, s, s + 0.1))
    assert problem is None or "sdpa_kernel" in problem
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert bool(torch.isfinite(MeanFlow().at(net, x0, x1, s, s + 0.1).value))


def _message(call: Callable[[], object]) -> str | None:
    try:
        call()
    except NotImplementedError as error:
        return str(error)
    return None


def test_bad_input(net: Map, ends: tuple[Tensor, Tensor], times: tuple[Tensor, Tensor]) -> None:
    (s, t), g = times, torch.Generator()
    for objective in (MeanFlow(), SplitMeanFlow(), Shortcut(), Consistency()):
        with pytest.raises(TypeError, match=r"FlowMapModel\.from_velocity"):
            objective(lambda x, t: x, *ends, generator=g)
        with pytest.raises(ValueError, match="x0 is"):
            objective(net, ends[0][:3], ends[1], generator=g)
    with pytest.raises(ValueError, match="is before s"):
        MeanFlow().at(net, *ends, t, s)
    with pytest.raises(ValueError, match="split must be in"):
        interval_split_target(net, ends[0], s, t, s + 1)
    for make, words in (
        (lambda: SplitMeanFlow(flow_ratio=1.5), "flow_ratio"),
        (lambda: SplitMeanFlow(split="thirds"), "thirds"),
        (lambda: SplitMeanFlow(split=(0.0, 1.0)), "positive"),
        (lambda: Shortcut(levels=0), "levels"),
        (lambda: Consistency(intervals=0), "intervals"),
        (lambda: TwoTimes(boundary_fraction=-0.1), "boundary_fraction"),
        (lambda: LogitNormal(std=0.0), "std"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            make()
    with pytest.warns(UserWarning, match="constant solutions"):
        SplitMeanFlow(flow_ratio=0.2)
