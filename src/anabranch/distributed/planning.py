"""Memory of a pipeline's stages, and the plan that is fastest on given devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float64

from anabranch.distributed._partition import named_schedule
from anabranch.distributed.link_speed import LinkSpeed
from anabranch.distributed.pipeline_times import PipelineTimeline, simulate_pipeline
from anabranch.distributed.profile import LayerProfile, profile_at
from anabranch.distributed.schedules import Checkpoint, PipelineSchedule
from anabranch.simulation import balance as balanced

_CHECKPOINTS = ("never", "except_last", "always")
_SCHEDULES = ("gpipe", "1f1b")


@dataclass(frozen=True, eq=False)
class StageCosts:
    """Costs of every stage for one micro-batch, from those of its layers."""

    forward_s: Float64[np.ndarray, " stages"]
    backward_s: Float64[np.ndarray, " stages"]
    params: Float64[np.ndarray, " stages"]
    input_bytes: Float64[np.ndarray, " stages"]
    internal_bytes: Float64[np.ndarray, " stages"]
    cut_bytes: Float64[np.ndarray, " cuts"]


def stage_costs(profile: LayerProfile, balance: Sequence[int], *, samples: float | None = None) -> StageCosts:
    """Sums over the layers of every stage.

    Args:
        samples: of a micro-batch; times and bytes of activations are taken to be proportional. As profiled if not given.

    Raises:
        ValueError: a balance that does not sum to the layers.
    """
    if sum(balance) != profile.layers or min(balance) < 1:
        raise ValueError(f"balance={list(balance)}: expected numbers >= 1 that sum to {profile.layers}, the layers")
    scale = 1.0 if samples is None else samples / profile.samples
    ends = np.cumsum(balance)
    starts = ends - np.asarray(balance)

    def total(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.asarray(values, np.float64), starts)

    inputs = np.concatenate([[profile.input_bytes], profile.output_bytes[ends[:-1] - 1]])
    internal = total(profile.activation_bytes)
    if profile.only_next is not None:
        internal[:-1] -= profile.only_next[ends[:-1] - 1]
    return StageCosts(
        forward_s=total(profile.forward_s) * scale,
        backward_s=total(profile.backward_s) * scale,
        params=total(profile.params),
        input_bytes=inputs * scale,
        internal_bytes=internal * scale,
        cut_bytes=profile.output_bytes[ends[:-1] - 1] * scale,
    )


def activation_memory(costs: StageCosts, schedule: PipelineSchedule) -> Float64[np.ndarray, " stages"]:
    """Most bytes of activations that every stage keeps at any time of a step: inputs of all micro-batches under way, and the
    internals of those that are not recomputed, or are just then.

    Not counted: what a layer needs only while it runs, and buffers of tensors under way. O(stages micro-batches).

    Raises:
        ValueError: a schedule with another number of stages, several chunks a stage, or gradients of weights apart.
    """
    if schedule.splits_backward:
        raise ValueError(f"schedule {schedule.name} has gradients of weights apart: what they keep is not known")
    if schedule.stages != len(costs.params) or schedule.chunks != 1:
        raise ValueError(
            f"schedule has {schedule.stages} stages of {schedule.chunks} chunks, costs {len(costs.params)}"
        )
    peaks = np.zeros(schedule.stages)
    for k in range(schedule.stages):
        actions = list(schedule.actions(k))
        again = {a.micro_batch for a in actions if a.kind == "R"}
        now = 0.0
        for kind, m, _ in actions:
            if kind == "F":
                now += costs.input_bytes[k] + (0.0 if m in again else costs.internal_bytes[k])
            elif kind == "R":
                now += costs.internal_bytes[k]
            else:
                peaks[k] = max(peaks[k], now)
                now -= costs.input_bytes[k] + costs.internal_bytes[k]
            peaks[k] = max(peaks[k], now)
    return peaks


def stage_memory(
    costs: StageCosts, schedule: PipelineSchedule, *, bytes_per_parameter: float = 16.0
) -> Float64[np.ndarray, " stages"]:
    """Bytes of every stage: parameters with gradients and optimizer state, and activations.

    Args:
        bytes_per_parameter: 16 for Adam in float32 (weight, gradient, two moments); the paper counts 12 with RMSProp.

    Raises:
        ValueError: as :func:`activation_memory`.
    """
    return costs.params * bytes_per_parameter + activation_memory(costs, schedule)


@dataclass(frozen=True)
class PipelinePlan:
    """A way to train on some devices, and what it is predicted to take.

    Attributes:
        stages, replicas: devices are ``stages x replicas``; every replica is a pipeline with its share of the mini-batch.
        micro_batches: of a replica.
        checkpoint: which micro-batches are computed again: one word for all stages, or one a stage.
        balance: layers of every stage.
        step_s: of the mini-batch, averaging gradients over replicas included.
        memory_bytes: of every stage.
        bubble_fraction: share of time in which devices idle.
        batch, bandwidth_bytes_per_s, latency_s, overhead_s: what it was planned for, as in :func:`plan_pipeline`.
    """

    stages: int
    replicas: int
    micro_batches: int
    schedule: str
    checkpoint: str | tuple[str, ...]
    balance: tuple[int, ...]
    step_s: float
    memory_bytes: tuple[float, ...]
    bubble_fraction: float
    batch: int
    bandwidth_bytes_per_s: float
    latency_s: float
    overhead_s: float

    @property
    def arm(self) -> str:
        """The :func:`training_arm` that carries it out with its ``checkpoint`` (with replicas, of a plan without stages only)."""
        if self.stages == 1:
            return "ddp" if self.replicas > 1 else "one process"
        return self.schedule if self.recomputed("never") == self.stages else f"{self.schedule}-recompute"

    def recomputed(self, checkpoint: str) -> int:
        """Stages that recompute in this way."""
        return (
            self.stages * (self.checkpoint == checkpoint)
            if isinstance(self.checkpoint, str)
            else self.checkpoint.count(checkpoint)
        )

    def timeline(self, profile: LayerProfile | Sequence[LayerProfile]) -> PipelineTimeline:
        """The step of one replica, action by action, for the profile it was planned for; without averaging over replicas."""
        schedule = named_schedule(self.schedule, self.stages, self.micro_batches, self.checkpoint)
        return predict_step(
            profile, self.balance, schedule, samples=self.batch // self.replicas,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s, latency_s=self.latency_s, overhead_s=self.overhead_s,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def predict_step(
    profile: LayerProfile | Sequence[LayerProfile],
    balance: Sequence[int],
    schedule: PipelineSchedule,
    *,
    samples: int,
    bandwidth_bytes_per_s: float = float("inf"),
    latency_s: float = 0.0,
    overhead_s: float = 0.0,
) -> PipelineTimeline:
    """The simulated step of a mini-batch of ``samples`` samples; several profiles are of several sizes (:func:`profile_at`).

    Args:
        overhead_s: of every forward, backward and recomputation of a micro-batch on a stage, whatever its size.
    """
    size = samples / schedule.micro_batches
    costs = stage_costs(profile_at(profile, size), balance, samples=size)
    send = costs.cut_bytes / bandwidth_bytes_per_s + latency_s if len(balance) > 1 else 0.0
    forward, backward = costs.forward_s + overhead_s, costs.backward_s + overhead_s
    return simulate_pipeline(schedule, forward, backward, recompute_s=forward, send_s=send)


def plan_pipeline(
    profile: LayerProfile | Sequence[LayerProfile],
    *,
    devices: int,
    memory_bytes: float,
    bandwidth_bytes_per_s: float,
    batch: int,
    bytes_per_parameter: float = 16.0,
    gradient_bytes: float = 4.0,
    latency_s: float = 0.0,
    overhead_s: float = 0.0,
    averaging: LinkSpeed | None = None,
) -> list[PipelinePlan]:
    """All ways that fit, fastest first: stages, replicas, micro-batches, schedule and recomputation (alike on all stages, or
    only where a stage's memory needs it, which is never slower).

    For every number of stages the layers are cut so that the slowest stage, its sends included, is as fast as possible, under
    the cap on parameters; what the activations need is checked after that. Exact for the given costs; times are taken to be
    proportional to samples, plus ``overhead_s``. O(devices log(batch)) simulations.

    Args:
        profile: costs of the layers; several are of several sizes, and times then follow :func:`profile_at`.
        devices: at most so many are used.
        memory_bytes: of each.
        bandwidth_bytes_per_s: between neighbours, one way, and of a ring between replicas.
        batch: samples of a mini-batch, of all replicas.
        gradient_bytes: of a gradient's element, for averaging over replicas.
        overhead_s: of every forward and backward of a micro-batch on a stage, whatever its size.
        averaging: the links of the ring, as :func:`measure_averaging` finds them; those between neighbours if not given.

    Raises:
        ValueError: numbers that are not positive, or nothing that fits the memory.
    """
    for name, value in (
        ("devices", devices), ("memory_bytes", memory_bytes), ("bandwidth_bytes_per_s", bandwidth_bytes_per_s),
        ("batch", batch), ("bytes_per_parameter", bytes_per_parameter),
    ):  # fmt: skip
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")
    ring = LinkSpeed(latency_s, bandwidth_bytes_per_s) if averaging is None else averaging
    found: list[PipelinePlan] = []
    least = float("inf")
    layers = profile_at(profile, batch).layers
    for stages in range(1, min(devices, layers) + 1):
        for replicas in range(1, devices // stages + 1):
            if batch % replicas or (replicas > 1 and devices // stages // replicas > 1):
                continue  # equal shares; and no more devices idle than must
            samples = batch // replicas
            for micro_batches in _choices(samples):
                sized = profile_at(profile, samples / micro_batches)
                try:
                    cut = _cut(sized, stages, memory_bytes, bandwidth_bytes_per_s, bytes_per_parameter)
                except ValueError:
                    break  # the parameters alone do not fit
                costs = stage_costs(sized, cut)
                for name in _SCHEDULES if stages > 1 else _SCHEDULES[:1]:
                    of = partial(named_schedule, name, stages, micro_batches)
                    needs = {
                        c: stage_memory(costs, of(c), bytes_per_parameter=bytes_per_parameter) for c in _CHECKPOINTS
                    }
                    least = min(least, *(float(need.max()) for need in needs.values()))
                    for checkpoint, memory in _recomputations(needs, memory_bytes):
                        schedule = of(checkpoint)
                        timeline = predict_step(
                            sized, cut, schedule, samples=samples, bandwidth_bytes_per_s=bandwidth_bytes_per_s,
                            latency_s=latency_s, overhead_s=overhead_s,
                        )  # fmt: skip
                        piece = float(costs.params.max()) * gradient_bytes / replicas  # of what goes round the ring
                        sends = 2 * (replicas - 1)
                        step = timeline.step_s + sends * (piece / ring.bandwidth_bytes_per_s + ring.latency_s)
                        found.append(
                            PipelinePlan(
                                stages, replicas, micro_batches, name, checkpoint, tuple(cut), step,
                                tuple(float(b) for b in memory), timeline.bubble_fraction,
                                batch, bandwidth_bytes_per_s, latency_s, overhead_s,
                            )
                        )  # fmt: skip
    if not found:
        hint = f"the smallest stage found needs {least:.4g}" if np.isfinite(least) else "the parameters alone need more"
        raise ValueError(f"memory_bytes={memory_bytes:.4g}: nothing fits on {devices} devices; {hint}")
    work = {
        id(p): sum(i * p.recomputed(name) for i, name in enumerate(_CHECKPOINTS)) for p in found
    }  # of two that take as long and as much, the one that recomputes less
    return sorted(found, key=lambda p: (p.step_s, max(p.memory_bytes), p.stages, work[id(p)]))


def nearest_plan(
    plans: Sequence[PipelinePlan], stages: int, micro_batches: int, checkpoint: str | tuple[str, ...]
) -> PipelinePlan:
    """Of the plans with these stages and this recomputation, one whose number of micro-batches is nearest; the first of several.

    Raises:
        ValueError: no such plan.
    """
    found = [p for p in plans if (p.stages, p.checkpoint) == (stages, checkpoint)]
    if not found:
        raise ValueError(f"plans has none with stages={stages} and checkpoint={checkpoint!r}")
    return min(found, key=lambda p: abs(p.micro_batches - micro_batches))


def most_layers(
    profile_of: Callable[[int], LayerProfile],
    *,
    stages: int,
    micro_batches: int,
    checkpoint: Checkpoint,
    samples: int,
    memory_bytes: float,
    bytes_per_parameter: float = 16.0,
    most: int = 1 << 14,
) -> int:
    """The deepest model that fits: the largest n for which a GPipe of ``profile_of(n)`` keeps every stage within its memory.

    Layers are cut so that the stage with most parameters has as few as possible. O(log most) partitions.

    Args:
        profile_of: costs of the model of n layers (or blocks), n >= 1; memory must grow with n.
        samples: of the mini-batch.

    Returns:
        0 if not even one layer fits.
    """
    schedule = named_schedule("gpipe", stages, micro_batches, checkpoint)

    def fits(n: int) -> bool:
        profile = profile_of(n)
        if profile.layers < stages:
            return True
        cut = balanced(profile.params, stages)
        costs = stage_costs(profile, cut, samples=samples / micro_batches)
        return float(stage_memory(costs, schedule, bytes_per_parameter=bytes_per_parameter).max()) <= memory_bytes

    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _recomputations(
    needs: Mapping[str, Float64[np.ndarray, " stages"]], cap: float
) -> list[tuple[str | tuple[str, ...], Float64[np.ndarray, " stages"]]]:
    """(recomputation, bytes of every stage) that fit: alike on all stages, and the least that each stage's own memory allows.

    What a stage recomputes changes no other stage's memory, and leaving a recomputation out delays nothing: so the least
    on every stage is as fast as any choice that fits.
    """
    found: list[tuple[str | tuple[str, ...], np.ndarray]] = [
        (c, need) for c, need in needs.items() if need.max() <= cap
    ]
    rows = list(zip(*needs.values(), strict=True))  # of every stage, in the order of more recomputation
    least = [next((i for i, need in enumerate(row) if need <= cap), None) for row in rows]
    chosen = [i for i in least if i is not None]
    if len(chosen) == len(rows) and len(set(chosen)) > 1:
        memory = np.array([row[i] for row, i in zip(rows, chosen, strict=True)])
        found.append((tuple(_CHECKPOINTS[i] for i in chosen), memory))
    return found


def _choices(samples: int) -> list[int]:
    """Numbers of micro-batches worth trying: powers of two that divide the samples equally, and one sample each."""
    powers = [2**i for i in range(samples.bit_length()) if samples % 2**i == 0]
    return sorted({*powers, samples} if samples <= 4096 else powers)


def _cut(profile: LayerProfile, stages: int, memory: float, bandwidth: float, bytes_per_parameter: float) -> list[int]:
    sends = 2 * profile.output_bytes[:-1] / bandwidth  # forward the activations, backward their gradients
    return balanced(
        profile.forward_s + profile.backward_s,
        stages,
        cut_costs=sends if len(sends) else None,
        memory=profile.params * bytes_per_parameter,
        memory_cap=memory,
    )
