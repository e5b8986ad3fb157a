"""What ``anabranch serving simulate`` does: one cluster, one trace, how long everybody waited and what it took."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.serving._cluster_files import read_cluster
from anabranch.serving._serving_words import numbers, table_text
from anabranch.serving.cluster import Cluster, ServingResult, check_failures, simulate_cluster
from anabranch.serving.performance import PerformanceModel
from anabranch.serving.requests import RequestTable, read_requests
from anabranch.serving.slo import METRICS, SloLimits, SloReport, slo_report

PERCENTILES = (50.0, 90.0, 99.0)
_TIMES = {"ttft": "ttft_s", "tbt": "tbt_s", "e2e": "e2e_s", "gap": "second_token_gap_s", "wait": "queue_s"}
_WORDS = {
    "ttft": "to the first token", "tbt": "between tokens", "e2e": "to the last token", "gap": "first token to decoding",
    "wait": "until the prompt starts",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Served:
    """A cluster, what it was asked, what came of it, and how that stands against the limits."""

    cluster: Cluster
    requests: RequestTable
    result: ServingResult
    limits: SloLimits
    report: SloReport


def serve(
    cluster: Path, trace: Path, *, speed: float, failures: Sequence[str], limits: Sequence[str], max_time: float | None,
    drop: bool, out: Path | None,
) -> Served:  # fmt: skip
    if not speed > 0:
        raise ValueError(f"--speed {speed}: expected more than 0")
    if out is not None and not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
    slowdowns = [
        tuple(numbers(option, text)) for option, text in zip(("--ttft", "--tbt", "--e2e"), limits, strict=True)
    ]
    slo = SloLimits(PERCENTILES, *slowdowns)
    if max_time is not None and not max_time >= 0:
        raise ValueError(f"--max-time {max_time}: expected 0 or more")
    built, requests = read_cluster(cluster), read_requests(trace).at_speed(speed)
    lost = [_failure(text) for text in failures]
    try:
        check_failures(lost, len(built.machines))
    except ValueError as error:
        raise ValueError(str(error).replace("failures", "--fail", 1)) from error
    result = simulate_cluster(
        built, requests, max_time_s=np.inf if max_time is None else max_time, on_oversize="drop" if drop else "raise",
        failures=lost,
    )  # fmt: skip
    slowest = max(built.performance.values(), key=_prompt_seconds)
    return Served(built, requests, result, slo, slo_report(result, requests, slowest, slo))


def _prompt_seconds(model: PerformanceModel) -> float:
    return float(model.prompt_seconds(1024))


def _failure(text: str) -> tuple[float, int]:
    at, _, machine = text.partition(":")
    try:
        return float(at), int(machine)
    except ValueError:
        raise ValueError(f"--fail {text}: expected SECONDS:MACHINE such as 30:2") from None


def latency_rows(served: Served) -> list[dict[str, Any]]:
    """Seconds at the percentiles (of requests that ended), and the slowdowns that have limits; None where there is nothing."""
    rows = []
    for name, column in _TIMES.items():
        values = getattr(served.result, column)
        values = values[served.result.finished & np.isfinite(values)]
        row: dict[str, Any] = {"time": name, "mean": float(values.mean()) if len(values) else None}
        for p in PERCENTILES:
            row[f"P{p:g}"] = float(np.percentile(values, p)) if len(values) else None
        row["max"] = float(values.max()) if len(values) else None
        if name in METRICS:
            for p, slow, limit in zip(
                PERCENTILES, served.report.slowdowns[name], getattr(served.limits, name), strict=True
            ):
                row |= {f"slowdown P{p:g}": _finite(slow), f"limit P{p:g}": limit}
        rows.append(row)
    return rows


def facts(served: Served) -> dict[str, Any]:
    cluster, result = served.cluster, served.result
    end, tokens, idle, first = result.end_s, int(served.requests.output_tokens[result.finished].sum()), [], 0
    for pool in cluster.pools:
        busy = result.busy_s[first : first + pool.count]
        first += pool.count
        share = float(1 - busy.sum() / (pool.count * end)) if end > 0 else 1.0
        idle.append({"role": pool.role, "machine": pool.machine.name, "count": pool.count, "idle": share})
    return {
        "requests": len(served.requests), "finished": int(result.finished.sum()), "end_s": end,
        "output_tokens_per_s": tokens / end if end > 0 else 0.0, "limits_hold": served.report.holds,
        "tightest": [*served.report.tightest[:2], _finite(served.report.tightest[2])], "provisioned_w": cluster.provisioned_w,
        "drawn_w": _finite(float(result.energy_j.sum() / end)) if end > 0 else 0.0, "cost_per_hour": cluster.cost_per_hour,
        "cost_per_million_output_tokens": cluster.cost_per_hour * end / 3600 / tokens * 1e6 if tokens else None,
        "idle": idle, "preemptions": result.preemptions, "moves": result.moves, "retries": result.retries,
        "restarts": 0 if result.restarts is None else int(result.restarts.sum()),
    }  # fmt: skip


def write(served: Served, out: Path) -> str:
    """One line a request; empty where it did not end."""
    columns = ["ttft_s", "tbt_s", "e2e_s", "second_token_gap_s", "queue_s", "source", "target", "restarts"]
    requests, values = served.requests, [getattr(served.result, name) for name in columns]
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["arrival_s", "prompt_tokens", "output_tokens", *columns])
        given = (requests.arrival_s, requests.prompt_tokens, requests.output_tokens)
        for row in zip(*(one.tolist() for one in (*given, *values)), strict=True):
            writer.writerow(["" if value != value else value for value in row])
    return str(out)


def as_json(served: Served, written: list[str]) -> str:
    return json.dumps({"latency": latency_rows(served), **facts(served), "written": written}, indent=1, allow_nan=False)


def words(served: Served, written: list[str]) -> str:
    known = facts(served)
    pools = ", ".join(f"{pool.count} {pool.machine.name} ({pool.role})" for pool in served.cluster.pools)
    unfinished = known["requests"] - known["finished"]
    lines = [
        f"cluster   {pools}",
        f"load      {known['requests']:,} requests, {served.requests.prompt_tokens.mean():,.0f} prompt and "
        f"{served.requests.output_tokens.mean():,.0f} output tokens on average; the last event at {known['end_s']:,.1f} s",
        "",
    ]
    rows = []
    for row in latency_rows(served):
        cells = {"seconds": _WORDS[row["time"]]}
        cells |= {name: _number(row[name]) for name in ("mean", *(f"P{p:g}" for p in PERCENTILES), "max")}
        for p in PERCENTILES:
            limit = row.get(f"limit P{p:g}")
            slow = "-" if limit is None else f"{_number(row[f'slowdown P{p:g}'])} / {limit:g}"
            cells[f"slowdown P{p:g}"] = slow
        rows.append(cells)
    metric, percentile, over = known["tightest"]
    state = "kept" if known["limits_hold"] else "not kept"
    lines += [table_text(rows), ""]
    lines.append(f"limits    {state}; tightest: {metric} at P{percentile:g}, {_number(over)} of its limit")
    drawn, each = known["drawn_w"], known["cost_per_million_output_tokens"]
    lines.append(
        f"power     {known['provisioned_w'] / 1e3:,.1f} kW provisioned, "
        + (
            "device_power_w not given"
            if drawn is None
            else f"{drawn / 1e3:,.1f} kW on average drawn by devices, while busy"
        )
    )
    lines.append(
        f"cost      {known['cost_per_hour']:,.2f} $/h"
        + ("" if each is None else f", {each:,.2f} $ a million output tokens")
    )
    lines.append(
        "idle      "
        + ", ".join(f"{one['idle']:.0%} of {one['count']} {one['machine']} ({one['role']})" for one in known["idle"])
    )
    lines.append(
        f"events    {known['preemptions']} preemptions, {known['moves']} machines moved between pools, {known['retries']} "
        f"transfers without room, {known['restarts']} requests begun again"
    )
    if unfinished:
        lines.append(f"left out  {unfinished:,} requests did not end; times are of the others")
    lines += [f"wrote     {name}" for name in written]
    return "\n".join(lines)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
