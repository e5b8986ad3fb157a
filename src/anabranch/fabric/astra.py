"""Files for ASTRA-sim: the analytical back end's network, the system layer, and the logical topology of packet back ends.

Formats as in the examples of ASTRA-sim 2 (``examples/network/analytical``, ``examples/ns3``). What an analytical network can
say is little: one kind of switch per dimension, no single links, no failures, no paths. The files of :mod:`anabranch.fabric.ns3`
say it all.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anabranch.fabric._checks import choice, positive_int
from anabranch.fabric.fat_tree import FatTree
from anabranch.fabric.topology import LeafSpine, Topology

GIGABYTE = 2**30
"""Bytes in the gigabyte of ASTRA-sim's analytical back end, which multiplies by 1 << 30 (some forks by 1e9)."""

_ALGORITHMS = {
    "ring": "ring",
    "direct": "direct",
    "halving-doubling": "halvingDoubling",
    "double-binary-tree": "doubleBinaryTree",
}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
_KEYS = ("topology", "npus_count", "bandwidth", "latency")
_BLOCKS = ("Ring", "FullyConnected", "Switch")


@dataclass(frozen=True)
class AstraNetwork:
    """A network of the analytical back end: NPUs in a grid of one or more dimensions, one kind of block in each.

    Attributes:
        blocks: "Ring", "FullyConnected" or "Switch", innermost dimension first.
        npus: NPUs per dimension; their product is the number of NPUs.
        bandwidth_bytes_per_s: of one NPU in each dimension, one way.
        latency_s: of one link in each dimension; a Switch has two links between NPUs.
    """

    blocks: tuple[str, ...]
    npus: tuple[int, ...]
    bandwidth_bytes_per_s: tuple[float, ...]
    latency_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if (
            not self.blocks
            or len({len(self.blocks), *map(len, (self.npus, self.bandwidth_bytes_per_s, self.latency_s))}) > 1
        ):
            raise ValueError(
                "blocks, npus, bandwidth_bytes_per_s, latency_s must have one entry per dimension, got "
                f"{len(self.blocks)}, {len(self.npus)}, {len(self.bandwidth_bytes_per_s)}, {len(self.latency_s)}"
            )
        for block, count in zip(self.blocks, self.npus, strict=True):
            choice("blocks", block, _BLOCKS)
            positive_int("npus", count)
        for name, low in (("bandwidth_bytes_per_s", 0.0), ("latency_s", -1.0)):
            for value in getattr(self, name):
                if not (np.isfinite(value) and value > low and value >= 0):
                    raise ValueError(f"{name} must be finite and {'> 0' if low == 0 else '>= 0'}, got {value}")

    @property
    def n_npus(self) -> int:
        """Number of NPUs."""
        return int(np.prod(self.npus))

    def to_yaml(self, *, gigabyte: int = GIGABYTE) -> str:
        """The network file (``--network-configuration`` of the analytical back end): GB/s and ns.

        Args:
            gigabyte: bytes in a GB of the program that reads the file.
        """
        rows = self._rows(gigabyte)
        units = {"bandwidth": "  # GB/s", "latency": "  # ns"}
        return "".join(f"{key}: [ {', '.join(map(str, rows[key]))} ]{units.get(key, '')}\n" for key in _KEYS)

    def to_json(self, *, gigabyte: int = GIGABYTE) -> str:
        """The same as JSON, which newer versions read too."""
        return json.dumps(self._rows(gigabyte), indent=2) + "\n"

    def _rows(self, gigabyte: int) -> dict[str, list[Any]]:
        positive_int("gigabyte", gigabyte)
        return {
            "topology": list(self.blocks),
            "npus_count": list(self.npus),
            "bandwidth": [float(b) / gigabyte for b in self.bandwidth_bytes_per_s],
            "latency": [float(s) * 1e9 for s in self.latency_s],
        }


def astra_network(topology: Topology) -> AstraNetwork:
    """The fabric as nested switches: a leaf, then (in a fat tree a pod, then) the top.

    NPUs under one leaf form the first dimension, at the NIC's rate. A NPU's rate in a higher dimension is its share of what
    leaves the switches below it, at most the NIC's; the latency of its two links is half that of the path. The back end gives a
    NPU one port per dimension, where the fabric gives it one for all: traffic in several dimensions at once is counted too fast.

    Raises:
        TypeError: not a LeafSpine or FatTree.
        ValueError: rates or latencies that differ inside a tier, leaves of different sizes, or failed links, which these
            files cannot express.
    """
    if not isinstance(topology, (LeafSpine, FatTree)):
        raise TypeError(f"topology must be a LeafSpine or a FatTree, got {type(topology).__name__}")
    if len(topology.failed):
        raise ValueError(f"topology must have no failed links, got {topology.failed.tolist()}")
    n = topology.n_nics
    hosts = np.bincount(topology.leaf_of(np.arange(n)))
    nic = _one("NIC rates", topology.capacity_bytes_per_s[: 2 * n])
    latency = _one("latencies", topology.latency_s)
    h = int(_one("NICs per leaf", hosts))
    if isinstance(topology, LeafSpine):
        up = _one("fabric rates", topology.capacity_bytes_per_s[2 * n :])
        shares, counts = [up * topology.n_spines / h], [topology.n_leaves]
    else:
        tor = topology.tor_bytes_per_s * topology.aggs_per_pod / h
        core = topology.core_bytes_per_s * topology.cores_per_plane * topology.aggs_per_pod
        shares = [tor, min(tor, core / (h * topology.tors_per_pod))]
        counts = [topology.tors_per_pod, topology.n_pods]
    return AstraNetwork(
        ("Switch",) * (1 + len(counts)),
        (h, *counts),
        (nic, *(min(nic, share) for share in shares)),
        tuple(latency * (tier + 1) for tier in range(1 + len(counts))),
    )


def read_astra_network(path: str | Path, *, gigabyte: int = GIGABYTE) -> AstraNetwork:
    """Reads a network file of the analytical back end, YAML or JSON.

    Raises:
        ValueError: with the line, for one that is no ``key: [ a, b ]``; a key that is missing or unknown; a wrong value.
    """
    positive_int("gigabyte", gigabyte)
    text = Path(path).read_text(encoding="utf-8")
    if text.lstrip().startswith("{"):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    else:
        rows = _yaml_lists(path, text)
    if set(rows) != set(_KEYS):
        raise ValueError(f"{path}: keys must be {', '.join(_KEYS)}, got {', '.join(map(str, rows))}")
    try:
        return AstraNetwork(
            tuple(str(block) for block in rows["topology"]),
            tuple(int(count) for count in rows["npus_count"]),
            tuple(float(rate) * gigabyte for rate in rows["bandwidth"]),
            tuple(float(delay) * 1e-9 for delay in rows["latency"]),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def astra_system(network: AstraNetwork, algorithm: str | Iterable[str] = "ring", **options: Any) -> dict[str, Any]:
    """The system file (``--system-configuration``): which algorithm every dimension uses for every collective.

    Args:
        network: for the number of dimensions.
        algorithm: "ring", "direct", "halving-doubling" or "double-binary-tree", one for all dimensions or one for each.
        options: more keys, with ``_`` for ``-``, or other values, e.g. ``preferred_dataset_splits=4``.

    Returns:
        What to write with ``json.dump``.

    Raises:
        ValueError: an unknown algorithm, not one for each dimension.
    """
    names = [algorithm] * len(network.blocks) if isinstance(algorithm, str) else list(algorithm)
    if len(names) != len(network.blocks):
        raise ValueError(f"algorithm must name one for each of the {len(network.blocks)} dimensions, got {len(names)}")
    chosen = [_ALGORITHMS[choice("algorithm", name, tuple(_ALGORITHMS))] for name in names]
    system: dict[str, Any] = {
        "scheduling-policy": "LIFO",
        "endpoint-delay": 0,
        "active-chunks-per-dimension": 1,
        "preferred-dataset-splits": 1,
    }
    system |= {f"{collective}-implementation": list(chosen) for collective in _COLLECTIVES}
    system |= {"collective-optimization": "baseline", "local-mem-bw": 1600, "boost-mode": 0}
    return system | {key.replace("_", "-"): value for key, value in options.items()}


def astra_logical_topology(n_npus: int) -> dict[str, list[str]]:
    """The logical topology of the packet back ends: all NPUs in one dimension."""
    return {"logical-dims": [str(positive_int("n_npus", n_npus))]}


def _one(what: str, values: np.ndarray) -> float:
    if (values != values[0]).any():
        raise ValueError(f"topology must have equal {what} in a tier, got {values.min()} to {values.max()}")
    return float(values[0])


def _yaml_lists(path: str | Path, text: str) -> dict[str, list[str]]:
    rows = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.split("#")[0].strip()
        if not stripped:
            continue
        match = re.fullmatch(r"(\w+)\s*:\s*\[(.*)\]", stripped)
        if match is None:
            raise ValueError(f"{path}, line {number}: expected key: [ a, b ], got {stripped!r}")
        rows[match[1]] = [entry.strip().strip("\"'") for entry in match[2].split(",")]
    return rows
