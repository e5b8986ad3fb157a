"""A small classifier of Fashion-MNIST: class accuracy of generated images, and the features of FFD.

FFD, the Fashion Frechet distance, is ``frechet_distance`` on the 64 penultimate features, the reference the 60,000 training
images. It is not FID; n belongs beside every value.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anabranch.generative import Loss, fit, metrics
from anabranch.worlds.cards import Note
from anabranch.worlds.fashion_mnist import load_fashion_mnist
from anabranch.worlds.shared_weights import FASHION_CLASSIFIER

_STEPS, _BATCH, _RATE = 3000, 250, 2e-3
_CHUNK = 1000


def fashion_tensors(root: Path, split: str = "train") -> tuple[Float[Tensor, "n 1 28 28"], Int[Tensor, " n"]]:
    """Images in [-1, 1] and labels of a split of Fashion-MNIST.

    Raises:
        DataMissing: it is not in ``root``.
    """
    images, labels = load_fashion_mnist(root, split)  # type: ignore[arg-type]
    return torch.from_numpy(images)[:, None].float().div(127.5).sub(1), torch.from_numpy(labels).long()


class FashionClassifier(nn.Module):
    """Three strided convolutions, 64 features, ten classes; SiLU throughout. 0.23 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (1, 32, 64, 128)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 64), nn.SiLU())
        self.leave = nn.Linear(64, 10)

    def forward(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        """Logits of images in [-1, 1]."""
        return self.leave(self.body(images))

    @torch.inference_mode()
    def features(self, images: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 64"]:
        """Penultimate features of images in [-1, 1], which are clamped to it first."""
        return torch.cat([self.body(part.clamp(-1, 1)) for part in images.split(_CHUNK)])

    @torch.inference_mode()
    def classes(self, images: Float[Tensor, "n 1 28 28"]) -> Int[Tensor, " n"]:
        """The likeliest class of each image."""
        return self.leave(self.features(images)).argmax(1)


class FashionScores(NamedTuple):
    """``ffd`` to the training images, the share of images that the classifier puts in the asked class, and ``n``."""

    ffd: float
    accuracy: float
    n: int


class FashionJudge:
    """Scores generated images: FFD against reference images, and class accuracy.

    Args:
        reference: images in [-1, 1]; for FFD proper the 60,000 training images, ``fashion_tensors(root)[0]``.
    """

    def __init__(self, reference: Float[Tensor, "n 1 28 28"]) -> None:
        self.classifier = load_fashion_classifier()
        self.reference = self.classifier.features(reference)

    def __call__(self, images: Float[Tensor, "n 1 28 28"], labels: Int[Tensor, " n"]) -> FashionScores:
        """Scores of images in [-1, 1] that were asked for with these labels."""
        features = self.classifier.features(images)
        accuracy = (self.classifier.leave(features).argmax(1) == labels).double().mean()
        return FashionScores(metrics.frechet_distance(features, self.reference), float(accuracy), len(images))

    def distance(self, images: Float[Tensor, "n 1 28 28"], others: Float[Tensor, "m 1 28 28"]) -> float:
        """FFD of one set of generated images to another."""
        return metrics.frechet_distance(self.classifier.features(images), self.classifier.features(others))

    def pair_distance(self, images: Float[Tensor, "n 1 28 28"], others: Float[Tensor, "n 1 28 28"]) -> float:
        """Mean distance of the features of pairs of images."""
        difference = self.classifier.features(images) - self.classifier.features(others)
        return float(torch.linalg.vector_norm(difference, dim=1).mean())


def load_fashion_classifier(path: Path | None = None) -> FashionClassifier:
    """The shipped classifier, checked by its hash; or one that was built to ``path``.

    Raises:
        ValueError: a damaged file.
    """
    from safetensors.torch import load_file

    net = FashionClassifier()
    net.load_state_dict(load_file(FASHION_CLASSIFIER.checked() if path is None else path))
    return net.eval().requires_grad_(False)


def build_classifier(folder: Path, root: Path, note: Note) -> tuple[Path, str, dict[str, float]]:
    """Train it: about two minutes on one core. Gates: test accuracy, and FFD of the test images."""
    from safetensors.torch import save_file

    x, label = fashion_tensors(root)
    test, test_label = fashion_tensors(root, "test")
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = FashionClassifier()

    def objective(net: nn.Module, *, generator: torch.Generator) -> Loss:
        rows = torch.randint(len(x), (_BATCH,), generator=generator)
        losses = nn.functional.cross_entropy(net(x[rows]), label[rows], reduction="none", label_smoothing=0.05)
        return Loss(losses.mean(), losses)

    def told(done: int, total: int, metrics: object) -> None:
        if done % 250 == 0:
            note(f"step {done} of {total}")

    trained = fit(
        net, objective, steps=_STEPS, generator=generator, lr=_RATE, weight_decay=1e-2, precision="f32",
        checkpoint=folder / "training.pt", progress=told,
    )  # fmt: skip
    best = FashionClassifier()
    best.load_state_dict(trained.ema.state_dict())
    best.eval()
    reference = best.features(x)
    gates = {
        "test_accuracy": round(float((best.classes(test) == test_label).double().mean()), 4),
        "ffd_of_10000_test_images": round(metrics.frechet_distance(best.features(test), reference), 3),
        "ffd_of_2500_test_images": round(metrics.frechet_distance(best.features(test[:2500]), reference), 3),
    }
    path = folder / "fashion-classifier.safetensors"
    save_file(best.state_dict(), path)
    recipe = (
        f"{_STEPS} steps of {_BATCH} training images, AdamW {_RATE} with weight decay 0.01, cosine, label smoothing 0.05, "
        "average of the weights 0.999, seed 0"
    )
    return path, recipe, gates
