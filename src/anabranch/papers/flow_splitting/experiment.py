"""Can single paths match packet spraying? Congestion of every pattern, completion times, packets, failures, scale, a real job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

import anabranch.fabric as fb
import anabranch.simulation as models
from anabranch.fabric import LeafSpine, Plan, SprayPlan, Topology, Traffic, TrafficPhase
from anabranch.lab import Lab, time_pairs
from anabranch.lab.figures import curves_of, new_figure, plot_curves
from anabranch.papers.flow_splitting import Settings

MIB = 2**20
WHOLE = 240  # a flow of a multiple of this many bytes is cut into whole bytes over 16, 15 or 12 spines
Row = dict[str, Any]
Planner = Callable[[Topology, Traffic, int], Plan | SprayPlan]

PLANNERS: dict[str, Planner] = {
    "ECMP": lambda topology, traffic, seed: fb.plan_ecmp(topology, traffic, seed=seed),
    "ECMP-2": lambda topology, traffic, seed: fb.plan_ecmp(topology, traffic, split=2, seed=seed),
    "ECMP-4": lambda topology, traffic, seed: fb.plan_ecmp(topology, traffic, split=4, seed=seed),
    "ECMP-8": lambda topology, traffic, seed: fb.plan_ecmp(topology, traffic, split=8, seed=seed),
    "greedy": lambda topology, traffic, seed: fb.plan_greedy(topology, traffic),
    "split per leaf": lambda topology, traffic, seed: fb.plan_split(topology, traffic, group="source"),
    "split": lambda topology, traffic, seed: fb.plan_split(topology, traffic),
    "konig": lambda topology, traffic, seed: fb.plan_konig(topology, traffic),
    "spray": lambda topology, traffic, seed: fb.plan_spray(topology, traffic),
}
MODELS = {"smollm2-135m": models.SMOLLM2_135M, "llama-2-70b": models.LLAMA2_70B, "mixtral-8x7b": models.MIXTRAL_8X7B}
RANDOM = ("ECMP", "ECMP-2", "ECMP-4", "ECMP-8")
SHOWN = ("ECMP", "ECMP-8", "greedy", "split", "konig", "spray")


def experiment(lab: Lab, settings: Settings) -> None:
    fabric = LeafSpine(settings.leaves, settings.spines, settings.hosts_per_leaf)
    placement = fb.read_placement(settings.placement, n_nics=fabric.n_nics) if settings.placement else None
    job = training_phases(lab, settings, fabric, placement)  # the user's file first: an error in it costs no time
    worst = congestion(lab, settings)
    messages(lab, settings, fabric)
    rings(lab, settings, fabric)
    packets(lab, settings, fabric)
    failures(lab, settings, fabric)
    lab.measure("konig-congestion-over-optimum", max(worst["konig"], scale(lab, settings)), unit="x")
    training_job(lab, settings, fabric, job)


def plan(settings: Settings) -> list[tuple[str, str]]:
    """What a run is made of, for ``--dry-run``."""
    small = LeafSpine(settings.leaves, settings.spines, settings.hosts_per_leaf)
    networks = {"leaf-spine": small, "large leaf-spine": LeafSpine(settings.large_leaves, 32, 32)}
    sizes = [(name, f"{network.n_nics:,} NICs, {network.n_links:,} links") for name, network in networks.items()]
    return [*sizes, ("planners", ", ".join(PLANNERS))]


# What each pattern loads on the busiest link, beside the optimum.


def patterns(ranks: int, message_bytes: int, generator: np.random.Generator) -> Iterator[tuple[str, Traffic]]:
    """Twelve patterns of equal flows, whole bytes when cut."""
    size = ranks * WHOLE * max(1, message_bytes // (ranks * WHOLE))
    shuffled = generator.permutation(ranks)
    reduce = partial(fb.collective, "all-reduce", ranks=ranks, message_bytes=size)
    yield "ring", reduce(algorithm="ring", steps=[0])
    yield "ring, shuffled", reduce(algorithm="ring", steps=[0], placement=shuffled)
    yield "halving-doubling", reduce(algorithm="halving-doubling")
    yield "halving-doubling, shuffled", reduce(algorithm="halving-doubling", placement=shuffled)
    yield "recursive doubling", reduce(algorithm="recursive-doubling")
    yield "double binary tree", reduce(algorithm="double-binary-tree")
    yield "double binary tree, shuffled", reduce(algorithm="double-binary-tree", placement=shuffled)
    yield "hierarchical", reduce(algorithm="hierarchical", ranks_per_host=8)
    yield "all-to-all", fb.collective("all-to-all", ranks=ranks, message_bytes=size)
    yield "all-to-all, shifts", fb.collective("all-to-all", ranks=ranks, message_bytes=size, algorithm="linear-shift")
    yield "permutation", fb.permutation(ranks=ranks, message_bytes=size, generator=generator)
    yield "pipeline", fb.collective("pipeline", ranks=ranks, message_bytes=size, placement=shuffled)


def congestion(lab: Lab, settings: Settings) -> dict[str, float]:
    spines = sorted({settings.spines, settings.spines - 1, settings.spines * 3 // 4} - {0}, reverse=True)
    rows: list[Row] = []
    worst = dict.fromkeys(PLANNERS, 0.0)
    with lab.stage("congestion", total=12 * len(spines)) as stage:
        for count in spines:
            fabric = LeafSpine(settings.leaves, count, settings.hosts_per_leaf)
            for pattern, traffic in patterns(fabric.n_nics, round(settings.message_mib[0] * MIB), lab.generator):
                best = fb.closed_form_optimum(fabric, traffic)
                used = best > 0  # steps in which something crosses the spines
                row: Row = {"spines": count, "pattern": pattern, "flows": traffic.n_flows}
                for name, planner in PLANNERS.items():
                    plans = [planner(fabric, traffic, seed) for seed in hash_seeds(lab, settings, name, traffic)]
                    over = [float((p.step_congestion_s()[used] / best[used]).max(initial=0)) for p in plans]
                    row[name] = fmean(over)
                    worst[name] = max(worst[name], *over)
                    if isinstance(plans[0], Plan):
                        row[f"{name}: queue pairs"] = float(plans[0].queue_pairs_per_nic().mean())
                rows.append(row)
                stage.advance(pattern=pattern)
        heat_map(lab, settings)
    lab.table("congestion", rows, caption="Highest congestion of a step over the optimum, and queue pairs per NIC")
    lab.measure("split-congestion-over-optimum", worst["split"], unit="x")
    lab.measure("split-per-leaf-congestion-over-optimum", worst["split per leaf"], unit="x")
    lab.measure("ecmp8-queue-pairs-all-to-all", max(row["ECMP-8: queue pairs"] for row in rows))
    first = [row for row in rows if row["spines"] == spines[0]]
    shown = SHOWN[:-1]
    figure, axes = new_figure(figsize=(8.6, 4.6))
    dots = {name: ([row[name] for row in first], list(range(len(first)))) for name in shown}
    title = f"Busiest link, {settings.leaves} x {spines[0]} x {settings.hosts_per_leaf}"
    plot_curves(dots, title=title, x="congestion over the optimum (spraying: 1)", y="", lines=False, axes=axes)
    axes.set_yticks(range(len(first)), [row["pattern"] for row in first])
    lab.figure("congestion", figure, caption="Congestion of the busiest link over ideal packet spraying, by pattern")
    pareto = {name: ([row[f"{name}: queue pairs"] for row in first], [row[name] for row in first]) for name in shown}
    pairs, title = "queue pairs per NIC, all steps", "Collisions against queue pairs"
    figure = plot_curves(pareto, title=title, x=pairs, y="congestion over the optimum", log="x", lines=False)
    lab.figure("queue-pairs", figure, caption="Queue pairs per NIC against congestion, one point a pattern")
    return worst


def hash_seeds(lab: Lab, settings: Settings, planner: str, traffic: Traffic) -> Iterable[int]:
    """Seeds of the hash for a mean: one where nothing is random, three at most where flows are many and the mean is tight."""
    count = min(settings.hash_seeds, 3) if traffic.n_flows > 10_000 else settings.hash_seeds
    first = lab.seed * settings.hash_seeds
    return range(first, first + count) if planner in RANDOM else range(1)


def heat_map(lab: Lab, settings: Settings) -> None:
    fabric = LeafSpine(settings.leaves, settings.spines, settings.hosts_per_leaf)
    traffic = fb.permutation(ranks=fabric.n_nics, message_bytes=MIB * WHOLE, generator=lab.generator)
    best = float(fb.closed_form_optimum(fabric, traffic)[0])
    figure, axes = new_figure(1, 4, figsize=(11, 3.4), sharey=True)
    for axis, name in zip(axes, ("ECMP", "ECMP-8", "greedy", "konig"), strict=True):
        chosen = PLANNERS[name](fabric, traffic, lab.seed)
        load = chosen.congestion_s(0)[fabric.downlink(np.arange(settings.leaves)[:, None], np.arange(settings.spines))]
        image = axis.imshow(load / best, vmin=0, vmax=4, cmap="cividis", aspect="auto")
        axis.set_title(f"{name}: max {load.max() / best:.2f}", loc="left", fontweight="bold")
        axis.set_xlabel("spine")
        axis.grid(visible=False)
    axes[0].set_ylabel("leaf")
    figure.colorbar(image, ax=axes, label="load over the optimum")
    lab.figure("link-load", figure, caption="Load of every downlink under one random permutation")
    uneven = fb.moe_traffic(
        ranks=fabric.n_nics, tokens=512, experts=fabric.n_nics, top_k=2, hidden=4096, skew=0.5, generator=lab.generator
    )
    over = fb.plan_konig(fabric, uneven).step_congestion_s() / fb.closed_form_optimum(fabric, uneven)
    lab.measure("moe-konig-over-optimum", float(over.max()), unit="x")


# How long collectives take, by message size: exact max-min fluid.


def messages(lab: Lab, settings: Settings, fabric: LeafSpine) -> None:
    ranks = fabric.n_nics
    rows: list[Row] = []
    with lab.stage("message sizes", total=4 * len(settings.message_mib)) as stage:
        for mib in settings.message_mib:
            size = round(mib * MIB)
            reduce = partial(fb.collective, "all-reduce", ranks=ranks, message_bytes=size)
            for pattern, traffic in (
                ("halving-doubling", reduce(algorithm="halving-doubling")),
                ("shuffled ring, a step", reduce(placement=lab.generator.permutation(ranks), steps=[0])),
                ("all-to-all", fb.collective("all-to-all", ranks=ranks, message_bytes=size)),
                ("permutation", fb.permutation(ranks=ranks, message_bytes=size, generator=lab.generator)),
            ):
                rows.append({"pattern": pattern, "MiB": mib, **completion(lab, settings, fabric, traffic)})
                stage.advance(pattern=pattern)
        crossing = completion(lab, settings, fabric, between_leaves(fabric, round(max(settings.message_mib) * MIB)))
    lab.table("completion", rows, caption="Completion time in seconds (mean over hash seeds for ECMP)")
    ratio = partial(lab.measure, unit="x", scale="log")
    for name in RANDOM:
        ratio(f"{name.replace('-', '').lower()}-over-split-halving-doubling", crossing[name] / crossing["split"])
    by_pattern = {p: [row for row in rows if row["pattern"] == p] for p in ("permutation", "all-to-all")}
    ratio("ecmp-over-split-all-to-all", by_pattern["all-to-all"][-1]["ECMP"] / by_pattern["all-to-all"][-1]["split"])
    figure, axes = new_figure(1, 2, figsize=(10, 4.2))
    for axis, (pattern, found) in zip(axes, by_pattern.items(), strict=True):
        over = [{"MiB": row["MiB"], **{name: row[name] / row["spray"] for name in SHOWN}} for row in found]
        curves = curves_of(over, "MiB", SHOWN)
        plot_curves(curves, title=pattern, x="message, MiB", y="completion over ideal spraying", log="x", axes=axis)
    lab.figure("completion", figure, caption="Completion time against message size, exact max-min fluid")


def completion(lab: Lab, settings: Settings, topology: Topology, traffic: Traffic) -> dict[str, float]:
    """Completion time by planner, in seconds; the mean over hash seeds where there is a hash."""
    return {
        name: fmean(
            fb.simulate_fluid(topology, PLANNERS[name](topology, traffic, seed)).completion_s
            for seed in hash_seeds(lab, settings, name, traffic)
        )
        for name in PLANNERS
    }


def between_leaves(fabric: LeafSpine, size: int) -> Traffic:
    """The first step of a halving-doubling all-reduce in which every flow leaves its leaf."""
    whole = fb.collective("all-reduce", ranks=fabric.n_nics, message_bytes=size, algorithm="halving-doubling")
    for step, flows in whole.flows_by_step():
        if (fabric.leaf_of(whole.src[flows]) != fabric.leaf_of(whole.dst[flows])).all():
            return fb.collective(
                "all-reduce", ranks=fabric.n_nics, message_bytes=size, algorithm="halving-doubling", steps=[step]
            )
    raise ValueError("no step of halving-doubling leaves the leaves")


# The paper's null result: a ring in order crosses each leaf border once.


def rings(lab: Lab, settings: Settings, fabric: LeafSpine) -> None:
    spread = []
    size = round(settings.message_mib[0] * MIB)
    networks: list[Topology] = [fabric] if settings.leaves < 8 else [fabric, fb.FatTree()]
    with lab.stage("rings in order", total=len(networks)) as stage:
        for network in networks:
            ring = fb.collective(
                "all-reduce", ranks=network.n_nics, message_bytes=size, steps=[0]
            )  # all steps are alike
            times = completion(lab, settings, network, ring)
            spread.append(max(times.values()) / min(times.values()))
            stage.advance()
    lab.measure("ring-slowest-over-fastest", max(spread), unit="x")


# Packets: what the fluid does not see.


def packets(lab: Lab, settings: Settings, fabric: LeafSpine) -> None:
    size, ranks = round(settings.packet_mib * MIB), fabric.n_nics
    traffics = {
        "halving-doubling": fb.collective("all-reduce", ranks=ranks, message_bytes=size, algorithm="halving-doubling"),
        "all-to-all": fb.collective("all-to-all", ranks=ranks, message_bytes=size),
        "permutation": fb.permutation(ranks=ranks, message_bytes=size, generator=lab.generator),
    }
    broken = with_cut_cables(fabric, settings.failed_uplinks)
    # Endless windows, and the bandwidth-delay product of a path: four hops there, four back, four packets sent.
    rate = float(fabric.capacity_bytes_per_s[0])
    product = round(rate * (8 * float(fabric.latency_s[0])) + 4 * 4096)
    arms: list[tuple[str, LeafSpine, str, int | None]] = [
        ("whole", fabric, "known", None),
        ("whole, one BDP in flight", fabric, "known", product),
        ("failed", broken, "known", None),
        ("failed, found out", broken, "oblivious", None),
    ]
    rows, reordered = list[Row](), 0
    with lab.stage("packets", total=len(traffics) * len(arms)) as stage:
        for pattern, traffic in traffics.items():
            plans = {"split": fb.plan_split(fabric, traffic), "konig": fb.plan_konig(fabric, traffic)}
            for links, network, told, window in arms:
                run = partial(fb.simulate_packets, network, seed=lab.seed, failures=told, window_bytes=window)
                row: Row = {"pattern": pattern, "links": links}
                for name, own in plans.items():
                    moved = fb.replan(own, network) if network is broken and told == "known" else own
                    result = run(moved)
                    row[name] = result.completion_s
                    reordered += int(result.reordered_packets.sum()) if network is fabric else 0
                    if name == "split" and told == "known":
                        row["split, fluid"] = fb.simulate_fluid(network, moved).completion_s
                for spray in ("random", "round-robin", "reps"):
                    result = run(traffic, spray=spray)
                    row[spray] = result.completion_s
                    row[f"{spray}: reordered"] = result.reordered_fraction
                rows.append(row)
                stage.advance(pattern=pattern, links=links)
    lab.table("packets", rows, caption="Completion in seconds of 4 KiB packets; reordered packets as a share")
    ratio = partial(lab.measure, unit="x", scale="log")
    informed = [row for row in rows if row["links"] != "failed, found out"]
    whole = [row for row in informed if row["links"] != "failed"]
    ratio("spray-over-split-packets", max(row["random"] / row["split"] for row in whole))
    ratio("round-robin-over-split-packets", max(row["round-robin"] / row["split"] for row in whole))
    ratio("reps-over-split-packets", max(row["reps"] / row["split"] for row in informed))
    ratio("spray-over-konig-packets", max(row["random"] / row["konig"] for row in whole))
    ratio("reps-over-split-packets-least", min(row["reps"] / row["split"] for row in rows))
    lab.measure("reordered-packets-split", reordered)


# Links that fail: move only the pieces on dead links, or plan anew.


def failures(lab: Lab, settings: Settings, fabric: LeafSpine) -> None:
    traffic = between_leaves(fabric, round(settings.message_mib[-1] * MIB))
    own = fb.plan_split(fabric, traffic)
    rows: list[Row] = []
    with lab.stage("failures", total=settings.failed_uplinks + 1) as stage:
        for count in range(settings.failed_uplinks + 1):
            network = with_cut_cables(fabric, count)
            row: Row = {"failed": count, **completion(lab, settings, network, traffic)}
            row["split, moved"] = fb.simulate_fluid(network, fb.replan(own, network)).completion_s
            rows.append(row)
            stage.advance()
    lab.table("failures", rows, caption="Seconds of a halving-doubling step with failed cables at one leaf")
    curves = curves_of(rows, "failed", [*SHOWN, "split, moved"], unit=1e-3)
    figure = plot_curves(curves, title="Failures", x="failed cables of one leaf", y="completion, ms", from_zero=True)
    lab.figure("failures", figure, caption="Completion of a halving-doubling step against failed cables")


def with_cut_cables(fabric: LeafSpine, count: int) -> LeafSpine:
    """The fabric without the cables from leaf 0 to the first ``count`` spines."""
    return fb.fail_links(fabric, np.array([fabric.cable(0, spine) for spine in range(count)], dtype=np.int64).ravel())


# Size: two orders of magnitude beyond the paper's networks.


def scale(lab: Lab, settings: Settings) -> float:
    leaves, size = settings.large_leaves, 24 * 31 * 32 * 100  # whole bytes when cut over 32, 31 or 24 spines
    rows: list[Row] = []
    with lab.stage("large networks", total=5) as stage:
        for spines in (32, 31, 24):
            large = LeafSpine(leaves, spines, 32)
            traffic = fb.permutation(ranks=large.n_nics, message_bytes=size, generator=np.random.default_rng(lab.seed))
            best = float(fb.closed_form_optimum(large, traffic)[0])
            for name in ("ECMP", "ECMP-8", "greedy", "split", "konig"):
                chosen = PLANNERS[name](large, traffic, lab.seed)
                assert isinstance(chosen, Plan)
                facts = {"congestion": chosen.max_congestion_s() / best, "pieces": chosen.n_pieces / traffic.n_flows}
                rows.append({"NICs": large.n_nics, "spines": spines, "planner": name, **facts})
            lab.measure(f"konig-pieces-per-flow-{spines}-spines", rows[-1]["pieces"])
            stage.advance(spines=spines)
        lab.measure("konig-pieces-per-flow", rows[-1]["pieces"])
        large = LeafSpine(leaves, 32, 32)
        shuffle = fb.permutation(ranks=large.n_nics, message_bytes=size, generator=lab.generator)
        times = {
            name: fb.simulate_fluid(large, PLANNERS[name](large, shuffle, lab.seed)).completion_s for name in SHOWN
        }
        lab.measure("ecmp-over-konig-large-permutation", times["ECMP"] / times["konig"], unit="x", scale="log")
        message = large.n_nics * WHOLE
        doubling = fb.collective("all-reduce", ranks=large.n_nics, message_bytes=message, algorithm="halving-doubling")
        both = partial(plan_and_simulate, large, (shuffle, doubling))
        lab.time("large-plan-and-fluid", both, pairs=5, NICs=large.n_nics, flows=shuffle.n_flows + doubling.n_flows)
        stage.advance()
        growth(lab, leaves)
    lab.table("large", rows, caption="A random permutation on the large leaf-spine: over the optimum, pieces per flow")
    return max(float(row["congestion"]) for row in rows if row["planner"] == "konig")


def plan_and_simulate(fabric: LeafSpine, traffics: Iterable[Traffic]) -> None:
    for traffic in traffics:
        fb.simulate_fluid(fabric, fb.plan_konig(fabric, traffic))


def growth(lab: Lab, most_leaves: int) -> None:
    """Seconds of planning and simulating a permutation, and of planning an all-to-all by counts, against NICs."""
    rows: list[Row] = []
    for leaves in sorted({max(2, most_leaves // 16), max(2, most_leaves // 4), most_leaves, most_leaves * 4}):
        large = LeafSpine(leaves, 32, 32)
        traffic = fb.permutation(ranks=large.n_nics, message_bytes=MIB, generator=lab.generator)
        work: dict[str, Callable[[], object]] = {
            "konig": partial(fb.plan_konig, large, traffic),
            "split": partial(fb.plan_split, large, traffic),
            "fluid": partial(fb.simulate_fluid, large, fb.plan_konig(large, traffic)),
        }
        if leaves <= most_leaves:
            work["all-to-all by counts"] = partial(fb.konig_matrix, fb.LeafDemand.all_to_all(large, 1), 31)
        rows.append({"NICs": large.n_nics, **{name: time_pairs(call, pairs=3).value for name, call in work.items()}})
    lab.table("growth", rows, caption="Seconds against NICs, one process (medians of 3)")
    curves = curves_of(rows, "NICs", ["konig", "split", "fluid", "all-to-all by counts"])
    figure = plot_curves(curves, title="A permutation, one core", x="NICs", y="seconds", log="xy")
    lab.figure("growth", figure, caption="Time of planning and of exact simulation against the size of the network")


# A training job on the user's placement.


def training_phases(
    lab: Lab, settings: Settings, fabric: LeafSpine, placement: np.ndarray | None
) -> tuple[TrafficPhase, ...]:
    shape = MODELS[settings.model]
    ranks = fabric.n_nics if placement is None else len(placement)
    tensor, stages = (1, 2) if settings.model == "smollm2-135m" else (8, 4)
    if ranks % (tensor * stages):
        raise ValueError(f"placement={settings.placement!r}: {ranks} ranks, expected a multiple of {tensor * stages}")
    data = ranks // (tensor * stages)
    return fb.model_traffic(
        shape,
        tensor_parallel=tensor,
        pipeline=stages,
        data=data,
        expert_parallel=min(data, shape.experts),
        sequence=4096,
        micro_batches=2 * stages,
        generator=lab.generator,
        placement=placement,
    )


def training_job(lab: Lab, settings: Settings, fabric: LeafSpine, job: tuple[TrafficPhase, ...]) -> None:
    rows: list[Row] = []
    with lab.stage("training job", total=len(job)) as stage:
        for phase in job:
            times = completion(lab, settings, fabric, phase.traffic)
            rows.append({"phase": phase.name, **{name: seconds * phase.repeats for name, seconds in times.items()}})
            stage.advance(phase=phase.name)
    total = {name: sum(row[name] for row in rows) for name in PLANNERS}
    name = MODELS[settings.model].name
    lab.table(
        "training-job", [*rows, {"phase": "all", **total}], caption=f"Seconds of communication, one iteration of {name}"
    )
    lab.measure("job-ecmp-over-split", total["ECMP"] / total["split"], unit="x", scale="log", model=name)
    lab.measure("job-split-seconds", total["split"], unit="s")
