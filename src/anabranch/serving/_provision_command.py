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
from anabranch.serving.cluster import Batching, Cluster, Transfers
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
    """What is asked: a rate to be kept at least cost or power, or a budget to be spent well.

    ``chunks`` has the tokens of an iteration of those designs that read prompts in pieces, by their names.
    """

    designs: tuple[Design, ...]
    chunks: dict[str, int]
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
        limits: Sequence[str], seed: int, seeds: int, workers: int, out: Path | None, chunk_tokens: str | None = None,
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
        sizes = _chunk_sizes(chunk_tokens) if chunk_tokens is not None else ()
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
        designs, chunks, slowest = _designs(profile, model, config, machines, sizes)
        return cls(designs, chunks, lengths, said, slowest, slo, seconds, seed, seeds, workers, rate, budget, measure)


def _chunk_sizes(text: str) -> tuple[int, ...]:
    """
    Raises:
        ValueError: numbers that are not whole, or one that is there twice; names the option.
    """
    found = numbers("--chunk-tokens", text)
    if not all(size.is_integer() and size < 2**31 for size in found):
        raise ValueError(f"--chunk-tokens {text}: expected whole numbers of tokens")
    if len(set(found)) < len(found):
        raise ValueError(f"--chunk-tokens {text}: a number is there twice")
    return tuple(map(int, found))


def _designs(
    profile: Path | None, model: str | None, config: Path | None, machines: Path | None, sizes: Sequence[int]
) -> tuple[tuple[Design, ...], dict[str, int], PerformanceModel]:
    """The designs, the tokens of those with prompts in chunks, and the slowest machine's times, against which slowdowns count.

    Every kind of machine that does both phases also stands with its prompts in chunks, once for each of ``sizes``.
    """
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

    def design(title: str, prompt: Machine, token: Machine | None, chunk: int | None = None) -> Design:
        scheduler = "mixed_pool" if token is not None else "join_shortest_queue"

        cluster = partial(
            Cluster, performance=times, kv_bytes_per_token=served.kv_bytes, weight_bytes=served.weights, scheduler=scheduler,
            batching=Batching(chunk_tokens=chunk), transfers=transfers,
        )  # fmt: skip
        return Design(title, prompt, token, cluster)

    designs, chunks = [design(*choice) for choice in choices], {}
    for (title, machine, token), size in itertools.product(choices, sizes):
        if token is None:
            name = f"{title.removesuffix(' mixed')} chunks of {size}"
            chunks[name] = size
            designs.append(design(name, machine, None, size))
    slowest = max(times.values(), key=lambda one: float(one.prompt_seconds(1024)))
    return tuple(designs), chunks, slowest


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


def _rows(job: Job, found: Found) -> list[dict[str, Any]]:
    return [
        {
            "design": one.design, "prompt_machines": one.prompts, "token_machines": one.tokens,
            **({"chunk_tokens": job.chunks.get(one.design)} if job.chunks else {}),
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
    """``provision.csv`` and ``provision.svg`` in the folder ``out``: how the designs compare, and what was tried."""
    from matplotlib.figure import Figure

    out.mkdir(exist_ok=True)
    rows = _rows(job, found)
    with (out / "provision.csv").open("w", newline="", encoding="utf-8") as file:
        columns = ["design", "prompt_machines", "token_machines", "rate_per_s", "power_w", "cost_per_hour"]
        if job.chunks:
            columns.insert(3, "chunk_tokens")
        if found.over_seeds:
            columns += ["mean_rate_per_s", "low_per_s", "high_per_s", "seeds", "capped"]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    apart = {one.design: found.tried[one.design] for one in found.best if one.tokens}
    heights = [1 + 0.25 * len(found.best), *([4] if apart else [])]
    figure = Figure(figsize=(8.2, 0.6 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_designs(job, found, axes[0])
    if apart:
        _draw_tried(job, apart, axes[1])
    figure.savefig(out / "provision.svg")
    return [str(out / name) for name in ("provision.csv", "provision.svg")]


_KINDS = {"phases apart": "tab:blue", "both phases mixed": "tab:orange", "mixed, prompts in chunks": "tab:green"}
_BESIDE: Any = {"frameon": False, "fontsize": 8, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}  # legends


def _draw_designs(job: Job, found: Found, axes: Any) -> None:
    """A bar for each design, best first: what its best cluster serves, or costs."""
    unit = 1e3 if job.budget is None and job.measure == "power" else 1.0
    for kind, color in _KINDS.items():
        mine = [one for one in found.best if _kind(job, one) == kind]
        values = [(_price(one, job.measure) if job.budget is None else one.rate_per_s) / unit for one in mine]
        if mine:
            bars = axes.barh([found.best.index(one) for one in mine], values, color=color, label=kind)
            counts = [f"{one.prompts} + {one.tokens}" if one.tokens else str(one.prompts) for one in mine]
            labels = [f"{value:.4g} ({count})" for value, count in zip(values, counts, strict=True)]
            axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_yticks(range(len(found.best)), [one.design for one in found.best], fontsize=8)
    axes.set_ylim(len(found.best) - 0.4, -0.6)
    axes.margins(x=0.2)
    if job.budget is not None:
        title = f"Requests/s for {_amount(job.budget, job.measure)}"
    else:
        title = f"{'Power, kW' if job.measure == 'power' else 'Cost, $/h'}, for {job.rate:.4g} requests/s"
    axes.set_title(f"{title} (and machines)", loc="left")
    if found.best:
        axes.legend(**_BESIDE)


def _draw_tried(job: Job, apart: dict[str, list[Provision]], axes: Any) -> None:
    """Numbers of prompt and token machines that were tried, or that suffice, of designs with the phases apart."""
    from matplotlib import colormaps

    for k, (name, tried) in enumerate(apart.items()):
        places = sorted((one.prompts, one.tokens) for one in tried)
        color = colormaps["viridis"](0.9 * k / max(1, len(apart) - 1))
        axes.plot(*zip(*places, strict=True), "os^Dv"[k % 5] + "-", color=color, label=name, markersize=4)
    axes.set(xlabel="prompt machines", ylabel="token machines")
    axes.locator_params(integer=True)
    axes.set_title(
        "What was tried, phases apart"
        if job.budget is not None
        else f"Fewest machines for {job.rate:.4g} requests/s, phases apart",
        loc="left",
    )
    axes.legend(**_BESIDE)


def _kind(job: Job, one: Provision) -> str:
    apart, mixed, in_chunks = _KINDS
    return apart if one.tokens else in_chunks if one.design in job.chunks else mixed


def as_json(job: Job, found: Found, written: list[str]) -> str:
    asked = {"rate_per_s": job.rate, "budget": job.budget, "measure": job.measure}
    return json.dumps(
        {"asked": asked, "designs": _rows(job, found), "failed": found.failed, "written": written}, indent=1
    )


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
    if job.chunks:
        lines.append(
            "note      chunks: an iteration takes the time of a prompt of as many tokens; reading caches again is not charged, "
            "which favours them"
        )
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
