"""What better sources cost, as ratios measured side by side in one process.

1. Sparse axes of 60,000 x 784 rows, CPU seconds of both passes: against one product a candidate axis, maxima only, as the
   released script is organised (written here; timed on 64 axes, scaled to all), and against scikit-learn's PCA, which is float32,
   does the first pass only, and is faster.
2. Draws: the pruned source against the plain Gaussian, and against sampling time (ten Euler steps of the shipped teacher).
3. Draws of the von Mises-Fisher law against SciPy's.

Arms of 2 and 3 alternate; medians of the paired ratios are printed. Run: ``python benchmarks/sources.py``. Peers that are not
installed are left out.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats

import anabranch.generative as ge
from anabranch.generative import uniform_times
from anabranch.worlds import balanced_labels, load_fashion_teacher


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def cpu_seconds(call: Callable[[], object], repetitions: int = 3) -> float:
    """Median processor seconds of a call: unlike wall time, comparable on a machine that is busy."""
    spent = []
    for _ in range(repetitions):
        begin = time.process_time()
        call()
        spent.append(time.process_time() - begin)
    return statistics.median(spent)


def compare(title: str, arms: dict[str, Callable[[], object]], repetitions: int) -> None:
    """Median milliseconds, and the median ratio of every arm to the first."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(repetitions + 1):
        for name, call in arms.items():
            spent = seconds(call)
            if i:
                taken[name].append(spent)
    print(f"\n{title}")
    base = next(iter(taken.values()))
    for name, values in taken.items():
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        print(f"  {name:44s} {1e3 * statistics.median(values):10.2f} ms   ratio {ratio:.3f}")


def axes(generator: torch.Generator, rows: int = 60_000, d: int = 784) -> None:
    """One pass for the covariance, one for the cosines."""
    data = torch.randn(rows, d, generator=generator) * torch.linspace(1, 0.02, d) + 0.2
    found = ge.sparse_axes(data, 0.01)
    streamed = cpu_seconds(lambda: ge.sparse_axes(data, 0.01))
    unit = data / data.norm(dim=1, keepdim=True)
    candidates = found.candidates[:64]
    loop = cpu_seconds(lambda: [float((unit @ axis).max()) for axis in candidates]) * len(found.candidates) / 64
    print(f"sparse axes of {rows} x {d}: {streamed:.2f} CPU-s ({len(found.vectors)} axes)")
    print(f"  loop over axes, maxima only                {loop:8.2f} CPU-s   ratio {loop / streamed:.2f}")
    try:
        from sklearn.decomposition import PCA

        spent = cpu_seconds(lambda: PCA(svd_solver="covariance_eigh").fit(unit.numpy()))
        print(f"  scikit-learn PCA alone                     {spent:8.2f} CPU-s   ratio {spent / streamed:.2f}")
    except ImportError:
        pass


def draws(generator: torch.Generator) -> None:
    """128 starts in 784 dimensions."""
    base = ge.GaussianSource((1, 28, 28))
    data = torch.rand(2000, 1, 28, 28, generator=generator) * 2 - 1
    found = ge.sparse_axes(data, 1.0).sparsest(12)
    pruned, labels = ge.PrunedSource(base, found), balanced_labels(128)
    teacher = load_fashion_teacher()
    x0 = base.sample(128, generator=generator)
    compare(
        f"128 starts, {len(found.vectors)} axes, {100 * pruned.acceptance_rate:.1f} % kept",
        {
            "Gaussian": lambda: base.sample(128, generator=generator),
            "pruned Gaussian": lambda: pruned.sample(128, generator=generator),
            "ten Euler steps of the teacher": lambda: ge.solve(teacher, x0, uniform_times(10), label=labels),
        },
        5,
    )


def directions(generator: torch.Generator) -> None:
    """1,000 directions in 784 dimensions."""
    mu = np.eye(784)[0]
    ours = ge.VonMisesFisherSource(directions=torch.from_numpy(mu)[None], kappa=300.0, radius=1.0)
    law, rng = stats.vonmises_fisher(mu, 300), np.random.default_rng(0)
    compare(
        "1,000 von Mises-Fisher directions, D = 784, kappa 300, float64",
        {"ours": lambda: ours.sample(1000, generator=generator), "scipy": lambda: law.rvs(1000, random_state=rng)},
        7,
    )


def main() -> None:
    """Runs all, about half a minute on one core."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    axes(generator)
    draws(generator)
    directions(generator)


if __name__ == "__main__":
    main()
