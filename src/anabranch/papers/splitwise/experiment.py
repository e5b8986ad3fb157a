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
A, H = PAIRS["AA"][0], PAIRS["HH"][0]
CHUNKED = tuple(sv.CHUNKED_BASELINES)
OURS = Transfers(layers=BLOOM_176B.layers)
REFERENCE_CPU_S = 41.4  # of the released simulator for 8,502 conversation requests on 25 + 15 DGX-H100
# Service, decode times by, measure, share of the budget, designs.
SEARCHES: tuple[tuple[str, str, str, float, tuple[str, ...]], ...] = (
    ("conversation", "requests", "power", 1.0, (*PAIRS, *CHUNKED)),
    ("conversation", "requests", "cost", 1.0, ("AA", "HA", "HHcap")),
    ("conversation", "requests", "cost", 0.8, ("AA", "HH", "HA", "HHcap")),
    ("code", "requests", "cost", 0.8, ("AA", "HA")),
    ("code", "requests", "power", 1.0, ("AA", "HH", "HA", "HHcap", "Baseline-A100", "Baseline-H100")),
    ("conversation", "context", "power", 1.0, ("AA", "HH", "HA", "HHcap", "Baseline-H100", "Chunked-H100")),
)
PAPER = {  # beside our bars: measure, words, published
    "aa-over-baseline-a100-power": ("AA / Baseline-A100, power", 2.15),
    "ha-over-baseline-h100-power": ("HA / Baseline-H100, power", 1.18),
    "aa-over-baseline-h100-cost": ("AA / Baseline-H100, cost", 1.4),
    "hhcap-over-baseline-h100-power": ("HHcap / Baseline-H100, watts", 0.75),
    "aa-over-baseline-h100-dollars": ("AA / Baseline-H100, dollars", 0.75),
}


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
    sv.prepare_workers()  # beside the simulations: the real servers come last
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
    server = f"{settings.server_seconds:g} s at {settings.server_rate_per_s:g}/s"
    budgets = f"{sum(len(one[-1]) for one in SEARCHES)} searches, {settings.machines} DGX-H100's"
    return [
        ("budgets", f"{budgets}, {settings.search_seconds:g} s of arrivals each, to {settings.tolerance:.1%}"),
        ("throughput", f"{len(PAIRS)} designs, {settings.rate_per_s:g}/s, up to {settings.most_machines} of a role"),
        ("transfers", f"one request of {', '.join(map(str, settings.transfer_prompts))} tokens, 200 and 400 Gb/s"),
        ("server", f"{settings.server_model}, colocated, in chunks and split: {server} each, on two cores"),
    ]


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


def load_of(lab: Lab, settings: Settings, lengths: RequestTable) -> Load:
    generator = np.random.default_rng(lab.seed)
    return Load(lengths, settings.search_seconds, 5.0 * settings.machines, generator, paired=False)


def reference(data: Data) -> PerformanceModel:
    """Slowdowns are against a request alone on a DGX-A100."""
    return data.performance("a100-80gb", "context")


def keep(lab: Lab, name: str, figure: Any, axes: Any, title: str, **labels: Any) -> None:
    axes.set(**labels)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.legend(frameon=False)
    lab.figure(name, figure, caption=title)


def equality(lab: Lab, settings: Settings, data: Data) -> None:
    """A request alone has a closed form; the released simulator's answers to 1,165 requests are compared where they are."""
    model = data.performance(H.device.name, "requests")
    alone_there = sv.simulate_cluster(design("HH", data).build(1, 1), RequestTable.of([1.0], [1500], [200]))
    sent = 1500 * BLOOM_176B.kv_bytes_per_token() / (200 * GIB)
    alone = float(model.prompt_seconds(1500)) + sent + 199 * float(model.decode_seconds(1, 0))
    worst, compared = abs(float(alone_there.e2e_s[0]) - alone), "a closed form"
    folder = Path(settings.golden or Path(os.environ.get("ANABRANCH_SHARED", os.devnull)) / "splitwise-profiles")
    there = (folder / "golden_hh10_conv20.csv").is_file()
    if settings.golden and not there:
        raise ValueError(f"golden={settings.golden!r}: there is no golden_hh10_conv20.csv in it")
    if not there:
        lab.table("reference", [{"file": "none", "reason": "golden_*.csv of the released simulator are not here"}])
    elif settings.data == "azure":
        rows = sv.answer_differences(design("HH", data).build(6, 4), folder / "golden_hh10_conv20.csv")
        rows += sv.answer_differences(design("Baseline-H100", data).build(10), folder / "golden_base10_conv20.csv")
        worst = max(worst, *(row["largest difference, s"] for row in rows))
        lab.table("reference", rows, caption="Against the released simulator, request by request")
        compared = "2,330 requests of the released simulator"
    lab.measure("reference-difference", worst, unit="s", compared=compared)


def speed(lab: Lab, settings: Settings, data: Data) -> None:
    """Processor time for the load on which the released simulator's was taken (two minutes, 70 a second, 25 + 15 DGX-H100)."""
    seconds = 120.0 if settings.data == "azure" else settings.search_seconds
    requests = Load(data.conversation, seconds, 80.0, np.random.default_rng(lab.seed), paired=False).at(70.0)
    cluster, spent = design("HH", data).build(25, 15), []
    for _ in range(6):
        begin = time.process_time()
        result = sv.simulate_cluster(cluster, requests)
        spent.append(time.process_time() - begin)
    ratio = REFERENCE_CPU_S / 8502 * len(requests) / median(spent[1:])  # the first may compile
    lab.measure("reference-cpu-over-ours", ratio, unit="x", scale="log", requests=len(requests), cpu_s=spent)
    together = sv.simulate_cluster(design("Baseline-H100", data).build(40), requests)
    lab.measure("baseline-over-split-mean-e2e", float(together.e2e_s.mean() / result.e2e_s.mean()), unit="x")


def equal_budgets(lab: Lab, settings: Settings, data: Data) -> dict[str, float]:
    power, cost = (settings.machines * weight for weight in (H.provisioned_w, H.cost_per_hour))
    best: dict[tuple[str, str, str, float, str], Provision] = {}
    rows: list[Row] = []
    tried: dict[str, list[Provision]] = {}
    with lab.stage("equal budgets", total=sum(len(one[-1]) for one in SEARCHES)) as stage:
        for service, by, measure, share, names in SEARCHES:
            load = load_of(lab, settings, data.conversation if service == "conversation" else data.code)
            budget = share * (power if measure == "power" else cost) * (1 + 1e-9)
            for name in names:
                sent = sv.RELEASED_TRANSFERS if by == "requests" else OURS
                chosen, looked_at = sv.most_throughput(
                    design(name, data, by=by, sent=sent), budget, load, reference(data), measure=measure,
                    tolerance=settings.tolerance, prune=True,
                )  # fmt: skip
                best[service, by, measure, share, name] = chosen
                if (service, by, measure, share) == SEARCHES[0][:4] and PAIRS.get(name, (A, None))[1] is not None:
                    tried[name] = [one for one in looked_at if one.rate_per_s > 0]
                rows.append({
                    "service": service, "decode times by": by, "equal": measure, "share": share, "design": name,
                    "prompt": chosen.prompts, "token": chosen.tokens, "requests/s": round(chosen.rate_per_s, 2),
                    "power": chosen.provisioned_w / power, "cost": chosen.cost_per_hour / cost,
                })  # fmt: skip
                stage.advance(design=name, requests_per_s=round(chosen.rate_per_s, 1))
    lab.table("equal-budgets", rows, caption="The best split of each design; power and cost over Baseline-H100's")
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
        # What the paper does not compare with: both phases on one machine, prompts in chunks of 512 tokens.
        "aa-over-chunked-a100-power": rate("power", "AA") / rate("power", "Chunked-A100"),
        "ha-over-chunked-h100-power": rate("power", "HA") / rate("power", "Chunked-H100"),
        "best-split-over-best-chunked-power": max(rate("power", name) for name in splits)
        / max(rate("power", name) for name in CHUNKED),
        "chunked-over-baseline-h100-power": rate("power", "Chunked-H100") / rate("power", "Baseline-H100"),
        "aa-over-baseline-a100-power-code": rate("power", "AA", "code") / rate("power", "Baseline-A100", "code"),
        "ha-over-baseline-h100-power-code": rate("power", "HA", "code") / rate("power", "Baseline-H100", "code"),
    }
    keep_ratios(lab, found)
    for name in (*splits, "Chunked-H100"):
        ratio = rate("power", name, by="context") / rate("power", "Baseline-H100", by="context")
        lab.measure(f"{name.lower()}-over-baseline-h100-power-by-context", ratio, unit="x")
    chosen = best["code", "requests", "power", 1.0, "HA"]
    load, built = load_of(lab, settings, data.conversation), design("HA", data).build(chosen.prompts, chosen.tokens)
    shifted = sv.max_rate(built, load, reference(data), tolerance=settings.tolerance)
    lab.measure("loss-when-traffic-shifts", 1 - shifted.rate_per_s / rate("power", "HA"), prompts=chosen.prompts)
    return found


def keep_ratios(lab: Lab, found: dict[str, float]) -> None:
    for name, ratio in found.items():
        lab.measure(name, ratio, unit="x", scale="log")


def plane(lab: Lab, tried: dict[str, list[Provision]]) -> None:
    figure, axes = new_figure()
    for color, (name, all_of_it) in zip(COLORS, tried.items(), strict=False):
        places = [(one.prompts, one.tokens) for one in all_of_it]
        label = f"{name}, {max(one.rate_per_s for one in all_of_it):.0f}/s"
        axes.plot(*zip(*places, strict=True), "o-", color=color, label=label, markersize=4)
    axes.set(xlabel="prompt machines", ylabel="token machines")
    keep(lab, "plane", figure, axes, "Splits of equal power that kept the best rate so far when tried")


def equal_throughput(lab: Lab, settings: Settings, data: Data) -> dict[str, float]:
    load = load_of(lab, settings, data.conversation)
    rows: list[Row] = []
    stairs: dict[str, tuple[list[float], list[float]]] = {}
    cheapest: dict[tuple[str, str], Provision] = {}
    with lab.stage("equal throughput", total=len(PAIRS)) as stage:
        for name in PAIRS:
            chosen = design(name, data)
            goal = (settings.rate_per_s, load, reference(data))
            least, frontier = sv.least_machines(chosen, *goal, measure="cost", most=settings.most_machines)
            coldest = min(frontier, key=lambda one: one.provisioned_w)
            cheapest[name, "cost"], cheapest[name, "power"] = least, coldest
            for one in (least, coldest):
                amounts = {"power": one.provisioned_w, "cost": one.cost_per_hour}
                rows.append({"design": name, "prompt": one.prompts, "token": one.tokens, **amounts})
            if PAIRS[name][1] is not None:
                stairs[name] = [float(one.prompts) for one in frontier], [float(one.tokens) for one in frontier]
            stage.advance(design=name)
    lab.table("equal-throughput", rows, caption=f"Least cost and least power for {settings.rate_per_s:g} requests/s")
    figure = plot_curves(stairs, title="Least machines", x="prompt machines", y="token machines")
    lab.figure("frontier", figure, caption="Fewest token machines for each number of prompt machines, conversation")
    watts, dollars = cheapest["Baseline-H100", "power"].provisioned_w, cheapest["Baseline-H100", "cost"].cost_per_hour
    found = {
        "hhcap-over-baseline-h100-power": cheapest["HHcap", "power"].provisioned_w / watts,
        "aa-over-baseline-h100-dollars": cheapest["AA", "cost"].cost_per_hour / dollars,
    }
    keep_ratios(lab, found)
    return found


def compare_with_the_paper(lab: Lab, found: dict[str, float]) -> None:
    figure, axes = new_figure()
    places = np.arange(len(PAPER))
    axes.barh(places + 0.2, [found[name] for name in PAPER], 0.38, color=COLORS[0], label="here")
    axes.barh(places - 0.2, [value for _, value in PAPER.values()], 0.38, color=COLORS[1], label="the paper")
    axes.axvline(1.0, color="#4D4D4D", linewidth=1)
    axes.set_yticks(places, [words for words, _ in PAPER.values()])
    keep(lab, "beside-the-paper", figure, axes, "Throughput (three) and need (two) over the baselines, conversation")


def curves(lab: Lab, settings: Settings, data: Data) -> None:
    """Slowdowns against the rate at equal power, 60 % of it for prompts."""
    power = settings.machines * H.provisioned_w
    shown = ("AA", "HA", "Baseline-A100", "Baseline-H100")
    clusters = {}
    for name in shown:
        kinds = zip((0.6, 0.4), PAIRS[name], strict=True)
        counts = [round(share * power / (one or PAIRS[name][0]).provisioned_w) for share, one in kinds]
        clusters[name] = design(name, data).build(*counts)
    rates = (np.linspace(0.1, 1.0, 7) * 3.0 * settings.machines).tolist()
    rows = sv.slowdown_rows(clusters, load_of(lab, settings, data.conversation), rates, reference(data))
    lab.table("slowdowns", rows, caption="90th percentile of the slowdown, 60 % of the power for prompts")
    figure, axes = new_figure(1, 2)
    for one, metric, limit in zip(axes, ("TTFT", "TBT"), (3.0, 1.5), strict=True):
        found = curves_of(rows, "requests/s", [f"{name}, {metric}" for name in shown])
        plot_curves(found, title=metric, x="requests/s", y="P90 slowdown", log="y", axes=one)
        one.axhline(limit, color="#4D4D4D", linestyle=":")
    lab.figure("slowdowns", figure, caption="Slowdown against the rate at equal power; dotted: the limit")


def transfers(lab: Lab, settings: Settings, data: Data) -> float:
    """One request alone at each prompt length; gives the largest exposed share of the prompt time from 1,024 tokens on (H100)."""
    rows: list[Row] = []
    ways = [replace(OURS, overlap=overlap, serial_below=0) for overlap in ("serialized", "layerwise")]
    for name, gigabits in (("AA", 200), ("HH", 400)):
        serialized, layerwise = (design(name, data, by="context", sent=sent).build(1, 1) for sent in ways)
        found = sv.exposed_transfers(serialized, layerwise, settings.transfer_prompts)
        rows += [{"Gb/s": gigabits, **row} for row in found]
    lab.table("transfers", rows, caption="Time after the prompt until the cache is there")
    h100 = [row for row in rows if row["Gb/s"] == 400]
    ratio = float(np.mean([row["layerwise / token"] / row["serialized / token"] for row in h100]))
    lab.measure("second-token-layerwise-over-serialized", ratio)
    shown: dict[str, tuple[list[float], list[float]]] = {}
    for gigabits in (200, 400):
        some = [row for row in rows if row["Gb/s"] == gigabits]
        both = curves_of(some, "prompt", ["serialized, ms", "layerwise, ms"])
        shown |= {f"{name[:-4]}, {gigabits} Gb/s": values for name, values in both.items()}
    figure = plot_curves(shown, title="BLOOM-176B, one request", x="prompt tokens", y="exposed, ms", log="xy")
    lab.figure("transfers", figure, caption="Exposed transfer time against prompt length")
    return max(float(row["layerwise / prompt"]) for row in h100 if row["prompt"] >= 1024)


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
    axes.set(xlabel="answers under way", ylabel="share of the time")
    keep(lab, "batches", figure, axes, "Decoding batches of a mixed DGX-H100, 2 requests/s a machine")


def profile_error(lab: Lab, data: Data) -> None:
    """Lines through four fifths of the measurements against the rest; and each inner knot from the others."""
    knots = sv.left_out_knot_error([data.performance(one.device.name, "context") for one in (A, H) if one is not None])
    rest = sv.held_out_error(data.rows, generator=lab.generator) if data.rows else knots
    lab.measure("profile-mape", rest, measurements=len(data.rows))
    lab.measure("profile-mape-of-left-out-knots", knots)


def real_servers(lab: Lab, settings: Settings, data: Data) -> float:
    """One model, two cores, the same requests at the same times: both phases together, in chunks, and apart."""
    path = None
    if settings.server_model != "tiny":
        from anabranch.worlds import SMOLLM2_GGUF

        SMOLLM2_GGUF.read(SMOLLM2_GGUF.files[0].name, data_folder())
        path = SMOLLM2_GGUF.folder(data_folder()) / SMOLLM2_GGUF.files[0].name
    with sv.ReferenceModel(path, seed=lab.seed) as unsplit:
        return served_for_real(lab, settings, data, unsplit)


def served_for_real(lab: Lab, settings: Settings, data: Data, unsplit: sv.ReferenceModel) -> float:
    generator = np.random.default_rng(lab.seed)
    rate, span = settings.server_rate_per_s, settings.server_seconds
    drawn = sv.poisson_requests(data.conversation, rate, span, generator=generator)
    requests = drawn.shortened(settings.server_lengths_over, most=1500)
    model, vocabulary = unsplit.path, unsplit.vocabulary
    prompts = [generator.integers(2, vocabulary, n).tolist() for n in requests.prompt_tokens]
    arms: dict[str, Callable[[], Any]] = {
        "colocated": lambda: sv.ColocatedServer(model, threads=2),
        "chunked": lambda: sv.ColocatedServer(model, threads=2, chunk=64),
        "split": lambda: sv.PhaseSplitServer(model, threads=1, checksums=True),
    }
    streams: dict[str, Any] = {}
    rows: list[Row] = []
    share, length = 0.0, 512
    with lab.stage("real servers", total=len(arms) * len(requests)) as stage:
        for name, start in arms.items():
            with start() as server:
                server.submit(prompts[0][:8], 4).result(600.0)  # warm up
                streams[name] = sv.replay(server, requests, prompts, progress=lambda *_: stage.advance())
                if name == "split":
                    long = generator.integers(2, vocabulary, (3, length)).tolist()
                    again = [server.submit(prompt, 4) for prompt in long]
                    for one in again:
                        one.result(600.0)
                    share = median(one.record.transfer_share for one in again)
            rows.append({"server": name, "requests": len(requests), **sv.latency_summary(streams[name])})
    lab.table("real-servers", rows, caption=f"{settings.server_model} on two cores, the same requests; chunks of 64")
    tail = {row["server"]: row["P99 gap, ms"] / rows[-1]["P99 gap, ms"] for row in rows}
    for name in ("colocated", "chunked"):
        lab.measure(f"real-p99-gap-{name}-over-split", tail[name], unit="x", scale="log")
    some = streams["split"][:20]
    wanted = unsplit.answers([one.prompt_ids for one in some], [one.max_new_tokens for one in some])
    same = [one.tokens == answer for one, answer in zip(some, wanted, strict=True)]
    whole = [one.record.sent_sha256 == one.record.received_sha256 for one in some]
    lab.measure("real-identical-answers", float(np.mean([*same, *whole])), compared=len(same))
    lab.measure("real-transfer-over-prefill", share, prompt_tokens=length)
    figure, axes = new_figure()
    for color, (name, answers) in zip(COLORS, streams.items(), strict=False):
        begin = min(one.submitted_s for one in answers)
        points = [(t - begin, 1e3 * gap) for one in answers for t, gap in zip(one.times_s[1:], one.gaps_s, strict=True)]
        axes.plot(*zip(*points, strict=True), ".", color=color, label=name, alpha=0.7)
    labels = {"xlabel": "seconds", "ylabel": "time between tokens, ms", "yscale": "log"}
    keep(lab, "token-gaps", figure, axes, "Every gap between two tokens of an answer, real servers", **labels)
    return share
