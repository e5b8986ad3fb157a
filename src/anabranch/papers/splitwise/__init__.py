"""Serving language models with the two phases of a request on different machines, and planning such clusters."""

from datetime import date

from anabranch.lab import Claim, Paper

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
    claims=(
        Claim(
            name="throughput-at-lower-cost",
            says="A cluster designed this way serves more requests for less money than designs in use.",
            published="1.4x at 20 % lower cost",
            where="abstract",
            read_in="abstract",
            published_setting="cluster design search; current designs",
        ),
        Claim(
            name="throughput-at-same-budget",
            says="For the same money and the same power it serves more than twice as many requests.",
            published="2.35x",
            where="abstract",
            read_in="abstract",
            published_setting="cluster design search; current designs",
        ),
        Claim(
            name="old-machines-same-power",
            says="On A100 machines alone, splitting the phases doubles the throughput of the same power and cost.",
            published="2.15x",
            where="evaluation, from reading notes",
            read_in="secondary",
            published_setting="BLOOM-176B, conversation trace, equal power; Baseline-A100",
        ),
        Claim(
            name="throughput-at-same-cost",
            says="For the money of an H100 cluster, split A100 machines serve more, at more power and twice the space.",
            published="1.4x, 25 % more power, 2x space",
            where="evaluation, from reading notes",
            read_in="secondary",
            published_setting="equal cost; Baseline-H100",
        ),
        Claim(
            name="power-at-same-throughput",
            says="Power-capped decode machines serve the same load with less power at the same cost and space.",
            published="25 % less",
            where="evaluation, from reading notes",
            read_in="secondary",
            published_setting="equal throughput, H100 prompts and capped H100 decodes; Baseline-H100",
        ),
        Claim(
            name="cache-transfer",
            says="Shipping the cache while the prompt is still computed costs next to nothing end to end.",
            published="0.8 % of the request (serialised: up to 3 %); second token 16.5 % later (serialised: 64 %)",
            where="evaluation, from reading notes",
            read_in="secondary",
            published_setting="InfiniBand, 200 Gb/s (A100) and 400 Gb/s (H100); no transfer",
            kind="timing",
        ),
        Claim(
            name="workload-shift",
            says="A mixed cluster built for coding loses little when the traffic turns into conversation.",
            published="7 % less throughput",
            where="robustness part, from reading notes",
            read_in="secondary",
            published_setting="heterogeneous designs, Azure coding and conversation traces",
        ),
        Claim(
            name="performance-model-error",
            says="Piecewise-linear timing models follow the measured machines closely.",
            published="mean absolute percentage error below 3 %",
            where="simulator part, from reading notes",
            read_in="secondary",
            published_setting="A100 and H100 profiles",
        ),
    ),
)
