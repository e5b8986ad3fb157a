"""How many bytes autograd keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class SavedTensors:
    """Bytes of tensors that autograd keeps for backwards, while they are kept; every storage counts once.

    Args:
        ignore: tensors whose storage does not count, such as parameters.
    """

    def __init__(self, ignore: Sequence[Tensor] = ()) -> None:
        self._ignored = {t.untyped_storage().data_ptr() for t in ignore}
        self._alive: dict[int, int] = {}
        self.bytes = self.peak_bytes = 0

    @contextmanager
    def watch(self) -> Iterator[SavedTensors]:
        """Count what is saved inside the ``with`` block, for as long as it lives."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda box: box.tensor):
            yield self

    def hold(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Count these too, for as long as what is returned lives."""
        return [self._pack(tensor) for tensor in tensors]

    def storages(self) -> dict[int, int]:
        """Addresses of what is kept now, and how often."""
        return dict(self._alive)

    def _pack(self, tensor: Tensor) -> _Box:
        return _Box(tensor, self)

    def _enter(self, key: int, size: int) -> None:
        self._alive[key] = self._alive.get(key, 0) + 1
        if self._alive[key] == 1:
            self.bytes += size
            self.peak_bytes = max(self.peak_bytes, self.bytes)

    def _leave(self, key: int, size: int) -> None:
        self._alive[key] -= 1
        if not self._alive[key]:
            del self._alive[key]
            self.bytes -= size

    def counts(self, storage: Any) -> bool:
        """Whether a storage is not ignored."""
        return storage.data_ptr() not in self._ignored


class _Box:
    """Holds a saved tensor, and tells when it is let go."""

    def __init__(self, tensor: Tensor, owner: SavedTensors) -> None:
        storage = tensor.untyped_storage()
        self.tensor, self._owner = tensor, owner
        self._key, self._size = storage.data_ptr(), storage.nbytes()
        self._counts = owner.counts(storage)
        if self._counts:
            owner._enter(self._key, self._size)

    def __del__(self) -> None:
        if self._counts:
            self._owner._leave(self._key, self._size)
