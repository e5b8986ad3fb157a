"""Which source should an image flow start from? The plane, images, a finished model, natural colours."""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

import anabranch.generative as ge
from anabranch.generative import metrics, uniform_times
from anabranch.generative.image_files import image_grid, load_images
from anabranch.generative.plane_scores import plane_scores
from anabranch.lab import Lab
from anabranch.lab.figures import new_figure, plot_curves
from anabranch.lab.places import data_folder
from anabranch.papers.sourcefm import Settings
from anabranch.worlds import FashionJudge, balanced_labels, fashion_tensors, load_fashion_teacher
from anabranch.worlds.photographs import natural_noise, photographs, random_patches

Row = dict[str, Any]
Prunings = dict[str, ge.PrunedSource]
Rows = dict[str, Tensor]  # by pruning, which noises are kept
PLANE_BATCH, PLANE_RATE, POINTS = 32, 2e-3, 512
PAIRED_RUNS = 2  # of "directional-paired", whose transport is over the whole target
SPARSE = 0.01  # the paper's largest cosine of a sparse axis
MEAN_COSINE = 0.84  # of pruning by the mean direction, in standard deviations of a random cosine: keeps four fifths
RATES = {"gaussian": 4e-3, "aligned": 4e-3, "patches-independent": 2e-3, "patches-ot": 2e-3}
SIDE, SCORES = 16, 64
FEW = 20  # calls up to which all noises are used, above them half
CHUNK, TIMING_PAIRS = 250, 7
NONE, PAPER_AXES, MEAN_AXIS, REJECTED = "none", "sparse axes", "mean direction", "rejected by sparse axes"


def experiment(lab: Lab, settings: Settings) -> None:
    plane(lab, settings)
    x, _ = training_images(settings)
    judge = FashionJudge(x)
    prunings = image_axes(lab, x)
    images(lab, settings, x, judge, prunings)
    finished_model(lab, settings, x, judge, prunings)
    overhead(lab, settings, prunings[PAPER_AXES])
    colour_patches(lab, settings)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What a run is made of, for ``--dry-run``."""
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in network(name).parameters()) / 1e6 for name in ("gaussian", "patches-ot")}
    seen = sum(n * (1 if n <= FEW else 0.5) for n in settings.calls)
    calls = 2 * seen * (settings.images + settings.patch_noises)
    return [
        ("plane", f"{len(settings.scenarios)} scenarios, {settings.runs} runs of {settings.plane_steps} steps each"),
        ("image networks", f"2 of {sizes['gaussian']:.2f} M parameters, {settings.train_steps} steps each"),
        ("patch networks", f"2 of {sizes['patches-ot']:.2f} M parameters, {settings.patch_steps} steps each"),
        ("sampling", f"{calls:,.0f} calls on one image, the teacher's aside"),
    ]


def draw_from(lab: Lab, use: int) -> torch.Generator:
    """A generator of its own for each use, so that arms share their noise and data."""
    return torch.Generator().manual_seed(1000 * lab.seed + use)


def tell_ratio(lab: Lab, name: str, value: float) -> None:
    lab.measure(name, value, unit="x", scale="log")


# Part A: the geometry of high dimensions, in the plane.


def plane(lab: Lab, settings: Settings) -> None:
    g = draw_from(lab, 0)
    targets = tuple(ge.PlaneTarget.draw(generator=g) for _ in range(settings.runs))
    found: dict[str, ge.PlaneRuns] = {}
    scores: dict[str, list[Row]] = {}
    with lab.stage("plane", total=len(settings.scenarios)) as stage:
        for name in sorted(settings.scenarios, key=lambda name: name.startswith("pruned")):  # they need no training
            own = targets[:PAIRED_RUNS] if name == "directional-paired" else targets
            found[name] = ge.simulate_plane(
                ge.PLANE_SCENARIOS[name], own, steps=settings.plane_steps, batch=PLANE_BATCH, lr=PLANE_RATE, points=POINTS,
                draws=settings.plane_draws, net=found["independent"].net if name.startswith("pruned") else None,
                generator=draw_from(lab, 1),
            )  # fmt: skip
            scores[name] = [asdict(one) for one in plane_scores(found[name], generator=draw_from(lab, 2))]
            stage.advance(scenario=name)
    lab.table("plane-runs", [{"scenario": name, **row} for name in settings.scenarios for row in scores[name]])
    lab.table("plane", [{"scenario": name, "runs": len(scores[name]), **spread(scores[name])} for name in settings.scenarios],
              caption=f"Mean and standard deviation over runs, {settings.plane_steps} steps of {PLANE_BATCH}.")  # fmt: skip

    def ratio(ours: str, other: str, score: str) -> float:
        top, base = (fmean(row[score] for row in scores[name]) for name in (ours, other))
        return top / max(base, 1e-9)

    for name in settings.scenarios:
        if name.startswith("pruned"):
            lab.measure(f"plane-bad-share-{name}", ratio(name, "independent", "bad_share"), unit="x")
    w2 = "normalized_wasserstein2"
    tell_ratio(lab, "plane-tight-over-loose", ratio("directional-tight", "directional-loose", w2))
    tell_ratio(lab, "plane-density-mode-kl", ratio(settings.density, "ot", "mode_kl"))
    tell_ratio(lab, "plane-density-distance", ratio(settings.density, "ot", "distance"))
    tell_ratio(lab, "plane-aligned-distance", ratio("aligned", "independent", "distance"))
    if "directional-paired" in scores:
        scores["loose"] = scores["directional-loose"][:PAIRED_RUNS]
        tell_ratio(lab, "plane-paired-over-loose", ratio("directional-paired", "loose", w2))
    show_plane(lab, found)


def spread(rows: list[Row]) -> Row:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: f"{fmean(values):.3g} ± {pstdev(values):.2g}" for name, values in columns.items()}


def show_plane(lab: Lab, found: dict[str, ge.PlaneRuns]) -> None:
    lines = -(-len(found) // 5)
    figure, axes = new_figure(lines, 5, figsize=(11, 2.3 * lines), squeeze=False)
    for axis, (name, runs) in zip(axes.flat, found.items(), strict=False):
        path = ge.solve(runs.net, runs.starts[:, :40], uniform_times(20), "midpoint", return_trajectory=True)
        axis.plot(*path.states[:, 0].unbind(2), color="#0072B2", linewidth=0.4, alpha=0.5)
        axis.scatter(*runs.points[0].T, s=1, color="#4D4D4D")
        axis.scatter(*runs.samples[0, :300].T, s=2, color="#D55E00")
        axis.set(aspect="equal", xlim=(-62, 62), ylim=(-62, 62), xticks=[], yticks=[])
        axis.set_title(name, fontsize=9)
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    lab.figure("plane", figure, caption="One run of each scenario: trajectories, samples, the target's points in grey.")


# Part B: images, from the Gaussian and from a source of the data's norm.


def training_images(settings: Settings) -> tuple[Tensor, Tensor]:
    """Images and labels to train on and to compare with: the data set's, or without one the teacher's own."""
    if settings.images_from == "fashion-mnist":
        return fashion_tensors(data_folder())
    noise = torch.randn(60, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    drawn = ge.teacher_samples(load_fashion_teacher(), noise, label=balanced_labels(60), steps=2)
    assert isinstance(drawn, tuple)
    return drawn


def image_axes(lab: Lab, x: Tensor) -> Prunings:
    """What data's geometry says, and the sources that follow from it. Garments are not mirrored, in training neither."""
    base = ge.GaussianSource(tuple(x.shape[1:]))
    with lab.stage("sparse axes"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer images than dimensions, at smoke scale
        axes = ge.sparse_axes(x, SPARSE, flips=False)
        found = ge.geometry_report(x, axes=axes, flips=False)
        mean = ge.mean_direction_axes(x, flips=False)
    tell_geometry(lab, "images", found, axes)
    near = MEAN_COSINE / math.sqrt(found.dimensions)
    return {
        PAPER_AXES: ge.PrunedSource(base, axes),
        f"axes up to {2 * SPARSE:g}": ge.PrunedSource(base, axes.at(2 * SPARSE)),
        MEAN_AXIS: ge.PrunedSource(base, mean, near),
    }


def tell_geometry(lab: Lab, name: str, found: ge.GeometryReport, axes: ge.Axes) -> None:
    lab.table(f"geometry-{name}", [{"axis is sparse up to": row.threshold, "axes": row.axes, "of": found.candidates,
                                    "kept": row.acceptance} for row in found.sparse],
              caption=f"{found.images} data of {found.dimensions} entries, mean norm {found.data_norm:.2f}; that of noise "
              f"{found.source_norm:.2f}; kept at cosine <= {found.max_cosine:.4f}.")  # fmt: skip
    tell_ratio(lab, f"norm-ratio-{name}", found.scale)
    lab.measure(f"kept-{name}", next(row.acceptance for row in found.sparse if row.threshold == SPARSE))
    try:  # what the released script stores: the axes that data DO point to
        kept = ge.PrunedSource(ge.GaussianSource(axes.shape), axes.dense()).acceptance_rate
    except ge.PruningError as error:
        kept = error.acceptance
    lab.measure(f"kept-by-released-axes-{name}", kept)
    figure, panels = new_figure(1, 7, figsize=(11, 2.2), width_ratios=[3, 1, 1, 1, 1, 1, 1])
    panels[0].hist(axes.max_similarity.clamp(max=0.3).numpy(), bins=60)
    panels[0].axvline(SPARSE, color="#D55E00")
    panels[0].set(xlabel="largest cosine to any datum", ylabel="axes")
    for panel, axis in zip(panels[1:], axes.sparsest(6).vectors, strict=True):
        panel.imshow(image_grid(axis.reshape(1, *axes.shape) / axis.abs().max()), interpolation="nearest")
        panel.set_axis_off()
    lab.figure(f"axes-{name}", figure, caption="Axes by their largest cosine to any datum; the six sparsest.")


def network(arm: str) -> ge.PixelUNet:
    return ge.PixelUNet(3, channels=32) if arm.startswith("patches") else ge.PixelUNet(1, channels=24)


def train(arm: str, settings: Settings, seed: int) -> dict[str, Any]:
    """Averaged weights and the loss. Arms of one data set take the same steps from the same weights."""
    patches = arm.startswith("patches")
    x = colour_data(settings) if patches else training_images(settings)[0]
    source: ge.Source = ge.GaussianSource(tuple(x.shape[1:]))
    if arm == "aligned":
        source = ge.NormAlignedSource(source, ge.norm_alignment(x, source))
    torch.manual_seed(seed)
    done = ge.fit(
        network(arm), ge.FlowMatching(), x, steps=settings.patch_steps if patches else settings.train_steps,
        batch_size=64 if patches else 32, source=source, coupling=ge.MinibatchOT() if arm.endswith("-ot") else None,
        lr=RATES[arm], warmup=50, ema=0.998, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return {"weights": done.ema.state_dict(), "history": done.history}


def trained(lab: Lab, arm: str, settings: Settings) -> ge.PixelUNet:
    made = lab.cached(arm, train, arm, settings, lab.seed)
    for entry in made["history"]:
        lab.series(f"loss-{arm}", entry["step"], loss=entry["loss"])
    net = network(arm)
    net.load_state_dict(made["weights"])
    return net.eval()


def draw(field: Any, x0: Tensor, calls: int, label: Tensor | None = None) -> Tensor:
    """Images by Euler's method."""
    parts = torch.split(torch.arange(len(x0)), CHUNK)
    given: list[Row] = [{} if label is None else {"label": label[part]} for part in parts]
    pairs = zip(parts, given, strict=True)
    return torch.cat([ge.solve(field, x0[part], uniform_times(calls), **one) for part, one in pairs])


def share_out(noises: Tensor, prunings: Prunings) -> tuple[Rows, int]:
    """Which noises every pruning keeps (their images are the pruned sampler's), and how many the smallest set holds."""
    rows = {NONE: torch.arange(len(noises))}
    rows |= {name: source.keeps(noises).nonzero().squeeze(1) for name, source in prunings.items()}
    return rows, min(map(len, rows.values()))


def sets(rows: Tensor, n: int) -> list[Tensor]:
    """As many disjoint sets of ``n`` as there are: a score is their mean."""
    return [part for part in torch.split(rows, n) if len(part) == n]


def score_images(judge: FashionJudge, x: Tensor, label: Tensor | None, kept: Rows, n: int) -> dict[str, Row]:
    """By pruning: FFD to the training images, ``KL(uniform || classes)`` with half an image added to each, accuracy."""
    features = judge.classifier.features(x)
    classes = judge.classifier.leave(features).argmax(1)
    rows: dict[str, Row] = {}
    for pruning, own in kept.items():
        shares = (torch.bincount(classes[own], minlength=10).double() + 0.5) / (len(own) + 5)
        ffd = fmean(metrics.frechet_distance(features[part], judge.reference) for part in sets(own, n))
        rows[pruning] = {"pruning": pruning, "FFD": ffd, "n": n, "class KL": float(-(10 * shares).log().mean())}
        if label is not None:
            rows[pruning]["accuracy"] = float((classes == label)[own].double().mean())
    return rows


def images(lab: Lab, settings: Settings, x: Tensor, judge: FashionJudge, prunings: Prunings) -> None:
    z = torch.randn(settings.images, *x.shape[1:], generator=draw_from(lab, 3))
    c = ge.norm_alignment(x, ge.GaussianSource(tuple(x.shape[1:])))
    rows: list[Row] = []
    ffd: dict[tuple[str, str, int], float] = {}
    with lab.stage("images", total=2 * (1 + len(settings.calls))) as stage:
        for arm in ("gaussian", "aligned"):
            net = trained(lab, arm, settings)
            stage.advance(arm=arm)
            for calls in settings.calls:
                noises = z if calls <= FEW else z[: len(z) // 2]
                drawn = draw(net, (c if arm == "aligned" else 1) * noises, calls)
                for pruning, row in score_images(judge, drawn, None, *share_out(noises, prunings)).items():
                    ffd[arm, pruning, calls] = row["FFD"]
                    rows.append({"source in training": arm, "calls": calls, **row})
                stage.advance(arm=arm, calls=calls)
    lab.table("images", rows, caption="The same noises for every row; FFD to the training images.")
    for calls in settings.calls:
        alone = ffd["aligned", NONE, calls] / ffd["gaussian", NONE, calls]
        tell_ratio(lab, f"aligned-over-gaussian-{calls}-calls", alone)
    for name, calls in (("few", settings.calls[0]), ("many", settings.calls[-1])):
        both = ffd["aligned", PAPER_AXES, calls]
        tell_ratio(lab, f"aligned-pruned-over-gaussian-{name}-calls", both / ffd["gaussian", NONE, calls])
        others = ffd["gaussian", NONE, calls], ffd["gaussian", PAPER_AXES, calls], ffd["aligned", NONE, calls]
        tell_ratio(lab, f"aligned-pruned-over-best-other-{name}-calls", both / min(others))
    for pruning in prunings:
        for arm in ("gaussian", "aligned"):
            gains = [ffd[arm, pruning, calls] / ffd[arm, NONE, calls] for calls in settings.calls[1:]]
            tell_ratio(lab, f"images-pruned-{pruning.replace(' ', '-')}-{arm}", fmean(gains))
    show_scores(lab, "ffd-by-calls", "Images: quality by network calls", "FFD", {
        f"{arm}, {pruning}": [(calls, ffd[arm, pruning, calls]) for calls in settings.calls]
        for arm in ("gaussian", "aligned") for pruning in (NONE, PAPER_AXES, MEAN_AXIS)})  # fmt: skip


def show_scores(lab: Lab, name: str, title: str, score: str, curves: dict[str, list[tuple[int, float]]]) -> None:
    points = {arm: ([c for c, _ in line], [v for _, v in line]) for arm, line in curves.items()}
    figure = plot_curves(points, title=title, x="network calls a sample", y=score, log="xy")
    lab.figure(name, figure, caption="Source in training, and which starts are left out in sampling.")


# Part C: a finished model that was trained from the plain Gaussian, taken as it is.


def finished_model(lab: Lab, settings: Settings, x: Tensor, judge: FashionJudge, prunings: Prunings) -> None:
    teacher, label = load_fashion_teacher(), balanced_labels(settings.images)
    z = torch.randn(settings.images, *x.shape[1:], generator=draw_from(lab, 4))
    c = ge.norm_alignment(x, ge.GaussianSource(tuple(x.shape[1:])))
    arms = {"as it is": (teacher, z), "moved to aligned norms": (ge.NormAlignedField(teacher, c), c * z)}
    calls_of = [calls for calls in settings.calls if calls <= FEW]
    rows: list[Row] = []
    with lab.stage("finished model", total=len(arms) * len(calls_of)) as stage:
        for arm, (field, x0) in arms.items():
            for calls in calls_of:
                found = score_images(judge, draw(field, x0, calls, label), label, *share_out(z, prunings))
                rows += [{"model": arm, "calls": calls, **row} for row in found.values()]
                stage.advance(arm=arm, calls=calls)
    lab.table("finished-model", rows, caption="The shipped teacher as it is, the same noises for every row.")
    ffd = {(row["model"], row["pruning"], row["calls"]): row["FFD"] for row in rows}
    for pruning in prunings:
        gains = [ffd["as it is", pruning, calls] / ffd["as it is", NONE, calls] for calls in calls_of]
        tell_ratio(lab, f"teacher-pruned-{pruning.replace(' ', '-')}", fmean(gains))
    for calls in calls_of:
        moved = ffd["moved to aligned norms", NONE, calls] / ffd["as it is", NONE, calls]
        tell_ratio(lab, f"teacher-moved-{calls}-calls", moved)


def overhead(lab: Lab, settings: Settings, pruned: ge.PrunedSource) -> None:
    """Sampling seconds with plain starts over those with pruned ones: ten Euler steps of 128 images."""
    teacher, n = load_fashion_teacher(), min(128, settings.images // 10)

    def sample(source: ge.Source) -> Tensor:
        return draw(teacher, source.sample(n, generator=draw_from(lab, 5)), 10, balanced_labels(n))

    lab.time("pruned-sampling-speed", partial(sample, pruned), partial(sample, pruned.base), pairs=TIMING_PAIRS)


# Part D: natural colours, whose empty directions are many.


def colour_data(settings: Settings) -> Tensor:
    """Patches at random places and their mirror images, the same for every seed."""
    g = torch.Generator().manual_seed(0)  # no seed of the run: pictures stay the same
    if settings.patches_from == "photographs":
        pictures = photographs()
    elif settings.patches_from == "generated":
        pictures = natural_noise(4, 128, generator=g)
    else:
        pictures = load_images(Path(settings.patches_from), side=256, channels=3).x
    x = random_patches(pictures, settings.patches, SIDE, generator=g)
    return torch.cat([x, x.flip(-1)])


def colour_patches(lab: Lab, settings: Settings) -> None:
    try:
        x = colour_data(settings)
    except FileNotFoundError as error:
        lab.table("patches-skipped", [{"reason": str(error)}], caption="Colour patches: not run, claims not checked.")
        return
    with lab.stage("sparse axes of patches"):
        axes = ge.sparse_axes(x, SPARSE, flips=False)  # mirrored already
        tell_geometry(lab, "patches", ge.geometry_report(x, axes=axes, flips=False), axes)
        pca = ge.PatchPCA.fit(x, SCORES, SIDE)
        reference = pca.encode(x).flatten(1)
    base = ge.GaussianSource(tuple(x.shape[1:]))
    mean = ge.PrunedSource(base, ge.mean_direction_axes(x, flips=False), MEAN_COSINE / math.sqrt(x[0].numel()))
    prunings = {PAPER_AXES: ge.PrunedSource(base, axes), MEAN_AXIS: mean}
    z = base.sample(settings.patch_noises, generator=draw_from(lab, 6))
    some = reference[torch.randperm(len(reference), generator=draw_from(lab, 7))[:2000]]
    rows: list[Row] = []
    score: dict[tuple[str, str, int], float] = {}
    shown: Rows = {}
    with lab.stage("colour patches", total=2 * (1 + len(settings.calls))) as stage:
        for arm in ("independent", "ot"):
            net = trained(lab, f"patches-{arm}", settings)
            stage.advance(arm=arm)
            for calls in settings.calls:
                noises = z if calls <= FEW else z[: len(z) // 2]
                kept, n = share_out(noises, prunings)
                kept[REJECTED] = (~prunings[PAPER_AXES].keeps(noises)).nonzero().squeeze(1)
                drawn = draw(net, noises, calls).clamp(-1, 1)
                codes = pca.encode(drawn).flatten(1)
                for pruning, parts in ((pruning, sets(own, n)) for pruning, own in kept.items() if len(own) >= n):
                    frechet = fmean(metrics.frechet_distance(codes[part], reference) for part in parts)
                    slices = [metrics.sliced_wasserstein(codes[part], some, generator=draw_from(lab, 8), projections=128)
                              for part in parts]  # fmt: skip
                    score[arm, pruning, calls] = frechet
                    rows.append({"coupling": arm, "pruning": pruning, "calls": calls, "Frechet": frechet, "SWD": fmean(slices),
                                 "MMD": metrics.mmd(codes[parts[0]], some), "n": n, "sets": len(parts)})  # fmt: skip
                stage.advance(arm=arm, calls=calls)
                shown = {name: drawn[own[:60]] for name, own in kept.items() if name in (PAPER_AXES, REJECTED)}
    lab.table("patches", rows, caption=f"Natural colour patches: distances on {SCORES} leading principal scores.")
    gain = {arm: {calls: score[arm, PAPER_AXES, calls] / score[arm, NONE, calls] for calls in settings.calls}
            for arm in ("independent", "ot")}  # fmt: skip
    tell_ratio(lab, "patches-pruned-over-plain-few-calls", gain["ot"][settings.calls[0]])
    tell_ratio(lab, "patches-pruned-over-plain-many-calls", gain["ot"][settings.calls[-1]])
    further = fmean(math.log(gain["independent"][calls] / gain["ot"][calls]) for calls in settings.calls)
    tell_ratio(lab, "patches-gain-independent-over-ot", math.exp(further))
    for arm, values in gain.items():
        tell_ratio(lab, f"patches-pruned-{arm}", fmean(list(values.values())[1:]))
        mean_gain = fmean(score[arm, MEAN_AXIS, calls] / score[arm, NONE, calls] for calls in settings.calls[1:])
        tell_ratio(lab, f"patches-pruned-mean-direction-{arm}", mean_gain)
    show_scores(lab, "patches-by-calls", "Colour patches: quality by network calls", "Frechet distance of scores", {
        f"{arm}, {pruning}": [(calls, score[arm, pruning, calls]) for calls in settings.calls]
        for arm in ("independent", "ot") for pruning in (NONE, PAPER_AXES, MEAN_AXIS)})  # fmt: skip
    figure, panels = new_figure(1, len(shown), figsize=(9, 3.2), squeeze=False)
    for panel, (name, patches) in zip(panels.flat, shown.items(), strict=True):
        panel.imshow(image_grid(patches, columns=10), interpolation="nearest")
        panel.set_title("kept" if name == PAPER_AXES else "rejected", fontsize=9)
        panel.set_axis_off()
    lab.figure("kept-and-rejected", figure, caption=f"Patches of kept and rejected starts, {settings.calls[-1]} calls.")
