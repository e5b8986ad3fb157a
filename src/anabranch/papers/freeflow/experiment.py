"""Does a one-call student learn its teacher without data, and what does data that do not fit cost those who use them?"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import anabranch.generative as ge
from anabranch.generative import metrics, uniform_times
from anabranch.generative.image_files import image_grid
from anabranch.lab import Lab
from anabranch.lab.figures import curves_of, new_figure, plot_curves
from anabranch.lab.places import data_folder
from anabranch.papers.freeflow import Settings
from anabranch.worlds import FashionJudge, GaussianMixture, balanced_labels, fashion_tensors, load_digits
from anabranch.worlds import load_fashion_teacher as the_teacher

Row = dict[str, Any]
DEGREES = (0, 5, 10, 20)
FREE: dict[str, Row] = {  # options of distill_without_data
    "FreeFlow": {},
    "FreeFlow, a quarter": {"share": 0.25},
    "prediction only": {"split": 1.0},
    "correction only": {"split": 0.0},
    "FreeFlow, k = 0": {"weight_power": 0.0},
    "all noise": {"levels": 0.0},
    "noise up to 0.6": {"levels": 0.4},
    "FreeFlow, any start": {"starts": 0.5},
}
HALF = ge.TwoTimes(boundary_fraction=0.5)
WITH_DATA: dict[str, tuple[Any, str]] = {  # objective, data
    "MeanFlow": (ge.MeanFlow(times=HALF), "true"),
    "SplitMeanFlow": (ge.SplitMeanFlow(), "true"),
    "MeanFlow, half of the classes": (ge.MeanFlow(times=HALF), "classes"),
    **{f"MeanFlow, {d} degrees": (ge.MeanFlow(times=HALF), f"degrees-{d}") for d in DEGREES},
}
PASSES = {  # network passes a sample and step: 1 forward (student or teacher), 3 with gradient, MeanFlow's measured
    "FreeFlow": 6.25, "prediction only": 6.0, "correction only": 7.0, "MeanFlow": 6.75, "SplitMeanFlow": 4.5, "reflow": 3.0,
}  # fmt: skip
SOLVER_CALLS = 16  # of the teacher for a pair of reflow: eight Heun steps
STEPS, PAIRS, CHUNK = (1, 2, 4), 3, 250


def experiment(lab: Lab, settings: Settings) -> None:
    exact_teacher(lab, settings)
    cost_of_a_derivative(lab, settings)
    images(lab, settings)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What a run is made of, for ``--dry-run``."""
    with torch.device("meta"):
        nets = [
            ge.FlowMapModel.from_velocity(n)
            for n in (ge.PixelUNet(classes=10), ge.ResMLP(settings.dim, settings.width))
        ]
    size, tiny = (sum(p.numel() for p in net.parameters()) / 1e6 for net in nets)
    cost, image_cost = (f"at the cost of {n} FreeFlow steps of {b} each" for n, b in (
        (settings.steps, settings.batch_size), (settings.image_steps, settings.image_batch)))  # fmt: skip
    return [
        ("students of the exact teacher", f"{len(FREE) + len(WITH_DATA) + 1} of {tiny:.2f} M parameters, {cost}"),
        ("students of the image teacher", f"FreeFlow and SplitMeanFlow, {size:.2f} M parameters, {image_cost}"),
    ]


def draw_from(lab: Lab, use: int) -> torch.Generator:
    """A generator of its own for each use, so that arms share their noise."""
    return torch.Generator().manual_seed(1000 * lab.seed + use)


# Part A: a teacher in closed form, fitted to real images, so that every error is the student's.


def pictures(source: str) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and labels, at most 20,000."""
    if source == "fashion-mnist":
        x, label = fashion_tensors(data_folder())
        return x[:20_000], label[:20_000]
    digits, names = load_digits()
    return torch.from_numpy(digits)[:, None].float() / 8 - 1, torch.from_numpy(names).long()


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Each image turned by plus or minus ``degrees``, by a coin."""
    sign = torch.randint(2, (len(images),), generator=torch.Generator().manual_seed(0)) * 2 - 1
    angle = torch.deg2rad(sign * degrees)
    still = torch.zeros_like(angle)
    turn = torch.stack([angle.cos(), -angle.sin(), still, angle.sin(), angle.cos(), still], 1).reshape(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(turn, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def fit_world(source: str, dim: int, components: int) -> dict[str, Any]:
    """The mixture fitted to principal components of the images, and the codes of those images changed in every way."""
    from sklearn.mixture import GaussianMixture as Fitting

    x, label = pictures(source)
    pca = ge.PatchPCA.fit(x, dim, x.shape[-1])
    codes = {f"degrees-{d}": pca.encode(rotated(x, d)).flatten(1).numpy() for d in DEGREES}
    plain = pca.encode(x).flatten(1)
    found = Fitting(components, reg_covar=1e-3, max_iter=60, random_state=0).fit(plain.double().numpy())
    return {
        "weights": found.weights_, "means": found.means_,
        "covariances": (found.covariances_ + found.covariances_.transpose(0, 2, 1)) / 2, "explained": pca.explained,
        "data": {**codes, "classes": plain[label < 5].numpy()},
    }  # fmt: skip


def mixture_of(made: dict[str, Any]) -> GaussianMixture:
    return GaussianMixture(**{name: torch.as_tensor(made[name]) for name in ("weights", "means", "covariances")})


def train(name: str, made: dict[str, Any], settings: Settings, seed: int) -> dict[str, Any]:
    """Averaged weights of one student, all at the cost of ``settings.steps`` FreeFlow steps."""
    torch.manual_seed(seed)
    world, generator = mixture_of(made), torch.Generator().manual_seed(seed)
    teacher, source = world.velocity(), ge.GaussianSource((settings.dim,))
    net = ge.ResMLP(settings.dim, settings.width, 3)
    shared: Row = {"batch_size": settings.batch_size, "generator": generator, "ema": 0.99, "log_every": 20}
    base = next((part for part in PASSES if name.startswith(part)), "FreeFlow")
    steps = max(2, round(settings.steps * PASSES["FreeFlow"] / PASSES[base]))
    if name in FREE:
        done = without_data(name, teacher, source, net, settings, steps, shared)
    elif name == "reflow":  # half of the budget for pairs
        n = max(2, round(steps * settings.batch_size * PASSES[base] / 2 / SOLVER_CALLS))
        pairs = ge.teacher_pairs(teacher, source, n, uniform_times(SOLVER_CALLS // 2), generator=generator)
        once = ge.Reflow(pairs, settings.batch_size, ge.FlowMatching(times=ge.Levels(1)))
        done = ge.fit(net, once, steps=max(1, steps // 2), generator=generator, ema=0.99, log_every=20)
    else:
        objective, data = WITH_DATA[name]
        rows = (
            world.sample(50_000, generator=generator).float() if data == "true" else torch.as_tensor(made["data"][data])
        )
        done = ge.fit(
            ge.FlowMapModel.from_velocity(net), replace(objective, velocity=teacher), rows, steps=steps, **shared
        )
    return {"weights": done.ema.state_dict(), "steps": done.steps, "seconds": done.seconds, "history": done.history}


def without_data(
    name: str, teacher: Any, source: Any, net: Any, settings: Settings, steps: int, shared: Row
) -> ge.Fitted:
    """A student from the prior alone."""
    options = dict(FREE[name])
    steps = max(2, round(steps * options.pop("share", 1.0)))
    levels = options.pop("levels", None)
    student: Any = ge.FlowMapModel.from_velocity(net)
    critic, warmup = ge.ResidualField(teacher, ge.ResMLP(settings.dim, settings.width, 3)), steps // 4
    if options.get("split") == 0.0:  # it needs to begin somewhere: a twentieth of the steps are prediction
        head = max(1, steps // 20)
        steps, warmup = steps - head, 0
        student = ge.distill_without_data(
            teacher, source, steps=head, student=student, critic=critic, split=1.0, lr_schedule="constant", **shared
        ).ema.requires_grad_(True)
    if levels is None:
        return ge.distill_without_data(
            teacher, source, steps=steps, student=student, critic=critic, correction_warmup=warmup, **options, **shared
        )
    correction = ge.DistributionCorrection(teacher, times=ge.Uniform(), interval=(levels, 1.0))
    objective = ge.FreeFlow(
        ge.TrajectoryPrediction(teacher), correction, source, batch_size=shared["batch_size"], warmup=warmup
    )
    kept = {key: value for key, value in shared.items() if key != "batch_size"}
    done = ge.fit(ge.StudentAndCritic(student, critic), objective, steps=steps, grad_clip=None, **kept)
    return replace(done, ema=done.ema.get_submodule("student"))


def student_of(name: str, weights: dict[str, Tensor], settings: Settings) -> Any:
    net: torch.nn.Module = ge.ResMLP(settings.dim, settings.width, 3)
    net = net if name == "reflow" else ge.FlowMapModel.from_velocity(net)
    net.load_state_dict(weights)
    net.eval()
    return (lambda x, s, t: net(x, s)) if name == "reflow" else net


def covered(world: GaussianMixture, x: Tensor) -> float:
    """Share of components with at least half of their expected mass among samples ``x``."""
    labels = [torch.full((len(x),), k) for k in range(len(world.weights))]
    share = torch.stack([world.class_log_prob(x.double(), 1.0, label).exp().mean() for label in labels])
    return float((share >= 0.5 * world.weights).double().mean())


def exact_teacher(lab: Lab, settings: Settings) -> None:
    """Distances to where the exact flow takes the same noises, after one, two and four calls."""
    with lab.stage("mixture"):
        made = lab.cached("mixture", fit_world, settings.data, settings.dim, settings.components, shared=True)
    world = mixture_of(made)
    lab.measure("variance-kept", made["explained"])
    x0 = torch.randn(settings.points, settings.dim, generator=draw_from(lab, 1))
    truth = ge.solve(world.velocity(), x0, uniform_times(64), "rk4")
    fresh = world.sample(settings.points, generator=draw_from(lab, 2)).float()
    rows: list[Row] = []

    def score(name: str, steps: int, x: Tensor, **more: Any) -> None:
        rows.append({
            "student": name, "steps": steps, "Frechet": metrics.frechet_distance(x, truth),
            "RMSE / std": float((x - truth).square().mean().sqrt() / truth.std()),
            "sliced W2": metrics.sliced_wasserstein(x, truth, generator=draw_from(lab, 3), projections=128),
            "modes": covered(world, x), **more,
        })  # fmt: skip

    score("fresh samples of the teacher", 0, fresh)
    rows[-1]["RMSE / std"] = None
    for n in (1, 2, 4, 8, 16, 64):
        score("Euler", n, ge.solve(world.velocity(), x0, uniform_times(n)))
    names = [*FREE, *WITH_DATA, "reflow"]
    with lab.stage("students of the exact teacher", total=len(names)) as stage:
        for name in names:
            kept = lab.cached(f"exact-{slug(name)}", train, name, made, settings, lab.seed)
            student = student_of(name, kept["weights"], settings)
            for n in STEPS if name in ("FreeFlow, any start", "MeanFlow", "SplitMeanFlow") else (1,):
                score(name, n, ge.jump(student, x0, uniform_times(n)))
                rows[-1] |= {"training steps": kept["steps"], "ms a step": 1e3 * kept["seconds"] / kept["steps"]}
            if name == "FreeFlow":
                for entry in kept["history"]:
                    lab.series("mismatches", entry["step"], prediction=entry["prediction"], correction=entry["correction"],
                               balance=entry["balance"])  # fmt: skip
            stage.advance()
    lab.table("exact-teacher", rows, caption="Closed-form teacher; students at equal cost, the same noises.")
    judge(lab, rows)
    show(lab, rows)


def slug(name: str) -> str:
    return name.lower().replace(",", "").replace("=", "").replace("  ", " ").replace(" ", "-")


def judge(lab: Lab, rows: list[Row]) -> None:
    at = {(row["student"], row["steps"]): row for row in rows}

    def value(name: str, steps: int = 1) -> float:
        return max(float(at[name, steps]["Frechet"]), 1e-9)

    def ratio(name: str, over: float, under: float, **details: Any) -> None:
        lab.measure(name, over / under, unit="x", scale="log", **details)

    free = value("FreeFlow")
    ratio("frechet-over-best-with-data", free, min(value("MeanFlow"), value("SplitMeanFlow")),
          meanflow=value("MeanFlow"), splitmeanflow=value("SplitMeanFlow"))  # fmt: skip
    ratio("frechet-over-eight-steps", free, value("Euler", 8))
    ratio("short-training-over-eight-steps", value("FreeFlow, a quarter"), value("Euler", 8))
    ratio("prediction-only-over-both", value("prediction only"), free)
    ratio("correction-only-over-both", value("correction only"), free)
    ratio("low-noise-over-all-noise", value("noise up to 0.6"), value("all noise"))
    doses = [value(f"MeanFlow, {d} degrees") for d in DEGREES]
    lab.measure("mismatch-order", float(spearmanr(DEGREES, doses).statistic), doses=doses)
    ratio("frechet-over-half-of-the-classes", free, value("MeanFlow, half of the classes"))
    ratio("not-normalised-over-normalised", value("FreeFlow, k = 0"), free)
    ratio("frechet-over-reflow", free, value("reflow"))
    lab.measure("modes-lost-by-correction-only", at["FreeFlow", 1]["modes"] - at["correction only", 1]["modes"])
    for n in STEPS:
        ratio(f"any-start-over-splitmeanflow-{n}", value("FreeFlow, any start", n), value("SplitMeanFlow", n))
    equal = [n for n in (1, 2, 4, 8, 16, 64) if value("Euler", n) > free]
    lab.measure("euler-steps-surpassed", max(equal, default=0), free=free)
    lab.measure(
        "frechet-one-call", free, rmse=at["FreeFlow", 1]["RMSE / std"], floor=value("fresh samples of the teacher", 0)
    )


def show(lab: Lab, rows: list[Row]) -> None:
    shown = [row for row in rows if row["steps"] in (1, 8) and row["RMSE / std"] is not None]
    figure, axes = new_figure()
    for row in shown:
        axes.scatter(row["RMSE / std"], row["Frechet"], marker="s" if row["student"] == "Euler" else "o")
        label = f"Euler {row['steps']}" if row["student"] == "Euler" else row["student"]
        axes.annotate(label, (row["RMSE / std"], row["Frechet"]), fontsize=7, xytext=(4, 2), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="RMSE / std to the exact end points", ylabel="Frechet distance",
             title="Each sample, and all of them")  # fmt: skip
    lab.figure("errors", figure, caption="One call each; squares are Euler steps of the exact teacher.")
    at = {row["student"]: row["Frechet"] for row in rows if row["steps"] == 1}
    doses = [{"degrees": d, "with data": at[f"MeanFlow, {d} degrees"], "FreeFlow": at["FreeFlow"]} for d in DEGREES]
    figure = plot_curves(
        curves_of(doses, "degrees", ["with data", "FreeFlow"]), title="Data that do not fit", x="data turned by, degrees",
        y="Frechet distance to the teacher", log="y",
    )  # fmt: skip
    lab.figure("mismatch", figure, caption="One-call students distilled with turned images, and without data.")


def cost_of_a_derivative(lab: Lab, settings: Settings) -> None:
    """Forward and backward of one prediction step on images: forward mode against differences."""
    net = ge.FlowMapModel.from_velocity(ge.PixelUNet(classes=10))
    x0 = torch.randn(settings.image_batch, 1, 28, 28, generator=draw_from(lab, 4))

    def step(derivative: Any) -> None:
        with sdpa_kernel(SDPBackend.MATH):
            loss: Any = ge.TrajectoryPrediction(lambda x, t: -x, derivative=derivative)(
                net, x0, generator=draw_from(lab, 4)
            )
        loss.value.backward()
        net.zero_grad(set_to_none=True)

    lab.time("jvp-over-central", partial(step, "central"), partial(step, "jvp"), pairs=PAIRS)


def train_on_images(method: str, settings: Settings, seed: int) -> dict[str, Any]:
    """Averaged weights at the cost of ``image_steps`` FreeFlow steps; the teacher's two guided branches count two passes."""
    teacher, generator = the_teacher(), torch.Generator().manual_seed(seed)
    shared: Row = {"generator": generator, "batch_size": settings.image_batch, "guidance": settings.guidance, "ema": 0.99,
                   "log_every": 20, "threads": 1}  # fmt: skip
    if method == "FreeFlow":
        source = ge.GaussianSource((1, 28, 28))
        done = ge.distill_without_data(
            teacher, source, steps=settings.image_steps, lr=settings.image_lr, correction_warmup=settings.image_steps // 10,
            **shared,
        )  # fmt: skip
    else:  # 0.75 x 7 + 0.25 x 8 passes against 0.5 x 5 + 0.5 x 5
        noise = torch.randn(200, 1, 28, 28, generator=generator)
        own = settings.data != "fashion-mnist"  # no data set at hand: the teacher's samples
        data = (
            ge.teacher_samples(teacher, noise, label=balanced_labels(200), steps=2)
            if own
            else fashion_tensors(data_folder())
        )
        steps = max(1, round(settings.image_steps * 7.25 / 5))
        done = ge.distill(teacher, data, objective=ge.SplitMeanFlow(), steps=steps, lr=2e-3, warmup=20, **shared)
    return {"weights": done.ema.state_dict(), "steps": done.steps, "seconds": done.seconds, "history": done.history}


def images(lab: Lab, settings: Settings) -> None:
    """The same noises and classes under the guided teacher and both students, and the search for good noise."""
    teacher, labels = the_teacher(), balanced_labels(settings.images)
    guided = ge.ClassifierFreeGuidance(teacher, settings.guidance, null_condition={"label": 10})
    x0 = torch.randn(settings.images, 1, 28, 28, generator=draw_from(lab, 5))

    def drawn(draw: Any, noise: Tensor = x0) -> Tensor:
        parts = zip(torch.split(noise, CHUNK), torch.split(labels, CHUNK), strict=True)
        return torch.cat([draw(a, b) for a, b in parts])

    def solved(n: int, noise: Tensor = x0) -> Tensor:
        return drawn(lambda a, b: ge.solve(guided, a, uniform_times(n), label=b), noise)

    with lab.stage("image teacher", total=3) as stage:
        seen: dict[tuple[str, int], Tensor] = {}
        for n in (settings.reference_steps, 4, 1):
            seen["teacher", n] = solved(n)
            stage.advance()
    reference = seen["teacher", settings.reference_steps]
    judge_of = FashionJudge(fashion_tensors(data_folder())[0] if settings.data == "fashion-mnist" else reference)
    students: dict[str, Any] = {}
    with lab.stage("image students", total=2) as stage:
        for name in ("FreeFlow", "SplitMeanFlow"):
            kept = lab.cached(f"image-{name.lower()}", train_on_images, name, settings, lab.seed)
            students[name] = ge.FlowMapModel.from_velocity(teacher)
            students[name].load_state_dict(kept["weights"])
            students[name].eval()
            for n in (1,) if name == "FreeFlow" else STEPS:
                seen[name, n] = drawn(lambda a, b, s=students[name], n=n: ge.jump(s, a, uniform_times(n), label=b))
            stage.advance()
    rows: list[Row] = [
        {"sampler": name, "steps": n, "FFD to the teacher": judge_of.distance(x, reference),
         "FFD": judge_of(x, labels).ffd, "accuracy": judge_of(x, labels).accuracy,
         "pair distance": judge_of.pair_distance(x, reference), "n": len(x)}
        for (name, n), x in seen.items()
    ]  # fmt: skip
    lab.table("images", rows, caption="Guided teacher and students, the same noises; FFD is not FID.")
    at = {(row["sampler"], row["steps"]): row["FFD to the teacher"] for row in rows}
    for over, other in (("teacher-one-step", ("teacher", 1)), ("teacher-four-steps", ("teacher", 4)),
                       ("splitmeanflow", ("SplitMeanFlow", 1))):  # fmt: skip
        lab.measure(f"images-over-{over}", at["FreeFlow", 1] / max(at[other], 1e-9), unit="x", scale="log")
    search(lab, settings, judge_of, students["FreeFlow"], labels, solved)
    few, of = x0[:32], labels[:32]
    lab.time(
        "speed-up-over-slow-steps", lambda: ge.jump(students["FreeFlow"], few, uniform_times(1), label=of),
        lambda: ge.solve(guided, few, uniform_times(settings.slow_steps), label=of),
        pairs=PAIRS, steps=settings.slow_steps,
    )  # fmt: skip
    figure, axes = new_figure(1, 4, figsize=(9, 4))
    columns = [("teacher", settings.reference_steps), ("FreeFlow", 1), ("SplitMeanFlow", 1), ("teacher", 1)]
    for axis, key in zip(axes, columns, strict=True):
        axis.imshow(image_grid(-seen[key][:20], columns=4), interpolation="nearest")
        axis.set_title(f"{key[0]}, {key[1]} step{'s' * (key[1] > 1)}", fontsize=9)
        axis.set_axis_off()
    lab.figure("samples", figure, caption="The same noises and classes in every panel.")


def search(lab: Lab, settings: Settings, judge_of: FashionJudge, student: Any, labels: Tensor, solved: Any) -> None:
    """Eight one-call draws and six guided steps from the best, 20 calls, against 16 guided steps, 32 calls (80 to 128)."""

    def verdict(x: Tensor, label: Tensor) -> Any:
        return judge_of.classifier(x.clamp(-1, 1)).log_softmax(1)[torch.arange(len(x)), label]

    source, n, g = ge.GaussianSource((1, 28, 28)), settings.images, draw_from(lab, 6)
    with lab.stage("search", total=2) as stage:
        best = ge.best_of_n(student, verdict, source, n, 8, generator=g, batch_size=CHUNK, label=labels)
        samples = {"best of 8, then 6 steps": (20, solved(6, best.x0)), "best of 8": (8, best.x1)}
        stage.advance()
        samples["16 steps"] = (32, solved(16))
    rows: list[Row] = [
        {"sampler": name, "calls": calls, "score": float(verdict(x, labels).mean()), "FFD": judge_of(x, labels).ffd}
        for name, (calls, x) in samples.items()
    ]
    lab.table("search", rows, caption="Score: log probability of the asked class, by the classifier that chose.")
    lab.measure("search-gain", rows[0]["score"] - rows[-1]["score"], unit="nats")
