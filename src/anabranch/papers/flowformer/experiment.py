"""Is Flow-Attention linear, and as good as softmax? Time and memory, series, ListOps, pixels, bytes of text, decoding, flows."""

from __future__ import annotations

import itertools
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

import anabranch.attention as att
from anabranch.generative import fit
from anabranch.lab import Lab
from anabranch.lab.figures import COLORS, curves_of, new_figure, plot_curves
from anabranch.lab.places import data_folder
from anabranch.papers.flowformer import Settings

Row = dict[str, Any]
Heads = tuple[Tensor, Tensor, Tensor]
Part = tuple[Tensor, Tensor, Tensor | None]  # inputs, classes, mask

CLAMPED, ABLATIONS = "flow, clamped", ("flow, no competition", "flow, no allocation")
ARMS: dict[str, dict[str, Any]] = {
    "flow": {"attention": "flow"},
    "softmax": {"attention": "softmax"},
    "linear": {"attention": "linear"},
    "performer": {"attention": "performer"},
    "flow, no competition": {"attention": "flow", "options": {"competition": False}},
    "flow, no allocation": {"attention": "flow", "options": {"allocation": False}},
    CLAMPED: {"attention": "flow", "options": dict(att.flow_preset("core"))},
}
TASKS: dict[str, tuple[str, ...]] = {  # who takes part
    "series": tuple(ARMS),
    "listops": tuple(ARMS),
    "pixels": tuple(name for name in ARMS if name != CLAMPED),
    "bytes": tuple(name for name in ARMS if name != "performer"),
}
WINDOW, TEST_WINDOWS, CHECKS = 512, 128, 3  # bytes; windows on which bits are counted; looks at the score in training


def experiment(lab: Lab, settings: Settings) -> None:
    threads = torch.get_num_threads()
    _ = [read_series_set(name, lab.seed) for name in settings.series]  # what is missing is said before anything is done
    conservation(lab)
    scaling(lab, settings)
    causal(lab, settings)
    decoding(lab, settings)
    scores = {"series": series(lab, settings)} | training(lab, settings)
    torch.set_num_threads(threads)  # training may have chosen another number
    ablations(lab, scores)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What a run is made of, for ``--dry-run``."""
    with torch.device("meta"):
        encoder = att.FlowformerEncoder(10, vocabulary=17, max_length=301, width=settings.width, depth=2, heads=4)
    size = sum(parameter.numel() for parameter in encoder.parameters())
    return [
        ("lengths", ", ".join(f"{n:,}" for n in settings.lengths)),
        ("arms", "; ".join(ARMS)),
        ("ListOps", f"{settings.listops:,} expressions, {settings.listops_steps:,} steps, {size:,} parameters"),
        ("series", f"{', '.join(settings.series)}: {settings.epochs} epochs"),
    ]


# Exactness, time and memory.


def draw_heads(n: int, seed: int, heads: int = 8, width: int = 64) -> Heads:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, heads, n, width, generator=generator) for _ in range(3))
    return q, k, v


def conservation(lab: Lab) -> None:
    """How far the flows are from conserved and the linear form from the explicit matrix; what the clamp does."""
    q, k, v = (x.double() for x in draw_heads(50, lab.seed, heads=4, width=16))
    _, flows = att.flow_attention(q, k, v, eps=0.0, return_flows=True)
    lab.measure("conservation-error", float((flows.conserved_outgoing.sum(-1) - 50).abs().max()))
    error = att.flow_attention(q, k, v) - att.flow_attention_matrix(q, k) @ v
    lab.measure("matrix-error", float(error.abs().max()))
    _, clamped = att.flow_attention(q, k, v, **att.flow_preset("core"), return_flows=True)
    lab.measure("clamped-share", float((flows.conserved_outgoing > 1).double().mean()))
    figure, axes = new_figure()
    wanted = flows.conserved_outgoing.flatten()
    for index, (name, found) in enumerate({"paper": flows, "core, clamped to [-1, 1]": clamped}.items()):
        axes.plot(wanted, found.competition.flatten(), ".", color=COLORS[index], label=name)
    axes.set(xlabel="conserved outgoing flow of a source", ylabel="competition")
    axes.legend(frameon=False)
    lab.figure("clamp", figure, caption="The clamp to at most 1, the mean, makes all sources above the mean equal")


def call(attend: Callable[..., Tensor], inputs: Heads, is_causal: bool, training: bool = False) -> None:
    """One forward pass, or one with its gradients."""
    if training:
        leaves = [x.detach().requires_grad_() for x in inputs]
        torch.autograd.grad(attend(*leaves, is_causal=is_causal).sum(), leaves)
    else:
        with torch.no_grad():
            attend(*inputs, is_causal=is_causal)


def scaling(lab: Lab, settings: Settings) -> None:
    """Seconds of a call against the length, softmax as far as its time allows."""
    rows_of = att.performer_projection(64, 256, generator=torch.Generator().manual_seed(lab.seed))
    arms: dict[str, Callable[..., Tensor]] = {
        "flow": att.flow_attention,
        "softmax": att.softmax_attention,
        "linear": att.linear_attention,
        "performer": partial(att.performer_attention, projection=rows_of),
    }
    rows: list[Row] = []
    with lab.stage("time against length", total=4 * len(settings.lengths)) as stage:
        for form, kind in itertools.product(("both ways", "causal"), ("forward", "training")):
            last = dict.fromkeys(arms, (1, 0.0))  # length and seconds, of which the next are foreseen
            for n in settings.lengths if kind == "forward" else [n for n in settings.lengths if n <= 16_384]:
                inputs = draw_heads(n, lab.seed)
                row: Row = {"form": form, "pass": kind, "tokens": n}
                for name, attend in arms.items():
                    before, seconds = last[name]
                    if seconds * (n / before) ** (2 if name == "softmax" else 1) <= settings.softmax_seconds:
                        work = partial(call, attend, inputs, form == "causal", kind == "training")
                        row[name] = att.median_seconds(work)
                        last[name] = (n, row[name])
                rows.append(row)
                stage.advance(tokens=n)
        ends = [row for row in rows if row["form"] == "both ways" and row["pass"] == "forward"][-3:]
        slope = np.polyfit(np.log([r["tokens"] for r in ends]), np.log([r["flow"] for r in ends]), 1)[0]
        lab.measure("flow-slope", float(slope), tokens=[row["tokens"] for row in ends])
        n = min(4096, settings.lengths[-1])
        inputs = draw_heads(n, lab.seed)
        ours, peer = (partial(call, attend, inputs, False) for attend in (arms["flow"], arms["softmax"]))
        lab.time("softmax-over-flow-4096", ours, peer, tokens=n)
    lab.table("scaling", rows, caption="Seconds of a call, 1 sequence, 8 heads of 64 (medians of 3)")
    figure, axes = new_figure(1, 2)
    for place, form in zip(axes, ("both ways", "causal"), strict=True):
        chosen = [row for row in rows if row["form"] == form and row["pass"] == "forward"]
        plot_curves(curves_of(chosen, "tokens", list(arms)), title=form, x="tokens", y="seconds", log="xy", axes=place)
    lab.figure("scaling", figure, caption="Forward pass against the length")


def causal(lab: Lab, settings: Settings) -> None:
    """The chunked causal form against cumulative sums of outer products, as the released code has it."""
    few, many = (min(n, settings.lengths[-1]) for n in (1024, 8192))
    with lab.stage("causal form", total=3) as stage:
        inputs = draw_heads(few, lab.seed)
        with torch.no_grad():
            gap = att.flow_attention_cumulative(*inputs) - att.flow_attention_causal(*inputs)
            lab.measure("causal-error", float(gap.abs().max()))
            ours, peer = partial(att.flow_attention_causal, *inputs), partial(att.flow_attention_cumulative, *inputs)
            lab.time("cumulative-over-causal", torch.no_grad()(ours), torch.no_grad()(peer), pairs=5, tokens=few)
        stage.advance()
        inputs = draw_heads(many, lab.seed)
        calls = [partial(call, f, inputs, True) for f in (att.flow_attention, att.softmax_attention)]
        lab.time("softmax-over-causal-8192", *calls, pairs=5, tokens=many)
        stage.advance()
        n = min(16_384, settings.lengths[-1])
        inputs = draw_heads(n, lab.seed)
        _, peak = att.peak_memory_bytes(partial(call, att.flow_attention, inputs, True))
        outer = n * 8 * 64 * 64 * 4  # bytes of the cumulative sums [n, d, e] of 8 heads
        lab.measure("causal-memory-share", peak / outer, tokens=n, ours_bytes=peak, outer_products_bytes=outer)


def decoding(lab: Lab, settings: Settings) -> None:
    """One token after a short and after a long context."""
    arms: dict[str, dict[int, Callable[[], object]]] = {"flow": {}, "softmax": {}}
    token = torch.randn(3, 1, 8, 64, generator=torch.Generator().manual_seed(lab.seed))
    with lab.stage("decoding"), torch.no_grad():
        for n in settings.contexts:
            q, k, v = draw_heads(n, lab.seed)
            _, state = att.flow_attention_causal(q, k, v, return_state=True)
            cache = att.KeyValueCache.empty(1, 8, 64, capacity=n + 50_000)
            cache.append(k, v)
            arms["flow"][n] = partial(repeated, att.flow_attention_step, (*token, state))
            arms["softmax"][n] = partial(repeated, att.softmax_attention_step, (*token, cache))
        few, many = settings.contexts
        lab.time("decode-many-over-few", arms["flow"][few], arms["flow"][many], pairs=7, contexts=settings.contexts)
        seconds = {
            n: {name: att.median_seconds(calls[n]) / 20 for name, calls in arms.items()} for n in settings.contexts
        }
    rows = [{"context": n, **of} for n, of in seconds.items()]
    lab.table("decoding", rows, caption="Seconds to decode one token, 8 heads of 64, against the tokens before it")


def repeated(call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    for _ in range(20):
        call(*arguments)


# Training: every arm with the same data, order, steps and seed.


def train_classifier(task: str, arm: str, settings: Settings, seed: int) -> dict[str, Any]:
    """One arm of a classification: its accuracy on the test along training, and how even its weights are."""
    ((x, y, mask), (x_test, y_test, mask_test)), sizes = read_task(task, settings, seed)
    steps, batch = sizes.pop("steps"), sizes.pop("batch")
    checks, lr = sizes.pop("checks", CHECKS), sizes.pop("lr", 3e-3)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = att.FlowformerEncoder(int(max(y.max(), y_test.max())) + 1, generator=generator, **sizes, **ARMS[arm])

    def accuracy() -> float:
        return float((att.classify(net, x_test, mask_test) == y_test).float().mean())

    curve = att.LearningCurve(steps // checks, accuracy)
    fit(
        net, att.SequenceClassification(x, y, batch, mask), steps=steps, generator=generator, lr=lr,
        warmup=steps // 10, weight_decay=0.01, ema=0.99, progress=curve.progress, threads="auto",
    )  # fmt: skip
    first: Any = net.blocks[0]
    some = (x_test[:8], None if mask_test is None else mask_test[:8])
    return {"points": np.array(curve.points), "evenness": float(att.row_evenness(net, first.mix, *some).mean())}


def read_task(task: str, settings: Settings, seed: int) -> tuple[list[Part], dict[str, Any]]:
    """Training and test part of a classification, and the sizes of its model."""
    sizes: dict[str, Any] = {"width": settings.width, "depth": 2, "heads": 4}
    if task == "listops":
        size = {"seed": seed, "max_depth": 6, "min_length": 100, "max_length": 300}
        train = att.listops(settings.listops, **size)
        test = att.listops(settings.listops // 20, first=settings.listops, **size)
        sizes |= {
            "vocabulary": len(att.LISTOPS_TOKENS),
            "max_length": 300,
            "steps": settings.listops_steps,
            "batch": 32,
        }
        return [(data.tokens, data.labels, data.mask) for data in (train, test)], sizes
    if task == "pixels":
        parts: list[Part] = [(*read_images(settings.images, split, seed), None) for split in ("train", "test")]
        sizes |= {"channels": 1, "max_length": parts[0][0].shape[1], "steps": settings.image_steps, "batch": 16}
        return parts, sizes
    found = read_series_set(task, seed)
    steps = settings.epochs * -(-len(found[0].labels) // 16)
    return [(data.values, data.labels, data.mask) for data in found], {
        "width": 2 * settings.width, "depth": 3, "heads": 8, "channels": found[0].values.shape[2], "dropout": 0.1, "lr": 1e-3,
        "max_length": max(data.values.shape[1] for data in found), "steps": steps, "batch": 16, "checks": settings.epochs,
    }  # fmt: skip


def read_series_set(name: str, seed: int) -> tuple[att.LabelledSeries, att.LabelledSeries]:
    """Training and test series: of the UEA archive, generated, or the user's NAME_TRAIN.ts and NAME_TEST.ts."""
    if name == "generated":
        both = att.tone_series(96, seed=seed)
        return both.rows(torch.arange(48)).normalized(), both.rows(torch.arange(48, 96)).normalized()
    folder, file = (Path(name).parent, Path(name).name) if "/" in name else (data_folder(), name)
    train = att.read_uea(file, "TRAIN", folder)
    return train.normalized(), att.read_uea(file, "TEST", folder, train.classes).normalized(train)


def read_images(images: str, split: str, seed: int) -> tuple[Tensor, Tensor]:
    """Pixels in order ``[N, pixels, 1]`` and classes."""
    if images == "generated":  # a bright row among noise
        draw = torch.Generator().manual_seed(seed + (split == "test"))
        labels = torch.randint(8, (64,), generator=draw)
        x = torch.rand(64, 8, 8, generator=draw) / 2
        x[torch.arange(64), labels] += 0.5
        return x.flatten(1).unsqueeze(-1), labels
    from anabranch.worlds import load_fashion_mnist

    pixels, classes = load_fashion_mnist(data_folder(), "train" if split == "train" else "test")
    count = len(classes) if split == "train" else 500
    return torch.from_numpy(pixels[:count]).flatten(1).unsqueeze(-1) / 255, torch.from_numpy(classes[:count]).long()


def trained_arms(lab: Lab, settings: Settings, task: str, arms: Sequence[str], build: Any) -> dict[str, Row]:
    """Every arm's result; settings that the task does not depend on have no part in what is kept."""
    fixed = replace(SMALLEST, **{name: getattr(settings, name) for name in ("width", *OF_TASK.get(task, ("epochs",)))})
    found: dict[str, Row] = {}
    with lab.stage(f"train: {task}", total=len(arms)) as stage:
        for arm in arms:
            found[arm] = lab.cached(f"{slug(task)}-{slug(arm)}", build, task, arm, fixed, lab.seed)
            stage.advance(arm=arm, score=round(float(found[arm]["points"][-1, 2]), 4))
    return found


OF_TASK = {
    "listops": ("listops", "listops_steps"), "pixels": ("images", "image_steps"), "bytes": ("text", "text_steps"),
}  # fmt: skip
SMALLEST = Settings((64, 64), 1.0, ("-",), 1, 20, 1, "generated", 1, "", 1, 8, (1, 2))


def slug(name: str) -> str:
    return name.lower().replace(",", "").replace(" ", "-").replace("/", "-").strip("-")


def series(lab: Lab, settings: Settings) -> dict[str, float]:
    """Series of several channels and different lengths: accuracy at the last epoch, and at the best on the test set."""
    rows: list[Row] = []
    for name in settings.series:
        arms = ("flow", "softmax", "linear") if rows else TASKS["series"]
        for arm, kept in trained_arms(lab, settings, name, arms, train_classifier).items():
            last, top = float(kept["points"][-1, 2]), float(kept["points"][:, 2].max())
            rows.append({"set": name, "arm": arm, "last epoch": last, "best epoch": top, "evenness": kept["evenness"]})
    lab.table("series", rows, caption="Accuracy; the best epoch, the paper's figure, is chosen on the test set")
    judged = [row for row in rows if row["set"] == settings.series[0]]
    flow, softmax = (row["best epoch"] for row in judged[:2])
    lab.measure("vowels-margin", min(flow - 0.98, flow - softmax + 0.01), best_flow=flow, best_softmax=softmax)
    return {row["arm"]: row["last epoch"] for row in judged}


def comparison(lab: Lab, settings: Settings, task: str) -> dict[str, Row]:
    """A task's score after equal steps, and after the seconds of training that the fastest arm took in all."""
    found = trained_arms(lab, settings, task, TASKS[task], train_text if task == "bytes" else train_classifier)
    seconds = min(kept["points"][-1, 1] for kept in found.values())
    rows = []
    for arm, kept in found.items():
        _, at, score = kept["points"].T
        last = lab.measure(f"{task}-{slug(arm)}", score[-1])
        times = {"at equal seconds": float(np.interp(seconds, at, score)), "seconds": at[-1]}
        rows.append({"arm": arm, "score": last, **times, "evenness": kept["evenness"]})
    what = "minus the bits per byte" if task == "bytes" else "accuracy"
    lab.table(task, rows, caption=f"{what} on the test after equal steps, and after {seconds:.0f} s of training")
    return found


def training(lab: Lab, settings: Settings) -> dict[str, dict[str, float]]:
    """ListOps, images a pixel a token, and bytes of text."""
    results = {task: comparison(lab, settings, task) for task in ("listops", "pixels", "bytes")}
    figure, axes = new_figure(1, 3)
    for place, (task, found) in zip(axes, results.items(), strict=True):
        curves = {arm: (kept["points"][:, 1].tolist(), kept["points"][:, 2].tolist()) for arm, kept in found.items()}
        plot_curves(curves, title=task, x="seconds of training", y="score", axes=place)
        place.legend(frameon=False, fontsize=6)
    lab.figure("training", figure, caption="Accuracy, or minus the bits per byte, on the test during training")
    scores = {task: {arm: float(kept["points"][-1, 2]) for arm, kept in of.items()} for task, of in results.items()}
    score = scores["listops"]
    lab.measure("listops-margin", min(score["flow"] - score["linear"] - 0.02, score["flow"] - score["softmax"] + 0.01))
    bits = {arm: -value for arm, value in scores["bytes"].items()}
    ratio = max(bits["flow"] / bits["linear"], bits["flow"] / (1.05 * bits["softmax"]))
    lab.measure("bits-ratio", ratio, scale="log", flow=bits["flow"], linear=bits["linear"], softmax=bits["softmax"])
    return scores | {"bytes": {arm: 2.0**-value for arm, value in bits.items()}}


# Text.


def read_text(folder: str) -> tuple[Tensor, Tensor]:
    """Bytes of Python files, every tenth file for the test; a name alone is looked for in the standard library."""
    found = sorted((Path(sysconfig.get_paths()["stdlib"]) / folder).rglob("*.py"))
    files = [path for path in found if "site-packages" not in path.parts]
    if len(files) < 10:
        raise ValueError(f"text={folder!r}: {len(files)} files .py, expected at least 10")
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for number, path in enumerate(files):
        parts[number % 10 == 9].append(path.read_bytes())
    train, test = (torch.from_numpy(np.frombuffer(b"".join(part), np.uint8).copy()) for part in parts)
    return train, test


def train_text(task: str, arm: str, settings: Settings, seed: int) -> dict[str, Any]:
    """One arm of the language model: minus the bits per byte of the test along training."""
    train, test = read_text(settings.text)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    width = settings.width + settings.width // 2
    net = att.FlowformerLM(256, width=width, depth=2, heads=4, generator=generator, **ARMS[arm])
    starts = torch.linspace(0, len(test) - WINDOW - 1, TEST_WINDOWS if settings.width > 16 else 4).long()
    spread = test[starts[:, None] + torch.arange(WINDOW)].flatten()  # from all over the test

    def score() -> float:
        return -float(att.next_token_bits(net, spread, length=WINDOW).mean())

    curve = att.LearningCurve(settings.text_steps // CHECKS, score)
    fit(
        net, att.NextToken(train, WINDOW, 8), steps=settings.text_steps, generator=generator, lr=3e-3, ema=0.99,
        warmup=settings.text_steps // 10, weight_decay=0.01, progress=curve.progress, threads="auto",
    )  # fmt: skip
    middle: Any = net.blocks[0]
    rows = spread[: 4 * WINDOW].reshape(-1, WINDOW).long()
    even = att.row_evenness(lambda x, mask: net(x), middle.mix, rows)
    return {"points": np.array(curve.points), "evenness": float(even[..., 1:].mean())}


def ablations(lab: Lab, scores: dict[str, dict[str, float]]) -> None:
    """The full form beside each ablation, on all tasks."""
    mean = {arm: fmean(of[arm] for of in scores.values()) for arm in ("flow", *ABLATIONS)}
    lost = [mean["flow"] - mean[arm] for arm in ABLATIONS]
    lab.measure("full-over-ablations", min(lost), no_competition=lost[0], no_allocation=lost[1])
    clamped = [task for task, of in scores.items() if CLAMPED in of]
    lab.measure("clamp-effect", fmean(scores[task][CLAMPED] - scores[task]["flow"] for task in clamped), tasks=clamped)
    rows = [{"arm": arm, **{task: of.get(arm) for task, of in scores.items()}} for arm in ARMS]
    lab.table("scores", rows, caption="Accuracy; of bytes the geometric mean of the next byte's probability")
    figure, axes = new_figure()
    tasks, width = list(scores), 0.8 / len(ARMS)
    for index, arm in enumerate(ARMS):
        places = [i + width * index for i, task in enumerate(tasks) if arm in scores[task]]
        heights = [of[arm] for of in scores.values() if arm in of]
        axes.bar(places, heights, width, label=arm, color=COLORS[index])
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(tasks))], tasks)
    axes.set_ylabel("accuracy, probability of the next byte")
    axes.legend(frameon=False, fontsize=8)
    lab.figure("scores", figure, caption="Every arm on every task")
