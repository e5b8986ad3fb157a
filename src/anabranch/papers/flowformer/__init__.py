"""Attention in linear time: weights from a flow network that conserves flow at sources and at sinks."""

from dataclasses import dataclass
from datetime import date

from anabranch.lab import Claim, Paper


@dataclass(frozen=True)
class Settings:
    """What a run may change. Steps and epochs are those of every attention compared; all have one width."""

    lengths: tuple[int, ...]  # tokens at which attention is timed
    softmax_seconds: float  # softmax is timed up to the length where one call is expected to take this
    series: tuple[str, ...]  # "generated", UEA names, or files FILE_TRAIN.ts beside FILE_TEST.ts; the first is judged
    epochs: int  # over the series
    listops: int  # expressions to train on; a twentieth as many to test
    listops_steps: int
    images: str  # "fashion-mnist" or "generated": a pixel a token
    image_steps: int
    text: str  # folder of .py files, in the interpreter's standard library or anywhere; empty: all of that library
    text_steps: int
    width: int  # of all models
    contexts: tuple[int, int]  # tokens before a decoding step, few and many

    def __post_init__(self) -> None:
        for name in ("epochs", "listops_steps", "image_steps", "text_steps", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if len(self.lengths) < 2 or min(self.lengths) < 64:
            raise ValueError(f"lengths={self.lengths}: expected at least two, of 64 tokens or more")
        if self.listops < 20:
            raise ValueError(f"listops={self.listops}: expected at least 20")
        if not self.series:
            raise ValueError("series=(): expected at least one set")
        if self.width % 8:
            raise ValueError(f"width={self.width}: expected a multiple of 8")
        if not 1 <= self.contexts[0] < self.contexts[1]:
            raise ValueError(f"contexts={self.contexts}: expected a small and a large number of tokens")


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
    data=("fashion-mnist", "japanese-vowels", "basic-motions"),
    parts=(
        "anabranch.attention:flow_attention",
        "anabranch.attention:flow_attention_causal",
        "anabranch.attention:flow_attention_step",
        "anabranch.attention:flow_attention_matrix",
        "anabranch.attention:FlowAttention",
        "anabranch.attention:FlowAttentionState",
        "anabranch.attention:FlowformerEncoder",
        "anabranch.attention:FlowformerLM",
        "anabranch.attention:ATTENTIONS",
        "anabranch.attention:FLOW_PRESETS",
        "anabranch.attention:listops",
    ),
    example="""\
import torch

from anabranch.attention import FlowAttention, flow_attention, flow_attention_causal

torch.manual_seed(0)
q, k, v = (torch.randn(1, 8, 16384, 64) for _ in range(3))
y = flow_attention(q, k, v)  # 16,384 tokens in linear time
part, state = flow_attention_causal(q[:, :, :9000], k[:, :, :9000], v[:, :, :9000], return_state=True)
rest = flow_attention_causal(q[:, :, 9000:], k[:, :, 9000:], v[:, :, 9000:], initial_state=state)
assert (torch.cat([part, rest], 2) - flow_attention_causal(q, k, v)).abs().max() < 1e-4
block = torch.nn.TransformerEncoderLayer(64, 4, batch_first=True)
block.self_attn = FlowAttention.from_softmax(block.self_attn)  # the same weights, another attention
assert block(torch.randn(2, 500, 64)).shape == (2, 500, 64)
""",
    scales={
        "smoke": Settings(
            lengths=(64, 256),
            softmax_seconds=0.5,
            series=("generated",),
            epochs=1,
            listops=64,
            listops_steps=2,
            images="generated",
            image_steps=2,
            text="email",
            text_steps=2,
            width=16,
            contexts=(16, 64),
        ),
        "laptop": Settings(
            lengths=(256, 1024, 4096, 16384, 65536),
            softmax_seconds=5.0,
            series=("JapaneseVowels", "BasicMotions"),
            epochs=40,
            listops=20_000,
            listops_steps=450,
            images="fashion-mnist",
            image_steps=90,
            text="",
            text_steps=110,
            width=64,
            contexts=(1024, 32_768),
        ),
        "paper": Settings(
            lengths=(256, 1024, 4096, 16384, 65536, 262_144),
            softmax_seconds=60.0,
            series=(
                "JapaneseVowels",
                "EthanolConcentration",
                "FaceDetection",
                "Handwriting",
                "Heartbeat",
                "PEMS-SF",
                "SelfRegulationSCP1",
                "SelfRegulationSCP2",
                "SpokenArabicDigits",
                "UWaveGestureLibrary",
            ),
            epochs=100,
            listops=96_000,
            listops_steps=5000,
            images="fashion-mnist",
            image_steps=20_000,
            text="",
            text_steps=150_000,
            width=512,
            contexts=(1024, 131_072),
        ),
    },
    seconds={"smoke": 9, "laptop": 560, "paper": 400_000},
    claims=(
        Claim(
            name="long-range-arena",
            says="On long sequences it is more accurate on average than softmax and other efficient attention.",
            published="56.48 % (Transformer 54.39, cosFormer 55.23, Performer 51.41, linear 50.55)",
            where="LRA table",
            read_in="paper",
            published_setting="Long Range Arena, average of five tasks",
            measure="listops-margin",
            at_least=0.0,
            setting_here="ListOps of 100 to 300 tokens, small models and few steps; accuracy less that of linear attention "
            "less 0.02, or less that of softmax plus 0.01, whichever is smaller",
        ),
        Claim(
            name="both-conservations-needed",
            says="Dropping competition or allocation costs accuracy.",
            published="56.48 % (55.25 without competition, 55.58 without allocation)",
            where="LRA table",
            read_in="paper",
            published_setting="Long Range Arena, average of five tasks",
            measure="full-over-ablations",
            at_least=0.0,
            setting_here="series, ListOps, pixels and bytes of text, small models; mean of three accuracies and of the chance of "
            "the next byte, less that of the better ablation",
        ),
        Claim(
            name="language-modelling",
            says="As a causal decoder it predicts text better than softmax and much better than linear attention.",
            published="perplexity 30.8 (Transformer 33.0, linear 38.4, Performer 37.5)",
            where="WikiText table",
            read_in="paper",
            published_setting="WikiText-103, 512 tokens per sample",
            measure="bits-ratio",
            at_most=1.0,
            setting_here="bytes of Python's standard library, 512 a window, few steps; bits per byte over those of linear "
            "attention, or over 1.05 times those of softmax, whichever is larger",
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
            measure="vowels-margin",
            at_least=0.0,
            setting_here="JapaneseVowels, fewer epochs, best epoch on the test set as in the paper; accuracy less 0.98, or less "
            "that of softmax plus 0.01, whichever is smaller",
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
            measure="softmax-over-flow-4096",
            at_least=10.0,
            setting_here="2 CPU cores, fused softmax attention, forward pass at 4,096 tokens, 8 heads of 64",
        ),
    ),
)
