"""Data with a known truth: real data sets, generated ones whose ground truth is exact, shared weights.

A data set has a :class:`Card` (licence, files, checksums, the ways to get it). Nothing is fetched without being asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anabranch.worlds.cards import Card, DataMissing, File, Way
from anabranch.worlds.digits import load_digits
from anabranch.worlds.fashion_mnist import CLASSES as FASHION_CLASSES
from anabranch.worlds.fashion_mnist import FASHION_MNIST, load_fashion_mnist
from anabranch.worlds.language_models import MINILM, SMOLLM2_GGUF
from anabranch.worlds.serving_traces import AZURE_LLM_2023, SPLITWISE_PROFILES
from anabranch.worlds.shared_weights import FASHION_CLASSIFIER, FASHION_TEACHER, Weights
from anabranch.worlds.uea_series import BASIC_MOTIONS, JAPANESE_VOWELS

if TYPE_CHECKING:
    from anabranch.worlds.empirical_flow import EmpiricalFlow
    from anabranch.worlds.fashion_classifier import (
        FashionClassifier,
        FashionJudge,
        FashionScores,
        fashion_tensors,
        load_fashion_classifier,
    )
    from anabranch.worlds.fashion_images import garments
    from anabranch.worlds.fashion_teacher import balanced_labels, load_fashion_teacher
    from anabranch.worlds.gaussian_mixture import GaussianMixture
    from anabranch.worlds.mixtures import eight_modes

CARDS: dict[str, Card | Weights] = {
    card.name: card
    for card in (
        FASHION_MNIST,
        FASHION_TEACHER,
        FASHION_CLASSIFIER,
        JAPANESE_VOWELS,
        BASIC_MOTIONS,
        AZURE_LLM_2023,
        SPLITWISE_PROFILES,
        SMOLLM2_GGUF,
        MINILM,
    )
}

__all__ = [
    "AZURE_LLM_2023",
    "BASIC_MOTIONS",
    "CARDS",
    "FASHION_CLASSES",
    "FASHION_CLASSIFIER",
    "FASHION_MNIST",
    "FASHION_TEACHER",
    "JAPANESE_VOWELS",
    "MINILM",
    "SMOLLM2_GGUF",
    "SPLITWISE_PROFILES",
    "Card",
    "DataMissing",
    "EmpiricalFlow",
    "FashionClassifier",
    "FashionJudge",
    "FashionScores",
    "File",
    "GaussianMixture",
    "Way",
    "Weights",
    "balanced_labels",
    "eight_modes",
    "fashion_tensors",
    "garments",
    "load_digits",
    "load_fashion_classifier",
    "load_fashion_mnist",
    "load_fashion_teacher",
]

_NEED_TORCH = {
    "EmpiricalFlow": "empirical_flow", "FashionClassifier": "fashion_classifier", "FashionJudge": "fashion_classifier",
    "FashionScores": "fashion_classifier", "GaussianMixture": "gaussian_mixture", "balanced_labels": "fashion_teacher",
    "eight_modes": "mixtures", "fashion_tensors": "fashion_classifier", "garments": "fashion_images",
    "load_fashion_classifier": "fashion_classifier", "load_fashion_teacher": "fashion_teacher",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Loads what needs torch when it is asked for, so that the rest works without."""
    if name in _NEED_TORCH:
        import_module("anabranch.generative")  # names the extra where torch is missing
        return getattr(import_module(f"anabranch.worlds.{_NEED_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
