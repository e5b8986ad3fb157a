"""Single-path load balancing of collectives: cut the few flows that do not divide evenly, give every piece a path."""

from dataclasses import dataclass
from datetime import date
from typing import Literal

from anabranch.lab import Claim, Paper


@dataclass(frozen=True)
class Settings:
    """What a run may change. Sizes of networks are leaves x spines x NICs per leaf; all links have 400 Gb/s."""

    leaves: int  # of the leaf-spine on which completion times are measured
    spines: int
    hosts_per_leaf: int  # NICs on each leaf
    message_mib: tuple[float, ...]  # message sizes of the collectives, MiB
    hash_seeds: int  # seeds of the hash for every mean over ECMP
    large_leaves: int  # leaves of the large leaf-spine, with 32 spines and 32 NICs per leaf
    packet_mib: float  # message size of the packet-level runs, MiB
    failed_uplinks: int  # most cables cut between one leaf and its spines
    model: Literal["smollm2-135m", "llama-2-70b", "mixtral-8x7b"] = (
        "llama-2-70b"  # the training job of the GPT iteration
    )
    placement: str = ""  # csv file `rank,nic` of that job; ranks in order without

    def __post_init__(self) -> None:
        for name in ("leaves", "spines", "hosts_per_leaf", "hash_seeds", "large_leaves"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not self.message_mib or min(self.message_mib) <= 0:
            raise ValueError(f"message_mib={self.message_mib}: expected sizes above 0")
        if self.packet_mib <= 0:
            raise ValueError(f"packet_mib={self.packet_mib}: expected a size above 0")
        if not 0 <= self.failed_uplinks < self.spines:
            raise ValueError(
                f"failed_uplinks={self.failed_uplinks}: expected 0 to {self.spines - 1}, one spine must remain"
            )


PAPER = Paper(
    slug="flow-splitting",
    title="Challenging the Need for Packet Spraying in Large-Scale Distributed Training",
    authors=("Vamsi Addanki", "Prateesh Goyal", "Ilias Marinos"),
    published=date(2024, 6, 29),
    arxiv="2407.00550",
    summary=(
        "In a training cluster the flows of one collective have the same size, begin together and count only when the "
        "last of them is through, so their paths can be planned all at once. Each flow keeps a single path through the "
        "network; the few that do not divide evenly over the spines are cut into equal pieces, and every link of the "
        "leaf-spine fabric then carries what spraying single packets would put on it. For network architects and "
        "authors of collective libraries who must decide whether their network cards have to cope with reordered "
        "packets."
    ),
    package="fabric",
    parts=(
        "anabranch.fabric:LeafSpine",
        "anabranch.fabric:FatTree",
        "anabranch.fabric:plan_split",
        "anabranch.fabric:plan_konig",
        "anabranch.fabric:plan_ecmp",
        "anabranch.fabric:plan_greedy",
        "anabranch.fabric:plan_spray",
        "anabranch.fabric:optimum",
        "anabranch.fabric:simulate_fluid",
        "anabranch.fabric:simulate_packets",
        "anabranch.fabric:replan",
    ),
    example="""\
from anabranch.fabric import LeafSpine, collective, closed_form_optimum, plan_ecmp, plan_konig, simulate_fluid

fabric = LeafSpine(leaves=8, spines=4, hosts_per_leaf=4)
traffic = collective("all_reduce", algorithm="halving-doubling", ranks=fabric.n_nics, message_bytes=2**22)
plan = plan_konig(fabric, traffic)
assert plan.max_congestion_s() <= closed_form_optimum(fabric, traffic).max() * (1 + 1e-9)
hashed = plan_ecmp(fabric, traffic, seed=0)
assert simulate_fluid(fabric, plan).completion_s < simulate_fluid(fabric, hashed).completion_s
plan.to_csv("paths.csv")
""",
    scales={
        "smoke": Settings(
            leaves=4,
            spines=3,
            hosts_per_leaf=16,
            message_mib=(1.0,),
            hash_seeds=2,
            large_leaves=32,
            packet_mib=0.25,
            failed_uplinks=1,
            model="smollm2-135m",
        ),
        "laptop": Settings(
            leaves=16,
            spines=16,
            hosts_per_leaf=16,
            message_mib=(4.0, 16.0, 64.0, 256.0),
            hash_seeds=10,
            large_leaves=512,
            packet_mib=4.0,
            failed_uplinks=4,
        ),
        "paper": Settings(
            leaves=16,
            spines=16,
            hosts_per_leaf=16,
            message_mib=(4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0),
            hash_seeds=30,
            large_leaves=2048,
            packet_mib=64.0,
            failed_uplinks=4,
        ),
    },
    seconds={"smoke": 8, "laptop": 60, "paper": 3600},
    claims=(
        Claim(
            name="congestion-equals-spraying",
            says="With equal flows, one path each and a minimum of splitting load the busiest link no more than ideal "
            "spraying does, for every collective tried.",
            measure="split-congestion-over-optimum",
            at_most=1 + 1e-9,
            published="equal (ratio 1)",
            where="abstract of version 1; version 2, Theorem 1 (p. 5)",
            read_in="abstract",
            published_setting="leaf-spine network, flows of equal size; ideal spraying over all paths",
            setting_here="the worst of 12 patterns on leaf-spines of 256 NICs with 16, 15 and 12 spines",
            same_setting=True,
            kind="exact",
        ),
        Claim(
            name="konig-congestion",
            says="So does a plan whose cuts follow from a decomposition of each step into matchings.",
            measure="konig-congestion-over-optimum",
            at_most=1 + 1e-9,
            origin="ours",
            setting_here="the same, and permutations of the large leaf-spine with 32, 31 and 24 spines",
            same_setting=True,
            kind="exact",
        ),
        Claim(
            name="konig-few-pieces",
            says="That plan needs at most 1.51 pieces a flow for a permutation over 24 spines, where cutting per leaf pair "
            "needs over twenty.",
            measure="konig-pieces-per-flow",
            at_most=1.51,
            origin="ours",
            setting_here="16,384 NICs: 512 leaves x 24 spines x 32 NICs",
            same_setting=True,
            kind="exact",
        ),
        Claim(
            name="blind-splitting-is-not-enough",
            says="Cutting every flow into 8 parts and hashing each part to a path leaves halving-doubling at least 1.8 times "
            "slower than planned splitting.",
            measure="ecmp8-over-split-halving-doubling",
            at_least=1.8,
            published="does not repair recursive doubling",
            where="version 2, p. 9, from a third party's reading notes",
            read_in="secondary",
            published_setting="256 GPUs, leaf-spine 16 x 16, packet simulator",
            setting_here="exact max-min fluid on the same leaf-spine, a step between leaves at 256 MiB",
        ),
        Claim(
            name="ring-indifferent",
            says="A ring all-reduce in rank order takes as long under every load balancer.",
            measure="ring-slowest-over-fastest",
            at_most=1.001,
            published="similar under any load balancer",
            where="version 2, p. 8 and p. 10, from a third party's reading notes",
            read_in="secondary",
            published_setting="leaf-spine with 256 GPUs and fat-tree with 512 GPUs, 400 Gb/s",
            setting_here="exact max-min fluid on the same two networks",
            kind="exact",
        ),
        Claim(
            name="completion-time-against-spraying",
            says="Collectives complete sooner than when every packet picks its own path: by 5 % or more where it counts most.",
            measure="spray-over-split-packets",
            at_least=1.05,
            published="up to 30 % sooner (1.43x)",
            where="abstract of version 2",
            read_in="abstract",
            published_setting="ASTRA-sim, collectives and GPT models; packet spraying as the baseline",
            setting_here="our packet simulator, no congestion control, largest ratio of 3 patterns at 4 MiB, endless windows or "
            "one bandwidth-delay product",
        ),
        Claim(
            name="completion-time-against-reps",
            says="Collectives complete sooner than under REPS, which recycles the path choices that worked, also when "
            "links fail: by 5 % or more where it counts most.",
            measure="reps-over-split-packets",
            at_least=1.05,
            published="up to 40 % sooner (1.67x)",
            where="abstract of version 2",
            read_in="abstract",
            published_setting="ASTRA-sim, collectives and GPT models; REPS as the baseline",
            setting_here="our packet simulator, no congestion control, largest ratio of 3 patterns at 4 MiB, endless windows or "
            "one bandwidth-delay product, links whole or known to have failed",
        ),
        Claim(
            name="plan-and-simulate-16384-nics",
            says="Planning a permutation and all steps of halving-doubling on 16,384 NICs, and their exact completion times, "
            "take at most 5 s.",
            measure="large-plan-and-fluid",
            at_most=5.0,
            origin="ours",
            setting_here="2 CPU cores",
            same_setting=True,
            kind="timing",
        ),
    ),
)
