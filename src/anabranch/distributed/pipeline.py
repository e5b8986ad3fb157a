"""GPipe for real: one process a stage."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anabranch.distributed._groups import NoticeBoard, average_gradients, close_group
from anabranch.distributed._links import AHEAD, Links, Lost, specs_of
from anabranch.distributed._partition import Partition, Prefixes, named_schedule
from anabranch.distributed._stage import Layout, LossFunction, flatten, unflatten
from anabranch.distributed._steps import Begun, Did, Shapes, weighted_targets
from anabranch.distributed.errors import PipelineError
from anabranch.distributed.micro_batches import Value, split_batch
from anabranch.distributed.schedules import Checkpoint

_PATIENCE_S = 1.5  # how long a stage whose neighbour is gone waits for that neighbour's own account
_WORDS = {"F": "forward", "B": "backward", "R": "recomputation"}


class Pipeline:
    """A sequential model trained over the processes of a group, a stage each (Huang et al., 1811.06965).

    Every process builds the same ``layers`` with the same weights and keeps its stage. :meth:`step` leaves in the parameters'
    ``grad`` exactly the gradient of the whole mini-batch, whatever the stages and micro-batches (also of unequal size),
    unless layers couple samples (batch norm). Parameters that layers on different stages share are kept equal: their gradients
    are summed over the owners. Only tensors at the cuts travel, ``2 N`` activations a step and cut, sent while the
    next micro-batch is computed into buffers that wait for them. Shapes are told once and again when they change.

    A failure on one stage raises :class:`PipelineError` on all, with its stage, micro-batch and trace.

    Args:
        layers: each takes and gives a tensor or a tuple of tensors; samples are the first axis. Skip connections between
            stages are a :class:`StashSkip` and a :class:`PopSkip`.
        balance: layers of every stage (``simulation.balance`` finds the best); as even as possible if not given.
        micro_batches: M. With "naive" it is 1.
        schedule: "gpipe" (all forwards, then all backwards), "1f1b", or "naive".
        checkpoint: which micro-batches keep only their input and are computed again: "except_last", "always" or "never".
            Or a list, one of these a stage. Random numbers are the same again, and buffers are not updated twice.
        group: process group; stages are its ranks. All processes if not given.
        device: of the stage's layers and buffers; where the layers are, if not given.
        batchnorm: "deferred" makes running statistics follow the mini-batch (:class:`DeferredBatchNorm`), "micro" leaves them.
        early_recompute: recompute before the gradient has come, which fills bubbles.
        loss_reduction: what ``loss_fn`` does over samples, "mean" or "sum"; a mean is weighted by the samples of the micro-batch.
        check_finite: raise when a gradient is not finite.
        replicas: process group of the same stage in other pipelines; gradients are averaged over it (data parallel).
        timeout_s: after which a silent neighbour counts as gone.
        prefixes: names in :meth:`state_dict_full`, per layer; those of ``nn.Sequential`` if not given.

    Raises:
        ValueError: settings that do not fit each other.
    """

    def __init__(
        self,
        layers: nn.Sequential | Sequence[nn.Module],
        balance: Sequence[int] | None = None,
        *,
        micro_batches: int = 8,
        schedule: str = "gpipe",
        checkpoint: Checkpoint = "except_last",
        group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        batchnorm: str = "deferred",
        early_recompute: bool = True,
        loss_reduction: str = "mean",
        check_finite: bool = False,
        replicas: dist.ProcessGroup | None = None,
        timeout_s: float = 600.0,
        prefixes: Prefixes | None = None,
    ) -> None:
        if loss_reduction not in ("mean", "sum"):
            raise ValueError(f"loss_reduction must be 'mean' or 'sum', got {loss_reduction!r}")
        ranks = dist.get_process_group_ranks(group) if group is not None else list(range(dist.get_world_size()))
        self.stage, self.stages = dist.get_rank(group), len(ranks)
        self.schedule = named_schedule(schedule, self.stages, micro_batches, checkpoint)
        self.micro_batches, self.early_recompute = self.schedule.micro_batches, early_recompute
        self._mean, self._check_finite, self._replicas = loss_reduction == "mean", check_finite, replicas
        self._parts = Partition(layers, self.stages, balance, batchnorm, prefixes)
        if device is not None:
            for layer in self._parts.stage_layers(self.stage):
                layer.to(device)
        self._stage = self._parts.make_stage(self.stage)
        own = (*self._stage.layers.parameters(), *self._stage.layers.buffers())
        self.device = torch.device(device) if device is not None else next((t.device for t in own), torch.device("cpu"))
        wait = timedelta(seconds=timeout_s)
        tags = dist.get_backend(group) == "gloo"  # elsewhere messages keep their order: a group for either direction
        self._groups = [self._new_group(ranks, wait) for _ in range(1 if tags else 2)]
        self._ties = [
            ([stage for stage, _ in shared], dict(shared)[self.stage])
            for shared in self._parts.shared_parameters()
            if any(stage == self.stage for stage, _ in shared)
        ]
        self._links = Links(self._stage.sources, self._stage.sinks, self._groups[0], self._groups[-1], self.device)
        self._actions = [(action.kind, action.micro_batch) for action in self.schedule.actions(self.stage)]
        self._again = {m for kind, m in self._actions if kind == "R"}
        self._backwards = [m for kind, m in self._actions if kind == "B"]
        self._slots = self.schedule.in_flight(self.stage)
        self._known: dict[int, Shapes] = {}
        self._epochs: dict[Any, int] = {}
        ties = [parameter for _, parameter in self._ties]
        self._reduced = ties if replicas is None else list(self.parameters())
        self._board = NoticeBoard(dist.distributed_c10d._get_default_store(), ranks)
        self._failed = False
        self._now: tuple[str, int | None] = ("start", None)
        self.timeline: list[Did] = []

    @property
    def balance(self) -> list[int]:
        """Layers of every stage."""
        return list(self._parts.balance)

    @property
    def module(self) -> nn.ModuleList:
        """The layers of this stage."""
        return self._stage.layers

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of this stage, for its optimizer."""
        return self._stage.layers.parameters()

    def train(self, mode: bool = True) -> Pipeline:
        """Training mode of this stage's layers."""
        self._stage.layers.train(mode)
        return self

    def eval(self) -> Pipeline:
        """Evaluation mode of this stage's layers."""
        return self.train(False)

    def step(
        self,
        x: Value | None = None,
        target: Any = None,
        loss_fn: LossFunction | None = None,
        *,
        broadcast: bool = False,
    ) -> Tensor | None:
        """Forward and backward of a mini-batch; gradients are added to ``grad``, as ``backward`` does.

        Args:
            x: the mini-batch, needed on the first stage.
            target: a tensor or tuple of tensors with as many samples, needed on the last stage.
            loss_fn: ``(output, target) -> one number``, needed on the last stage.
            broadcast: give the loss on every stage.

        Returns:
            The loss of the mini-batch on the last stage (on all with ``broadcast``), else None.

        Raises:
            ValueError: something missing, or numbers of samples that do not fit.
            PipelineError: another stage failed or is gone.
        """
        with self._guarded():
            earlier = [parameter.grad for parameter in self._reduced]
            losses = self._train_step(x, target, loss_fn)
            self._now = ("update", None)
            self._finish_step(earlier)
            total = torch.stack(losses).sum() if losses else None
            if broadcast:
                total = torch.zeros((), device=self.device) if total is None else total.float()
                dist.broadcast(total, dist.get_global_rank(self._groups[0], self.stages - 1), group=self._groups[0])
            return total

    def predict(self, x: Value | None = None) -> Value | None:
        """The model's output of a mini-batch on the last stage, without gradients; None on the others."""
        with self._guarded():
            return self._predict(x)

    def state_dict_full(self) -> dict[str, Tensor] | None:
        """The whole model's ``state_dict`` under its usual names, on the first stage; None on the others."""
        with self._guarded():
            own = {name: tensor.detach().cpu() for name, tensor in self._parts.full_names(self.stage)}
            ranks = dist.get_process_group_ranks(self._groups[0])
            gathered: list[Any] | None = [None] * self.stages if self.stage == 0 else None
            dist.gather_object(own, gathered, dst=ranks[0], group=self._groups[0])
            return None if gathered is None else {name: t for part in gathered for name, t in part.items()}

    def load_full(self, state: Mapping[str, Tensor]) -> None:
        """Take this stage's part of the whole model's ``state_dict``.

        Raises:
            ValueError: a name that is missing, or a tensor of another shape.
        """
        self._parts.load(self.stage, state)

    # A step.

    def _train_step(self, x: Value | None, target: Any, loss_fn: LossFunction | None) -> list[Tensor]:
        """The schedule's actions, one after the other; losses on the last stage."""
        stage, links, clock = self._stage, self._links, time.perf_counter
        if stage.last and (loss_fn is None or target is None):
            raise ValueError("target and loss_fn are needed on the last stage")
        stage.loss_fn = loss_fn
        stage.kept.clear()
        for parameter in self._reduced:  # what earlier steps gave is not summed again
            parameter.grad = None
        begun = self._begin(x, self.micro_batches, train=True)
        targets: list[Any] = [None] * self.micro_batches
        if stage.last:
            targets = weighted_targets(target, begun.samples, self.micro_batches, mean=self._mean)
        if not begun.new:
            self._post_first(begun)
        losses: list[Tensor] = []
        timeline: list[Did] = []
        held: tuple[Tensor, ...] | None = None
        done = 0
        for kind, m in self._actions:
            self._now = (kind, m)
            if kind == "F":
                inputs, layout = self._inputs(m, m % self._slots, begun)
                begin = clock()
                outputs, made = stage.forward(m, inputs, layout, again=m in self._again, target=targets[m])
                timeline.append(Did(kind, m, begin, clock()))
                if stage.last:
                    losses.append(outputs[0])
                else:
                    self._send_outputs(m, outputs, made, begun)
            elif kind == "R":
                if not self.early_recompute:
                    held = self._gradients(m, done, begun)
                begin = clock()
                stage.recompute(m)
                timeline.append(Did(kind, m, begin, clock()))
            else:
                gradients = self._gradients(m, done, begun) if held is None else held
                begin, held = clock(), None
                given = stage.backward(m, gradients)
                timeline.append(Did(kind, m, begin, clock()))
                del gradients
                if given:
                    links.send_gradients(m, given, *begun.shapes.inputs[m])
                done += 1
                if not begun.new:
                    self._post_next(done, begun)
        links.flush()
        self.timeline = timeline
        return losses

    def _predict(self, x: Value | None) -> Value | None:
        stage, links = self._stage, self._links
        begun = self._begin(x, self.micro_batches, train=False)
        if not begun.new:
            for m in range(begun.micro_batches):
                links.post_inputs(m, m, *begun.shapes.inputs[m])
        found: list[tuple[Tensor, ...]] = []
        layout = Layout(())
        for m in range(begun.micro_batches):
            self._now = ("F", m)
            outputs, layout = stage.predict(*self._inputs(m, m, begun))
            if stage.last:
                found.append(outputs)
            else:
                self._send_outputs(m, outputs, layout, begun)
        links.flush()
        if not stage.last:
            return None
        return unflatten([torch.cat(parts) for parts in zip(*found, strict=True)], layout)[0]

    def _begin(self, x: Value | None, micro_batches: int, *, train: bool) -> Begun:
        """Learn what the step is about, and tell the next stage before anything is computed."""
        self._now = ("start", None)
        parts: list[tuple[tuple[Tensor, ...], Layout]] = []
        if self.stage == 0:
            if x is None:
                raise ValueError("x is needed on the first stage")
            samples = len(x if isinstance(x, Tensor) else x[0])
            micro_batches = micro_batches if train else max(1, min(micro_batches, samples))
            parts = [flatten([part]) for part in split_batch(x, micro_batches)]
            key = (train, micro_batches, *((specs_of(row), layout) for row, layout in (parts[0], parts[-1])), samples)
            new = key not in self._epochs
            header = [self._epochs.setdefault(key, len(self._epochs)), int(new), micro_batches, samples]
        else:
            header = self._links.receive_header(4)
        self._links.send_header(header)
        epoch, new, micro_batches, samples = header[0], bool(header[1]), header[2], header[3]
        if new:
            self._links.free_buffers()
            self._known[epoch] = Shapes({}, {})
        return Begun(parts, new, micro_batches, samples, self._known[epoch])

    def _post_first(self, begun: Begun) -> None:
        for m in range(min(self._slots, self.micro_batches)):
            self._links.post_inputs(m, m, *(begun.shapes.inputs[m] if self.stage else ((), Layout(()))))
        if not self._stage.last:
            for i, m in enumerate(self._backwards[:AHEAD]):
                self._links.post_gradients(m, i, *begun.shapes.outputs[m])

    def _post_next(self, done: int, begun: Begun) -> None:
        """After backward number ``done``: its buffers are free."""
        m = done - 1 + self._slots
        if self.stage and m < self.micro_batches:
            self._links.post_inputs(m, m % self._slots, *begun.shapes.inputs[m])
        i = done - 1 + AHEAD
        if not self._stage.last and i < len(self._backwards):
            m = self._backwards[i]
            self._links.post_gradients(m, i % AHEAD, *begun.shapes.outputs[m])

    def _inputs(self, m: int, slot: int, begun: Begun) -> tuple[tuple[Tensor, ...], Layout]:
        if self.stage == 0:
            return begun.parts[m]
        if begun.new:
            begun.shapes.inputs[m] = self._links.learn()
            self._links.post_inputs(m, slot, *begun.shapes.inputs[m])
        return self._links.inputs(m), begun.shapes.inputs[m][1]

    def _send_outputs(self, m: int, outputs: tuple[Tensor, ...], layout: Layout, begun: Begun) -> None:
        specs = specs_of(outputs)
        if begun.new:
            begun.shapes.outputs[m] = specs, layout
            self._links.describe(outputs, layout)
        elif begun.shapes.outputs[m] != (specs, layout):
            raise ValueError(
                f"stage {self.stage} gave {specs} for micro-batch {m}, before {begun.shapes.outputs[m][0]}: with the same "
                "input shapes a stage must give the same output shapes"
            )
        self._links.send_outputs(m, outputs, layout)

    def _gradients(self, m: int, done: int, begun: Begun) -> tuple[Tensor, ...]:
        if self._stage.last:
            return ()
        if begun.new:
            self._links.post_gradients(m, done % AHEAD, *begun.shapes.outputs[m])
        return self._links.gradients(m)

    def _finish_step(self, earlier: list[Tensor | None]) -> None:
        """What follows the last backward: statistics, shared parameters, replicas."""
        self._stage.finish()
        for owners, parameter in self._ties:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self._links.add_up(parameter.grad, owners, self.stage)
        if self._replicas is not None:
            average_gradients(list(self.parameters()), self._replicas)
        for parameter, before in zip(self._reduced, earlier, strict=True):
            if before is not None:
                parameter.grad = before if parameter.grad is None else parameter.grad.add_(before)
        if self._check_finite:
            for name, tensor in self._parts.full_names(self.stage):
                if tensor.grad is not None and not torch.isfinite(tensor.grad).all():
                    raise FloatingPointError(f"the gradient of {name!r} on stage {self.stage} is not finite")

    # Groups and failures.

    @staticmethod
    def _new_group(ranks: list[int], timeout: timedelta) -> dist.ProcessGroup:
        return dist.new_group(ranks, timeout=timeout, use_local_synchronization=True)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        if self._failed:
            raise PipelineError(f"stage {self.stage}: the pipeline failed before; build it anew")
        try:
            yield
        except Lost as error:
            report = self._board.wait_for(_PATIENCE_S)
            if report is None:
                report = (
                    f"stage {error.stage} is gone; stage {self.stage} was in its {self._doing()} and found: {error}"
                )
                self._board.write(report)
            self._close()
            raise PipelineError(f"stage {self.stage} stopped in its {self._doing()}: {report}") from error
        except BaseException as error:
            where = f"stage {self.stage} (rank {dist.get_rank()}) failed in its {self._doing()}"
            self._board.write(f"{where}:\n{''.join(traceback.format_exception(error))}")
            error.add_note(where)
            self._close()
            raise

    def _doing(self) -> str:
        kind, m = self._now
        return _WORDS.get(kind, kind) + ("" if m is None else f" of micro-batch {m}")

    def _close(self) -> None:
        """Close the connections, so that nobody waits for this stage."""
        self._failed = True
        self._links.drop()
        self._stage.kept.clear()
        for group in self._groups:
            close_group(group)
        self._groups = []
