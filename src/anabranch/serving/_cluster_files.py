"""Machines and whole clusters from files: JSON lists of machines, TOML files of machines, pools and a model."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from anabranch.serving.cluster import Batching, Cluster, Pool, Transfers
from anabranch.serving.performance import PerformanceModel, ProfileTable
from anabranch.serving.published_profiles import published_performance
from anabranch.simulation import (
    BLOOM_176B,
    DGX_A100,
    DGX_H100,
    DGX_H100_CAPPED,
    GIB,
    LLAMA2_70B,
    Device,
    Machine,
    TransformerShape,
)

# Weights in memory as the released simulator has them.
MODELS = {"bloom-176b": (BLOOM_176B, 329 * 10**9), "llama2-70b": (LLAMA2_70B, 135 * 10**9)}
KNOWN = {machine.name: machine for machine in (DGX_A100, DGX_H100, DGX_H100_CAPPED)}
MOST_MACHINES = 4  # of a search over pairs
_MACHINE = ("name", "hardware", "tensor_parallel", "memory_gib", "network_gbit_per_s", "power_w", "cost_per_hour")
_MAY_LACK = ("device_power_w",)  # then what is drawn is not known
_POOL = ("machine", "count", "role")
_TOP = (
    "model",
    "config",
    "profile",
    "decode_by",
    "scheduler",
    "pending_limit",
    "machines",
    "pools",
    "batching",
    "transfers",
)


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model's size, and its times on machines: measured ones (``table``), or the published medians."""

    name: str
    shape: TransformerShape
    weights: int
    table: ProfileTable | None
    by: str = "context"

    @classmethod
    def of(cls, profile: Path | None, model: str | None, config: Path | None, by: str = "context") -> ServedModel:
        table = ProfileTable.read(profile) if profile is not None else None
        name = model or (
            table.entries[0][0] if table is not None and len({e[0] for e in table.entries}) == 1 else "bloom-176b"
        )
        if config is not None:
            shape = TransformerShape.from_config(name, json.loads(config.read_text(encoding="utf-8")))
            return cls(name, shape, 2 * shape.parameters, table, by)
        if name in MODELS:
            return cls(name, *MODELS[name], table, by)
        raise ValueError(
            f"model {name}: its cache and weights are not known, give its config.json (--config, or config in a cluster's file)"
        )

    @property
    def kv_bytes(self) -> int:
        return self.shape.kv_bytes_per_token()

    def times(self, machine: Machine) -> PerformanceModel:
        if self.table is not None:
            return self.table.model(self.name, machine.device.name, machine.count, by=self.by)
        return published_performance(self.name, machine.device.name, by=self.by)


def read_machines(path: Path) -> list[Machine]:
    """Machines from a JSON list of objects with the keys of ``examples/machines.json``, or the ``[[machines]]`` of a TOML file.

    Raises:
        ValueError: another form; names the entry and what it lacks.
    """
    if path.suffix == ".toml":
        entries = _toml(path).get("machines")
    else:
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: {error}") from error
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST_MACHINES:
        raise ValueError(f"{path}: expected a list of 1 to {MOST_MACHINES} machines")
    return _machines(path, entries)


def read_cluster(path: Path) -> Cluster:
    """A cluster from a TOML file in the form of ``examples/cluster.toml``; paths in it are relative to it.

    Raises:
        ValueError: no TOML, keys that are missing, unknown or of another kind (the message names the key), and what
            :class:`Cluster` refuses.
    """
    data = _toml(path)
    _refuse_unknown(str(path), data, _TOP)
    own = _machines(path, _tables(path, data, "machines"))
    kinds = KNOWN | {machine.name: machine for machine in own}
    pools = []
    for i, entry in enumerate(_tables(path, data, "pools")):
        where = f"{path}, pool {i}"
        _refuse_missing(where, entry, _POOL)
        _refuse_unknown(where, entry, _POOL)
        if entry["machine"] not in kinds:
            raise ValueError(f"{where}: machine = {entry['machine']!r} is none of {', '.join(kinds)}")
        pools.append(_made(where, Pool, kinds[entry["machine"]], _whole(where, entry, "count"), entry["role"]))
    if not pools:
        raise ValueError(f"{path}: there is no [[pools]]")
    by = data.get("decode_by", "context")
    if by not in ("context", "requests"):
        raise ValueError(f"{path}: decode_by = {by!r}: expected 'context' or 'requests'")
    files = [path.parent / data[key] if key in data else None for key in ("profile", "config")]
    for key, file in zip(("profile", "config"), files, strict=True):
        if file is not None and not file.is_file():
            raise ValueError(f"{path}: {key} = {data[key]!r}: there is no such file")
    served = _made(str(path), ServedModel.of, files[0], data.get("model"), files[1], by)
    times = {pool.machine.name: _made(str(path), served.times, pool.machine) for pool in pools}
    mixed = {pool.role for pool in pools} == {"mixed"}
    extra = {"layers": served.shape.layers, **_table(path, data, "transfers")}
    limit = {"pending_limit": _whole(str(path), data, "pending_limit")} if "pending_limit" in data else {}
    return _made(
        str(path), Cluster, tuple(pools), times, served.kv_bytes, served.weights,
        data.get("scheduler", "join_shortest_queue" if mixed else "mixed_pool"),
        _options(path, "batching", Batching, _table(path, data, "batching")),
        _options(path, "transfers", Transfers, extra), **limit,
    )  # fmt: skip


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error


def _tables(path: Path, data: Mapping[str, Any], key: str) -> list[Any]:
    found = data.get(key, [])
    if not isinstance(found, list):
        raise ValueError(f"{path}: {key} must be tables, written as [[{key}]]")
    return found


def _table(path: Path, data: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key, {})
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {key} must be a table, written as [{key}]")
    return found


def _options(path: Path, key: str, kind: Any, given: dict[str, Any]) -> Any:
    where = f"{path}, {key}"
    known = {field.name: field.type for field in fields(kind)}
    _refuse_unknown(where, given, known)
    for name, value in given.items():
        expected = {"str": (str,), "bool": (bool,), "float": (int, float)}.get(_plain(known[name]), (int,))
        if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
            raise ValueError(f"{where}: {name} = {value!r}: expected {_plain(known[name])}")
    return _made(where, kind, **given)


def _plain(annotation: Any) -> str:
    words = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return str(words).removesuffix(" | None")


def _whole(where: str, entry: Mapping[str, Any], key: str) -> int:
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where}: {key} = {value!r}: expected a whole number")
    return value


def _refuse_unknown(where: str, entry: Mapping[str, Any], known: Collection[str]) -> None:
    for key in entry:
        if key not in known:
            raise ValueError(f"{where}: {key} is no key here: expected {', '.join(known)}")


def _refuse_missing(where: str, entry: Any, keys: Collection[str]) -> None:
    missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise ValueError(f"{where}: there is no {', '.join(missing)}")


def _made(where: str, make: Any, *arguments: Any, **options: Any) -> Any:
    """``make(...)`` with the place in the file before its errors."""
    try:
        return make(*arguments, **options)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _machines(path: Path, entries: list[Any]) -> list[Machine]:
    found = [_machine(f"{path}, machine {i}", entry) for i, entry in enumerate(entries)]
    for i, machine in enumerate(found):
        if machine.name in [one.name for one in found[:i]]:
            raise ValueError(f"{path}, machine {i}: name = {machine.name!r} is there twice")
    return found


def _machine(where: str, entry: Any) -> Machine:
    """Power of the whole machine: ``power_w`` is provisioned for it, ``device_power_w`` is what its devices may draw."""
    _refuse_missing(where, entry, _MACHINE)
    _refuse_unknown(where, entry, (*_MACHINE, *_MAY_LACK))
    for key, value in entry.items():
        if key in ("name", "hardware"):
            if not isinstance(value, str):
                raise ValueError(f"{where}: {key} = {value!r}: expected a text")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where}: {key} = {value!r}: expected a number")
    try:
        count = _whole(where, entry, "tensor_parallel")
        device = Device(  # the profile says how fast it is; its own numbers are not asked
            name=entry["hardware"], memory_bytes=int(entry["memory_gib"] * GIB / count), memory_bytes_per_s=1.0,
            flops_per_s=1.0, link_bytes_per_s=0.0, power_w=float(entry.get("device_power_w", math.nan)) / count,
        )  # fmt: skip
        return Machine(
            name=entry["name"], device=device, count=count,
            nic_bytes_per_s=float(entry["network_gbit_per_s"]) * 1e9 / 8, provisioned_w=float(entry["power_w"]),
            cost_per_hour=float(entry["cost_per_hour"]),
        )  # fmt: skip
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{where}: {error}") from error
