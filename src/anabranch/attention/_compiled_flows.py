"""Flow-Attention on a processor: compiled kernels around two products of torch, and a backward pass of the same kind."""

import functools
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from anabranch.attention import _kernels_flow as kernels
from anabranch.attention._checks import full_precision
from anabranch.attention._flow_types import Options
from anabranch.attention._kernels_flow_backward import gradient_heads
from anabranch.attention.features import named_map

_GROUP_ENTRIES = 1 << 17  # entries of q in one group of heads: what is made of them stays in a core's cache
_KEPT_ENTRIES = 1 << 21  # of a thread's workspace: 8 MiB of float32
_THREAD_ENTRIES = 1 << 15  # entries of q that are worth a thread
_KINDS = {"identity": kernels.IDENTITY, "sigmoid": kernels.SIGMOID, "relu": kernels.RELU, "elu": kernels.ELU}


def numbers(options: Options, dtype: np.dtype) -> tuple[Any, ...]:
    """Kind of the features, clamp and both eps, in the arrays' own type: another would widen every operation."""
    low, high = options.clamp or (-np.inf, np.inf)
    kind = _KINDS[named_map(options.feature_map) or "identity"]
    return kind, *(dtype.type(x) for x in (low, high, options.eps, options.norm_eps))


class Weighed(NamedTuple):
    """What :func:`weigh_heads` fills, for L heads."""

    Q: Tensor
    K: Tensor
    x: Tensor
    sinks: Tensor
    sources: Tensor
    sums: Tensor


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="anabranch-attention")


def over_heads(kernel: Callable[..., Any], arrays: list[np.ndarray], rest: tuple[Any, ...]) -> None:
    """The kernel on all heads, which the arrays have along their first axis, by as many threads as torch has."""
    heads = arrays[0].shape[0]
    threads = min(torch.get_num_threads(), heads, max(1, arrays[0].size // _THREAD_ENTRIES))
    if threads == 1:
        kernel(*arrays, *rest)
        return
    borders = [heads * i // threads for i in range(threads + 1)]
    parts = [[x[begin:end] for x in arrays] for begin, end in pairwise(borders)]
    pool = _pool(os.getpid(), torch.get_num_threads())
    others = [pool.submit(kernel, *part, *rest) for part in parts[1:]]
    kernel(*parts[0], *rest)
    for other in others:
        other.result()


def array(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.detach().numpy()
    return array


def weights(weight: Tensor | None, like: Tensor, heads: int) -> np.ndarray:
    """``[B, n]`` -> ``[L, n]``; no columns for ones."""
    if weight is None:
        return np.empty((like.shape[0], 0), array(like).dtype)
    return array(weight.to(like.dtype).repeat_interleave(heads, 0))


def flattened(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.detach().flatten(0, 1).to(dtype).contiguous()


_workspace = (
    threading.local()
)  # a buffer for each dtype that calls without gradients use again: fresh pages cost as much as the sums


def _room(entries: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised ``[entries]``, the same one for every call of a thread where it is not large."""
    if entries > _KEPT_ENTRIES:
        return torch.empty(entries, dtype=dtype)
    kept: Tensor | None = getattr(_workspace, str(dtype), None)
    if kept is None or kept.numel() < entries:
        kept = torch.empty(entries, dtype=dtype)
        setattr(_workspace, str(dtype), kept)
    return kept[:entries]


def _scratch(heads: int, q: Tensor, k: Tensor, v: Tensor, keep: bool = False) -> Weighed:
    """For some heads of flattened q, k, v; with ``keep`` in a thread's workspace, for the next call to write over."""
    (n, d), (m, e) = q.shape[1:], v.shape[1:]
    shapes = (heads, n, d), (heads, m, d), (heads, m, e), (heads, 4, n), (heads, 3, m), (heads, 4, d)
    sizes = [math.prod(shape) for shape in shapes]
    parts = _room(sum(sizes), q.dtype).split(sizes) if keep else [torch.empty(x, dtype=q.dtype) for x in sizes]
    return Weighed(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))


class _Task:
    """Kernel arguments of one call: q, k, v ``[L, n, d]`` contiguous, weights ``u [B, n]`` and ``w [B, m]``."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, u: Tensor | None, w: Tensor | None, options: Options, heads: int
    ) -> None:
        if named_map(options.feature_map) is None:
            q, k = (options.feature_map(x).contiguous() for x in (q, k))
        self.inputs = [*(array(x) for x in (q, k, v)), weights(u, q, heads), weights(w, k, heads)]
        self.rest = *numbers(options, self.inputs[0].dtype), options.competition, options.allocation

    def weigh(self, into: list[np.ndarray], group: slice) -> None:
        """Fill the arrays of a :class:`Weighed` for a group of heads. O((n + m) d + m e) a head."""
        into[-1][:] = 0
        over_heads(kernels.weigh_heads, [x[group] for x in self.inputs] + into, self.rest)


def _groups(q: Tensor, k: Tensor) -> list[slice]:
    """Heads of ``q [L, n, d]`` whose tensors stay in the cache."""
    heads, n, d = q.shape
    size = max(1, _GROUP_ENTRIES * torch.get_num_threads() // (max(n, k.shape[1]) * d))
    return [slice(begin, min(begin + size, heads)) for begin in range(0, heads, size)]


def attend_compiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor | None,
    w: Tensor | None,
    options: Options,
    dtype: torch.dtype,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """The output without gradients, a few heads at a time, for ``q [B, H, n, d]``; ``u [B, n]``, ``w [B, m]``.

    ``kept`` collects what a backward pass needs: a :class:`Weighed` of all heads and the matrices ``[L, d, e]``.
    """
    flat = [flattened(x, dtype) for x in (q, k, v)]
    task = _Task(flat[0], flat[1], flat[2], u, w, options, q.shape[1])
    heads, n, d = flat[0].shape
    groups = _groups(flat[0], flat[1])
    room = heads if kept is not None else groups[0].stop
    made = _scratch(room, flat[0], flat[1], flat[2], keep=kept is None)
    arrays = [array(x) for x in made]
    values = torch.empty(room, d, v.shape[-1], dtype=dtype)
    out = torch.empty(heads, n, v.shape[-1], dtype=dtype)
    keys = made.K.mT
    for group in groups:
        own = group if kept is not None else slice(0, group.stop - group.start)
        task.weigh([x[own] for x in arrays], group)
        torch.bmm(keys[own], made.x[own], out=values[own])
        torch.bmm(made.Q[own], values[own], out=out[group])
    if kept is not None:
        kept += [*made, values]
    return out.view(*q.shape[:3], v.shape[-1]).to(q.dtype)


class CompiledFlow(torch.autograd.Function):
    """:func:`attend_compiled` with a backward pass: keeps features, weighed values and flows."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, u: Tensor | None, w: Tensor | None, options: Options, dtype: Any
    ) -> Tensor:
        kept: list[Tensor] = []
        y = attend_compiled(q, k, v, u, w, options, dtype, kept)
        ctx.options, ctx.dtype, ctx.shapes = options, dtype, (q.shape, k.shape, v.shape)
        told = named_map(options.feature_map) != "relu"  # other features tell their slope
        ctx.save_for_backward(*((None, None) if told else (q, k)), u, w, *kept)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, u, w, *rest, values = ctx.saved_tensors
        made, options = Weighed(*rest), ctx.options
        dy = flattened(grad, ctx.dtype)  # that of a sum is one number, which slows products down
        grads = [torch.empty_like(x) for x in (made.Q, made.K, made.x)]
        dvalues = torch.empty_like(values)
        q, k = (made.Q, made.K) if q is None else (flattened(x, ctx.dtype) for x in (q, k))
        arrays = [array(x) for x in (q, k, made.Q, made.K, *grads)]
        arrays += [weights(u, made.Q, ctx.shapes[0][1]), weights(w, made.K, ctx.shapes[0][1])]
        arrays += [array(x) for x in made[3:]]
        kind, low, high, eps, _ = numbers(options, arrays[0].dtype)
        with full_precision(grad):
            for own in _groups(made.Q, made.K):
                torch.bmm(made.Q[own].mT, dy[own], out=dvalues[own])
                torch.bmm(dy[own], values[own].mT, out=grads[0][own])
                torch.bmm(made.x[own], dvalues[own].mT, out=grads[1][own])
                torch.bmm(made.K[own], dvalues[own], out=grads[2][own])
                rest = kind, low, high, eps, options.competition, options.allocation
                over_heads(gradient_heads, [x[own] for x in arrays], rest)
        shaped = [x.view(shape).to(grad.dtype) for x, shape in zip(grads, ctx.shapes, strict=True)]
        return *shaped, None, None, None, None
