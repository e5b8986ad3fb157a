"""Inverting autoregressive flows: ratios measured side by side in one process.

1. The sequential sampler: ours against the authors' (the baseline must be strong, and the same function).
2. Evaluations of a block: a step of one token, windows, a full sweep, and the sweeps at which Jacobi breaks even.
3. Strategies against the sequential sampler, on a block that settles fast and on one that settles slowly.
4. Masked autoregressive flows of zuko: its own inverse against sweeps, on the same weights (the goal is at least 5 at 64
   features). Left out where zuko is not installed.

Arms alternate and medians of paired ratios are printed. Run: ``python benchmarks/gs_jacobi.py [--threads N]``.
"""

import argparse
from collections.abc import Callable

import torch

from anabranch.generative import (
    TarFlow,
    evaluation_seconds,
    invert_autoregressive,
    maps_from_zuko,
    plan_sampling,
    reference_sequential,
)
from anabranch.lab import time_pairs


def model(width: int, spread: float) -> TarFlow:
    """28 x 28 images, 196 tokens, four blocks of two layers; how hard a block is follows from the spread of its last weights."""
    torch.manual_seed(0)
    flow = TarFlow(28, 1, 2, width, 4, 2, head_size=32, classes=10)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            scale = spread * 64 / width if "proj_out" in name else 0.1 * (64 / width) ** 0.5
            parameter.add_(scale * torch.randn_like(parameter))
    return flow.eval()


def show(name: str, ours: Callable[[], object], peer: Callable[[], object], pairs: int = 9) -> None:
    """One line: both medians and the ratio."""
    timing = time_pairs(ours, peer, pairs=pairs)
    ratios = sorted(timing.ratios)
    ours_ms, peer_ms = (1e3 * sorted(times)[len(times) // 2] for times in (timing.ours_s, timing.peer_s))
    spread = f"[{ratios[len(ratios) // 4]:.2f}, {ratios[-1 - len(ratios) // 4]:.2f}]"
    print(f"  {name:44s} {ours_ms:9.2f} ms  peer {peer_ms:9.2f} ms  ratio {timing.value:6.2f}  {spread}")


def sequential(generator: torch.Generator) -> None:
    print("\nour sequential sampler (peer: the authors')")
    for width in (64, 256):
        flow = model(width, 0.01)
        for batch in (1, 8):
            label = torch.arange(batch)
            maps, z = flow.inverse_maps(label), torch.randn(batch, 196, 4, generator=generator)
            difference = invert_autoregressive(maps, z, "sequential", tol=0.0)[0] - reference_sequential(flow, z, label)
            show(
                f"width {width}, batch {batch} (differ by {float(difference.abs().max()):.0e})",
                lambda m=maps, z=z: invert_autoregressive(m, z, "sequential", tol=0.0),  # type: ignore[misc]
                lambda f=flow, z=z, y=label: reference_sequential(f, z, y),  # type: ignore[misc]
                pairs=5,
            )


def evaluations(generator: torch.Generator) -> None:
    print("\none evaluation of a block, ms")
    print(f"  {'width':>6s} {'batch':>6s} {'1 token':>9s} {'16':>9s} {'48':>9s} {'195':>9s}  break-even sweeps")
    for width in (32, 64, 128, 256):
        one_map = model(width, 0.01).inverse_maps()[0]
        for batch in (1, 8):
            seconds = evaluation_seconds(one_map, torch.randn(batch, 196, 4, generator=generator), [1, 16, 48, 195])
            cells = " ".join(f"{1e3 * s:9.3f}" for s in seconds.values())
            print(f"  {width:6d} {batch:6d} {cells}  {195 * seconds[1] / seconds[195]:8.1f}")


def strategies(generator: torch.Generator) -> None:
    print("\nstrategies on one block, width 64, tolerance 2e-4 (peer: sequential)")
    for kind, spread in (("settles fast", 0.02), ("settles slowly", 0.04)):
        maps = model(64, spread).inverse_maps()[:1]
        for batch in (1, 8):
            z = torch.randn(batch, 196, 4, generator=generator)
            exact, _ = invert_autoregressive(maps, z, "sequential", tol=0.0)
            plan = plan_sampling(maps, [torch.randn(batch, 196, 4, generator=generator) for _ in range(2)], tol=2e-4)
            for name in ("jacobi", "frozen-16", "sliding-48", "gs-jacobi-8", *plan.strategies):
                x, (info,) = invert_autoregressive(maps, z, name, tol=2e-4)
                error = float((x - exact).abs().max())
                planned = " = plan" if name == plan.strategies[0] else ""
                show(
                    f"{kind}, batch {batch}, {name}{planned} ({info.sweeps}, {error:.0e})",
                    lambda m=maps, z=z, n=name: invert_autoregressive(m, z, n, tol=2e-4),  # type: ignore[misc]
                    lambda m=maps, z=z: invert_autoregressive(m, z, "sequential", tol=2e-4),  # type: ignore[misc]
                    pairs=5,
                )


def masked(generator: torch.Generator) -> None:
    try:
        import zuko
    except ImportError:
        return
    print("\nmasked autoregressive flows of zuko, Jacobi to 1e-5 (peer: its own inverse)")
    for kind, features in (("MAF", 16), ("MAF", 64), ("NSF", 64)):
        torch.manual_seed(0)
        flow = getattr(zuko.flows, kind)(features, transforms=3, hidden_features=(128, 128))
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.03 * torch.randn_like(parameter))
        z, maps = torch.randn(256, features, generator=generator), maps_from_zuko(flow)
        with torch.no_grad():
            inverse = flow().transform.inv
            x, infos = invert_autoregressive(maps, z, "jacobi", tol=1e-5)
            error = float((x - inverse(z)).abs().max())
            show(
                f"{kind}, {features} features ({sum(info.sweeps for info in infos)} sweeps, {error:.0e})",
                lambda m=maps, z=z: invert_autoregressive(m, z, "jacobi", tol=1e-5),  # type: ignore[misc]
                lambda i=inverse, z=z: i(z),  # type: ignore[misc]
            )


def main() -> None:
    """Runs all, about two minutes on one core."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    generator = torch.Generator().manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; ratio: peer / ours")
    sequential(generator)
    evaluations(generator)
    strategies(generator)
    masked(generator)


if __name__ == "__main__":
    main()
