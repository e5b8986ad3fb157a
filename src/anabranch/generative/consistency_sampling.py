"""Sampling with a map that only knows jumps to the data end: jump, add fresh noise, jump again."""

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.generative._checks import check_times, expand, time_dtype
from anabranch.generative.flow_maps import FlowMap
from anabranch.generative.paths import GaussianPath, LinearPath
from anabranch.generative.solve import Progress
from anabranch.generative.sources import GaussianSource, Source


def jump_and_renoise(
    flow_map: FlowMap,
    x: Float[Tensor, "batch *shape"],
    times: Float[Tensor, " points"],
    *,
    generator: torch.Generator | None,
    path: GaussianPath | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
    **condition: object,
) -> Float[Tensor, "batch *shape"]:
    """Multistep consistency sampling (Song et al., 2303.01469, algorithm 1): one call for each of ``times`` but the last.

    From the state at ``s`` the map jumps to the data end, ``x_1 = x_s + (1 - s) u(x_s, s, 1)``; before the next call it is
    brought back to that call's time with noise of its own, ``alpha x_1 + sigma x_0``. Where every jump is exact, so is the
    law of the samples; unlike with :func:`jump`, a sample of more than one call does not follow its first noise.

    Args:
        flow_map: asked for jumps to 1 only: a consistency model, or any flow map.
        x: at ``times[0]``.
        times: strictly increasing up to 1; ``uniform_times(n)`` makes n calls.
        generator: of the fresh noise.
        path: between noise and data; default the linear one.
        source: of the fresh noise; default the standard Gaussian.

    Raises:
        ValueError: times that are not strictly increasing in [0, 1] or do not end at 1.
        FloatingPointError: the result is not finite.
    """
    grid = check_times(times)
    if float(grid[-1]) != 1:
        raise ValueError(f"times end at {float(grid[-1])}: expected 1, where the jumps lead")
    path = LinearPath() if path is None else path
    source = GaussianSource(tuple(x.shape[1:]), dtype=x.dtype, device=x.device) if source is None else source
    at = grid.to(x.device, time_dtype(x))[:-1].unbind()
    with torch.no_grad():
        for i, s in enumerate(at):
            if i:
                noise = source.sample(len(x), generator=generator)
                x = (expand(path.alpha(s), x) * x + expand(path.sigma(s), x) * noise).to(x.dtype)
            x = torch.add(x, flow_map(x, s, torch.ones_like(s), **condition), alpha=1 - float(grid[i]))
            if progress is not None:
                progress(i + 1, len(at), {})
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError("the flow map's result is not finite")
    return x
