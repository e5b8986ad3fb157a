"""Which strategy inverts which map fastest, found by measuring: sequential, Jacobi, modules, a frozen prefix or a window.

What is fastest depends on the machine, the batch, the widths and how hard a map is: sweeps do several times the arithmetic of
the sequential solver in a fraction of the calls. Ours; the paper's strategies are set by hand (2505.12849).
"""

import json
import math
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from anabranch.generative._checks import check_count
from anabranch.generative.autoregressive import AutoregressiveMap, entered
from anabranch.generative.fixed_point import SweepStrategy, TooSlow, invert_autoregressive, solve_map

CANDIDATES = (
    "sequential", "jacobi", "frozen-16", "sliding-32", "sliding-48", "sliding-64", "sliding-96", "gs-jacobi-2",
    "gs-jacobi-8",
)  # fmt: skip
Clock = Callable[[], float]
_HOPELESS = 2.0  # a run that takes so many times the best one is stopped
_OFF = 1.3  # a plan whose times are off by this factor is out of date


@dataclass(frozen=True)
class SamplingPlan:
    """A strategy for each map, in the order of generation, with what it was chosen by.

    Attributes:
        strategies: names, as ``invert_autoregressive`` takes them.
        seconds: measured time of each map under its strategy.
        table: seconds of each candidate by map, as far as it was measured (None: given up, it was far slower).
        batch, tol, threads, machine: what the plan is for.
    """

    strategies: tuple[str, ...]
    seconds: tuple[float, ...]
    table: tuple[Mapping[str, float | None], ...]
    batch: int
    tol: float
    threads: int
    machine: str

    def to_json(self) -> str:
        """The plan as text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "SamplingPlan":
        """Reads :meth:`to_json`.

        Raises:
            ValueError: text of another kind.
        """
        try:
            read: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in json.loads(text).items()}
            plan = cls(**read)
            for name in plan.strategies:
                SweepStrategy.parse(name)
        except (TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"text is not a sampling plan: {error}") from error
        return plan

    def check(self, maps: Sequence[AutoregressiveMap], z: Tensor, *, clock: Clock = time.perf_counter) -> float:
        """Measured over planned seconds of inverting ``z`` (median of 3); warns where they differ by more than 30 %.

        Raises:
            ValueError: another batch size than the plan's.
        """
        if len(z) != self.batch:
            raise ValueError(f"z has {len(z)} samples: expected {self.batch}, as in the plan")
        times = []
        for _ in range(4):
            begin = clock()
            invert_autoregressive(maps, z, self.strategies, tol=self.tol)
            _wait(z)
            times.append(clock() - begin)
        ratio = median(times[1:]) / sum(self.seconds)
        if not 1 / _OFF <= ratio <= _OFF:
            warnings.warn(
                f"the plan of {self.machine} with {self.threads} threads takes {ratio:.2f} times its planned time here: "
                "plan again",
                stacklevel=2,
            )
        return ratio


def plan_sampling(
    maps: Sequence[AutoregressiveMap],
    noises: Sequence[Tensor],
    *,
    tol: float,
    candidates: Sequence[str] = CANDIDATES,
    repeats: int = 3,
    clock: Clock = time.perf_counter,
    progress: Callable[[int, int, Mapping[str, object]], None] | None = None,
) -> SamplingPlan:
    """Times every candidate on every map and takes the fastest of each.

    A map's input are the answers of the maps before it. Candidates alternate; one that is far behind is stopped in the middle
    of a run, and given up. Cost: below ``2 (repeats + 1) len(noises) len(candidates)`` sequential inversions, in practice a
    quarter of that.

    Args:
        noises: at least one batch as the first map takes it, all of the batch size that the plan is for. Two to four, because
            the number of sweeps differs between draws.
        clock: reads seconds.
        tol: as for :func:`invert_autoregressive`.

    Raises:
        ValueError: no maps, noises or candidates, an unknown candidate, noises of different shapes.
    """
    check_count("repeats", repeats)
    if not maps or not noises or not candidates:
        raise ValueError(f"{len(maps)} maps, {len(noises)} noises, {len(candidates)} candidates: expected some of each")
    if len({noise.shape for noise in noises}) > 1:
        raise ValueError(f"noises have shapes {[tuple(noise.shape) for noise in noises]}: expected one shape")
    found = [SweepStrategy.parse(name) for name in candidates]
    unknown = maps[0].tokens - 1
    fitting = [s for s in found if s.modules <= unknown and (s.window is None or s.window < unknown)] or found[:1]
    inputs, strategies, seconds, table = list(noises), [], [], []
    for i, one_map in enumerate(maps):
        times = _race(one_map, inputs, fitting, tol, repeats, clock)
        best = min((name for name, spent in times.items() if spent is not None), key=lambda name: times[name] or 0.0)
        strategies.append(best)
        seconds.append(times[best] or 0.0)
        table.append(times)
        inputs = [solve_map(one_map, z, SweepStrategy.parse(best), tol)[0] for z in inputs]
        if progress is not None:
            progress(i + 1, len(maps), {"strategy": best})
    return SamplingPlan(
        tuple(strategies), tuple(seconds), tuple(table), len(noises[0]), tol, torch.get_num_threads(), platform.node()
    )


def _race(
    one_map: AutoregressiveMap,
    inputs: Sequence[Tensor],
    strategies: Sequence[SweepStrategy],
    tol: float,
    repeats: int,
    clock: Clock,
) -> dict[str, float | None]:
    """Mean seconds over the inputs (the least of the repeats of each); None for those that were given up."""
    alive = list(strategies)
    spent: dict[str, list[list[float]]] = {}
    score: dict[str, float] = {}
    for repeat in range(repeats + 1):  # the first turn warms up, and tells who is hopeless
        if repeat <= 1:
            spent = {s.name: [[] for _ in inputs] for s in alive}
        for j, z in enumerate(inputs):
            best = min((min(spent[s.name][j]) for s in alive if spent[s.name][j]), default=math.inf)
            turn = (repeat + j) % len(alive)
            for strategy in alive[turn:] + alive[:turn]:
                begin = clock()
                try:
                    deadline = _HOPELESS * best if len(alive) > 1 else math.inf
                    solve_map(one_map, z, strategy, tol, deadline_s=deadline, clock=clock)
                    _wait(z)
                except TooSlow:
                    pass  # what it took so far is enough to know
                took = clock() - begin
                spent[strategy.name][j].append(took)
                best = min(best, took)
        score = {s.name: fmean(min(times) for times in spent[s.name]) for s in alive}
        bound = 1 + (_HOPELESS - 1) / (repeat + 1)  # narrower as disturbances even out
        alive = [s for s in alive if score[s.name] <= bound * min(score.values())]
    kept = {s.name for s in alive}
    return {s.name: score[s.name] if s.name in kept else None for s in strategies}


def evaluation_seconds(
    one_map: AutoregressiveMap,
    z: Tensor,
    widths: Sequence[int],
    *,
    repeats: int = 9,
    clock: Clock = time.perf_counter,
) -> dict[int, float]:
    """Seconds (median) of one evaluation of the map over the last ``width`` unknown tokens, for each width.

    Width 1 is a step of the sequential solver at the end of the prefix, T - 1 a full sweep; their ratio times T - 1 is the
    number of sweeps at which Jacobi breaks even with the sequential solver.

    Raises:
        ValueError: a width that is not in [1, T - 1].
    """
    tokens, last = entered(one_map, z), one_map.tokens - 1
    if not widths or min(widths) < 1 or max(widths) > last:
        raise ValueError(f"widths = {list(widths)}: expected 1 to {last}")
    seconds = {}
    with torch.inference_mode():
        cache = one_map.new_cache(tokens)
        one_map.advance(tokens[:, :last], tokens[:, 1:], 0, cache)
        for width in widths:
            a, times = last - width, []
            for _ in range(repeats + 2):
                begin = clock()
                one_map.advance(tokens[:, a:last], tokens[:, a + 1 :], a, cache)
                _wait(z)
                times.append(clock() - begin)
            seconds[width] = median(times[2:])
    return seconds


def _wait(z: Tensor) -> None:
    """Until the device has done what it was given."""
    if z.is_cuda:
        torch.cuda.synchronize(z.device)
