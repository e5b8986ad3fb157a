"""The geometry of high dimensions, in the plane: norms that concentrate, directions that are free (2512.18184).

The source is a thin circle, the target three arcs of unlike shares on a smaller one. A scenario says what is done to
the source; :func:`simulate_plane` trains all its runs as one batched network. The paper: norms of the chi law with 3,072
(source) and 625 degrees of freedom (target), 1,024 fixed target points, batches of 10, 100,000 steps.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anabranch.generative._checks import check_count
from anabranch.generative._spheres import chi_mean, draw_chi
from anabranch.generative.couplings import MinibatchOT
from anabranch.generative.directional_sources import CapSource
from anabranch.generative.fit import fit
from anabranch.generative.norm_alignment import ChiSphereSource, NormAlignedSource
from anabranch.generative.objectives import Loss
from anabranch.generative.pruned_source import PrunedSource
from anabranch.generative.solve import Progress, solve
from anabranch.generative.sources import EmpiricalSource, Source
from anabranch.generative.sparse_axes import Axes, mean_direction_axes, sparse_axes
from anabranch.generative.times import uniform_times

SOURCE_DEGREES, TARGET_DEGREES = 3072.0, 625.0
SHARES = (0.05, 0.3, 0.65)
HALF_WIDTH = math.radians(10)
PAPER_BATCH = 10


@dataclass(frozen=True, eq=False)
class PlaneTarget:
    """Three arcs: ``angles`` ``[3]``, shares 5, 30 and 65 %, half-width 10 degrees, norms of the chi law with 625 degrees."""

    angles: Tensor

    @classmethod
    def draw(cls, *, generator: torch.Generator | None) -> "PlaneTarget":
        """Angles uniform on the circle, independent: arcs may overlap."""
        return cls(2 * math.pi * torch.rand(len(SHARES), generator=generator, dtype=torch.float64))

    @property
    def directions(self) -> Float[Tensor, "3 2"]:
        """Unit vectors of the arcs' middles."""
        return torch.stack([self.angles.cos(), self.angles.sin()], 1)

    @property
    def centers(self) -> Float[Tensor, "3 2"]:
        """The arcs' middles at the mean norm."""
        return chi_mean(TARGET_DEGREES) * self.directions

    def sample(self, n: int, *, generator: torch.Generator | None) -> tuple[Float[Tensor, "n 2"], Int[Tensor, " n"]]:
        """``n`` points, float32, and their arcs; shares exact up to rounding, angles even over the arc with 10 % jitter."""
        check_count("n", n, len(SHARES))
        counts = [math.floor(share * n) for share in SHARES]
        counts[-1] += n - sum(counts)
        mode = torch.repeat_interleave(torch.arange(len(SHARES)), torch.tensor(counts))
        offset = torch.cat([torch.linspace(-1, 1, count, dtype=torch.float64) for count in counts])
        offset = offset + 0.1 * torch.randn(n, generator=generator, dtype=torch.float64)
        angle = self.angles[mode] + HALF_WIDTH * offset
        radius = draw_chi(TARGET_DEGREES, n, generator=generator)
        return (radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)).float(), mode


@dataclass(frozen=True)
class PlaneScenario:
    """What is done to the source.

    Args:
        coupling: "ot" inside the batch, or "independent".
        cosine: a directional source, uniform on the caps of this cosine around the arcs' middles, in their shares.
        source_steps: the source is a flow trained for so many of the paper's steps (batches of 10) from the circle.
        aligned: the source has the target's mean norm.
        prune: the axis kept clear when sampling: "released", minus the second principal axis of the target, whose sign is
            arbitrary; "mean", minus the mean direction; "sparsest", the signed principal axis of least largest cosine.
        max_cosine: of pruning.
        whole: every batch is the whole target ("perfect pairing"), with as many samples seen in all.
    """

    coupling: Literal["ot", "independent"] = "independent"
    cosine: float | None = None
    source_steps: int | None = None
    aligned: bool = False
    prune: Literal["released", "mean", "sparsest"] | None = None
    max_cosine: float = 0.9
    whole: bool = False


# In the authors' script the density and directional scenarios use transport inside the batch.
PLANE_SCENARIOS: dict[str, PlaneScenario] = {
    "ot": PlaneScenario("ot"),
    "independent": PlaneScenario(),
    "pruned-released": PlaneScenario(prune="released", max_cosine=0.98),
    "pruned-mean": PlaneScenario(prune="mean", max_cosine=0.9),
    "pruned-sparsest": PlaneScenario(prune="sparsest", max_cosine=0.9),
    "aligned": PlaneScenario(aligned=True),
    "density-20": PlaneScenario("ot", source_steps=20),
    "density-200": PlaneScenario("ot", source_steps=200),
    "density-6000": PlaneScenario("ot", source_steps=6000),
    "density-10000": PlaneScenario("ot", source_steps=10_000),
    "directional-loose": PlaneScenario("ot", cosine=0.9),
    "directional-tight": PlaneScenario("ot", cosine=0.98),
    "directional-paired": PlaneScenario("ot", cosine=0.9, whole=True),
}


class PlaneNets(nn.Module):
    """One small network a run, evaluated together: three hidden SELU layers on (x, y, t). ``net(x, t)``: x ``[R, n, 2]``.

    Args:
        runs: R.
        width: of the hidden layers.
    """

    classes = None

    def __init__(self, runs: int, width: int = 64, *, generator: torch.Generator | None) -> None:
        super().__init__()
        sizes = [(3, width), (width, width), (width, width), (width, 2)]

        def uniform(rows: int, a: int, b: int) -> nn.Parameter:
            bound = 1 / math.sqrt(a)  # of torch.nn.Linear
            return nn.Parameter(bound * (2 * torch.rand(runs, rows, b, generator=generator) - 1))

        self.weights = nn.ParameterList(uniform(a, a, b) for a, b in sizes)
        self.biases = nn.ParameterList(uniform(1, a, b) for a, b in sizes)

    def forward(self, x: Float[Tensor, "runs n 2"], t: float | Tensor) -> Float[Tensor, "runs n 2"]:
        time = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        time = time.expand(x.shape[:2]) if time.ndim != 1 else time[:, None].expand(x.shape[:2])
        h = torch.cat([x, time[..., None]], 2)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            if i + 1 < len(self.weights):
                h = nn.functional.selu(h)
        return h


@dataclass(frozen=True, eq=False)
class PlaneRuns:
    """What a scenario gave, run by run.

    Args:
        samples: ``[R, n, 2]``.
        points: the fixed targets ``[R, N, 2]``.
        targets: R of them.
        starts: of the samples.
        kept: ``[R]``, share of the source's draws that pruning kept; 1 without pruning.
        axes: ``[R, 2]`` of pruning, or None.
        net: the trained networks.
    """

    samples: Tensor
    points: Tensor
    targets: tuple[PlaneTarget, ...]
    starts: Tensor
    kept: Tensor
    axes: Tensor | None
    net: PlaneNets


def simulate_plane(
    scenario: PlaneScenario,
    targets: tuple[PlaneTarget, ...],
    *,
    steps: int,
    generator: torch.Generator,
    net: PlaneNets | None = None,
    batch: int = 128,
    points: int = 1024,
    draws: int = 2000,
    lr: float = 1e-3,
    lr_schedule: Literal["cosine", "constant"] = "cosine",
    progress: Progress | None = None,
) -> PlaneRuns:
    """Train and sample the scenario once for every target; the runs share nothing but the time they take.

    Cost: ``steps`` steps of R networks on ``batch`` points, and with transport R assignments of O(batch^3) a step.
    A learned source is trained first, on ``source_steps * 10`` samples in the same batches.

    Args:
        net: networks trained before, with which only the sampling is done: pruning needs no training of its own.
        points: of each fixed target.
        draws: samples of every run.

    Raises:
        ValueError: no targets, counts below 1.
    """
    if not targets:
        raise ValueError("targets is empty: expected one for every run")
    for name, count in (("steps", steps), ("batch", batch), ("draws", draws)):
        check_count(name, count)
    fixed = torch.stack([target.sample(points, generator=generator)[0] for target in targets])
    if scenario.whole:
        steps, batch = max(1, steps * batch // points), points
    sources = _sources(scenario, targets, fixed, batch, generator, lr)
    if net is None:
        net = _train(sources, fixed, scenario, steps, batch, generator, lr, lr_schedule, progress)
    kept, axes = torch.ones(len(targets)), None
    if scenario.prune is not None:
        found = [_axis(scenario.prune, data) for data in fixed]
        pruned = [PrunedSource(s, a, scenario.max_cosine) for s, a in zip(sources, found, strict=True)]
        kept = torch.tensor([source.acceptance_rate for source in pruned])
        axes = torch.cat([axis.vectors for axis in found])
        sources = list(pruned)
    starts = torch.stack([source.sample(draws, generator=generator) for source in sources])
    samples = solve(net, starts, uniform_times(50), "rk4")
    assert isinstance(samples, Tensor)
    return PlaneRuns(samples, fixed, targets, starts, kept, axes, net)


def _sources(
    scenario: PlaneScenario,
    targets: tuple[PlaneTarget, ...],
    fixed: Tensor,
    batch: int,
    generator: torch.Generator,
    lr: float,
) -> list[Source]:
    circle = ChiSphereSource((2,), SOURCE_DEGREES)
    if scenario.cosine is not None:
        shares = torch.tensor(SHARES)
        return [
            CapSource(
                directions=target.directions.float(), weights=shares, min_cosine=scenario.cosine, degrees=SOURCE_DEGREES
            )
            for target in targets
        ]
    if scenario.aligned:
        return [NormAlignedSource(circle, float(data.norm(dim=1).mean()) / circle.mean_norm) for data in fixed]
    if scenario.source_steps is None:
        return [circle] * len(targets)
    steps = max(1, scenario.source_steps * PAPER_BATCH // batch)
    plain = replace(scenario, source_steps=None)
    flow = _train([circle] * len(targets), fixed, plain, steps, batch, generator, lr, "constant", None)
    pool = torch.stack([circle.sample(20_000, generator=generator) for _ in targets])
    drawn = solve(flow, pool, uniform_times(10), "midpoint")
    assert isinstance(drawn, Tensor)
    return [EmpiricalSource(own) for own in drawn]


def _train(
    sources: list[Source],
    fixed: Tensor,
    scenario: PlaneScenario,
    steps: int,
    batch: int,
    generator: torch.Generator,
    lr: float,
    lr_schedule: Literal["cosine", "constant"],
    progress: Progress | None,
) -> PlaneNets:
    net = PlaneNets(len(sources), generator=generator)
    objective = _PlaneMatching(sources, fixed, scenario, batch)
    fit(net, objective, steps=steps, lr=lr, lr_schedule=lr_schedule, ema=0.0, grad_clip=None, precision="f32",
        generator=generator, progress=progress)  # fmt: skip
    return net


class _PlaneMatching:
    """Flow matching of all runs at once; the sum over runs of their losses, so that each has the gradient of its own."""

    ahead = 64  # batches drawn at once

    def __init__(self, sources: list[Source], fixed: Tensor, scenario: PlaneScenario, batch: int) -> None:
        self.sources, self.fixed, self.scenario, self.batch = sources, fixed, scenario, batch
        self.queue: list[Tensor] = []

    def __call__(self, net: nn.Module, *, generator: torch.Generator) -> Loss:
        runs = len(self.sources)
        if not self.queue:
            drawn = [s.sample(self.ahead * self.batch, generator=generator) for s in self.sources]
            self.queue = list(torch.stack(drawn).reshape(runs, self.ahead, self.batch, 2).unbind(1))
        x0 = self.queue.pop()
        if self.scenario.whole:
            x1 = self.fixed
        else:
            rows = torch.randint(self.fixed.shape[1], (runs, self.batch, 1), generator=generator)
            x1 = self.fixed.gather(1, rows.expand(-1, -1, 2))
        if self.scenario.coupling == "ot":
            coupling = MinibatchOT()
            x0 = torch.stack([coupling.pair(a, b).x0 for a, b in zip(x0, x1, strict=True)])
        t = torch.rand(runs, self.batch, 1, generator=generator)
        error = net((1 - t) * x0 + t * x1, t.squeeze(2)) - (x1 - x0)
        per_run = error.square().mean((1, 2))
        return Loss(per_run.sum(), per_run)


def _axis(kind: str, data: Tensor) -> Axes:
    if kind == "mean":
        return mean_direction_axes(data, flips=False)
    axes = sparse_axes(data, 1.0, flips=False)
    if kind == "sparsest":
        return axes.sparsest(1)
    return replace(axes, vectors=-axes.basis[-1:])
