"""Natural colours: photographs that come with scikit-learn, random patches of pictures, and noise with a natural spectrum."""

import importlib.util
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_count
from anabranch.generative.image_files import load_images


def photographs() -> Float[Tensor, "n 3 h w"]:
    """The two photographs of scikit-learn, 427 x 640, in [-1, 1]: a temple and a flower. The package itself is not imported.

    Raises:
        FileNotFoundError: it is not installed.
    """
    package = importlib.util.find_spec("sklearn")
    folder = None if package is None or package.origin is None else Path(package.origin).parent / "datasets" / "images"
    if folder is None or not folder.is_dir():
        raise FileNotFoundError("scikit-learn, whose two photographs are wanted, is not installed")
    return load_images(folder, channels=3).x


def random_patches(
    pictures: Float[Tensor, "n c h w"], count: int, side: int, *, generator: torch.Generator | None
) -> Float[Tensor, "count c side side"]:
    """Squares at uniformly random places, with replacement.

    Raises:
        ValueError: a side that is larger than the pictures.
    """
    check_count("count", count)
    check_count("side", side)
    if side > min(pictures.shape[2:]):
        raise ValueError(f"side={side}: expected at most {min(pictures.shape[2:])}, the pictures' smaller side")
    windows = pictures.unfold(2, side, 1).unfold(3, side, 1)
    sizes = (len(windows), windows.shape[2], windows.shape[3])
    which, row, column = (torch.randint(size, (count,), generator=generator) for size in sizes)
    return windows[which, :, row, column]


def natural_noise(n: int, side: int, *, generator: torch.Generator | None) -> Float[Tensor, "n 3 side side"]:
    """Colour pictures in [-1, 1] of noise whose amplitude falls like 1 / frequency, as that of natural scenes does (Field
    1987), and whose three colours share most of it."""
    check_count("n", n)
    check_count("side", side, 2)
    frequency = torch.fft.fftfreq(side)[:, None].hypot(torch.fft.rfftfreq(side)).clamp(min=1 / side)
    white = torch.randn(n, 3, side, side, generator=generator) + 2 * torch.randn(n, 1, side, side, generator=generator)
    smooth = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(side, side))
    return torch.tanh(smooth / smooth.std())
