"""Causal normalized linear attention by the scan over blocks: what kernelized baselines share."""

from functools import partial

import torch
from torch import Tensor

from anabranch.attention._checks import compute_dtype, full_precision
from anabranch.attention._conservation import times_vector
from anabranch.attention._scan import Inputs, State, scan
from anabranch.attention.causal import chunk_sums


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


def causal_linear(Q: Tensor, K: Tensor, v: Tensor, eps: float, chunk: int = 64) -> Tensor:
    """``y_i = sum over j <= i of (Q_i . K_j) v_j / (sum over j <= i of Q_i . K_j + eps)``; masked keys have feature 0."""
    batch, heads, _, d = Q.shape
    dtype = compute_dtype(Q)
    flat = tuple(x.flatten(0, 1) for x in (Q, K, v))
    zeros = partial(torch.zeros, device=Q.device, dtype=dtype)
    state = zeros(batch * heads, d), zeros(batch * heads, d, v.shape[-1])
    with full_precision(Q):
        y, _ = scan(partial(_block, chunk=chunk, eps=eps), flat, state, d, chunk, dtype)
    return y.unflatten(0, (batch, heads))
