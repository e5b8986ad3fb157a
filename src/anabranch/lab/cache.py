"""Artefacts that are built once and kept: trees of arrays and plain values, addressed by what they were built from.

The key is the builder's qualified name, its arguments, the seed and a hash of the code it imports. An entry is one
safetensors file whose metadata holds the tree and a checksum; it is written beside and renamed, under a lock, so a
crash leaves no half entry and two processes build it once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.lab.code import code_hash
from anabranch.lab.errors import LabError
from anabranch.lab.runs import write_atomically


class DamagedEntry(LabError):
    """A cached artefact whose bytes are not those that were written."""


def cache_key(builder: Callable[..., Any], arguments: Any, seed: int | None) -> str:
    """Key of an artefact: 24 hex digits."""
    module = builder.__module__
    name = f"{module}.{builder.__qualname__}"
    if "<lambda>" in name or "<locals>" in name:
        raise LabError(f"cached: the builder {name} has no stable name; use a function at module level")
    own = (
        hashlib.sha256(inspect.getsource(sys.modules[module]).encode()).hexdigest()
        if module == "__main__"
        else code_hash(module)
    )
    text = json.dumps([name, _canonical(arguments), seed, own], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def cached(
    folder: Path, key: str, build: Callable[[], Any], *, fresh: bool = False, note: Callable[[str], None] | None = None
) -> tuple[Any, bool]:
    """The artefact ``key`` in ``folder``, built where it is missing, damaged or ``fresh``; and whether it was there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.safetensors"
    with _locked(folder / f"{key}.lock"):
        if path.exists() and not fresh:
            try:
                return load_tree(path), True
            except DamagedEntry as error:
                if note is not None:
                    note(f"{error}; it is built again")
        value = build()
        save_tree(path, value)
    # What the caller gets is what every later caller gets: read back, not the builder's own object.
    return load_tree(path), False


def save_tree(path: Path, value: Any) -> None:
    """Write nested dicts, lists and tuples of arrays (numpy, torch) and plain values to one safetensors file.

    Raises:
        TypeError: a leaf is neither an array nor a plain value; the message gives its place in the tree.
    """
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray[Any, Any]] = {}
    structure = _flatten(value, "", arrays)
    tree = json.dumps(structure)
    write_atomically(path, save(arrays, metadata={"tree": tree, "sha256": _checksum(tree, arrays)}))


def load_tree(path: Path) -> Any:
    """Read what :func:`save_tree` wrote.

    Raises:
        DamagedEntry: the file is not whole.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        raw = path.read_bytes()
        head = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        arrays = load(raw)
        if _checksum(head["tree"], arrays) != head["sha256"]:
            raise ValueError("checksum differs")
        return _unflatten(json.loads(head["tree"]), arrays)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DamagedEntry(f"cached artefact {path.name} is damaged ({error})") from error


def _checksum(tree: str, arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    digest = hashlib.sha256(tree.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\0{name}\0{array.dtype}\0{array.shape}\0".encode() + array.tobytes())
    return digest.hexdigest()


def _flatten(value: Any, place: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return {"v": value}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"cached value at {place or 'the root'}: dictionary keys must be strings")
        return {"d": {key: _flatten(item, f"{place}/{key}", arrays) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        kind = "t" if isinstance(value, tuple) else "l"
        return {kind: [_flatten(item, f"{place}/{index}", arrays) for index, item in enumerate(value)]}
    if isinstance(value, np.generic):
        return {"v": value.item()}
    name = str(len(arrays))
    if isinstance(value, np.ndarray):
        arrays[name] = np.ascontiguousarray(value)
        # ascontiguousarray makes a 0-d array 1-d, so the shape is kept beside it
        return {"a": name, "shape": list(value.shape)}
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            arrays[name] = tensor.view(torch.int16).numpy()
            return {"a": name, "shape": list(value.shape), "torch": "bfloat16"}
        arrays[name] = tensor.numpy()
        return {"a": name, "shape": list(value.shape), "torch": "same"}
    raise TypeError(
        f"cached value at {place or 'the root'}: {type(value).__name__} is neither an array nor a plain value"
    )


def _unflatten(node: dict[str, Any], arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if "v" in node:
        return node["v"]
    if "d" in node:
        return {key: _unflatten(item, arrays) for key, item in node["d"].items()}
    if "l" in node:
        return [_unflatten(item, arrays) for item in node["l"]]
    if "t" in node:
        return tuple(_unflatten(item, arrays) for item in node["t"])
    array = arrays[node["a"]].reshape(node["shape"])
    if "torch" not in node:
        return array
    import torch

    tensor = torch.from_numpy(array.copy())
    return tensor.view(torch.bfloat16) if node["torch"] == "bfloat16" else tensor


def _canonical(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__qualname__, **{k: _canonical(v) for k, v in asdict(value).items()}}
    if isinstance(value, dict):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, Path):
        return str(value)
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise LabError(f"cached: an argument of type {type(value).__name__} has no stable key; pass plain values or arrays")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
