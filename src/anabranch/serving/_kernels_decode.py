"""Attention of one new token a request over its cache: reads every key and value once."""

import typing

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, fastmath=True)
@typing.no_type_check
def decode_attention(query, keys, values, out):
    """``query, out [requests, kv heads, group, size]``, ``keys, values [requests, kv heads, size, tokens]``; size divides by 4.

    Caches lie token by token within each element of a head, so that all loops run along memory.
    """
    requests, heads, group, size = query.shape
    tokens = keys.shape[3]
    scores = np.empty((group, tokens), np.float32)
    for r in range(requests):
        for h in range(heads):
            scores[:] = 0
            for d in range(0, size, 4):
                k0, k1, k2, k3 = keys[r, h, d], keys[r, h, d + 1], keys[r, h, d + 2], keys[r, h, d + 3]
                for g in range(group):
                    a, b, c, e = query[r, h, g, d], query[r, h, g, d + 1], query[r, h, g, d + 2], query[r, h, g, d + 3]
                    row = scores[g]
                    for t in range(tokens):
                        row[t] += a * k0[t] + b * k1[t] + c * k2[t] + e * k3[t]
            for g in range(group):
                row = scores[g]
                most, total = row.max(), np.float32(0)
                for t in range(tokens):
                    weight = np.exp(row[t] - most)
                    row[t] = weight
                    total += weight
                for t in range(tokens):
                    row[t] /= total
            for d in range(size):
                value = values[r, h, d]
                for g in range(group):
                    row, found = scores[g], np.float32(0)
                    for t in range(tokens):
                        found += row[t] * value[t]
                    out[r, h, g, d] = found
