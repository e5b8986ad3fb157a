"""Messages of the argument checks."""

import numpy as np
import pytest

from anabranch.fabric import _checks


def test_integers():
    assert _checks.integers("x", [1, 2], low=0).dtype == np.int64
    assert _checks.integers("x", [], low=0, dtype=np.int32).dtype == np.int32
    with pytest.raises(TypeError, match="x must hold integers, got dtype float64"):
        _checks.integers("x", [1.0], low=0)
    with pytest.raises(TypeError, match="x must hold integers, got dtype bool"):
        _checks.integers("x", [True], low=0)
    with pytest.raises(ValueError, match=r"x\[1, 0\] must be >= 0 and < 5, got 7"):
        _checks.integers("x", [[1, 2], [7, 4]], low=0, high=5)
    with pytest.raises(ValueError, match="x must be >= 1, got 0"):
        _checks.integers("x", 0, low=1)


def test_positive_int():
    assert _checks.positive_int("x", np.int32(3)) == 3
    for wrong in (2.0, "2", True, None):
        with pytest.raises(TypeError, match="x must be an integer >= 1, got "):
            _checks.positive_int("x", wrong)


def test_choice():
    with pytest.raises(ValueError, match="group must be one of 'pair', 'source', got 'spine'"):
        _checks.choice("group", "spine", ("pair", "source"))
