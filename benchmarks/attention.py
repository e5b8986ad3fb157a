"""Linear attention side by side, as ratios measured in one process.

The grid: forward pass and training step (forward and backward), both ways and causal, one sequence of 8 heads of 64 features at
1,024 to 65,536 tokens, and a batch of 32 sequences of 200 tokens with 4 heads of 32. Peers are the pip packages that import
here (``linear-attention-transformer``, ``linear-attention``, ``performer-pytorch``); for the others the
reason is printed. Two comparisons:

1. the same mathematics: our ``linear_attention`` and ``performer_attention`` against the packages' own forms of them;
2. Flow-Attention against every package, and against torch's fused softmax attention.

Arms alternate inside each repetition, and medians of the paired ratios peer / ours are printed: above 1 is faster than the peer,
below 0.95 is marked as a loss. Run: ``python benchmarks/attention.py [--quick] [--threads N]``.
"""

import argparse
import contextlib
import gc
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import anabranch.attention as att

Call = Callable[..., Tensor]
FEATURES = 256  # random features of every Performer
lost: list[str] = []


def package_forms(causal: bool, projection: Tensor) -> tuple[dict[str, Call], dict[str, str]]:
    """Attention functions of the packages, and why the others are not here."""
    found: dict[str, Call] = {}
    why: dict[str, str] = {}
    try:
        from linear_attention_transformer import linear_attention_transformer as lucid

        # Its causal form sees whole buckets of 64 tokens before the own one: less work, and not token by token.
        found["linear-attention-transformer"] = lucid.causal_linear_attn if causal else lucid.linear_attn
    except ImportError as error:
        why["linear-attention-transformer"] = str(error)
    try:
        from linear_attention import linear_attention as other

        if causal:
            why["linear-attention"] = "its causal form calls a function it does not define"
        else:
            found["linear-attention"] = other.linear_attn
    except ImportError as error:
        why["linear-attention"] = str(error)
    try:
        from performer_pytorch import FastAttention

        with contextlib.redirect_stdout(io.StringIO()):
            performer = FastAttention(projection.shape[1], nb_features=len(projection), causal=causal)
        performer.projection_matrix.copy_(projection)
        found["performer-pytorch"] = performer
    except ImportError as error:
        why["performer-pytorch"] = str(error)
    try:
        import fla.ops  # noqa: F401

        if not torch.cuda.is_available():
            why["flash-linear-attention"] = "its kernels are for GPUs"
    except ImportError as error:
        why["flash-linear-attention"] = str(error)
    why["pytorch-fast-transformers"] = "no wheel; its build needs torch and a compiler at installation"
    return found, why


def our_forms(causal: bool, projection: Tensor) -> dict[str, Call]:
    forms: dict[str, Call] = {
        "flow": partial(att.flow_attention, is_causal=causal),
        "linear": partial(att.linear_attention, is_causal=causal),
        "performer": partial(att.performer_attention, projection=projection, is_causal=causal),
        "softmax": partial(att.softmax_attention, is_causal=causal),
    }
    if causal:
        forms["flow, cumulative"] = att.flow_attention_cumulative
    return forms


def work(form: Call, inputs: list[Tensor], training: bool) -> Callable[[], Any]:
    def forward() -> None:
        with torch.no_grad():
            form(*inputs)

    def step() -> None:
        leaves = [x.detach().requires_grad_() for x in inputs]
        torch.autograd.grad(form(*leaves).sum(), leaves)

    return step if training else forward


def interleaved(arms: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each arm, the order turned every repetition, one warm-up.

    Before it is timed an arm clears up and runs once: what the arm before it left in caches, in the allocator and for the garbage
    collector (gigabytes, for outer products) is not its own.
    """
    names, seconds = list(arms), {name: [] for name in arms}
    for i in range(repetitions + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            gc.collect()
            arms[name]()
            begin = time.perf_counter()
            arms[name]()
            if i:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(peer: list[float], ours: list[float]) -> float:
    return statistics.median(p / o for p, o in zip(peer, ours, strict=True))


def compare(shape: tuple[int, int, int, int], causal: bool, training: bool, repetitions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator) for _ in range(3)]
    projection = att.performer_projection(shape[-1], FEATURES, generator=generator)
    packages, _ = package_forms(causal, projection)
    ours, n = our_forms(causal, projection), shape[2]
    bytes_of_outer = shape[0] * shape[1] * n * shape[3] ** 2 * 4
    if n > (4096 if training else 8192):
        ours.pop("softmax")
    if bytes_of_outer > 3e8 or training:
        ours.pop("flow, cumulative", None)
    if causal and n > (1024 if training else 4096):  # outer products of chunks of n / 128 tokens
        packages.pop("performer-pytorch", None)
    if n % 64 and causal:
        packages.pop("linear-attention-transformer", None)
    arms = {name: work(form, inputs, training) for name, form in (ours | packages).items()}
    seconds = interleaved(arms, repetitions)
    ms = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    title = f"{'causal' if causal else 'both ways'}, {'training' if training else 'forward'}, {list(shape)}"
    print(f"\n{title}\n  " + "  ".join(f"{name} {value:.1f} ms" for name, value in ms.items()))
    same = {"linear-attention-transformer": "linear", "linear-attention": "linear", "performer-pytorch": "performer"}
    pairs = [(same[peer], peer) for peer in packages] + [("flow", peer) for peer in packages]
    pairs += [("flow", peer) for peer in ("softmax", "flow, cumulative") if peer in ours]
    for mine, peer in pairs:
        value = ratio(seconds[peer], seconds[mine])
        mark = ""
        if value < 0.95:
            mark = "   loss"
            lost.append(f"{title}: {mine} against {peer} {value:.2f}")
        print(f"  {mine:10s} against {peer:30s} {value:8.2f} x{mark}")


def decoding(repetitions: int) -> None:
    """One token after 1,024 and after 32,768."""
    token = torch.randn(3, 1, 8, 64, generator=torch.Generator().manual_seed(0))
    print("\ndecoding one token, 8 heads of 64")
    for n in (1024, 32_768):
        q, k, v = torch.randn(3, 1, 8, n, 64, generator=torch.Generator().manual_seed(1))
        _, state = att.flow_attention_causal(q, k, v, return_state=True)
        cache = att.KeyValueCache.empty(1, 8, 64, capacity=n + 100_000)
        cache.append(k, v)
        with torch.no_grad():
            seconds = interleaved(
                {
                    "flow": lambda state=state: [att.flow_attention_step(*token, state) for _ in range(20)],
                    "softmax": lambda cache=cache: [att.softmax_attention_step(*token, cache) for _ in range(20)],
                },
                repetitions,
            )
        ms = {name: 1e3 * statistics.median(values) / 20 for name, values in seconds.items()}
        print(f"  after {n:6,}: flow {ms['flow']:.3f} ms, softmax with its cache {ms['softmax']:.3f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short sequences only, fewer repetitions")
    parser.add_argument("--threads", type=int, help="of torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; peer / ours, above 1 is faster than the peer")
    for name, reason in package_forms(False, torch.eye(4))[1].items():
        print(f"  not here: {name}: {reason.splitlines()[0]}")
    lengths = (1024, 4096) if options.quick else (1024, 4096, 16_384, 65_536)
    for causal in (False, True):
        for training in (False, True):
            shapes = [(32, 4, 200, 32), *((1, 8, n, 64) for n in lengths if not (training and n > 16_384))]
            for shape in shapes:
                compare(shape, causal, training, 5 if options.quick or shape[2] > 10_000 else 9)
    decoding(5)
    print(f"\n{len(lost)} losses (below 0.95 x)")
    for line in lost:
        print(f"  {line}")


if __name__ == "__main__":
    main()
