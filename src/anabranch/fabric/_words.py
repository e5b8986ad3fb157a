"""The comparison in words and as plain data."""

from dataclasses import asdict
from typing import Any

import numpy as np

import anabranch.fabric as fb
from anabranch.fabric import Topology
from anabranch.fabric._comparison import Bounds, Row
from anabranch.fabric._jobs import Job


def fabric_words(fabric: Topology) -> str:
    inner = fabric.is_fabric_link
    rates = [_span(fabric.capacity_bytes_per_s[mask] * 8e-9, "Gb/s") for mask in (~inner, inner) if mask.any()]
    words = f"{fabric.n_nics:,} NICs ({rates[0]}) on {fabric.n_leaves:,} leaves"
    if isinstance(fabric, fb.LeafSpine):
        words += f", {fabric.n_spines:,} spines"
        down = np.bincount(fabric.leaf_of(np.arange(fabric.n_nics)), fabric.capacity_bytes_per_s[: fabric.n_nics])
        with np.errstate(divide="ignore"):
            ratio = float((down / fabric.up_bytes_per_s.sum(axis=1)).max())
        words += (
            f" ({rates[1]} each pair; {'no oversubscription' if ratio <= 1 else f'oversubscribed {ratio:.3g} : 1'})"
        )
    elif inner.any():
        words += f", {int(inner.sum()):,} links between switches ({rates[1]})"
    return words


def _span(values: np.ndarray, unit: str) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:g} {unit}" if low == high else f"{low:g} to {high:g} {unit}"


def job_words(job: Job) -> str:
    steps = int(job.counts.sum())
    words = f"{job.n_flows:,} flows, {as_size(float(job.phase_bytes().sum()))}"
    if steps > 1:
        words += f", {steps:,} steps"
    if job.n_self_flows:
        words += f" ({job.n_self_flows:,} from a NIC to itself left out)"
    return words


def bounds_words(bounds: Bounds) -> str:
    if not bounds.fabric_s:
        words = "no flow leaves its leaf" if bounds.nic_s else "nothing to send"
    elif bounds.fabric_s > bounds.nic_s * (1 + 1e-6):
        words = "the fabric is the bottleneck"
    else:
        words = "the NICs are the bottleneck, if the fabric is well used"
    return f"busiest fabric link {as_time(bounds.fabric_s)} at best, busiest NIC {as_time(bounds.nic_s)}: {words}"


def verdict_words(rows: list[Row], bounds: Bounds) -> str:
    """The chosen method (the first row) beside hashing and spraying."""
    times = [row.completion_s for row in rows]
    if max(times) < min(times) * 1.005:
        return "every method takes the same time: this traffic does not depend on load balancing"
    chosen, others = rows[0], {row.method: row.completion_s for row in rows[1:]}
    parts = []
    for name in ("ecmp", "spray"):
        if name in others:
            gain = others[name] / chosen.completion_s
            faster = f"{gain:.2f}x faster than" if gain > 1 else f"{1 / gain:.2f}x slower than"
            parts.append(f"{faster if abs(gain - 1) >= 0.005 else 'as fast as'} {name}")
    above = chosen.completion_s / bounds.completion_s - 1
    parts.append(
        "at the bound"
        if above < 0.005
        else f"{above:.0%} above the bound"
        if above < 1
        else f"{1 + above:.1f}x the bound"
    )
    words = f"{chosen.method} takes {as_time(chosen.completion_s)}: {', '.join(parts)}"
    best = min(rows, key=lambda row: row.completion_s)
    if chosen.completion_s > best.completion_s * 1.005:
        words += f"; the fastest is {best.method} with {as_time(best.completion_s)}"
    return words


def nccl_words(settings: fb.NcclSettings) -> str:
    """The variables, and whether they carry out the plan."""
    about = "exactly the plan" if settings.is_exact else "near the plan: NCCL cuts every message in equal parts"
    return f"{', '.join(f'{name}={value}' for name, value in settings.environment().items())} ({about})"


def as_dict(
    fabric: Topology,
    job: Job,
    chosen: str,
    bounds: Bounds,
    rows: list[Row],
    settings: fb.NcclSettings | None,
    written: dict[str, str],
) -> dict[str, Any]:
    """Everything as plain data; times in seconds."""
    return {
        "fabric": {
            "nics": fabric.n_nics,
            "leaves": fabric.n_leaves,
            "links": fabric.n_links,
            "failed": [fabric.link_name(int(link)) for link in fabric.failed],
        },
        "traffic": {
            "name": job.name,
            "flows": job.n_flows,
            "bytes": int(job.phase_bytes().sum()),
            "steps": int(job.counts.sum()),
            "phase_bytes": dict(zip(job.phases, map(int, job.phase_bytes()), strict=True)),
            "self_flows_left_out": job.n_self_flows,
        },
        "bounds": asdict(bounds),
        "method": chosen,
        "methods": {
            row.method: asdict(row)
            | {
                "phase_s": dict(zip(job.phases, row.phase_s, strict=True)),
                "congestion_over_optimum": row.congestion_s / bounds.congestion_s if bounds.congestion_s else None,
            }
            for row in rows
        },
        "nccl": None if settings is None else settings.environment() | {"exact": settings.is_exact},
        "written": written,
    }


def as_ratio(value: float, reference: float, digits: int) -> str:
    return f"{value / reference:.{digits}f}" if reference else "-"


def as_time(seconds: float) -> str:
    """Four digits: ``12.58 ms``."""
    if not seconds:
        return "0 s"
    unit, factor = next(((u, f) for u, f in (("s", 1.0), ("ms", 1e3)) if seconds * f >= 0.99995), ("µs", 1e6))
    value = seconds * factor
    return f"{value:,.{max(0, 3 - int(np.log10(max(value, 1.0)) + 1e-4))}f} {unit}"


def as_size(number: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:.0f} B"
