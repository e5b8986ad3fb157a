"""Does a pipeline of processes give the gradient of one, how fast, in how much memory, and what would the paper's sizes take?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

import anabranch.distributed as pp
from anabranch.distributed import LayerProfile, LocalPipeline, Ranks
from anabranch.lab import Lab, time_pairs
from anabranch.lab.figures import Bar, curves_of, new_figure, plot_curves, plot_gantt
from anabranch.lab.places import data_folder
from anabranch.papers.gpipe import Settings
from anabranch.simulation import TransformerShape, balance
from anabranch.worlds import SMOLLM2_GGUF, fashion_tensors

GIB, MIB = 2**30, 2**20
STAGES = 2  # real ones: a process on each core
KINDS = {"F": "forward", "B": "backward", "R": "recomputation"}
# What the paper and its reproduction print: throughput over 2 stages and 1 micro-batch, by (stages, micro-batches).
PUBLISHED_AT = [(k, m) for m in (1, 4, 32) for k in (2, 4, 8)]
TRANSFORMER = dict(zip(PUBLISHED_AT, (1, 1.07, 1.3, 1.7, 3.2, 4.8, 1.8, 3.4, 6.3), strict=True))
AMOEBANET = dict(zip(PUBLISHED_AT, (1, 1.13, 1.38, 1.07, 1.26, 1.72, 1.21, 1.84, 3.48), strict=True))
TORCHGPIPE = dict(zip(PUBLISHED_AT, (1, 1.004, 0.932, 1.539, 1.666, 2.621, 1.773, 2.709, 4.953), strict=True))
# Transformer-L by stages: layers and billions of parameters (Table 1; 1 without recomputation is the first row).
CAPACITY = {0: (3, 0.2822), 1: (13, 0.7858), 8: (103, 5.3), 32: (415, 21.0), 128: (1663, 83.9)}
TRANSFORMER_L = TransformerShape(
    name="Transformer-L", layers=1, hidden=2048, heads=32, kv_heads=32, intermediate=8192, vocabulary=32000, gated=False
)
Row = dict[str, Any]
Batch = tuple[Tensor, Tensor]


def experiment(lab: Lab, settings: Settings) -> None:
    images, labels = training_data(settings, lab.seed)
    with Ranks(STAGES, preload=(__name__,)) as ranks:  # they start while the simulator works
        tables(lab, settings)
        capacity(lab, settings)
        memory(lab, settings, (images[: settings.batch].clone(), labels[: settings.batch].clone()))
        ranks.call(prepare, settings, images, labels, lab.seed)
        training(lab, settings, ranks)
        speed(lab, settings, ranks)
        timelines(lab, settings, ranks)
        fine_tuning(lab, settings, ranks)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What a run is made of, for ``--dry-run``."""
    with torch.device("meta"):
        layers = transformer(settings)
        count = sum(p.numel() for layer in layers for p in layer.parameters())
    return [("transformer", f"{len(layers)} layers, {count:,} parameters"), ("processes", str(STAGES))]


def training_data(settings: Settings, seed: int) -> Batch:
    if settings.fashion:
        images, labels = fashion_tensors(data_folder())
    else:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(256, 1, 28, 28, generator=generator)
        labels = torch.randint(10, (256,), generator=generator)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: settings.batch * settings.steps]
    return images[rows], labels[rows]


def transformer(settings: Settings) -> list[nn.Module]:
    return pp.vision_transformer_layers(blocks=settings.blocks, width=settings.width)


# What every process holds. Calls of one run find here what earlier ones made.

_HERE: dict[str, Any] = {}


def prepare(settings: Settings, images: Tensor, labels: Tensor, seed: int) -> None:
    _HERE.clear()
    _HERE.update(settings=settings, images=images, labels=labels, seed=seed)


def batch(number: int = 0) -> Batch:
    size, images = _HERE["settings"].batch, _HERE["images"]
    rows = torch.arange(number * size, (number + 1) * size) % len(images)
    return images[rows], _HERE["labels"][rows]


def arm_of(name: str, micro_batches: int) -> pp.TrainingArm:
    """Made once."""
    key = f"{name}-{micro_batches}"
    if key not in _HERE:
        torch.manual_seed(_HERE["seed"])
        layers = transformer(_HERE["settings"])
        _HERE[key] = pp.training_arm(
            name, layers, balance(layer_seconds(), STAGES), micro_batches, nn.functional.cross_entropy
        )
    arm: pp.TrainingArm = _HERE[key]
    return arm


def layer_seconds() -> list[float]:
    """Costs by which the layers are cut: the same on all processes, so by arithmetic, not by a clock."""
    return [0.05] + [1.0] * _HERE["settings"].blocks + [0.05]


def run_once(name: str, micro_batches: int = 1) -> None:
    arm = arm_of(name, micro_batches)
    for parameter in arm.parameters:
        parameter.grad = None
    arm.step(*batch())


# Training: loss curves of one process and of pipelines coincide.


def train(arm: str, micro_batches: int, count: int) -> list[float]:
    optimizer = torch.optim.Adam(arm_of(arm, micro_batches).parameters, lr=1e-3)
    losses = []
    for number in range(count):
        optimizer.zero_grad()
        loss = arm_of(arm, micro_batches).step(*batch(number))
        optimizer.step()
        losses.append(float("nan") if loss is None else float(loss))
    del _HERE[f"{arm}-{micro_batches}"]
    return losses


def training(lab: Lab, settings: Settings, ranks: Ranks) -> None:
    most = max(m for m in settings.micro_batches if m <= 8)
    arms = (("one process", 1), ("gpipe-recompute", most), ("1f1b", most))
    found: dict[str, list[float]] = {}
    with lab.stage("training", total=len(arms)) as stage:
        for arm, m in arms:
            found[arm] = ranks.call(train, arm, m, settings.steps)[0 if arm == "one process" else 1]
            stage.advance(arm=arm, loss=found[arm][-1])
    reference = np.array(found["one process"])
    apart = max(float(np.abs(np.array(losses) - reference).max()) for losses in found.values())
    lab.measure("loss-curve-difference", apart)
    lab.measure("final-loss", float(reference[-5:].mean()))
    steps = list(range(settings.steps))
    figure = plot_curves({a: (steps, v) for a, v in found.items()}, title="The same training", x="step", y="loss")
    lab.figure("losses", figure, caption="Training loss of one process and of two stages, one on top of the other")


# Speed against the number of micro-batches.


def speed(lab: Lab, settings: Settings, ranks: Ranks) -> None:
    once = partial(partial, ranks.call, run_once)
    m_naive, m_single = closest(settings, 8), closest(settings, 16)
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
            spread = {"least": min(timing.ours_s), "most": max(timing.ours_s)}
            rows.append({"arm": arm, "M": m, "seconds": timing.value, **spread})
            stage.advance(arm=arm, M=m)
    single = next(row["seconds"] for row in rows if row["arm"] == "one process")
    for row in rows:
        row["speed-up"] = single / row["seconds"]
        row["formula"] = None
        if row["arm"] in ("gpipe", "1f1b", "torch gpipe", "torch 1f1b", "naive"):
            row["formula"] = STAGES * row["M"] / (row["M"] + STAGES - 1)
    lab.table("speed", rows, caption="Seconds of a step (median, least and most of 3) and speed-up over one process")
    mine = [row for row in rows if row["arm"] == "gpipe"]
    curves = curves_of(mine, "M", ["formula", "speed-up"])
    figure = plot_curves(curves, title="Two stages", x="micro-batches", y="over one process", log="x", from_zero=True)
    lab.figure("speed-up", figure, caption="Speed-up of two processes against the number of micro-batches")


def closest(settings: Settings, wanted: int) -> int:
    return min(settings.micro_batches, key=lambda m: abs(m - wanted))


# Bubbles: measured by the clocks of both processes, beside the simulator with measured costs.


def times_of_actions(micro_batches: int) -> list[tuple[float, float]]:
    run_once("gpipe", micro_batches)
    return [(did.begin_s, did.end_s) for did in _HERE[f"gpipe-{micro_batches}"].pipeline.timeline]


def timelines(lab: Lab, settings: Settings, ranks: Ranks) -> None:
    rows: list[Row] = []
    with lab.stage("timelines", total=2) as stage:
        for m in sorted({closest(settings, 4), closest(settings, 8)}):
            schedule = pp.fill_drain(STAGES, m, checkpoint="never")
            ran = [pp.measured_timeline(schedule, ranks.call(times_of_actions, m)) for _ in range(settings.pairs + 1)][
                1:
            ]
            lengths = np.stack([step.end_s - step.begin_s for step in ran])
            costs = [[np.median(lengths[:, k][:, schedule.kinds[k] == kind]) for k in range(STAGES)] for kind in (0, 1)]
            told = pp.simulate_pipeline(schedule, *costs)
            row = {
                "M": m,
                "bubble": median(step.bubble_fraction for step in ran),
                "formula": (STAGES - 1) / (m + STAGES - 1),
            }
            row |= {"simulated bubble": told.bubble_fraction, "seconds": median(step.step_s for step in ran)}
            rows.append(row | {"simulated seconds": told.step_s})
            best = min(ran, key=lambda step: step.step_s)
            stage.advance(M=m)
    lab.table("bubbles", rows, caption="Idle share of a step, and its seconds: measured, by the formula, simulated")
    lab.measure("bubble-over-formula", max(row["bubble"] / row["formula"] for row in rows), unit="x", scale="log")
    over = [row["seconds"] / row["simulated seconds"] for row in rows]
    lab.measure("measured-over-simulated-step", max(over, key=lambda r: abs(np.log(r))), unit="x", scale="log")
    figure, axes = new_figure(2, 1, figsize=(8.2, 5.4))
    plot_gantt(bars_of(best), title=f"Measured, M = {rows[-1]['M']}", x="ms", unit=1e-3, axes=axes[0])
    plot_gantt(bars_of(told), title="Simulated", x="ms", unit=1e-3, axes=axes[1])
    lab.figure("gantt", figure, caption="One step on two processes, measured and simulated")


def bars_of(found: pp.PipelineTimeline) -> list[Bar]:
    return [
        Bar(f"stage {k}", float(found.begin_s[k, i]), float(found.end_s[k, i]), KINDS[a.kind], str(a.micro_batch))
        for k in range(found.schedule.stages)
        for i, a in enumerate(found.schedule.actions(k))
    ]


# Memory: what autograd really keeps, and how deep a model fits.


def memory(lab: Lab, settings: Settings, data: Batch) -> None:
    m = min(8, settings.batch)
    rows: list[Row] = []
    found: dict[tuple[str, str], int] = {}
    models = {
        "transformer": partial(pp.vision_transformer_layers, blocks=settings.blocks, width=settings.width),
        "residual": partial(pp.residual_network_layers, blocks=settings.blocks, width=16),
    }
    worst = 0.0
    with lab.stage("memory", total=6) as stage:
        for kind, make in models.items():
            torch.manual_seed(0)
            layers = make()
            cut = balance([1.0] * len(layers), STAGES)
            micro = [t[: settings.batch // m] for t in data]
            profile = pp.profile_layers(
                layers, micro[0], target=micro[1], loss_fn=nn.functional.cross_entropy, repeats=1
            )
            for checkpoint in ("never", "except_last", "always"):
                pipeline = LocalPipeline(layers, cut, micro_batches=m, checkpoint=checkpoint)
                kept = pipeline.kept_bytes(*data, nn.functional.cross_entropy)
                told = pp.activation_memory(pp.stage_costs(profile, cut), pipeline.schedule)
                found[kind, checkpoint] = max(kept)
                if settings.batch % m == 0:
                    worst = max(worst, max(abs(float(t) / k - 1) for t, k in zip(told, kept, strict=True)))
                row = {"model": kind, "recompute": checkpoint}
                rows.append({**row, "measured": max(kept), "predicted": float(told.max())})
                stage.advance(model=kind, recompute=checkpoint)
            if kind == "residual":
                depth(lab, settings, profile)
    lab.table("memory", rows, caption=f"Bytes that the fuller of two stages keeps for its backwards, {m} micro-batches")
    lab.measure("memory-model-error", worst)
    ratio = found["transformer", "always"] / found["transformer", "never"]
    lab.measure("activation-bytes-recomputed-over-kept", ratio, unit="x", scale="log")


def depth(lab: Lab, settings: Settings, profile: LayerProfile) -> None:
    """The deepest residual network under a cap: the model of memory that was just held against the measured bytes."""
    of = partial(
        pp.most_layers, partial(profile.repeated, 2), samples=settings.batch, memory_bytes=settings.cap_mib * MIB
    )
    m = min(8, settings.batch)
    arms = {
        "one device, keeps all": {"stages": 1, "micro_batches": 1, "checkpoint": "never"},
        "one device, recomputes": {"stages": 1, "micro_batches": m, "checkpoint": "always"},
        **{f"{k} stages, recompute": {"stages": k, "micro_batches": m, "checkpoint": "always"} for k in (2, 4, 8)},
    }
    rows: list[Row] = [{"arm": name, "blocks": of(**arm)} for name, arm in arms.items()]  # type: ignore[arg-type]
    lab.table("depth", rows, caption=f"Most residual blocks within {settings.cap_mib:g} MiB a device (model)")
    lab.measure(
        "depth-on-two-stages-over-one-device", rows[2]["blocks"] / max(1, rows[0]["blocks"]), unit="x", scale="log"
    )


# The paper's sizes, simulated.


def capacity(lab: Lab, settings: Settings) -> None:
    """Table 1, Transformer-L: 16 GiB, 32 sequences of 1024 tokens (one for the naive device), float32, 12 bytes a parameter."""
    one = pp.profile_transformer(TRANSFORMER_L, sequence=1024, flops_per_s=1e13, dtype_bytes=4, scores=True)
    rows: list[Row] = []
    with lab.stage("capacity", total=len(CAPACITY)) as stage:
        for k, (paper_layers, paper_billions) in CAPACITY.items():
            if k > max(settings.simulated_stages) and k != 128:
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
        base = even_seconds(2, 1)
        for k in settings.simulated_stages:
            for m in (1, 4, 32):
                rows.append(
                    {
                        "K": k, "M": m, "formula": k * m / (m + k - 1), "ours": base / even_seconds(k, m),
                        "ours, recomputing": base / even_seconds(k, m, "always"),
                        "paper, Transformer-48": TRANSFORMER.get((k, m)), "paper, AmoebaNet": AMOEBANET.get((k, m)),
                        "torchgpipe, AmoebaNet": TORCHGPIPE.get((k, m)),
                    }
                )  # fmt: skip
            stage.advance(K=k)
    lab.table("throughput", rows, caption="Throughput over K = 2, M = 1: formula, simulated, published")
    for k, m in ((8, 32), (8, 4)):
        row = next(row for row in rows if row["K"] == k and row["M"] == m)
        lab.measure(f"throughput-k{k}-m{m}", row["ours"], unit="x", published=row["paper, Transformer-48"])
    bound = {}
    for k in settings.simulated_stages:
        ms = [1, 2, 4, 8, 16, 32, 64, 128]
        bubbles = [pp.simulate_pipeline(pp.fill_drain(k, m, checkpoint="never"), 1.0, 2.0).bubble_fraction for m in ms]
        bound[f"K = {k}"] = ([m / k for m in ms], bubbles)
    figure = plot_curves(bound, title="Bubbles", x="micro-batches over stages, M / K", y="idle share", log="x")
    lab.figure("bubbles", figure, caption="Idle share of a step: (K-1)/(M+K-1)")


def even_seconds(stages: int, micro_batches: int, checkpoint: str = "never") -> float:
    """A step of a model of one second forward and two backward, in equal stages."""
    forward = 1.0 / stages / micro_batches
    schedule = pp.fill_drain(stages, micro_batches, checkpoint=checkpoint)
    return pp.simulate_pipeline(schedule, forward, 2 * forward, recompute_s=forward).step_s


# A language model with tied embeddings, fine-tuned over two stages.


def tune(path: str, texts: Sequence[str], count: int, alone: bool) -> list[float]:
    from anabranch.language import load_causal

    if alone and dist.get_rank():
        return []
    loaded = load_causal(path)
    model = loaded.model.requires_grad_(True)
    rows = loaded.tokenizer(list(texts), return_tensors="pt", padding="max_length", truncation=True, max_length=32)
    tokens = rows["input_ids"]
    if alone:
        layers, prefixes = pp.causal_layers(model)
        pipeline: Any = LocalPipeline(layers, stages=1, micro_batches=1, checkpoint="never", prefixes=prefixes)
    else:
        pipeline = pp.pipeline_from_transformers(model, STAGES, micro_batches=4, checkpoint="except_last")
    optimizer = torch.optim.SGD(pipeline.parameters(), lr=1e-2)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = pipeline.step(tokens, tokens, pp.next_token_loss)
        optimizer.step()
        losses.append(float("nan") if loss is None else float(loss))
    return losses


def fine_tuning(lab: Lab, settings: Settings, ranks: Ranks) -> None:
    root = data_folder()
    if not settings.fine_tune_steps or not SMOLLM2_GGUF.here(root):
        return
    path = str(SMOLLM2_GGUF.folder(root) / SMOLLM2_GGUF.files[0].name)
    with lab.stage("fine-tuning", total=2) as stage:
        piped = ranks.call(tune, path, TEXTS, settings.fine_tune_steps, False)[1]
        stage.advance(loss=piped[-1])
        alone = ranks.call(tune, path, TEXTS, settings.fine_tune_steps, True)[0]
        stage.advance()
    rows = [{"step": i, "one process": a, "two stages": b} for i, (a, b) in enumerate(zip(alone, piped, strict=True))]
    lab.table("fine-tuning", rows, caption="Loss of SmolLM2-135M, embeddings tied over two stages")
    lab.measure("fine-tuning-difference", max(abs(row["one process"] - row["two stages"]) for row in rows))


TEXTS = (
    "A river that divides into branches which meet again further down is called anabranching.",
    "The assembly line moves the work to the people, and every station does one thing.",
    "All forwards come first, then all backwards, and only then are the weights changed.",
    "What does not fit on one machine is cut where little has to cross the cut.",
)
