"""Causal Flow-Attention on a processor: compiled flows, and products of chunks by torch, a block of tokens at a time."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from anabranch.attention import _kernels_causal as kernels
from anabranch.attention._checks import full_precision, transforms_active
from anabranch.attention._compiled_flows import array, flattened, numbers, over_heads, weights
from anabranch.attention._flow_types import Options
from anabranch.attention._kernels_causal_backward import gradient_causal
from anabranch.attention.features import named_map

_BLOCK_ENTRIES = 1 << 17  # entries of q in one block: what is made of them stays in a core's cache
_KEPT_ENTRIES = 1 << 20  # entries of the output up to which products are kept for the backward pass, not formed again


class Block(NamedTuple):
    """A block of heads and tokens as :func:`weigh_causal` makes it, what was carried into it, and its products."""

    Q: Tensor
    K: Tensor
    x: Tensor
    flows: Tensor
    carried: Tensor  # [g, 4, d] doubles
    values: Tensor  # [g, d, e]
    squares: Tensor | None = None  # lower halves of Q K^T, [g c, chunk, chunk]
    before: Tensor | None = None  # sums of K^T x before each chunk, [g c, d, e]


@dataclass
class Carried:
    """What goes on from token to token, for all heads: ``sums [L, 4, d]``, ``peaks [L]``, ``totals [L]``, ``values [L, d, e]``.

    All but the values are doubles; the sum of exponentials is totals times exp(peaks).
    """

    sums: Tensor
    peaks: Tensor
    totals: Tensor
    values: Tensor


class Plan:
    """Kernel arguments of one call for ``q, k [L, n, d]``, ``v [L, n, e]``, contiguous, and ``t, valid [B, n]``; how it is cut.

    Blocks are ``group`` heads of ``size`` tokens, in squares of ``chunk``.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, t: Tensor, valid: Tensor | None, how: Options, chunk: int
    ) -> None:
        if named_map(how.feature_map) is None:
            q, k = (how.feature_map(x).contiguous() for x in (q, k))
        self.inputs = [array(x) for x in (q, k, v)]
        heads, n, d = q.shape
        self.heads, self.n = heads, n
        self.times = [array(t.to(q.dtype).repeat_interleave(heads // len(t), 0)), weights(valid, q, heads // len(t))]
        self.rest = *numbers(how, self.inputs[0].dtype), how.competition, how.allocation
        width = max(d, v.shape[-1])
        chunk = -(-n // -(-n // min(chunk, n)))  # of equal length: little is padded
        self.chunk = -(-chunk // 8) * 8 if n > 8 else n  # odd sizes take products longer than the padding
        self.size = max(1, min(-(-n // self.chunk), _BLOCK_ENTRIES // (width * self.chunk))) * self.chunk
        self.group = min(heads, max(1, _BLOCK_ENTRIES * torch.get_num_threads() // (self.size * width)))

    def blocks(self) -> list[tuple[slice, int, int]]:
        """Heads, first token and number of tokens of each block, in the order of time for every group."""
        return [
            (slice(head, min(head + self.group, self.heads)), token, min(self.size, self.n - token))
            for head in range(0, self.heads, self.group)
            for token in range(0, self.n, self.size)
        ]


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """``[g, s, r]`` -> ``[g s/chunk, chunk, r]``."""
    return x.view(-1, chunk, x.shape[-1])


def _carry(kernel: Any, x: Tensor, carried: Tensor) -> Tensor:
    """Sums of matrices ``[g c, d, e]`` before (or after) each within its head, ``carried [g, d, e]`` going on."""
    flat = x.view(len(carried), -1, carried[0].numel())
    kernel(array(flat), array(carried.view(len(carried), -1)))
    return x


def _weighed(plan: Plan, block: tuple[slice, int, int], now: Carried) -> Block:
    heads, token, size = block
    q, _, v = plan.inputs
    many, length = heads.stop - heads.start, -(-size // plan.chunk) * plan.chunk
    sizes = (many, length, q.shape[2]), (many, length, q.shape[2]), (many, length, v.shape[2]), (many, 5, length)
    Q, K, x, flows = (torch.empty(shape, dtype=now.values.dtype) for shape in sizes)
    made = Block(Q, K, x, flows, now.sums[heads].clone(), now.values[heads].clone())
    arrays = [array(y) for y in (Q, K, x, flows, now.sums[heads], now.peaks[heads], now.totals[heads])]
    rest = (*plan.inputs, *plan.times, token, size, *plan.rest)
    over_heads(kernels.weigh_causal, [*arrays, np.arange(heads.start, heads.stop)], rest)
    return made


def _products(made: Block, chunk: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """The last two of a :class:`Block`; ``values [g, d, e]`` goes on to its end."""
    if made.squares is not None and made.before is not None:
        return made.squares, made.before
    Q, K, x = (_chunks(y, chunk) for y in made[:3])
    return torch.bmm(Q, K.mT).tril_(), _carry(kernels.sums_before, K.mT @ x, values)


def run(plan: Plan, now: Carried, kept: list[Block] | None = None) -> Tensor:
    """The output ``[L, n, e]``; ``now`` goes on to the last token; ``kept`` collects the blocks."""
    out = torch.empty(plan.heads, plan.n, now.values.shape[-1], dtype=now.values.dtype)
    for block in plan.blocks():
        heads, token, size = block
        made = _weighed(plan, block, now)
        squares, before = _products(made, plan.chunk, now.values[heads])
        y = torch.bmm(squares, _chunks(made.x, plan.chunk)).baddbmm_(_chunks(made.Q, plan.chunk), before)
        out[heads, token : token + size] = y.view(len(made.Q), -1, y.shape[-1])[:, :size]
        if kept is not None:
            kept.append(made._replace(squares=squares, before=before) if out.numel() <= _KEPT_ENTRIES else made)
    return out


class CompiledCausal(torch.autograd.Function):
    """:func:`run` from the first token on, with a backward pass: keeps features, weighed values and flows, squares are redone."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        t: Tensor,
        valid: Tensor | None,
        options: Options,
        chunk: int,
        dtype: Any,
    ) -> Tensor:
        flat = [flattened(x, dtype) for x in (q, k, v)]
        plan, kept = Plan(flat[0], flat[1], flat[2], t, valid, options, chunk), []  # type: tuple[Plan, list[Block]]
        out = run(plan, empty(flat[0], v.shape[-1]), kept)
        plan.inputs = []
        ctx.plan, ctx.dtype, ctx.shapes = plan, dtype, (q.shape, k.shape, v.shape)
        told = named_map(options.feature_map) != "relu"  # other features tell their slope
        ctx.save_for_backward(*((None, None) if told else (q, k)), *(x for block in kept for x in block))
        return out.view(*q.shape[:3], v.shape[-1]).to(q.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, *saved = ctx.saved_tensors
        plan: Plan = ctx.plan
        kept = [Block(*saved[i : i + len(Block._fields)]) for i in range(0, len(saved), len(Block._fields))]
        dy, flat = flattened(grad, ctx.dtype), [shape[:2].numel() for shape in ctx.shapes]
        grads = [torch.empty(many, *shape[2:], dtype=ctx.dtype) for many, shape in zip(flat, ctx.shapes, strict=True)]
        d = grads[0].shape[-1]
        nothing = torch.empty(0, 0, 0, dtype=ctx.dtype)
        sources = [array(nothing if x is None else flattened(x, ctx.dtype)) for x in (q, k)]
        later = torch.zeros(plan.heads, 4, d, dtype=ctx.dtype), torch.zeros(plan.heads, dtype=ctx.dtype)
        dvalues = torch.zeros(plan.heads, d, dy.shape[-1], dtype=ctx.dtype)
        kind, low, high, eps, _, competition, allocation = plan.rest
        with full_precision(dy):
            for block, made in zip(reversed(plan.blocks()), reversed(kept), strict=True):
                heads, token, size = block
                g = dy[heads, token : token + size]
                parts = _through_products(made, g, dvalues[heads], plan.chunk)
                arrays = [array(x) for x in (*made[:5], later[0][heads], later[1][heads])]
                arrays += [np.arange(heads.start, heads.stop), *(array(x) for x in parts)]
                rest = (*sources, *plan.times, token, size, kind, low, high, eps, competition, allocation)
                over_heads(gradient_causal, arrays, rest)
                for whole, part in zip(grads, parts, strict=True):
                    whole[heads, token : token + size] = part[:, :size]
        shaped = (x.view(shape).to(grad.dtype) for x, shape in zip(grads, ctx.shapes, strict=True))
        return *shaped, None, None, None, None, None


def _through_products(made: Block, grad: Tensor, dvalues: Tensor, chunk: int) -> list[Tensor]:
    """Gradients of a block's Q, K and x; ``dvalues [g, d, e]``, of the matrix after it, becomes that of the one before."""
    length = made.Q.shape[1]
    dy = _chunks(torch.nn.functional.pad(grad, (0, 0, 0, length - grad.shape[1])).contiguous(), chunk)
    squares, before = _products(made, chunk, made.values.clone())
    Q, K, x = (_chunks(y, chunk) for y in made[:3])
    dsquares = torch.bmm(dy, x.mT).tril_()
    dQ = torch.bmm(dsquares, K).baddbmm_(dy, before.mT)
    after = _carry(kernels.sums_after, Q.mT @ dy, dvalues)
    dK = torch.bmm(dsquares.mT, Q).baddbmm_(x, after.mT)
    dx = torch.bmm(squares.mT, dy).baddbmm_(K, after)
    return [part.view(len(made.Q), length, -1) for part in (dQ, dK, dx)]


def empty(q: Tensor, e: int) -> Carried:
    """Before the first token of ``q [L, n, d]``."""
    heads, _, d = q.shape
    double = torch.float64
    return Carried(
        torch.zeros(heads, 4, d, dtype=double), torch.full((heads,), -1e30, dtype=double), torch.ones(heads, dtype=double),
        torch.zeros(heads, d, e, dtype=q.dtype),
    )  # fmt: skip


def attend_causal_compiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    t: Tensor,
    valid: Tensor | None,
    options: Options,
    chunk: int,
    dtype: torch.dtype,
    state: tuple[Tensor, ...] | None = None,
    wants_state: bool = False,
) -> tuple[Tensor, list[Tensor]] | None:
    """The output for ``q [B, H, n, d]`` and the state after it (empty where it is not wanted); None where it can't be had so.

    ``t, valid [B, n]``; ``state``: the six tensors of :class:`FlowAttentionState`, heads flattened. Gradients go through q, k and
    v, but not through states.
    """
    tensors = (q, k, v, *(state or ()))
    if transforms_active() or any(x.device.type != "cpu" for x in tensors):
        return None
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        if state is not None or wants_state or options.derivative is None:
            return None
        return CompiledCausal.apply(q, k, v, t, valid, options, chunk, dtype), []
    flat = [flattened(x, dtype) for x in (q, k, v)]
    plan, now = Plan(flat[0], flat[1], flat[2], t, valid, options, chunk), empty(flat[0], v.shape[-1])
    if state is not None:
        *sums, log_total, values = state
        now.sums, now.peaks = torch.stack(sums, 1).double(), log_total.double()
        now.values = values.clone(memory_format=torch.contiguous_format)
    y = run(plan, now).view(*q.shape[:3], v.shape[-1]).to(q.dtype)
    if not wants_state:
        return y, []
    last = [*now.sums.to(dtype).unbind(1), (now.peaks + now.totals.log()).to(dtype), now.values]
    return y, [x.unflatten(0, q.shape[:2]) for x in last]
