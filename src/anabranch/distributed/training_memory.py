"""How many bytes training really holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from anabranch.distributed._stage import LossFunction
from anabranch.distributed.local import LocalPipeline
from anabranch.distributed.micro_batches import Value


def training_bytes(
    pipeline: LocalPipeline,
    x: Value,
    target: Any,
    loss_fn: LossFunction,
    make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
) -> list[int]:
    """Bytes of every stage, counted in a real step: parameters, their gradients, the optimizer's state, and what autograd keeps.

    What :func:`stage_memory` predicts. The step is taken: parameters change, and gradients are left.
    """
    kept = pipeline.kept_bytes(x, target, loss_fn)
    pipeline.step(x, target, loss_fn)
    found = []
    for stage, activations in zip(pipeline.modules, kept, strict=True):
        parameters = list(stage.parameters())
        optimizer = make_optimizer(parameters)
        optimizer.step()
        states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor) and t.ndim]
        gradients = [p.grad for p in parameters if p.grad is not None]
        found.append(activations + sum(t.numel() * t.element_size() for t in (*parameters, *gradients, *states)))
    return found
