"""Jumping to the data end and re-noising: exact laws, the formula, what is asked of the map."""

import pytest
import torch
from torch import Tensor

from anabranch.generative import (
    GaussianSource,
    VPPath,
    flow_map_from_field,
    jump,
    jump_and_renoise,
    uniform_times,
)
from anabranch.worlds import GaussianMixture


def contraction(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The average velocity of x -> x / 2 over any interval that ends at 1."""
    return -x / 2 / (t - s)


def draw(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_call_is_a_jump() -> None:
    x, u = draw(16), flow_map_from_field(lambda x, t: -x, "rk4", 8)
    assert torch.equal(jump_and_renoise(u, x, uniform_times(1), generator=None), jump(u, x, uniform_times(1)))


def test_is_algorithm_1_with_the_same_noises() -> None:
    x, generator = draw(8), torch.Generator().manual_seed(5)
    found = jump_and_renoise(contraction, x, torch.tensor([0.0, 0.3, 0.8, 1.0]), generator=generator)
    generator.manual_seed(5)
    wanted = x / 2
    for t in (0.3, 0.8):
        noise = torch.randn(8, 2, generator=generator, dtype=torch.float64)
        wanted = (t * wanted + (1 - t) * noise) / 2
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7)  # times are float32 below float64 states' own grid


def test_path_and_source_of_the_noise_are_used() -> None:
    path, source = VPPath(), GaussianSource((2,), scale=3.0, dtype=torch.float64)
    x, t = draw(8), torch.tensor(0.4, dtype=torch.float64)
    found = jump_and_renoise(
        contraction, x, torch.tensor([0, 0.4, 1], dtype=torch.float64), generator=torch.Generator().manual_seed(2),
        path=path, source=source,
    )  # fmt: skip
    noise = source.sample(8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found, (path.alpha(t) * x / 2 + path.sigma(t) * noise) / 2, rtol=1e-12, atol=1e-12)


def test_an_exact_map_keeps_the_law_for_any_number_of_calls() -> None:
    world = GaussianMixture(weights=[1.0], means=[[1.0, -0.5]], covariances=0.25)
    n = 20_000
    exact = flow_map_from_field(world.velocity(), "rk4", 16)
    found = jump_and_renoise(exact, draw(n), uniform_times(4), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(found.mean(0), world.means[0], atol=5 * 0.5 / n**0.5)
    assert torch.allclose(found.var(0), torch.full((2,), 0.25, dtype=torch.float64), atol=5 * 0.25 * (2 / n) ** 0.5)


def test_only_jumps_to_the_end_are_asked_for() -> None:
    asked: list[tuple[float, float]] = []

    def spy(x: Tensor, s: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        asked.append((float(s), float(t)))
        assert condition.keys() == {"label"}
        return torch.zeros_like(x)

    steps: list[int] = []
    jump_and_renoise(
        spy, draw(3), uniform_times(2), generator=None, label=torch.zeros(3), progress=lambda i, n, _: steps.append(i)
    )
    assert asked == [(0.0, 1.0), (0.5, 1.0)]
    assert steps == [1, 2]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"times end at 0\.9"):
        jump_and_renoise(contraction, draw(2), torch.tensor([0.0, 0.9], dtype=torch.float64), generator=None)
    with pytest.raises(ValueError, match="strictly increasing"):
        jump_and_renoise(contraction, draw(2), torch.tensor([0.5, 0.5, 1.0]), generator=None)
    with pytest.raises(FloatingPointError, match="not finite"):
        jump_and_renoise(lambda x, s, t: x * torch.nan, draw(2), uniform_times(1), generator=None)
