"""Conservation and its gradient on a processor through the compiled kernels: a call each in place of some twenty of torch."""

import numpy as np
import torch
from torch import Tensor

from anabranch.attention._flow_types import Conserved, Options, Sums
from anabranch.attention._kernels_flow import conserve_heads, gradient_heads


def is_compiled(q: Tensor) -> bool:
    """Whether the kernels serve this tensor (of features or what they are made of)."""
    return q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)


def _array(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.detach().contiguous().numpy()
    return array


def _weights(weight: Tensor | None, like: Tensor) -> np.ndarray:
    """``[L, n]``; no columns for ones."""
    return _array(like.new_empty(like.shape[0], 0) if weight is None else weight)


def compiled_flows(
    Q: Tensor, K: Tensor, u: Tensor | None, w: Tensor | None, options: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor, Sums]:
    """Incoming, outgoing and both conserved flows, and the four sums, of ``Q [L, n, d]`` and ``K [L, m, d]``.

    Flows that no weight depends on are 1. O((n + m) d) time a head.
    """
    heads, n, d = Q.shape
    sinks, sources = Q.new_empty(2, heads, n), K.new_empty(2, heads, K.shape[1])
    sums = Q.new_zeros(4, heads, d)
    number = sums.numpy().dtype.type
    conserve_heads(
        _array(Q), _array(K), _weights(u, Q), _weights(w, K), number(options.eps), number(options.norm_eps),
        options.competition, options.allocation, sinks.numpy(), sources.numpy(), sums.numpy(),
    )  # fmt: skip
    return sinks[0], sources[0], sinks[1], sources[1], (sums[0], sums[1], sums[2], sums[3])


def complete_gradients(
    Q: Tensor,
    K: Tensor,
    dQ: Tensor,
    dK: Tensor,
    u: Tensor | None,
    w: Tensor | None,
    flows: Conserved,
    share: Tensor,
    options: Options,
) -> None:
    """Adds to ``dQ [L, n, d]`` and ``dK [L, m, d]``, contiguous, what reaches the features through the flows.

    O((n + m) d) time a head.
    """
    number = dQ.numpy().dtype.type
    low, high = options.clamp or (-np.inf, np.inf)
    gradient_heads(
        _array(Q), _array(K), dQ.numpy(), dK.numpy(), _weights(u, Q), _weights(w, K), _array(flows.incoming),
        _array(flows.outgoing), _array(flows.conserved_outgoing), *(_array(x) for x in flows.sums),
        _array(flows.allocation), _array(share), number(low), number(high), number(options.eps),
        options.competition, options.allocation,
    )  # fmt: skip
