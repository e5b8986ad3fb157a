"""Are denoising, score and flow models one thing? Identities on exact laws, solvers on exact flows, views on images."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

import anabranch.generative as ge
from anabranch.generative import LinearPath, TrigPath, VPPath, metrics, uniform_times
from anabranch.generative.image_files import image_grid
from anabranch.lab import Lab
from anabranch.lab.figures import new_figure, plot_curves
from anabranch.lab.places import data_folder
from anabranch.papers.principles import Settings
from anabranch.worlds import FashionJudge, GaussianMixture, balanced_labels, eight_modes, garments, load_fashion_teacher

Row = dict[str, Any]
KINDS: tuple[Any, ...] = ("velocity", "denoised", "noise", "score", "diffusion_v")
PATHS = {"linear": LinearPath(), "trigonometric": TrigPath(), "variance preserving": VPPath()}
SOLVERS = ("euler", "midpoint", "heun", "rk4", "ab2", "dpmpp_2m")
VIEWS: tuple[Any, ...] = ("noise", "denoised", "velocity")
INEXACT = ("likelihood", "Fokker-Planck", "continuity")  # limited by the quadrature, or measured apart
CHUNK = 250
START = 0.02  # of networks that predict noise: their velocity divides by alpha, which is 0 at t = 0


def experiment(lab: Lab, settings: Settings) -> None:
    world = eight_modes()
    identities(lab, settings, world)
    conditional_targets(lab)
    marginals(lab, settings, world)
    solvers(lab, settings, "mixture", world)
    overhead(lab, settings)
    images = garments(settings.images_from, data_folder())[0]
    solvers(lab, settings, "image-mixture", image_mixture(images[:10_000], lab.seed))
    judge = FashionJudge(images)
    trained_views(lab, settings, judge)
    teacher_samplers(lab, settings, judge)
    bits(lab, settings, images)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What a run is made of, for ``--dry-run``."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in ge.PixelUNet(1, settings.channels, classes=10).parameters())
    seconds = f"{settings.view_seconds:.0f} s of training each"
    return [
        ("views", f"{', '.join(VIEWS)}; {parameters / 1e6:.2f} M parameters, {seconds}"),
        ("solvers", ", ".join(SOLVERS)),
    ]


def draw_from(lab: Lab, use: int) -> torch.Generator:
    """A generator of its own for each use, so that arms share their noise."""
    return torch.Generator().manual_seed(1000 * lab.seed + use)


# Identities, on a law whose density, score and velocity are known.


def identities(lab: Lab, settings: Settings, world: GaussianMixture) -> None:
    fine_steps = 400 if settings.points > 1000 else 40
    g = draw_from(lab, 0)
    rows: list[Row] = []
    conversions = []
    with lab.stage("identities", total=len(PATHS)) as stage:
        for name, path in PATHS.items():
            for t in (0.05, 0.35, 0.65, 0.95):
                x = world.sample(256, generator=g, t=t, path=path)
                v = world.velocity(path)(x, t)
                values = {kind: ge.convert(v, x, t, path, "velocity", kind) for kind in KINDS
                          if kind != "diffusion_v" or name != "linear"}  # fmt: skip
                for frm, to in permutations(values, 2):
                    error = (ge.convert(values[frm], x, t, path, frm, to) - values[to]).abs().max()
                    conversions.append(float(error / values[to].abs().max()))
            x = torch.randn(64, 2, generator=g, dtype=torch.float64)
            label = torch.randint(8, (64,), generator=g)
            found = ge.equivalence_report(world.velocity(path), x, path=path, law=world, label=label, steps=100,
                                          fine_steps=fine_steps)  # fmt: skip
            rows += [
                {"path": name, "statement": e.name, "between": " = ".join(e.between), "error": e.error} for e in found
            ]
            stage.advance()
    lab.table("identities", rows, caption="Largest error of each statement on the eight-mode mixture, float64.")
    lab.measure("worst-conversion-error", max(conversions))
    exact = [row["error"] for row in rows if not row["statement"].startswith(INEXACT)]
    lab.measure("worst-identity-error", max(exact))
    for name in INEXACT:
        those = [row["error"] for row in rows if row["statement"].startswith(name)]
        if those:
            lab.measure(f"{name.lower()}-error", max(those))
    worst: dict[str, float] = {}
    for row in rows:
        worst[row["statement"]] = max(worst.get(row["statement"], 0.0), row["error"], 1e-17)
    figure, axes = new_figure(figsize=(7, 0.28 * len(worst) + 1))
    axes.barh(list(worst)[::-1], list(worst.values())[::-1], left=1e-17)
    axes.set(xscale="log", xlabel="largest error, three paths")
    axes.tick_params(axis="y", labelsize=7)
    lab.figure("identities", figure, caption="Each statement of the core as a measured error.")


def conditional_targets(lab: Lab) -> None:
    """Loss against conditional targets minus loss against marginal ones: the same for every predictor."""
    world = GaussianMixture(weights=[1, 2], means=[[1.0], [-1.0]], covariances=0.25)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(80))
    weights = weights / weights.sum()
    z1, z0 = (part.reshape(-1, 1) for part in torch.meshgrid(nodes, nodes, indexing="ij"))
    mass = (weights[:, None] * weights[None]).reshape(-1)
    g = draw_from(lab, 1)
    shapes = torch.randn(20, 3, generator=g, dtype=torch.float64)
    rows: list[Row] = []
    path = LinearPath()
    for kind in KINDS[:4]:
        for t in (0.3, 0.6):
            gaps = torch.zeros(len(shapes), dtype=torch.float64)
            for share, mean in ((1 / 3, 1.0), (2 / 3, -1.0)):
                point = path.sample(z0, mean + 0.5 * z1, torch.full((len(z0),), t, dtype=torch.float64))
                conditional = ge.convert(point.velocity, point.x_t, t, path, "velocity", kind)
                marginal = ge.convert(world.velocity(path)(point.x_t, t), point.x_t, t, path, "velocity", kind)
                for i, (a, b, c) in enumerate(shapes):
                    guess = a * point.x_t + b * torch.sin(point.x_t) + c
                    difference = (guess - conditional) ** 2 - (guess - marginal) ** 2
                    gaps[i] += share * (mass * difference.squeeze(1)).sum()
            rows.append(
                {"prediction": kind, "t": t, "gap": float(gaps.mean()), "spread": float(gaps.max() - gaps.min())}
            )
    lab.table(
        "conditional-targets", rows, caption="Conditional minus marginal loss of 20 random predictors: mean and spread."
    )
    lab.measure("conditional-gap-spread", max(row["spread"] / row["gap"] for row in rows))


def marginals(lab: Lab, settings: Settings, world: GaussianMixture) -> None:
    """Samples of the stochastic equation at three times against exact draws, beside exact draws against each other.

    One pair of batches varies by half of its distance, so both sides are means over batches.
    """
    n, rows = settings.points, []
    steps, batches = (300, 6) if n > 1000 else (30, 1)
    projections = torch.Generator().manual_seed(0).get_state()

    def distance(a: Tensor, b: Tensor) -> float:
        g = torch.Generator()
        g.set_state(projections)
        return metrics.sliced_wasserstein(a, b, generator=g, projections=128)

    with lab.stage("marginals", total=4 * batches) as stage:
        exact = {t: [world.sample(n, generator=draw_from(lab, 100 + i), t=t) for i in range(2 * batches)]
                 for t in (0.3, 0.6, 1.0)}  # fmt: skip
        floors = {t: np.mean([distance(x, y) for x, y in pairwise(draws)]) for t, draws in exact.items()}
        for noise in (0.0, 0.5, 1.0, 2.0):
            found: dict[float, list[float]] = {t: [] for t in exact}
            for i in range(batches):
                g = draw_from(lab, 200 + i)
                x, begin = torch.randn(n, 2, generator=g, dtype=torch.float64), 0.0
                for t, draws in exact.items():
                    times = uniform_times(max(2, round(steps * (t - begin))), start=begin, end=t)
                    x = ge.solve(world.velocity(), x, times, ge.euler_maruyama(noise), generator=g)
                    found[t] += [distance(x, draws[2 * i]), distance(x, draws[2 * i + 1])]
                    begin = t
                stage.advance()
            rows += [{"noise": noise, "t": t, "distance": float(np.mean(values)), "floor": float(floors[t]),
                      "ratio": float(np.mean(values) / floors[t])} for t, values in found.items()]  # fmt: skip
    lab.table(
        "marginals", rows, caption=f"Sliced Wasserstein distance to exact draws, {n} points; floor: two exact draws."
    )
    lab.measure("marginal-distance-over-floor", max(row["ratio"] for row in rows), unit="x", scale="log")


# Solvers on exact flows.


def image_mixture(images: Tensor, seed: int) -> GaussianMixture:
    """Sixteen Gaussians in the 64 principal components of images: k-means, covariances shrunk towards their diagonal."""
    pca = ge.PatchPCA.fit(images, 64, images.shape[-1])
    codes = pca.encode(images).reshape(len(images), 64).double()
    modes = min(16, len(images) // 10)
    means, label = kmeans2(codes.numpy(), modes, minit="++", seed=seed)
    found, covariances, weights = [], [], []
    for k in range(modes):
        part = codes[torch.from_numpy(label == k)]
        if len(part) < 2:
            continue
        full = torch.cov(part.T)
        found.append(torch.from_numpy(means[k]))
        covariances.append(0.8 * full + 0.2 * torch.diag(full.diagonal()) + 1e-3 * torch.eye(64, dtype=torch.float64))
        weights.append(float(len(part)))
    return GaussianMixture(weights=weights, means=torch.stack(found), covariances=torch.stack(covariances))


def solvers(lab: Lab, settings: Settings, name: str, world: GaussianMixture) -> None:
    """Error at the end against 400 steps of RK4, by solver and calls."""
    n = settings.points if world.dim == 2 else settings.points // 8
    start = torch.randn(n, world.dim, generator=draw_from(lab, 5), dtype=torch.float64)
    with lab.stage(f"solvers: {name}", total=2) as stage:
        reference = ge.ReferenceSolution.solved(world.velocity(), start, steps=400)
        stage.advance()
        found = ge.solver_benchmark(world.velocity(), reference, SOLVERS, settings.calls, path=LinearPath())
    rows = [{"solver": r.solver, "calls": r.calls, "RMSE": r.rmse, "median": r.median} for r in found]
    lab.table(
        f"solvers-{name}", rows, caption=f"Error at the end of exact flows in {world.dim} dimensions, {n} points."
    )
    curves = {s: ([r.calls for r in found if r.solver == s], [r.rmse for r in found if r.solver == s]) for s in SOLVERS}
    figure = plot_curves(
        curves, title="Error by network calls", x="calls a sample", y="RMSE to the exact flow", log="xy"
    )
    lab.figure(f"solvers-{name}", figure, caption="Exact velocity: what is left is the solver's own error.")
    if name != "mixture":
        return
    at = {(r.solver, r.calls): r for r in found}
    for calls in (10, 20, 40):
        for other in ("ab2", "midpoint"):
            if (other, calls) in at:
                for value in ("rmse", "median"):
                    ratio = getattr(at["euler", calls], value) / getattr(at[other, calls], value)
                    lab.measure(f"{value}-euler-over-{other}-{calls}-calls", ratio, unit="x", scale="log")
    lab.measure("calls-euler-over-ab2", needed(curves["euler"]) / needed(curves["ab2"]), unit="x", scale="log")


def needed(curve: tuple[list[int], list[float]], error: float = 0.03) -> float:
    """Calls for an RMSE of ``error``, on the straight line between the measured points of the log-log curve.

    Beyond the last point the last slope goes on.
    """
    calls, errors = np.log(curve[0]), np.log(curve[1])
    below = [i for i, e in enumerate(curve[1]) if e <= error]
    i = below[0] if below else len(calls) - 1
    j = max(1, i)
    slope = (errors[j] - errors[j - 1]) / (calls[j] - calls[j - 1])
    return float(np.exp(calls[j] + (math.log(error) - errors[j]) / min(slope, -1e-3)))


def overhead(lab: Lab, settings: Settings) -> None:
    """Euler by ``solve`` against as many bare calls of the network."""
    net = load_fashion_teacher()
    x, labels, times = torch.randn(16, 1, 28, 28, generator=draw_from(lab, 6)), balanced_labels(16), uniform_times(5)

    def bare() -> None:
        with torch.no_grad():
            for t in times[:-1].float():
                net(x, t, label=labels)

    timing = lab.time(
        "bare-calls-over-solve", partial(ge.solve, net, x, times, label=labels), bare, pairs=settings.timing_pairs
    )
    lab.measure("solver-overhead", 1 / timing.value - 1)


# Images: networks of three views, translated; the teacher under solvers and guidance.


def train_view(predicts: Any, settings: Settings, seed: int) -> dict[str, Any]:
    """Averaged weights of a network that predicts ``predicts``, trained on its own squared error."""
    torch.manual_seed(seed)
    objective = ge.DenoisingScoreMatching(predicts, LinearPath())
    done = ge.fit(
        ge.PixelUNet(1, settings.channels, classes=10), objective, garments(settings.images_from, data_folder()),
        steps=settings.view_steps,
        time_budget_s=settings.view_seconds, batch_size=settings.batch_size, warmup=50, label_dropout=0.1,
        generator=torch.Generator().manual_seed(seed), threads="auto",
    )  # fmt: skip
    return {"weights": done.ema.state_dict(), "steps": done.steps}


def draw(field: Any, x0: Tensor, labels: Tensor, times: Tensor, solver: Any, **options: Any) -> Tensor:
    parts = zip(torch.split(x0, CHUNK), torch.split(labels, CHUNK), strict=True)
    return torch.cat([ge.solve(field, a, times, solver, label=b, **options) for a, b in parts])


def trained_views(lab: Lab, settings: Settings, judge: FashionJudge) -> None:
    """Every view under every solver; and moved to another path, where the same trajectories must end at the same images."""
    x0 = torch.randn(settings.images, 1, 28, 28, generator=draw_from(lab, 7))
    labels = balanced_labels(settings.images)
    linear, other = LinearPath(), TrigPath()
    rows, differences, shown = [], [], {}
    with lab.stage("views", total=len(VIEWS)) as stage:
        for predicts in VIEWS:
            made = lab.cached(f"view-{predicts}", train_view, predicts, settings, lab.seed)
            net = ge.PixelUNet(1, settings.channels, classes=10)
            net.load_state_dict(made["weights"])
            field = ge.Parametrized(net.eval(), predicts, linear, 1e-3)
            start = START if predicts == "noise" else 0.0
            for solver, n in (("euler", 10), ("euler", 20), ("heun", 5), ("ab2", 10), ("dpmpp_2m", 10)):
                x = draw(field, x0, labels, uniform_times(n, start=start), solver, path=linear)
                calls = n * (2 if solver == "heun" else 1)
                rows.append({"view": predicts, "steps of training": made["steps"], "solver": solver, "calls": calls,
                             "from t": start, "FFD": judge(x, labels).ffd, "n": len(x)})  # fmt: skip
            shown[predicts] = x
            # The same signal-to-noise ratios on the other path; DDIM does not see which path it is on.
            times = uniform_times(10, start=START)
            moved_times = torch.cat([other.t_from_lambda(linear.log_snr_half(times[:-1])), times[-1:]])
            scale = float(other.sigma(moved_times[0]) / linear.sigma(times[0]))
            moved = ge.change_path(field, linear, other)
            here = draw(field, x0[:CHUNK], labels[:CHUNK], times, "ddim", path=linear)
            there = draw(moved, x0[:CHUNK] * scale, labels[:CHUNK], moved_times, "ddim", path=other)
            differences.append(float((here - there).abs().max()))
            stage.advance()
    lab.table(
        "views", rows, caption="Three networks, one for each view, sampled as velocities; FFD to the training images."
    )
    lab.measure("translated-pixel-difference", max(differences), views=dict(zip(VIEWS, differences, strict=True)))
    figure, axes = new_figure(1, len(VIEWS), figsize=(9, 3.2))
    for axis, (name, x) in zip(axes, shown.items(), strict=True):
        axis.imshow(image_grid(-x[:20], columns=5), interpolation="nearest")
        axis.set_title(f"predicts {name}", fontsize=9)
        axis.set_axis_off()
    lab.figure("views", figure, caption="The same noises and classes under networks of three views, ten calls.")


def teacher_samplers(lab: Lab, settings: Settings, judge: FashionJudge) -> None:
    """The shipped teacher: deterministic and stochastic solvers, and the scale of guidance."""
    teacher, x0 = load_fashion_teacher(), torch.randn(settings.images, 1, 28, 28, generator=draw_from(lab, 7))
    labels = balanced_labels(settings.images)
    rows: list[Row] = []
    arms = [
        (s, n, 1.0)
        for s, n in (("euler", 10), ("ab2", 10), ("dpmpp_2m", 10), ("heun", 5), ("euler", 40), ("ancestral", 40))
    ]
    arms += [("ab2", 10, w) for w in (1.5, 2.0, 3.0)]
    with lab.stage("teacher", total=len(arms)) as stage:
        for solver, n, scale in arms:
            field = teacher if scale == 1 else ge.ClassifierFreeGuidance(teacher, scale, null_condition={"label": 10})
            counted = ge.Counted(field)
            x = draw(counted, x0, labels, uniform_times(n), solver, path=LinearPath(), generator=draw_from(lab, 8))
            scores, chunks = judge(x, labels), -(-len(x0) // CHUNK)
            rows.append({"solver": solver, "calls": counted.calls // chunks, "guidance": scale, "FFD": scores.ffd,
                         "accuracy": scores.accuracy, "n": scores.n})  # fmt: skip
            stage.advance()
    lab.table("teacher", rows, caption="The shipped Fashion-MNIST teacher; FFD to the training images.")
    at = {(row["solver"], row["calls"], row["guidance"]): row for row in rows}
    best = min(at["ab2", 10, 1.0]["FFD"], at["dpmpp_2m", 10, 1.0]["FFD"])
    lab.measure("ffd-higher-order-over-euler", best / at["euler", 10, 1.0]["FFD"], unit="x", scale="log")
    lab.measure("ffd-higher-order-over-euler-40", best / at["euler", 40, 1.0]["FFD"], unit="x", scale="log")
    gained = at["ab2", 20, 2.0]["accuracy"] - at["ab2", 10, 1.0]["accuracy"]
    lab.measure("accuracy-gained-by-guidance", gained)
    swept = [row for row in rows if row["solver"] == "ab2"]
    figure = plot_curves({"ab2, 10 steps": ([r["accuracy"] for r in swept], [r["FFD"] for r in swept])}, x="class accuracy",
                         y="FFD", title="Guidance from 1 to 3")  # fmt: skip
    lab.figure("guidance", figure, caption="Guidance trades likeness to the data for certainty of the class.")


def bits(lab: Lab, settings: Settings, images: Tensor) -> None:
    """Bits per dimension of images under the teacher, by the change of variables with one random probe."""
    n = settings.likelihood_images
    pixels = images[:n].add(1).mul(127.5).round().clamp(0, 255).to(torch.int64)
    source = ge.GaussianSource((1, 28, 28))
    steps = 20 if n > 1 else 2
    found = ge.bits_per_dimension(load_fashion_teacher(), pixels, uniform_times(steps, end=0.999), source,
                                  generator=draw_from(lab, 9), solver="midpoint", divergence="hutchinson")  # fmt: skip
    lab.measure("bits-per-dimension", float(found.mean()), unit="bit", n=n)
