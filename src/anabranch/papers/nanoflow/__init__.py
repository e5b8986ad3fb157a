"""Serving language models with compute, memory and network overlapped inside each GPU."""

from dataclasses import dataclass
from datetime import date
from typing import Literal

from anabranch.lab import Claim, Paper


@dataclass(frozen=True)
class Settings:
    """What a run may change. Searches are for 8 A100 of 80 GB (1 for the 8 B model) and dense batches of 2,048 tokens."""

    models: tuple[str, ...]  # whose schedules are searched beside Llama-2-70B's
    workloads: int  # of the four of the ablation, the published layer's first
    gap: float  # between a schedule and the proven bound at which its search may stop
    search_seconds: float  # limit of one search; of three lanes also 100 linear programmes a second of it
    trace: Literal[
        "quantiles", "azure-llm-2023"
    ]  # requests served: drawn from published quantiles, or the trace itself
    requests: int  # of them; 0 takes all of the trace
    weights: Literal["tiny", "smollm2-135m"]  # the model whose layers run on this machine
    layers: int  # of it that run
    prompt_tokens: tuple[int, ...]  # prefill tokens of a batch, one mix each
    decodes: int  # requests of that batch that decode
    context: int  # tokens that each of them has behind it
    repeats: int  # timed pairs of every mix

    def __post_init__(self) -> None:
        for name in ("layers", "decodes", "context", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not 1 <= self.workloads <= 4:
            raise ValueError(f"workloads={self.workloads}: expected 1 to 4")
        if self.requests < 0:
            raise ValueError(f"requests={self.requests}: expected 0 (all) or more")
        if self.trace == "quantiles" and not self.requests:
            raise ValueError("requests=0: lengths drawn from quantiles need a number")
        if not 0 < self.gap < 1 or not self.search_seconds > 0:
            raise ValueError(f"gap={self.gap}, search_seconds={self.search_seconds}: expected in (0, 1), and above 0")
        if not self.prompt_tokens or min(self.prompt_tokens) < 2:
            raise ValueError(f"prompt_tokens={self.prompt_tokens}: expected numbers of at least 2")


PAPER = Paper(
    slug="nanoflow",
    title="NanoFlow: Towards Optimal Large Language Model Serving Throughput",
    authors=(
        "Kan Zhu",
        "Yilong Zhao",
        "Liangyu Zhao",
        "Gefei Zuo",
        "Yile Gu",
        "Dedong Xie",
        "Yufei Gao",
        "Qinyu Xu",
        "Tian Tang",
        "Zihao Ye",
        "Keisuke Kamahori",
        "Chien-Yu Lin",
        "Stephanie Wang",
        "Arvind Krishnamurthy",
        "Baris Kasikci",
    ),
    published=date(2024, 8, 22),
    arxiv="2408.12757",
    repository="efeslab/Nanoflow",
    summary=(
        "In large batches an LLM is limited by arithmetic, yet engines run the operations of a layer in turn, and the "
        "arithmetic units wait while attention reads memory or a collective uses the network. NanoFlow cuts the batch "
        "in nano-batches and runs operations that need different resources at the same moment inside one GPU; a search "
        "finds their number, sizes, order and shares. For writers of serving engines, and for planners who ask how "
        "many tokens per second a model could reach on a device and what they are losing."
    ),
    package="serving",
    extra="serving",
    data=("azure-llm-2023", "smollm2-135m"),
    parts=(
        "anabranch.serving:IterationCosts",
        "anabranch.serving:NanoGraph",
        "anabranch.serving:search_overlap",
        "anabranch.serving:search_lanes",
        "anabranch.serving:search_periodic",
        "anabranch.serving:Interference",
        "anabranch.serving:CpuLanes",
        "anabranch.serving:overlap_pieces",
        "anabranch.serving:BatchFormer",
        "anabranch.serving:simulate_dense_batches",
        "anabranch.serving:KVTier",
    ),
    example="""\
from anabranch.serving import Interference, IterationCosts, Workload, nano_lanes, published_layer, search_overlap
from anabranch.simulation import ACCELERATORS, LLAMA2_70B

costs = IterationCosts(LLAMA2_70B, ACCELERATORS["A100-80"], 8, Workload(512.0, 1024.0), 2048, flops_per_s=260e12)
first, second = nano_lanes(published_layer(costs))
schedule = search_overlap(first, second, Interference.published(), gap=0.05)
schedule.validate(Interference.published())
reached = costs.batch / costs.count / schedule.period_s
assert schedule.gap <= 0.05
assert 0.6 < reached / costs.optimal_tokens_per_s < 0.8
schedule.to_json("schedule.json")
""",
    scales={
        "smoke": Settings(
            models=(),
            workloads=1,
            gap=0.3,
            search_seconds=20.0,
            trace="quantiles",
            requests=400,
            weights="tiny",
            layers=2,
            prompt_tokens=(32,),
            decodes=4,
            context=64,
            repeats=3,
        ),
        "laptop": Settings(
            models=("Llama-3-70B", "Qwen2-72B", "Deepseek-67B", "Llama-3-8B"),
            workloads=4,
            gap=0.01,
            search_seconds=60.0,
            trace="azure-llm-2023",
            requests=0,
            weights="smollm2-135m",
            layers=8,
            prompt_tokens=(32, 64, 128, 256, 512),
            decodes=32,
            context=1024,
            repeats=7,
        ),
        "paper": Settings(
            models=("Llama-3-70B", "Qwen2-72B", "Deepseek-67B", "Llama-3-8B"),
            workloads=4,
            gap=0.002,
            search_seconds=600.0,
            trace="azure-llm-2023",
            requests=0,
            weights="smollm2-135m",
            layers=30,
            prompt_tokens=(32, 64, 128, 256, 512, 1024, 2048),
            decodes=64,
            context=1024,
            repeats=15,
        ),
    },
    seconds={"smoke": 10, "laptop": 240, "paper": 7200},
    claims=(
        Claim(
            name="throughput-gain",
            says="On request traces it produces nearly twice the tokens of the best engine at the time.",
            published="1.91x (TensorRT-LLM)",
            where="abstract; Fig. 7",
            read_in="abstract",
            published_setting="LLaMA-2-70B on 8 A100 of 80 GB, average over traces",
            kind="exact",
            measure="serving-gain",
            at_least=1.15,
            setting_here="a simulation of one device group on the Azure conversation trace at saturation, published times of "
            "operations, against the same batches with operations in turn",
        ),
        Claim(
            name="optimal-throughput",
            says="A bound that follows from arithmetic alone says how many tokens a GPU can produce.",
            published="1,857 tokens/s/GPU",
            where="equation 5, section 3.5, from reading notes; it needs 260 TFLOP/s, the notes quote 280",
            read_in="secondary",
            published_setting="LLaMA-2-70B on 8 A100 of 80 GB",
            kind="exact",
            measure="optimum-error",
            at_most=0.002,
            setting_here="the worst relative difference of equation 5 from the published optima of the four 67 B to 72 B and 8 B "
            "models, parameters as published, 260e12 FLOP/s",
            same_setting=True,
        ),
        Claim(
            name="share-of-the-optimum",
            says="Over several models it reaches well more than half of that bound.",
            published="59 % to 72 %",
            where="abstract; reading notes give 68.5 % for LLaMA-2-70B and a maximum of 78.5 %",
            read_in="abstract",
            published_setting="five models, input 1024 and output 512 tokens, 8 A100 (1 for 8 B)",
            kind="exact",
            measure="share-of-optimum",
            at_least=0.6,
            setting_here="schedules searched with the published times of operations, mean of the four fixed workloads, "
            "Llama-2-70B",
        ),
        Claim(
            name="baselines-share-of-the-optimum",
            says="The engines compared reach less than two fifths of the bound.",
            published="vLLM 22.0 %, DeepSpeed 22.9 %, TensorRT-LLM 37.8 %",
            where="section 3.6, from reading notes",
            read_in="secondary",
            published_setting="LLaMA-2-70B on 8 A100 of 80 GB",
            kind="timing",
        ),
        Claim(
            name="request-rate-at-a-latency",
            says="Within 200 ms per token it sustains a higher rate of requests.",
            published="1.64x LMSYS-Chat, 1.55x ShareGPT, 1.24x Splitwise",
            where="Fig. 8, from reading notes",
            read_in="secondary",
            published_setting="LLaMA-2-70B, 8 A100; TensorRT-LLM",
            kind="timing",
        ),
        Claim(
            name="splitting-alone-costs",
            says="Nano-batches without overlap are slower than running the operations in turn.",
            published="13.2 % slower",
            where="Fig. 9, from reading notes",
            read_in="secondary",
            published_setting="LLaMA-2-70B, 8 A100; operations in turn",
            kind="exact",
            measure="nano-only-over-sequential",
            at_most=0.97,
            setting_here="two nano-batches of Llama-2-70B that read every weight once more, without overlap",
        ),
        Claim(
            name="overlap-gains",
            says="Overlap gains more where decoding weighs more, since then memory has something to hide behind.",
            published="1.07x prefill only, 1.17x decode-heavy",
            where="Fig. 9, from reading notes",
            read_in="secondary",
            published_setting="LLaMA-2-70B, 8 A100; operations in turn",
            kind="exact",
            measure="overlap-gain",
            at_least=1.17,
            setting_here="the searched schedule of Llama-2-70B at 512 tokens in and 1,024 out, published times of operations",
        ),
        Claim(
            name="search-time",
            says="The automatic search for the overlap takes minutes.",
            published="about 10 minutes",
            where="section 4.1.2, from reading notes",
            read_in="secondary",
            published_setting="per model and device",
            kind="timing",
            measure="search-seconds",
            at_most=60.0,
            setting_here="a two-lane schedule of the published layer, proven to be within 2 % of the best, on one CPU core",
        ),
    ),
)
