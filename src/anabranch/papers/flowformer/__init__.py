"""Attention in linear time: weights from a flow network that conserves flow at sources and at sinks."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="flowformer",
    title="Flowformer: Linearizing Transformers with Conservation Flows",
    authors=("Haixu Wu", "Jialong Wu", "Jiehui Xu", "Jianmin Wang", "Mingsheng Long"),
    published=date(2022, 2, 13),
    arxiv="2202.06258",
    repository="thuml/Flowformer",
    summary=(
        "Softmax attention grows with the square of the sequence; plain linear attention does not, but its weights "
        "flatten out. Flow-Attention reads the layer as a network of pipes from values to outputs and lets neither end "
        "create or lose flow: outputs then receive what they deserve and inputs compete for being heard, in time and "
        "memory linear in the length. For owners of long sequences, time series, pixels, text, trajectories, who want "
        "to replace one attention layer in an encoder or a causal decoder."
    ),
    package="attention",
    extra="attention",
    claims=(
        Claim(
            name="long-range-arena",
            says="On long sequences it is more accurate on average than softmax and other efficient attention.",
            published="56.48 % (Transformer 54.39, cosFormer 55.23, Performer 51.41, linear 50.55)",
            where="LRA table",
            read_in="paper",
            published_setting="Long Range Arena, average of five tasks",
        ),
        Claim(
            name="both-conservations-needed",
            says="Dropping competition or allocation costs accuracy.",
            published="56.48 % (55.25 without competition, 55.58 without allocation)",
            where="LRA table",
            read_in="paper",
            published_setting="Long Range Arena, average of five tasks",
        ),
        Claim(
            name="language-modelling",
            says="As a causal decoder it predicts text better than softmax and much better than linear attention.",
            published="perplexity 30.8 (Transformer 33.0, linear 38.4, Performer 37.5)",
            where="WikiText table",
            read_in="paper",
            published_setting="WikiText-103, 512 tokens per sample",
        ),
        Claim(
            name="time-series",
            says="It classifies time series better on average than the rivals compared, random kernels included.",
            published="73.0 % (Transformer 71.9, linear 72.4, Rocket 72.5)",
            where="UEA table",
            read_in="paper",
            published_setting="mean of 10 UEA sets, best accuracy",
        ),
        Claim(
            name="japanese-vowels",
            says="On one small set it is level with softmax and slightly behind linear attention.",
            published="98.9 % (Transformer 98.7, linear 99.2, Performer 98.1)",
            where="UEA table",
            read_in="paper",
            published_setting="JapaneseVowels, 270 training and 370 test series",
        ),
        Claim(
            name="image-classification",
            says="It classifies ImageNet better than softmax in the same design.",
            published="80.6 % top-1 (softmax 78.7, Reformer 79.6, Performer 78.1)",
            where="summary table of the authors' repository",
            read_in="code",
            published_setting="ImageNet-1K, 4 stages, 19 layers",
        ),
        Claim(
            name="offline-control",
            says="As a policy for offline reinforcement learning it is level with the Decision Transformer.",
            published="73.5 +- 2.9 (Decision Transformer 72.2 +- 2.6)",
            where="summary table of the authors' repository",
            read_in="code",
            published_setting="D4RL mean reward, 3 layers, causal",
        ),
        Claim(
            name="linear-cost",
            says="Time and memory grow in step with the length where softmax grows with its square.",
            published="linear",
            where="abstract; speeds by length were not found",
            read_in="abstract",
            published_setting="softmax attention",
            kind="timing",
        ),
    ),
)
