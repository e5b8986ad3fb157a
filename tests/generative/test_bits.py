"""Bits per dimension against laws of discrete pictures that are known."""

import math

import pytest
import torch
from torch import Tensor

from anabranch.generative import GaussianSource, bits_per_dimension, log_likelihood, uniform_times
from anabranch.worlds import GaussianMixture


class UniformCube:
    """Uniform over all levels' cells."""

    def __init__(self, levels: int) -> None:
        self.end = 1 + 1 / (levels - 1)

    def log_prob(self, x: Tensor, /) -> Tensor:
        inside = (x.abs() <= self.end + 1e-12).flatten(1).all(1)
        return torch.where(inside, -x[0].numel() * math.log(2 * self.end), -math.inf).to(x.dtype)


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_a_uniform_law_costs_the_bits_of_its_levels(levels: int, generator: torch.Generator) -> None:
    images = torch.randint(
        levels, (6, 1, 4, 4), generator=generator, dtype=torch.uint8 if levels < 257 else torch.int64
    )
    bits = bits_per_dimension(
        lambda x, t: 0 * x,
        images,
        uniform_times(2),
        UniformCube(levels),
        generator=generator,
        levels=levels,
        dtype=torch.float64,
    )
    torch.testing.assert_close(bits, torch.full((6,), math.log2(levels), dtype=torch.float64))


def test_a_gaussian_law_against_the_probabilities_of_its_cells() -> None:
    """Bound >= truth, and their gap is the Jensen gap, computed by integrating over the cell."""
    std, mean, levels = 0.4, 0.1, 16
    law, width = GaussianMixture(weights=[1.0], means=[[mean]], covariances=std**2), 2 / 15
    source = GaussianSource((1,), dtype=torch.float64)
    images = torch.arange(3, 12)[:, None]
    centre = images.double() * width - 1
    normal = torch.distributions.Normal(mean, std)
    truth = -torch.log2(normal.cdf(centre + width / 2) - normal.cdf(centre - width / 2))[:, 0]
    mean_log = normal.log_prob(centre + width * (torch.linspace(0, 1, 2001, dtype=torch.float64) - 0.5)).mean(1)
    bound = -(mean_log + math.log(width)) / math.log(2)
    g = torch.Generator().manual_seed(0)
    draws = bits_per_dimension(
        law.velocity(), images.repeat(2000, 1), uniform_times(40), source, generator=g, levels=levels, dtype=torch.float64
    ).reshape(2000, 9)  # fmt: skip
    deviation = draws.std(0)
    assert float(((draws.mean(0) - bound).abs() / (deviation / 2000**0.5 + 1e-4)).max()) < 4
    assert bool((bound >= truth).all())
    many = bits_per_dimension(
        law.velocity(), images, uniform_times(40), source, generator=g, levels=levels, draws=4, dtype=torch.float64
    )
    assert float(((many - bound).abs() / (deviation / 2 + 1e-4)).max()) < 4


def test_it_is_the_likelihood_of_the_dequantized_picture() -> None:
    law = GaussianMixture(weights=[1, 2], means=[[0.1, 0.0, 0.2], [-0.3, 0.1, 0.0]], covariances=0.2)
    source, images = GaussianSource((3,), dtype=torch.float64), torch.tensor([[10, 100, 200], [0, 255, 127]])
    ours = bits_per_dimension(
        law.velocity(),
        images,
        uniform_times(30),
        source,
        generator=torch.Generator().manual_seed(5),
        dtype=torch.float64,
    )
    noise = torch.rand(2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = (images + noise - 0.5) / 127.5 - 1
    log_p = log_likelihood(law.velocity(), x, uniform_times(30), source)
    torch.testing.assert_close(ours, -(log_p / 3 - math.log(127.5)) / math.log(2))


def test_bad_input(generator: torch.Generator) -> None:
    images = torch.full((1, 2), 16)
    with pytest.raises(ValueError, match="hold 16: expected whole numbers from 0 to 15"):
        bits_per_dimension(lambda x, t: x, images, uniform_times(2), UniformCube(16), generator=generator, levels=16)
    with pytest.raises(ValueError, match="draws"):
        bits_per_dimension(lambda x, t: x, images, uniform_times(2), UniformCube(16), generator=generator, draws=0)
