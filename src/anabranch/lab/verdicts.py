"""Judges claims from measures.

*exact*: every run must meet the threshold; the worst value is shown, without an interval. *statistical*: Student's t-interval
over the seeds, at least three. *timing*: bootstrap interval over the interleaved pairs of the first seed's run.
A claim holds when its whole interval meets the threshold, falls short when the whole interval misses it, and is undecided
between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from anabranch.lab.contract import Claim, Paper
from anabranch.lab.runs import Measure
from anabranch.lab.statistics import Interval, bootstrap_interval, t_interval

Outcome = Literal["holds", "falls short", "undecided", "not checked"]
MIN_SEEDS = 3
_RANK = {"holds": 2, "undecided": 1, "falls short": 0}


@dataclass(frozen=True)
class Verdict:
    """What the measures say of a claim.

    Attributes:
        value: the measured value (mean over seeds, worst for exact claims, median for timing); None where not checked.
        low, high: the interval; None where there is none.
        reason: why it is not checked or undecided.
        n: seeds or pairs behind the value.
        details: both times of a timing claim, or what the experiment added.
    """

    claim: str
    outcome: Outcome
    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    reason: str = ""
    n: int = 0
    details: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    def words(self, claim: Claim) -> str:
        """The verdict as every surface says it; a stand-in is always named."""
        if self.outcome in ("not checked",):
            return f"not checked ({self.reason})" if self.reason else "not checked"
        text: str = self.outcome
        if claim.stand_in:
            text += f" on the stand-in ({claim.stand_in})"
        return f"{text}: {self.reason}" if self.outcome == "undecided" and self.reason else text

    def number(self) -> str:
        """The value with its unit and interval, e.g. ``2.61 x [2.55, 2.70]``."""
        if self.value is None:
            return "-"
        text = format_number(self.value) + (f" {self.unit}" if self.unit else "")
        if self.low is not None and self.high is not None and self.low != self.high:
            text += f" [{format_number(self.low)}, {format_number(self.high)}]"
        return text


def judge(paper: Paper, measures: Sequence[Mapping[str, Measure]], *, scale: str = "laptop") -> list[Verdict]:
    """Verdicts of all claims of ``paper`` from the measures of its runs, one mapping a seed, in the order of the seeds.

    Smoke runs are too small to judge a claim: their values are shown, their claims stay *not checked*.
    """
    return [
        _judge(claim, [found[claim.measure] for found in measures if claim.measure and claim.measure in found], scale)
        for claim in paper.claims
    ]


def _judge(claim: Claim, found: Sequence[Measure], scale: str) -> Verdict:
    if claim.measure is None:
        return Verdict(claim.name, "not checked", reason="no experiment yet")
    if not found:
        return Verdict(claim.name, "not checked", reason=f"the run gave no {claim.measure!r}")
    verdict = {"exact": _exact, "statistical": _statistical, "timing": _timing}[claim.kind](claim, found)
    if scale == "smoke":
        return Verdict(
            claim.name,
            "not checked",
            verdict.value,
            unit=verdict.unit,
            reason="smoke scale",
            n=verdict.n,
            details=verdict.details,
        )
    return verdict


def _exact(claim: Claim, found: Sequence[Measure]) -> Verdict:
    values = [measure.value for measure in found]
    worst = min(values) if claim.at_least is not None else max(values)
    outcome: Outcome = "holds" if _meets(claim, worst) else "falls short"
    return Verdict(
        claim.name,
        outcome,
        worst,
        unit=found[0].unit,
        n=len(values),
        details=found[values.index(worst)].details or None,
    )


def _statistical(claim: Claim, found: Sequence[Measure]) -> Verdict:
    values = [measure.value for measure in found]
    unit, scale = found[0].unit, found[0].scale
    if len(values) < 2:
        return Verdict(
            claim.name,
            "undecided",
            values[0],
            unit=unit,
            n=1,
            reason=f"one seed, needs {MIN_SEEDS}",
            details=found[0].details or None,
        )
    interval = t_interval(values, scale=scale)
    outcome, reason = _decide(claim, interval)
    if len(values) < MIN_SEEDS:
        outcome, reason = "undecided", f"{len(values)} seeds, needs {MIN_SEEDS}"
    return Verdict(
        claim.name,
        outcome,
        interval.value,
        interval.low,
        interval.high,
        unit,
        reason,
        len(values),
        found[0].details or None,
    )


def _timing(claim: Claim, found: Sequence[Measure]) -> Verdict:
    first = found[0]
    details = {key: _median(first.details[key]) for key in ("ours_s", "peer_s") if first.details.get(key)} | {
        key: value for key, value in first.details.items() if key not in ("ours_s", "peer_s", "disturbed")
    }
    disturbed = str(first.details.get("disturbed") or "")
    if not first.samples:
        return Verdict(claim.name, "not checked", first.value, unit=first.unit, reason="measured without lab.time")
    interval = bootstrap_interval(first.samples)
    n = len(first.samples)
    if disturbed:
        return Verdict(
            claim.name, "not checked", interval.value, interval.low, interval.high, first.unit, disturbed, n, details
        )
    outcome, reason = _decide(claim, interval)
    return Verdict(claim.name, outcome, interval.value, interval.low, interval.high, first.unit, reason, n, details)


def _decide(claim: Claim, interval: Interval) -> tuple[Outcome, str]:
    meets = (_meets(claim, interval.low), _meets(claim, interval.high))
    if all(meets):
        return "holds", ""
    if not any(meets):
        return "falls short", ""
    return "undecided", "the interval crosses the threshold"


def _meets(claim: Claim, value: float) -> bool:
    if claim.at_least is not None:
        return value >= claim.at_least
    assert claim.at_most is not None
    return value <= claim.at_most


def worse(new: Outcome, old: Outcome) -> bool:
    """Whether a verdict is worse than an earlier one; claims that one side did not check do not compare."""
    return new in _RANK and old in _RANK and _RANK[new] < _RANK[old]


def threshold_text(claim: Claim) -> str:
    """``≥ 2.5``; a dash for a claim without one."""
    if claim.threshold is None:
        return "-"
    # 1 + 1e-9 must not be shown as 1
    text = format_number(claim.threshold) if claim.kind != "exact" else f"{claim.threshold:.12g}"
    return f"{'≥' if claim.comparison == '>=' else '≤'} {text}"


def format_number(value: float) -> str:
    """About four significant digits, without an exponent where a person would not use one."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e9:
        text = f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
        if "e" not in text:
            return text
        return f"{value:,.0f}"
    return f"{value:.3e}"


def _median(values: Sequence[float]) -> float:
    from statistics import median

    return median(values)
