"""Small studies on a simulated cluster: answers of another simulator, transfers of a request alone, slowdowns by rate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.serving.cluster import Cluster, simulate_cluster
from anabranch.serving.performance import PerformanceModel
from anabranch.serving.requests import RequestTable
from anabranch.serving.slo import Load, SloLimits, slo_report


def answer_differences(cluster: Cluster, path: str | Path) -> list[dict[str, Any]]:
    """Largest differences to the answers in a CSV file, for each of TTFT, end to end, second-token gap and waiting (seconds).

    Args:
        path: columns ``arrival_s, prompt_tokens, output_tokens`` and ``ttft_s, e2e_s, second_token_gap_s, queue_s``.
    """
    theirs: Any = np.genfromtxt(path, delimiter=",", names=True)
    requests = RequestTable.of(theirs["arrival_s"], theirs["prompt_tokens"], theirs["output_tokens"])
    ours = simulate_cluster(cluster, requests)
    return [
        {
            "file": Path(path).stem, "column": column, "requests": len(requests),
            "largest difference, s": float(np.abs(getattr(ours, column) - theirs[column]).max()),
        }
        for column in ("ttft_s", "e2e_s", "second_token_gap_s", "queue_s")
    ]  # fmt: skip


def exposed_transfers(serialized: Cluster, layerwise: Cluster, prompts: Sequence[int]) -> list[dict[str, Any]]:
    """For one request alone at each prompt length: time from the end of the prompt until its cache is there.

    Args:
        serialized, layerwise: the same cluster of one prompt and one token machine with either way of sending.
    """
    rows = []
    for prompt in prompts:
        request = RequestTable.of([0.0], [prompt], [2])
        row: dict[str, Any] = {"prompt": prompt}
        for name, cluster in (("serialized", serialized), ("layerwise", layerwise)):
            result = simulate_cluster(cluster, request)
            gap, ttft = float(result.second_token_gap_s[0]), float(result.ttft_s[0])
            token = float(result.e2e_s[0]) - ttft - gap
            row |= {f"{name}, ms": 1e3 * gap, f"{name} / prompt": gap / ttft, f"{name} / token": gap / token}
        rows.append(row)
    return rows


def slowdown_rows(
    clusters: Mapping[str, Cluster],
    load: Load,
    rates: Sequence[float],
    reference: PerformanceModel,
    *,
    percentile: float = 90.0,
) -> list[dict[str, Any]]:
    """A percentile of the slowdowns of every cluster at every rate: columns ``NAME, TTFT`` and ``NAME, TBT``; None beyond 100."""
    limits = SloLimits((percentile,), (1.0,), (1.0,), (1.0,))
    rows = []
    for rate in rates:
        requests, row = load.at(float(rate)), {"requests/s": float(rate)}
        for name, cluster in clusters.items():
            result = simulate_cluster(cluster, requests, max_time_s=10 * load.seconds)
            slow = slo_report(result, requests, reference, limits).slowdowns
            row |= {f"{name}, {metric.upper()}": slow[metric][0] for metric in ("ttft", "tbt")}
        rows.append({key: value if value < 100 or key == "requests/s" else None for key, value in row.items()})
    return rows
