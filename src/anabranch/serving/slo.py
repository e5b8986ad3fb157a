"""Service level objectives as slowdowns against a request alone, and the highest rate at which a cluster keeps them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from jaxtyping import Float64, Int64

from anabranch.serving.cluster import Cluster, ServingResult, simulate_cluster
from anabranch.serving.performance import PerformanceModel
from anabranch.serving.requests import RequestTable
from anabranch.serving.simulation_pool import run_tasks

METRICS = ("ttft", "tbt", "e2e")


@dataclass(frozen=True)
class SloLimits:
    """Largest slowdowns at percentiles (Splitwise: nine limits, against a request alone on a DGX-A100).

    Attributes:
        percentiles: of the requests.
        ttft, tbt, e2e: one limit a percentile, for the time to the first token, between tokens, to the last.
    """

    percentiles: tuple[float, ...] = (50.0, 90.0, 99.0)
    ttft: tuple[float, ...] = (2.0, 3.0, 6.0)
    tbt: tuple[float, ...] = (1.25, 1.5, 5.0)
    e2e: tuple[float, ...] = (1.25, 1.5, 5.0)

    def __post_init__(self) -> None:
        for name in METRICS:
            if len(getattr(self, name)) != len(self.percentiles):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} limits for {len(self.percentiles)} percentiles"
                )
        if not all(0 < p <= 100 for p in self.percentiles):
            raise ValueError(f"percentiles must be in (0, 100], got {self.percentiles}")


@dataclass(frozen=True)
class SloReport:
    """Slowdowns at the percentiles, and whether all are within their limits.

    Attributes:
        slowdowns: by metric. tightest: metric, percentile, and slowdown over limit of the one nearest to (or farthest
            beyond) its limit. finished: share of the requests.
    """

    holds: bool
    slowdowns: Mapping[str, tuple[float, ...]]
    tightest: tuple[str, float, float]
    finished: float


def slo_report(
    result: ServingResult, requests: RequestTable, reference: PerformanceModel, limits: SloLimits | None = None
) -> SloReport:
    """Hold ``result`` to ``limits``; requests that were not finished are infinitely slow."""
    limits = SloLimits() if limits is None else limits
    prompt = reference.prompt_seconds(requests.prompt_tokens)
    token = reference.decode_seconds(np.ones(len(requests)), requests.prompt_tokens)
    alone = {"ttft": prompt, "tbt": token, "e2e": prompt + (requests.output_tokens - 1) * token}
    taken = {"ttft": result.ttft_s, "tbt": result.tbt_s, "e2e": result.e2e_s}
    slowdowns, tightest = {}, ("", 0.0, -np.inf)
    for name in METRICS:
        rows = requests.output_tokens > 1 if name == "tbt" else np.ones(len(requests), np.bool_)
        slow = np.where(result.finished, taken[name] / alone[name], np.inf)[rows]
        values = (
            np.percentile(slow, limits.percentiles, method="higher") if len(slow) else np.zeros(len(limits.percentiles))
        )
        slowdowns[name] = tuple(float(value) for value in values)
        for percentile, value, limit in zip(limits.percentiles, slowdowns[name], getattr(limits, name), strict=True):
            if value / limit > tightest[2]:
                tightest = (name, percentile, value / limit)
    return SloReport(tightest[2] <= 1, slowdowns, tightest, float(result.finished.mean()))


@dataclass(frozen=True, eq=False)
class Load:
    """Poisson arrivals that can be asked at any rate with the same random numbers: gaps of rate 1 and rows of ``lengths``.

    Args:
        seconds: of arrivals.
        most_per_s: the highest rate that can be asked.
    """

    lengths: RequestTable
    seconds: float
    most_per_s: float
    generator: np.random.Generator = field(repr=False)
    paired: bool = True
    _gaps: Float64[np.ndarray, " n"] = field(init=False, repr=False)
    _rows: Int64[np.ndarray, "2 n"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("seconds", "most_per_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        expected = self.seconds * self.most_per_s
        n = int(expected + 10 * np.sqrt(expected) + 10)
        object.__setattr__(self, "_gaps", np.cumsum(self.generator.exponential(1.0, n)))
        rows = self.generator.integers(len(self.lengths), size=(2, n))
        object.__setattr__(self, "_rows", rows[:1].repeat(2, 0) if self.paired else rows)

    def at(self, rate_per_s: float) -> RequestTable:
        """The requests that come within ``seconds`` at a rate.

        Raises:
            ValueError: a rate that is not in (0, most_per_s], or without a request in that time.
        """
        if not 0 < rate_per_s <= self.most_per_s:
            raise ValueError(f"rate_per_s must be in (0, {self.most_per_s}], got {rate_per_s}")
        n = int(np.searchsorted(self._gaps, rate_per_s * self.seconds))
        if n == 0:
            raise ValueError(f"rate_per_s={rate_per_s} gives no request within {self.seconds} s")
        prompt, output = self._rows[:, :n]
        return RequestTable(
            self._gaps[:n] / rate_per_s, self.lengths.prompt_tokens[prompt], self.lengths.output_tokens[output]
        )


@dataclass(frozen=True)
class MaxRate:
    """Attributes: rate_per_s: the highest rate found to keep the limits (0 if none does); report: at it; simulations: needed."""

    rate_per_s: float
    report: SloReport | None
    simulations: int


def max_rate(
    cluster: Cluster,
    load: Load,
    reference: PerformanceModel,
    limits: SloLimits | None = None,
    *,
    tolerance: float = 0.02,
    start_per_s: float | None = None,
    drain: str = "all",
) -> MaxRate:
    """The highest Poisson rate that keeps the limits, by doubling and bisection with common random numbers.

    Cost: about ``log2(range / tolerance)`` simulations.

    Args:
        tolerance: of the rate, relative.
        start_per_s: a guess.
        drain: "all" serves every request that came; "window" stops ten times ``load.seconds`` after the start, which bounds
            a hopeless simulation (what is unfinished then fails the limits).

    Raises:
        ValueError: a tolerance outside (0, 1).
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be in (0, 1), got {tolerance}")
    limits = SloLimits() if limits is None else limits
    runs = 0
    best: tuple[float, SloReport | None] = (0.0, None)
    stop = np.inf if drain == "all" else 10 * load.seconds

    def holds(rate: float) -> bool:
        nonlocal runs, best
        requests = load.at(rate)
        report = slo_report(simulate_cluster(cluster, requests, max_time_s=stop), requests, reference, limits)
        runs += 1
        if report.holds and rate > best[0]:
            best = (rate, report)
        return report.holds

    low, high = 0.0, load.most_per_s
    guess = min(high, load.most_per_s / 8 if start_per_s is None else start_per_s)
    while True:  # bracket
        if holds(guess):
            low = guess
            if guess >= load.most_per_s:
                break
            guess = min(load.most_per_s, 2 * guess)
        else:
            high = guess
            break
        if low and high <= low:
            break
    if low == 0:  # the first guess was too high
        floor = max(1 / load.seconds, 1e-3)
        while high > floor and not holds(high / 2):
            high /= 2
        low = high / 2 if high > floor else 0.0
    while low and high - low > tolerance * low and low < load.most_per_s:
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return MaxRate(best[0], best[1], runs)


@dataclass(frozen=True)
class RateInterval:
    """The highest rate over several loads.

    Attributes:
        rates: one a load: the lower end of what the search left, so that the rate itself is up to ``tolerance`` higher.
        mean_per_s: of ``rates``.
        low_per_s, high_per_s: Student's 95 % interval of their mean, not below 0, its upper end higher by what the searches left;
            infinite where a load was capped.
        capped: loads whose rate is the highest that could be asked (``most_per_s``), so that theirs may be any higher.
    """

    mean_per_s: float
    low_per_s: float
    high_per_s: float
    rates: tuple[float, ...]
    capped: int = 0


def rate_interval(
    cluster: Cluster,
    loads: Sequence[Load],
    reference: PerformanceModel,
    limits: SloLimits | None = None,
    *,
    tolerance: float = 0.02,
    start_per_s: float | None = None,
    workers: int = 1,
) -> RateInterval:
    """How sure the highest rate of a cluster is: :func:`max_rate` under every load, the mean and its t-interval.

    For a cluster that was chosen under some load, take others: under its own it looks better than it is. Cost: ``len(loads)``
    searches.

    Args:
        workers: processes that search; the interval does not depend on it.

    Raises:
        ValueError: fewer than two loads, or than one worker.
    """
    starts = [start_per_s]
    return rate_intervals(
        [cluster], loads, reference, limits, tolerance=tolerance, starts_per_s=starts, workers=workers
    )[0]


def rate_intervals(
    clusters: Sequence[Cluster],
    loads: Sequence[Load],
    reference: PerformanceModel,
    limits: SloLimits | None = None,
    *,
    tolerance: float = 0.02,
    starts_per_s: Sequence[float | None] | None = None,
    workers: int = 1,
) -> list[RateInterval]:
    """:func:`rate_interval` of every cluster, all their searches shared out to ``workers`` processes.

    Args:
        starts_per_s: a guess for each cluster.

    Raises:
        ValueError: fewer than two loads, or than one worker; another number of guesses.
    """
    if len(loads) < 2:
        raise ValueError(f"loads: an interval needs at least 2, got {len(loads)}")
    starts = [None] * len(clusters) if starts_per_s is None else starts_per_s
    if len(starts) != len(clusters):
        raise ValueError(f"starts_per_s has {len(starts)} guesses for {len(clusters)} clusters")
    from scipy.special import stdtrit

    tasks = [(cluster, load, start) for cluster, start in zip(clusters, starts, strict=True) for load in loads]
    rates = run_tasks(partial(_rate_of, reference, limits, tolerance), tasks, workers)
    n = len(loads)
    intervals = []
    floors = [max(1 / load.seconds, 1e-3) for load in loads]  # below which max_rate does not search
    for k in range(len(clusters)):
        found = rates[k * n : (k + 1) * n]
        mean = float(np.mean(found))
        half = float(stdtrit(n - 1, 0.975) * np.std(found, ddof=1) / np.sqrt(n))
        left = [tolerance * rate if rate > 0 else floor for rate, floor in zip(found, floors, strict=True)]
        capped = sum(rate >= load.most_per_s for rate, load in zip(found, loads, strict=True))
        high = float("inf") if capped else mean + half + float(np.mean(left))
        intervals.append(RateInterval(mean, max(0.0, mean - half), high, tuple(found), capped))
    return intervals


def _rate_of(
    reference: PerformanceModel, limits: SloLimits | None, tolerance: float, task: tuple[Cluster, Load, float | None]
) -> float:
    cluster, load, start = task
    return max_rate(cluster, load, reference, limits, tolerance=tolerance, start_per_s=start).rate_per_s
