"""What ``anabranch serving provision`` does: read the job, search every design, say which is best."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.serving._cluster_files import ServedModel, read_machines
from anabranch.serving._serving_words import numbers, table_text, watts
from anabranch.serving.cluster import Cluster, Transfers
from anabranch.serving.performance import PerformanceModel
from anabranch.serving.provisioning import Design, Provision, provision
from anabranch.serving.requests import RequestTable, published_lengths, read_requests
from anabranch.serving.slo import Load, RateInterval, SloLimits, rate_intervals
from anabranch.simulation import DGX_A100, DGX_H100, DGX_H100_CAPPED, Machine

Progress = Callable[[float, float, dict[str, float]], None]
DESIGNS = (
    ("AA", DGX_A100, DGX_A100), ("HH", DGX_H100, DGX_H100), ("HA", DGX_H100, DGX_A100), ("HHcap", DGX_H100, DGX_H100_CAPPED),
    ("A100 mixed", DGX_A100, None), ("H100 mixed", DGX_H100, None),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Job:
    """What is asked: a rate to be kept at least cost or power, or a budget to be spent well."""

    designs: tuple[Design, ...]
    lengths: RequestTable
    load_words: str
    reference: PerformanceModel
    limits: SloLimits
    seconds: float
    seed: int
    seeds: int
    workers: int
    rate: float | None
    budget: float | None
    measure: str

    @classmethod
    def of(
        cls, *, trace: Path | None, service: str, rate: float | None, budget_power: str | None, budget_cost: float | None,
        minimise: str, seconds: float, profile: Path | None, model: str | None, config: Path | None, machines: Path | None,
        limits: Sequence[str], seed: int, seeds: int, workers: int, out: Path | None,
    ) -> Job:  # fmt: skip
        given = [
            name for name, value in
            (("--budget-power", budget_power), ("--budget-cost", budget_cost), ("--rate", rate)) if value is not None
        ]  # fmt: skip
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one")
        if minimise not in ("cost", "power"):
            raise ValueError(f"--minimise {minimise}: expected cost or power")
        if rate is not None and not rate > 0:
            raise ValueError(f"--rate {rate}: expected more than 0")
        if out is not None and not out.absolute().parent.is_dir():
            raise ValueError(f"--out {out}: there is no folder {out.parent}")
        slowdowns = [
            tuple(numbers(option, text)) for option, text in zip(("--ttft", "--tbt", "--e2e"), limits, strict=True)
        ]
        slo = SloLimits(ttft=slowdowns[0], tbt=slowdowns[1], e2e=slowdowns[2])
        generator = np.random.default_rng(seed)
        lengths = read_requests(trace) if trace is not None else published_lengths(service, 20_000, generator=generator)
        span = float(lengths.arrival_s[-1] - lengths.arrival_s[0])
        budget, measure = None, minimise
        if budget_power is not None:
            budget, measure = watts("--budget-power", budget_power), "power"
        elif budget_cost is not None:
            budget, measure = budget_cost, "cost"
        elif rate is None:
            if trace is None or span <= 0:
                raise ValueError("give --rate, --budget-power or --budget-cost (a trace alone gives its own rate)")
            rate = (len(lengths) - 1) / span
        name = str(trace) if trace is not None else f"published lengths of the {service} service"
        said = (
            f"{name}: {len(lengths):,} requests, {lengths.prompt_tokens.mean():,.0f} prompt and "
            f"{lengths.output_tokens.mean():,.0f} output tokens on average"
        )
        designs, slowest = _designs(profile, model, config, machines)
        return cls(designs, lengths, said, slowest, slo, seconds, seed, seeds, workers, rate, budget, measure)


def _designs(
    profile: Path | None, model: str | None, config: Path | None, machines: Path | None
) -> tuple[tuple[Design, ...], PerformanceModel]:
    """The designs, and the slowest machine's times, against which slowdowns are counted."""
    served = ServedModel.of(profile, model, config)
    if machines is None:
        choices: list[tuple[str, Machine, Machine | None]] = list(DESIGNS)
    else:
        own = read_machines(machines)
        choices = [(f"{a.name} + {b.name}", a, b) for a, b in itertools.product(own, repeat=2)]
        choices += [(f"{a.name} mixed", a, None) for a in own]
    kinds = {one.name: one for _, *pair in choices for one in pair if one is not None}
    times = {kind.name: served.times(kind) for kind in kinds.values()}
    transfers = Transfers(layers=served.shape.layers)

    def design(title: str, prompt: Machine, token: Machine | None) -> Design:
        scheduler = "mixed_pool" if token is not None else "join_shortest_queue"

        cluster = partial(
            Cluster, performance=times, kv_bytes_per_token=served.kv_bytes, weight_bytes=served.weights, scheduler=scheduler,
            transfers=transfers,
        )  # fmt: skip
        return Design(title, prompt, token, cluster)

    slowest = max(times.values(), key=lambda one: float(one.prompt_seconds(1024)))
    return tuple(design(*choice) for choice in choices), slowest


@dataclass(frozen=True, eq=False)
class Found:
    """The best of each design, best first; designs that cannot do it, with the reason; what was tried; rates over seeds."""

    best: list[Provision]
    tried: dict[str, list[Provision]]
    failed: dict[str, str]
    over_seeds: dict[str, RateInterval]


def search(job: Job, progress: Progress) -> Found:
    """Every design with the same random arrivals, ``workers`` at a time. Cost: seconds to a minute a design, and a search for
    each further seed.

    With ``seeds`` of 2 or more, the chosen clusters' highest rates are found again under so many other arrivals.
    """
    generator = np.random.default_rng(job.seed)
    if job.budget is None:
        assert job.rate is not None
        most = job.rate * 1.01
    else:
        cheapest = min(
            design.prompt.provisioned_w if job.measure == "power" else design.prompt.cost_per_hour
            for design in job.designs
        )
        most = max(2.0, 20.0 * job.budget / cheapest)
    load = Load(job.lengths, job.seconds, most, generator)
    results = provision(
        job.designs, load, job.reference, job.limits, budget=job.budget, rate_per_s=job.rate if job.budget is None else None,
        measure=job.measure, most=_enough(job.rate or 1.0), workers=job.workers, progress=progress,
    )  # fmt: skip
    failed = {name: found for name, found in results.items() if isinstance(found, str)}
    chosen = {name: found for name, found in results.items() if not isinstance(found, str)}
    failed |= {name: "no rate keeps the limits" for name, (found, _) in chosen.items() if not found.rate_per_s > 0}
    best = [found for found, _ in chosen.values() if found.rate_per_s > 0]
    tried = {one.design: [other for other in chosen[one.design][1] if other.rate_per_s > 0] for one in best}
    over_seeds = {}
    if job.seeds > 1:  # the lengths are the same, the arrivals are not those that the designs were chosen under
        ceiling = most if job.budget is not None else 4 * most
        fresh = [
            Load(job.lengths, job.seconds, ceiling, child)
            for child in np.random.default_rng([job.seed, 1]).spawn(job.seeds)
        ]
        by_name = {design.name: design for design in job.designs}
        clusters = [by_name[one.design].build(one.prompts, one.tokens) for one in best]
        starts = [one.rate_per_s for one in best]
        intervals = rate_intervals(clusters, fresh, job.reference, job.limits, starts_per_s=starts, workers=job.workers)
        over_seeds = {one.design: interval for one, interval in zip(best, intervals, strict=True)}
    key = (lambda one: -one.rate_per_s) if job.budget is not None else (lambda one: _price(one, job.measure))
    return Found(sorted(best, key=key), tried, failed, over_seeds)


def _enough(rate: float) -> int:
    return 2 ** int(np.ceil(np.log2(16 + 2 * rate)))


def _price(one: Provision, measure: str) -> float:
    return one.provisioned_w if measure == "power" else one.cost_per_hour


def _rows(found: Found) -> list[dict[str, Any]]:
    return [
        {
            "design": one.design, "prompt_machines": one.prompts, "token_machines": one.tokens,
            "rate_per_s": one.rate_per_s, "power_w": one.provisioned_w, "cost_per_hour": one.cost_per_hour,
            **_over_seeds(found.over_seeds.get(one.design)),
        }
        for one in found.best
    ]  # fmt: skip


def _over_seeds(interval: RateInterval | None) -> dict[str, Any]:
    if interval is None:
        return {}
    return {
        "mean_rate_per_s": interval.mean_per_s, "low_per_s": interval.low_per_s,
        "high_per_s": None if interval.capped else interval.high_per_s, "seeds": len(interval.rates), "capped": interval.capped,
    }  # fmt: skip


def write(job: Job, found: Found, out: Path) -> list[str]:
    """``provision.csv`` and ``provision.svg`` in the folder ``out``."""
    from matplotlib.figure import Figure

    out.mkdir(exist_ok=True)
    rows = _rows(found)
    with (out / "provision.csv").open("w", newline="", encoding="utf-8") as file:
        columns = ["design", "prompt_machines", "token_machines", "rate_per_s", "power_w", "cost_per_hour"]
        if found.over_seeds:
            columns += ["mean_rate_per_s", "low_per_s", "high_per_s", "seeds", "capped"]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, all_of_it in found.tried.items():
        places = sorted((one.prompts, one.tokens) for one in all_of_it)
        axes.plot(*zip(*places, strict=True), "o-", label=name, markersize=4)
    axes.set(xlabel="prompt machines (or mixed ones)", ylabel="token machines")
    axes.set_title(
        "What was tried" if job.budget is not None else f"Fewest machines for {job.rate:.4g} requests/s", loc="left"
    )
    if found.tried:
        axes.legend(frameon=False)
    figure.savefig(out / "provision.svg")
    return [str(out / name) for name in ("provision.csv", "provision.svg")]


def as_json(job: Job, found: Found, written: list[str]) -> str:
    asked = {"rate_per_s": job.rate, "budget": job.budget, "measure": job.measure}
    return json.dumps({"asked": asked, "designs": _rows(found), "failed": found.failed, "written": written}, indent=1)


def words(job: Job, found: Found, written: list[str]) -> str:
    if job.budget is None:
        goal = f"the least {job.measure} for {job.rate:.4g} requests/s"
    else:
        goal = f"the most requests/s for {_amount(job.budget, job.measure)}"
    lines = [f"load      {job.load_words}", f"goal      {goal}", ""]
    if found.best:
        rows = [
            {
                "design": one.design, "prompt": one.prompts if one.tokens else f"{one.prompts} mixed",
                "token": one.tokens or "-", "requests/s": f"{one.rate_per_s:.1f}",
                "power": _amount(one.provisioned_w, "power"), "cost": _amount(one.cost_per_hour, "cost"),
                **_seeds_words(found.over_seeds.get(one.design)),
            }
            for one in found.best
        ]  # fmt: skip
        lines += [table_text(rows), ""]
        first = found.best[0]
        machines = (
            f"{first.prompts} prompt and {first.tokens} token machines" if first.tokens else f"{first.prompts} mixed"
        )
        lines.append(
            f"result    {first.design}, {machines}: {first.rate_per_s:.1f} requests/s with "
            f"{_amount(first.provisioned_w, 'power')} and {_amount(first.cost_per_hour, 'cost')}"
        )
    else:
        lines.append("result    no design keeps the limits")
    lines += [f"left out  {name}: {why}" for name, why in found.failed.items()]
    lines += [f"wrote     {name}" for name in written]
    return "\n".join(lines)


def _seeds_words(interval: RateInterval | None) -> dict[str, str]:
    if interval is None:
        return {}
    if interval.capped:  # the highest rates that were asked
        words = f">= {interval.mean_per_s:.1f} ({interval.low_per_s:.1f} or more: {interval.capped} capped)"
    else:
        words = f"{interval.mean_per_s:.1f} ({interval.low_per_s:.1f} to {interval.high_per_s:.1f})"
    return {f"{len(interval.rates)} other seeds, 95 %": words}


def _amount(value: float, measure: str) -> str:
    return f"{value / 1e3:,.1f} kW" if measure == "power" else f"{value:,.2f} $/h"
