"""A real model on real processes: both phases together, in chunks, and apart."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

import anabranch.serving as sv
from anabranch.lab import Lab
from anabranch.lab.figures import COLORS, new_figure
from anabranch.lab.places import data_folder
from anabranch.papers.splitwise import Settings
from anabranch.papers.splitwise.setup import Data, Row, keep


def real_servers(lab: Lab, settings: Settings, data: Data) -> float:
    """One model, two cores, the same requests at the same times: both phases together, in chunks, and apart."""
    import torch

    from anabranch.language import load_causal, tiny_causal

    model: Any
    if settings.server_model == "tiny":
        model = loaded = tiny_causal(generator=torch.Generator().manual_seed(lab.seed))
    else:
        from anabranch.worlds import SMOLLM2_GGUF

        SMOLLM2_GGUF.read(SMOLLM2_GGUF.files[0].name, data_folder())
        model = SMOLLM2_GGUF.folder(data_folder()) / SMOLLM2_GGUF.files[0].name
        loaded = load_causal(model)
    generator = np.random.default_rng(lab.seed)
    drawn = sv.poisson_requests(
        data.conversation, settings.server_rate_per_s, settings.server_seconds, generator=generator
    )
    requests = drawn.shortened(settings.server_lengths_over, most=1500)
    vocabulary = loaded.config.vocab_size
    prompts = [generator.integers(2, vocabulary, n).tolist() for n in requests.prompt_tokens]
    arms: dict[str, Callable[[], Any]] = {
        "colocated": lambda: sv.ColocatedServer(model, threads=2),
        "chunked": lambda: sv.ColocatedServer(model, threads=2, chunk=64),
        "split": lambda: sv.PhaseSplitServer(model, threads=1, checksums=True),
    }
    streams: dict[str, Any] = {}
    rows: list[Row] = []
    share, length = 0.0, 512
    with lab.stage("real servers", total=len(arms) * len(requests)) as stage:
        for name, start in arms.items():
            with start() as server:
                server.submit(prompts[0][:8], 4).result(600.0)  # warm up
                streams[name] = sv.replay(server, requests, prompts, progress=lambda *_: stage.advance())
                if name == "split":
                    long = generator.integers(2, vocabulary, (3, length)).tolist()
                    again = [server.submit(prompt, 4) for prompt in long]
                    for one in again:
                        one.result(600.0)
                    share = median(one.record.transfer_share for one in again)
            rows.append({"server": name, "requests": len(requests), **sv.latency_summary(streams[name])})
    lab.table("real-servers", rows, caption=f"{settings.server_model} on two cores, the same requests; chunks of 64")
    tail = {row["server"]: row["P99 gap, ms"] / rows[-1]["P99 gap, ms"] for row in rows}
    for name in ("colocated", "chunked"):
        lab.measure(f"real-p99-gap-{name}-over-split", tail[name], unit="x", scale="log")
    some = streams["split"][:20]
    same = [one.tokens == sv.unsplit_tokens(loaded, one.prompt_ids, one.max_new_tokens) for one in some]
    whole = [one.record.sent_sha256 == one.record.received_sha256 for one in some]
    lab.measure("real-identical-answers", float(np.mean([*same, *whole])), compared=len(same))
    lab.measure("real-transfer-over-prefill", share, prompt_tokens=length)
    figure, axes = new_figure()
    for color, (name, answers) in zip(COLORS, streams.items(), strict=False):
        begin = min(one.submitted_s for one in answers)
        points = [(t - begin, 1e3 * gap) for one in answers for t, gap in zip(one.times_s[1:], one.gaps_s, strict=True)]
        axes.plot(*zip(*points, strict=True), ".", color=color, label=name, alpha=0.7)
    labels = {"xlabel": "seconds", "ylabel": "time between tokens, ms", "yscale": "log"}
    keep(lab, "token-gaps", figure, axes, "Every gap between two tokens of an answer, real servers", **labels)
    return share
