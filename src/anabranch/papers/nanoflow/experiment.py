"""How many tokens can a device produce, what do engines leave of it, what does a searched overlap win, on paper and for real?"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

import anabranch.serving as sv
import anabranch.simulation as sim
from anabranch.lab import Lab, time_pairs
from anabranch.lab.figures import COLORS, new_figure, plot_bars, plot_curves, plot_gantt, plot_heat
from anabranch.lab.places import data_folder
from anabranch.papers.nanoflow import Settings
from anabranch.serving import IterationCosts, OverlapSchedule, Workload

Row = dict[str, Any]

A100 = sim.ACCELERATORS["A100-80"]
PRACTICAL = 260e12  # FLOP/s of an A100 that the published optima need; reading notes say 280e12, the data sheet 312e12
TABLE = sv.Interference.published()
BATCH = 2048

# Published: optimum and NanoFlow in tokens/s/GPU (figure 11), billions of parameters a token from the model's name or card.
MODELS: dict[str, tuple[sim.TransformerShape, int, float, int, int]] = {
    "Llama-2-70B": (sim.LLAMA2_70B, 8, 70.0, 1857, 1291),
    "Llama-3-70B": (sim.LLAMA3_70B, 8, 70.0, 1857, 1306),
    "Qwen2-72B": (sim.QWEN2_72B, 8, 72.1, 1803, 1213),
    "Deepseek-67B": (sim.DEEPSEEK_67B, 8, 66.9, 1944, 1147),
    "Llama-3-8B": (sim.LLAMA3_8B, 1, 8.0, 16236, 12756),
    "Mixtral-8x7B": (sim.MIXTRAL_8X7B, 8, 12.9, 19819, 5188),
}
WORKLOADS = {
    "512/512": Workload(512.0, 512.0), "1024/512": Workload(1024.0, 512.0), "512/1024": Workload(512.0, 1024.0),
    "Splitwise": Workload(1155.0, 211.0), "LMSYS-Chat": Workload(102.0, 222.0), "ShareGPT": Workload(246.0, 322.0),
}  # fmt: skip
# The ablation (figure 9): tokens/s/GPU in sequence, in nano-batches alone, overlapped, with caches offloaded.
ABLATION = {
    "512/1024": (WORKLOADS["512/1024"], (1048, 952, 1277, 1244)), "512/0": (Workload(512.0, 0.0), (1273, 1171, 1446, 1402)),
    "512/512": (WORKLOADS["512/512"], (1106, 982, 1323, 1290)), "1024/512": (WORKLOADS["1024/512"], (1092, 958, 1291, 1259)),
}  # fmt: skip
# Table 2: GFLOP, GB of memory, GB of network.
OPERATIONS = {
    "KQV": (27487.8, 19.5, 0.0), "O": (21990.2, 16.1, 0.0), "UG": (153931.6, 96.6, 0.0), "D": (76965.8, 49.7, 0.0),
    "DecAttn": (3665.9, 462.2, 0.0), "PfAttn": (916.3, 2.1, 0.0), "Net": (18.8, 75.2, 75.2),
}  # fmt: skip


def experiment(lab: Lab, settings: Settings) -> None:
    costs_of_an_iteration(lab)
    optima(lab)
    limits_by_device(lab)
    ablation(lab, settings)
    three_lanes(lab, settings)
    other_models(lab, settings)
    served_trace(lab, settings)
    on_this_machine(lab, settings)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What a run is made of, for ``--dry-run``."""
    searches = 2 * settings.workloads + 1 + len(settings.models) + 3 + 1
    mixes = f"{len(settings.prompt_tokens)} mixes of {settings.decodes} decoding requests and prompts"
    return [
        (
            "searches",
            f"{searches} schedules, to {settings.gap:.1%} or {settings.search_seconds:g} s each; 2 of three lanes",
        ),
        ("trace", f"{settings.trace}, {settings.requests or 'all'} requests"),
        ("executed", f"{settings.layers} layers of {settings.weights}, {mixes}, on pinned cores"),
    ]


def costs(name: str, workload: Workload, batch: int = BATCH) -> IterationCosts:
    shape, count, *_ = MODELS[name]
    return IterationCosts(shape, A100, count, workload, batch, flops_per_s=PRACTICAL)


def search(settings: Settings, lanes: tuple[Any, ...], gap: float | None = None) -> OverlapSchedule:
    found = sv.search_overlap(lanes[0], lanes[1], TABLE, gap=gap or settings.gap, time_limit_s=settings.search_seconds)
    found.validate(TABLE)
    return found


def costs_of_an_iteration(lab: Lab) -> None:
    whole = replace(costs("Llama-2-70B", ABLATION["512/1024"][0]), flops_per_s=None)
    rows: list[Row] = []
    for name, (gflop, memory, network) in OPERATIONS.items():
        one = whole.operation(name)
        rows.append({
            "operation": name, "GFLOP": one.flops / 1e9, "published": gflop, "GB memory": one.memory_bytes / 1e9,
            "published GB": memory, "GB network": one.network_bytes / 1e9, "published network": network,
            "compute ms": 1e3 * one.compute_s, "memory ms": 1e3 * one.memory_s, "network ms": 1e3 * one.network_s,
        })  # fmt: skip
    lab.table("operations", rows, caption="The operations of an iteration: Llama-2-70B, 8 A100, 2,048 tokens, 512/1024")
    lab.measure("operation-flop-error", max(abs(row["GFLOP"] / row["published"] - 1) for row in rows))
    figure, axes = new_figure()
    plot_bars(rows, {f"{kind} ms": kind for kind in ("compute", "memory", "network")}, "operation", axes=axes)
    axes.set(ylabel="ms", title="Each operation on each resource")
    lab.figure("operations", figure, caption="Estimated time of each operation on each resource, all layers")
    devices = [
        {"device": device.name, "memory / bandwidth, s": device.memory_bytes / device.memory_bytes_per_s,
         "compute / bandwidth, FLOP/B": device.flops_per_s / device.memory_bytes_per_s,
         "T_R": IterationCosts(sim.LLAMA2_70B, device, 16, WORKLOADS["512/512"], BATCH).ratio}
        for device in sim.ACCELERATORS.values()
    ]  # fmt: skip
    lab.table("accelerators", devices, caption="Thirteen accelerators; T_R of Llama-2-70B on 16 of them, 2,048 tokens")


def optima(lab: Lab) -> None:
    rows: list[Row] = []
    for name, (shape, _, billions, published, _) in MODELS.items():
        counted = costs(name, WORKLOADS["1024/512"])
        rows.append({
            "model": name, "published": published, "of parameters as published": PRACTICAL / (2e9 * billions),
            "of parameters counted": counted.optimal_tokens_per_s, "billions counted": counted.active_parameters / 1e9,
            "billions in all": shape.parameters / 1e9,
        })  # fmt: skip
    lab.table(
        "optima", rows,
        caption="Equation 5 with 260e12 FLOP/s, tokens/s/GPU. Mixtral's published 19,819 is about twice what its 12.9 B "
        "parameters a token give; its bars (5,188, labelled 50.4 %) fit an optimum near 10,290",
    )  # fmt: skip
    dense = [row for row in rows if row["model"] != "Mixtral-8x7B"]
    lab.measure("optimum-error", max(abs(row["of parameters as published"] / row["published"] - 1) for row in dense))
    lab.measure("mixtral-optimum-over-ours", rows[-1]["published"] / rows[-1]["of parameters as published"], unit="x")
    ratios = np.array([[costs(name, one).at_largest_batch.ratio for one in WORKLOADS.values()] for name in MODELS])
    bounds = [
        {"model": name, **dict(zip(WORKLOADS, map(float, row), strict=True))}
        for name, row in zip(MODELS, ratios, strict=True)
    ]
    lab.table(
        "ratio", bounds, caption="T_R = T_mem / T_comp at the largest batch whose caches fit: below 1 compute limits"
    )
    figure, axes = new_figure()
    image = plot_heat(np.log10(ratios), list(MODELS), list(WORKLOADS), texts=np.round(ratios, 2), most=1.2, axes=axes)
    axes.set_title("Memory over compute time")
    figure.colorbar(image, ax=axes, label="log10 T_R")
    lab.figure(
        "ratio", figure, caption="T_R of six models (8 A100, 1 for the 8 B model) and six workloads, largest batch"
    )


def limits_by_device(lab: Lab) -> None:
    shapes = {name: (shape, count) for name, (shape, count, *_) in MODELS.items()}
    found = sv.iteration_limits(sim.ACCELERATORS.values(), shapes, WORKLOADS)
    lab.table(
        "limits", found.rows, caption="What limits each setting, and the longer of memory and network time over compute time; "
        "largest batch, data sheets, 8 devices (1 for 8 B) doubled until weights and a request fit",
    )  # fmt: skip
    for name, share in found.shares.items():
        lab.measure(f"{name}-bound-share", share, settings=found.limits.size)
    figure, panels = new_figure(2, 3, figsize=(11, 8.5), sharex=True, sharey=True)
    for k, (model, axes) in enumerate(zip(MODELS, panels.flat, strict=True)):
        letters = np.where(found.limits[:, k] == "compute", "", np.char.upper(found.limits[:, k].astype("U1")))
        image = plot_heat(
            np.log10(found.over_compute[:, k]), list(sim.ACCELERATORS), list(WORKLOADS), texts=letters, most=1.2, axes=axes,
            rotation=60.0,
        )  # fmt: skip
        axes.set_title(model, fontsize=9)
    figure.colorbar(image, ax=panels, label="log10 of the longer of memory and network time over compute time")
    lab.figure("limits", figure, caption="What limits an iteration: M memory, N network, else compute; largest batch")


# The ablation: operations in turn, nano-batches alone, overlapped, with caches leaving for the host.


def ablation(lab: Lab, settings: Settings) -> None:
    chosen = dict(itertools.islice(ABLATION.items(), settings.workloads))
    rows: list[Row] = []
    with lab.stage("ablation", total=2 * len(chosen) + 1) as stage:
        for name, (workload, published) in chosen.items():
            whole = costs("Llama-2-70B", workload)
            layer = sv.published_layer(whole)
            rate = whole.batch / whole.count
            alone = sum(one.seconds for lane in sv.nano_lanes(layer, charge_rereads=True) for one in lane)
            free = search(settings, sv.nano_lanes(layer))
            stage.advance(workload=name)
            charged = search(settings, sv.nano_lanes(layer, charge_rereads=True))
            stage.advance(workload=name)
            rows.append({
                "workload": name, "sequential": rate / layer.sequential_s, "published sequential": published[0],
                "nano only": rate / alone, "published nano only": published[1],
                "NanoFlow": rate / free.period_s, "NanoFlow, re-reads": rate / charged.period_s,
                "published NanoFlow": published[2], "bound of any overlap": rate / free.resource_bound_s,
                "gain": free.gain, "gain, re-reads": layer.sequential_s / charged.period_s,
                "published gain": published[2] / published[0], "gap": free.gap,
                "gap to any overlap": 1 - free.resource_bound_s / free.period_s, "optimum": whole.optimal_tokens_per_s,
                "published with offload": published[3],
            })  # fmt: skip
            if len(rows) == 1:
                drawn = free
                with_offload(lab, settings, whole, free, 1 - published[3] / published[2])
                stage.advance()
    lab.table("ablation", rows, caption="Llama-2-70B on 8 A100, tokens/s/GPU, operations as the paper measured them")
    first, optimum = rows[0], PRACTICAL / (2e9 * MODELS["Llama-2-70B"][2])
    lab.measure("overlap-gain", first["gain"], unit="x", workload=first["workload"])
    lab.measure("overlap-gain-with-rereads", first["gain, re-reads"], unit="x")
    lab.measure("nano-only-over-sequential", max(row["nano only"] / row["sequential"] for row in rows), unit="x")
    lab.measure("share-of-optimum", statistics.fmean(row["NanoFlow"] / optimum for row in rows))
    lab.measure("sequential-share-of-optimum", statistics.fmean(row["sequential"] / optimum for row in rows))
    lab.measure("proven-gap", max(row["gap"] for row in rows))
    lab.measure("gap-to-any-overlap", max(row["gap to any overlap"] for row in rows))
    if len(rows) > 1:
        lab.measure("overlap-gain-prefill-only", rows[1]["gain"], unit="x")
    noisy = drawn.simulate(4000, jitter=0.1, generator=lab.generator) / drawn.period_s
    lab.measure("period-with-noise", float(noisy.mean()), unit="x", p95=float(np.quantile(noisy, 0.95)), jitter=0.1)
    lanes = sv.nano_lanes(sv.published_layer(costs("Llama-2-70B", chosen["512/1024"][0])))
    lab.time("search-seconds", partial(search, settings, lanes, max(0.02, settings.gap)), pairs=3, warmup=0)
    draw_ablation(lab, rows)
    draw_schedule(lab, drawn)


def with_offload(lab: Lab, settings: Settings, whole: IterationCosts, free: OverlapSchedule, published: float) -> None:
    """Each layer's new caches leave over PCIe (25 GB/s a device) before its feed-forward network, as a step of each chain."""
    leave = whole.batch * whole.shape.kv_bytes_per_token() / (whole.count * 25e9)
    step = sv.NanoOperation("Offload", "network", leave / 2)
    period = search(settings, sv.insert_step(sv.nano_lanes(sv.published_layer(whole)), step, before="UG")).period_s
    lab.measure("offload-cost", period / free.period_s - 1, published=published, offload_ms=1e3 * leave)


def three_lanes(lab: Lab, settings: Settings) -> None:
    """Two kinds at once against three: halves of the batch and thirds of it, and what no order of lanes can go below."""
    whole = costs("Llama-2-70B", ABLATION["512/1024"][0])
    with lab.stage("three lanes", total=2) as stage:
        rows, found = sv.compare_lanes(
            sv.published_layer(whole), TABLE, gaps=(settings.gap, settings.gap / 10), time_limit_s=settings.search_seconds,
            most_programmes=round(100 * settings.search_seconds),  # ends before the time does, on a machine of usual speed
            generator=np.random.default_rng(lab.seed), progress=lambda done, *_: stage.advance(),
        )  # fmt: skip
    lab.table(
        "lanes", [{**row, "tokens/s/GPU": whole.batch / whole.count / row["ms"] * 1e3} for row in rows],
        caption="Llama-2-70B on 8 A100, 512/1024, one iteration: halves in two lanes, thirds in three",
    )  # fmt: skip
    for name, three in zip(("three-lane-gain", "three-lane-gain-with-rereads"), found, strict=True):
        gain = sv.published_layer(whole).sequential_s / three.period_s
        lab.measure(name, gain, unit="x", proven_gap=three.gap, status=three.status)
    figure = plot_gantt(found[0].rows(), title="Three lanes", x="ms", unit=1e-3)
    lab.figure("three-lanes", figure, caption="Three nano-batches in one period (80 layers), weights read once")


def draw_ablation(lab: Lab, rows: list[Row]) -> None:
    figure, axes = new_figure(1, 2, figsize=(11, 4.2), sharey=True)
    for axis, title, which in ((axes[0], "here", ""), (axes[1], "published", "published ")):
        axis.axhline(PRACTICAL / 140e9, color=COLORS[6], linestyle="--", label="optimum")
        plot_bars(rows, {which + name: name for name in ("sequential", "nano only", "NanoFlow")}, "workload", axes=axis)
        axis.set(title=title, xlabel="tokens in / out")
    axes[0].set(ylabel="tokens/s/GPU")
    lab.figure("ablation", figure, caption="The ablation beside the paper's: Llama-2-70B on 8 A100")


def draw_schedule(lab: Lab, schedule: OverlapSchedule) -> None:
    figure, (above, below) = new_figure(2, 1)
    plot_gantt(schedule.rows_in_turn(), title="in turn", x="ms", unit=1e-3, axes=above)
    plot_gantt(schedule.rows(), title="searched", x="ms", unit=1e-3, axes=below)
    for axis in (above, below):
        axis.set_xlim(0, 1e3 * schedule.sequential_s)
    lab.figure("schedule", figure, caption="Two nano-batches in one period (80 layers), by kind: in turn, and searched")
    rows = schedule.utilisation(TABLE)
    moments = [1e3 * at for row in rows for at in (row["start_s"], row["end_s"])]
    curves = {kind: (moments, [row[kind] for row in rows for _ in range(2)]) for kind in ("gemm", "gemv", "network")}
    figure = plot_curves(curves, title="What runs how fast", x="ms", y="speed, 1: as if alone")
    lab.figure("utilisation", figure, caption="Speed of each kind of operation over a period of the searched schedule")


def other_models(lab: Lab, settings: Settings) -> None:
    rows: list[Row] = []
    with lab.stage("other models", total=len(settings.models)) as stage:
        for name in settings.models:
            whole = costs(name, WORKLOADS["1024/512"])
            layer = sv.published_layer(whole)
            found = search(settings, sv.nano_lanes(layer))
            rate, (_, _, billions, published_optimum, published) = whole.batch / whole.count, MODELS[name]
            rows.append({
                "model": name, "sequential": rate / layer.sequential_s, "NanoFlow": rate / found.period_s,
                "published": published, "gain": found.gain, "gap": found.gap,
                "of the optimum": rate / found.period_s * 2e9 * billions / PRACTICAL,
                "published share": published / published_optimum,
            })  # fmt: skip
            stage.advance(model=name)
    if rows:
        lab.table(
            "models", rows, caption="1024 in, 512 out, tokens/s/GPU; the A100's measured efficiencies carried over"
        )


def served_trace(lab: Lab, settings: Settings) -> None:
    requests = trace(lab, settings)
    workload = Workload(float(requests.prompt_tokens.mean()), float(requests.output_tokens.mean()))
    whole = costs("Llama-2-70B", workload)
    with lab.stage("trace", total=5) as stage:
        curve = sv.overlap_curve(
            sv.published_layer(whole), TABLE, gap=settings.gap, time_limit_s=settings.search_seconds,
            progress=lambda *_: stage.advance(),
        )  # fmt: skip
        memory = whole.count * whole.device.memory_bytes - whole.weight_bytes
        kv = whole.shape.kv_bytes_per_token()
        saturated = requests.at_speed(1e9)
        served = {}
        for name, seconds in (
            ("in turn", sv.BatchSeconds(whole)),
            ("overlapped", sv.BatchSeconds(whole, curve)),
        ):
            former = sv.BatchFormer(BATCH, memory // kv, workload.output_mean)
            served[name] = sv.simulate_dense_batches(former, saturated, seconds, kv_bytes_per_token=kv)
            stage.advance()
    rows = [
        {"operations": name, "tokens/s/GPU": one.tokens_per_s / whole.count, "of the optimum": one.tokens_per_s / whole.count
         / whole.optimal_tokens_per_s, "iterations": int(one.result.iterations[0]), "batch filled": one.fill,
         "wasted tokens": one.wasted_tokens / int(requests.output_tokens.sum()), "evictions": one.result.preemptions}
        for name, one in served.items()
    ]  # fmt: skip
    lab.table(
        "trace", rows, caption=f"{len(requests):,} requests at saturation, Llama-2-70B on 8 A100, 2,048 tokens a batch"
    )
    lab.measure("serving-gain", served["overlapped"].tokens_per_s / served["in turn"].tokens_per_s, unit="x")
    lab.measure("wasted-tokens", served["in turn"].wasted_tokens / int(requests.output_tokens.sum()))


def trace(lab: Lab, settings: Settings) -> sv.RequestTable:
    if settings.trace == "quantiles":
        return sv.published_lengths("conversation", settings.requests, generator=lab.generator)
    from anabranch.worlds import AZURE_LLM_2023

    file = "AzureLLMInferenceTrace_conv.csv"
    AZURE_LLM_2023.read(file, data_folder())
    requests = sv.read_requests(AZURE_LLM_2023.folder(data_folder()) / file)
    return requests.head(settings.requests) if settings.requests else requests


def on_this_machine(lab: Lab, settings: Settings) -> None:
    if len(usable := sv.usable_cores()) < 2:
        return lab.table("cpu", [{"cores": len(usable), "outcome": "not run: two lanes need two cores"}])
    model = loaded_model(lab, settings)
    rows: list[Row] = []
    drawn: list[tuple[str, float, float, str]] = []
    with sv.CpuLanes(usable[:2]) as lanes, lab.stage("executed", total=len(settings.prompt_tokens)) as stage:
        for tokens in settings.prompt_tokens:
            row, drawn = one_mix(lab, settings, model, lanes, tokens)
            rows.append(row)
            stage.advance(prompt_tokens=tokens, gain=row["gain"])
    lab.table("cpu", rows, caption=f"{settings.layers} layers of {settings.weights} on two cores, float32; medians")
    best = max(rows, key=lambda row: row["gain"])
    lab.measure("cpu-gain", best["gain"], unit="x", scale="log", prompt_tokens=best["prompt tokens"])
    lab.measure("cpu-predicted-over-measured", best["predicted gain"] / best["gain"], unit="x", scale="log")
    lab.measure("cpu-attention-speedup-of-two-cores", best["attention on 1 / 2 cores"], unit="x", scale="log")
    names = {"measured": "gain", "predicted": "predicted gain", "closed form": "closed-form gain"}
    share = [row["arithmetic share"] for row in rows]
    curves = {name: (share, [row[column] for row in rows]) for name, column in names.items()}
    figure = plot_curves(curves, title="Overlap on two cores", x="share of products in one-core time", y="gain")
    figure.axes[0].axhline(1.0, color=COLORS[6], linewidth=1)
    lab.figure(
        "cpu", figure, caption="Executed overlap over the best of one thread, two threads and both cores in turn"
    )
    figure = plot_gantt(drawn, title="Executed on two cores", x="ms", unit=1e-3)
    lab.figure("cpu-timeline", figure, caption="The searched schedule as it ran, last mix, all layers")


def loaded_model(lab: Lab, settings: Settings) -> Any:
    import torch

    from anabranch.language import load_causal, tiny_causal

    if settings.weights == "tiny":
        return tiny_causal(layers=settings.layers, generator=torch.Generator().manual_seed(lab.seed)).model
    from anabranch.worlds import SMOLLM2_GGUF

    file = SMOLLM2_GGUF.files[0].name
    SMOLLM2_GGUF.read(file, data_folder())
    return load_causal(SMOLLM2_GGUF.folder(data_folder()) / file).model


def one_mix(
    lab: Lab, settings: Settings, model: Any, lanes: sv.CpuLanes, tokens: int
) -> tuple[Row, list[tuple[str, float, float, str]]]:
    """Measure the operations and their interference, search, execute, and compare with the best way to run them in turn."""
    import torch

    parts = max(2, min(4, tokens // 8))
    prompts = tuple(tokens * (k + 1) // parts - tokens * k // parts for k in range(parts))
    ready = sv.prepare_overlap(
        model, sv.MixedBatch(settings.decodes, settings.context, prompts), lanes, layers=settings.layers,
        repeats=settings.repeats, time_limit_s=settings.search_seconds, generator=torch.Generator().manual_seed(lab.seed),
    )  # fmt: skip
    seconds = {name: time_pairs(way, pairs=settings.repeats).value for name, way in ready.in_turn.items()}
    best = min(seconds, key=lambda name: seconds[name])
    timing = lab.time(f"cpu-gain-{tokens}-prompt-tokens", ready.run, ready.in_turn[best], pairs=settings.repeats)
    products, attention = ready.one_lane_s
    row: Row = {
        "prompt tokens": tokens, "arithmetic share": products / (products + attention),
        **{f"{name}, ms": 1e3 * value for name, value in seconds.items()}, "best in turn": best,
        "overlapped, ms": 1e3 * statistics.median(timing.ours_s), "gain": timing.value,
        "predicted, ms": 1e3 * ready.predicted_s, "predicted gain": statistics.median(timing.peer_s) / ready.predicted_s,
        **ready.facts,
    }  # fmt: skip
    return row, ready.run()
