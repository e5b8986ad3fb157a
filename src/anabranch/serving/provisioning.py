"""How many prompt and token machines: the most throughput for a budget, or the least cost or power for a rate."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float64

from anabranch.serving.cluster import Cluster, Pool, simulate_cluster
from anabranch.serving.performance import PerformanceModel
from anabranch.serving.simulation_pool import run_tasks
from anabranch.serving.slo import Load, MaxRate, SloLimits, max_rate, slo_report
from anabranch.simulation import Machine

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Design:
    """Which machines do what: two kinds with the phases apart, or one kind (``token`` None) that does both.

    Args:
        cluster: makes a cluster of pools; everything but the pools is fixed in it (``functools.partial(Cluster, ...)``).
    """

    name: str
    prompt: Machine
    token: Machine | None
    cluster: Callable[[tuple[Pool, ...]], Cluster]

    def build(self, prompts: int, tokens: int = 0) -> Cluster:
        """With so many machines of each role; of one kind, their sum."""
        if self.token is None:
            return self.cluster((Pool(self.prompt, prompts + tokens, "mixed"),))
        return self.cluster((Pool(self.prompt, prompts, "prompt"), Pool(self.token, tokens, "token")))


@dataclass(frozen=True)
class Provision:
    """A choice: machines of each role (one kind: all in ``prompts``), what they cost, and the rate they keep."""

    design: str
    prompts: int
    tokens: int
    provisioned_w: float
    cost_per_hour: float
    rate_per_s: float
    simulations: int


def _provision(design: Design, prompts: int, tokens: int, found: MaxRate) -> Provision:
    cluster = design.build(prompts, tokens)
    return Provision(
        design.name, prompts, tokens, cluster.provisioned_w, cluster.cost_per_hour, found.rate_per_s, found.simulations
    )


def _price(machine: Machine, measure: str) -> float:
    return machine.provisioned_w if measure == "power" else machine.cost_per_hour


def most_throughput(
    design: Design,
    budget: float,
    load: Load,
    reference: PerformanceModel,
    limits: SloLimits | None = None,
    *,
    measure: str = "power",
    tolerance: float = 0.02,
    prune: bool = False,
    progress: Progress | None = None,
) -> tuple[Provision, list[Provision]]:
    """The split of ``budget`` (watts, or cost an hour) between the roles that keeps the highest rate; and all that were tried.

    The whole budget line is looked at coarsely, then each number of prompt machines about the best. Cost: a few dozen
    searches for the highest rate.

    Args:
        prune: give up a split that does not keep the best rate so far; its ``rate_per_s`` is then NaN. Several times quicker.

    Raises:
        ValueError: a budget below one machine of each role.
    """
    first = _price(design.prompt, measure)
    if design.token is None:
        count = int(budget // first)
        if count < 1:
            raise ValueError(f"budget={budget} is below one {design.prompt.name} ({first})")
        found = _provision(
            design, count, 0, max_rate(design.build(count), load, reference, limits, tolerance=tolerance)
        )
        return found, [found]
    second = _price(design.token, measure)
    most = int((budget - second) // first)
    if most < 1:
        raise ValueError(
            f"budget={budget} is below one {design.prompt.name} and one {design.token.name} ({first + second})"
        )
    tried: dict[int, Provision] = {}

    def best_rate() -> float:
        return max((one.rate_per_s for one in tried.values() if one.rate_per_s > 0), default=0.0)

    def look(prompts: int) -> None:
        if prompts not in tried:
            tokens = int((budget - prompts * first) // second)
            cluster, best = design.build(prompts, tokens), best_rate()
            if (
                prune
                and best > 0
                and not _keeps(cluster, min(best * (1 + tolerance), load.most_per_s), load, reference, limits)
            ):
                found = MaxRate(float("nan"), None, 1)
            else:
                found = max_rate(cluster, load, reference, limits, tolerance=tolerance, start_per_s=best or None)
            tried[prompts] = _provision(design, prompts, tokens, found)
            if progress is not None:
                progress(len(tried), most, {"rate_per_s": best_rate()})

    def best_split() -> int:
        return max(tried, key=lambda n: (np.nan_to_num(tried[n].rate_per_s, nan=-1.0), -n))

    step = max(1, most // 12)
    for prompts in sorted(range(1, most + 1, step), key=lambda n: abs(n - most // 2)):  # from the middle outwards
        look(prompts)
    while step > 1:
        step = max(1, step // 2)
        best = best_split()
        for prompts in (best - step, best + step):
            if 1 <= prompts <= most:
                look(prompts)
    best = best_split()
    return tried[best], [tried[n] for n in sorted(tried)]


def _keeps(
    cluster: Cluster, rate_per_s: float, load: Load, reference: PerformanceModel, limits: SloLimits | None
) -> bool:
    requests = load.at(rate_per_s)
    return slo_report(simulate_cluster(cluster, requests), requests, reference, limits).holds


def least_machines(
    design: Design,
    rate_per_s: float,
    load: Load,
    reference: PerformanceModel,
    limits: SloLimits | None = None,
    *,
    measure: str = "cost",
    most: int = 256,
    progress: Progress | None = None,
) -> tuple[Provision, list[Provision]]:
    """The cheapest numbers of machines that keep ``rate_per_s``, and the whole staircase of least pairs.

    The pairs that suffice are taken to form a staircase, which is walked along its edge: (prompts + tokens) simulations instead
    of their product. Where more machines do not hurt, that is so; near the limit one prompt machine more can, by crowding the
    links of the same token machines.

    Raises:
        ValueError: ``most`` machines of each role do not suffice.
    """
    load.at(rate_per_s)  # refuses a rate that cannot be asked
    runs = 0

    def suffices(prompts: int, tokens: int) -> bool:
        nonlocal runs
        runs += 1
        held = _keeps(design.build(prompts, tokens), rate_per_s, load, reference, limits)
        if progress is not None:
            progress(runs, 2 * most, {"prompts": float(prompts), "tokens": float(tokens)})
        return held

    def least(test: Callable[[int], bool], high: int) -> int | None:
        low = 0
        if not test(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if test(middle) else (middle, high)
        return high

    def provision(prompts: int, tokens: int) -> Provision:
        cluster = design.build(prompts, tokens)
        return Provision(design.name, prompts, tokens, cluster.provisioned_w, cluster.cost_per_hour, rate_per_s, runs)

    words = f"{design.name}: {most} machines of each role do not keep {rate_per_s} requests/s"
    if design.token is None:
        count = least(lambda n: suffices(n, 0), most)
        if count is None:
            raise ValueError(words)
        return provision(count, 0), [provision(count, 0)]
    stairs = list(_staircase(suffices, least, most))
    if not stairs:
        raise ValueError(words)
    found = [provision(*pair) for pair in stairs]
    return min(found, key=lambda one: one.provisioned_w if measure == "power" else one.cost_per_hour), found


def _staircase(
    suffices: Callable[[int, int], bool], least: Callable[[Callable[[int], bool], int], int | None], most: int
) -> Iterator[tuple[int, int]]:
    """Pairs (prompts, tokens) that suffice while one fewer of either does not, from few prompts to many."""
    prompts = least(lambda n: suffices(n, most), most)
    if prompts is None:
        return
    tokens = least(lambda n: suffices(prompts, n), most)
    while prompts <= most and tokens is not None:
        yield prompts, tokens
        if tokens == 1 or not suffices(most, tokens - 1):  # no number of prompt machines makes up for one
            return
        tokens -= 1
        while not suffices(prompts + 1, tokens):
            prompts += 1
        prompts += 1
        while tokens > 1 and suffices(prompts, tokens - 1):
            tokens -= 1


def provision(
    designs: Sequence[Design],
    load: Load,
    reference: PerformanceModel,
    limits: SloLimits | None = None,
    *,
    budget: float | None = None,
    rate_per_s: float | None = None,
    measure: str = "power",
    tolerance: float = 0.02,
    most: int = 256,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, tuple[Provision, list[Provision]] | str]:
    """Every design's best: :func:`most_throughput` of ``budget`` (pruned), or :func:`least_machines` for ``rate_per_s``.

    Args:
        workers: processes, each with a design at a time; what is found does not depend on it. Several need designs that can be
            pickled: ``functools.partial(Cluster, ...)`` rather than a function within a function.

    Returns:
        by the design's name what the search gives, or why it has no answer.

    Raises:
        ValueError: both or none of a budget and a rate, designs of one name, fewer than one worker.
    """
    if (budget is None) == (rate_per_s is None):
        raise ValueError(f"budget={budget}, rate_per_s={rate_per_s}: expected one of them")
    names = [design.name for design in designs]
    if len(set(names)) < len(names):
        raise ValueError(f"designs has a name twice: {', '.join(names)}")
    call = partial(_search, load, reference, limits, budget, rate_per_s, measure, tolerance, most)

    def ended(count: int) -> None:
        if progress is not None:
            progress(count, len(designs), {})

    return dict(zip(names, run_tasks(call, designs, workers, ended), strict=True))


def _search(
    load: Load, reference: PerformanceModel, limits: SloLimits | None, budget: float | None, rate_per_s: float | None,
    measure: str, tolerance: float, most: int, design: Design,
) -> tuple[Provision, list[Provision]] | str:  # fmt: skip
    try:
        if budget is not None:
            return most_throughput(
                design, budget, load, reference, limits, measure=measure, tolerance=tolerance, prune=True
            )
        assert rate_per_s is not None
        return least_machines(design, rate_per_s, load, reference, limits, measure=measure, most=most)
    except ValueError as error:
        return str(error)


def rate_plane(
    design: Design,
    prompts: Sequence[int],
    tokens: Sequence[int],
    load: Load,
    reference: PerformanceModel,
    limits: SloLimits | None = None,
    *,
    tolerance: float = 0.02,
    workers: int = 1,
    progress: Progress | None = None,
) -> Float64[np.ndarray, "prompts tokens"]:
    """The highest rate of every pair of numbers of machines; 0 where none keeps the limits.

    Args:
        workers: processes; the rates do not depend on it. Cost: a :func:`max_rate` for each pair.

    Raises:
        ValueError: a design with one kind of machine, no numbers, fewer than one worker.
    """
    if design.token is None:
        raise ValueError(f"{design.name} has one kind of machine: expected prompt and token machines")
    if not prompts or not tokens:
        raise ValueError(f"prompts={list(prompts)}, tokens={list(tokens)}: expected numbers of machines")
    clusters = [design.build(p, t) for p in prompts for t in tokens]

    def ended(count: int) -> None:
        if progress is not None:
            progress(count, len(clusters), {})

    rates = run_tasks(partial(_rate, load, reference, limits, tolerance), clusters, workers, ended)
    return np.array(rates, np.float64).reshape(len(prompts), len(tokens))


def _rate(
    load: Load, reference: PerformanceModel, limits: SloLimits | None, tolerance: float, cluster: Cluster
) -> float:
    return max_rate(cluster, load, reference, limits, tolerance=tolerance).rate_per_s
