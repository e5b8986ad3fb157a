"""The inverse of a TarFlow block for the solvers: the same function as the block's, in as few operations as it takes.

A step of one token is some twenty tiny operations, so that calls of modules would cost as much as the arithmetic: the
weights are taken out of the modules, the scales of layer norms are folded into the matrices that follow, and keys and values
lie in buffers of their final size.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional

from anabranch.generative.autoregressive import AutoregressiveMap


@dataclass
class _Prefix:
    """What a block knows of a batch: keys and values by layer ``[R, T, 2 or 3, heads, d]``, class embeddings ``[R, 1, C]``.

    R is the batch, or twice the batch with guidance: first with, then without label. ``states``, ``reach``, ``after`` and
    ``end`` are of an attention with decoding states: states of the tokens before ``reach``, and of those before ``end``.
    """

    buffers: list[Tensor]
    condition: Tensor | None
    states: list[Any] = field(default_factory=list)
    reach: int = 0
    after: list[Any] = field(default_factory=list)
    end: int = -1


class TarFlowBlockMap(AutoregressiveMap):
    """The inverse of a :class:`TarFlowBlock` at fixed weights and labels, with a key-value cache of fixed size.

    One evaluation of n tokens after a prefix of p costs O(n (L C^2 + L (p + n) C)) a sample, twice that with guidance, and the
    cache 2 L T C numbers a sample.
    """

    def __init__(
        self,
        block: nn.Module,
        label: Int[Tensor, " batch"] | None = None,
        *,
        guidance: float = 0.0,
        temperature: float = 1.0,
        annealed: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        b: Any = block
        self.tokens, self.width = b.pos_embed.shape
        self.features = b.proj_in.in_features
        self.backwards, self.guidance, self.temperature = b.backwards, guidance, temperature
        attention = b.attn_blocks[0].attention
        self.head_size, self.attend = attention.head_size, attention.attend
        self.softmax = self.attend is functional.scaled_dot_product_attention
        with torch.no_grad():
            dtype = b.pos_embed.dtype if dtype is None else dtype
            table = (b.pos_embed.flip(0) if self.backwards else b.pos_embed) + b.proj_in.bias
            condition = b.condition(label)
            if guidance and condition is not None:
                pair = torch.cat([condition, b.condition(None).expand_as(condition)])
                condition = pair if len(condition) > 1 else None
                self.pair: Tensor | None = pair.to(dtype)
            elif condition is not None and bool((condition == condition[:1]).all()):
                self.pair, table, condition = None, table + condition[0], None
            else:
                self.pair = None
            self.table, self.condition = table.to(dtype), None if condition is None else condition.to(dtype)
            self.enter_weight = b.proj_in.weight.detach().to(dtype)
            self.leave_weight, self.leave_bias = (
                b.proj_out.weight.detach().to(dtype),
                b.proj_out.bias.detach().to(dtype),
            )
            self.layers = [tuple(w.to(dtype) for w in _folded(layer)) for layer in b.attn_blocks]
            grown = torch.arange(1, self.tokens, dtype=dtype, device=table.device) / max(self.tokens - 1, 1)
            self.weights = (guidance * (grown if annealed else torch.ones_like(grown)))[:, None]
            causal = torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=table.device).tril()
            self.mask = torch.zeros_like(causal, dtype=dtype).masked_fill_(~causal, -torch.inf)

    def enter(self, z: Tensor) -> Tensor:
        return z.flip(1) if self.backwards else z

    def leave(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.backwards else x

    def new_cache(self, z: Tensor) -> _Prefix:
        """An empty cache.

        Raises:
            ValueError: another number of samples than of labels.
        """
        rows = (2 if self.guidance else 1) * len(z)
        condition = self.condition
        if self.pair is not None and condition is None:
            condition = self.pair.repeat_interleave(len(z), 0)
        if condition is not None and len(condition) != rows:
            raise ValueError(f"z has {len(z)} samples: expected {len(condition) * len(z) // rows}, one a label")
        shape = (rows, self.tokens, 2 if self.softmax else 3, self.width // self.head_size, self.head_size)
        return _Prefix([self.table.new_empty(shape) for _ in self.layers], condition)

    def take(self, cache: _Prefix, rows: Tensor, stop: int) -> _Prefix:
        rows = torch.cat([rows, rows + len(cache.buffers[0]) // 2]) if self.guidance else rows
        taken = [b.new_empty(len(rows), *b.shape[1:]) for b in cache.buffers]
        for new, old in zip(taken, cache.buffers, strict=True):
            new[:, :stop] = old[rows, :stop]
        return _Prefix(taken, None if cache.condition is None else cache.condition[rows])

    def put(self, cache: _Prefix, rows: Tensor, part: _Prefix, start: int, stop: int) -> None:
        rows = torch.cat([rows, rows + len(cache.buffers[0]) // 2]) if self.guidance else rows
        for old, new in zip(cache.buffers, part.buffers, strict=True):
            old[rows, start:stop] = new[:, start:stop]
        cache.states, cache.reach, cache.end = [], 0, -1

    def advance(self, x: Tensor, z: Tensor, start: int, cache: _Prefix) -> Tensor:
        s, m = self.affine(x, start, cache)
        return torch.addcmul(m, z, s.exp_())

    def affine(self, x: Tensor, start: int, cache: _Prefix) -> tuple[Tensor, Tensor]:
        """``(s, m)`` of the tokens after those of the window ``x`` ``[B, n, D]``, which begins at ``start``."""
        stop, given = start + x.shape[1], x.dtype
        h = functional.linear(x.to(self.table.dtype), self.enter_weight) + self.table[start:stop]
        if self.guidance:
            h = torch.cat([h, h])
        if cache.condition is not None:
            h += cache.condition
        attend = self._softmax if self.softmax else self._plugged
        shape = (self.width,)
        for i, (qkv, qkv_bias, proj, proj_bias, up, up_bias, down, down_bias) in enumerate(self.layers):
            y = attend(functional.linear(functional.layer_norm(h, shape), qkv, qkv_bias), i, start, stop, cache)
            h += functional.linear(y, proj, proj_bias)
            h += functional.linear(
                functional.gelu(functional.linear(functional.layer_norm(h, shape), up, up_bias)), down, down_bias
            )
        if not self.softmax:
            cache.end = stop
        out = functional.linear(h, self.leave_weight, self.leave_bias).to(given)
        if self.guidance:
            with_label, without = out.chunk(2)
            out = with_label + self.weights[start:stop].to(given) * (with_label - without)
        return out[..., : self.features], out[..., self.features :]

    def _softmax(self, qkv: Tensor, layer: int, start: int, stop: int, cache: _Prefix) -> Tensor:
        width, rows, n = self.width, len(qkv), stop - start
        buffer = cache.buffers[layer]
        heads = (rows, n, -1, self.head_size)
        buffer.view(rows, self.tokens, 2 * width)[:, start:stop].copy_(qkv[..., width:])
        q = qkv[..., :width].view(heads).transpose(1, 2)
        if self.guidance and self.temperature != 1:
            q = torch.cat([q[: rows // 2], q[rows // 2 :] / self.temperature])
        k, v = buffer[:, :stop].permute(2, 0, 3, 1, 4)
        if n == 1:
            y = functional.scaled_dot_product_attention(q, k, v)
        elif start == 0:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[start:stop, :stop])
        return y.transpose(1, 2).reshape(rows, n, width)

    def _plugged(self, qkv: Tensor, layer: int, start: int, stop: int, cache: _Prefix) -> Tensor:
        """Another attention: over the whole prefix again, or from its decoding state where it has one."""
        rows, n = len(qkv), stop - start
        buffer = cache.buffers[layer]
        buffer[:, start:stop] = qkv.view(rows, n, 3, -1, self.head_size)
        if self.guidance and self.temperature != 1:
            buffer[rows // 2 :, start:stop, 0] /= self.temperature
        decode = getattr(self.attend, "decode", None)
        if decode is None:
            y = self.attend(*buffer[:, :stop].permute(2, 0, 3, 1, 4), is_causal=True)[:, :, start:]
        else:
            self._catch_up(decode, layer, start, cache)
            y, cache.after[layer] = decode(*buffer[:, start:stop].permute(2, 0, 3, 1, 4), cache.states[layer])
        return y.transpose(1, 2).reshape(rows, n, self.width)

    def _catch_up(self, decode: Any, layer: int, start: int, cache: _Prefix) -> None:
        """Makes ``cache.states`` those of the tokens before ``start``."""
        if layer > 0:
            return
        if not cache.states:
            cache.states, cache.after, cache.reach = [None] * len(self.layers), [None] * len(self.layers), 0
        if cache.end == start:
            cache.states, cache.reach = list(cache.after), start
        elif cache.reach > start:
            cache.states, cache.reach = [None] * len(self.layers), 0
        if cache.reach < start:
            for i, buffer in enumerate(cache.buffers):
                _, cache.states[i] = decode(*buffer[:, cache.reach : start].permute(2, 0, 3, 1, 4), cache.states[i])
            cache.reach = start


def _folded(layer: Any) -> tuple[Tensor, ...]:
    """Weights of a layer, with the scale and shift of each norm inside the matrix that follows it."""
    attention, mlp = layer.attention, layer.mlp
    folded = []
    for norm, linear in ((attention.norm, attention.qkv), (mlp.norm, mlp.main[0])):
        folded.append((linear.weight * norm.weight, linear.bias + linear.weight @ norm.bias))
    (qkv, qkv_bias), (up, up_bias) = folded
    proj, down = attention.proj, mlp.main[2]
    return (
        qkv.detach(), qkv_bias.detach(), proj.weight.detach(), proj.bias.detach(),
        up.detach(), up_bias.detach(), down.weight.detach(), down.bias.detach(),
    )  # fmt: skip
