"""A recurrence over blocks of tokens with gradients in O(n) memory: states at block borders are kept, blocks are redone.

A block is ``block(inputs, state) -> (output, state)``: inputs ``[L, s, ...]`` along the tokens, the state a tuple of tensors
``[L, ...]``. The sequence is cut in blocks of ``size`` tokens, the heads in groups.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anabranch.attention._checks import full_precision, transforms_active

State = tuple[Tensor, ...]
Inputs = tuple[Any, ...]  # tensors, or None where one is not needed
Block = Callable[[Inputs, State], tuple[Tensor, State]]
BLOCK_ENTRIES = 1 << 18  # entries of the largest temporaries of a block: a dozen of them stay in a core's cache


def _cut(inputs: Sequence[Any], heads: slice, tokens: slice, dtype: torch.dtype) -> list[Any]:
    return [None if x is None else x[heads, tokens].to(dtype) for x in inputs]


def _starts(length: int, size: int) -> list[slice]:
    return [slice(i, i + size) for i in range(0, length, size)]


def sizes(heads: int, width: int, chunk: int) -> tuple[int, int]:
    """Heads in a group and tokens in a block, so that a block's temporaries stay in a core's cache."""
    entries = chunk * max(chunk, width)
    group = max(1, BLOCK_ENTRIES // entries)
    return group, chunk * max(1, BLOCK_ENTRIES // (min(group, heads) * entries))


def scan(
    block: Block, inputs: Inputs, state: State, width: int, chunk: int, dtype: torch.dtype, method: str = "auto"
) -> tuple[Tensor, State]:
    """Run ``block`` along the tokens; output ``[L, n, e]`` in the inputs' dtype, and the last state in ``dtype``.

    Args:
        width: features of a head, ``chunk`` the tokens that a block multiplies as a square: blocks hold several.
        method: "plain" lets autograd keep every block (any derivative, O(n chunk) memory); "redo" computes blocks again in
            the backward pass (first derivatives, O(n) memory); "auto" takes "redo" where a gradient is recorded.
    """
    heads, length = inputs[0].shape[:2]
    group, size = sizes(heads, width, chunk)
    tensors = [x for x in (*inputs, *state) if isinstance(x, Tensor)]
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if method == "redo" or (method == "auto" and recorded and length > chunk and not transforms_active()):
        result = _Redo.apply(block, group, size, dtype, len(inputs), *inputs, *state)
        return result[0], tuple(result[1:])
    if recorded or transforms_active():
        group = heads  # slices of slices would fill whole gradients with zeros
    parts = [_run(block, inputs, state, g, size, dtype, None) for g in _starts(heads, group)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([y for y, _ in parts]), tuple(map(torch.cat, zip(*(last for _, last in parts), strict=True)))


def _run(
    block: Block,
    inputs: Sequence[Any],
    state: Sequence[Tensor],
    group: slice,
    size: int,
    dtype: torch.dtype,
    kept: list[State] | None,
) -> tuple[Tensor, State]:
    """One group of heads; ``kept`` collects the states at the blocks' beginnings."""
    now = tuple(x[group] for x in state)
    outputs = []
    for tokens in _starts(inputs[0].shape[1], size):
        if kept is not None:
            kept.append(now)
        output, now = block(tuple(_cut(inputs, group, tokens, dtype)), now)
        outputs.append(output.to(inputs[0].dtype))
    return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], now


class _Redo(torch.autograd.Function):
    """The scan; its backward pass walks the blocks from the last, each computed again from the state it began with."""

    @staticmethod
    def forward(
        ctx: Any, block: Block, group: int, size: int, dtype: torch.dtype, n_inputs: int, *tensors: Tensor | None
    ) -> Any:
        inputs, state = tensors[:n_inputs], tensors[n_inputs:]
        kept: list[State] = []
        assert inputs[0] is not None
        groups = _starts(len(inputs[0]), group)
        parts = [_run(block, inputs, state, g, size, dtype, kept) for g in groups]  # type: ignore[arg-type]
        ctx.save_for_backward(*inputs, *(x for states in kept for x in states))
        ctx.how = block, groups, size, dtype, n_inputs, len(state)
        return torch.cat([y for y, _ in parts]), *map(torch.cat, zip(*(last for _, last in parts), strict=True))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *grad_state: Tensor) -> Any:
        block, groups, size, dtype, n_inputs, n_state = ctx.how
        grad = grad.contiguous()  # that of a sum is one number, which slows every product down
        inputs, kept = ctx.saved_tensors[:n_inputs], list(ctx.saved_tensors[n_inputs:])
        needed = [i for i in range(n_inputs) if ctx.needs_input_grad[5 + i]]
        grads = [torch.empty_like(x) if i in needed else None for i, x in enumerate(inputs)]
        first = [torch.empty_like(x) for x in grad_state]
        blocks = [(group, tokens) for group in groups for tokens in _starts(grad.shape[1], size)]
        for group, tokens in reversed(blocks):
            states, kept = kept[-n_state:], kept[:-n_state]
            if tokens.stop >= grad.shape[1]:  # the last block of its heads
                through = [x[group] for x in grad_state]
            with torch.enable_grad(), full_precision(grad):
                part = _cut([None if x is None else x.detach() for x in inputs], group, tokens, dtype)
                part = [x.requires_grad_() if i in needed else x for i, x in enumerate(part)]
                state = [x.detach().requires_grad_() for x in states]
                output, after = block(tuple(part), tuple(state))
                pairs = zip((output, *after), (grad[group, tokens].to(dtype), *through), strict=True)
                results, seeds = zip(*(pair for pair in pairs if pair[0].requires_grad), strict=True)
                sources = [part[i] for i in needed] + state
                found = torch.autograd.grad(results, sources, seeds, allow_unused=True)
            for i, value in zip(needed, found, strict=False):
                grads[i][group, tokens] = 0 if value is None else value  # type: ignore[index]
            through = [
                torch.zeros_like(x) if g is None else g for x, g in zip(state, found[len(needed) :], strict=True)
            ]
            if tokens.start == 0:
                for whole, value in zip(first, through, strict=True):
                    whole[group] = value
        return None, None, None, None, None, *grads, *first
