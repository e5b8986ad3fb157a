"""Two-time consistency, progressive distillation and reflow: zero at the truth, and equal to what they generalize."""

import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    Consistency,
    ConsistencyTrajectory,
    Counted,
    FlowMatching,
    GaussianPath,
    GaussianSource,
    LinearPath,
    ProgressiveDistillation,
    Reflow,
    TrigPath,
    TwoTimes,
    VPPath,
    convert,
    jump,
    solve,
    teacher_pairs,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

from .test_objectives import Map

TARGET = GaussianMixture(weights=[1.0], means=[[1.0, -0.5]], covariances=[[[0.5, 0.2], [0.2, 0.3]]])
MIXTURE = GaussianMixture(weights=[1, 2], means=[[1.0, 0.0], [-1.0, 1.0]], covariances=[0.3, 0.5])
N = 48


@pytest.fixture
def ends(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(2, N, 2, generator=generator, dtype=torch.float64).unbind()


@pytest.fixture
def net() -> Map:
    torch.manual_seed(0)
    return Map().double()


def three_times(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return torch.rand(3, N, generator=generator, dtype=torch.float64).sort(0).values.unbind()


@pytest.mark.parametrize("path", [LinearPath(), TrigPath()], ids=lambda p: type(p).__name__)
def test_the_exact_map_loses_only_the_teachers_step(
    path: GaussianPath, ends: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    """With a fine teacher nothing; with one Euler or Heun step the loss falls like h^4 or h^6 (error h^2, h^3)."""
    u, v = TARGET.flow_map(path), TARGET.velocity(path)
    s, m, t = three_times(generator)
    fine = ConsistencyTrajectory(path, velocity=v, solver="rk4", solver_steps=50)
    assert float(fine.at(u, *ends, s, m, t).per_sample.max()) < 1e-16
    for solver, order in (("euler", 4), ("heun", 6)):
        objective = ConsistencyTrajectory(path, velocity=v, solver=solver)
        start = torch.full_like(s, 0.3)
        losses = [float(objective.at(u, *ends, start, start + h, start + 0.5).value) for h in (0.02, 0.01)]
        assert 0.75 * 2**order < losses[0] / losses[1] < 1.3 * 2**order


def test_to_the_data_with_one_euler_step_it_is_consistency_distillation(
    net: Map, ends: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    s, m, _ = three_times(generator)
    one = torch.ones_like(s)
    v = MIXTURE.velocity()
    ours = ConsistencyTrajectory(velocity=v, solver="euler").at(net, *ends, s, m, one)
    theirs = Consistency(velocity=v).at(net, *ends, s, m)
    torch.testing.assert_close(ours.per_sample, theirs.per_sample)
    for a, b in zip(*(torch.autograd.grad(loss.value, list(net.parameters())) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_without_a_teacher_it_is_consistency_training(
    net: Map, ends: tuple[Tensor, Tensor], generator: torch.Generator
) -> None:
    """On the linear path the pair's Euler step is the pair's point; on others only this one stays on the pair."""
    s, m, _ = three_times(generator)
    one = torch.ones_like(s)
    ours = ConsistencyTrajectory().at(net, *ends, s, m, one)
    torch.testing.assert_close(ours.per_sample, Consistency().at(net, *ends, s, m).per_sample)


def test_boundary_samples_are_flow_matching(net: Map, ends: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    s, _, _ = three_times(generator)
    for path in (LinearPath(), TrigPath()):
        loss = ConsistencyTrajectory(path).at(net, *ends, s, s, s)
        flow = FlowMatching(path).at(lambda x, t: net(x, t, t), *ends, s)
        torch.testing.assert_close(loss.per_sample, flow.per_sample)
        assert float(loss.parts["boundary"]) == pytest.approx(float(flow.value.detach()))
    taught = ConsistencyTrajectory(velocity=MIXTURE.velocity()).at(net, *ends, s, s, s)
    x = LinearPath().sample(*ends, s).x_t
    expected = (net(x, s, s) - MIXTURE.velocity()(x, s)).square().mean(1)
    torch.testing.assert_close(taught.per_sample, expected)


def test_target_network_gets_no_gradient(net: Map, ends: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    torch.manual_seed(1)
    other = Map().double()
    loss = ConsistencyTrajectory(times=TwoTimes(boundary_fraction=0.3), target=other, reach=0.5)(
        net, *ends, generator=generator
    )
    loss.value.backward()
    assert all(p.grad is None for p in other.parameters())
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("path", [LinearPath(), TrigPath(), VPPath()], ids=lambda p: type(p).__name__)
def test_a_perfect_student_samples_as_the_teacher_in_half_the_steps(
    path: GaussianPath, generator: torch.Generator
) -> None:
    """The student that is its own goal: n DDIM steps of it are 2 n of the teacher, to rounding; twice halved, 4 n."""
    x = torch.randn(32, 2, generator=generator, dtype=torch.float64)
    teacher, steps = MIXTURE.velocity(path), 8
    finest = solve(teacher, x, uniform_times(4 * steps), "ddim", path=path)
    for n in (2 * steps, steps):
        objective = ProgressiveDistillation(teacher, n, path)

        def student(x: Tensor, t: Tensor, objective: ProgressiveDistillation = objective) -> Tensor:
            return objective.goal(x, t.expand(len(x)))

        half = solve(student, x, uniform_times(n), "ddim", path=path)
        torch.testing.assert_close(
            half, solve(teacher, x, uniform_times(2 * n), "ddim", path=path), rtol=1e-9, atol=1e-9
        )
        teacher = student  # type: ignore[assignment]
    torch.testing.assert_close(half, finest, rtol=1e-9, atol=1e-9)


def test_the_goal_has_no_loss_and_kinds_weigh_it(ends: tuple[Tensor, Tensor]) -> None:
    path, s = TrigPath(), torch.arange(N, dtype=torch.float64) % 6 / 6 + 1 / 24
    objective = ProgressiveDistillation(MIXTURE.velocity(path), 6, path)
    assert float(objective.at(objective.goal, *ends, s).value) < 1e-20
    x = path.sample(*ends, s).x_t
    goal = objective.goal(x, s)
    for kind in ("velocity", "noise", "denoised", "diffusion_v"):
        loss = ProgressiveDistillation(MIXTURE.velocity(path), 6, path, kind).at(lambda x, t: 0 * x, *ends, s)  # type: ignore[arg-type]
        a, b = (convert(value, x, s, path, "velocity", kind) for value in (goal, 0 * x))  # type: ignore[arg-type]
        torch.testing.assert_close(loss.per_sample, (a - b).square().mean(1), rtol=1e-8, atol=0)


def test_student_times_are_its_grid(ends: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    seen = []
    objective = ProgressiveDistillation(MIXTURE.velocity(), 4)
    objective(lambda x, t: seen.append(t) or x, *ends, generator=generator)
    assert set((4 * seen[0]).tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_pairs_are_the_teachers_trajectories_in_batches(generator: torch.Generator) -> None:
    source, label = GaussianSource((2,), dtype=torch.float64), torch.arange(10) % 2
    pairs = teacher_pairs(
        MIXTURE.velocity(), source, 10, uniform_times(20), generator=generator, batch_size=4, label=label
    )
    ends = solve(MIXTURE.velocity(), pairs.x0, uniform_times(20), "heun", label=label)
    torch.testing.assert_close(pairs.x1, ends)
    assert torch.equal(pairs.label, label)
    draws = GaussianSource((2,), dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    assert torch.equal(pairs.x0, torch.cat([draws.sample(n, generator=g) for n in (4, 4, 2)]))


def test_reflow_straightens_a_flow() -> None:
    """The minimiser of reflow on a Gaussian is known: pairs by the optimal map make a flow that one Euler step solves."""
    g = torch.Generator().manual_seed(0)
    pairs = teacher_pairs(
        TARGET.velocity(), GaussianSource((2,), dtype=torch.float64), 400, uniform_times(50), generator=g
    )
    times = torch.rand(400, generator=g, dtype=torch.float64)
    point = LinearPath().sample(pairs.x0, pairs.x1, times)
    # Fit v = (A_0 + A_1 t + ... ) [x, 1] by least squares: enough for a linear map's straight flow.
    base = torch.cat([point.x_t, torch.ones(400, 1, dtype=torch.float64)], 1)
    features = torch.cat([base * times[:, None] ** k for k in range(8)], 1)
    weights = torch.linalg.lstsq(features, point.velocity)[0]

    def straight(x: Tensor, t: Tensor) -> Tensor:
        base = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        return torch.cat([base * torch.as_tensor(t).reshape(-1, 1) ** k for k in range(8)], 1) @ weights

    x = torch.randn(200, 2, generator=g, dtype=torch.float64)
    exact = jump(TARGET.flow_map(), x, uniform_times(1))
    one, before = (solve(v, x, uniform_times(1)) for v in (straight, TARGET.velocity()))
    assert float((one - exact).norm(dim=1).mean()) < 0.01 * float((before - exact).norm(dim=1).mean())
    loss = Reflow(pairs, 256)(straight, generator=g)
    assert float(loss.value.detach()) < 1e-4


def test_reflow_draws_its_batches_and_labels(generator: torch.Generator) -> None:
    label = torch.arange(30) % 3
    source = GaussianSource((2,))
    pairs = teacher_pairs(MIXTURE.velocity(), source, 30, uniform_times(3), generator=generator, label=label % 2)
    seen = []

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append(label)
        return x

    counted = Counted(net)
    loss = Reflow(pairs, 12)(counted, generator=generator)
    assert (counted.rows, len(seen[0]), loss.per_sample.shape) == (12, 12, (12,))


def test_bad_input(net: Map, ends: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    s, m, t = three_times(generator)
    v, source = MIXTURE.velocity(), GaussianSource((2,))
    for make, words in (
        (lambda: ConsistencyTrajectory(reach=2.0), "reach"),
        (lambda: ConsistencyTrajectory(solver="ancestral"), "deterministic"),
        (lambda: ConsistencyTrajectory().at(net, *ends, m, s, t), "before"),
        (lambda: ProgressiveDistillation(v, 0), "steps"),
        (lambda: Reflow(teacher_pairs(v, source, 2, uniform_times(1), generator=generator), 0), "batch_size"),
        (lambda: teacher_pairs(v, source, 0, uniform_times(1), generator=generator), "n must be"),
        (lambda: teacher_pairs(v, source, 2, uniform_times(1), generator=generator, solver="ancestral"), "stochastic"),
        (lambda: teacher_pairs(v, source, 2, uniform_times(1), generator=generator, label=torch.zeros(3)), "label"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    with pytest.raises(TypeError, match="flow map"):
        ConsistencyTrajectory().at(lambda x, t: x, *ends, s, m, t)
