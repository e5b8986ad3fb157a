"""Does a pipeline of processes give the gradient of one, how fast, in how much memory, and what would the paper's sizes take?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import anabranch.distributed as pp
from anabranch.distributed import LocalPipeline, Ranks
from anabranch.distributed import TrainingBench as Bench
from anabranch.lab import Lab, time_pairs
from anabranch.lab.figures import curves_of, new_figure, plot_curves, plot_gantt
from anabranch.lab.places import data_folder
from anabranch.papers.gpipe import AMOEBANET, CAPACITY, TORCHGPIPE, TRANSFORMER, Settings
from anabranch.simulation import TransformerShape
from anabranch.simulation import balance as even_cut
from anabranch.worlds import SMOLLM2_GGUF

GIB, MIB = 2**30, 2**20
STAGES = 2  # real ones: a process on each core
TRANSFORMER_L = TransformerShape(
    name="Transformer-L", layers=1, hidden=2048, heads=32, kv_heads=32, intermediate=8192, vocabulary=32000, gated=False
)
Row = dict[str, Any]
Batch = tuple[Tensor, Tensor]
Layers = Callable[[], list[nn.Module]]


@pp.torch_threads(1)  # as everywhere here: more would wait for each other where cores are shared
def experiment(lab: Lab, settings: Settings) -> None:
    data = training_data(settings, lab.seed)
    first = (data[0][: settings.batch].clone(), data[1][: settings.batch].clone())
    pp.prepare_ranks((__name__,))  # while the simulator works
    tables(lab, settings)
    capacity(lab, settings)
    memory(lab, settings, first)
    depth(lab, settings, first)
    with Ranks(STAGES) as ranks:
        exactness(lab, ranks)
        cut = even_cut([0.05] + [1.0] * settings.blocks + [0.05], STAGES)  # by arithmetic, not by a clock
        bench = Bench(ranks, make_transformer(settings), *data, batch=settings.batch, balance=cut, seed=lab.seed)
        training(lab, settings, bench)
        speed(lab, settings, bench)
        timelines(lab, settings, bench)
        planning(lab, settings, ranks, bench)
        batch_norm(lab, settings, ranks, data)
        if settings.fine_tune_steps:
            fine_tuning(lab, settings, ranks)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What a run is made of, for ``--dry-run``."""
    with torch.device("meta"):
        layers = make_transformer(settings)()
        count = sum(p.numel() for layer in layers for p in layer.parameters())
    return [("transformer", f"{len(layers)} layers, {count:,} parameters"), ("processes", str(STAGES))]


def training_data(settings: Settings, seed: int, split: str = "train") -> Batch:
    """Loss curves of one process and of pipelines coincide."""
    generator = torch.Generator().manual_seed(seed)
    if settings.fashion:
        from anabranch.worlds import fashion_tensors  # needs more than this paper

        images, labels = fashion_tensors(data_folder(), split)
    else:
        images = torch.randn(256, 1, 28, 28, generator=generator)
        labels = torch.randint(10, (256,), generator=generator)
    rows = torch.randperm(len(images), generator=generator)[: settings.batch * settings.steps]
    return images[rows], labels[rows]


def make_transformer(settings: Settings) -> Layers:
    return deep_transformer(settings.width, settings.blocks)


def deep_transformer(width: int, blocks: int) -> Layers:
    return partial(pp.vision_transformer_layers, blocks=blocks, width=width)


# The gradient is that of the whole mini-batch, whatever the stages and micro-batches.


def exact_layers() -> list[nn.Module]:
    return [layer.double() for layer in pp.vision_transformer_layers(blocks=2, width=16, patch=7)]


def exactness(lab: Lab, ranks: Ranks) -> None:
    """Eleven samples: no number of micro-batches but 1 divides them."""
    generator = torch.Generator().manual_seed(lab.seed)
    x = torch.randn(11, 1, 28, 28, dtype=torch.float64, generator=generator)
    y = torch.randint(10, (11,), generator=generator)
    torch.manual_seed(lab.seed)
    layers, bench = exact_layers(), Bench(ranks, exact_layers, x, y, seed=lab.seed)
    check = partial(pp.gradient_error, layers, x, y, cross_entropy)
    ways = {"gpipe": ("gpipe", "never"), "gpipe-recompute": ("gpipe", "except_last"), "1f1b": ("1f1b", "never")}
    rows: list[Row] = []
    with lab.stage("exactness", total=5) as stage:
        wanted = bench.gradients("one process")
        for m in (1, 2, 3, 5, 8):
            for k in (1, 2, 3, 4):
                found = {w: check(stages=k, micro_batches=m, schedule=s, checkpoint=c) for w, (s, c) in ways.items()}
                rows.append({"K": k, "M": m, "processes": 1, **found})
            found = {way: pp.relative_gradient_error(bench.gradients(way, m), wanted) for way in ways}
            rows.append({"K": STAGES, "M": m, "processes": STAGES, **found})
            stage.advance(M=m)
    lab.table("exactness", rows, caption="Largest relative error of the gradient of 11 samples, float64")
    lab.measure("gradient-error", float(np.max([[row[way] for way in ways] for row in rows])))  # max() may skip a NaN


def training(lab: Lab, settings: Settings, bench: Bench) -> None:
    most = max(m for m in settings.micro_batches if m <= 8)
    arms = (("one process", 1), ("gpipe-recompute", most), ("1f1b", most))
    found: dict[str, list[float]] = {}
    with lab.stage("training", total=len(arms)) as stage:
        for arm, m in arms:
            found[arm] = bench.train(arm, m, steps=settings.steps).losses
            stage.advance(arm=arm, loss=found[arm][-1])
    reference = np.array(found["one process"])
    lab.measure("loss-curve-difference", float(np.max(np.abs([np.array(v) - reference for v in found.values()]))))
    lab.measure("final-loss", float(reference[-5:].mean()))
    curves = {arm: (range(len(losses)), losses) for arm, losses in found.items()}
    figure = plot_curves(curves, title="The same training", x="step", y="loss")
    lab.figure("losses", figure, caption="Training loss of one process and of two stages, one on top of the other")


def batch_norm(lab: Lab, settings: Settings, ranks: Ranks, data: Batch) -> None:
    """A residual network: batch norm couples the samples of a micro-batch, so nothing is exact here."""
    m, make = settings.closest(4), partial(pp.residual_network_layers, blocks=max(2, settings.blocks // 2), width=16)
    x, y = training_data(settings, lab.seed + 1, "test")
    arms = {
        "one process": ("one process", 1, "deferred"),
        f"M = {m}, statistics of the mini-batch": ("gpipe", m, "deferred"),
        f"M = {m}, statistics of every micro-batch": ("gpipe", m, "micro"),
    }
    rows, curves, steps = list[Row](), {}, settings.norm_steps
    with lab.stage("batch norm", total=len(arms)) as stage:
        for name, (arm, parts, how) in arms.items():
            bench = Bench(ranks, make, *data, batch=settings.batch, seed=lab.seed, batchnorm=how)
            run = bench.train(arm, parts, steps=steps, with_state=True)
            model = nn.Sequential(*make()).eval()
            model.load_state_dict(run.state)
            with torch.no_grad():
                accuracy = float(
                    (torch.cat([model(part) for part in x.chunk(1 + len(x) // 500)]).argmax(1) == y).double().mean()
                )
            curves[name] = (range(steps), run.losses)
            rows.append({"arm": name, "loss of the last 5": float(np.mean(run.losses[-5:])), "accuracy": accuracy})
            stage.advance(arm=name, accuracy=accuracy)
    for row in rows:
        row["accuracy over one process"] = row["accuracy"] - rows[0]["accuracy"]
        row["exact"] = "reference" if row is rows[0] else "no: normalized by micro-batches"
    apart = np.abs(np.array(curves[rows[1]["arm"]][1]) - np.array(curves[rows[0]["arm"]][1]))
    lab.table("batch-norm", rows, caption=f"Residual network after {steps} steps: accuracy with the running statistics")
    lab.measure("batch-norm-accuracy-difference", abs(rows[1]["accuracy over one process"]))
    lab.measure("batch-norm-loss-difference", float(apart.mean()))
    figure = plot_curves(curves, title="With batch norm", x="step", y="loss")
    lab.figure("batch-norm", figure, caption="Training loss of a residual network: alike, not the same")


def speed(lab: Lab, settings: Settings, bench: Bench) -> None:
    """Against the number of micro-batches."""
    once = partial(partial, bench.run)
    m_naive, m_single = settings.closest(8), settings.closest(16)
    arms = [("one process", 1), ("naive", 1), ("ddp", 1), *(("gpipe", m) for m in settings.micro_batches)]
    arms += [(arm, m_naive) for arm in ("1f1b", "gpipe-recompute", "torch gpipe", "torch 1f1b")]
    rows: list[Row] = []
    with lab.stage("speed", total=len(arms) + 3) as stage:
        for peer, m, peer_m in (("one process", m_single, 1), ("naive", m_naive, 1), ("torch gpipe", m_naive, m_naive)):
            name = f"{peer.removesuffix(' gpipe').replace(' ', '-')}-over-gpipe"
            lab.time(name, once("gpipe", m), once(peer, peer_m), pairs=settings.pairs, M=m)
            stage.advance(peer=peer)
        for arm, m in arms:
            timing = time_pairs(once(arm, m), pairs=3)
            least, most = min(timing.ours_s), max(timing.ours_s)
            rows.append({"arm": arm, "M": m, "seconds": timing.value, "least": least, "most": most})
            stage.advance(arm=arm, M=m)
    single, staged = rows[0]["seconds"], ("gpipe", "1f1b", "torch gpipe", "torch 1f1b", "naive")
    for row in rows:
        row["speed-up"] = single / row["seconds"]
        row["formula"] = STAGES * row["M"] / (row["M"] + STAGES - 1) if row["arm"] in staged else None
    lab.table("speed", rows, caption="Seconds of a step (median, least and most of 3) and speed-up over one process")
    mine = [row for row in rows if row["arm"] == "gpipe"]
    curves = curves_of(mine, "M", ["formula", "speed-up"])
    figure = plot_curves(curves, title="Two stages", x="micro-batches", y="over one process", log="x", from_zero=True)
    lab.figure("speed-up", figure, caption="Speed-up of two processes against the number of micro-batches")


def timelines(lab: Lab, settings: Settings, bench: Bench) -> None:
    """Bubbles by the clocks of both processes, beside the simulator with measured costs.

    Of ten steps the fastest is read, in which other programs disturbed least; how far they spread is told.
    """
    rows: list[Row] = []
    with lab.stage("timelines", total=2) as stage:
        for m in sorted({settings.closest(4), settings.closest(8)}):
            ran = bench.timelines("gpipe", m, repeats=10 if settings.pairs > 3 else 3)
            told = pp.simulate_measured(ran)
            best = min(ran, key=lambda one: one.step_s)
            rows.append(
                {
                    "M": m, "formula": (STAGES - 1) / (m + STAGES - 1), "bubble": best.bubble_fraction,
                    "least": min(one.bubble_fraction for one in ran), "most": max(one.bubble_fraction for one in ran),
                    "simulated bubble": told.bubble_fraction, "seconds": best.step_s, "simulated seconds": told.step_s,
                    "median seconds": median(one.step_s for one in ran),
                }
            )  # fmt: skip
            stage.advance(M=m)
    lab.table("bubbles", rows, caption="Idle share of the fastest of ten steps, least and most of all, and simulated")
    lab.measure("bubble-over-formula", max(row["bubble"] / row["formula"] for row in rows), unit="x", scale="log")
    over = [row["median seconds"] / row["simulated seconds"] for row in rows]
    lab.measure("measured-over-simulated-step", max(over, key=lambda r: abs(np.log(r))), unit="x", scale="log")
    figure, axes = new_figure(2, 1, figsize=(8.2, 5.4))
    plot_gantt(best.bars(), title=f"Measured, M = {rows[-1]['M']}", x="ms", unit=1e-3, axes=axes[0])
    plot_gantt(told.bars(), title="Simulated", x="ms", unit=1e-3, axes=axes[1])
    lab.figure("gantt", figure, caption="One step on two processes, measured and simulated")


def planning(lab: Lab, settings: Settings, ranks: Ranks, bench: Bench) -> None:
    """The best plan without stages, and the best of two stages for some of the numbers of micro-batches that plans may have."""
    sizes = sorted({max(1, settings.batch // m) for m in (1, 2, 4, 8, 16)})  # those of the plans, none interpolated
    rows: list[Row] = []
    with lab.stage("planning", total=6) as stage:
        profiles = bench.profiles(sizes, repeats=5)
        link, ring = pp.measure_link(ranks), pp.measure_averaging(ranks, large_bytes=int(4 * profiles[0].params.sum()))
        plans = pp.plan_pipeline(
            profiles, devices=STAGES, memory_bytes=2.0**60, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s,
            latency_s=link.latency_s, batch=settings.batch, averaging=ring,
        )  # fmt: skip
        stage.advance(plans=len(plans))
        asked = [(1, 1, "never"), *((STAGES, m, "never") for m in (4, 8, 16)), (STAGES, 8, "except_last")]
        chosen = list(dict.fromkeys(pp.nearest_plan(plans, *kind) for kind in asked))
        for plan, done in zip(chosen, bench.outcomes(chosen, repeats=7), strict=True):
            row = {"arm": plan.arm, "M": plan.micro_batches, "balance": "+".join(map(str, plan.balance))}
            row |= {"predicted seconds": plan.step_s, "seconds": done.step_s}
            row |= {"least": min(done.seconds), "most": max(done.seconds), "predicted bytes": max(plan.memory_bytes)}
            rows.append({**row, "bytes": max(done.memory_bytes)})
            stage.advance(M=plan.micro_batches)
    costs = profiles[-1].forward_s + profiles[-1].backward_s
    caption = f"Slowest stage, layers as measured at {sizes[-1]} samples: two objectives"
    lab.table("cuts", pp.compare_cuts(costs, range(2, min(8, len(costs)) + 1)), caption=caption)
    lab.table("plans", rows, caption=f"Plans from layers profiled at {sizes} samples, and carried out (median of 7)")
    for name, unit in (("step", "seconds"), ("memory", "bytes")):
        error = pp.prediction_error([row[f"predicted {unit}"] for row in rows], [row[unit] for row in rows])
        lab.measure(f"plan-{name}-error", error)


def memory(lab: Lab, settings: Settings, data: Batch) -> None:
    """What autograd really keeps."""
    m = min(8, settings.batch)
    even = settings.batch // m * m  # equal micro-batches, as the model of memory has them
    data = (data[0][:even].clone(), data[1][:even].clone())
    rows, found, worst = list[Row](), dict[tuple[str, str], int](), list[float]()
    models: dict[str, Layers] = {"transformer": make_transformer(settings)}
    models["residual"] = partial(pp.residual_network_layers, blocks=settings.blocks, width=16)
    with lab.stage("memory", total=6) as stage:
        for kind, make in models.items():
            torch.manual_seed(0)
            layers = make()
            cut = even_cut([1.0] * len(layers), STAGES)
            micro = [t[: settings.batch // m] for t in data]
            profile = pp.profile_layers(layers, micro[0], target=micro[1], loss_fn=cross_entropy, repeats=1)
            for checkpoint in ("never", "except_last", "always"):
                pipeline = LocalPipeline(layers, cut, micro_batches=m, checkpoint=checkpoint)
                kept = pipeline.kept_bytes(*data, cross_entropy)
                told = pp.activation_memory(pp.stage_costs(profile, cut), pipeline.schedule)
                found[kind, checkpoint] = max(kept)
                worst.append(pp.prediction_error(told.tolist(), kept))
                row = {"model": kind, "recompute": checkpoint, "measured": max(kept)}
                rows.append({**row, "predicted": float(told.max())})
                stage.advance(model=kind, recompute=checkpoint)
    lab.table("memory", rows, caption=f"Bytes that the fuller of two stages keeps for its backwards, {m} micro-batches")
    lab.measure("memory-model-error", float(np.max(worst)))
    ratio = found["transformer", "always"] / found["transformer", "never"]
    lab.measure("activation-bytes-recomputed-over-kept", ratio, unit="x", scale="log")


def depth(lab: Lab, settings: Settings, data: Batch) -> None:
    """The deepest transformer that processes with a limit of memory really train, and what the model of memory says."""
    (x, y), deep = (t[:32].clone() for t in data), partial(deep_transformer, 64)
    of = partial(pp.depth_within, deep, x, y, limit_bytes=int(settings.cap_mib * MIB), loss_fn=cross_entropy)
    ways = ("never", "except_last", "always") if settings.pairs > 3 else ("always",)
    rows: list[Row] = []
    with lab.stage("depth", total=1 + len(ways)) as stage:
        for k, m, way in [(1, 1, "never"), *((STAGES, min(8, len(x)), way) for way in ways)]:
            found = of(stages=k, micro_batches=m, checkpoint=way, tolerance=0.1 if settings.pairs > 3 else 1.0)
            row: Row = {"stages": k, "recompute": way, "predicted": found.predicted, "trained": found.measured}
            rows.append({**row, "failed": found.failed, "in": found.reason.partition(":")[0]})
            stage.advance(recompute=way)
    lab.table(
        "depth", rows, caption=f"Most transformer blocks, {settings.cap_mib:g} MiB a process: computed, and trained"
    )
    trained = [max(1, row["trained"]) for row in rows]
    lab.measure("depth-on-two-stages-over-one-device", trained[-1] / trained[0], unit="x", scale="log")
    lab.measure("depth-prediction-error", pp.prediction_error([row["predicted"] for row in rows], trained))


def capacity(lab: Lab, settings: Settings) -> None:
    """Table 1, Transformer-L: 16 GiB, 32 sequences of 1024 tokens (one for the naive device), float32, 12 bytes a parameter."""
    one = pp.profile_transformer(TRANSFORMER_L, sequence=1024, flops_per_s=1e13, dtype_bytes=4, scores=True)
    rows: list[Row] = []
    with lab.stage("capacity", total=len(CAPACITY)) as stage:
        for k, (paper_layers, paper_billions) in CAPACITY.items():
            if k not in (*range(1 + max(settings.simulated_stages)), 128):
                continue
            arm = (1, 1, "never") if k == 0 else (k, 32, "always")
            most = pp.most_layers(
                partial(one.repeated, 1), stages=arm[0], micro_batches=arm[1], checkpoint=arm[2], samples=32 if k else 1,
                memory_bytes=16 * GIB, bytes_per_parameter=12.0,
            )  # fmt: skip
            ours = float(one.repeated(1, most).params.sum()) / 1e9
            rows.append(
                {
                    "stages": k or "naive", "layers": most, "billions": ours, "paper layers": paper_layers,
                    "paper billions": paper_billions, "paper GiB at 12 bytes": paper_billions * 12e9 / GIB,
                }
            )  # fmt: skip
            stage.advance(stages=k)
    lab.table("capacity", rows, caption="Largest Transformer-L by our model of memory, beside Table 1 of the paper")
    lab.measure("transformer-capacity-128-stages", rows[-1]["billions"] / rows[0]["billions"], unit="x", scale="log")


def tables(lab: Lab, settings: Settings) -> None:
    """Tables 2 and 3: throughput over 2 stages and 1 micro-batch, by formula and by the simulator of even stages."""
    rows: list[Row] = []
    with lab.stage("the paper's tables", total=len(settings.simulated_stages)) as stage:
        base = pp.even_step_s(2, 1)
        for k in settings.simulated_stages:
            for m in (1, 4, 32):
                rows.append(
                    {
                        "K": k, "M": m, "formula": k * m / (m + k - 1), "ours": base / pp.even_step_s(k, m),
                        "ours, recomputing": base / pp.even_step_s(k, m, checkpoint="always"),
                        "paper, Transformer-48": TRANSFORMER.get((k, m)), "paper, AmoebaNet": AMOEBANET.get((k, m)),
                        "torchgpipe, AmoebaNet": TORCHGPIPE.get((k, m)),
                    }
                )  # fmt: skip
            stage.advance(K=k)
    lab.table("throughput", rows, caption="Throughput over K = 2, M = 1: formula, simulated, published")
    for k, m in ((8, 32), (8, 4)):
        row = next(row for row in rows if row["K"] == k and row["M"] == m)
        lab.measure(f"throughput-k{k}-m{m}", row["ours"], unit="x", published=row["paper, Transformer-48"])
    rows = [row for k in (2, 4, 8) for row in pp.compare_schedules(k, 32)]
    lab.table("schedules", rows, caption="Idle share of a step by schedule; F, input and weight gradient take as long")
    bound, ms = {}, [2**i for i in range(8)]
    for k in settings.simulated_stages:
        bubbles = [pp.simulate_pipeline(pp.fill_drain(k, m, checkpoint="never"), 1.0, 2.0).bubble_fraction for m in ms]
        bound[f"K = {k}"] = ([m / k for m in ms], bubbles)
    figure = plot_curves(bound, title="Bubbles", x="micro-batches over stages, M / K", y="idle share", log="x")
    lab.figure("bubbles", figure, caption="Idle share of a step: (K-1)/(M+K-1)")


# A language model with tied embeddings, fine-tuned over two stages.


def layers_of(loaded: Any) -> list[nn.Module]:
    return pp.causal_layers(loaded.model.requires_grad_(True))[0]


def tokens_of(loaded: Any, texts: Sequence[str]) -> Any:
    rows = loaded.tokenizer(list(texts), return_tensors="pt", padding="max_length", truncation=True, max_length=32)
    return rows["input_ids"]


def fine_tuning(lab: Lab, settings: Settings, ranks: Ranks) -> None:
    from anabranch.language import load_causal  # takes a second

    root, steps = data_folder(), settings.fine_tune_steps
    caption = "Loss of SmolLM2-135M, embeddings tied over two stages"
    if not SMOLLM2_GGUF.here(root):
        left_out = f"left out: the data set {SMOLLM2_GGUF.name} is not here"
        lab.table("fine-tuning", [{"step": "none", "one process": left_out, "two stages": left_out}], caption=caption)
        return
    with lab.stage("fine-tuning"):
        loaded = ranks.keep(load_causal, SMOLLM2_GGUF.folder(root) / SMOLLM2_GGUF.files[0].name)
        tokens = ranks.call(tokens_of, loaded, TEXTS)[0]
        bench = Bench(ranks, ranks.keep(layers_of, loaded), tokens, tokens, loss_fn=pp.next_token_loss)
        sgd = partial(torch.optim.SGD, lr=1e-2)
        alone = bench.train("one process", steps=steps, make_optimizer=sgd).losses
        piped = bench.train("gpipe-recompute", len(TEXTS), steps=steps, make_optimizer=sgd).losses
    rows = [{"step": i, "one process": a, "two stages": b} for i, (a, b) in enumerate(zip(alone, piped, strict=True))]
    lab.table("fine-tuning", rows, caption=caption)
    lab.measure("fine-tuning-difference", float(np.max(np.abs(np.array(alone) - np.array(piped)))))


TEXTS = (
    "A river that divides into branches which meet again further down is called anabranching.",
    "The assembly line moves the work to the people, and every station does one thing.",
    "All forwards come first, then all backwards, and only then are the weights changed.",
    "What does not fit on one machine is cut where little has to cross the cut.",
)
