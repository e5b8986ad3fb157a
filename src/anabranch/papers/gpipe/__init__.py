"""Pipeline parallelism: consecutive layers on different devices, micro-batches like cars on an assembly line."""

from dataclasses import dataclass
from datetime import date

from anabranch.lab import Claim, Paper


@dataclass(frozen=True)
class Settings:
    """What a run may change. Every process computes with one thread; stages are processes."""

    blocks: int  # transformer blocks of the trained model
    width: int  # their hidden size
    batch: int  # images of a mini-batch
    micro_batches: tuple[int, ...]  # numbers M that are timed
    steps: int  # training steps of the loss curves
    pairs: int  # interleaved pairs of every timed ratio
    cap_mib: float  # memory that the process of a stage gets when the deepest model is sought, MiB
    simulated_stages: tuple[int, ...]  # numbers K of the paper's tables
    norm_steps: int  # training steps of the residual network with batch norm
    fine_tune_steps: int  # of the language model over two stages; 0 leaves it out
    fashion: bool = True  # train on Fashion-MNIST, else on random images

    def __post_init__(self) -> None:
        for name in ("blocks", "width", "batch", "steps", "norm_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.blocks < 2:
            raise ValueError(f"blocks={self.blocks}: two stages need at least 2")
        if not self.micro_batches or not all(1 <= m <= self.batch for m in self.micro_batches):
            raise ValueError(f"micro_batches={self.micro_batches}: expected numbers from 1 to batch={self.batch}")
        if self.pairs < 3:
            raise ValueError(f"pairs={self.pairs}: an interval needs at least 3")

    def closest(self, wanted: int) -> int:
        """The timed number of micro-batches that is closest to ``wanted``."""
        return min(self.micro_batches, key=lambda m: abs(m - wanted))


# What the paper and its reproduction print: throughput over 2 stages and 1 micro-batch, by (stages, micro-batches).
PUBLISHED_AT = [(k, m) for m in (1, 4, 32) for k in (2, 4, 8)]
TRANSFORMER = dict(zip(PUBLISHED_AT, (1, 1.07, 1.3, 1.7, 3.2, 4.8, 1.8, 3.4, 6.3), strict=True))
AMOEBANET = dict(zip(PUBLISHED_AT, (1, 1.13, 1.38, 1.07, 1.26, 1.72, 1.21, 1.84, 3.48), strict=True))
TORCHGPIPE = dict(zip(PUBLISHED_AT, (1, 1.004, 0.932, 1.539, 1.666, 2.621, 1.773, 2.709, 4.953), strict=True))
# Transformer-L by stages: layers and billions of parameters (Table 1; 1 without recomputation is the first row).
CAPACITY = {0: (3, 0.2822), 1: (13, 0.7858), 8: (103, 5.3), 32: (415, 21.0), 128: (1663, 83.9)}

PAPER = Paper(
    slug="gpipe",
    title="GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism",
    authors=(
        "Yanping Huang",
        "Youlong Cheng",
        "Ankur Bapna",
        "Orhan Firat",
        "Mia Xu Chen",
        "Dehao Chen",
        "HyoukJoong Lee",
        "Jiquan Ngiam",
        "Quoc V. Le",
        "Yonghui Wu",
        "Zhifeng Chen",
    ),
    published=date(2018, 11, 16),
    arxiv="1811.06965",
    repository="tensorflow/lingvo",
    summary=(
        "A network too big for one device is cut in stages of consecutive layers, one stage per device, and the batch in "
        "micro-batches that pass through the stages as on an assembly line: all forwards, then all backwards, one "
        "update. The gradient is exactly that of the whole batch, and memory falls because every stage keeps only its "
        "inputs and recomputes the rest. For anyone who trains or fine-tunes a stack of layers over several devices, "
        "slow links included."
    ),
    package="distributed",
    extra="distributed",
    data=("fashion-mnist", "smollm2-135m"),
    parts=(
        "anabranch.distributed:Pipeline",
        "anabranch.distributed:LocalPipeline",
        "anabranch.distributed:DeferredBatchNorm",
        "anabranch.distributed:launch",
        "anabranch.distributed:pipeline_from_transformers",
        "anabranch.distributed:profile_layers",
        "anabranch.distributed:plan_pipeline",
        "anabranch.distributed:simulate_pipeline",
        "anabranch.distributed:gradient_error",
        "anabranch.distributed:TrainingBench",
    ),
    example="""\
import torch
from torch import nn

from anabranch.distributed import LocalPipeline, fill_drain, simulate_pipeline

layers = [nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)]
x, y = torch.randn(11, 8), torch.arange(11) % 3
nn.functional.cross_entropy(nn.Sequential(*layers)(x), y).backward()
wanted = [p.grad.clone() for p in nn.Sequential(*layers).parameters()]
pipeline = LocalPipeline(layers, stages=2, micro_batches=4)  # Pipeline(layers, micro_batches=4) under torchrun
for p in pipeline.parameters():
    p.grad = None
pipeline.step(x, y, nn.functional.cross_entropy)
assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(pipeline.parameters(), wanted))
assert simulate_pipeline(fill_drain(2, 4, checkpoint="never"), 1.0, 2.0).bubble_fraction < 0.21  # 1 / 5
""",
    scales={
        "smoke": Settings(
            blocks=2,
            width=16,
            batch=8,
            micro_batches=(1, 4),
            steps=2,
            pairs=3,
            cap_mib=32.0,
            simulated_stages=(2, 4, 8),
            norm_steps=2,
            fine_tune_steps=0,
            fashion=False,
        ),
        "laptop": Settings(
            blocks=12,
            width=128,
            batch=64,
            micro_batches=(1, 2, 4, 8, 16, 32),
            steps=40,
            pairs=5,
            cap_mib=48.0,
            simulated_stages=(2, 4, 8, 16, 32, 64, 128),
            norm_steps=40,
            fine_tune_steps=3,
        ),
        "paper": Settings(
            blocks=48,
            width=2048,
            batch=512,
            micro_batches=(1, 4, 32),
            steps=200,
            pairs=9,
            cap_mib=1024.0,
            simulated_stages=(2, 4, 8, 16, 32, 64, 128),
            norm_steps=200,
            fine_tune_steps=100,
        ),
    },
    seconds={"smoke": 10, "laptop": 340, "paper": 7200},
    claims=(
        Claim(
            name="same-gradient",
            says="The gradient is that of the whole mini-batch, whatever the numbers of stages and of micro-batches.",
            where="section 2.2 (from general knowledge of the paper, not checked)",
            read_in="secondary",
            published_setting="synchronous updates, any number of partitions and micro-batches",
            measure="gradient-error",
            at_most=1e-12,
            setting_here="float64 vision transformer, 11 samples, 1 to 4 stages in one process and 2 in 2, M = 1, 2, 3, 5 and 8: "
            "largest relative error of a parameter's gradient",
            kind="exact",
        ),
        Claim(
            name="bubble-is-small",
            says="The share of idle time falls with the number M of micro-batches and hardly counts from M = 4 K on, K "
            "being the number of stages.",
            published="(K-1)/(M+K-1) in order",
            where="section 2.3 (from general knowledge of the paper, not checked)",
            read_in="secondary",
            published_setting="synchronous pipeline",
            measure="bubble-over-formula",
            at_most=1.35,
            setting_here="2 processes on a CPU, idle share over the formula in the fastest of 10 steps, the larger ratio of "
            "M = 4 and M = 8",
            kind="statistical",
        ),
        Claim(
            name="activation-memory",
            says="Recomputing inside the stages takes activation memory from batch times depth down to the batch plus "
            "one micro-batch of one stage.",
            published="O(N L) to O(N + (L/K)(N/M)) for N samples and L layers",
            where="section 2.3 (from general knowledge of the paper, not checked)",
            read_in="secondary",
            published_setting="no recomputation",
            measure="activation-bytes-recomputed-over-kept",
            at_most=0.35,
            setting_here="12 transformer blocks on 2 stages, 8 micro-batches, bytes that are really kept on the stage that "
            "keeps most",
            kind="exact",
        ),
        Claim(
            name="amoebanet-capacity",
            says="Eight devices hold an AmoebaNet about 25 times the size that one holds.",
            published="82 M to 1.8 B parameters, 25x (22x by these counts)",
            where="Table 1, as reprinted in torchgpipe's documentation",
            read_in="secondary",
            published_setting="AmoebaNet-D on accelerators of 8 GB",
            measure="depth-on-two-stages-over-one-device",
            at_least=3.0,
            setting_here="transformer blocks that processes with a limit of memory really train, 2 stages that recompute with 8 "
            "micro-batches, against one process that keeps all",
            kind="exact",
        ),
        Claim(
            name="transformer-capacity",
            says="A pipeline of 128 stages holds a Transformer almost 300 times the size that one device holds.",
            published="282.2 M to 83.9 B parameters, 298x",
            where="Table 1, from reading notes",
            read_in="secondary",
            published_setting="Transformer-L on TPUv3 of 16 GB",
            measure="transformer-capacity-128-stages",
            at_least=128.0,
            setting_here="our memory model with the paper's shapes, 12 bytes a parameter, more than the devices account for",
            kind="exact",
        ),
        Claim(
            name="near-linear-throughput",
            says="With enough micro-batches throughput grows almost in step with the number of stages.",
            published="1.21, 1.84, 3.48 at 2, 4, 8 stages and 32 micro-batches (1, 1.13, 1.38 at one)",
            where="Table 2, as reprinted in torchgpipe's documentation",
            read_in="secondary",
            published_setting="AmoebaNet-D (18,256) on TPU; relative to 2 stages and 1 micro-batch",
            measure="one-process-over-gpipe",
            at_least=1.5,
            setting_here="transformer on 2 processes with 1 thread each, 16 micro-batches, no recomputation, seconds of one "
            "process over those of the pipeline",
            kind="timing",
        ),
        Claim(
            name="slow-links-suffice",
            says="It still speeds up over plain PCIe, because only the tensors at the cuts travel.",
            published="1, 1.7, 2.7 (AmoebaNet) and 1, 1.8, 3.3 (Transformer) at 2, 4, 8 stages",
            where="Table 3 (from general knowledge of the paper, not checked)",
            read_in="secondary",
            published_setting="GPUs without fast interconnect, 32 micro-batches",
            measure="naive-over-gpipe",
            at_least=1.45,
            setting_here="2 processes that talk TCP through gloo, 8 micro-batches over 1, no recomputation",
            kind="timing",
        ),
        Claim(
            name="capacity-pays",
            says="What is trained this way is accurate: an image model of 557 million parameters, and one multilingual "
            "translation model that beats every bilingual one.",
            published="84.4 % top-1; 6 B parameters, 128 layers, over 100 languages: better than all bilingual models",
            where="abstract",
            read_in="abstract",
            published_setting="AmoebaNet-B (18,512), 480x480, ImageNet-2012; multilingual corpus",
        ),
    ),
)
