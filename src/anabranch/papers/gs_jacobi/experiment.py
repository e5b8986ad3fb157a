"""How fast can a TarFlow be inverted? Training, diagnostics, convergence, break-even, the race, quality."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

import anabranch.generative as gen
from anabranch.generative.image_files import load_images
from anabranch.generative.metrics import frechet_distance
from anabranch.lab import Lab
from anabranch.lab.figures import COLORS, curves_of, new_figure, plot_curves
from anabranch.lab.places import data_folder
from anabranch.papers.gs_jacobi import Settings

Row = dict[str, Any]
Call = Callable[[], Any]
Maps = list[gen.AutoregressiveMap]
Planned = tuple[gen.SamplingPlan, float]  # and its tolerance
Model = tuple[gen.TarFlow, tuple[Tensor, Tensor]]  # and images and labels of the test
SEQUENTIAL = "sequential"
COUNT_TOL = 1e-3  # at which sweeps are counted
ERROR = 1e-3  # largest error of a parallel answer in the race
GUIDANCE = 3.4  # the paper's for AFHQ
DIAGNOSED = 256  # images


def experiment(lab: Lab, settings: Settings) -> None:
    threads = torch.get_num_threads()
    sizes = ("tarflow", settings.patch, settings.train_seconds), ("coarse", 2 * settings.patch, settings.coarse_seconds)
    models = {name: trained(lab, settings, name, patch, seconds) for name, patch, seconds in sizes}
    flow, _ = models["tarflow"]
    torch.set_num_threads(threads)  # training may have chosen another number
    generator = torch.Generator().manual_seed(lab.seed)
    tough = diagnostics(lab, settings, models, generator)
    convergence(lab, flow, generator)
    tokens(lab, settings, flow, generator)
    break_even(lab, settings, flow, generator)
    single = race(lab, settings, flow, tough, generator)
    speed_ups(lab, settings, flow, single[0], generator)
    quality(lab, settings, models["tarflow"], single, generator)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What a run is made of, for ``--dry-run``."""
    sizes = {"fashion-mnist": (28, 1, 10), "generated": (8, 1, 2)}.get(settings.images, (64, 3, 1000))
    with torch.device("meta"):
        flow = build(settings, *sizes, settings.patch, settings.width)
    size = sum(parameter.numel() for parameter in flow.parameters())
    flops = 2 * size * flow.tokens
    return [
        ("TarFlow", f"{flow.tokens} tokens of {flow.features}, {len(flow.blocks)} blocks, {size:,} parameters"),
        ("one image", f"{flops / 1e9:.2f} GFLOP token by token, attention aside; as much again a sweep of all blocks"),
        ("batches", ", ".join(map(str, settings.batches))),
    ]


# Data and models.


def read_images(images: str, split: str, seed: int) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and labels; of a user's images every tenth is for the test."""
    if images == "fashion-mnist":
        from anabranch.worlds import fashion_tensors

        return fashion_tensors(data_folder(), split)
    if images == "generated":  # smooth ones; the label says whether the middle is bright
        drawn = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        smooth = torch.tanh(drawn.cumsum(2).cumsum(3) / 8)
        return smooth, (smooth[:, 0, 4, 4] > 0).long()
    found = load_images(Path(images))
    label = torch.zeros(len(found.x), dtype=torch.int64) if found.label is None else found.label
    chosen = (torch.arange(len(label)) % 10 == 0) == (split == "test")
    return found.x[chosen], label[chosen]


def build(settings: Settings, side: int, channels: int, classes: int, patch: int, width: int) -> gen.TarFlow:
    head, blocks, layers = min(32 if width < 512 else 64, width), settings.blocks, settings.layers
    return gen.TarFlow(side, channels, patch, width, blocks, layers, head_size=head, classes=classes)


def train(settings: Settings, patch: int, seconds: float, seed: int) -> dict[str, Any]:
    images, label = read_images(settings.images, "train", seed)
    torch.manual_seed(seed)
    flow = build(settings, images.shape[-1], images.shape[1], int(label.max()) + 1, patch, settings.width)
    if not seconds:
        for name, parameter in flow.named_parameters():  # a fresh model is the identity
            torch.nn.init.normal_(parameter, std=0.05 if "proj_out" in name else 0.2)
        return {"config": flow.config, "state": flow.state_dict(), "history": []}
    fitted = gen.fit(
        flow, gen.NoisyLikelihood(settings.noise), (images, label), steps=10**6, time_budget_s=seconds, batch_size=16, lr=3e-3,
        warmup=50, ema=0.99, label_dropout=0.1, threads="auto", precision="f32", generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return {"config": flow.config, "state": fitted.ema.state_dict(), "history": fitted.history}


def trained(lab: Lab, settings: Settings, name: str, patch: int, seconds: float) -> Model:
    with lab.stage(f"train {name}"):
        of_training = replace(
            settings, draws=2, samples=8, batches=(1,), tol=1.0
        )  # what the rest is set to has no part
        kept = lab.cached(name, train, of_training, patch, seconds, lab.seed)
    for point in kept["history"]:
        lab.series(f"loss-{name}", point["step"], loss=point["loss"])
    flow = gen.TarFlow(**kept["config"])
    flow.load_state_dict(kept["state"])
    return flow.eval(), read_images(settings.images, "test", lab.seed)


def noises(flow: gen.TarFlow, count: int, batch: int, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(batch, flow.tokens, flow.features, generator=generator) for _ in range(count)]


def labels(flow: gen.TarFlow, batch: int) -> Tensor:
    assert flow.classes is not None
    return torch.arange(batch) % flow.classes


def noisy(data: tuple[Tensor, Tensor], noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    images, label = data[0][:DIAGNOSED], data[1][:DIAGNOSED]
    return images + noise * torch.randn(images.shape, generator=generator), label


# Which blocks are tough, and where to start.


def diagnostics(lab: Lab, settings: Settings, models: dict[str, Model], generator: torch.Generator) -> int:
    """Gives the place of the toughest block of the first model, by the paper's ranking, in the order of generation."""
    rows: list[Row] = []
    for name, (flow, test) in models.items():
        with lab.stage(f"diagnose {name}"):
            batches = noises(flow, settings.draws, 1, generator)
            from_z, from_zero = (mean_sweeps(flow, batches, start) for start in ("jacobi", "jacobi+zero"))
            images, label = noisy(test, settings.noise, generator)
            with torch.no_grad():
                bits = flow.bits_per_dim(images, label)
            lab.measure(f"bits-per-dim-{name}", float(bits.mean()), unit="bit", noise=settings.noise)
            for place, report in enumerate(gen.diagnose_blocks(flow, images, label)):
                row: Row = {"model": name, "generated": place, "block": report.block}
                row |= {f"CRM {kind} %": value for kind, value in report.ranking_share.items()}
                row |= {"sweeps z": from_z[place], "sweeps zero": from_zero[place], "start": report.better_start()}
                rows.append(row | {f"IGM {s} {r}": v for (s, r), v in report.initial_guess.items()})
    lab.table("blocks", rows, caption=f"Blocks as they are generated; mean sweeps of Jacobi to {COUNT_TOL}, batch 1")
    own = [row for row in rows if row["model"] == "tarflow"]
    tough, sweeps = int(np.argmax([row["CRM code %"] for row in own])), sorted(row["sweeps z"] for row in own)
    lab.measure("tough-block-share", own[tough]["CRM code %"], unit="%", block=own[tough]["block"])
    lab.measure("second-toughest-sweeps-over-eighth", sweeps[-2] / (models["tarflow"][0].tokens / 8))
    for kind in ("code", "theory"):
        groups = [[row for row in rows if row["model"] == name] for name in models]
        ranks = [spearmanr([(row[f"CRM {kind} %"], row["sweeps z"]) for row in group])[0] for group in groups]
        lab.measure(f"rank-correlation-{kind}", float(np.nan_to_num(np.mean(ranks))))
    right = [row[f"sweeps {row['start']}"] <= min(row["sweeps z"], row["sweeps zero"]) for row in rows]
    lab.measure("guess-metric-is-right", fmean(right), unit="of the blocks")
    figure, axes = new_figure(1, 2)
    for axis, key, title in ((axes[0], "CRM code %", "CRM (code), %"), (axes[1], "sweeps z", f"sweeps to {COUNT_TOL}")):
        axis.bar(range(len(own)), [row[key] for row in own], color=COLORS[0])
        axis.set(title=title, xlabel="block, in the order of generation", xticks=range(len(own)))
    lab.figure("blocks", figure, caption="The paper's ranking of blocks beside measured sweeps")
    return tough


def mean_sweeps(flow: gen.TarFlow, batches: Sequence[Tensor], strategy: str) -> list[float]:
    """Mean sweeps, block by block; each block starts from the exact answer of the one before."""
    counts: list[list[int]] = []
    for turn, z in enumerate(batches):
        counts.append([])
        for one_map in flow.inverse_maps(labels(flow, turn + 1)[-1:]):
            _, (info,) = gen.invert_autoregressive(one_map, z, strategy, tol=COUNT_TOL)
            counts[-1].append(info.sweeps)
            z, _ = gen.invert_autoregressive(one_map, z, SEQUENTIAL, tol=COUNT_TOL)
    return [fmean(column) for column in zip(*counts, strict=True)]


@torch.inference_mode()
def convergence(lab: Lab, flow: gen.TarFlow, generator: torch.Generator) -> None:
    """Error of plain Jacobi after every sweep, block by block."""
    (z,) = noises(flow, 1, 1, generator)
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for place, one_map in enumerate(flow.inverse_maps(labels(flow, 1))):
        exact, _ = gen.invert_autoregressive(one_map, z, SEQUENTIAL, tol=COUNT_TOL)
        source, goal, errors = one_map.enter(z), one_map.enter(exact), []
        x = source.clone()
        for _ in range(min(flow.tokens, 60)):
            x[:, 1:] = one_map.advance(x[:, :-1], source[:, 1:], 0, one_map.new_cache(source))
            errors.append(max(float((x - goal).abs().max()), 1e-7))
        curves[f"block {len(flow.blocks) - 1 - place}"] = ([float(k + 1) for k in range(len(errors))], errors)
        z = exact
    figure = plot_curves(curves, title="Jacobi, block by block", x="sweeps", y="largest error", log="y")
    lab.figure("convergence", figure, caption="Largest error of plain Jacobi against the sequential answer (float32)")


# Work, time and quality.


def tokens(lab: Lab, settings: Settings, flow: gen.TarFlow, generator: torch.Generator) -> None:
    """Tokens evaluated by each strategy at the loosest tolerance whose mean error over the noises is at most ERROR / 5."""
    batches = noises(flow, settings.draws, 1, generator)
    window = max(2, flow.tokens // 6)
    maps = flow.inverse_maps(labels(flow, 1))
    answers = [gen.invert_autoregressive(maps, z, SEQUENTIAL, tol=COUNT_TOL)[0] for z in batches]
    rows: list[Row] = []
    for name in (SEQUENTIAL, "jacobi", "gs-jacobi-8", f"sliding-{window}", "frozen-16"):
        for tol in (1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5):
            found = [gen.invert_autoregressive(maps, z, name, tol=tol) for z in batches]
            error = fmean(float((x - exact).abs().max()) for (x, _), exact in zip(found, answers, strict=True))
            used = fmean(sum(info.tokens_evaluated for info in infos) for _, infos in found)
            if error <= ERROR / 5:
                break
        rows.append({"strategy": name, "tol": tol, "error": error, "tokens": used})
    lab.table("tokens", rows, caption="Tokens evaluated for an image at equal error (batch 1; certificates included)")
    used_by = {row["strategy"]: row["tokens"] for row in rows}
    ratio = used_by[f"sliding-{window}"] / used_by["gs-jacobi-8"]
    lab.measure("tokens-window-over-modules", ratio, unit="x", scale="log", window=window)
    lab.measure("tokens-window-over-jacobi", used_by[f"sliding-{window}"] / used_by["jacobi"], unit="x", scale="log")


def break_even(lab: Lab, settings: Settings, flow: gen.TarFlow, generator: torch.Generator) -> None:
    """What an evaluation costs, and how many sweeps a block may take; random weights will do."""
    rows: list[Row] = []
    own = (settings.patch, settings.width)
    for patch, width in [own, *((own[0], own[1] * n // 2) for n in (1, 4, 8)), (2 * own[0], own[1])]:
        wide = build(settings, flow.side, flow.image_channels, flow.classes or 1, patch, width)
        last = wide.tokens - 1
        for batch in settings.batches[:2]:
            (z,) = noises(wide, 1, batch, generator)
            names, widths = ("step", "16 tokens", "48 tokens", "sweep"), [1, min(16, last), min(48, last), last]
            seconds = [gen.evaluation_seconds(wide.inverse_maps()[0], z, [n])[n] for n in widths]
            row: Row = {"tokens": wide.tokens, "width": width, "batch": batch}
            row |= {f"{name}, ms": 1e3 * spent for name, spent in zip(names, seconds, strict=True)}
            rows.append(row | {"break-even sweeps": last * seconds[0] / seconds[-1]})
    lab.table("break-even", rows, caption="One evaluation of a block; sweeps that cost as much as its sequential pass")
    lab.measure("break-even-sweeps", rows[0]["break-even sweeps"], unit="sweeps", batch=1)


def race(lab: Lab, settings: Settings, flow: gen.TarFlow, tough: int, generator: torch.Generator) -> Planned:
    """Every strategy at every batch size. Gives the plan for single images, and its tolerance."""
    rows: list[Row] = []
    plans: list[Planned] = []
    duels: list[tuple[float, int, Call, Call]] = []
    with lab.stage("race", total=len(settings.batches)) as stage:
        for batch in settings.batches:
            label, draws = labels(flow, batch), settings.draws if batch <= 4 else 1
            maps, batches = flow.inverse_maps(label), noises(flow, draws, batch, generator)
            chosen = gen.plan_sampling(maps, noises(flow, min(draws, 3), batch, generator), tol=settings.tol)
            tol, _ = tolerance(settings, maps, batches, chosen.strategies)
            plans.append((chosen, tol))
            arms = strategies(flow, tough, chosen)
            calls = {name: inverter(maps, batches, arm, tol) for name, arm in arms.items()}
            calls["reference"] = in_turn(batches, partial(gen.reference_sequential, flow, label=label))
            calls["released"] = in_turn(batches, partial(released, maps, tough))
            exact, _ = gen.invert_autoregressive(maps, batches[-1], SEQUENTIAL, tol=tol)
            for name, call in calls.items():
                spent, answer = clocked(call, draws)
                x, infos = answer if name in arms else (answer, [])
                row: Row = {"batch": batch, "strategy": name, "blocks": ", ".join(info.strategy for info in infos)}
                row |= {"seconds": spent, "tol": tol, "error": float((x - exact).abs().max())}
                rows.append(row | {"tokens an image": sum(info.tokens_evaluated for info in infos) / batch})
            seconds = {row["strategy"]: row["seconds"] for row in rows if row["batch"] == batch}
            fixed = min((name for name in arms if name != "plan"), key=lambda name: seconds[name])
            duels.append((seconds[fixed] / seconds["plan"], batch, calls["plan"], calls[fixed]))
            stage.advance(batch=batch, plan=", ".join(chosen.strategies))
        _, batch, ours, best = min(duels, key=lambda duel: duel[0])
        lab.time("best-fixed-over-plan", ours, best, pairs=9, batch=batch)
    lab.table("race", rows, caption="Seconds a batch (medians), largest error against the sequential answer")
    spent_on = {(row["batch"], row["strategy"]): row["seconds"] for row in rows}
    shown = ["plan", "jacobi", "paper", "sliding", SEQUENTIAL, "reference"]
    ratios = [{"batch": b, **{n: spent_on[b, SEQUENTIAL] / spent_on[b, n] for n in shown}} for b in settings.batches]
    title = "Speed-up over the sequential sampler"
    figure = plot_curves(curves_of(ratios, "batch", shown), title=title, x="batch", y="times faster", log="xy")
    lab.figure("race", figure, caption="Speed-up against batch size; 1 is the break-even with our sequential sampler")
    return plans[0]


def strategies(flow: gen.TarFlow, tough: int, chosen: gen.SamplingPlan) -> dict[str, Any]:
    """The fixed strategies and the plan; ``paper`` is GS-Jacobi on the tough block, Jacobi on the others."""
    places = range(len(flow.blocks))

    def mixed(on_tough: str, on_rest: str) -> list[str]:
        return [on_tough if place == tough else on_rest for place in places]

    window = f"sliding-{max(2, flow.tokens // 4)}"
    return {
        SEQUENTIAL: SEQUENTIAL, "jacobi": "jacobi", "frozen": "frozen-16", "modules": "gs-jacobi-8", "sliding": window,
        "paper": mixed("gs-jacobi-8", "jacobi"), "selective": [SEQUENTIAL if p == 0 else "jacobi" for p in places],
        "window on tough": mixed(window, "frozen-16"), "sequential on tough": mixed(SEQUENTIAL, "jacobi"),
        "plan": chosen.strategies,
    }  # fmt: skip


def released(maps: Maps, tough: int, z: Tensor) -> Tensor:
    """The released solver with its own stop, as far as it goes: 8 modules or 1, 13 sweeps each."""
    for place, one_map in enumerate(maps):
        z, _ = gen.released_gs_jacobi(one_map, z, modules=8 if place == tough else 1, max_sweeps=13)
    return z


def tolerance(settings: Settings, maps: Maps, batches: Sequence[Tensor], arm: Any) -> tuple[float, float]:
    """The tolerance, halved until the answers err by at most ERROR; and their largest error."""
    tol, error = 2 * settings.tol, 1.0
    exact = [gen.invert_autoregressive(maps, z, SEQUENTIAL, tol=tol)[0] for z in batches]
    while error > ERROR and tol > 1e-5:
        tol /= 2
        answers = [gen.invert_autoregressive(maps, z, arm, tol=tol)[0] for z in batches]
        error = max(float((x - y).abs().max()) for x, y in zip(answers, exact, strict=True))
    return tol, error


def in_turn(batches: Sequence[Tensor], call: Callable[[Tensor], Any]) -> Call:
    """A call on the next of the noises each time."""
    turn = itertools.cycle(batches)
    return lambda: call(next(turn))


def inverter(maps: Maps, batches: Sequence[Tensor], arm: Any, tol: float) -> Call:
    return in_turn(batches, partial(gen.invert_autoregressive, maps, strategies=arm, tol=tol))


def clocked(call: Call, repeats: int) -> tuple[float, Any]:
    """Median seconds, and the last answer."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        answer = call()
        times.append(time.perf_counter() - begin)
    return median(times), answer


def speed_ups(
    lab: Lab, settings: Settings, flow: gen.TarFlow, plan: gen.SamplingPlan, generator: torch.Generator
) -> None:
    """Single images: the plan against our sequential sampler and the authors'; with a label, without, and guided."""
    cases: dict[str, dict[str, Any]] = {"": {}, "-unconditional": {"label": None}, "-guided": {"guidance": GUIDANCE}}
    with lab.stage("single images", total=len(cases)) as stage:
        for case, options in cases.items():
            options = {"label": labels(flow, 1), **options}
            maps, batches = flow.inverse_maps(**options), noises(flow, settings.draws, 1, generator)
            chosen = gen.plan_sampling(maps, noises(flow, 3, 1, generator), tol=settings.tol) if case else plan
            tol, error = tolerance(settings, maps, batches, chosen.strategies)
            details: Row = {"tol": tol, "error": error, "strategies": ", ".join(chosen.strategies)}
            peers = {
                "sequential": inverter(maps, batches, SEQUENTIAL, tol),
                "reference": in_turn(batches, partial(gen.reference_sequential, flow, **options)),
            }
            for peer, call in peers.items():
                ours = inverter(maps, batches, chosen.strategies, tol)
                lab.time(f"plan-over-{peer}{case}", ours, call, pairs=3 * settings.draws - 3, **details)
            stage.advance(case=case or "label")


def image_features(settings: Settings, images: Tensor) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Features for the Frechet distance: the shipped classifier's on Fashion-MNIST, else principal components."""
    if settings.images == "fashion-mnist":
        from anabranch.worlds import load_fashion_classifier

        return "FFD", load_fashion_classifier().features
    components = gen.PatchPCA.fit(images, min(16, images[0].numel()), images.shape[-1])
    return "principal components", lambda x: components.encode(x).flatten(1)


def quality(lab: Lab, settings: Settings, model: Model, single: Planned, generator: torch.Generator) -> None:
    """Frechet distance of the plan's images to sequential ones, over that of two independent sequential sets."""
    (flow, (test, _)), (chosen, tol), n = model, single, settings.samples
    kind, features = image_features(settings, test)
    of: dict[str, Tensor] = {}
    with lab.stage("images", total=3 * n) as stage:
        for name, arm, batch in (("one", SEQUENTIAL, 64), ("two", SEQUENTIAL, 64), ("plan", chosen.strategies, 1)):
            parts = []
            for label in torch.split(labels(flow, n), batch):
                parts.append(flow.sample(len(label), label, strategies=arm, tol=tol, generator=generator))
                stage.advance(len(label), set=name)
            of[name] = features(torch.cat(parts))
    own, base = frechet_distance(of["plan"], of["one"]), frechet_distance(of["two"], of["one"])
    lab.measure("frechet-ratio", own / base, scale="log", n=n, features=kind, plan=own, sequential=base)
    lab.measure("frechet-to-data", frechet_distance(of["plan"], features(test[:n])), n=n, features=kind)

    (z,), label, pair = noises(flow, 1, 10, generator), labels(flow, 10), []
    for arm in (SEQUENTIAL, "jacobi"):
        x, _ = gen.invert_autoregressive(flow.inverse_maps(label), z, arm, tol=tol)
        pair.append(flow.denoise(flow.unpatchify(x), label, settings.noise))
    figure, axes = new_figure(3, 10, figsize=(9, 3.2))
    rows = ((pair[0], "sequential"), (pair[1], "Jacobi"), (1000 * (pair[1] - pair[0]).abs() - 1, "difference x 1000"))
    for line, (images, title) in zip(axes, rows, strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow((image.mean(0).clamp(-1, 1) + 1) / 2, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_title(title, loc="left", fontsize=9)
    lab.figure("samples", figure, caption="The same noise token by token and by sweeps, denoised; difference x 1000")
