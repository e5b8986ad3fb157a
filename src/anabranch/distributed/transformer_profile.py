"""Costs of a transformer's layers from its shape."""

from __future__ import annotations

import numpy as np

from anabranch.distributed.profile import LayerProfile
from anabranch.simulation import TransformerShape


def profile_transformer(
    shape: TransformerShape,
    *,
    sequence: int,
    flops_per_s: float,
    dtype_bytes: int = 2,
    scores: bool = False,
) -> LayerProfile:
    """Costs of a decoder for one sequence, from its shape alone: embedding, layers, head with the loss.

    A parameter takes 2 operations a token forward and 4 backward, attention ``2 sequence hidden`` a layer more (half of
    the scores are masked). Kept of a layer, with fused attention: inputs of the norms and of all matrices, queries, keys,
    values, the output of attention, and what the activation needs; in float32 the logits and their logarithms.

    Args:
        sequence: tokens.
        flops_per_s: what the device reaches in practice.
        dtype_bytes: of activations.
        scores: attention keeps its scores, once before and once after dropout, as it did before it was fused.

    Raises:
        ValueError: numbers that are not positive.
    """
    for name, value in (("sequence", sequence), ("flops_per_s", flops_per_s), ("dtype_bytes", dtype_bytes)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value}")
    h, kv = shape.hidden, shape.kv_heads * shape.head_size
    matrices = 3 if shape.gated else 2
    attention = 2 * h * h + 2 * h * kv
    dense = matrices * h * shape.intermediate
    layer_params = attention + dense * shape.experts + (h * shape.experts if shape.experts > 1 else 0) + 2 * h
    operations = 2.0 * sequence * (attention + dense * shape.top_k) + 2.0 * sequence**2 * h
    middle = (matrices + 1 if shape.gated else 2) * shape.intermediate * shape.top_k
    kept = sequence * dtype_bytes * (5 * h + 2 * kv + h + middle) + 4 * sequence * shape.heads
    if scores:
        kept += 2 * shape.heads * sequence**2 * dtype_bytes
    output = float(sequence * h * dtype_bytes)
    head = 2.0 * sequence * h * shape.vocabulary
    embedding = float(shape.vocabulary * h)
    rows = [
        ("embedding", 0.0, embedding, output, output),
        *((f"layer {i}", operations, layer_params, kept, output) for i in range(shape.layers)),
        ("head", head, embedding + h, 2.0 * output + 8.0 * sequence * shape.vocabulary, 4.0),
    ]
    names = tuple(row[0] for row in rows)
    forward, params, activations, outputs = (np.array([row[i] for row in rows], np.float64) for i in (1, 2, 3, 4))
    seconds = forward / flops_per_s
    return LayerProfile(names, seconds, 2 * seconds, params, activations, outputs, input_bytes=8.0 * sequence)
