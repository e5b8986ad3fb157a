"""Are steps chosen by dynamic programming better than uniform ones, and does straightening on them beat reflow?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

import anabranch.generative as ge
from anabranch.generative import uniform_times
from anabranch.generative.image_files import image_grid
from anabranch.lab import Lab
from anabranch.lab.figures import curves_of, new_figure, plot_curves
from anabranch.lab.places import data_folder
from anabranch.papers.boss import Settings
from anabranch.worlds import FashionJudge, GaussianMixture, balanced_labels, fashion_tensors, load_fashion_teacher

Row = dict[str, Any]
CALLS = (4, 6, 8)  # of the paper's Table 1
FEW = 6  # calls of the students
HEUN = 20  # steps of the comparison with the adaptive solver
SHAPE = 8  # steps of the paper's Tables 4 and 5
# learning rates: the best of three that were tried for each with a quarter of the steps
RATES = {"straightened": 2e-4, "low rank": 3e-3, "distilled reflow": 5e-4, "uniform reflow": 5e-4}
RANK = 4
CHUNK = 125


def experiment(lab: Lab, settings: Settings) -> None:
    plane = mixture(lab, settings)
    images(lab, settings, plane)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What a run is made of, for ``--dry-run``."""
    size, low = sizes()
    j, n = settings.anchors, settings.trajectories
    return [
        ("teacher", f"{size / 1e6:.2f} M parameters; {low:,} in products of rank {RANK}"),
        ("search", f"{n} trajectories of {j} steps: {n * j:,} network calls"),
        ("students", f"{', '.join(RATES)}: {settings.student_steps} steps of {settings.batch_size} each, {FEW} calls"),
        ("samples", f"{settings.images} by each sampler"),
    ]


def sizes() -> tuple[int, int]:
    """Parameters of the teacher's network, and of products of rank 4 on all of its layers."""
    with torch.device("meta"):
        net = ge.PixelUNet(classes=10)
        size = sum(p.numel() for p in net.parameters())
        return size, sum(p.numel() for p in ge.low_rank_parameters(ge.add_low_rank(net, RANK)))


def draw_from(lab: Lab, use: int) -> torch.Generator:
    """A generator of its own for each use, so that arms share their noise."""
    return torch.Generator().manual_seed(1000 * lab.seed + use)


class Study(NamedTuple):
    """What the parts of the experiment on images share."""

    lab: Lab
    settings: Settings
    teacher: Any
    judge: FashionJudge
    noise: Tensor  # the trajectories behind its tables start there
    costs: ge.StepCosts
    frontier: Sequence[ge.OptimalTimes]
    draw: Callable[..., Row]  # images at given times, scored
    rows: list[Row]  # all of the scores so far


def ratio(lab: Lab, name: str, value: float, **details: Any) -> None:
    lab.measure(name, value, unit="x", scale="log", **details)


# Part A: a mixture in the plane, whose flow is exact.


def eight_modes() -> GaussianMixture:
    """Weights 1 to 8, radius 2, standard deviation 0.15."""
    angle = 2 * math.pi * torch.arange(8) / 8
    means = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(weights=torch.arange(1.0, 9.0) / 36, means=means, covariances=0.15**2)


def mixture(lab: Lab, settings: Settings) -> ge.StepCosts:
    """The table, its optimum for every number of steps, and the error at the end on noises it has not seen."""
    field, anchors = eight_modes().velocity(), settings.anchors
    train = torch.randn(4 * settings.trajectories, 2, generator=draw_from(lab, 1)).double()
    fresh = torch.randn(settings.points, 2, generator=draw_from(lab, 2)).double()
    train_end, end = (ge.solve(field, x, uniform_times(4 * anchors), "midpoint") for x in (train, fresh))
    errors: list[Row] = []
    with lab.stage("mixture", total=3 + len(CALLS)) as stage:
        costs = ge.step_costs(field, train, anchors, batch_size=256)
        frontier = ge.optimal_frontier(costs, min(15, anchors))
        rows = [frontier_row(costs, found) for found in frontier]
        stage.advance()

        def rmse(times: Tensor, solver: str = "euler") -> float:
            return float((ge.solve(field, fresh, times, solver) - end).square().sum(1).mean().sqrt())

        for n in CALLS:
            errors.append({"solver": "euler", "steps": n, "uniform": rmse(uniform_times(n))})
            errors[-1]["chosen"] = rmse(frontier[n - 1].times)
            errors[-1]["for the endpoint"] = rmse(ge.endpoint_times(field, train, costs, n, end=train_end))
            stage.advance()
        own = ge.step_costs(field, train, min(60, anchors), solver="heun", reference="rk4", batch_size=256)
        stage.advance()
        for n in (2, 3, 4, 5):
            arms = {"uniform": uniform_times(n), "chosen for Euler": frontier[n - 1].times,
                    "chosen": ge.optimal_times(own, n)}  # fmt: skip
            errors.append({"solver": "heun", "steps": n, **{name: rmse(times, "heun") for name, times in arms.items()}})
    lab.table("mixture-costs", rows, caption="Eight-mode mixture: cost on the table, chosen and uniform.")
    lab.table("mixture-errors", errors, caption="Eight-mode mixture: RMSE to the exact ends, fresh noises.")
    by_steps = {row["steps"]: row["ratio"] for row in rows}
    ratio(lab, "mixture-cost-over-uniform", max(by_steps[n] for n in (*CALLS, 10)))
    for name, column in (("chosen", "chosen"), ("endpoint", "for the endpoint")):
        worst = max(row[column] / row["uniform"] for row in errors if row["solver"] == "euler")
        ratio(lab, f"mixture-error-{name}-over-uniform", worst)
    of_euler = [row["chosen"] / row["chosen for Euler"] for row in errors if row["solver"] == "heun"]
    ratio(lab, "mixture-error-heun-table-over-euler-table", fmean(of_euler))
    return costs


def frontier_row(costs: ge.StepCosts, found: ge.OptimalTimes) -> Row:
    n = len(found.times) - 1
    uniform = ge.times_cost(costs, uniform_times(n), snap=True)
    return {"steps": n, "chosen": found.cost, "least of up to so many": found.least, "uniform": uniform,
            "ratio": found.cost / uniform if uniform else 1.0,
            "times": " ".join(f"{t:.3g}" for t in found.times.tolist())}  # fmt: skip


# Part B: images by the shipped teacher.


def reference_images(settings: Settings) -> Tensor:
    """What FFD is taken to: the training images of the data set, or without it the teacher's own."""
    if settings.images_from == "fashion-mnist":
        return fashion_tensors(data_folder())[0]
    noise = torch.randn(80, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return ge.solve(load_fashion_teacher(), noise, uniform_times(2), label=balanced_labels(80))


def images(lab: Lab, settings: Settings, plane: ge.StepCosts) -> None:
    teacher, judge = load_fashion_teacher(), FashionJudge(reference_images(settings))
    noise = torch.randn(settings.trajectories, 1, 28, 28, generator=draw_from(lab, 3))
    costs = search(lab, settings, teacher, noise)
    frontier = ge.optimal_frontier(costs, HEUN)
    labels = balanced_labels(settings.images)
    x0 = torch.randn(settings.images, 1, 28, 28, generator=draw_from(lab, 5))
    rows: list[Row] = []
    drawn: dict[tuple[str, str, int], Tensor] = {}

    def draw(name: str, times: Tensor, solver: Any = "euler", field: Any = teacher, schedule: str = "chosen") -> Row:
        counted, parts = ge.Counted(field), []
        for x, label in zip(torch.split(x0, CHUNK), torch.split(labels, CHUNK), strict=True):
            parts.append(ge.solve(counted, x, times, solver, label=label))
        x1, steps = torch.cat(parts), len(times) - 1
        end, scores = drawn.setdefault(("teacher", "fine", settings.anchors), x1), judge(x1, labels)
        drawn[name, schedule, steps] = x1
        rows.append({
            "sampler": name, "schedule": schedule, "steps": steps, "calls": counted.calls / len(parts), "FFD": scores.ffd,
            "excess": scores.ffd - (rows[0]["FFD"] if rows else scores.ffd), "accuracy": scores.accuracy,
            "RMSE to the teacher": float((x1 - end).square().mean().sqrt()),
            "pair distance": judge.pair_distance(x1, end), "n": scores.n,
        })  # fmt: skip
        return rows[-1]

    with lab.stage("reference", total=2) as stage:
        fine = draw("teacher", uniform_times(settings.anchors), schedule="fine")
        stage.advance()
        adaptive = draw("dopri5", uniform_times(1), ge.Dopri5(rtol=1e-3, atol=1e-3), schedule="adaptive")
    study = Study(lab, settings, teacher, judge, noise, costs, frontier, draw, rows)
    schedules(study)
    transfer(study, plane)
    higher_order(study, adaptive)
    straightening(study, fine, adaptive)
    lab.table("images", rows, caption=f"Fashion-MNIST, the same {settings.images} noises; FFD to the training images.")
    show_images(lab, settings, rows, drawn)


def search(lab: Lab, settings: Settings, teacher: Any, noise: Tensor) -> ge.StepCosts:
    """The table of the teacher, and what finding it costs beside a hundredth of 5,000 images of as many steps."""
    few, found = min(50, settings.images), []
    x0, fine = torch.randn(few, 1, 28, 28, generator=draw_from(lab, 4)), uniform_times(settings.anchors)

    def ours() -> None:
        found.append(ge.step_costs(teacher, noise, settings.anchors, label=balanced_labels(len(noise))))
        ge.optimal_frontier(found[-1], 15)

    peer = partial(ge.solve, teacher, x0, fine, label=balanced_labels(few))
    with lab.stage("search"):
        lab.time("sampling-over-search", ours, peer, pairs=settings.timing_pairs, images=few)
    costs, frontier = found[0], ge.optimal_frontier(found[0], 15)
    lab.table("costs", [frontier_row(costs, one) for one in frontier], caption="The teacher: cost on the table.")
    spread = costs.standard_error()[0, -1] / costs.costs[0, -1]
    lab.measure("relative-error-of-one-step-cost", float(spread), n=costs.n)
    steps = frontier[SHAPE - 1].times.diff().tolist()
    shape = min(steps[SHAPE // 4 : -(SHAPE // 4)]) / max(steps[0], steps[-1])
    ratio(lab, "middle-step-over-end-step", shape, steps=" ".join(f"{step:.2f}" for step in steps))
    show_costs(lab, costs, frontier)
    return costs


def schedules(study: Study) -> None:
    """Euler steps at chosen, uniform and the usual hand-made times; and at times chosen by a cost on features."""
    lab, settings, teacher, judge, noise, _, frontier, draw, _ = study
    uniform, chosen = {}, {}
    with lab.stage("schedules", total=18) as stage:
        for n in (3, *CALLS, 10):
            uniform[n] = draw("Euler", uniform_times(n), schedule="uniform")
            chosen[n] = draw("Euler", frontier[n - 1].times)
            stage.advance(2)
        for n in (CALLS[0], CALLS[-1]):
            draw("Euler", ge.shifted_times(n, 3.0), schedule="shift 3")
            draw("Euler", ge.edm_times(n, ge.LinearPath()), schedule="EDM")
            draw("Euler", ge.log_snr_times(n, ge.LinearPath()), schedule="log-SNR")
            stage.advance(3)

        def on_features(a: Tensor, b: Tensor) -> Tensor:
            return (judge.classifier.features(a) - judge.classifier.features(b)).square().sum(1)

        few, label = min(50, settings.anchors), balanced_labels(len(noise))
        perceived = ge.step_costs(teacher, noise, few, cost=on_features, label=label)
        features = {n: draw("Euler", ge.optimal_times(perceived, n), schedule="chosen on features") for n in CALLS}
    for n in CALLS:
        ratio(lab, f"ffd-over-uniform-{n}", chosen[n]["FFD"] / uniform[n]["FFD"])
        ratio(lab, f"rmse-over-uniform-{n}", chosen[n]["RMSE to the teacher"] / uniform[n]["RMSE to the teacher"])
        ratio(lab, f"ffd-over-uniform-on-features-{n}", features[n]["FFD"] / uniform[n]["FFD"])
    for name in ("FFD", "excess"):
        mean = fmean(chosen[n][name] / positive(uniform[n][name]) for n in CALLS)
        lab.measure(f"{name.lower()}-over-uniform-mean", mean, unit="x")
    lab.measure("worst-ffd-lost-to-uniform", max(chosen[n]["FFD"] - uniform[n]["FFD"] for n in CALLS))


def positive(excess: float) -> float:
    """An excess as a denominator: nothing is divided by less than a hundredth."""
    return max(excess, 0.01)


def transfer(study: Study, plane: ge.StepCosts) -> None:
    """Steps of other flows at four calls of the teacher: the plane's mixture, half of the classes, guidance."""
    lab, settings, teacher, _, noise, costs, _, draw, rows = study
    guided = ge.ClassifierFreeGuidance(teacher, 2.0, null_condition={"label": teacher.classes})
    n, half = CALLS[0], balanced_labels(len(noise), 5)
    with lab.stage("transfer", total=4) as stage:
        tables = {"teacher": costs, "mixture in the plane": plane,
                  "classes 0 to 4": ge.step_costs(teacher, noise, settings.anchors, label=half),
                  "classes 5 to 9": ge.step_costs(teacher, noise, settings.anchors, label=half + 5),
                  "guidance 2": ge.step_costs(guided, noise, settings.anchors, label=balanced_labels(len(noise)))}  # fmt: skip
        by = {(row["schedule"], row["steps"]): row["FFD"] for row in rows if row["sampler"] == "Euler"}
        own, uniform = by["chosen", n], by["uniform", n]
        for name in list(tables)[1:]:
            found = draw("Euler", ge.optimal_times(tables[name], n), schedule=f"chosen on {name}")["FFD"]
            measure = f"ffd-over-uniform-transferred-from-{name.replace(' ', '-')}"
            ratio(lab, measure, found / uniform, own=own / uniform)
            stage.advance()
    matrix = []
    for on, table in tables.items():
        best = ge.times_cost(table, ge.optimal_times(table, n))
        of = {name: ge.times_cost(table, ge.optimal_times(other, n)) / best for name, other in tables.items()}
        matrix.append({"cost on": on, **of, "uniform": ge.times_cost(table, uniform_times(n), snap=True) / best})
    lab.table("transfer", matrix, caption=f"Cost on one table (row) of {n} steps chosen on another, over the least.")


def higher_order(study: Study, adaptive: Row) -> None:
    """Heun's method: on uniform times, on those chosen for Euler (as the paper does), and on those of its own table."""
    lab, settings, teacher, _, noise, _, frontier, draw, _ = study
    few = noise[: -(-len(noise) // 2)]
    with lab.stage("Heun", total=8) as stage:
        label, anchors = balanced_labels(len(few)), settings.heun_anchors
        costs = ge.step_costs(teacher, few, anchors, solver="heun", reference="rk4", label=label)
        stage.advance()
        for steps in (2, 4):
            draw("Heun", uniform_times(steps), "heun", schedule="uniform")
            euler = draw("Heun", frontier[steps - 1].times, "heun", schedule="chosen for Euler")
            own = draw("Heun", ge.optimal_times(costs, steps), "heun")
            ratio(lab, f"ffd-heun-table-over-euler-table-{steps}", own["FFD"] / euler["FFD"])
            stage.advance(3)
        many = draw("Heun", frontier[HEUN - 1].times, "heun", schedule="chosen for Euler")
    ratio(lab, "ffd-heun-over-adaptive", many["FFD"] / adaptive["FFD"], calls=adaptive["calls"])


# Students: all from the same trajectories, the same number of steps of the same batches.


def teacher_states(settings: Settings, times: tuple[float, ...], seed: int) -> dict[str, Tensor]:
    """States of the teacher at ``times`` from sources of its own."""
    label = balanced_labels(settings.sources)
    x0 = torch.randn(settings.sources, 1, 28, 28, generator=torch.Generator().manual_seed(1000 * seed + 7))
    chosen = torch.tensor(times, dtype=torch.float64)
    chords = ge.teacher_chords(load_fashion_teacher(), x0, chosen, settings.anchors, batch_size=CHUNK, label=label)
    return {"states": chords.states, "label": label}


def train_student(arm: str, settings: Settings, times: tuple[float, ...], states: Any, label: Any, seed: int) -> Row:
    """Averaged weights and the history of the loss."""
    teacher, batch = load_fashion_teacher(), settings.batch_size
    chords = ge.Chords(torch.from_numpy(states), torch.tensor(times, dtype=torch.float64), torch.from_numpy(label))
    options: Row = {
        "steps": settings.student_steps, "generator": torch.Generator().manual_seed(seed), "lr": RATES[arm],
        "warmup": settings.student_steps // 20, "ema": 0.99,
    }  # fmt: skip
    if "reflow" not in arm:
        done = ge.straighten(teacher, chords, batch_size=batch, rank=RANK if arm == "low rank" else None, **options)
    else:
        law = ge.ChosenTimes(uniform_times(FEW)) if arm == "distilled reflow" else ge.Uniform()
        pairs = ge.Fixed(chords.states[:, 0], chords.states[:, -1], chords.label)
        student = copy.deepcopy(teacher).requires_grad_(True)
        done = ge.fit(student, ge.Reflow(pairs, batch, ge.FlowMatching(times=law)), **options)
    return {"weights": done.ema.state_dict(), "seconds": done.seconds, "history": done.history}


def straightening(study: Study, fine: Row, adaptive: Row) -> None:
    """Six calls of each student: on the chosen steps where it was trained on them, else on uniform ones."""
    lab, settings, teacher, _, _, _, frontier, draw, rows = study
    times = frontier[FEW - 1].times
    chosen, students = tuple(times.tolist()), {}
    with lab.stage("students", total=len(RATES) + 1) as stage:
        kept = lab.cached("chords", teacher_states, settings, chosen, lab.seed)
        stage.advance()
        for arm in RATES:
            made = lab.cached(
                f"student-{arm.replace(' ', '-')}", train_student, arm, settings, chosen, kept["states"].numpy(),
                kept["label"].numpy(), lab.seed,
            )  # fmt: skip
            net = ge.PixelUNet(**teacher.config)
            net.load_state_dict(made["weights"])
            schedule, at = ("uniform", uniform_times(FEW)) if "reflow" in arm else ("chosen", times)
            students[arm] = draw(arm, at, field=net.eval(), schedule=schedule)
            students[arm]["ms a training step"] = 1e3 * made["seconds"] / settings.student_steps
            if arm == "uniform reflow":  # learned at all times, so it may be sampled on the chosen ones too
                draw(arm, times, field=net)
            for entry in made["history"]:
                lab.series(f"loss-{arm.replace(' ', '-')}", entry["step"], loss=entry["loss"])
            stage.advance(arm=arm)
    by = {(row["sampler"], row["schedule"]): row for row in rows if row["steps"] == FEW}
    ours, best = students["straightened"], min(row["excess"] for key, row in by.items() if "reflow" in key[0])
    lab.measure("excess-over-reflow", ours["excess"] / positive(best), unit="x", n=settings.images)
    for name, other in (("distilled-reflow", students["distilled reflow"]), ("uniform-reflow", students["uniform reflow"]),
                        ("uniform-euler", by["Euler", "uniform"]), ("chosen-euler", by["Euler", "chosen"])):  # fmt: skip
        lab.measure(f"excess-straightened-over-{name}", ours["excess"] / positive(other["excess"]), unit="x")
        ratio(lab, f"ffd-straightened-over-{name}", ours["FFD"] / other["FFD"])
    ratio(lab, "ffd-straightened-over-adaptive", ours["FFD"] / adaptive["FFD"])
    ratio(lab, "calls-adaptive-over-straightened", adaptive["calls"] / ours["calls"])
    share = lab.measure("low-rank-share", sizes()[1] / sizes()[0])
    ratio(lab, "ffd-low-rank-over-full", students["low rank"]["FFD"] / ours["FFD"], share=share, teacher=fine["FFD"])


# Figures.


def show_costs(lab: Lab, costs: ge.StepCosts, frontier: Sequence[ge.OptimalTimes]) -> None:
    """The table with its best path, the chosen steps, the least cost for each number of steps."""
    figure, (left, middle, right) = new_figure(1, 3, figsize=(13, 4))
    shown = torch.where(torch.isfinite(costs.costs) & (costs.costs > 0), costs.costs, torch.nan).log10()
    picture = left.imshow(shown, origin="lower", cmap="viridis", extent=(0, 1, 0, 1), interpolation="nearest")
    figure.colorbar(picture, ax=left, label="log10 of the cost of a step")
    path = list(pairwise(frontier[SHAPE - 1].times.tolist()))
    left.plot([b for _, b in path], [a for a, _ in path], "o", color="#D55E00", markersize=5)
    left.set(xlabel="to", ylabel="from")
    left.grid(visible=False)
    for found in frontier[2:10]:
        times = found.times.tolist()
        middle.plot(times, [len(times) - 1] * len(times), "o-", color="#0072B2", markersize=4, linewidth=1)
    middle.set(xlabel="t (0 noise, 1 data)", ylabel="steps")
    curves = curves_of([frontier_row(costs, found) for found in frontier], "steps", ["chosen", "uniform"])
    plot_curves(curves, title="", x="steps", y="cost on the table", log="y", axes=right)
    for axis, title in ((left, f"The table and {SHAPE} steps"), (middle, "Chosen times"), (right, "Least cost")):
        axis.set_title(title, loc="left", fontsize=10)
    lab.figure("steps", figure, caption="What a step costs, the times chosen for it, and what they cost in all.")


def show_images(lab: Lab, settings: Settings, rows: Sequence[Row], drawn: dict[tuple[str, str, int], Tensor]) -> None:
    kinds = {"uniform": ("Euler", "uniform"), "chosen": ("Euler", "chosen"), "shift 3": ("Euler", "shift 3"),
             "on features": ("Euler", "chosen on features"), "Heun, chosen": ("Heun", "chosen"),
             "straightened": ("straightened", "chosen"), "distilled reflow": ("distilled reflow", "uniform")}  # fmt: skip
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for name, kind in kinds.items():
        of = sorted((row["calls"], row["FFD"]) for row in rows if (row["sampler"], row["schedule"]) == kind)
        curves[name] = ([calls for calls, _ in of], [ffd for _, ffd in of])
    figure = plot_curves(curves, title="Quality by network calls", x="calls a sample", y="FFD", log="xy")
    lab.figure("ffd-by-calls", figure, caption=f"Feature distance to the training images, n = {settings.images}.")
    panels = [("teacher", "fine", settings.anchors), ("Euler", "uniform", FEW), ("Euler", "chosen", FEW),
              ("straightened", "chosen", FEW), ("distilled reflow", "uniform", FEW)]  # fmt: skip
    figure, axes = new_figure(1, len(panels), figsize=(11, 3.2))
    for axis, (name, schedule, steps) in zip(axes, panels, strict=True):
        axis.imshow(image_grid(-drawn[name, schedule, steps][:20], columns=4), interpolation="nearest")
        axis.set_title(f"{name}, {schedule}, {steps}" if name == "Euler" else f"{name}, {steps} steps", fontsize=8)
        axis.set_axis_off()
    lab.figure("samples", figure, caption="The same noises and classes in every panel.")
