"""Serving language models with compute, memory and network overlapped inside each GPU."""

from datetime import date

from anabranch.lab import Claim, Paper

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
    claims=(
        Claim(
            name="throughput-gain",
            says="On request traces it produces nearly twice the tokens of the best engine at the time.",
            published="1.91x (TensorRT-LLM)",
            where="abstract; Fig. 7",
            read_in="abstract",
            published_setting="LLaMA-2-70B on 8 A100 of 80 GB, average over traces",
            kind="timing",
        ),
        Claim(
            name="optimal-throughput",
            says="A bound that follows from arithmetic alone says how many tokens a GPU can produce.",
            published="1,857 tokens/s/GPU",
            where="equation 5, section 3.5, from reading notes; it needs 260 TFLOP/s, the notes quote 280",
            read_in="secondary",
            published_setting="LLaMA-2-70B on 8 A100 of 80 GB",
            kind="exact",
        ),
        Claim(
            name="share-of-the-optimum",
            says="Over several models it reaches well more than half of that bound.",
            published="59 % to 72 %",
            where="abstract; reading notes give 68.5 % for LLaMA-2-70B and a maximum of 78.5 %",
            read_in="abstract",
            published_setting="five models, input 1024 and output 512 tokens, 8 A100 (1 for 8 B)",
            kind="timing",
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
            kind="timing",
        ),
        Claim(
            name="overlap-gains",
            says="Overlap gains more where decoding weighs more, since then memory has something to hide behind.",
            published="1.07x prefill only, 1.17x decode-heavy",
            where="Fig. 9, from reading notes",
            read_in="secondary",
            published_setting="LLaMA-2-70B, 8 A100; operations in turn",
            kind="timing",
        ),
        Claim(
            name="search-time",
            says="The automatic search for the overlap takes minutes.",
            published="about 10 minutes",
            where="section 4.1.2, from reading notes",
            read_in="secondary",
            published_setting="per model and device",
            kind="timing",
        ),
    ),
)
