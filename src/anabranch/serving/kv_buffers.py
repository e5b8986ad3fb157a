"""Key-value caches as contiguous buffers: what goes over the wire between a prefill and a decode worker."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_HEADER = struct.Struct("<qiii3i3i")  # request, layer, layers, dtype, shape of keys, shape of values
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True, eq=False)
class LayerBuffer:
    """Keys and values of one layer for one sequence.

    Args:
        keys, values: ``[kv_heads, tokens, head_size]``, contiguous.
    """

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def n_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True, eq=False)
class KvBuffers:
    """The cache of one sequence, layer by layer."""

    layers: tuple[LayerBuffer, ...]

    @property
    def tokens(self) -> int:
        return self.layers[0].keys.shape[1]

    @property
    def n_bytes(self) -> int:
        return sum(layer.n_bytes for layer in self.layers)

    def to(self, device: torch.device) -> KvBuffers:
        """On a device; itself where it is there already."""
        if all(part.device == device for layer in self.layers for part in (layer.keys, layer.values)):
            return self
        return KvBuffers(tuple(LayerBuffer(one.keys.to(device), one.values.to(device)) for one in self.layers))

    def sha256(self) -> str:
        """Of all bytes, keys before values, in the order of the layers."""
        digest = hashlib.sha256()
        for layer in self.layers:
            for part in (layer.keys, layer.values):
                digest.update(as_bytes(part))
        return digest.hexdigest()


def layer_buffer(cache: Any, layer: int) -> LayerBuffer:
    """Layer ``layer`` of a ``transformers`` cache of one sequence.

    Raises:
        ValueError: a cache of several sequences, or one that does not grow by concatenation (sliding windows, quantized).
    """
    from transformers.cache_utils import DynamicLayer

    one: Any = cache.layers[layer]
    if type(cache.layers[layer]) is not DynamicLayer:
        raise ValueError(
            f"layer {layer} of the cache is a {type(one).__name__}: expected DynamicLayer (full attention)"
        )
    if one.keys.shape[0] != 1:
        raise ValueError(f"the cache holds {one.keys.shape[0]} sequences: expected 1")
    return LayerBuffer(one.keys[0].contiguous(), one.values[0].contiguous())


def kv_to_buffers(cache: Any) -> KvBuffers:
    """A ``transformers`` ``DynamicCache`` of one sequence as contiguous buffers of the same dtype. Copies only where it must.

    Raises:
        ValueError: an empty cache, or one that :func:`layer_buffer` refuses.
    """
    if len(cache.layers) == 0 or cache.get_seq_length() == 0:
        raise ValueError("the cache is empty: run the model on a prompt first")
    return KvBuffers(tuple(layer_buffer(cache, i) for i in range(len(cache.layers))))


def kv_from_buffers(buffers: KvBuffers) -> Any:
    """The ``DynamicCache`` that :func:`kv_to_buffers` took apart, over the same memory."""
    from transformers import DynamicCache

    return DynamicCache([(layer.keys[None], layer.values[None]) for layer in buffers.layers])


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, in place."""
    raw: Any = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
    return memoryview(raw).cast("B")


def pack_header(request: int, layer: int, layers: int, buffer: LayerBuffer) -> bytes:
    """What the receiver must know of a layer before its bytes.

    Raises:
        ValueError: a dtype that is not a floating one of 16 to 64 bits.
    """
    if buffer.keys.dtype not in _DTYPES:
        raise ValueError(f"the cache has dtype {buffer.keys.dtype}: expected one of {', '.join(map(str, _DTYPES))}")
    kind = _DTYPES.index(buffer.keys.dtype)
    return _HEADER.pack(request, layer, layers, kind, *buffer.keys.shape, *buffer.values.shape)


def unpack_header(header: bytes) -> tuple[int, int, int, LayerBuffer]:
    """Request, layer, number of layers, and room for its keys and values."""
    request, layer, layers, kind, *shapes = _HEADER.unpack(header)
    if not (0 <= kind < len(_DTYPES) and 0 <= layer < layers and min(shapes) > 0):
        raise ValueError(f"a cache arrived with a broken header: layer {layer} of {layers}, shapes {shapes}")
    parts = (torch.empty(shape, dtype=_DTYPES[kind]) for shape in (shapes[:3], shapes[3:]))
    return request, layer, layers, LayerBuffer(*parts)


class Assembler:
    """Puts layers together as they come, in any order and of any number of requests."""

    def __init__(self) -> None:
        self._parts: dict[int, list[LayerBuffer | None]] = {}

    def add(self, request: int, layer: int, layers: int, buffer: LayerBuffer) -> KvBuffers | None:
        """The whole cache, when this was the last of its layers."""
        parts = self._parts.setdefault(request, [None] * layers)
        parts[layer] = buffer
        if any(part is None for part in parts):
            return None
        del self._parts[request]
        return KvBuffers(tuple(part for part in parts if part is not None))

    def drop(self, requests: Sequence[int]) -> None:
        """Forget what came of requests that will not be finished."""
        for request in requests:
            self._parts.pop(request, None)
