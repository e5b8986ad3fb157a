"""Caches of keys and values outside the accelerator: host memory first, a folder on disk behind it.

NanoFlow (Zhu et al., 2408.12757), section 4.2.2: each layer's cache leaves during its feed-forward network; it comes back as one
contiguous copy that is then scattered to pages. What does not fit on the disk stays in memory: a cache is never lost.
"""

import errno
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass
class _Entry:
    layers: dict[int, Tensor] | None  # None: on disk
    size: int


class KVTier:
    """Caches by key, layer by layer; the ones not used for longest go to disk when ``host_bytes`` are full.

    Args:
        folder: for files of caches; None keeps all in memory. Files are this object's: it removes them.
        disk_bytes: most bytes on disk; None asks the disk itself.

    Raises:
        ValueError: a negative size.
    """

    def __init__(self, host_bytes: int, folder: str | Path | None = None, *, disk_bytes: int | None = None) -> None:
        for name, value in (("host_bytes", host_bytes), ("disk_bytes", disk_bytes)):
            if value is not None and value < 0:
                raise ValueError(f"{name} must be >= 0, got {value}")
        self.host_bytes, self.disk_bytes = host_bytes, disk_bytes
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.full = False  # the disk; nothing more is taken in
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._in_memory = self._on_disk = 0

    @property
    def in_memory_bytes(self) -> int:
        return self._in_memory

    @property
    def on_disk_bytes(self) -> int:
        return self._on_disk

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def offload(self, key: str, layer: int, cache: Tensor) -> bool:
        """Take a copy of one layer's cache; False where there is no room left, neither in memory nor on disk.

        A cache of which some layers were refused is dropped by the caller (:meth:`drop`) or kept in the accelerator.

        Raises:
            ValueError: that layer of the key is here already.
        """
        entry = self._entries.get(key)
        size = cache.numel() * cache.element_size()
        if entry is not None and entry.layers is None:
            self._read(key)
        if entry is not None and entry.layers is not None and layer in entry.layers:
            raise ValueError(f"layer {layer} of {key!r} is here already: drop it first")
        if not self._make_room(size, key):
            return False
        if entry is None:
            entry = self._entries[key] = _Entry({}, 0)
        assert entry.layers is not None
        entry.layers[layer] = cache.detach().to("cpu", copy=True).contiguous()
        entry.size += size
        self._in_memory += size
        self._entries.move_to_end(key)
        return True

    def restore(self, key: str) -> list[Tensor]:
        """The layers of a cache, each one contiguous tensor, as they were; the key counts as used now.

        Raises:
            ValueError: nothing under that key.
        """
        if key not in self._entries:
            raise ValueError(f"no cache {key!r}: it was not offloaded, or dropped")
        entry = self._entries[key]
        if entry.layers is None:
            self._read(key)
        self._entries.move_to_end(key)
        assert entry.layers is not None
        found = [entry.layers[layer] for layer in sorted(entry.layers)]
        self._make_room(0, key)
        return found

    def drop(self, key: str) -> None:
        """Forget a cache."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        if entry.layers is None:
            self._path(key).unlink(missing_ok=True)
            self._on_disk -= entry.size
            self.full = False
        else:
            self._in_memory -= entry.size

    def close(self) -> None:
        """Forget all, and remove the files."""
        for key in list(self._entries):
            self.drop(key)

    def _make_room(self, size: int, keep: str) -> bool:
        """Send the longest unused to disk until ``size`` more fit in memory."""
        for key in list(self._entries):
            if self._in_memory + size <= self.host_bytes:
                break
            if key != keep and self._entries[key].layers is not None and not self._write(key):
                break
        return self._in_memory + size <= self.host_bytes

    def _write(self, key: str) -> bool:
        entry = self._entries[key]
        if self.folder is None or self.full or entry.layers is None:
            return False
        if self.disk_bytes is not None and self._on_disk + entry.size > self.disk_bytes:
            self.full = True
            return False
        path, part = self._path(key), self._path(key).with_suffix(".part")
        try:
            save_file({str(layer): cache for layer, cache in entry.layers.items()}, part)
            part.replace(path)
        except (OSError, RuntimeError) as error:  # safetensors reports a full disk as either
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOSPC, errno.EDQUOT):
                raise
            self.full = True
            return False
        entry.layers = None
        self._in_memory -= entry.size
        self._on_disk += entry.size
        return True

    def _read(self, key: str) -> None:
        """Back into memory, even above ``host_bytes``; others then make room."""
        entry = self._entries[key]
        entry.layers = {int(layer): cache for layer, cache in load_file(self._path(key)).items()}
        self._path(key).unlink()
        self._on_disk -= entry.size
        self._in_memory += entry.size
        self.full = False

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key.encode().hex()}.safetensors"


def gather_pages(pages: Tensor, table: Sequence[int], tokens: int) -> Tensor:
    """One contiguous cache ``[tokens, ...]`` from ``pages [pages, page size, ...]`` in the order of ``table``.

    Raises:
        ValueError: a page that is not there, or fewer places than tokens.
    """
    _check_pages(pages, table, tokens)
    return pages[torch.as_tensor(table, device=pages.device)].flatten(0, 1)[:tokens].contiguous()


def scatter_pages(
    cache: Tensor, pages: Tensor, table: Sequence[int], *, copy: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Put a contiguous cache back into its pages: one copy to their device, then a scatter there, not a copy a page.

    Args:
        copy: to the device of ``pages``; as torch does if not given.

    Raises:
        ValueError: a page that is not there, or fewer places than tokens.
    """
    tokens, size = cache.shape[0], pages.shape[1]
    _check_pages(pages, table, tokens)
    here = cache.to(pages.device) if copy is None else copy(cache)
    whole = tokens // size
    index = torch.as_tensor(table, device=pages.device)
    pages[index[:whole]] = (
        here[: whole * size].unflatten(0, (whole, size)) if whole else here.new_empty(0, *pages.shape[1:])
    )
    if tokens % size:
        pages[int(table[whole]), : tokens % size] = here[whole * size :]


def _check_pages(pages: Tensor, table: Sequence[int], tokens: int) -> None:
    if len(table) * pages.shape[1] < tokens:
        raise ValueError(f"table has {len(table)} pages of {pages.shape[1]} tokens: expected room for {tokens}")
    if any(not 0 <= page < pages.shape[0] for page in table) or len(set(table)) < len(table):
        raise ValueError(f"table={list(table)}: expected different pages of 0 to {pages.shape[0] - 1}")
