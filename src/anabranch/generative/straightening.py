"""Straightening: a network learns, at the times it will be sampled with and nowhere else, the chords of its own paths."""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor, nn

from anabranch.generative._checks import check_count, check_times, expand, select, time_dtype
from anabranch.generative.fields import VelocityField
from anabranch.generative.fit import Fitted, fit
from anabranch.generative.low_rank import add_low_rank, merge_low_rank
from anabranch.generative.objectives import Loss, squared_error_loss
from anabranch.generative.solve import Progress, solve
from anabranch.generative.times import uniform_times


@dataclass(frozen=True)
class Chords:
    """Where a teacher's trajectories pass at the times of a few-step sampler.

    Args:
        states: ``[N, n + 1, ...]``, row i the trajectory i.
        times: ``[n + 1]``.
        label: ``[N]``, what the teacher was given.

    Raises:
        ValueError: as many times as states do not fit, labels of another number.
    """

    states: Float[Tensor, "n states *shape"]
    times: Float64[Tensor, " points"]
    label: Int[Tensor, " labels"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", check_times(self.times))
        if self.states.ndim < 2 or self.states.shape[1] != len(self.times):
            raise ValueError(f"states has shape {tuple(self.states.shape)}: expected [N, {len(self.times)}, ...]")
        if self.label is not None and self.label.shape != self.states.shape[:1]:
            raise ValueError(f"label has shape {tuple(self.label.shape)}: expected [{len(self.states)}]")

    def velocity(self, row: Int64[Tensor, " b"], step: Int64[Tensor, " b"]) -> Float[Tensor, "b ..."]:
        """``[b, ...]``: the constant velocity from the state before a step to the one after it."""
        length = self.times.diff().to(self.states.device, time_dtype(self.states))[step]
        change = self.states[row, step + 1] - self.states[row, step]
        return (change / expand(length, change)).to(change.dtype)


def teacher_chords(
    field: VelocityField,
    x0: Float[Tensor, "batch *shape"],
    times: Float[Tensor, " points"],
    anchors: int | Float[Tensor, " anchors"] = 100,
    *,
    solver: Any = "euler",
    batch_size: int = 64,
    label: Int[Tensor, " labels"] | None = None,
    progress: Progress | None = None,
    **condition: Any,
) -> Chords:
    """The teacher's states at ``times`` on trajectories solved finely over ``anchors``, from ``x0``.

    Cost: one call an anchor and sample (of a solver of one); ``len(times)`` states a sample are kept.

    Args:
        times: as :func:`optimal_times` chooses them; all must be among the anchors, the first and the last their ends.
        anchors: number of uniform steps, or the times.
        label: given to the field, and kept for the student.

    Raises:
        ValueError: times that are no anchors, labels of another number, and what :func:`solve` raises.
    """
    check_count("batch_size", batch_size)
    chosen = check_times(times)
    grid = uniform_times(anchors) if isinstance(anchors, int) else check_times(anchors, "anchors")
    distance, index = (chosen[:, None] - grid).abs().min(1)
    if float(distance.max()) > 1e-9:
        raise ValueError(f"times holds {float(chosen[int(distance.argmax())])}, which is no anchor")
    if int(index[0]) != 0 or int(index[-1]) != len(grid) - 1:
        raise ValueError(f"times go from {float(chosen[0])} to {float(chosen[-1])}: expected the ends of the anchors")
    if label is not None:
        if label.shape != x0.shape[:1]:
            raise ValueError(f"label has shape {tuple(label.shape)}: expected [{len(x0)}]")
        condition["label"] = label
    parts = []
    for first in range(0, len(x0), batch_size):
        rows = torch.arange(first, min(len(x0), first + batch_size), device=x0.device)
        fine = solve(field, x0[rows], grid, solver, return_trajectory=True, **select(condition, rows, len(x0)))
        parts.append(fine.states[index.to(x0.device)].transpose(0, 1))
        if progress is not None:
            progress(int(rows[-1]) + 1, len(x0), {})
    return Chords(torch.cat(parts), chosen, label)


@dataclass(frozen=True)
class Straighten:
    """Regression of the chords' velocities at the teacher's states (Nguyen et al., 2312.16414, equation 6).

    An objective that draws its own batches, ``straighten(net, generator=generator) -> Loss``: trajectories and steps are
    uniform. It is 0 exactly when sampling over ``chords.times`` with Euler passes through all of the teacher's states.

    Args:
        weight: of a step's squared error: 1 ("none", the paper's), its length, or its length squared ("step2": the error of
            the state after it), over the mean of these.
    """

    chords: Chords
    batch_size: int = 128
    weight: str = "none"
    weight_power: float = 0.0

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        if self.weight not in ("none", "step", "step2"):
            raise ValueError(f"weight must be 'none', 'step' or 'step2', got {self.weight!r}")

    def __call__(self, net: VelocityField, *, generator: torch.Generator | None) -> Loss:
        states = self.chords.states
        shape = (self.batch_size,)
        row = torch.randint(len(states), shape, generator=generator, device=states.device)
        step = torch.randint(states.shape[1] - 1, shape, generator=generator, device=states.device)
        return self.at(net, row, step)

    def at(self, net: VelocityField, row: Int64[Tensor, " b"], step: Int64[Tensor, " b"]) -> Loss:
        """The loss on the steps ``step`` of the trajectories ``row``."""
        chords = self.chords
        extra: dict[str, Any] = {} if chords.label is None else {"label": chords.label[row]}
        times = chords.times.to(chords.states.device, time_dtype(chords.states))
        error = net(chords.states[row, step], times[step], **extra) - chords.velocity(row, step)
        if self.weight != "none":
            lengths = times.diff() ** (1 if self.weight == "step" else 2)
            error = expand((lengths / lengths.mean())[step].sqrt(), error) * error
        return squared_error_loss(error, self.weight_power)


def straighten(
    teacher: nn.Module,
    chords: Chords,
    *,
    steps: int,
    generator: torch.Generator,
    batch_size: int = 128,
    weight: Literal["none", "step", "step2"] = "none",
    rank: int | None = None,
    alpha: float = 1.0,
    **options: Any,
) -> Fitted:
    """A copy of ``teacher`` trained on ``chords``: sample it by Euler over ``chords.times``, one call a step.

    It is good at those times alone; another number of steps wants another student.

    Args:
        rank: train low-rank products only (see :func:`add_low_rank`) and merge them at the end; None trains all weights.
        alpha: of :func:`add_low_rank`.
        options: of :func:`fit`; the paper: ``steps=12000, batch_size=15, lr=2e-4, warmup=5000, lr_schedule="constant"``.
    """
    student = copy.deepcopy(teacher).requires_grad_(True)
    if rank is not None:
        student = add_low_rank(student, rank, alpha=alpha, generator=generator)
    objective = Straighten(chords, batch_size, weight)
    done = fit(student, objective, steps=steps, generator=generator, **options)
    if rank is not None:
        merge_low_rank(done.model)
        merge_low_rank(done.ema).requires_grad_(False)
    return done


@dataclass(frozen=True)
class ChosenTimes:
    """A law of training times: uniform on the starts of the steps of ``times`` (reflow distilled to those steps)."""

    times: Float64[Tensor, " points"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", check_times(self.times))

    def sample(self, n: int, like: Tensor, generator: torch.Generator | None) -> Float[Tensor, " n"]:
        index = torch.randint(len(self.times) - 1, (n,), generator=generator, device=like.device)
        return self.times.to(like.device, time_dtype(like))[index]
