"""Serving language models with the two phases of a request on different machines, and planning such clusters."""

from dataclasses import dataclass
from datetime import date
from typing import Literal

from anabranch.lab import Claim, Paper


@dataclass(frozen=True)
class Settings:
    """What a run may change. Budgets are those of ``machines`` DGX-H100."""

    machines: int  # DGX-H100 whose power and cost are the budgets
    search_seconds: float  # of arrivals, in every search for the highest rate
    tolerance: float  # of that rate, relative
    rate_per_s: float  # at which the least machines are looked for
    most_machines: int  # of each role in that search
    transfer_prompts: tuple[int, ...]  # prompt lengths of the transfer study
    server_model: Literal["smollm2-135m", "tiny"]  # that the real servers run; "tiny" has random weights
    server_seconds: float  # of arrivals at the real servers
    server_rate_per_s: float
    server_lengths_over: int  # conversation lengths are divided by this
    data: Literal["azure", "published quantiles"] = "azure"  # traces and profiles, or what is embedded
    golden: str = ""  # folder with the released simulator's answers, golden_*.csv; else $ANABRANCH_SHARED is looked at

    def __post_init__(self) -> None:
        for name in ("machines", "most_machines", "server_lengths_over"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("search_seconds", "rate_per_s", "server_seconds", "server_rate_per_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance}: expected between 0 and 1")
        if not self.transfer_prompts or min(self.transfer_prompts) < 1:
            raise ValueError(f"transfer_prompts={self.transfer_prompts}: expected lengths of at least 1")


PAPER = Paper(
    slug="splitwise",
    title="Splitwise: Efficient generative LLM inference using phase splitting",
    authors=(
        "Pratyush Patel",
        "Esha Choukse",
        "Chaojie Zhang",
        "Aashaka Shah",
        "Íñigo Goiri",
        "Saeed Maleki",
        "Ricardo Bianchini",
    ),
    published=date(2023, 11, 30),
    arxiv="2311.18677",
    repository="Mutinifni/splitwise-sim",
    summary=(
        "Reading the prompt of a request is bound by arithmetic, writing its answer token by token by memory, and on one "
        "machine the two disturb each other. Splitwise gives prefill and decode to different machines, ships the "
        "key-value cache between them layer by layer, and lets a simulator find how many of which machine to buy under "
        "a budget of money, power or space. For operators who size clusters and for builders of serving engines."
    ),
    package="serving",
    extra="serving",
    data=("azure-llm-2023", "splitwise-profiles", "smollm2-135m"),
    parts=(
        "anabranch.serving:simulate_cluster",
        "anabranch.serving:Cluster",
        "anabranch.serving:ProfileTable",
        "anabranch.serving:published_performance",
        "anabranch.serving:profile_model",
        "anabranch.serving:max_rate",
        "anabranch.serving:most_throughput",
        "anabranch.serving:least_machines",
        "anabranch.serving:PhaseSplitServer",
        "anabranch.serving:ColocatedServer",
        "anabranch.serving:PrefillWorker",
        "anabranch.serving:DecodeWorker",
        "anabranch.serving:kv_to_buffers",
        "anabranch.serving:kv_from_buffers",
    ),
    example="""\
import numpy as np

from anabranch.serving import Cluster, Pool, poisson_requests, published_lengths, published_performance, simulate_cluster
from anabranch.simulation import BLOOM_176B, DGX_H100

generator = np.random.default_rng(0)
requests = poisson_requests(published_lengths("conversation", 5000, generator=generator), 10.0, 60.0, generator=generator)
times = {DGX_H100.name: published_performance("bloom-176b", "h100-80gb", by="requests")}
kv, weights = BLOOM_176B.kv_bytes_per_token(), 329 * 10**9
split = Cluster((Pool(DGX_H100, 5, "prompt"), Pool(DGX_H100, 4, "token")), times, kv, weights)
mixed = Cluster((Pool(DGX_H100, 9, "mixed"),), times, kv, weights, "join_shortest_queue")
gaps = [np.nanpercentile(simulate_cluster(cluster, requests).tbt_s, 99) for cluster in (split, mixed)]
assert gaps[0] < gaps[1]
""",
    scales={
        "smoke": Settings(
            machines=6,
            search_seconds=8.0,
            tolerance=0.1,
            rate_per_s=4.0,
            most_machines=12,
            transfer_prompts=(512, 2048),
            server_model="tiny",
            server_seconds=1.0,
            server_rate_per_s=3.0,
            server_lengths_over=16,
            data="published quantiles",
        ),
        "laptop": Settings(
            machines=40,
            search_seconds=60.0,
            tolerance=0.02,
            rate_per_s=70.0,
            most_machines=128,
            transfer_prompts=(128, 256, 512, 1024, 2048, 4096, 8192),
            server_model="smollm2-135m",
            server_seconds=30.0,
            server_rate_per_s=0.7,
            server_lengths_over=8,
        ),
        "paper": Settings(
            machines=40,
            search_seconds=600.0,
            tolerance=0.01,
            rate_per_s=70.0,
            most_machines=128,
            transfer_prompts=(128, 256, 512, 1024, 2048, 4096, 8192),
            server_model="smollm2-135m",
            server_seconds=600.0,
            server_rate_per_s=0.7,
            server_lengths_over=8,
        ),
    },
    seconds={"smoke": 10, "laptop": 240, "paper": 7200},
    claims=(
        Claim(
            name="throughput-at-lower-cost",
            says="A cluster designed this way serves more requests for less money than designs in use.",
            published="1.4x at 20 % lower cost",
            where="abstract",
            read_in="abstract",
            published_setting="cluster design search; current designs",
            measure="rate-at-lower-cost",
            at_least=1.15,
            setting_here="published profiles, conversation lengths, best split design for 80 % of the money of Baseline-H100",
        ),
        Claim(
            name="throughput-at-same-budget",
            says="For the same money and the same power it serves more than twice as many requests.",
            published="2.35x",
            where="abstract",
            read_in="abstract",
            published_setting="cluster design search; current designs",
            measure="rate-at-same-cost-and-power",
            at_least=1.6,
            setting_here="published profiles, conversation lengths, best split design within both budgets of Baseline-A100",
        ),
        Claim(
            name="old-machines-same-power",
            says="On A100 machines alone, splitting the phases doubles the throughput of the same power and cost.",
            published="2.15x",
            where="evaluation, from reading notes",
            read_in="secondary",
            published_setting="BLOOM-176B, conversation trace, equal power; Baseline-A100",
            measure="aa-over-baseline-a100-power",
            at_least=1.5,
            setting_here="published profiles, conversation lengths, decode times asked as in the released simulator",
        ),
        Claim(
            name="throughput-at-same-cost",
            says="For the money of an H100 cluster, split A100 machines serve more, at more power and twice the space.",
            published="1.4x, 25 % more power, 2x space",
            where="evaluation, from reading notes",
            read_in="secondary",
            published_setting="equal cost; Baseline-H100",
            measure="aa-over-baseline-h100-cost",
            at_least=1.15,
            setting_here="published profiles, conversation lengths, decode times asked as in the released simulator",
        ),
        Claim(
            name="power-at-same-throughput",
            says="Power-capped decode machines serve the same load with less power at the same cost and space.",
            published="25 % less",
            where="evaluation, from reading notes",
            read_in="secondary",
            published_setting="equal throughput, H100 prompts and capped H100 decodes; Baseline-H100",
            measure="hhcap-over-baseline-h100-power",
            at_most=0.85,
            setting_here="published profiles, conversation lengths, decode times asked as in the released simulator",
        ),
        Claim(
            name="cache-transfer",
            says="Shipping the cache while the prompt is still computed costs next to nothing end to end.",
            published="0.8 % of the request (serialised: up to 3 %); second token 16.5 % later (serialised: 64 %)",
            where="evaluation, from reading notes",
            read_in="secondary",
            published_setting="InfiniBand, 200 Gb/s (A100) and 400 Gb/s (H100); no transfer",
            measure="exposed-transfer-over-prompt",
            at_most=0.07,
            setting_here="the larger of two shares of the prompt time, BLOOM-176B on H100 over 400 Gb/s from 1,024 tokens on and "
            "the real SmolLM2 server at 512",
        ),
        Claim(
            name="workload-shift",
            says="A mixed cluster built for coding loses little when the traffic turns into conversation.",
            published="7 % less throughput",
            where="robustness part, from reading notes",
            read_in="secondary",
            published_setting="heterogeneous designs, Azure coding and conversation traces",
            measure="loss-when-traffic-shifts",
            at_most=0.15,
            setting_here="published profiles, HA split for coding under conversation, against HA split for it",
        ),
        Claim(
            name="performance-model-error",
            says="Piecewise-linear timing models follow the measured machines closely.",
            published="mean absolute percentage error below 3 %",
            where="simulator part, from reading notes",
            read_in="secondary",
            published_setting="A100 and H100 profiles",
            measure="profile-mape",
            at_most=0.03,
            setting_here="four fifths of the published measurements at random against the rest",
            same_setting=True,
        ),
    ),
)
