"""Do machines for prompts and machines for tokens serve more than machines for both? Simulated clusters, and a real server."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

import anabranch.serving as sv
from anabranch.lab import Lab
from anabranch.lab.figures import COLORS, curves_of, new_figure, plot_curves
from anabranch.papers.splitwise import Settings
from anabranch.papers.splitwise.real_servers import real_servers
from anabranch.papers.splitwise.setup import Data, Row, design, keep, load_of, read_data, reference
from anabranch.serving import Load, Provision, RequestTable, Transfers
from anabranch.simulation import BLOOM_176B, GIB

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
    load = f"{settings.search_seconds:g} s of arrivals, rates to {settings.tolerance:.1%}"
    server = f"{settings.server_seconds:g} s at {settings.server_rate_per_s:g} requests/s"
    return [
        (
            "budgets",
            f"{sum(len(one[-1]) for one in SEARCHES)} searches over splits of {settings.machines} DGX-H100's, {load}",
        ),
        (
            "throughput",
            f"{len(PAIRS)} designs for {settings.rate_per_s:g} requests/s, up to {settings.most_machines} machines a role",
        ),
        (
            "transfers",
            f"one request of {', '.join(str(n) for n in settings.transfer_prompts)} tokens, 200 and 400 Gb/s",
        ),
        ("server", f"{settings.server_model}, colocated, in chunks and split: {server} each, on two cores"),
    ]


def equality(lab: Lab, settings: Settings, data: Data) -> None:
    """A request alone has a closed form; the released simulator's answers to 1,165 requests are compared where they are."""
    model = data.performance(H.device.name, "requests")
    alone_there = sv.simulate_cluster(design("HH", data).build(1, 1), RequestTable.of([1.0], [1500], [200]))
    sent = 1500 * BLOOM_176B.kv_bytes_per_token() / (200 * GIB)
    alone = float(model.prompt_seconds(1500)) + sent + 199 * float(model.decode_seconds(1, 0))
    worst, compared = abs(float(alone_there.e2e_s[0]) - alone), "a closed form"
    folder = golden_folder(settings)
    if folder is None:
        lab.table("reference", [{"file": "none", "reason": "golden_*.csv of the released simulator are not here"}])
    elif settings.data == "azure":
        rows = sv.answer_differences(design("HH", data).build(6, 4), folder / "golden_hh10_conv20.csv")
        rows += sv.answer_differences(design("Baseline-H100", data).build(10), folder / "golden_base10_conv20.csv")
        worst = max(worst, *(row["largest difference, s"] for row in rows))
        lab.table("reference", rows, caption="Against the released simulator, request by request")
        compared = "2,330 requests of the released simulator"
    lab.measure("reference-difference", worst, unit="s", compared=compared)


def golden_folder(settings: Settings) -> Path | None:
    shared = os.environ.get("ANABRANCH_SHARED")
    folder = Path(settings.golden or (Path(shared) / "splitwise-profiles" if shared else ""))
    if (folder / "golden_hh10_conv20.csv").is_file():
        return folder
    if settings.golden:
        raise ValueError(f"golden={settings.golden!r}: there is no golden_hh10_conv20.csv in it")
    return None


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
        # What the paper does not compare with: both phases on one machine, prompts in chunks of 512 tokens.
        "aa-over-chunked-a100-power": rate("power", "AA") / rate("power", "Chunked-A100"),
        "ha-over-chunked-h100-power": rate("power", "HA") / rate("power", "Chunked-H100"),
        "best-split-over-best-chunked-power": max(rate("power", name) for name in splits)
        / max(rate("power", name) for name in CHUNKED),
        "chunked-over-baseline-h100-power": rate("power", "Chunked-H100") / rate("power", "Baseline-H100"),
        "aa-over-baseline-a100-power-code": rate("power", "AA", "code") / rate("power", "Baseline-A100", "code"),
        "ha-over-baseline-h100-power-code": rate("power", "HA", "code") / rate("power", "Baseline-H100", "code"),
    }
    for name, ratio in found.items():
        lab.measure(name, ratio, unit="x", scale="log")
    for name in (*splits, "Chunked-H100"):
        ratio = rate("power", name, by="context") / rate("power", "Baseline-H100", by="context")
        lab.measure(f"{name.lower()}-over-baseline-h100-power-by-context", ratio, unit="x")
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
        places = [(one.prompts, one.tokens) for one in all_of_it]
        axes.plot(
            *zip(*places, strict=True),
            "o-",
            color=color,
            label=f"{name}, {max(one.rate_per_s for one in all_of_it):.0f}/s",
            markersize=4,
        )
    labels = {"xlabel": "prompt machines", "ylabel": "token machines"}
    keep(lab, "plane", figure, axes, "Splits of equal power that kept the best rate so far when tried", **labels)


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
            for one in (least, coldest):
                amounts = {"power": one.provisioned_w, "cost": one.cost_per_hour}
                rows.append({"design": name, "prompt": one.prompts, "token": one.tokens, **amounts})
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
    labels = {"xlabel": "answers under way", "ylabel": "share of the time"}
    keep(lab, "batches", figure, axes, "Decoding batches of a mixed DGX-H100, 2 requests/s a machine", **labels)


def profile_error(lab: Lab, data: Data) -> None:
    """Lines through four fifths of the measurements against the rest; and each inner knot from the others."""
    knots = sv.left_out_knot_error([data.performance(one.device.name, "context") for one in (A, H) if one is not None])
    rest = sv.held_out_error(data.rows, generator=lab.generator) if data.rows else knots
    lab.measure("profile-mape", rest, measurements=len(data.rows))
    lab.measure("profile-mape-of-left-out-knots", knots)
