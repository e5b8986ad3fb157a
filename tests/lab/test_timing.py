from __future__ import annotations

import gc

import pytest

from anabranch.lab import Timing, time_pairs


def test_pairs_are_interleaved_and_their_order_alternates() -> None:
    calls: list[str] = []
    timing = time_pairs(lambda: calls.append("a"), lambda: calls.append("b"), pairs=4, warmup=1)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab" + "ba"
    assert (len(timing.ours_s), len(timing.peer_s), len(timing.ratios)) == (4, 4, 4)


def test_a_ratio_is_peer_over_ours_and_the_value_its_median() -> None:
    timing = Timing((1.0, 2.0, 4.0), (2.0, 2.0, 40.0))
    assert timing.ratios == (2.0, 1.0, 10.0)
    assert timing.value == 2.0
    assert Timing((1.0, 5.0, 2.0)).value == 2.0


def test_garbage_collection_is_off_while_timing_and_on_afterwards() -> None:
    states: list[bool] = []
    time_pairs(lambda: states.append(gc.isenabled()), pairs=3, warmup=0)
    assert states == [False] * 3
    assert gc.isenabled()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="pairs=2"):
        time_pairs(lambda: None, pairs=2)
    with pytest.raises(ValueError, match="warmup=-1"):
        time_pairs(lambda: None, warmup=-1)
