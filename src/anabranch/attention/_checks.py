"""Argument checks shared by the package: all of shapes, none of values, so they cost nothing."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def check_heads(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False) -> None:
    """``q [B, heads, n, d]``, ``k [B, heads, m, d]``, ``v [B, heads, m, e]`` of one floating dtype, n = m if causal.

    Raises:
        ValueError: anything else; names the shapes. TypeError: not floating point.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: expected [batch, heads, length, features]")
        if not x.is_floating_point():
            raise TypeError(f"{name} is {x.dtype}: expected floating point")
        if x.dtype != q.dtype:
            raise ValueError(f"q is {q.dtype} and {name} is {x.dtype}: expected one dtype")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"k has shape {tuple(k.shape)} and v {tuple(v.shape)}: expected the same batch, heads and length"
        )
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(
            f"q has shape {tuple(q.shape)} and k {tuple(k.shape)}: expected the same batch, heads and features"
        )
    for name, x in (("q", q), ("k", k)):
        if x.shape[2] == 0:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: expected at least one token")
    if is_causal and q.shape[2] != k.shape[2]:
        raise ValueError(
            f"q has {q.shape[2]} tokens and k {k.shape[2]}: causal attention needs as many; to go on after a prefix "
            "pass its state as initial_state, for cross-attention leave is_causal out"
        )


def check_mask(name: str, mask: Tensor | None, batch: int, length: int) -> None:
    """A bool mask ``[batch, length]``, True for a real token.

    Raises:
        ValueError: another shape. TypeError: another dtype.
    """
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} is {mask.dtype}: expected bool, True for a real token")
    if tuple(mask.shape) != (batch, length):
        raise ValueError(f"{name} has shape {tuple(mask.shape)}: expected [{batch}, {length}]")


def one_mask(q_mask: Tensor | None, kv_mask: Tensor | None) -> Tensor | None:
    """The mask of a causal form, where queries and keys are the same tokens.

    Raises:
        ValueError: two masks that differ.
    """
    if q_mask is None or kv_mask is None or q_mask is kv_mask:
        return q_mask if kv_mask is None else kv_mask
    if not torch.equal(q_mask, kv_mask):
        raise ValueError("q_mask and kv_mask differ: in causal attention queries and keys are the same tokens")
    return q_mask


def check_chunk(chunk: int) -> None:
    if isinstance(chunk, bool) or not isinstance(chunk, int):
        raise TypeError(f"chunk must be an integer >= 1, got {chunk!r} ({type(chunk).__name__})")
    if chunk < 1:
        raise ValueError(f"chunk must be >= 1, got {chunk}")


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 stays; everything else is computed in float32 (sums over thousands of tokens need its digits)."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off: flows are sums over all tokens, which half precision loses."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def nearest(argument: str, name: str, known: list[str]) -> str:
    """``name`` if it is known.

    Raises:
        ValueError: it is not; names what there is.
    """
    if name not in known:
        raise ValueError(f"unknown {argument} {name!r}: there are {', '.join(known)}")
    return name


def transforms_active() -> bool:
    """Whether a gradient beyond plain reverse mode is being taken (torch.func, forward mode) or torch.compile is tracing.

    Autograd functions with hand-written backward passes have neither; the plain path has both.
    """
    if torch.compiler.is_compiling():
        return True
    return bool(torch._C._are_functorch_transforms_active()) or torch.autograd.forward_ad._current_level >= 0
