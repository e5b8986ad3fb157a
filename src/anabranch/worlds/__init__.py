"""Data with a known truth: real data sets, generated ones whose ground truth is exact, shared weights.

A data set has a :class:`Card` (licence, files, checksums, the ways to get it). Nothing is fetched without being asked for.
"""

from anabranch.worlds.cards import Card, DataMissing, File, Way
from anabranch.worlds.fashion_mnist import CLASSES as FASHION_CLASSES
from anabranch.worlds.fashion_mnist import FASHION_MNIST, load_fashion_mnist

CARDS = {card.name: card for card in (FASHION_MNIST,)}

__all__ = ["CARDS", "FASHION_CLASSES", "FASHION_MNIST", "Card", "DataMissing", "File", "Way", "load_fashion_mnist"]
