"""One token at a time with softmax attention: the growing cache that Flow-Attention's constant state is compared with."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from anabranch.attention._checks import check_heads


@dataclass
class KeyValueCache:
    """Keys and values of all tokens so far, in buffers that double when they are full.

    Attributes:
        keys, values: ``[B, heads, capacity, d]``; the first ``length`` are filled.
    """

    keys: Float[Tensor, "batch heads capacity d"]
    values: Float[Tensor, "batch heads capacity e"]
    length: int = 0

    @classmethod
    def empty(
        cls,
        batch: int,
        heads: int,
        d: int,
        e: int | None = None,
        *,
        capacity: int = 256,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "KeyValueCache":
        """The cache before the first token, with room for ``capacity``."""
        shape = (batch, heads, capacity)
        keys = torch.empty(*shape, d, device=device, dtype=dtype)
        return cls(keys, torch.empty(*shape, d if e is None else e, device=device, dtype=dtype))

    def append(self, k: Tensor, v: Tensor) -> None:
        """Add tokens ``[B, heads, n, d]`` in place."""
        need = self.length + k.shape[2]
        while need > self.keys.shape[2]:
            self.keys, self.values = (torch.cat([x, torch.empty_like(x)], 2) for x in (self.keys, self.values))
        self.keys[:, :, self.length : need], self.values[:, :, self.length : need] = k, v
        self.length = need


def softmax_attention_step(
    q: Float[Tensor, "batch heads d"],
    k: Float[Tensor, "batch heads d"],
    v: Float[Tensor, "batch heads e"],
    cache: KeyValueCache,
) -> Float[Tensor, "batch heads e"]:
    """One more token, which joins ``cache`` in place: O(n d) time and memory for the n tokens in it. Without gradient.

    Raises:
        ValueError: shapes that disagree.
    """
    q, k, v = (x.unsqueeze(2) for x in (q, k, v))
    check_heads(q, k, v)
    with torch.no_grad():
        cache.append(k, v)
        seen = slice(0, cache.length)
        y = torch.nn.functional.scaled_dot_product_attention(q, cache.keys[:, :, seen], cache.values[:, :, seen])
    return y.squeeze(2)
