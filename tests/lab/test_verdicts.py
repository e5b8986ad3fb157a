from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from papers_for_tests import make_paper
from scipy import stats

from anabranch.lab import Claim, Measure, judge
from anabranch.lab.statistics import bootstrap_interval, t_interval
from anabranch.lab.verdicts import format_number, threshold_text, worse


def claim(**facts: Any) -> Claim:
    return Claim(**{"name": "c", "says": "So.", "measure": "m", "at_least": 2.0, "same_setting": True, **facts})


def verdict(values: list[float], *, scale: str = "laptop", measure: dict[str, Any] | None = None, **facts: Any) -> Any:
    paper = make_paper("p", (claim(**facts),))
    found = [{"m": Measure("m", value, **(measure or {}))} for value in values]
    return judge(paper, found, scale=scale)[0]


def test_t_interval_equals_scipy() -> None:
    values = [1.0, 1.5, 0.7, 2.0]
    ours = t_interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (ours.value, ours.low, ours.high) == pytest.approx((np.mean(values), low, high), rel=1e-12)
    logs = t_interval(values, scale="log")
    low, high = stats.t.interval(0.95, 3, np.mean(np.log(values)), stats.sem(np.log(values)))
    assert (logs.value, logs.low, logs.high) == pytest.approx(
        (stats.gmean(values), math.exp(low), math.exp(high)), rel=1e-12
    )


def test_t_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = sum(i.low <= 3 <= i.high for i in (t_interval(list(rng.normal(3, 2, 5))) for _ in range(2000)))
    assert 0.935 <= hits / 2000 <= 0.965


def test_bootstrap_interval_is_of_the_median_and_repeats() -> None:
    samples = list(np.random.default_rng(0).lognormal(0, 0.3, 15))
    first = bootstrap_interval(samples)
    assert first == bootstrap_interval(samples)
    assert first.value == np.median(samples)
    assert min(samples) <= first.low <= first.value <= first.high <= max(samples)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 3.1, 2.9], "holds"),
        ([1.0, 1.1, 0.9], "falls short"),
        ([1.9, 2.1, 2.05], "undecided"),
        ([2.0, 2.0, 2.0], "holds"),
    ],
)
def test_statistical(values: list[float], expected: str) -> None:
    assert verdict(values).outcome == expected


def test_statistical_needs_three_seeds() -> None:
    assert (verdict([9.0]).outcome, verdict([9.0, 9.0]).outcome) == ("undecided", "undecided")
    assert "needs 3" in verdict([9.0]).reason


@given(st.lists(st.floats(0.1, 100), min_size=3, max_size=6), st.floats(0.1, 100))
def test_at_most_mirrors_at_least(values: list[float], threshold: float) -> None:
    upper = verdict(values, at_least=None, at_most=threshold).outcome
    lower = verdict([-v for v in values], at_least=-threshold).outcome
    assert upper == lower


def test_exact_is_the_worst_value() -> None:
    found = verdict([2.0, 1.9999999], kind="exact")
    assert (found.outcome, found.value, found.low) == ("falls short", 1.9999999, None)
    assert verdict([2.0], kind="exact").outcome == "holds"
    assert verdict([1.0, 1.5], kind="exact", at_least=None, at_most=1.2).value == 1.5


def test_timing_is_of_the_first_seed_and_refuses_disturbed_times() -> None:
    quiet = {
        "samples": (3.0, 3.1, 2.9, 3.0),
        "details": {"ours_s": [1.0, 2.0, 3.0], "peer_s": [3.0, 6.0, 9.0], "disturbed": ""},
    }
    found = verdict([3.0, 0.1], kind="timing", measure=quiet)
    assert found.outcome == "holds"
    assert found.details == {"ours_s": 2.0, "peer_s": 6.0}
    noisy = {**quiet, "details": {**quiet["details"], "disturbed": "runs shared the machine"}}
    assert verdict([3.0], kind="timing", measure=noisy).outcome == "not checked"
    assert verdict([3.0], kind="timing").reason == "measured without lab.time"


def test_smoke_shows_values_and_judges_nothing() -> None:
    found = verdict([3.0, 3.0, 3.0], scale="smoke")
    assert (found.outcome, found.value, found.reason) == ("not checked", 3.0, "smoke scale")


def test_a_missing_measure_is_not_checked() -> None:
    assert "gave no 'm'" in verdict([]).reason
    paper = make_paper("p", (Claim(name="c", says="Published only."),))
    assert judge(paper, [])[0].reason == "no experiment yet"


def test_a_stand_in_is_always_named() -> None:
    stand_in = claim(same_setting=False, setting_here="Fashion-MNIST, 2 CPU cores")
    assert verdict([3.0] * 3).words(stand_in) == "holds on the stand-in (Fashion-MNIST)"
    assert verdict([3.0] * 3).words(claim()) == "holds"


def test_worse() -> None:
    assert worse("falls short", "holds")
    assert worse("undecided", "holds")
    assert not worse("holds", "falls short")
    assert not worse("not checked", "holds")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.5, "1.5"),
        (2.34567, "2.346"),
        (16384, "16,384"),
        (123456.7, "123,457"),
        (1e-9, "1.000e-09"),
        (-0.5, "-0.5"),
        (9999.6, "10,000"),
    ],
)
def test_format_number(value: float, text: str) -> None:
    assert format_number(value) == text


def test_an_exact_threshold_is_shown_in_full() -> None:
    assert threshold_text(claim(kind="exact", at_least=None, at_most=1 + 1e-9)) == "≤ 1.000000001"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"at_most": 1.0}, "exactly one"),
        ({"at_least": None}, "exactly one"),
        ({"measure": None}, "exactly one"),
        ({"name": "Not Kebab"}, "kebab-case"),
        ({"kind": "sometimes"}, "kind='sometimes'"),
    ],
)
def test_a_malformed_claim_is_refused(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        claim(**facts)


def test_a_paper_has_at_most_eight_claims() -> None:
    with pytest.raises(ValueError, match="at most 8"):
        make_paper("p", tuple(claim(name=f"c{i}") for i in range(9)))
    with pytest.raises(ValueError, match="share a name"):
        make_paper("p", (claim(), claim()))
