"""Reinforcement learning of language models as a dataflow: one controller outside, many inside each node."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="hybridflow",
    title="HybridFlow: A Flexible and Efficient RLHF Framework",
    authors=(
        "Guangming Sheng",
        "Chi Zhang",
        "Zilingfeng Ye",
        "Xibin Wu",
        "Wang Zhang",
        "Ru Zhang",
        "Yanghua Peng",
        "Haibin Lin",
        "Chuan Wu",
    ),
    published=date(2024, 9, 28),
    arxiv="2409.19256",
    repository="volcengine/verl",
    summary=(
        "One step of learning from feedback is a small dataflow over many GPUs: an actor generates, reference, critic "
        "and reward models score, actor and critic train, and every node is itself a distributed program. HybridFlow "
        "writes the graph as one ordinary Python program, runs the inside of the nodes as parallel ranks, moves the "
        "actor's weights between training and generation layouts without a second copy, and searches for the best "
        "placement. For people who train with PPO, GRPO, ReMax or Safe-RLHF and want to change the algorithm without "
        "touching distributed code."
    ),
    package="distributed",
    extra="distributed",
    claims=(
        Claim(
            name="end-to-end-throughput",
            says="A training step handles more tokens per second than in any of three systems.",
            published="1.53x to 20.57x",
            where="abstract; section 8.2",
            read_in="abstract",
            published_setting="PPO, ReMax, Safe-RLHF, Llama 7B to 70B, up to 128 A100; DeepSpeed-Chat, OpenRLHF, "
            "NeMo-Aligner",
            kind="timing",
        ),
        Claim(
            name="throughput-by-baseline",
            says="For PPO the average gain is at least threefold over each of them.",
            published="3.67x, 3.25x, 12.52x on average",
            where="section 8.2, Fig. 9",
            read_in="paper",
            published_setting="PPO; DeepSpeed-Chat, OpenRLHF, NeMo-Aligner",
            kind="timing",
        ),
        Claim(
            name="large-models",
            says="For 70B models the average gain is nearly tenfold.",
            published="9.64x on average",
            where="section 8.2",
            read_in="paper",
            published_setting="70B models, all baselines",
            kind="timing",
        ),
        Claim(
            name="hardest-case",
            says="A small model on the largest cluster still gains.",
            published="1.68x PPO, 1.53x ReMax, 1.71x Safe-RLHF",
            where="section 8.2",
            read_in="paper",
            published_setting="7B on 128 GPUs; OpenRLHF",
            kind="timing",
        ),
        Claim(
            name="transition-time",
            says="Switching the actor from training to generation takes less than half the time.",
            published="55.2 % less (11.7 s) on average, up to 89.1 % (78.2 s) at 70B",
            where="section 8.4, Fig. 14",
            read_in="paper",
            published_setting="other engines",
            kind="timing",
        ),
        Claim(
            name="own-layout-for-generation",
            says="Generating with a smaller tensor-parallel group than training uses shortens generation.",
            published="60.3 % less (7B, group of 2), 36.4 % less (13B, group of 4)",
            where="section 8.4, Fig. 15",
            read_in="paper",
            published_setting="16 GPUs, training with 8-way tensor parallelism; the same group in both",
            kind="timing",
        ),
        Claim(
            name="no-second-copy",
            says="Re-sharding the weights needs no redundant memory and moves fewer bytes.",
            published="zero redundant bytes, by formula",
            where="section 5.4, Table 2",
            read_in="paper",
            published_setting="DeepSpeed-Chat's engine; the same system without the grouping",
            kind="exact",
        ),
        Claim(
            name="best-placement-changes",
            says="Sharing all GPUs is best on small clusters, dividing them among the models on large ones.",
            published="shared at 16 to 64 GPUs; divided for 34B at 96 to 128 and 13B at 96; one model a group for 13B at 128",
            where="section 8.3, Fig. 12",
            read_in="paper",
            published_setting="PPO",
        ),
    ),
)
