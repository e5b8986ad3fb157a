"""Shorter prompts for vision-language models: visual tokens dropped layer by layer inside the vision encoder."""

from datetime import date

from anabranch.lab import Claim, Paper

PAPER = Paper(
    slug="flowcut",
    title="FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language Models",
    authors=(
        "Jintao Tong",
        "Wenwei Jin",
        "Pengda Qin",
        "Anqi Li",
        "Yixiong Zou",
        "Yuhong Li",
        "Yuhua Li",
        "Ruixuan Li",
    ),
    published=date(2025, 5, 26),
    arxiv="2505.19536",
    repository="TungChintao/FlowCut",
    summary=(
        "A vision-language model feeds hundreds to thousands of visual tokens to its language part, most of them useless "
        "for the answer. FlowCut drops them without training and bit by bit inside the vision encoder: how many follows "
        "from how concentrated the class token's attention already is, which ones from three signs added up over the "
        "layers. For people who serve or train such models and want a shorter prefill and a smaller key-value cache at "
        "nearly the same accuracy."
    ),
    package="attention",
    extra="attention",
    claims=(
        Claim(
            name="accuracy-kept",
            says="With a third, two ninths and a ninth of the visual tokens it keeps nearly all the accuracy.",
            published="100.2, 98.5, 96.0 % at 192, 128, 64 of 576 (VisionZip 98.5, 97.2, 94.4)",
            where="Table 1",
            read_in="paper",
            published_setting="LLaVA-1.5-7B, mean over 12 benchmarks, no training",
        ),
        Claim(
            name="hallucination-test",
            says="It keeps more of the object-hallucination score POPE at 64 tokens than others.",
            published="80.2 (full 85.9, VisionZip 77.0, FastV 48.0)",
            where="Table 1",
            read_in="paper",
            published_setting="LLaVA-1.5-7B, 64 of 576 tokens",
        ),
        Claim(
            name="long-prompts",
            says="On a model with five times the tokens the lead grows as more of them are dropped.",
            published="98.2, 95.6, 91.9 % at 640, 320, 160 of 2,880 (VisionZip 96.9, 93.0, 87.6)",
            where="Table 2",
            read_in="paper",
            published_setting="LLaVA-NeXT-7B, mean over 8 benchmarks",
        ),
        Claim(
            name="encoder-without-class-token",
            says="It carries over to an encoder that has no class token.",
            published="98.7, 96.5, 91.3 % at 66.7, 77.8, 88.9 % fewer tokens (FastV 93.6, 90.4, 83.6)",
            where="Table 3",
            read_in="paper",
            published_setting="Qwen2-VL-7B",
        ),
        Claim(
            name="video",
            says="Video answers survive dropping seven eighths of the tokens.",
            published="98.6 % at 256 of 2,048 (VisionZip 94.4, FastV 83.9)",
            where="Table 4",
            read_in="paper",
            published_setting="Video-LLaVA on TGIF, MSVD and MSRVTT",
        ),
        Claim(
            name="prefill-speed-up",
            says="The prefill of a long prompt takes less than a third of the time.",
            published="3.2x (206 to 63.8 ms); VisionZip 2.9x",
            where="Table 5",
            read_in="paper",
            published_setting="LLaVA-NeXT-7B, 2,880 to 160 tokens, one A800, POPE",
            kind="timing",
        ),
        Claim(
            name="training-speed-up",
            says="Training with a third of the tokens is faster and no worse.",
            published="1.5x (12.97 to 8.65 h) at 101.1 %",
            where="Table 6",
            read_in="paper",
            published_setting="LLaVA-1.5-7B with 192 tokens, 8 A800",
            kind="timing",
        ),
        Claim(
            name="layers-accumulate",
            says="Ranking over several layers beats ranking in one, and adaptive counts and the mixed score add to it.",
            published="POPE 76.6 single layer, 81.5 over layers, 83.3 adaptive, 85.2 all",
            where="Table 7",
            read_in="paper",
            published_setting="LLaVA-1.5-7B, 128 of 576 tokens",
        ),
    ),
)
