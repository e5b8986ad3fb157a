"""Layers of a Llama as operations on ranges of a mixed batch: what an overlapped schedule runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from anabranch.serving._kernels_decode import decode_attention
from anabranch.serving.layer_graph import DECODE, PREFILL

OPERATIONS = ("KQV", "DecAttn", "PfAttn", "O", "UG", "D")
KINDS = {"KQV": "gemm", "DecAttn": "gemv", "PfAttn": "gemm", "O": "gemm", "UG": "gemm", "D": "gemm"}


@dataclass(frozen=True)
class MixedBatch:
    """Tokens in order: one of each of ``decodes`` requests, ``context`` tokens behind each, then whole prompts.

    Raises:
        ValueError: a negative number, an empty prompt, or no tokens.
    """

    decodes: int
    context: int
    prompts: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.decodes < 0 or self.context < 0 or any(length < 1 for length in self.prompts):
            raise ValueError(
                f"decodes={self.decodes}, context={self.context}, prompts={self.prompts}: expected >= 0, >= 0 and >= 1 each"
            )
        if not self.tokens:
            raise ValueError("the batch has no tokens")

    @property
    def prompt_tokens(self) -> int:
        return sum(self.prompts)

    @property
    def tokens(self) -> int:
        return self.decodes + self.prompt_tokens

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each prompt begins in the batch."""
        found, at = [], self.decodes
        for length in self.prompts:
            found.append(at)
            at += length
        return tuple(found)

    def halves(self) -> tuple["MixedBatch", "MixedBatch"]:
        """Two nano-batches of whole requests, each with half of the decoding ones and every second prompt.

        Raises:
            ValueError: fewer than two requests of a phase that is there.
        """
        if self.decodes == 1 or len(self.prompts) == 1:
            raise ValueError(f"decodes={self.decodes}, prompts={self.prompts}: expected none or at least two of each")
        half = self.decodes // 2
        return (
            MixedBatch(half, self.context, self.prompts[::2]),
            MixedBatch(self.decodes - half, self.context, self.prompts[1::2]),
        )


class LayerWeights:
    """Weights of one Llama layer of ``transformers``, projections with one input side by side.

    Raises:
        ValueError: a layer of another kind (no separate gate and up, or biases).
    """

    def __init__(self, layer: Any, config: Any) -> None:
        try:
            attention, mlp = layer.self_attn, layer.mlp
            parts = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
            parts += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
            norms = layer.input_layernorm, layer.post_attention_layernorm
        except AttributeError as error:
            raise ValueError(f"{type(layer).__name__} is no layer of a Llama: {error}") from error
        if any(part.bias is not None for part in parts):
            raise ValueError(f"{type(layer).__name__} has biases: expected none")
        q, k, v, out, gate, up, down = (part.weight.detach() for part in parts)
        self.qkv, self.out, self.gate_up, self.down = torch.cat([q, k, v]), out, torch.cat([gate, up]), down
        self.attention_norm, self.mlp_norm = (norm.weight.detach() for norm in norms)
        self.eps = float(norms[0].variance_epsilon)
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self.size = int(k.shape[0] // self.kv_heads)


class LayerWork:
    """One layer on one batch: operations that each read and write ranges of tokens of shared buffers.

    An operation may run on any range as soon as those it needs have run on it (:func:`transformer_layer`, ``prompts`` given).

    Args:
        hidden: ``[tokens, hidden]``; the layer's input, read where it is.
        keys, values: caches ``[decodes, kv heads, size, context + 1]`` of the decoding requests; the last place is written.
        cos, sin: ``[tokens, size]`` rotary embedding of every token's position.

    Raises:
        ValueError: shapes that do not fit the batch.
    """

    def __init__(
        self,
        weights: LayerWeights,
        batch: MixedBatch,
        hidden: Float[Tensor, "tokens hidden"],
        keys: Float[Tensor, "decodes kv size places"],
        values: Float[Tensor, "decodes kv size places"],
        cos: Float[Tensor, "tokens size"],
        sin: Float[Tensor, "tokens size"],
    ) -> None:
        wanted = (batch.decodes, weights.kv_heads, weights.size, batch.context + 1)
        if hidden.shape[0] != batch.tokens or tuple(keys.shape) != wanted or keys.shape != values.shape:
            raise ValueError(
                f"hidden {tuple(hidden.shape)}, keys {tuple(keys.shape)}, values {tuple(values.shape)}: expected "
                f"{batch.tokens} tokens and caches of {wanted}"
            )
        self.weights, self.batch, self.hidden, self.keys, self.values = weights, batch, hidden, keys, values
        self.cos, self.sin = cos, sin
        tokens, w = batch.tokens, weights
        self.query = hidden.new_empty(tokens, w.heads, w.size)
        self.key, self.value = (hidden.new_empty(tokens, w.kv_heads, w.size) for _ in range(2))
        self.attended = hidden.new_empty(tokens, w.heads * w.size)
        self.middle, self.output = torch.empty_like(hidden), torch.empty_like(hidden)
        self.active = hidden.new_empty(tokens, w.down.shape[1])
        self._run = {
            "KQV": self._kqv, "DecAttn": self._decode, "PfAttn": self._prefill, "O": self._project,
            "UG": self._up, "D": self._down,
        }  # fmt: skip

    def span(self, operation: str) -> tuple[int, int]:
        """Tokens that an operation works on."""
        part = {"DecAttn": DECODE, "PfAttn": PREFILL}.get(operation)
        low = self.batch.decodes if part == PREFILL else 0
        return low, self.batch.decodes if part == DECODE else self.batch.tokens

    def run(self, operation: str, start: int, end: int) -> None:
        """The operation on the tokens ``[start, end)``.

        Raises:
            ValueError: an unknown operation, tokens outside its span.
        """
        if operation not in self._run:
            raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}, got {operation!r}")
        low, high = self.span(operation)
        if not low <= start <= end <= high:
            raise ValueError(f"{operation} works on tokens {low} to {high}, got {start} to {end}")
        if start < end:
            self._run[operation](start, end)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, (x.shape[-1],), weight, self.weights.eps)

    def _kqv(self, a: int, b: int) -> None:
        w, decodes = self.weights, self.batch.decodes
        whole = linear(self._normed(self.hidden[a:b], w.attention_norm), w.qkv).view(b - a, -1, w.size)
        query, key, value = whole.split([w.heads, w.kv_heads, w.kv_heads], 1)
        cos, sin = self.cos[a:b, None], self.sin[a:b, None]
        self.query[a:b] = query * cos + _rotated(query) * sin
        self.key[a:b] = key * cos + _rotated(key) * sin
        self.value[a:b] = value
        if a < decodes:
            last = min(b, decodes)
            self.keys[a:last, :, :, -1] = self.key[a:last]
            self.values[a:last, :, :, -1] = self.value[a:last]

    def _decode(self, a: int, b: int) -> None:
        w = self.weights
        shape = (b - a, w.kv_heads, w.heads // w.kv_heads, w.size)
        query, keys, values = self.query[a:b].view(shape), self.keys[a:b], self.values[a:b]
        out = self.attended[a:b].view(shape)
        if query.device.type == "cpu" and query.dtype == torch.float32:
            decode_attention((query * w.size**-0.5).numpy(), keys.numpy(), values.numpy(), out.numpy())
        else:
            weights = torch.matmul(query * w.size**-0.5, keys).softmax(-1)
            out.copy_(torch.matmul(weights, values.transpose(-1, -2)))

    def _prefill(self, a: int, b: int) -> None:
        w = self.weights
        group = w.heads // w.kv_heads
        for begin, length in zip(self.batch.starts, self.batch.prompts, strict=True):
            low, high = max(a, begin), min(b, begin + length)
            if low >= high:
                continue
            query = self.query[low:high].transpose(0, 1)[None]
            key, value = (
                x[begin:high].transpose(0, 1).repeat_interleave(group, 0)[None] for x in (self.key, self.value)
            )
            mask = None
            if low > begin:  # the first rows of the triangle are another range's
                mask = torch.ones(high - low, high - begin, dtype=torch.bool, device=query.device).tril(low - begin)
            out = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
            self.attended[low:high] = out[0].transpose(0, 1).flatten(1)

    def _project(self, a: int, b: int) -> None:
        torch.add(self.hidden[a:b], linear(self.attended[a:b], self.weights.out), out=self.middle[a:b])

    def _up(self, a: int, b: int) -> None:
        gate, up = linear(self._normed(self.middle[a:b], self.weights.mlp_norm), self.weights.gate_up).chunk(2, -1)
        torch.mul(silu(gate), up, out=self.active[a:b])

    def _down(self, a: int, b: int) -> None:
        torch.add(self.middle[a:b], linear(self.active[a:b], self.weights.down), out=self.output[a:b])


def layer_works(
    model: Any,
    batch: MixedBatch,
    *,
    layers: int,
    generator: torch.Generator,
    weights: Sequence[LayerWeights] = (),
) -> list[LayerWork]:
    """The first ``layers`` of a causal Llama on a batch of random inputs and random caches; each layer reads the one before.

    Args:
        generator: of the inputs, on the model's device.
        weights: of the layers, if they are there already (nano-batches share them).

    Raises:
        ValueError: more layers than the model has, or a model that is no Llama.
    """
    config = model.config
    blocks = model.model.layers
    if not 1 <= layers <= len(blocks):
        raise ValueError(f"layers must be 1 to {len(blocks)}, got {layers}")
    found = list(weights) or [LayerWeights(block, config) for block in blocks[:layers]]
    turns = [batch.context] * batch.decodes + [at for length in batch.prompts for at in range(length)]
    positions = torch.tensor(turns, device=generator.device)
    hidden = torch.randn(batch.tokens, int(config.hidden_size), generator=generator, device=generator.device)
    cos, sin = (x[0] for x in model.model.rotary_emb(hidden[None], positions[None]))
    works: list[LayerWork] = []
    for one in found[:layers]:
        shape = (batch.decodes, one.kv_heads, one.size, batch.context + 1)
        keys, values = (torch.randn(shape, generator=generator, device=generator.device) for _ in range(2))
        works.append(LayerWork(one, batch, works[-1].output if works else hidden, keys, values, cos, sin))
    return works


def run_in_sequence(works: Sequence[LayerWork], run: Callable[[LayerWork, str], None] | None = None) -> None:
    """Every operation on the whole batch, one after the other, or as ``run`` does it."""
    for work in works:
        for name in OPERATIONS:
            if run is None:
                work.run(name, *work.span(name))
            else:
                run(work, name)


def _rotated(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)
