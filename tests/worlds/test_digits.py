"""The digits of scikit-learn."""

import sys

import numpy as np
import pytest

from anabranch.worlds import load_digits


def test_the_pictures() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    images, labels = load_digits()
    assert images.shape == (1797, 8, 8)
    assert (images.dtype, labels.dtype) == (np.uint8, np.uint8)
    assert (int(images.min()), int(images.max())) == (0, 16)
    assert sorted(set(labels.tolist())) == list(range(10))
    original = datasets.load_digits()
    assert np.array_equal(images, original.images)
    assert np.array_equal(labels, original.target)


def test_without_scikit_learn_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.datasets", raising=False)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        load_digits()
