"""Process groups: what a pipeline needs of them beside sending."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class NoticeBoard:
    """Where a stage that fails says so: a key of the store that all processes share. The first notice stays."""

    def __init__(self, store: Any, ranks: Sequence[int]) -> None:
        self._store, self._key = store, f"anabranch/pipeline/{'-'.join(map(str, ranks))}"

    def write(self, notice: str) -> None:
        """Unless there is one, or the store is gone."""
        with contextlib.suppress(RuntimeError):
            self._store.compare_set(self._key, "", notice)

    def wait_for(self, seconds: float) -> str | None:
        """The notice, or None when there is none within ``seconds``."""
        until = time.monotonic() + seconds
        with contextlib.suppress(RuntimeError):
            while True:
                if self._store.check([self._key]):
                    return self._store.get(self._key).decode()
                if time.monotonic() > until:
                    return None
                time.sleep(0.02)
        return None


def average_gradients(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None = None) -> None:
    """Mean of every gradient over the group, or over all ranks, in one message a data type."""
    for parameter in parameters:
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    with_gradient = [p.grad for p in parameters if p.grad is not None]
    for dtype in dict.fromkeys(g.dtype for g in with_gradient):
        own = [g for g in with_gradient if g.dtype == dtype]
        flat = torch.cat([g.flatten() for g in own])
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        for gradient, part in zip(own, flat.split([g.numel() for g in own]), strict=True):
            gradient.copy_(part.view_as(gradient))


def close_group(group: dist.ProcessGroup) -> None:
    """Close a group's connections, whatever state they are in: whoever waits on them is told."""
    with contextlib.suppress(RuntimeError, ValueError, AssertionError):
        group.abort()
    with contextlib.suppress(RuntimeError, ValueError, AssertionError):
        dist.destroy_process_group(group)
