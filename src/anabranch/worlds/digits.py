"""Digits: 1,797 grey 8 x 8 pictures of written digits, 17 levels (Alpaydin and Kaynak, 1998), shipped inside scikit-learn.

The smallest real pictures: for smokes and for examples that must not fetch anything.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import UInt8


def load_digits() -> tuple[UInt8[np.ndarray, "n 8 8"], UInt8[np.ndarray, " n"]]:
    """Pictures with levels 0 (black) to 16, and their digits; the order is scikit-learn's.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed; the message says how to get it.
    """
    try:
        datasets: Any = import_module("sklearn.datasets")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("sklearn"):
            raise
        raise ModuleNotFoundError(
            "load_digits needs scikit-learn, which holds the pictures: pip install scikit-learn", name="sklearn"
        ) from None
    images, labels = datasets.load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8).astype(np.uint8), labels.astype(np.uint8)
