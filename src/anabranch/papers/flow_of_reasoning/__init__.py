"""Many different correct solutions from a language model: its steps trained as a flow in proportion to reward."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="flow-of-reasoning",
    title="Flow of Reasoning: Efficient Training of LLM Policy with Divergent Thinking",
    authors=("Fangxu Yu", "Lai Jiang", "Haoqiang Kang", "Shibo Hao", "Lianhui Qin"),
    published=date(2024, 6, 9),
    arxiv="2406.05673",
    repository="Yu-Fangxu/FoR",
    summary=(
        "Fine-tuning and reinforcement learning teach a language model one way to solve a problem; this trains it to "
        "find many. A solution is a path through a graph of states, and a GFlowNet objective makes the chance of a path "
        "grow in proportion to its reward, so about fifteen training problems that are explored, not imitated, are "
        "enough. For planning, puzzles and proofs, and wherever several independent solutions are worth more than one: "
        "voting, ideas, more data."
    ),
    package="reasoning",
    extra="reasoning",
    claims=(
        Claim(
            name="accuracy-long-plans",
            says="On six-step block puzzles it solves more than twice as many problems as supervised or rewarded "
            "tuning.",
            published="78.44 % (supervised 34.68, PPO 24.58, RAP 69.70, O1-mini 93.93)",
            where="Table 1",
            read_in="paper",
            published_setting="BlocksWorld 6 steps, Llama-3-8B with LoRA, share of problems with a correct sample",
        ),
        Claim(
            name="accuracy-short-plans",
            says="On two and four steps it is level with or above tree search.",
            published="100.00 and 98.41 % (RAP 100 and 92.86)",
            where="Table 1",
            read_in="paper",
            published_setting="BlocksWorld 2 and 4 steps, Llama-3-8B with LoRA",
        ),
        Claim(
            name="diversity",
            says="Where it succeeds it finds more distinct correct plans.",
            published="1.33 (supervised 1.04, PPO 1.08, O1-mini 1.05)",
            where="Table 1",
            read_in="paper",
            published_setting="BlocksWorld 6 steps, mean number of distinct correct plans per solved problem",
        ),
        Claim(
            name="creativity",
            says="More of the plans that any method finds are found by it alone.",
            published="9.52 % (supervised 4.76, PPO 3.17, O1-mini 2.38)",
            where="Table 1",
            read_in="paper",
            published_setting="BlocksWorld 6 steps, union over all methods",
        ),
        Claim(
            name="cube",
            says="On a small Rubik's cube it doubles the best baseline's accuracy.",
            published="10.87 %, diversity 1.29 (best baseline 4.92 %, 1.00)",
            where="results, as summarised by a reader",
            read_in="secondary",
            published_setting="2x2 cube, Llama-3-8B with LoRA",
        ),
        Claim(
            name="few-examples",
            says="Fifteen training problems suffice, where supervised tuning hardly gains from fifteen to sixty.",
            published="15 examples",
            where="data-efficiency figure",
            read_in="paper",
            published_setting="BlocksWorld",
        ),
        Claim(
            name="longer-than-trained",
            says="Trained on two-step problems, it still solves most four-step ones.",
            published="71.43 % (supervised or prompted 14.28 %)",
            where="out-of-distribution table",
            read_in="paper",
            published_setting="BlocksWorld, trained on 2 steps, tested on 4",
        ),
        Claim(
            name="training-time",
            says="The exploration costs: training takes about four times as long as PPO.",
            published="6,833 s (supervised 196 s, PPO 1,741 s)",
            where="runtime table",
            read_in="paper",
            published_setting="BlocksWorld 6 steps, one A100 of 80 GB",
            kind="timing",
        ),
    ),
)
