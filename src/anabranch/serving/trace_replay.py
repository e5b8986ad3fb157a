"""Send a trace to a real server at the times at which its requests came."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

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
