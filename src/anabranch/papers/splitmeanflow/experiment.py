"""Does splitting intervals teach a flow map as well as derivatives do, and do one or two jumps equal ten guided steps?"""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import anabranch.generative as ge
from anabranch.generative import metrics, uniform_times
from anabranch.generative.image_files import image_grid
from anabranch.lab import Lab
from anabranch.lab.figures import curves_of, new_figure, plot_curves
from anabranch.lab.places import data_folder
from anabranch.papers.splitmeanflow import Settings
from anabranch.worlds import FashionJudge, balanced_labels, eight_modes, garments, load_fashion_teacher

Row = dict[str, Any]
OBJECTIVES: dict[str, Any] = {  # every one with half of its samples at the boundary, the paper's flow ratio
    "SplitMeanFlow": ge.SplitMeanFlow(flow_ratio=0.5),
    "MeanFlow": ge.MeanFlow(times=ge.TwoTimes(boundary_fraction=0.5)),
    "Shortcut": ge.Shortcut(flow_ratio=0.5),
    "Consistency": ge.Consistency(),
}
BATCHES = {"Consistency": 4}  # times the others' batch: the best of each arm's four trials of batch and rate
STEPS = (1, 2, 4)
NULL = {"label": 10}
CHUNK = 250


def experiment(lab: Lab, settings: Settings) -> None:
    limit(lab)
    mixture(lab, settings)
    flow_ratios(lab, settings)
    cost_of_a_step(lab, settings)
    images(lab, settings)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What a run is made of, for ``--dry-run``."""
    with torch.device("meta"):
        student = ge.FlowMapModel.from_velocity(ge.PixelUNet(classes=10))
    parameters = sum(p.numel() for p in student.parameters())
    seconds = settings.student_seconds * (len(OBJECTIVES) + 1)
    return [
        ("image student", f"{parameters / 1e6:.2f} M parameters"),
        ("image students", f"{', '.join(OBJECTIVES)} and one without guidance; {seconds:.0f} s of training in all"),
        ("networks on the mixture", f"flow matching, {', '.join(OBJECTIVES)}, {settings.oracle_steps} steps each"),
    ]


def draw_from(lab: Lab, use: int) -> torch.Generator:
    """A generator of its own for each use, so that arms share their noise and data."""
    return torch.Generator().manual_seed(1000 * lab.seed + use)


# The theorem: the limit of the splitting identity is MeanFlow's.


def limit(lab: Lab) -> None:
    """(target - u) / split tends to v + (t - s) du/ds - u, with an error that falls in proportion to the split."""
    torch.manual_seed(lab.seed)
    net = ge.FlowMapModel.from_velocity(ge.ResMLP(3, 32, 2)).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    g = draw_from(lab, 0)
    x = torch.randn(64, 3, generator=g, dtype=torch.float64)
    s, t = torch.rand(2, 64, generator=g, dtype=torch.float64).sort(0).values
    with torch.no_grad():
        u, v = net(x, s, t), net(x, s, s)
        tangents = (v, torch.ones_like(s), torch.zeros_like(s))
        du: Tensor = torch.func.jvp(net, (x, s, t), tangents)[1]
        wanted = v + (t - s)[:, None] * du - u
        rows = []
        for split in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            found = (ge.interval_split_target(net, x, s, t, torch.full_like(s, split)) - u) / split
            rows.append({"split": split, "relative error": float((found - wanted).norm() / wanted.norm())})
    lab.table("limit", rows, caption="The splitting identity against MeanFlow's as the split goes to 0.")
    lab.measure("limit-relative-error", rows[-1]["relative error"])


# Part A: a mixture in the plane, whose velocity is exact.


def with_average(objective: Any, net: torch.nn.Module) -> tuple[Any, torch.nn.Module | None]:
    """A consistency model takes its targets from averaged weights (Song et al., algorithm 2): the network to keep them in."""
    if not isinstance(objective, ge.Consistency):
        return objective, None
    average = copy.deepcopy(net).requires_grad_(False)
    return replace(objective, target=average), average


def train_on_mixture(name: str, objective: Any, steps: int, seed: int) -> dict[str, Any]:
    """Weights after ``steps`` steps of 256 samples, and the seconds a step took."""
    torch.manual_seed(seed)
    net: torch.nn.Module = ge.ResMLP(2, 192, 3)
    world = eight_modes()
    data = world.sample(50_000, generator=torch.Generator().manual_seed(seed)).float()
    average = None
    if name != "flow matching":
        net = ge.FlowMapModel.from_velocity(net)
        objective, average = with_average(replace(objective, velocity=world.velocity()), net)
    done = ge.fit(net, objective, data, steps=steps, batch_size=256, generator=torch.Generator().manual_seed(seed + 1),
                  average=average)  # fmt: skip
    return {"weights": done.ema.state_dict(), "seconds": done.seconds}


def mixture_net(name: str, weights: dict[str, Tensor]) -> Any:
    net: torch.nn.Module = ge.ResMLP(2, 192, 3)
    net = net if name == "flow matching" else ge.FlowMapModel.from_velocity(net)
    net.load_state_dict(weights)
    return net.eval()


def mixture(lab: Lab, settings: Settings) -> None:
    """RMSE to the exact end points from the same noises, and MMD to fresh data, at 1, 2 and 4 calls.

    A consistency model knows jumps to the end only: between calls it takes fresh noise, and has no end point of its own then.
    """
    world, arms = eight_modes(), {"flow matching": ge.FlowMatching(), **OBJECTIVES}
    x0 = torch.randn(settings.points, 2, generator=draw_from(lab, 1))
    exact = ge.solve(world.velocity(), x0.double(), uniform_times(200), "midpoint").float()
    fresh = world.sample(settings.points, generator=draw_from(lab, 2)).float()
    rows, ends, errors = [], {}, {}
    with lab.stage("mixture", total=len(arms)) as stage:
        for name, objective in arms.items():
            made = lab.cached(
                f"mixture-{name.lower().replace(' ', '-')}", train_on_mixture, name, objective, settings.oracle_steps,
                lab.seed,
            )  # fmt: skip
            net = mixture_net(name, made["weights"])
            row: Row = {"net": name, "ms a step": 1e3 * made["seconds"] / settings.oracle_steps}
            for n in STEPS:
                if name == "flow matching":
                    draw = ge.solve(net, x0, uniform_times(n))
                else:
                    draw = sampled(net, n, x0, draw_from(lab, 9), consistency=name == "Consistency")
                if n == 1 or name != "Consistency":
                    errors[name, n] = float((draw - exact).square().sum(1).mean().sqrt())
                    row[f"RMSE, {n} calls"] = errors[name, n]
                row[f"MMD, {n} calls"] = metrics.mmd(draw[:2000], fresh[:2000], bandwidths=[0.1, 0.3, 1.0])
                ends[name, n] = draw
            if name not in ("flow matching", "Consistency"):
                row["composition residual"] = residual(net, x0)
            rows.append(row)
            stage.advance()
    lab.table("mixture", rows, caption="Eight-mode mixture, exact teacher: errors against the exact flow.")
    for other in ("flow matching", "MeanFlow", "Shortcut"):
        ratio = errors["SplitMeanFlow", 1] / errors[other, 1]
        lab.measure(f"oracle-error-over-{other.lower().replace(' ', '-')}", ratio, unit="x", scale="log")
    show_ends(lab, {"exact": exact, **{name: ends[name, 1] for name in ("flow matching", "MeanFlow", "SplitMeanFlow")}})


def residual(u: Any, x0: Tensor) -> float:
    """Mean failure of a jump over [0, 1] to be the sum of its halves."""
    zero, one = torch.zeros(len(x0)), torch.ones(len(x0))
    with torch.no_grad():
        return float(ge.interval_split_residual(u, x0, zero, (zero + one) / 2, one).mean())


def show_ends(lab: Lab, ends: dict[str, Tensor]) -> None:
    figure, axes = new_figure(1, len(ends), figsize=(10, 2.8), sharex=True, sharey=True)
    for axis, (name, points) in zip(axes, ends.items(), strict=True):
        axis.scatter(*points[:1500].T, s=2, alpha=0.5, linewidths=0)
        axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
        axis.set_title("exact flow" if name == "exact" else f"{name}, 1 call", fontsize=9)
    lab.figure("one-call", figure, caption="End points of the same noises: the exact flow, and one network call each.")


def flow_ratios(lab: Lab, settings: Settings) -> None:
    """The share of boundary samples, from none (constants then solve the identity) to three quarters."""
    world = eight_modes()
    x0 = torch.randn(settings.points, 2, generator=draw_from(lab, 1))
    exact = ge.solve(world.velocity(), x0.double(), uniform_times(200), "midpoint").float()
    rows: list[Row] = []
    with lab.stage("flow ratios", total=4) as stage:
        for ratio in (0.0, 0.25, 0.5, 0.75):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # below 0.5 the objective warns of just this
                objective = ge.SplitMeanFlow(flow_ratio=ratio)
                made = lab.cached(
                    f"ratio-{ratio}", train_on_mixture, "ratio", objective, settings.sweep_steps, lab.seed
                )
            draw = ge.jump(mixture_net("ratio", made["weights"]), x0, uniform_times(1))
            rows.append({"flow ratio": ratio, "RMSE, 1 call": float((draw - exact).square().sum(1).mean().sqrt())})
            stage.advance()
    lab.table(
        "flow-ratios", rows, caption=f"One-call error by the share of boundary samples, {settings.sweep_steps} steps."
    )
    lab.measure("collapse-at-ratio-0", rows[0]["RMSE, 1 call"] / rows[2]["RMSE, 1 call"], unit="x", scale="log")


# What a training step costs.


def cost_of_a_step(lab: Lab, settings: Settings) -> None:
    """Forward and backward of one step, MeanFlow's against SplitMeanFlow's: seconds, and bytes kept for the backward pass."""
    g = draw_from(lab, 3)
    x0, x1 = torch.randn(2, min(32, 2 * settings.batch_size), 1, 28, 28, generator=g)
    nets = {"unet": (ge.FlowMapModel.from_velocity(ge.PixelUNet(classes=10)), x0, x1),
            "mlp": (ge.FlowMapModel.from_velocity(ge.ResMLP(2, 192, 3)), *torch.randn(2, 256, 2, generator=g))}  # fmt: skip
    rows = []
    for kind, (net, a, b) in nets.items():

        def step(name: str, net: Any = net, a: Tensor = a, b: Tensor = b) -> None:
            with sdpa_kernel(SDPBackend.MATH):
                OBJECTIVES[name](net, a, b, generator=torch.Generator().manual_seed(0)).value.backward()
            net.zero_grad(set_to_none=True)

        measure = "meanflow-step-over-split-step" + ("" if kind == "unet" else f"-{kind}")
        timing = lab.time(
            measure, partial(step, "SplitMeanFlow"), partial(step, "MeanFlow"), pairs=settings.timing_pairs
        )
        kept = {name: ge.bytes_saved_for_backward(partial(step, name)) for name in ("SplitMeanFlow", "MeanFlow")}
        lab.measure(
            f"meanflow-memory-over-split-{kind}", kept["MeanFlow"] / kept["SplitMeanFlow"], unit="x", scale="log"
        )
        seconds = {"SplitMeanFlow": timing.ours_s, "MeanFlow": timing.peer_s}
        for arm, values in seconds.items():
            middle = sorted(values or [])[len(values or []) // 2]
            rows.append({"network": kind, "objective": arm, "ms a step": 1e3 * middle, "MB kept": kept[arm] / 1e6})
    lab.table(
        "cost-of-a-step",
        rows,
        caption="One training step, float32: median time, and memory kept for the backward pass.",
    )


# Part B: images. Every student starts from the shipped teacher and has the same seconds.


def train_student(method: str, objective: Any, guidance: float, settings: Settings, seed: int) -> dict[str, Any]:
    """Averaged weights, steps made and the history of the loss."""
    teacher = load_fashion_teacher()
    student = ge.FlowMapModel.from_velocity(teacher)
    objective, average = with_average(objective, student)
    with sdpa_kernel(SDPBackend.MATH) if method == "MeanFlow" else torch.enable_grad():
        done = ge.distill(
            teacher, garments(settings.images_from, data_folder()), objective=objective, guidance=guidance,
            student=student, average=average,
            steps=settings.student_steps, time_budget_s=settings.student_seconds, lr=2e-3, warmup=20,
            batch_size=settings.batch_size * BATCHES.get(method, 1),
            generator=torch.Generator().manual_seed(seed), threads="auto",
        )  # fmt: skip
    return {"weights": done.ema.state_dict(), "steps": done.steps, "seconds": done.seconds, "history": done.history}


def solved(field: Any, n: int, x0: Tensor, label: Tensor) -> Tensor:
    return ge.solve(field, x0, uniform_times(n), label=label)


def sampled(
    u: Any, n: int, x0: Tensor, generator: torch.Generator, consistency: bool = False, **condition: Any
) -> Tensor:
    """``n`` calls of a flow map, each method's own way."""
    if consistency:
        return ge.jump_and_renoise(u, x0, uniform_times(n), generator=generator, **condition)
    return ge.jump(u, x0, uniform_times(n), **condition)


def images(lab: Lab, settings: Settings) -> None:
    teacher = load_fashion_teacher()
    labels = balanced_labels(settings.images)
    judge = FashionJudge(garments(settings.images_from, data_folder())[0])
    x0 = torch.randn(settings.images, 1, 28, 28, generator=draw_from(lab, 5))
    guided = ge.ClassifierFreeGuidance(teacher, settings.guidance, null_condition=NULL)
    rows: list[Row] = []
    drawn_by: dict[tuple[str, float, int], Tensor] = {}

    def score(name: str, guidance: float, steps: int, calls: int, draw: Any) -> None:
        begin = time.perf_counter()
        x = torch.cat([draw(a, b) for a, b in zip(torch.split(x0, CHUNK), torch.split(labels, CHUNK), strict=True)])
        seconds = time.perf_counter() - begin
        drawn_by[name, guidance, steps] = x
        scores, reference = judge(x, labels), drawn_by["teacher", guidance, 10]
        rows.append({
            "sampler": name, "guidance": guidance, "steps": steps, "calls": calls, "FFD": scores.ffd, "n": scores.n,
            "accuracy": scores.accuracy, "FFD to the teacher": judge.distance(x, reference),
            "pair distance": judge.pair_distance(x, reference), "seconds": seconds,
        })  # fmt: skip

    with lab.stage("teacher", total=8) as stage:
        for guidance, field in ((1.0, teacher), (settings.guidance, guided)):
            for n in (10, 4, 2, 1):
                calls = n * (1 if guidance == 1 else 2)
                score(
                    "teacher", guidance, n, calls, lambda a, b, n=n, f=field: ge.solve(f, a, uniform_times(n), label=b)
                )
                stage.advance()
    arms = [(name, settings.guidance) for name in OBJECTIVES] + [("SplitMeanFlow", 1.0)]
    students: dict[tuple[str, float], Any] = {}
    with lab.stage("students", total=len(arms)) as stage:
        for name, guidance in arms:
            made = lab.cached(f"student-{name.lower()}-{guidance:g}", train_student, name, OBJECTIVES[name], guidance,
                              settings, lab.seed)  # fmt: skip
            student = ge.FlowMapModel.from_velocity(teacher)
            student.load_state_dict(made["weights"])
            students[name, guidance] = student.eval()
            for n in STEPS:
                again = draw_from(lab, 9)
                score(name, guidance, n, n, lambda a, b, n=n, u=student, g=again, c=name == "Consistency": sampled(
                    u, n, a, g, c, label=b))  # fmt: skip
            for row in rows[-len(STEPS) :]:
                row["training steps"] = made["steps"]
            for entry in made["history"]:
                lab.series(f"loss-{name.lower()}-{guidance:g}", entry["step"], loss=entry["loss"])
            stage.advance()
    lab.table(
        "images", rows, caption=f"Fashion-MNIST, the same {settings.images} noises; FFD against the training images."
    )
    judge_images(lab, settings, rows)
    sampling_time(lab, settings, guided, students["SplitMeanFlow", settings.guidance])
    show_images(lab, settings, rows, drawn_by)


def judge_images(lab: Lab, settings: Settings, rows: list[Row]) -> None:
    at = {(row["sampler"], row["guidance"], row["steps"]): row for row in rows}

    def ratio(guidance: float, steps: int, of: int = 10, value: str = "FFD") -> float:
        return float(at["SplitMeanFlow", guidance, steps][value] / max(at["teacher", guidance, of][value], 1e-9))

    w = settings.guidance
    two = {f"guidance-{g:g}": lab.measure(f"ffd-two-steps-over-ten-guidance-{g:g}", ratio(g, 2), unit="x", scale="log")
           for g in (w, 1.0)}  # fmt: skip
    lab.measure("ffd-two-steps-over-ten", max(two.values()), unit="x", scale="log", **two)
    lab.measure("ffd-one-step-over-ten", ratio(w, 1), unit="x", scale="log")
    lab.measure("ffd-one-step-over-ten-unguided", ratio(1.0, 1), unit="x", scale="log")
    lab.measure("ffd-one-step-over-teachers-one", ratio(w, 1, of=1), unit="x", scale="log")
    lab.measure("distance-to-teacher-two-over-its-one", ratio(w, 2, of=1, value="FFD to the teacher"), unit="x")
    lost = at["teacher", w, 10]["accuracy"] - at["SplitMeanFlow", w, 2]["accuracy"]
    lab.measure("accuracy-lost", lost)
    for name in OBJECTIVES:
        lab.measure(f"ffd-one-step-{name.lower()}", at[name, w, 1]["FFD"], n=settings.images)


def sampling_time(lab: Lab, settings: Settings, guided: Any, student: Any) -> None:
    """The same 128 images by ten guided Euler steps and by one jump."""
    x0, labels = torch.randn(128, 1, 28, 28, generator=draw_from(lab, 6)), balanced_labels(128)
    lab.time(
        "sampling-speed-up",
        partial(ge.jump, student, x0, uniform_times(1), label=labels),
        partial(solved, guided, 10, x0, labels),
        pairs=settings.timing_pairs,
    )


def show_images(lab: Lab, settings: Settings, rows: list[Row], drawn: dict[tuple[str, float, int], Tensor]) -> None:
    w = settings.guidance
    curves = []
    for name in ("teacher", *OBJECTIVES):
        curves += [{"calls": r["calls"], name: r["FFD"]} for r in rows if r["sampler"] == name and r["guidance"] == w]
    shown = curves_of(sorted(curves, key=lambda row: row["calls"]), "calls", ["teacher", *OBJECTIVES])
    figure = plot_curves(
        shown, title="Quality by network calls, guidance inside", x="calls a sample", y="FFD", log="xy"
    )
    lab.figure("ffd-by-calls", figure, caption=f"Feature distance to the training images, n = {settings.images}.")
    columns = [("teacher", 10, "teacher, 20 calls"), ("SplitMeanFlow", 4, "student, 4 calls"),
               ("SplitMeanFlow", 2, "student, 2 calls"), ("SplitMeanFlow", 1, "student, 1 call"),
               ("teacher", 1, "teacher, 2 calls")]  # fmt: skip
    figure, axes = new_figure(1, len(columns), figsize=(10, 2.9))
    for axis, (name, steps, title) in zip(axes, columns, strict=True):
        axis.imshow(image_grid(-drawn[name, w, steps][:20], columns=4), interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    lab.figure("samples", figure, caption="The same noises and classes in every panel.")
