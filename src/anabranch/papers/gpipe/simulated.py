"""The paper's sizes, simulated: throughput by stages and micro-batches, and how large a model fits."""

from __future__ import annotations

from functools import partial
from typing import Any

import anabranch.distributed as pp
from anabranch.lab import Lab
from anabranch.lab.figures import plot_curves
from anabranch.papers.gpipe import Settings
from anabranch.simulation import TransformerShape

GIB = 2**30
# What the paper and its reproduction print: throughput over 2 stages and 1 micro-batch, by (stages, micro-batches).
PUBLISHED_AT = [(k, m) for m in (1, 4, 32) for k in (2, 4, 8)]
TRANSFORMER = dict(zip(PUBLISHED_AT, (1, 1.07, 1.3, 1.7, 3.2, 4.8, 1.8, 3.4, 6.3), strict=True))
AMOEBANET = dict(zip(PUBLISHED_AT, (1, 1.13, 1.38, 1.07, 1.26, 1.72, 1.21, 1.84, 3.48), strict=True))
TORCHGPIPE = dict(zip(PUBLISHED_AT, (1, 1.004, 0.932, 1.539, 1.666, 2.621, 1.773, 2.709, 4.953), strict=True))
# Transformer-L by stages: layers and billions of parameters (Table 1; 1 without recomputation is the first row).
CAPACITY = {0: (3, 0.2822), 1: (13, 0.7858), 8: (103, 5.3), 32: (415, 21.0), 128: (1663, 83.9)}
TRANSFORMER_L = TransformerShape(
    name="Transformer-L", layers=1, hidden=2048, heads=32, kv_heads=32, intermediate=8192, vocabulary=32000, gated=False
)
Row = dict[str, Any]


def capacity(lab: Lab, settings: Settings) -> None:
    """Table 1, Transformer-L: 16 GiB, 32 sequences of 1024 tokens (one for the naive device), float32, 12 bytes a parameter."""
    one = pp.profile_transformer(TRANSFORMER_L, sequence=1024, flops_per_s=1e13, dtype_bytes=4, scores=True)
    rows: list[Row] = []
    with lab.stage("capacity", total=len(CAPACITY)) as stage:
        for k, (paper_layers, paper_billions) in CAPACITY.items():
            if k not in (*range(1 + max(settings.simulated_stages)), 128):
                continue
            arm = (1, 1, "never") if k == 0 else (k, 32, "always")
            most = pp.most_layers(
                partial(one.repeated, 1), stages=arm[0], micro_batches=arm[1], checkpoint=arm[2], samples=32 if k else 1,
                memory_bytes=16 * GIB, bytes_per_parameter=12.0,
            )  # fmt: skip
            ours = float(one.repeated(1, most).params.sum()) / 1e9
            rows.append(
                {
                    "stages": k or "naive", "layers": most, "billions": ours, "paper layers": paper_layers,
                    "paper billions": paper_billions, "paper GiB at 12 bytes": paper_billions * 12e9 / GIB,
                }
            )  # fmt: skip
            stage.advance(stages=k)
    lab.table("capacity", rows, caption="Largest Transformer-L by our model of memory, beside Table 1 of the paper")
    lab.measure("transformer-capacity-128-stages", rows[-1]["billions"] / rows[0]["billions"], unit="x", scale="log")


def tables(lab: Lab, settings: Settings) -> None:
    """Tables 2 and 3: throughput over 2 stages and 1 micro-batch, by formula and by the simulator of even stages."""
    rows: list[Row] = []
    with lab.stage("the paper's tables", total=len(settings.simulated_stages)) as stage:
        base = pp.even_step_s(2, 1)
        for k in settings.simulated_stages:
            for m in (1, 4, 32):
                rows.append(
                    {
                        "K": k, "M": m, "formula": k * m / (m + k - 1), "ours": base / pp.even_step_s(k, m),
                        "ours, recomputing": base / pp.even_step_s(k, m, checkpoint="always"),
                        "paper, Transformer-48": TRANSFORMER.get((k, m)), "paper, AmoebaNet": AMOEBANET.get((k, m)),
                        "torchgpipe, AmoebaNet": TORCHGPIPE.get((k, m)),
                    }
                )  # fmt: skip
            stage.advance(K=k)
    lab.table("throughput", rows, caption="Throughput over K = 2, M = 1: formula, simulated, published")
    for k, m in ((8, 32), (8, 4)):
        row = next(row for row in rows if row["K"] == k and row["M"] == m)
        lab.measure(f"throughput-k{k}-m{m}", row["ours"], unit="x", published=row["paper, Transformer-48"])
    bound = {}
    ms = [2**i for i in range(8)]
    for k in settings.simulated_stages:
        bubbles = [pp.simulate_pipeline(pp.fill_drain(k, m, checkpoint="never"), 1.0, 2.0).bubble_fraction for m in ms]
        bound[f"K = {k}"] = ([m / k for m in ms], bubbles)
    figure = plot_curves(bound, title="Bubbles", x="micro-batches over stages, M / K", y="idle share", log="x")
    lab.figure("bubbles", figure, caption="Idle share of a step: (K-1)/(M+K-1)")
