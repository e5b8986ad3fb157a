"""``fit``: the one training loop. Averages the weights, keeps to a time budget, resumes, and runs on one process or many."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anabranch.generative._checks import check_count
from anabranch.generative._fit_parts import (
    Batches,
    average_into,
    chosen_threads,
    load_state,
    save_state,
    trains_in_bf16,
    world,
)
from anabranch.generative.couplings import Coupling
from anabranch.generative.objectives import Loss
from anabranch.generative.solve import Progress
from anabranch.generative.sources import Source

Data = Tensor | tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Fitted:
    """A trained network.

    Args:
        model: the network that was given, with its last weights.
        ema: its twin with averaged weights: the one to sample with.
        history: every logged step: ``step``, ``loss``, the loss's parts, ``lr``, ``seconds``.
        steps: made in all, with those before a resumed checkpoint.
        seconds: of training in all, likewise.
    """

    model: nn.Module
    ema: nn.Module
    history: list[dict[str, Any]] = field(repr=False)
    steps: int
    seconds: float


def fit(
    model: nn.Module,
    objective: Callable[..., Loss],
    data: Data = None,
    *,
    steps: int,
    generator: torch.Generator,
    batch_size: int = 128,
    source: Source | None = None,
    coupling: Coupling | None = None,
    label_dropout: float = 0.0,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    warmup: int = 0,
    lr_schedule: Literal["cosine", "constant"] = "cosine",
    ema: float = 0.999,
    average: nn.Module | None = None,
    grad_clip: float | None = 1.0,
    precision: Literal["auto", "f32", "bf16"] = "auto",
    time_budget_s: float | None = None,
    accumulate: int = 1,
    threads: int | Literal["auto"] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every_s: float = 60.0,
    resume: bool = True,
    log_every: int = 10,
    progress: Progress | None = None,
) -> Fitted:
    """Train ``model`` by AdamW on ``objective``; memory as an ordinary training step plus one copy of the weights.

    With data the objective is called ``(model, x0, x1, generator=generator, label=...)`` with the source's samples x0 and
    rows x1 of the data, each row once an epoch. Without, it is called ``(model, generator=generator)`` and draws its own
    batch, so anything that gives a :class:`Loss` can be trained. In a ``torch.distributed`` job of W processes the model is
    wrapped in DistributedDataParallel, the rows of a batch are shared out and each process draws noise of its own.

    Args:
        data: ``[N, ...]``, or ``(x, label)`` with labels ``[N]``. Kept where it is; batches go to the model's device.
        steps: optimizer steps in all.
        batch_size: rows a step, over all processes and micro-batches.
        source: of x0; default a standard Gaussian of the data's shape.
        coupling: pairs x0 with x1 (default: as they come).
        label_dropout: share of labels replaced by the null label ``model.classes``, for classifier-free guidance.
        warmup: steps over which the rate rises linearly.
        lr_schedule: "cosine" falls to 0 at the end of the steps or of the time budget, whichever is nearer.
        ema: decay of the average of the weights; at step i (from 0) it is ``min(ema, (i + 1) / (i + 10))``.
        average: network to keep the average in, if an objective needs to see it (as its target network); default a copy.
        grad_clip: largest norm of the gradient; None does not clip.
        precision: "bf16" computes the objective under autocast; "auto" takes it where it was measured to pay: for
            convolutions on a processor with AVX512-BF16 or AMX, and on GPUs that have it.
        time_budget_s: seconds after which training stops; the learning rate is at 0 then.
        accumulate: micro-batches a step.
        threads: of torch on the CPU: a number; "auto" times three steps with one thread and with all and takes the faster
            (a second thread beside a busy core can cost six times the step); None leaves them.
        checkpoint: file that is written every ``checkpoint_every_s`` seconds and at the end, and resumed from: the run then
            goes on to the bit as if it had not stopped (time budgets aside).
        log_every: steps between entries of the history.
        progress: ``(step, steps, {"loss": ...})`` after every step; raising in it cancels.

    Raises:
        ValueError: an argument out of its range, labels for another number of rows, a checkpoint of other arguments.
        FloatingPointError: a loss that is not finite; says the step and the first such sample of the batch.
    """
    for name, count, least in (
        ("steps", steps, 1), ("batch_size", batch_size, 1), ("accumulate", accumulate, 1), ("warmup", warmup, 0),
        ("log_every", log_every, 1),
    ):  # fmt: skip
        check_count(name, count, least)
    for name, number in (("lr", lr), ("time_budget_s", time_budget_s), ("grad_clip", grad_clip)):
        if number is not None and not number > 0:
            raise ValueError(f"{name} must be > 0, got {number}")
    if not 0 <= ema < 1:
        raise ValueError(f"ema must be in [0, 1), got {ema}")
    if lr_schedule not in ("cosine", "constant"):
        raise ValueError(f"lr_schedule must be 'cosine' or 'constant', got {lr_schedule!r}")
    if precision not in ("auto", "f32", "bf16"):
        raise ValueError(f"precision must be 'auto', 'f32' or 'bf16', got {precision!r}")
    device = next(model.parameters()).device
    rank, workers = world()
    batches = None
    if data is not None:
        batches = Batches(model, data, batch_size, accumulate, source, coupling, label_dropout, generator)
    elif label_dropout or source is not None or coupling is not None:
        raise ValueError("source, coupling and label_dropout belong to data, and data is None")
    if average is None:
        average = copy.deepcopy(model).requires_grad_(False)
    averaged = average_into(average, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay, fused=True)
    recipe = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "warmup": warmup,
        "lr_schedule": lr_schedule, "ema": ema, "accumulate": accumulate, "label_dropout": label_dropout,
        "rows": 0 if batches is None else batches.rows, "workers": workers,
    }  # fmt: skip
    history: list[dict[str, Any]] = []
    step, before = 0, 0.0
    if checkpoint is not None and resume and checkpoint.exists():
        step, before, history = load_state(
            checkpoint, recipe, model=model, average=average, optimizer=optimizer, generator=generator, batches=batches
        )
    if workers > 1:  # each process draws noise of its own; the order of the rows stays common
        generator = torch.Generator(generator.device).manual_seed(generator.initial_seed() + 1_000_003 * rank + step)
    bf16 = trains_in_bf16(model, device) if precision == "auto" else precision == "bf16"

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()

    def one_step(net: nn.Module, optimizer: torch.optim.Optimizer, draw: torch.Generator, feed: Any) -> Loss:
        optimizer.zero_grad(set_to_none=True)
        for _ in range(accumulate):
            with autocast():
                loss = objective(net, generator=draw) if feed is None else objective(net, **feed.next(draw))
            (loss.value / accumulate).backward()
        if grad_clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), grad_clip)
        return loss

    trained: nn.Module = nn.parallel.DistributedDataParallel(model) if workers > 1 else model
    if threads is not None and device.type == "cpu":
        chosen: int
        if threads != "auto":
            chosen = threads
        else:
            chosen = chosen_threads(lambda net, opt, draw, feed: (one_step(net, opt, draw, feed), opt.step()),
                                   model, generator, batches)  # fmt: skip
        torch.set_num_threads(chosen)
    model.train()
    begin = saved = time.monotonic()

    def keep() -> None:
        if checkpoint is not None and rank == 0:
            state: dict[str, Any] = {"step": step, "seconds": before + time.monotonic() - begin, "history": history}
            save_state(checkpoint, recipe, state, model, average, optimizer, generator, batches)

    while step < steps:
        elapsed = before + time.monotonic() - begin
        if time_budget_s is not None:
            if workers > 1:  # all stop at the same step
                shared = torch.tensor(elapsed, device=device)
                torch.distributed.broadcast(shared, 0)
                elapsed = float(shared)
            if elapsed >= time_budget_s:
                break
        done = step / steps if time_budget_s is None else max(step / steps, elapsed / time_budget_s)
        rate = lr * (0.5 * (1 + math.cos(math.pi * done)) if lr_schedule == "cosine" else 1.0)
        rate *= min(1.0, (step + 1) / warmup) if warmup else 1.0
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = one_step(trained, optimizer, generator, batches)
        value = float(loss.value.detach())
        if not math.isfinite(value):
            bad = (~torch.isfinite(loss.per_sample.detach())).nonzero()
            where = f", sample {int(bad[0])} of the batch" if len(bad) else ""
            raise FloatingPointError(f"the loss is {value} at step {step}{where}; the weights are those before it")
        optimizer.step()
        averaged(min(ema, (step + 1) / (step + 10)))
        if step % log_every == 0 or step == steps - 1:
            parts = {name: float(part) for name, part in loss.parts.items()}
            seconds = before + time.monotonic() - begin
            history.append({"step": step, "loss": value, **parts, "lr": rate, "seconds": seconds})
        step += 1
        if progress is not None:
            try:
                progress(step, steps, _metrics(value, loss.parts))
            except BaseException:
                keep()
                raise
        if checkpoint is not None and time.monotonic() - saved >= checkpoint_every_s:
            keep()
            saved = time.monotonic()
    keep()
    model.eval()
    return Fitted(model, average.eval(), history, step, before + time.monotonic() - begin)


def _metrics(value: float, parts: Mapping[str, Tensor]) -> dict[str, float]:
    return {"loss": value, **{name: float(part) for name, part in parts.items()}}
