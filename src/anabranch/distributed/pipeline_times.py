"""How long a training step takes under a schedule, from the times of its parts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from anabranch.distributed import _kernels_pipeline as kernels
from anabranch.distributed.schedules import (
    BACKWARD,
    FORWARD,
    NOTHING,
    RECOMPUTE,
    PipelineSchedule,
    fill_drain,
    interleaved,
    one_forward_one_backward,
    zero_bubble,
)

_KINDS = {"F": "forward", "B": "backward", "R": "recomputation", "W": "weights"}
Seconds = float | Sequence[float] | np.ndarray


@dataclass(frozen=True, eq=False)
class PipelineTimeline:
    """When everything happens.

    Attributes:
        step_s: until the last backward has ended.
        bubble_fraction: share of all stages' time in which nothing runs.
        busy_s: of every stage.
        begin_s, end_s: of every action of the schedule, NaN where it is padded.
    """

    schedule: PipelineSchedule
    step_s: float
    bubble_fraction: float
    busy_s: Float64[np.ndarray, " stages"]
    begin_s: Float64[np.ndarray, "stages actions"]
    end_s: Float64[np.ndarray, "stages actions"]

    def bars(self) -> list[tuple[str, float, float, str, str]]:
        """Bars of a Gantt chart: (stage, begin in seconds, end, what, number of the micro-batch), stage by stage."""
        return [
            (f"stage {k}", float(self.begin_s[k, i]), float(self.end_s[k, i]), _KINDS[a.kind], str(a.micro_batch))
            for k in range(self.schedule.stages)
            for i, a in enumerate(self.schedule.actions(k))
        ]


def simulate_pipeline(
    schedule: PipelineSchedule,
    forward_s: Seconds,
    backward_s: Seconds,
    *,
    recompute_s: Seconds = 0.0,
    send_s: Seconds = 0.0,
    weights_s: Seconds = 0.0,
    early_recompute: bool = True,
) -> PipelineTimeline:
    """Times of a step: each stage does its actions in order, each as soon as its inputs are there. O(stages micro-batches).

    Args:
        forward_s, backward_s, recompute_s: of one micro-batch, a number or one a virtual stage.
        send_s: of one micro-batch between neighbouring virtual stages, a number or one a boundary; it delays the receiver and
            occupies nobody.
        weights_s: of one micro-batch, where the schedule has its gradients of weights apart; ``backward_s`` is without it then.
        early_recompute: a recomputation may begin before the gradient has come (in the bubble).

    Raises:
        ValueError: negative times, or lists of another length; a schedule that waits for itself.
    """
    virtual = schedule.stages * schedule.chunks
    arrays = [
        _spread(name, value, virtual)
        for name, value in (
            ("forward_s", forward_s), ("backward_s", backward_s), ("recompute_s", recompute_s), ("weights_s", weights_s),
        )
    ]  # fmt: skip
    send = _spread("send_s", send_s, max(1, virtual - 1))
    begin, end, ran = kernels.play(
        schedule.kinds, schedule.micro_batch, schedule.chunk, schedule.chunks, schedule.micro_batches, *arrays, send,
        early_recompute,
    )  # fmt: skip
    wanted = int((schedule.kinds != NOTHING).sum())
    if ran < wanted:
        raise ValueError(
            f"the schedule {schedule.name} waits for itself: {wanted - ran} of {wanted} actions never start"
        )
    return _timeline(schedule, begin, end)


def measured_timeline(schedule: PipelineSchedule, times: Sequence[Sequence[tuple[float, float]]]) -> PipelineTimeline:
    """The same of a real step: (begin, end) of every action of every stage, in order, on one clock; it starts at 0.

    Raises:
        ValueError: another number of stages or actions than the schedule has.
    """
    counts = (schedule.kinds != NOTHING).sum(1).tolist()
    if [len(row) for row in times] != counts:
        raise ValueError(f"times has {[len(row) for row in times]} actions a stage: expected {counts}")
    begin, end = np.full((2, *schedule.kinds.shape), np.nan)
    for stage, row in enumerate(times):
        begin[stage, : len(row)], end[stage, : len(row)] = np.array(row, np.float64).T
    first = np.nanmin(begin)
    return _timeline(schedule, begin - first, end - first)


def simulate_measured(timelines: Sequence[PipelineTimeline]) -> PipelineTimeline:
    """Measured steps of one schedule, played again with the median length of every stage's forwards, backwards, recomputations.

    What is left between it and the measured steps is sending, waiting and noise.

    Raises:
        ValueError: no steps.
    """
    if not timelines:
        raise ValueError("timelines must not be empty")
    schedule = timelines[0].schedule
    lengths = np.stack([one.end_s - one.begin_s for one in timelines])

    def medians(kind: int) -> list[float]:
        found = [lengths[:, k][:, schedule.kinds[k] == kind] for k in range(schedule.stages)]
        return [float(np.median(one)) if one.size else 0.0 for one in found]

    return simulate_pipeline(schedule, medians(FORWARD), medians(BACKWARD), recompute_s=medians(RECOMPUTE))


def even_step_s(stages: int, micro_batches: int, *, checkpoint: str = "never") -> float:
    """A fill-drain step of a model of one second forward and two backward for the mini-batch, cut in equal stages.

    Raises:
        ValueError: numbers below 1.
    """
    schedule = fill_drain(stages, micro_batches, checkpoint=checkpoint)
    forward = 1.0 / stages / micro_batches
    return simulate_pipeline(schedule, forward, 2 * forward, recompute_s=forward).step_s


def compare_schedules(
    stages: int, micro_batches: int, *, forward_s: float = 1.0, inputs_s: float = 1.0, weights_s: float = 1.0
) -> list[dict[str, str | int | float]]:
    """Idle share of a step, and most micro-batches in flight, of all schedules without recomputation; equal stages.

    A micro-batch takes ``forward_s + inputs_s + weights_s`` on a stage, the latter two for the gradients of inputs and
    weights. "interleaved" has 2 chunks a stage, if the stages divide the micro-batches, and in flight counts halves.

    Raises:
        ValueError: numbers below 1, or negative times.
    """
    made = [fill_drain(stages, micro_batches, checkpoint="never"), one_forward_one_backward(stages, micro_batches)]
    if micro_batches % stages == 0:
        made.append(interleaved(stages, micro_batches, 2))
    rows: list[dict[str, str | int | float]] = []
    for schedule in [*made, zero_bubble(stages, micro_batches)]:
        parts = schedule.chunks
        backward = (inputs_s if schedule.splits_backward else inputs_s + weights_s) / parts
        found = simulate_pipeline(schedule, forward_s / parts, backward, weights_s=weights_s / parts)
        most = max(schedule.in_flight(k) for k in range(stages)) / parts
        rows.append(
            {
                "K": stages, "M": micro_batches, "schedule": schedule.name, "bubble": found.bubble_fraction,
                "seconds": found.step_s, "in flight": most,
            }
        )  # fmt: skip
    return rows


def _timeline(schedule: PipelineSchedule, begin: np.ndarray, end: np.ndarray) -> PipelineTimeline:
    step, busy = float(np.nanmax(end)), np.nansum(end - begin, axis=1)
    idle = 1 - busy.sum() / (schedule.stages * step) if step > 0 else 0.0
    return PipelineTimeline(schedule, step, float(idle), busy, begin, end)


def _spread(name: str, given: Seconds, n: int) -> np.ndarray:
    values = np.asarray(given, np.float64)
    if values.ndim == 0:
        values = np.full(n, float(values))
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {values.shape}: expected a number or {n} of them")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"{name} must be finite and >= 0, got {values.tolist()[:10]}")
    return values
