"""Images for an experiment: real ones, or without the data set those that the shipped teacher draws."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anabranch.generative import teacher_samples
from anabranch.worlds.fashion_classifier import fashion_tensors
from anabranch.worlds.fashion_teacher import balanced_labels, load_fashion_teacher


def garments(images_from: str, root: Path, *, drawn: int = 120) -> tuple[Float[Tensor, "n 1 28 28"], Int[Tensor, " n"]]:
    """Images in [-1, 1] and labels to train on and to compare with.

    Args:
        images_from: ``"fashion-mnist"``, the 60,000 training images in the data folder ``root``; ``"teacher"``, the first
            ``drawn`` images of a fixed noise in two steps of the shipped teacher, classes balanced.

    Raises:
        DataMissing: Fashion-MNIST is not in ``root``; the message names the ways to get it.
        ValueError: another word in ``images_from``, or ``drawn`` below 1.
    """
    if images_from == "fashion-mnist":
        return fashion_tensors(root)
    if images_from != "teacher":
        raise ValueError(f"images_from={images_from!r}: expected 'fashion-mnist' or 'teacher'")
    if drawn < 1:
        raise ValueError(f"drawn={drawn}: expected at least 1")
    noise = torch.randn(drawn, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images = teacher_samples(load_fashion_teacher(), noise, label=balanced_labels(drawn), steps=2)
    assert isinstance(images, tuple)
    return images
