"""What ``anabranch serving serve`` does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def serve(
    model: str, *, colocated: bool, transport: str, counts: tuple[int, int], threads: int, device: str,
    max_new_tokens: int, say: Callable[[str, bool], None],
) -> None:  # fmt: skip
    """Answers the lines of the standard input, the next while the one before is still written; prints them in order."""
    from anabranch.language import load_causal
    from anabranch.serving.phase_split import ColocatedServer, PhaseSplitServer

    devices = device.split(",")
    if len(devices) > 2 - colocated:
        raise ValueError(f"--device {device}: expected one, or with workers apart two, for prefill and decode")
    tokenizer = load_causal(model).tokenizer
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer: expected one beside the weights")
    server: Any
    if colocated:
        server = ColocatedServer(model, threads=threads, device=device)
    else:
        apart = {"prefill": devices[0], "decode": devices[-1]}
        server = PhaseSplitServer(model, *counts, threads=threads, transport=transport, device=apart)
    with server:
        lines = [line.rstrip("\n") for line in sys.stdin if line.strip()] if not sys.stdin.isatty() else None
        if lines is None:  # a person types: answer before the next line
            for line in sys.stdin:
                if line.strip():
                    _answer(server.submit(tokenizer(line.rstrip("\n")).input_ids, max_new_tokens), line, tokenizer, say)
            return
        streams = [(line, server.submit(tokenizer(line).input_ids, max_new_tokens)) for line in lines]
        for line, stream in streams:
            _answer(stream, line, tokenizer, say)


def _answer(stream: Any, line: str, tokenizer: Any, say: Callable[[str, bool], None]) -> None:
    say(f"> {line.rstrip()}", True)
    shown = ""
    for _ in stream:
        text = tokenizer.decode(stream.tokens, skip_special_tokens=True)
        say(text[len(shown) :], False)
        shown = text
    gaps = sorted(stream.gaps_s) or [0.0]
    record = stream.record
    say("", True)
    say(
        f"  {len(stream.tokens)} tokens; first after {1e3 * stream.ttft_s:.0f} ms, then one every "
        f"{1e3 * gaps[len(gaps) // 2]:.0f} ms (longest {1e3 * gaps[-1]:.0f}); cache {record.kv_bytes / 1e6:.1f} MB, "
        f"{1e3 * record.exposed_s:.1f} ms of its transfer not hidden",
        True,
    )
