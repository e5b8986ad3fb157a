"""The two halves of serving: prefill a prompt, and decode many sequences together. Each works in any process."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from anabranch.language import CausalModel
from anabranch.serving.kv_buffers import KvBuffers, LayerBuffer, kv_from_buffers, kv_to_buffers, layer_buffer

_OF_THE_COPY = ("_name_or_path", "transformers_version")
OnLayer = Callable[[int, int, LayerBuffer], None]  # layer, layers, its keys and values


def stop_tokens(loaded: CausalModel) -> frozenset[int]:
    """Tokens after which ``generate`` stops."""
    config = getattr(loaded.model, "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    if found is None:
        found = loaded.config.eos_token_id
    return frozenset([found] if isinstance(found, int) else found or ())


def model_digest(loaded: CausalModel) -> str:
    """SHA-256 of the configuration and of all weights with their names, shapes and types: equal for copies of one model, wherever
    they lie. O(bytes of the weights)."""
    found = hashlib.sha256()
    config = {key: value for key, value in loaded.config.to_dict().items() if key not in _OF_THE_COPY}
    found.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(loaded.model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def device_of(loaded: CausalModel) -> torch.device:
    return next(loaded.model.parameters()).device


def usable_device(name: str) -> torch.device:
    """The processor or a GPU of this machine.

    Raises:
        ValueError: another kind of device, or a GPU that torch does not see here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r}: expected cpu, cuda or cuda:INDEX")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU here"
            raise ValueError(f"device={name!r}: {why}; cpu always works")
        if device.index is not None and device.index >= count:
            raise ValueError(
                f"device={name!r}: torch sees {count} GPU{'s' * (count > 1)} here, cuda:0 to cuda:{count - 1}"
            )
    return device


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers, in order.

    Raises:
        ValueError: none, or more than one, of the length that the configuration says.
    """
    config: Any = model.config
    count = config.get_text_config(decoder=True).num_hidden_layers
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if len(found) != 1:
        raise ValueError(f"{type(model).__name__} has {len(found)} lists of {count} layers: expected one")
    return found[0]


def unsplit_tokens(loaded: CausalModel, prompt_ids: Sequence[int], max_new_tokens: int) -> list[int]:
    """What ``generate`` gives greedily in one process: what every server must give."""
    model: Any = loaded.model
    ids = torch.tensor([list(prompt_ids)], device=device_of(loaded))
    return model.generate(ids, max_new_tokens=max_new_tokens, do_sample=False)[0, len(prompt_ids) :].tolist()


def check_prompt(prompt_ids: Sequence[int], max_new_tokens: int, loaded: CausalModel | None = None) -> None:
    """
    Raises:
        ValueError: an empty prompt, a token that the model does not have, no tokens to make, more than the model's positions.
    """
    if len(prompt_ids) == 0:
        raise ValueError("prompt_ids is empty: expected at least one token")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be >= 1, got {max_new_tokens}")
    if loaded is None:
        return
    config = loaded.config.get_text_config(decoder=True)
    outside = [token for token in prompt_ids if not 0 <= token < config.vocab_size]
    if outside:
        raise ValueError(f"prompt_ids holds {outside[0]}: expected 0 to {config.vocab_size - 1}")
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and len(prompt_ids) + max_new_tokens > most:
        raise ValueError(
            f"prompt_ids has {len(prompt_ids)} tokens, max_new_tokens={max_new_tokens}: the model has {most} positions"
        )


@dataclass(frozen=True, eq=False)
class Prefilled:
    """A prompt that was read.

    Attributes:
        first_token: the greedy continuation.
        cache: ``transformers`` cache of the prompt.
        seconds: of the whole, with ``sending_s`` spent in ``on_layer``.
    """

    first_token: int
    cache: Any
    seconds: float
    sending_s: float

    def buffers(self) -> KvBuffers:
        return kv_to_buffers(self.cache)


class PrefillWorker:
    """Reads prompts, one at a time.

    Args:
        loaded: the model.
        chunk: tokens read at once, or None for all. (Chunks bound the time before a colocated server decodes again.)
    """

    def __init__(self, loaded: CausalModel, *, chunk: int | None = None) -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be >= 1, got {chunk}")
        self.loaded, self.chunk = loaded, chunk
        self._layers = decoder_layers(loaded.model)

    @torch.inference_mode()
    def prefill(self, prompt_ids: Sequence[int], on_layer: OnLayer | None = None) -> Prefilled:
        """The first token and the cache.

        Args:
            on_layer: called with each layer's keys and values as soon as they are final, while later layers are still to be
                computed; of a prompt in chunks, during the last one.
        """
        check_prompt(prompt_ids, 1, self.loaded)
        begin = time.perf_counter()
        pieces = self.pieces(prompt_ids)
        cache: Any = None
        sending = 0.0
        for piece in pieces[:-1]:
            cache = self._forward(piece, cache).past_key_values
        if on_layer is None:
            out = self._forward(pieces[-1], cache)
        else:
            from transformers import DynamicCache

            cache = DynamicCache(config=self.loaded.config) if cache is None else cache
            seconds = [0.0]
            hooks = [
                layer.register_forward_hook(self._hook(i, cache, on_layer, seconds))
                for i, layer in enumerate(self._layers)
            ]
            try:
                out = self._forward(pieces[-1], cache)
            finally:
                for hook in hooks:
                    hook.remove()
            sending = seconds[0]
        first = int(out.logits[0, -1].argmax())
        return Prefilled(first, out.past_key_values, time.perf_counter() - begin, sending)

    def pieces(self, prompt_ids: Sequence[int]) -> list[Sequence[int]]:
        size = self.chunk or len(prompt_ids)
        return [prompt_ids[i : i + size] for i in range(0, len(prompt_ids), size)]

    @torch.inference_mode()
    def read(self, piece: Sequence[int], cache: Any) -> tuple[int, Any]:
        """Continue ``cache`` (None for a new one) by a piece of a prompt: the token that would follow, and the cache."""
        out = self._forward(piece, cache)
        return int(out.logits[0, -1].argmax()), out.past_key_values

    def _forward(self, ids: Sequence[int], cache: Any) -> Any:
        tokens = torch.tensor([list(ids)], device=device_of(self.loaded))
        return self.loaded.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def _hook(self, index: int, cache: Any, on_layer: OnLayer, seconds: list[float]) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            begin = time.perf_counter()
            on_layer(index, len(self._layers), layer_buffer(cache, index))
            seconds[0] += time.perf_counter() - begin

        return hook


@dataclass(eq=False)
class _Sequence:
    request: int
    token: int
    length: int  # tokens in the cache
    remaining: int
    pad: int = 0  # rows to the left of its cache in the batch


@dataclass(frozen=True)
class Decoded:
    """A token of a request; ``last`` when the answer ends with it."""

    request: int
    token: int
    last: bool


@dataclass(eq=False)
class DecodeWorker:
    """Continuous batching: every :meth:`step` gives one token to each sequence; sequences come and go between steps.

    The caches of the batch are one left-padded tensor a layer, masked and with the positions of each sequence.
    """

    loaded: CausalModel
    _batch: list[_Sequence] = field(default_factory=list)
    _cache: Any = None

    def __len__(self) -> int:
        return len(self._batch)

    @property
    def requests(self) -> list[int]:
        return [one.request for one in self._batch]

    @property
    def cached_tokens(self) -> int:
        return sum(one.length for one in self._batch)

    def add(self, request: int, cache: Any, first_token: int, max_new_tokens: int) -> None:
        """A sequence whose cache is there and whose first token is known, to be continued by up to ``max_new_tokens``.

        Args:
            cache: :class:`KvBuffers`, or a ``transformers`` cache of one sequence.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be >= 1, got {max_new_tokens}")
        if request in self.requests:
            raise ValueError(f"request {request} is being decoded already")
        buffers = (cache if isinstance(cache, KvBuffers) else kv_to_buffers(cache)).to(device_of(self.loaded))
        new = _Sequence(request, first_token, buffers.tokens, max_new_tokens)
        if not self._batch:
            self._batch, self._cache = [new], kv_from_buffers(buffers)
            return
        width, length = self._width(), buffers.tokens
        for one in self._batch:
            one.pad += max(0, length - width)
        new.pad = max(0, width - length)
        for layer, buffer in zip(self._cache.layers, buffers.layers, strict=True):
            layer.keys = _stack(layer.keys, buffer.keys)
            layer.values = _stack(layer.values, buffer.values)
        self._batch.append(new)

    def remove(self, requests: Sequence[int]) -> None:
        """Stop decoding these, where they are decoded."""
        keep = [i for i, one in enumerate(self._batch) if one.request not in requests]
        if len(keep) == len(self._batch):
            return
        self._batch = [self._batch[i] for i in keep]
        if not keep:
            self._cache = None
            return
        cut = min(one.pad for one in self._batch)  # padding that nobody needs any more
        for one in self._batch:
            one.pad -= cut
        index = torch.tensor(keep, device=device_of(self.loaded))
        for layer in self._cache.layers:
            layer.keys = layer.keys[index, :, cut:]
            layer.values = layer.values[index, :, cut:]

    @torch.inference_mode()
    def step(self) -> list[Decoded]:
        """One more token of every sequence; those that end leave."""
        if not self._batch:
            return []
        device = device_of(self.loaded)
        width = self._width()
        tokens = torch.tensor([[one.token] for one in self._batch], device=device)
        positions = torch.tensor([[one.length] for one in self._batch], device=device)
        mask = None
        if any(one.pad for one in self._batch):
            pads = torch.tensor([[one.pad] for one in self._batch], device=device)
            mask = (torch.arange(width + 1, device=device)[None] >= pads).long()
        out = self.loaded.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=self._cache, use_cache=True
        )
        stops = stop_tokens(self.loaded)
        found = []
        for one, token in zip(self._batch, out.logits[:, -1].argmax(-1).tolist(), strict=True):
            one.token, one.length, one.remaining = token, one.length + 1, one.remaining - 1
            found.append(Decoded(one.request, token, one.remaining == 0 or token in stops))
        self.remove([one.request for one in found if one.last])
        return found

    def _width(self) -> int:
        return int(self._cache.layers[0].keys.shape[2])


def _stack(batch: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    """``[b, heads, t, size]`` and ``[heads, s, size]`` as ``[b + 1, heads, max(t, s), size]``, zeros to the left."""
    width = max(batch.shape[2], one.shape[1])
    out = batch.new_zeros(batch.shape[0] + 1, batch.shape[1], width, batch.shape[3])
    out[:-1, :, width - batch.shape[2] :] = batch
    out[-1, :, width - one.shape[1] :] = one
    return out
