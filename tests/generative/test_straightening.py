"""Straightening: zero exactly where few steps pass through the teacher's states, and a student that gets there."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anabranch.generative import (
    Chords,
    ChosenTimes,
    Fixed,
    FlowMatching,
    PixelUNet,
    Reflow,
    ResMLP,
    Straighten,
    TimeSampler,
    add_low_rank,
    fit,
    low_rank_parameters,
    merge_low_rank,
    optimal_times,
    solve,
    step_costs,
    straighten,
    teacher_chords,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

MIXTURE = GaussianMixture(weights=[1, 2], means=[[1.5, 0.0], [-1.0, 1.0]], covariances=0.05)
FIELD = MIXTURE.velocity()


@pytest.fixture
def x0(generator: torch.Generator) -> Tensor:
    return torch.randn(10, 2, generator=generator, dtype=torch.float64)


def along(chords: Chords) -> Any:
    """The field that moves the states of ``chords`` along them (it knows each by its nearest)."""

    def field(x: Tensor, t: Any) -> Tensor:
        step = int((chords.times[:-1] <= float(torch.as_tensor(t).flatten()[0]) + 1e-9).sum()) - 1
        row = torch.cdist(x, chords.states[:, step]).argmin(1)
        return chords.velocity(row, torch.full_like(row, step))

    return field


def test_chords_are_the_trajectorys_states(x0: Tensor) -> None:
    times = uniform_times(20)[[0, 3, 8, 20]]
    chords = teacher_chords(FIELD, x0, times, 20, batch_size=4)
    fine = solve(FIELD, x0, uniform_times(20), return_trajectory=True)
    torch.testing.assert_close(chords.states, fine.states[[0, 3, 8, 20]].transpose(0, 1))
    row, step = torch.tensor([4, 7]), torch.tensor([1, 1])
    torch.testing.assert_close(chords.velocity(row, step), (fine.states[8, row] - fine.states[3, row]) / 0.25)


@pytest.mark.parametrize("weight", ["none", "step", "step2"])
def test_zero_exactly_where_sampling_passes_through_the_teachers_states(weight: Any, x0: Tensor) -> None:
    chords = teacher_chords(FIELD, x0, uniform_times(20)[[0, 3, 8, 20]], 20)
    objective, rows = Straighten(chords, weight=weight), torch.arange(10)
    for step in range(3):
        assert float(objective.at(along(chords), rows, torch.full_like(rows, step)).value) < 1e-28
    end = solve(along(chords), x0, chords.times)
    torch.testing.assert_close(end, solve(FIELD, x0, uniform_times(20)), rtol=0, atol=1e-12)
    off = lambda x, t: along(chords)(x, t) + 0.1  # noqa: E731
    loss = objective.at(off, rows, torch.full_like(rows, 2))
    length = {"none": 1.0, "step": 0.6 * 3, "step2": 0.36 / float((chords.times.diff() ** 2).mean())}[weight]
    torch.testing.assert_close(loss.per_sample, torch.full((10,), 0.01 * length, dtype=torch.float64))


def test_batches_draw_trajectories_and_steps_evenly(x0: Tensor, generator: torch.Generator) -> None:
    """The mean over many draws is the mean over all pairs."""
    chords = teacher_chords(FIELD, x0, uniform_times(4), 20)
    rows, steps = torch.arange(10).repeat_interleave(4), torch.arange(4).repeat(10)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)

    whole = Straighten(chords).at(net, rows, steps).per_sample
    drawn = Straighten(chords, batch_size=40_000)(net, generator=generator).per_sample
    assert float(drawn.mean() - whole.mean()) == pytest.approx(0, abs=4 * float(whole.std()) / 200)


def test_labels_go_to_teacher_and_student(x0: Tensor, generator: torch.Generator) -> None:
    label = torch.arange(10) % 3

    def field(x: Tensor, t: Any, label: Tensor) -> Tensor:
        return (1.0 + label[:, None].double()) * torch.ones_like(x)

    chords = teacher_chords(field, x0, uniform_times(2), 4, label=label, batch_size=3)
    assert float(Straighten(chords)(field, generator=generator).value) < 1e-28


@pytest.mark.parametrize("rank", [None, 2])
def test_a_student_learns_its_few_steps(rank: int | None) -> None:
    """From a trained teacher: four Euler steps end nearer to the teacher's end than before, on noises it has not seen."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    teacher = fit(
        ResMLP(2, 64, 2), FlowMatching(), MIXTURE.sample(4000, generator=g).float(), steps=300, batch_size=128, generator=g,
        ema=0.95, lr=3e-3,
    ).ema  # fmt: skip
    noise = torch.randn(600, 2, generator=g)
    times = optimal_times(step_costs(teacher, noise[:100], 40), 4)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    done = straighten(
        teacher, teacher_chords(teacher, noise[:400], times, 40), steps=250, generator=g, rank=rank, ema=0.9, lr=2e-3
    )
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
    assert type(done.ema) is ResMLP
    assert done.ema.state_dict().keys() == before.keys()
    end = solve(teacher, noise[400:], uniform_times(40))

    def error(net: Any) -> float:
        return float((solve(net, noise[400:], times) - end).square().mean())

    assert error(done.ema) < 0.6 * error(teacher)


def test_reflow_on_the_times_of_the_sampler(x0: Tensor, generator: torch.Generator) -> None:
    """The baseline: stored ends, training times on the sampler's grid."""
    law = ChosenTimes(uniform_times(4))
    assert isinstance(law, TimeSampler)
    drawn = law.sample(1000, x0, generator)
    assert set(drawn.tolist()) == {0.0, 0.25, 0.5, 0.75}
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    Reflow(Fixed(x0, x0 + 1), objective=FlowMatching(times=law))(net, generator=generator)
    assert set(seen[0].tolist()) <= {0.0, 0.25, 0.5, 0.75}


def test_low_rank_products(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    net = PixelUNet(1, 8, classes=3)
    torch.nn.init.normal_(net.leave.weight, std=0.05)
    x, t, label = torch.randn(3, 1, 28, 28, generator=generator), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    plain, names = net(x, t, label), set(net.state_dict())
    layers = [part for part in net.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
    wanted = sum(4 * (part.weight.shape[0] + part.weight[0].numel()) for part in layers)
    add_low_rank(net, 4)
    assert torch.equal(net(x, t, label), plain)  # up starts at 0
    own = list(low_rank_parameters(net))
    assert sum(p.numel() for p in own) == wanted
    assert [p for p in net.parameters() if p.requires_grad] == own
    with pytest.raises(ValueError, match="has low-rank products already"):
        add_low_rank(net)
    for p in own:
        torch.nn.init.normal_(p, std=0.1)
    changed = net(x, t, label)
    assert not torch.allclose(changed, plain, atol=1e-3)
    merge_low_rank(net)
    assert set(net.state_dict()) == names
    assert not list(low_rank_parameters(net))
    torch.testing.assert_close(net(x, t, label), changed, rtol=0, atol=1e-6)


def test_low_rank_products_are_drawn_from_the_generator() -> None:
    made = []
    for _ in range(2):  # torch's global generator goes on between the two
        net = add_low_rank(nn.Linear(5, 7), 2, generator=torch.Generator().manual_seed(3))
        made.append(next(low_rank_parameters(net)))
    assert torch.equal(*made)
    for alpha in (0.0, float("nan")):
        with pytest.raises(ValueError, match="alpha must be a positive number"):
            add_low_rank(nn.Linear(5, 7), alpha=alpha)


def test_bad_input(x0: Tensor) -> None:
    with pytest.raises(ValueError, match=r"times holds 0\.33"):
        teacher_chords(FIELD, x0, torch.tensor([0, 0.33, 1.0]), 10)
    with pytest.raises(ValueError, match="expected the ends of the anchors"):
        teacher_chords(FIELD, x0, torch.tensor([0, 0.5]), 10)
    with pytest.raises(ValueError, match="label has shape"):
        teacher_chords(FIELD, x0, uniform_times(2), 10, label=torch.zeros(3, dtype=torch.long))
    chords = teacher_chords(FIELD, x0, uniform_times(2), 4)
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        Straighten(chords, 0)
    with pytest.raises(ValueError, match="weight must be"):
        Straighten(chords, weight="length")
    with pytest.raises(ValueError, match=r"expected \[N, 3, ...\]"):
        Chords(chords.states[:, :2], chords.times)
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="has parametrized layers"):
        add_low_rank(normed)
    with pytest.raises(ValueError, match="LayerNorm has no layer of the kinds Linear, Conv2d"):
        add_low_rank(nn.LayerNorm(3))
