"""Pipeline schedules as data: for every stage the order of its forwards, backwards and recomputations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

FORWARD, BACKWARD, RECOMPUTE, NOTHING, WEIGHTS = 0, 1, 2, 3, 4
Checkpoint = str | Sequence[str]  # "always", "except_last" or "never", of all stages or of each


class Action(NamedTuple):
    """``kind`` is "F", "B", "R" or "W"; ``chunk`` tells the virtual stages of one stage apart.

    Where there are actions "W", gradients of weights, "B" is only that of the inputs, and the next stage need not wait for "W".
    """

    kind: str
    micro_batch: int
    chunk: int


@dataclass(frozen=True, eq=False)
class PipelineSchedule:
    """The actions of every stage in order. Virtual stage ``chunk * stages + stage`` is the layer order.

    Args:
        kinds, micro_batch, chunk: ``[stages, actions]``, padded with NOTHING at the end.

    Raises:
        ValueError: a stage with too few or too many forwards or backwards. (Their order is checked when it is played.)
    """

    name: str
    micro_batches: int
    chunks: int
    kinds: Int32[np.ndarray, "stages actions"]
    micro_batch: Int32[np.ndarray, "stages actions"]
    chunk: Int32[np.ndarray, "stages actions"]

    def __post_init__(self) -> None:
        each = self.micro_batches * self.chunks
        for kind, word in ((FORWARD, "forwards"), (BACKWARD, "backwards")):
            counts = (self.kinds == kind).sum(1)
            if (counts != each).any():
                stage = int(np.argmax(counts != each))
                raise ValueError(f"stage {stage} of {self.name} has {counts[stage]} {word}, expected {each}")
        counts = (self.kinds == WEIGHTS).sum(1)
        if counts.any() and (counts != each).any():
            stage = int(np.argmax(counts != each))
            raise ValueError(f"stage {stage} of {self.name} has {counts[stage]} gradients of weights, expected {each}")

    @property
    def splits_backward(self) -> bool:
        """Whether gradients of weights are actions of their own."""
        return bool((self.kinds == WEIGHTS).any())

    @property
    def stages(self) -> int:
        return len(self.kinds)

    def actions(self, stage: int) -> Iterator[Action]:
        """Of one stage, in order."""
        for kind, micro, chunk in zip(self.kinds[stage], self.micro_batch[stage], self.chunk[stage], strict=True):
            if kind != NOTHING:
                yield Action("FBR-W"[kind], int(micro), int(chunk))

    def in_flight(self, stage: int) -> int:
        """The most micro-batches (of all chunks) whose backward, weights included, is still to come at any time on this stage."""
        last = WEIGHTS if self.splits_backward else BACKWARD
        steps = np.select([self.kinds[stage] == FORWARD, self.kinds[stage] == last], [1, -1], 0)
        return int(np.cumsum(steps).max())


def _checked(stages: int, micro_batches: int) -> None:
    for name, value in (("stages", stages), ("micro_batches", micro_batches)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def _with_recompute(
    name: str,
    micro_batches: int,
    chunks: int,
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    checkpoint: Checkpoint,
) -> PipelineSchedule:
    """Put a recomputation before every backward that needs one; rows are (kind, micro-batch, chunk) per stage."""
    each = [checkpoint] * len(rows) if isinstance(checkpoint, str) else list(checkpoint)
    if len(each) != len(rows):
        raise ValueError(f"checkpoint has {len(each)} entries: expected one word, or one a stage, {len(rows)}")
    for word in each:
        if word not in ("always", "except_last", "never"):
            raise ValueError(f"checkpoint must be 'always', 'except_last' or 'never', got {word!r}")
    made = []
    for (kind, micro, chunk), word in zip(rows, each, strict=True):
        again = (kind == BACKWARD) & (word != "never")
        if word == "except_last":
            again &= micro != micro_batches - 1
        at = np.flatnonzero(again)
        made.append(
            tuple(np.insert(x, at, fill) for x, fill in ((kind, RECOMPUTE), (micro, micro[at]), (chunk, chunk[at])))
        )
    longest = max(len(kind) for kind, _, _ in made)
    padded = [
        np.stack([np.concatenate([row[i], np.full(longest - len(row[i]), fill)]) for row in made]).astype(np.int32)
        for i, fill in ((0, NOTHING), (1, 0), (2, 0))
    ]
    return PipelineSchedule(name, micro_batches, chunks, *padded)


def fill_drain(
    stages: int, micro_batches: int, *, checkpoint: Checkpoint = "except_last", reverse: bool = True
) -> PipelineSchedule:
    """GPipe (Huang et al., 1811.06965): all forwards, then all backwards.

    Args:
        checkpoint: which micro-batches keep only their input and are computed again before their backward; of all stages, or a
            list with one word a stage.
        reverse: backwards from the last micro-batch to the first (torchgpipe), else in the forwards' order.
    """
    _checked(stages, micro_batches)
    order = np.arange(micro_batches)
    kind = np.repeat([FORWARD, BACKWARD], micro_batches)
    micro = np.concatenate([order, order[::-1] if reverse else order])
    row = (kind, micro, np.zeros_like(micro))
    return _with_recompute("gpipe", micro_batches, 1, [row] * stages, checkpoint)


def one_forward_one_backward(stages: int, micro_batches: int, *, checkpoint: Checkpoint = "never") -> PipelineSchedule:
    """1F1B (PipeDream-flush): stage k holds at most ``stages - k`` micro-batches; the same bubble as GPipe."""
    _checked(stages, micro_batches)
    rows = []
    for stage in range(stages):
        warm = min(micro_batches, stages - 1 - stage)
        steady = micro_batches - warm
        kind = np.concatenate([np.full(warm, FORWARD), np.tile([FORWARD, BACKWARD], steady), np.full(warm, BACKWARD)])
        micro = np.empty(2 * micro_batches, np.int64)
        micro[kind == FORWARD] = micro[kind == BACKWARD] = np.arange(micro_batches)
        rows.append((kind, micro, np.zeros_like(micro)))
    return _with_recompute("1f1b", micro_batches, 1, rows, checkpoint)


def interleaved(stages: int, micro_batches: int, chunks: int, *, checkpoint: Checkpoint = "never") -> PipelineSchedule:
    """Interleaved 1F1B (Narayanan et al., 2104.04473): ``chunks`` virtual stages each; a bubble ``chunks`` times smaller.

    Raises:
        ValueError: micro-batches that are no multiple of the stages (for more than one chunk).
    """
    _checked(stages, micro_batches)
    if chunks < 1:
        raise ValueError(f"chunks must be >= 1, got {chunks}")
    if chunks > 1 and micro_batches % stages:
        raise ValueError(f"micro_batches={micro_batches} must be a multiple of stages={stages} to interleave")
    total = micro_batches * chunks
    step = np.arange(total)
    group, inside = np.divmod(step, stages * chunks)
    chunk_f, micro_f = inside // stages, group * stages + inside % stages
    if chunks == 1:
        chunk_f, micro_f = np.zeros_like(step), step
    chunk_b = chunks - 1 - chunk_f
    rows = []
    for stage in range(stages):
        warm = min(total, (stages - 1 - stage) * (1 if chunks == 1 else 2) + (chunks - 1) * stages)
        steady = total - warm
        kind = np.concatenate([np.full(warm, FORWARD), np.tile([FORWARD, BACKWARD], steady), np.full(warm, BACKWARD)])
        micro, chunk = np.empty((2, 2 * total), np.int64)
        for which, of_chunk in ((FORWARD, chunk_f), (BACKWARD, chunk_b)):
            micro[kind == which], chunk[kind == which] = micro_f, of_chunk
        rows.append((kind, micro, chunk))
    return _with_recompute("interleaved", micro_batches, chunks, rows, checkpoint)


def zero_bubble(stages: int, micro_batches: int) -> PipelineSchedule:
    """ZB-H1 (Qi et al., 2401.10241): 1F1B whose backwards send the gradient on before they take that of the weights.

    Stage k puts off the weights of k micro-batches and does them where it would wait at the end: no more in flight than on the
    first stage of 1F1B, and with F, B, W seconds a bubble of (stages - 1)(F + B - W) instead of (stages - 1)(F + B + W), if
    there are as many micro-batches as stages and W is at most F and B.
    """
    _checked(stages, micro_batches)
    m, rows = np.arange(micro_batches + stages), []
    for stage in range(stages):
        warm = min(micro_batches, stages - 1 - stage)
        # One turn a column: a forward, a backward, the weights of a micro-batch before; what is out of range is left out.
        micro = np.stack([m + warm, m, m - stage], 1)
        inside = (micro >= 0) & (micro < micro_batches)
        kind = np.broadcast_to([FORWARD, BACKWARD, WEIGHTS], micro.shape)[inside]
        kind, micro = np.concatenate([np.full(warm, FORWARD), kind]), np.concatenate([m[:warm], micro[inside]])
        rows.append((kind, micro, np.zeros_like(micro)))
    return _with_recompute("zero-bubble", micro_batches, 1, rows, "never")
