"""Single-path load balancing of collectives: cut the few flows that do not divide evenly, give every piece a path."""

from datetime import date

from anabranch.lab import Claim, Paper

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
    claims=(
        Claim(
            name="congestion-equals-spraying",
            says="With equal flows, one path each and a minimum of splitting load the busiest link no more than ideal "
            "spraying does.",
            published="equal (ratio 1)",
            where="abstract of version 1; version 2, Theorem 1 (p. 5)",
            read_in="abstract",
            published_setting="leaf-spine network, flows of equal size; ideal spraying over all paths",
            kind="exact",
        ),
        Claim(
            name="pieces-by-greatest-common-divisor",
            says="Of the r flows left over after an even share among s uplinks, each is cut into s/g equal pieces with "
            "g = gcd(r, s), so that every uplink gets r/g of them.",
            published="pieces of size f g/s, r/g on each uplink",
            where="version 2, proof of Theorem 1 (p. 5), from a third party's reading notes",
            read_in="secondary",
            published_setting="leaf-spine network with s spines, flows of size f",
            kind="exact",
        ),
        Claim(
            name="completion-time-against-spraying",
            says="Collectives complete sooner than when every packet picks its own path.",
            published="up to 30 % sooner",
            where="abstract of version 2",
            read_in="abstract",
            published_setting="ASTRA-sim, collectives and GPT models; packet spraying as the baseline",
        ),
        Claim(
            name="completion-time-against-reps",
            says="Collectives complete sooner than under REPS, which recycles the path choices that worked, also when "
            "links fail.",
            published="up to 40 % sooner",
            where="abstract of version 2",
            read_in="abstract",
            published_setting="ASTRA-sim, collectives and GPT models; REPS as the baseline",
        ),
        Claim(
            name="ring-and-tree-indifferent",
            says="Ring and double-binary-tree collectives take about as long whichever way the load is balanced.",
            published="similar under any load balancer",
            where="version 2, p. 8 and p. 10, from a third party's reading notes",
            read_in="secondary",
            published_setting="leaf-spine with 256 GPUs and fat-tree with 512 GPUs, 400 Gb/s",
        ),
        Claim(
            name="blind-splitting-is-not-enough",
            says="Cutting every flow into 2, 4 or 8 parts and hashing each part to a path does not repair recursive "
            "doubling, whose headers hold too little entropy, and an all-to-all then takes thousands of queue pairs.",
            published="more than 4,000 queue pairs in an all-to-all at 8 parts",
            where="version 2, p. 9, from a third party's reading notes",
            read_in="secondary",
            published_setting="the same networks; hashed equal-cost paths (ECMP)",
        ),
    ),
)
