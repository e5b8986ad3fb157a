"""Sums over the processes that share a sequence, with gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Sum(torch.autograd.Function):
    """Sum over processes; its gradient is the sum of theirs, since each process's loss depends on every part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        total = grad.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=ctx.group)
        return total, None


def sum_over(group: Any) -> Callable[[Tensor], Tensor]:
    """``x -> sum over the processes of group``: one all-reduce."""
    return lambda x: _Sum.apply(x, group)


def max_over(group: Any) -> Callable[[Tensor], Tensor]:
    """``x -> maximum over the processes of group``, without gradient."""

    def largest(x: Tensor) -> Tensor:
        top = x.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(top, torch.distributed.ReduceOp.MAX, group=group)
        return top

    return largest
