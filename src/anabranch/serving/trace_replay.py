"""Send a trace to a real server at the times at which its requests came."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from anabranch.serving.requests import RequestTable
from anabranch.serving.streams import TokenStream

Progress = Callable[[int, int, dict[str, float]], None]


def replay(
    server: Any,
    requests: RequestTable,
    prompts: Sequence[Sequence[int]],
    *,
    timeout_s: float = 600.0,
    progress: Progress | None = None,
) -> list[TokenStream]:
    """Submit each request when it is due, wait for all answers, and give their streams.

    The load is open: a slow server does not slow the arrivals down.

    Args:
        server: anything with ``submit(prompt_ids, max_new_tokens)``.
        requests: arrivals from now on, and how many tokens each asks for. prompts: of each, its token ids.
        timeout_s: for all answers, after the last arrival.

    Raises:
        ValueError: as many prompts as requests were expected. TimeoutError: answers that did not come in time.
    """
    if len(prompts) != len(requests):
        raise ValueError(f"prompts has {len(prompts)} entries, requests has {len(requests)}")
    begin = time.monotonic()
    streams = []
    arrivals, outputs = requests.arrival_s.tolist(), requests.output_tokens.tolist()
    for i, (arrival, output, prompt) in enumerate(zip(arrivals, outputs, prompts, strict=True)):
        time.sleep(max(0.0, begin + arrival - time.monotonic()))
        streams.append(server.submit(prompt, output))
        if progress is not None:
            progress(i + 1, len(requests), {"seconds": time.monotonic() - begin})
    stop = time.monotonic() + timeout_s
    for stream in streams:
        stream.result(max(0.0, stop - time.monotonic()))
    return streams


def latency_summary(streams: Sequence[TokenStream]) -> dict[str, float]:
    """Percentiles over all requests: gaps between tokens in milliseconds, time to the first token in seconds."""
    gaps = 1e3 * np.array([gap for one in streams for gap in one.gaps_s])
    ttft = np.array([one.ttft_s for one in streams])
    named = {"P50 gap, ms": (gaps, 50), "P99 gap, ms": (gaps, 99), "largest gap, ms": (gaps, 100)}
    named |= {"P50 TTFT, s": (ttft, 50), "P99 TTFT, s": (ttft, 99)}
    return {name: float(np.percentile(values, at)) for name, (values, at) in named.items()}
