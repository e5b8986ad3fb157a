"""Flip, count, time."""

from __future__ import annotations

import time

import numpy as np

from anabranch.lab import Lab
from coin_flips import Settings


def biased_bits(flips: int, seed: int) -> dict[str, np.ndarray]:
    """A table of flips, kept by the lab's cache."""
    return {"bits": np.random.default_rng(seed).integers(0, 2, flips, dtype=np.uint8)}


def experiment(lab: Lab, settings: Settings) -> None:
    heads = counted = 0
    with lab.stage("flip", total=settings.rounds) as stage:
        for part in np.array_split(lab.generator.integers(0, 2, settings.flips), settings.rounds):
            heads += int(part.sum())
            counted += len(part)
            lab.series("heads", counted, share=heads / max(counted, 1))
            stage.advance(heads=heads)
            time.sleep(settings.pause_s)
    lab.measure("heads", heads / settings.flips)
    lab.measure("counted", counted / settings.flips)
    kept = lab.cached("bits", biased_bits, min(settings.flips, 10_000), lab.seed)
    lab.table("summary", [{"source": "drawn", "heads": heads}, {"source": "kept", "heads": int(kept["bits"].sum())}])
    with lab.stage("time"):
        few = np.random.default_rng(0)
        lab.time(
            "speedup", lambda: few.integers(0, 2, 2000).sum(), lambda: sum(int(few.integers(0, 2)) for _ in range(2000))
        )
