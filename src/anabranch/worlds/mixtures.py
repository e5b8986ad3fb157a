"""The small exact law that several papers begin with."""

from __future__ import annotations

import math

import torch

from anabranch.worlds.gaussian_mixture import GaussianMixture


def eight_modes() -> GaussianMixture:
    """Eight round modes on a circle of radius 2 in the plane, weights 1 to 8 over 36, standard deviation 0.15."""
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    means = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(weights=torch.arange(1.0, 9.0) / 36, means=means, covariances=0.15**2)
