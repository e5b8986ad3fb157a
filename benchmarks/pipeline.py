"""Our pipeline beside ``torch.distributed.pipelining`` at the same schedule, naive model parallelism, and one process.

Run: ``python benchmarks/pipeline.py [--pairs 9] [--blocks 12] [--width 128] [--batch 64]`` (a few minutes on two idle cores).

Two gloo processes of one thread train a vision transformer on random images, cut in the middle. Every ratio is the median
over interleaved pairs in the same processes, with the smallest and the largest; above 1 ours is faster. Losses of ours and of
torch are compared first. On fewer than two idle cores only the ratios to torch mean something. Before that 10,000 layers of
random costs are cut exactly for some numbers of stages, in milliseconds.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import numpy as np
import torch

from anabranch.distributed import Ranks, TrainingBench, vision_transformer_layers
from anabranch.lab import time_pairs
from anabranch.simulation import balance


def timed_cut(costs: np.ndarray, stages: int) -> float:
    begin = time.perf_counter()
    balance(costs, stages)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("pairs", 9), ("blocks", 12), ("width", 128), ("batch", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    costs = np.random.default_rng(0).lognormal(size=10_000)
    for stages in (2, 8, 32, 128):
        seconds = min(timed_cut(costs, stages) for _ in range(5))
        print(f"10,000 layers on {stages:3d} stages: cut in {1e3 * seconds:.2f} ms")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(given.batch, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (given.batch,), generator=generator)
    layers = partial(vision_transformer_layers, blocks=given.blocks, width=given.width)
    with Ranks(2) as ranks:
        bench = TrainingBench(ranks, layers, images, labels)
        once = partial(partial, bench.run)
        print(
            f"{'ours':>10} {'M':>3}   {'peer':14} {'ours, s':>9} {'peer, s':>9} {'peer / ours':>12}   least to most   formula"
        )
        for ours, m, peer, formula in (
            ("gpipe", 4, "torch gpipe", None),
            ("gpipe", 8, "torch gpipe", None),
            ("gpipe", 16, "torch gpipe", None),
            ("1f1b", 8, "torch 1f1b", None),
            ("gpipe", 8, "naive", 2 * 8 / 9),
            ("gpipe", 16, "one process", 2 * 16 / 17),
            ("gpipe", 8, "ddp", None),
        ):
            peer_m = m if peer.startswith("torch") else 1
            if peer.startswith("torch"):
                a, b = (bench.run(arm, m) for arm in (ours, peer))
                assert abs(a - b) < 1e-5, (a, b)
            timing = time_pairs(once(ours, m), once(peer, peer_m), pairs=given.pairs)
            low, high = min(timing.ratios), max(timing.ratios)
            seconds = (sorted(times)[len(times) // 2] for times in (timing.ours_s, timing.peer_s))
            shown = " ".join(f"{s:9.4f}" for s in seconds)
            expected = f"{formula:.2f}" if formula else ""
            print(
                f"{ours:>10} {m:3d}   {peer:14} {shown} {timing.value:12.3f}   {low:.3f} to {high:.3f}  {expected}",
                flush=True,
            )


if __name__ == "__main__":
    main()
