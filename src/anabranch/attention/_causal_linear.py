"""Causal normalized linear attention by the scan over blocks: what kernelized baselines share."""

from functools import partial

import torch
from torch import Tensor

from anabranch.attention._checks import compute_dtype, full_precision
from anabranch.attention._compiled_causal import attend_causal_compiled
from anabranch.attention._conservation import times_vector
from anabranch.attention._flow_types import Options
from anabranch.attention._scan import Inputs, State, scan
from anabranch.attention.causal import chunk_sums
from anabranch.attention.features import split_map


def _block(inputs: Inputs, state: State, *, chunk: int, eps: float) -> tuple[Tensor, State]:
    Q, K, v = inputs
    heads, size, _ = Q.shape
    if size < chunk:
        chunk = size
    elif size % chunk:  # only the last block has a rest
        whole = size - size % chunk
        first, state = _block((Q[:, :whole], K[:, :whole], v[:, :whole]), state, chunk=chunk, eps=eps)
        rest, state = _block((Q[:, whole:], K[:, whole:], v[:, whole:]), state, chunk=chunk, eps=eps)
        return torch.cat([first, rest], 1), state
    keys, values = state
    Q, K, v = (x.reshape(heads, size // chunk, chunk, x.shape[-1]) for x in (Q, K, v))
    lower = (Q @ K.mT).tril()
    before, keys = chunk_sums(K.sum(-2), keys)
    norm = lower.sum(-1) + times_vector(Q, before)
    before, values = chunk_sums(K.mT @ v, values)
    out = (lower @ v + Q @ before) / (norm + eps).unsqueeze(-1)
    return out.reshape(heads, size, -1), (keys, values)


def causal_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eps: float,
    feature_map: str = "identity",
    mask: Tensor | None = None,
    chunk: int = 32,
) -> Tensor:
    """``y_i = sum over j <= i of (Q_i . K_j) v_j / (sum over j <= i of Q_i . K_j + eps)`` for features Q, K of q, k.

    Tokens of ``mask [B, n]`` False are as if deleted, and their outputs 0.
    """
    phi, derivative = split_map(feature_map)
    batch, heads, n, d = q.shape
    dtype = compute_dtype(q)
    valid = None if mask is None else mask.to(dtype)
    with full_precision(q):
        options = Options(phi, derivative, None, 0.0, False, False, eps)  # what is left of Flow-Attention
        compiled = attend_causal_compiled(q, k, v, q.new_ones(batch, n, dtype=dtype), valid, options, chunk, dtype)
        if compiled is not None:
            return compiled[0]
        Q, K = phi(q), phi(k)
        if mask is not None:
            K, v = (x.masked_fill(~mask[:, None, :, None], 0.0) for x in (K, v))
        flat = tuple(x.flatten(0, 1) for x in (Q, K, v))
        zeros = partial(torch.zeros, device=q.device, dtype=dtype)
        state = zeros(batch * heads, d), zeros(batch * heads, d, v.shape[-1])
        y, _ = scan(partial(_block, chunk=chunk, eps=eps), flat, state, d, chunk, dtype)
    y = y.unflatten(0, (batch, heads))
    return y if mask is None else y.masked_fill(~mask[:, None, :, None], 0.0)
