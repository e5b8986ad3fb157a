"""Training under a real limit of memory, kept by the operating system: what fits, and how deep a model may be."""

from __future__ import annotations

import gc
import resource
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anabranch.distributed._partition import even_cut
from anabranch.distributed._stage import LossFunction
from anabranch.distributed.errors import PipelineError, RankFailed, StageOutOfMemory
from anabranch.distributed.launching import Ranks
from anabranch.distributed.malloc import fill_holes, map_large_blocks
from anabranch.distributed.pipeline import Pipeline
from anabranch.distributed.planning import most_layers
from anabranch.distributed.profile import profile_layers
from anabranch.distributed.schedules import Checkpoint

_STATUS = Path("/proc/self/status")
# Of torch's allocator, and of C++ where it reaches Python as another error.
_TOLD = ("can't allocate memory", "bad_alloc", "could not create a", "Cannot allocate memory")
_DEATHS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)  # of a library that does not look at what malloc gave it
_ADAM: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = partial(torch.optim.Adam, lr=1e-3)


def data_bytes() -> int:
    """Bytes of private writable memory of this process: what ``RLIMIT_DATA`` limits.

    Raises:
        OSError: not on Linux, which alone tells it.
    """
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no VmData: a limit of memory needs Linux")


@contextmanager
def memory_limit(limit_bytes: int, *, above: int) -> Iterator[None]:
    """Inside, memory of this process beyond ``above + limit_bytes`` is refused (``RLIMIT_DATA``); errors are as they come.

    Args:
        above: what :func:`data_bytes` said at some time: what was there by then does not count.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (above + limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def train_within(
    make_layers: Callable[[], Sequence[nn.Module]],
    x: Tensor,
    target: Tensor,
    *,
    limit_bytes: int,
    balance: Sequence[int],
    loss_fn: LossFunction,
    micro_batches: int = 8,
    schedule: str = "gpipe",
    checkpoint: Checkpoint = "except_last",
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = _ADAM,
    compact: bool = True,
) -> float:
    """One step of training with a process a stage, none of which may take more than the limit; the loss of the mini-batch.

    Counted is all that a process takes beyond a small pipeline that ran before in it and the connections of its own, with the
    holes of its heap filled (:func:`fill_holes`), so that what else it did before does not matter: parameters of its stage,
    gradients and the optimizer's state, which are there from the start, activations, buffers of tensors under way, what
    layers need while they run, and what the allocator cannot use again. Processes are new, so that nothing of an earlier
    try is left.

    Args:
        make_layers: gives the whole model, a function of a module or a ``functools.partial`` of one.
        limit_bytes: of each process.
        balance: layers of every stage; one stage is one process.
        compact: :func:`map_large_blocks` first, so that holes of the heap do not count.

    Raises:
        StageOutOfMemory: a stage was refused memory; it says which, and in what it was. A process that a fault ended counts
            too: some native libraries use what they were refused.
        RankFailed: anything else went wrong.
        ValueError: a limit that is not positive, or layers of several stages that share parameters.
        OSError: not on Linux.
    """
    if limit_bytes <= 0:
        raise ValueError(f"limit_bytes must be > 0, got {limit_bytes}")
    data_bytes()  # says so if it cannot be told here
    options = {"micro_batches": micro_batches, "schedule": schedule, "checkpoint": checkpoint}
    arguments = (make_layers, x, target, int(limit_bytes), list(balance), loss_fn, options, make_optimizer, compact)
    try:
        with Ranks(len(balance), keep_memory=False) as ranks:
            told = ranks.call(_train_stage, *arguments)
    except RankFailed as error:
        refused = {r: text for r, text in error.reports.items() if text.rstrip().rpartition("\n")[2].startswith(_NAME)}
        died = [r for r, text in error.reports.items() if any(f"ended by signal {s:d} " in text for s in _DEATHS)]
        if not refused and not died:
            raise
        stage = min(refused or died)
        message = f"stage {stage} died: native code did not survive what it was refused within {int(limit_bytes)} bytes"
        if refused:
            message = refused[stage].rstrip().rpartition(f"{_NAME}: ")[2]
        raise StageOutOfMemory(message, stage=stage, limit_bytes=int(limit_bytes)) from error
    return next(loss for loss in told if loss is not None)


_NAME = f"{StageOutOfMemory.__module__}.{StageOutOfMemory.__qualname__}"


@dataclass(frozen=True)
class Depth:
    """Blocks of the deepest model within a limit: by the model of memory, and as really trained.

    Attributes:
        predicted: of :func:`most_layers`.
        measured: trained within the limit; a model with ``failed`` blocks did not (within the tolerance that was asked for).
        reason: of the smallest that failed: which stage, in what.
    """

    predicted: int
    measured: int
    failed: int
    reason: str


def depth_within(
    make_layers: Callable[[int], Callable[[], Sequence[nn.Module]]],
    x: Tensor,
    target: Tensor,
    *,
    stages: int,
    micro_batches: int,
    checkpoint: Checkpoint,
    limit_bytes: int,
    loss_fn: LossFunction,
    tolerance: float = 0.05,
) -> Depth:
    """How deep a model of equal blocks between two other layers may be, with a process a stage: predicted, and tried out.

    Args:
        make_layers: of a number of blocks gives what :func:`train_within` takes; blocks + 2 layers.
        tolerance: of the measured depth, as in :func:`deepest`.

    Raises:
        ValueError, RankFailed, OSError: as :func:`train_within`.
    """
    m = len(x) // micro_batches
    profile = profile_layers(make_layers(3)(), x[:m], target=target[:m], loss_fn=loss_fn, repeats=1)
    predicted = most_layers(
        partial(profile.repeated, 2), stages=stages, micro_batches=micro_batches, checkpoint=checkpoint, samples=len(x),
        memory_bytes=float(limit_bytes),
    )  # fmt: skip
    reasons: dict[int, str] = {}

    def fits(blocks: int) -> bool:
        try:
            train_within(
                make_layers(blocks), x, target, limit_bytes=limit_bytes, balance=even_cut(blocks + 2, stages),
                loss_fn=loss_fn, micro_batches=micro_batches, checkpoint=checkpoint,
            )  # fmt: skip
        except StageOutOfMemory as error:
            reasons[blocks] = str(error)
            return False
        return True

    stride = max(1, int(predicted * max(0.25, tolerance / 2)))
    measured = deepest(fits, max(1, predicted), stride=stride, tolerance=tolerance)
    failed = min(reasons)
    return Depth(predicted, measured, failed, reasons[failed])


def deepest(fits: Callable[[int], bool], guess: int, *, stride: int = 1, tolerance: float = 0.0) -> int:
    """The largest n >= 1 with ``fits(n)``, which must be so for all smaller ones; 0 if there is none.

    Steps that double lead from the guess to where the answer changes, and halves from there: O(log |n - guess|) calls.

    Args:
        guess: where to begin.
        stride: the first step.
        tolerance: as a share of n, within which a smaller answer (that fits) will do.

    Raises:
        ValueError: a guess below 1 or a negative tolerance.
    """
    if guess < 1 or stride < 1 or not tolerance >= 0:
        raise ValueError(f"guess={guess}, stride={stride}, tolerance={tolerance}: expected at least 1, 1 and 0")
    if fits(guess):
        good, bad = guess, guess + stride
        while fits(bad):
            stride *= 2
            good, bad = bad, bad + stride
    else:
        good, bad = max(guess - stride, 0), guess
        while good and not fits(good):
            stride *= 2
            good, bad = max(good - stride, 0), good
    while bad - good > max(1, tolerance * good):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _train_stage(
    make_layers: Callable[[], Sequence[nn.Module]], x: Tensor, target: Tensor, limit_bytes: int, balance: list[int],
    loss_fn: LossFunction, options: dict[str, Any], make_optimizer: Callable[..., torch.optim.Optimizer], compact: bool,
) -> float | None:  # fmt: skip
    """In the process of one stage."""
    stage = dist.get_rank()
    if compact:
        map_large_blocks()
    _warm_up(make_optimizer)
    gc.collect()
    fill_holes()
    above = data_bytes()
    layers = list(make_layers())
    first = sum(balance[:stage])
    own = layers[first : first + balance[stage]]
    mine = {id(p) for layer in own for p in layer.parameters()}
    for layer in (*layers[:first], *layers[first + len(own) :]):
        if any(id(p) in mine for p in layer.parameters()):
            raise ValueError("make_layers: layers of several stages share parameters, so none can be left out")
        layer.to("meta")  # a stage holds its own layers only
    gc.collect()
    before = data_bytes()
    pipeline = Pipeline(layers, balance, timeout_s=120.0, **options)
    above += data_bytes() - before  # its connections have threads, whose stacks are reserved and hardly used
    doing = "start"
    try:
        with memory_limit(limit_bytes, above=above):
            x, target = x.clone(), target.clone()
            doing = "optimizer's state"
            optimizer = make_optimizer(pipeline.parameters())
            for parameter in pipeline.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            doing = "step"
            loss = pipeline.step(x, target, loss_fn)
            doing = "update"
            optimizer.step()
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        refused = isinstance(error, MemoryError) or any(told in text for told in _TOLD)
        if refused and not isinstance(error, PipelineError):  # which tells what another stage met
            notes = " ".join(getattr(error, "__notes__", ())) or f"stage {stage} failed in its {doing}"
            said = text.splitlines()[0] if text else type(error).__name__
            raise StageOutOfMemory(
                f"{notes}: no more memory within {limit_bytes} bytes: {said}", stage=stage, limit_bytes=limit_bytes
            ) from None
        raise
    return None if loss is None else float(loss)


def _warm_up(make_optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    """Whatever a process of a pipeline needs besides the model: connections and their threads, modules imported late."""
    stages = dist.get_world_size()
    pipeline = Pipeline([nn.Linear(2, 2) for _ in range(stages)], micro_batches=2, checkpoint="except_last")
    optimizer = make_optimizer(pipeline.parameters())
    pipeline.step(torch.ones(2, 2), torch.zeros(2, 2), nn.functional.mse_loss)
    optimizer.step()
