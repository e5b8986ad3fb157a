"""Do machines for prompts and machines for tokens serve more than machines for both? Simulated clusters, and a real server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import anabranch.serving as sv
from anabranch.lab import Lab
from anabranch.lab.figures import COLORS, curves_of, new_figure, plot_curves
from anabranch.lab.places import data_folder
from anabranch.papers.splitwise import Settings
from anabranch.serving import Design, Load, PerformanceModel, Provision, RequestTable, Transfers
from anabranch.simulation import BLOOM_176B, GIB

Row = dict[str, Any]

PAIRS = sv.SPLITWISE_DESIGNS
A, H, C = PAIRS["AA"][0], PAIRS["HH"][0], PAIRS["HHcap"][1]
KV = BLOOM_176B.kv_bytes_per_token()
OURS = Transfers(layers=BLOOM_176B.layers)
REFERENCE_CPU_S = 41.4  # of the released simulator for 8,502 conversation requests on 25 + 15 DGX-H100
PAPER = {  # beside our bars
    "AA / Baseline-A100, power": 2.15, "HA / Baseline-H100, power": 1.18, "AA / Baseline-H100, cost": 1.4,
    "HHcap / Baseline-H100, watts": 0.75, "AA / Baseline-H100, dollars": 0.75,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Data:
    """Lengths of two services, times of the machines, and the rows that the times were measured in (if they are here)."""

    conversation: RequestTable
    code: RequestTable
    performance: Callable[[str, str], PerformanceModel]  # hardware, decode times by
    rows: list[Row]


def experiment(lab: Lab, settings: Settings) -> None:
    data = read_data(lab, settings)
    equality(lab, settings, data)
    speed(lab, settings, data)
    found = equal_budgets(lab, settings, data)
    found |= equal_throughput(lab, settings, data)
    compare_with_the_paper(lab, found)
    curves(lab, settings, data)
    transfer = transfers(lab, settings, data)
    batches(lab, settings, data)
    profile_error(lab, data)
    hidden = real_servers(lab, settings, data)
    lab.measure("exposed-transfer-over-prompt", max(transfer, hidden), simulated=transfer, real=hidden)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What a run is made of, for ``--dry-run``."""
    power, cost = (settings.machines * weight for weight in (H.provisioned_w, H.cost_per_hour))
    return [
        ("designs", ", ".join(PAIRS)),
        ("budgets", f"{settings.machines} DGX-H100: {power / A.provisioned_w:.0f} DGX-A100 of the same power, "
                    f"{cost / A.cost_per_hour:.0f} of the same cost"),
        ("real servers", f"{settings.server_model}, {settings.server_seconds * settings.server_rate_per_s:.0f} requests each"),
    ]  # fmt: skip


def read_data(lab: Lab, settings: Settings) -> Data:
    if settings.data == "azure":
        from anabranch.worlds import AZURE_LLM_2023, SPLITWISE_PROFILES

        root = data_folder()
        traces = []
        for name in ("conv", "code"):
            AZURE_LLM_2023.read(f"AzureLLMInferenceTrace_{name}.csv", root)  # checks it, or says how to get it
            traces.append(sv.read_requests(AZURE_LLM_2023.folder(root) / f"AzureLLMInferenceTrace_{name}.csv"))
        SPLITWISE_PROFILES.read("perf_model.csv", root)
        table = sv.ProfileTable.read(SPLITWISE_PROFILES.folder(root) / "perf_model.csv")
        return Data(traces[0], traces[1], lambda device, by: table.model("bloom-176b", device, 8, by=by), table.rows)
    traces = [sv.published_lengths(name, 5000, generator=lab.generator) for name in ("conversation", "code")]
    return Data(traces[0], traces[1], lambda device, by: sv.published_performance("bloom-176b", device, by=by), [])


def design(name: str, data: Data, *, by: str = "requests", sent: Transfers = sv.RELEASED_TRANSFERS) -> Design:
    return sv.splitwise_design(name, lambda device: data.performance(device, by), transfers=sent)


# The simulator against the released one.


def equality(lab: Lab, settings: Settings, data: Data) -> None:
    """A request alone has a closed form; the released simulator's answers to 1,165 requests are compared where they are."""
    model = data.performance(H.device.name, "requests")
    one = sv.simulate_cluster(design("HH", data).build(1, 1), RequestTable.of([1.0], [1500], [200]))
    alone = float(model.prompt_seconds(1500)) + 1500 * KV / (200 * GIB) + 199 * float(model.decode_seconds(1, 0))
    worst, compared = abs(float(one.e2e_s[0]) - alone), "a closed form"
    folder = golden_folder(settings)
    if folder is None:
        lab.table("reference", [{"file": "none", "reason": "golden_*.csv of the released simulator are not here"}])
    elif settings.data == "azure":
        rows: list[Row] = []
        for name, cluster in (
            ("hh10_conv20", design("HH", data).build(6, 4)), ("base10_conv20", design("Baseline-H100", data).build(10)),
        ):  # fmt: skip
            theirs: Any = np.genfromtxt(folder / f"golden_{name}.csv", delimiter=",", names=True)
            requests = RequestTable.of(theirs["arrival_s"], theirs["prompt_tokens"], theirs["output_tokens"])
            ours = sv.simulate_cluster(cluster, requests)
            for column in ("ttft_s", "e2e_s", "second_token_gap_s", "queue_s"):
                largest = float(np.abs(getattr(ours, column) - theirs[column]).max())
                rows.append(
                    {"file": name, "column": column, "requests": len(requests), "largest difference, s": largest}
                )
                worst = max(worst, largest)
        lab.table("reference", rows, caption="Against the released simulator, request by request")
        compared = "2,330 requests of the released simulator"
    lab.measure("reference-difference", worst, unit="s", compared=compared)


def golden_folder(settings: Settings) -> Path | None:
    shared = os.environ.get("ANABRANCH_SHARED")
    places = [Path(settings.golden)] if settings.golden else []
    places += [Path(shared) / "splitwise-profiles"] if shared else []
    found = next((place for place in places if (place / "golden_hh10_conv20.csv").is_file()), None)
    if found is None and settings.golden:
        raise ValueError(f"golden={settings.golden!r}: there is no golden_hh10_conv20.csv in it")
    return found


def speed(lab: Lab, settings: Settings, data: Data) -> None:
    """Processor time for the load on which the released simulator's was taken (two minutes, 70 a second, 25 + 15 DGX-H100)."""
    seconds = 120.0 if settings.data == "azure" else settings.search_seconds
    requests = Load(data.conversation, seconds, 80.0, np.random.default_rng(lab.seed), paired=False).at(70.0)
    with lab.stage("speed", total=6) as stage:
        for name, counts in (("HH", (25, 15)), ("Baseline-H100", (40, 0))):
            cluster = design(name, data).build(*counts)
            result = sv.simulate_cluster(cluster, requests)
            spent = []
            for _ in range(3):
                begin = time.process_time()
                sv.simulate_cluster(cluster, requests)
                spent.append(time.process_time() - begin)
                stage.advance(design=name)
            words = "split" if name == "HH" else "baseline"
            lab.measure(f"{words}-40-mean-e2e", float(result.e2e_s.mean()), unit="s")
            lab.measure(f"{words}-40-p99-ttft", float(np.percentile(result.ttft_s, 99)), unit="s")
            if name == "HH":
                per_request = REFERENCE_CPU_S / 8502
                ratio = per_request * len(requests) / median(spent)
                lab.measure(
                    "reference-cpu-over-ours", ratio, unit="x", scale="log", requests=len(requests), cpu_s=spent
                )


# Throughput at equal power and cost.


def load_of(lab: Lab, settings: Settings, lengths: RequestTable) -> Load:
    most = 5.0 * settings.machines
    return Load(lengths, settings.search_seconds, most, np.random.default_rng(lab.seed), paired=False)


def reference(data: Data) -> PerformanceModel:
    """Slowdowns are against a request alone on a DGX-A100."""
    return data.performance(A.device.name, "context")


def equal_budgets(lab: Lab, settings: Settings, data: Data) -> dict[str, float]:
    power, cost = (settings.machines * weight for weight in (H.provisioned_w, H.cost_per_hour))
    searches = [  # service, decode times by, measure, share of the budget, designs
        ("conversation", "requests", "power", 1.0, tuple(PAIRS)),
        ("conversation", "requests", "cost", 1.0, ("AA", "HA", "HHcap")),
        ("conversation", "requests", "cost", 0.8, ("AA", "HH", "HA", "HHcap")),
        ("code", "requests", "cost", 0.8, ("AA", "HA")),
        ("code", "requests", "power", 1.0, ("AA", "HH", "HA", "HHcap", "Baseline-A100", "Baseline-H100")),
        ("conversation", "context", "power", 1.0, ("AA", "HH", "HA", "HHcap", "Baseline-H100")),
    ]
    best: dict[tuple[str, str, str, float, str], Provision] = {}
    rows: list[Row] = []
    tried: dict[str, list[Provision]] = {}
    with lab.stage("equal budgets", total=sum(len(one[-1]) for one in searches)) as stage:
        for service, by, measure, share, names in searches:
            load = load_of(lab, settings, data.conversation if service == "conversation" else data.code)
            budget = share * (power if measure == "power" else cost) * (1 + 1e-9)
            for name in names:
                sent = sv.RELEASED_TRANSFERS if by == "requests" else OURS
                chosen, looked_at = sv.most_throughput(
                    design(name, data, by=by, sent=sent), budget, load, reference(data), measure=measure,
                    tolerance=settings.tolerance, prune=True,
                )  # fmt: skip
                best[service, by, measure, share, name] = chosen
                if (service, by, measure, share) == ("conversation", "requests", "power", 1.0):
                    tried[name] = [one for one in looked_at if one.rate_per_s > 0]
                rows.append({
                    "service": service, "decode times by": by, "equal": measure, "share": share, "design": name,
                    "prompt": chosen.prompts, "token": chosen.tokens, "requests/s": round(chosen.rate_per_s, 2),
                    "power": chosen.provisioned_w / power, "cost": chosen.cost_per_hour / cost,
                })  # fmt: skip
                stage.advance(design=name, requests_per_s=round(chosen.rate_per_s, 1))
    lab.table(
        "equal-budgets", rows, caption="The best split of each design; power and cost over those of Baseline-H100"
    )
    plane(lab, tried)

    def rate(measure: str, name: str, service: str = "conversation", by: str = "requests", share: float = 1.0) -> float:
        return best[service, by, measure, share, name].rate_per_s

    splits = ("AA", "HH", "HA", "HHcap")
    found = {
        "aa-over-baseline-a100-power": rate("power", "AA") / rate("power", "Baseline-A100"),
        "ha-over-baseline-h100-power": rate("power", "HA") / rate("power", "Baseline-H100"),
        "aa-over-baseline-h100-cost": rate("cost", "AA") / rate("power", "Baseline-H100"),
        "rate-at-lower-cost": max(rate("cost", name, share=0.8) for name in splits) / rate("power", "Baseline-H100"),
        # What four fifths of the cost buy is also within the cost and the power of the A100 baseline.
        "rate-at-same-cost-and-power": max(rate("power", "AA"), *(rate("cost", name, share=0.8) for name in splits))
        / rate("power", "Baseline-A100"),
        "rate-at-lower-cost-code": max(rate("cost", name, "code", share=0.8) for name in ("AA", "HA"))
        / rate("power", "Baseline-H100", "code"),
        "aa-over-baseline-a100-power-code": rate("power", "AA", "code") / rate("power", "Baseline-A100", "code"),
        "ha-over-baseline-h100-power-code": rate("power", "HA", "code") / rate("power", "Baseline-H100", "code"),
    }
    for name, ratio in found.items():
        lab.measure(name, ratio, unit="x", scale="log")
    for name in splits:
        ratio = rate("power", name, by="context") / max(rate("power", "Baseline-H100", by="context"), 1e-9)
        if 0 < ratio < 1e6:  # no baseline may keep the limits
            lab.measure(f"{name.lower()}-over-baseline-h100-power-by-context", ratio, unit="x", scale="log")
    chosen = best["code", "requests", "power", 1.0, "HA"]
    shifted = sv.max_rate(
        design("HA", data).build(chosen.prompts, chosen.tokens), load_of(lab, settings, data.conversation), reference(data),
        tolerance=settings.tolerance,
    )  # fmt: skip
    lab.measure("loss-when-traffic-shifts", 1 - shifted.rate_per_s / rate("power", "HA"), prompts=chosen.prompts)
    return found


def plane(lab: Lab, tried: dict[str, list[Provision]]) -> None:
    figure, axes = new_figure()
    for color, (name, all_of_it) in zip(COLORS, tried.items(), strict=False):
        if PAIRS[name][1] is None:
            continue
        places = [(one.prompts, one.tokens) for one in all_of_it]
        axes.plot(*zip(*places, strict=True), "o-", color=color, label=name, markersize=4)
        most = max(all_of_it, key=lambda one: one.rate_per_s)
        axes.annotate(
            f"{most.rate_per_s:.0f}/s", (most.prompts, most.tokens), xytext=(4, 6), textcoords="offset points"
        )
    axes.set(xlabel="prompt machines", ylabel="token machines")
    axes.set_title("Equal power, conversation: splits and the best of each", loc="left", fontweight="bold")
    axes.legend(frameon=False)
    lab.figure(
        "plane", figure, caption="Splits of the power of the budget that kept the best rate when they were tried"
    )


def equal_throughput(lab: Lab, settings: Settings, data: Data) -> dict[str, float]:
    load = load_of(lab, settings, data.conversation)
    rows: list[Row] = []
    stairs: dict[str, tuple[list[float], list[float]]] = {}
    cheapest: dict[tuple[str, str], Provision] = {}
    with lab.stage("equal throughput", total=len(PAIRS)) as stage:
        for name in PAIRS:
            chosen = design(name, data)
            least, frontier = sv.least_machines(
                chosen, settings.rate_per_s, load, reference(data), measure="cost", most=settings.most_machines
            )
            coldest = min(frontier, key=lambda one: one.provisioned_w)
            cheapest[name, "cost"], cheapest[name, "power"] = least, coldest
            for measure, one in (("cost", least), ("power", coldest)):
                rows.append({
                    "design": name, "least": measure, "prompt": one.prompts, "token": one.tokens,
                    "power": one.provisioned_w, "cost": one.cost_per_hour,
                })  # fmt: skip
            if PAIRS[name][1] is not None:
                stairs[name] = [float(one.prompts) for one in frontier], [float(one.tokens) for one in frontier]
            stage.advance(design=name)
    lab.table("equal-throughput", rows, caption=f"Least cost and least power for {settings.rate_per_s:g} requests/s")
    figure = plot_curves(
        stairs, title=f"Least machines for {settings.rate_per_s:g}/s", x="prompt machines", y="token machines"
    )
    lab.figure("frontier", figure, caption="Fewest token machines for each number of prompt machines, conversation")
    watts, dollars = cheapest["Baseline-H100", "power"].provisioned_w, cheapest["Baseline-H100", "cost"].cost_per_hour
    found = {
        "hhcap-over-baseline-h100-power": cheapest["HHcap", "power"].provisioned_w / watts,
        "aa-over-baseline-h100-dollars": cheapest["AA", "cost"].cost_per_hour / dollars,
    }
    for name, ratio in found.items():
        lab.measure(name, ratio, unit="x", scale="log")
    return found


def compare_with_the_paper(lab: Lab, found: dict[str, float]) -> None:
    ours = [
        found[name] for name in (
            "aa-over-baseline-a100-power", "ha-over-baseline-h100-power", "aa-over-baseline-h100-cost",
            "hhcap-over-baseline-h100-power", "aa-over-baseline-h100-dollars",
        )
    ]  # fmt: skip
    figure, axes = new_figure()
    places = np.arange(len(PAPER))
    axes.barh(places + 0.2, ours, 0.38, color=COLORS[0], label="here")
    axes.barh(places - 0.2, list(PAPER.values()), 0.38, color=COLORS[1], label="the paper")
    axes.axvline(1.0, color="#4D4D4D", linewidth=1)
    axes.set_yticks(places, list(PAPER))
    axes.set(xlabel="ratio: throughput (first three), need at equal throughput (last two)")
    axes.legend(frameon=False)
    lab.figure("beside-the-paper", figure, caption="Ratios to the baselines on the conversation trace, and the paper's")


def curves(lab: Lab, settings: Settings, data: Data) -> None:
    """Slowdowns against the rate at equal power."""
    load = load_of(lab, settings, data.conversation)
    power = settings.machines * H.provisioned_w
    rows: list[Row] = []
    rates = np.linspace(0.1, 1.0, 7) * 3.0 * settings.machines
    with lab.stage("slowdowns", total=len(rates)) as stage:
        for rate in rates:
            requests = load.at(float(rate))
            row: Row = {"requests/s": float(rate)}
            for name in ("AA", "HA", "Baseline-A100", "Baseline-H100"):
                prompt, token = PAIRS[name]
                half = 0.6 if token is not None else 1.0  # of the power for prompts
                counts = max(1, int(half * power / prompt.provisioned_w)), 0
                if token is not None:
                    counts = counts[0], max(1, int(0.4 * power / token.provisioned_w))
                result = sv.simulate_cluster(design(name, data).build(*counts), requests, max_time_s=10 * load.seconds)
                slow = sv.slo_report(result, requests, reference(data)).slowdowns
                row[f"{name}, TTFT"], row[f"{name}, TBT"] = (
                    value if np.isfinite(value) and value < 100 else None for value in (slow["ttft"][1], slow["tbt"][1])
                )
            rows.append(row)
            stage.advance(requests_per_s=round(float(rate), 1))
    lab.table("slowdowns", rows, caption="90th percentile of the slowdown, 60 % of the power for prompts")
    figure, axes = new_figure(1, 2)
    for one, metric, limit in zip(axes, ("TTFT", "TBT"), (3.0, 1.5), strict=True):
        names = [f"{name}, {metric}" for name in ("AA", "HA", "Baseline-A100", "Baseline-H100")]
        plot_curves(
            curves_of(rows, "requests/s", names), title=metric, x="requests/s", y="P90 slowdown", log="y", axes=one
        )
        one.axhline(limit, color="#4D4D4D", linestyle=":")
    lab.figure("slowdowns", figure, caption="Slowdown against the rate at equal power; dotted: the limit")


# Transfers, batches, profiles.


def transfers(lab: Lab, settings: Settings, data: Data) -> float:
    """One request alone at each prompt length; gives the largest exposed share of the prompt time from 1,024 tokens on (H100)."""
    rows: list[Row] = []
    worst = 0.0
    for name, machine, gigabits in (("AA", A, 200), ("HH", H, 400)):
        model = data.performance(machine.device.name, "context")
        for prompt in settings.transfer_prompts:
            request = RequestTable.of([0.0], [prompt], [2])
            token = float(model.decode_seconds(1, prompt + 1))
            row: Row = {"machine": machine.name, "Gb/s": gigabits, "prompt": prompt}
            for overlap in ("serialized", "layerwise"):
                sent = replace(OURS, overlap=overlap, serial_below=0)
                result = sv.simulate_cluster(design(name, data, by="context", sent=sent).build(1, 1), request)
                gap, ttft = float(result.second_token_gap_s[0]), float(result.ttft_s[0])
                row |= {
                    f"{overlap}, ms": 1e3 * gap,
                    f"{overlap} / prompt": gap / ttft,
                    f"{overlap} / token": gap / token,
                }
            rows.append(row)
            if machine is H and prompt >= 1024:
                worst = max(worst, row["layerwise / prompt"])
    lab.table("transfers", rows, caption="Time after the prompt until the cache is there")
    h100 = [row for row in rows if row["Gb/s"] == 400]
    ratio = float(np.mean([row["layerwise / token"] / row["serialized / token"] for row in h100]))
    lab.measure("second-token-layerwise-over-serialized", ratio)
    figure = plot_curves(
        {
            f"{overlap}, {gigabits} Gb/s": (
                [row["prompt"] for row in rows if row["Gb/s"] == gigabits],
                [row[f"{overlap}, ms"] for row in rows if row["Gb/s"] == gigabits],
            )
            for gigabits in (200, 400)
            for overlap in ("serialized", "layerwise")
        },
        title="BLOOM-176B, one request", x="prompt tokens", y="exposed transfer, ms", log="xy",
    )  # fmt: skip
    lab.figure("transfers", figure, caption="Exposed transfer time against prompt length")
    return worst


def batches(lab: Lab, settings: Settings, data: Data) -> None:
    """How many answers a mixed machine writes at once, at two requests a second for each machine."""
    figure, axes = new_figure()
    for name, lengths, color in (("conversation", data.conversation, COLORS[0]), ("code", data.code, COLORS[1])):
        load = Load(lengths, max(60.0, settings.search_seconds), 10.0, np.random.default_rng(lab.seed))
        requests = load.at(8.0)
        spent = sv.decode_occupancy(sv.simulate_cluster(design("Baseline-H100", data).build(4), requests), requests)
        share = np.cumsum(spent) / spent.sum()
        axes.step(np.arange(len(share)), share, where="post", label=name, color=color)
        lab.measure(f"time-with-at-most-20-answers-{name}", float(share[min(20, len(share) - 1)]))
        lab.measure(f"time-with-one-answer-{name}", float(spent[1] / spent.sum()) if len(spent) > 1 else 0.0)
    axes.set(xlabel="answers under way", ylabel="share of the time", ylim=(0, 1))
    axes.set_title("Decoding batches of a mixed DGX-H100", loc="left", fontweight="bold")
    axes.legend(frameon=False)
    lab.figure(
        "batches", figure, caption="Share of the time with at most so many answers under way, 2 requests/s a machine"
    )


def profile_error(lab: Lab, data: Data) -> None:
    """Lines through four fifths of the measurements against the rest; and each inner knot from the others."""
    knots = sv.left_out_knot_error([data.performance(one.device.name, "context") for one in (A, H) if one is not None])
    rest = sv.held_out_error(data.rows, generator=lab.generator) if data.rows else knots
    lab.measure("profile-mape", rest, measurements=len(data.rows))
    lab.measure("profile-mape-of-left-out-knots", knots)


# Real servers.


def real_servers(lab: Lab, settings: Settings, data: Data) -> float:
    """One model, two cores, the same requests at the same times: both phases together, in chunks, and apart."""
    import torch

    from anabranch.language import load_causal, tiny_causal

    model: Any
    if settings.server_model == "tiny":
        model = loaded = tiny_causal(generator=torch.Generator().manual_seed(lab.seed))
    else:
        from anabranch.worlds import SMOLLM2_GGUF

        SMOLLM2_GGUF.read(SMOLLM2_GGUF.files[0].name, data_folder())
        model = SMOLLM2_GGUF.folder(data_folder()) / SMOLLM2_GGUF.files[0].name
        loaded = load_causal(model)
    generator = np.random.default_rng(lab.seed)
    drawn = sv.poisson_requests(
        data.conversation, settings.server_rate_per_s, settings.server_seconds, generator=generator
    )
    shorter = [
        np.maximum(1, np.minimum(n // settings.server_lengths_over, 1500))
        for n in (drawn.prompt_tokens, drawn.output_tokens)
    ]
    requests = RequestTable(drawn.arrival_s, shorter[0], np.maximum(2, shorter[1]))
    vocabulary = loaded.config.vocab_size
    prompts = [generator.integers(2, vocabulary, n).tolist() for n in requests.prompt_tokens]
    arms: dict[str, Callable[[], Any]] = {
        "colocated": lambda: sv.ColocatedServer(model, threads=2),
        "colocated, chunks of 64": lambda: sv.ColocatedServer(model, threads=2, chunk=64),
        "split": lambda: sv.PhaseSplitServer(model, threads=1, checksums=True),
    }
    if settings.server_model == "tiny":
        del arms["colocated, chunks of 64"]
    gaps: dict[str, Any] = {}
    streams: dict[str, Any] = {}
    rows: list[Row] = []
    share, length = 0.0, 512
    with lab.stage("real servers", total=len(arms) * len(requests)) as stage:
        for name, start in arms.items():
            with start() as server:
                server.submit(prompts[0][:8], 4).result(600.0)  # warm
                streams[name] = sv.replay(server, requests, prompts, progress=lambda *_: stage.advance())
                if name == "split":
                    again = [server.submit(generator.integers(2, vocabulary, length).tolist(), 4) for _ in range(3)]
                    for one in again:
                        one.result(600.0)
                    share = median(one.record.transfer_share for one in again)
            gaps[name] = np.array([gap for one in streams[name] for gap in one.gaps_s])
            ttft = np.array([one.ttft_s for one in streams[name]])
            rows.append({
                "server": name, "requests": len(requests), "P50 gap, ms": 1e3 * np.percentile(gaps[name], 50),
                "P99 gap, ms": 1e3 * np.percentile(gaps[name], 99), "largest gap, ms": 1e3 * gaps[name].max(),
                "P50 TTFT, s": np.percentile(ttft, 50), "P99 TTFT, s": np.percentile(ttft, 99),
            })  # fmt: skip
    lab.table(
        "real-servers", rows, caption=f"{settings.server_model} on two cores, the same requests at the same times"
    )
    tail = {name: float(np.percentile(values, 99)) for name, values in gaps.items()}
    lab.measure("real-p99-gap-colocated-over-split", tail["colocated"] / tail["split"], unit="x", scale="log")
    if "colocated, chunks of 64" in tail:
        ratio = tail["colocated, chunks of 64"] / tail["split"]
        lab.measure("real-p99-gap-chunked-over-split", ratio, unit="x", scale="log")
    same = [
        one.tokens == sv.unsplit_tokens(loaded, one.prompt_ids, one.max_new_tokens)
        and one.record.sent_sha256 == one.record.received_sha256
        for one in streams["split"][:20]
    ]
    lab.measure("real-identical-answers", float(np.mean(same)), compared=len(same))
    lab.measure("real-transfer-over-prefill", share, prompt_tokens=length)
    figure, axes = new_figure()
    for color, (name, answers) in zip(COLORS, streams.items(), strict=False):
        begin = min(one.submitted_s for one in answers)
        points = [(t - begin, 1e3 * gap) for one in answers for t, gap in zip(one.times_s[1:], one.gaps_s, strict=True)]
        axes.plot(*zip(*points, strict=True), ".", color=color, label=name, alpha=0.7)
    axes.set(xlabel="seconds", ylabel="time between tokens, ms", yscale="log")
    axes.set_title("Every gap between two tokens of an answer", loc="left", fontweight="bold")
    axes.legend(frameon=False)
    lab.figure("token-gaps", figure, caption="Gaps between tokens of the real servers over time")
    return share
