"""Data with a known truth: real data sets, generated ones whose ground truth is exact, shared weights.

A data set has a :class:`Card` (licence, files, checksums, the ways to get it). Nothing is fetched without being asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anabranch.worlds.cards import Card, DataMissing, File, Way
from anabranch.worlds.fashion_mnist import CLASSES as FASHION_CLASSES
from anabranch.worlds.fashion_mnist import FASHION_MNIST, load_fashion_mnist

if TYPE_CHECKING:
    from anabranch.worlds.empirical_flow import EmpiricalFlow
    from anabranch.worlds.gaussian_mixture import GaussianMixture

CARDS = {card.name: card for card in (FASHION_MNIST,)}

__all__ = [
    "CARDS",
    "FASHION_CLASSES",
    "FASHION_MNIST",
    "Card",
    "DataMissing",
    "EmpiricalFlow",
    "File",
    "GaussianMixture",
    "Way",
    "load_fashion_mnist",
]

_NEED_TORCH = {"EmpiricalFlow": "empirical_flow", "GaussianMixture": "gaussian_mixture"}


def __getattr__(name: str) -> Any:
    """Loads what needs torch when it is asked for, so that the rest works without."""
    if name in _NEED_TORCH:
        import_module("anabranch.generative")  # names the extra where torch is missing
        return getattr(import_module(f"anabranch.worlds.{_NEED_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
