"""Flow maps: direction, exactness, and networks that take a second time."""

import copy

import pytest
import torch
from torch import Tensor, nn

from anabranch.generative import (
    FlowMapModel,
    SplitMeanFlow,
    flow_map_from_field,
    interval_split_residual,
    jump,
    shifted_times,
    solve,
    uniform_times,
)
from anabranch.worlds import GaussianMixture

GAUSSIAN = GaussianMixture(weights=[1.0], means=[[1.0, -0.5]], covariances=0.5)
MIXTURE = GaussianMixture(weights=[1, 2], means=[[1.0, 0.0], [-1.0, 1.0]], covariances=0.3)


class Net(nn.Module):
    """A small velocity network with a time embedding and an optional label."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.time_embedding = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(4, width)
        self.inner, self.out = nn.Linear(2, width), nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.inner(x) + self.time_embedding(t[:, None])
        if label is not None:
            h = h + self.label(label)
        return self.out(nn.functional.silu(h))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(16, 2, generator=generator, dtype=torch.float64)


def pairs(generator: torch.Generator, n: int = 16) -> tuple[Tensor, Tensor]:
    return torch.rand(2, n, generator=generator, dtype=torch.float64).sort(0).values.unbind()


def test_direction_is_from_the_start(x: Tensor, generator: torch.Generator) -> None:
    """x_t = m_t + (sd_t / sd_s) (x_s - m_s), the state given at s."""
    s, t = pairs(generator)
    mean, c2 = GAUSSIAN.means[0], 0.5
    sd_s, sd_t = (((1 - r) ** 2 + r**2 * c2).sqrt()[:, None] for r in (s, t))
    exact = (t[:, None] * mean + sd_t / sd_s * (x - s[:, None] * mean) - x) / (t - s)[:, None]
    solved = flow_map_from_field(GAUSSIAN.velocity(), "rk4", 64)(x, s, t)
    assert float((solved - exact).abs().max()) <= 1e-8
    assert float((GAUSSIAN.flow_map()(x, s, t) - exact).abs().max()) <= 1e-10


def test_equal_times_give_the_velocity(x: Tensor, generator: torch.Generator) -> None:
    s, _ = pairs(generator)
    for mixture in (GAUSSIAN, MIXTURE):
        torch.testing.assert_close(mixture.flow_map()(x, s, s), mixture.velocity()(x, s), rtol=1e-12, atol=1e-12)


def test_maps_compose(x: Tensor, generator: torch.Generator) -> None:
    s, m, t = torch.rand(3, 1000, generator=generator, dtype=torch.float64).sort(0).values
    states = torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    assert float(interval_split_residual(GAUSSIAN.flow_map(), states, s, m, t).max()) <= 1e-12
    solved = flow_map_from_field(MIXTURE.velocity(), "rk4", 64)
    assert float(interval_split_residual(solved, states, s, m, t).max()) <= 1e-6
    with pytest.raises(ValueError, match="is before s"):
        interval_split_residual(GAUSSIAN.flow_map(), states, m, s, t)


def test_jump(x: Tensor) -> None:
    end = solve(GAUSSIAN.velocity(), x, uniform_times(400), "rk4")
    for times in (uniform_times(1), uniform_times(4), shifted_times(3, 2.0)):
        torch.testing.assert_close(jump(GAUSSIAN.flow_map(), x, times), end, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="strictly increasing"):
        jump(GAUSSIAN.flow_map(), x, torch.tensor([0.0, 0.0]))
    with pytest.raises(FloatingPointError):
        jump(lambda x, s, t: x / 0, x, uniform_times(1))


def test_solved_map_takes_only_velocity_solvers() -> None:
    for solver in ("ddim", "euler_maruyama"):
        with pytest.raises(ValueError, match="velocity solver"):
            flow_map_from_field(GAUSSIAN.velocity(), solver)


def test_model_starts_as_the_velocity_bit_for_bit(net: Net, x: Tensor, generator: torch.Generator) -> None:
    model, (s, t) = FlowMapModel.from_velocity(net), pairs(generator)
    label = torch.arange(16) % 4
    for times in ((s, t), (s, s)):
        assert torch.equal(model(x, *times), net(x, s))
        assert torch.equal(model(x, *times, label=label), net(x, s, label=label))
    assert torch.equal(model.velocity()(x, s), net(x, s))
    assert torch.equal(model(x, 0.0, 1.0), net(x, torch.zeros(16, dtype=torch.float64)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    assert not torch.equal(model(x, s, t), net(x, s))
    assert not torch.equal(model(x, s, t), model(x, s, (s + t) / 2))  # the second time is used
    assert torch.equal(net(x, s), Net.forward(net, x, s))  # the original is untouched


def test_model_copies_saves_and_trains(net: Net, x: Tensor, generator: torch.Generator) -> None:
    model, (s, t) = FlowMapModel.from_velocity(net), pairs(generator)
    x1 = torch.randn(16, 2, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SplitMeanFlow()(model, x, x1, generator=generator).value.backward()
    assert all(p.grad is not None for p in model.interval.out.parameters())
    optimizer.step()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x, s, t), model(x, s, t))
    with torch.no_grad():
        twin.interval.out.bias.add_(1)
    assert not torch.equal(twin(x, s, t), model(x, s, t))
    other = FlowMapModel.from_velocity(net)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x, s, t), model(x, s, t))


def test_model_names_what_is_wrong(net: Net, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"'time' is no submodule of the network: time_embedding"):
        FlowMapModel.from_velocity(net, embedding="time")
    with pytest.raises(ValueError, match="no linear layer"):
        FlowMapModel.from_velocity(net, embedding="label")
    with pytest.raises(ValueError, match="expected a time embedding"):
        FlowMapModel(net, embedding="out", width=7)(x, 0.0, 1.0)
