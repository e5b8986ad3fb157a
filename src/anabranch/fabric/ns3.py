"""Topology and flow files of the ns-3 RDMA simulators: HPCC's, ASTRA-sim's ns-3 back end, and forks of them.

A topology file: ``nodes switches cables``, the ids of the switches, then one cable a line, ``a b 400Gbps 0.0005ms 0``
(rate, delay, error rate). Hosts are 0 .. N - 1, in the order of the NICs; switches follow. A flow file: the number of flows,
then one a line, ``src dst group port bytes start_s``, by ascending start.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from anabranch.fabric._checks import GBPS, ArrayLike, integers
from anabranch.fabric.graph import GraphTopology, topology_from_networkx
from anabranch.fabric.plan import Plan
from anabranch.fabric.topology import LeafSpine, Topology
from anabranch.fabric.traffic import Traffic

_PRIORITY_GROUP = 3
_FIRST_PORT = 10_000
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_BITS = {"bps": 1.0, "Kbps": 1e3, "Mbps": 1e6, "Gbps": 1e9, "Tbps": 1e12}


def write_ns3_topology(topology: Topology, path: str | Path) -> None:
    """Writes the cables of a fabric; cables that are down in both directions are left out. O(links).

    Raises:
        ValueError: a cable whose directions differ in rate, delay or failure, which the file cannot express.
    """
    names = [topology.link_name(link).rsplit("->", 1) for link in range(topology.n_links)]
    nics = np.arange(topology.n_nics)
    other = np.roll(nics, 1) if topology.n_nics > 1 else nics
    indptr, links = topology.paths(nics, other, 0)
    number = {names[int(links[start])][0]: i for i, start in enumerate(indptr[:-1])}
    for ends in names:
        for end in ends:
            number.setdefault(end, len(number))
    cables: dict[tuple[int, int], int] = {}
    lines = []
    for link, ends in enumerate(names):
        a, b = (number[end] for end in ends)
        back = cables.pop((b, a), None)
        if back is None:
            cables[a, b] = link
            continue
        for values in (topology.capacity_bytes_per_s, topology.latency_s, topology.is_failed):
            if values[link] != values[back]:
                raise ValueError(
                    f"topology must have the same rate, delay and state in both directions of a cable, got {values[back]} "
                    f"on {topology.link_name(back)} and {values[link]} on {topology.link_name(link)}"
                )
        if not topology.is_failed[link]:
            rate, delay = float(topology.capacity_bytes_per_s[link]) / GBPS, float(topology.latency_s[link]) * 1e3
            lines.append((min(a, b), max(a, b), f"{min(a, b)} {max(a, b)} {_short(rate)}Gbps {_short(delay)}ms 0"))
    if cables:
        raise ValueError(
            f"topology must have both directions of every cable, got only {topology.link_name(min(cables.values()))}"
        )
    switches = range(topology.n_nics, len(number))
    head = [f"{len(number)} {len(switches)} {len(lines)}", " ".join(map(str, switches))]
    Path(path).write_text("\n".join(head + [line for _, _, line in sorted(lines)]) + "\n", encoding="utf-8")


def read_ns3_topology(path: str | Path) -> LeafSpine | GraphTopology:
    """Reads a topology file; host i becomes NIC i. More numbers in the first line, as some forks have them, are ignored.

    Raises:
        ValueError: with the line, for a field that is missing or not of its kind; for counts that do not match; and as
            ``Topology.from_networkx`` for the graph.
    """
    rows = _rows(path)
    first, fields = next(rows, (1, []))
    n_nodes, n_switches, n_cables = (_whole(path, first, fields, k) for k in range(3))
    second, ids = next(rows, (2, [])) if n_switches else (first, [])
    switches = {_whole(path, second, ids, k) for k in range(len(ids))}
    if len(switches) != n_switches:
        raise ValueError(f"{path}, line {second}: expected {n_switches} switches, got {len(switches)}")
    graph = _Graph()
    for node in range(n_nodes):
        graph.add_node(node, "switch" if node in switches else "nic")
    for line, fields in rows:
        if len(fields) < 4:
            raise ValueError(f"{path}, line {line}: expected a b rate delay error, got {' '.join(fields)!r}")
        a, b = (_whole(path, line, fields, k) for k in range(2))
        rate = _quantity(path, line, fields[2], _BITS) / 1e9
        graph.add_edge(a, b, rate, _quantity(path, line, fields[3], _SECONDS))
    if len(graph.cables) != n_cables:
        raise ValueError(f"{path}: expected {n_cables} cables, got {len(graph.cables)}")
    return topology_from_networkx(graph)


def write_ns3_flows(
    what: Traffic | Plan, path: str | Path, *, start_s: ArrayLike | None = None, first_port: int = _FIRST_PORT
) -> None:
    """Writes the flows of a traffic or the pieces of a plan, by ascending start. O(F log F).

    The file knows no steps: give the start of each flow where there are several, for instance when the step before ended in a
    simulation. The port of a piece is ``first_port`` plus its path, that of a flow ``first_port``; a switch that hashes will not
    follow it, a simulator with source routing can.

    Args:
        what: flows, or pieces.
        path: of the file.
        start_s: start of each flow [flows], >= 0; None for the traffic's own, or 0.
        first_port: >= 0.

    Raises:
        ValueError: several steps without ``start_s``, a start that is negative or not finite, a port above 65535.
    """
    traffic = what.traffic if isinstance(what, Plan) else what
    if start_s is None:
        if traffic.n_steps > 1 and traffic.start_s is None:
            raise ValueError(f"start_s must be given for traffic of {traffic.n_steps} steps, got None")
        starts = np.zeros(traffic.n_flows) if traffic.start_s is None else traffic.start_s
    else:
        starts = np.asarray(start_s, dtype=np.float64)
        if starts.shape != (traffic.n_flows,):
            raise ValueError(f"start_s must have one entry for each of the {traffic.n_flows} flows, got {starts.shape}")
        if not (np.isfinite(starts) & (starts >= 0)).all():
            raise ValueError(f"start_s must be finite and >= 0 s, got {starts.min()} to {starts.max()}")
    flow = what.parent if isinstance(what, Plan) else np.arange(traffic.n_flows)
    size = what.size_bytes if isinstance(what, Plan) else traffic.size_bytes
    port = first_port + (what.path if isinstance(what, Plan) else np.zeros(traffic.n_flows, dtype=np.int64))
    integers("first_port + path", port, low=0, high=2**16)
    order = np.argsort(starts[flow], kind="stable")
    columns = (traffic.src[flow], traffic.dst[flow], port, size, starts[flow])
    with Path(path).open("w", encoding="utf-8") as file:
        file.write(f"{len(flow)}\n")
        for src, dst, p, b, s in zip(*(column[order].tolist() for column in columns), strict=True):
            file.write(f"{src} {dst} {_PRIORITY_GROUP} {p} {b} {s!r}\n")


def read_ns3_flows(path: str | Path) -> tuple[Traffic, Int64[np.ndarray, "flows"]]:
    """The flows of a file, and their ports, in the order of the file.

    Raises:
        ValueError: with the line, for a field that is missing or not of its kind; a count that does not match.
    """
    rows = _rows(path)
    first, fields = next(rows, (1, []))
    expected = _whole(path, first, fields, 0)
    flows: list[list[int]] = []
    starts: list[float] = []
    for line, fields in rows:
        if len(flows) == expected:
            break  # files explain themselves after the last flow
        if len(fields) != 6:
            raise ValueError(f"{path}, line {line}: expected src dst group port bytes start, got {' '.join(fields)!r}")
        flows.append([_whole(path, line, fields, k) for k in (0, 1, 3, 4)])
        starts.append(_quantity(path, line, fields[5] + "s", _SECONDS))
    if len(flows) != expected:
        raise ValueError(f"{path}: expected {expected} flows, got {len(flows)}")
    columns = np.array(flows, dtype=np.int64).reshape(-1, 4)
    moves = columns[:, 0] != columns[:, 1]
    return Traffic(columns[:, 0], columns[:, 1], columns[:, 3], start_s=np.array(starts)), columns[moves, 2]


class _Graph:
    """As much of a networkx graph as a topology is made from."""

    def __init__(self) -> None:
        self._nodes: list[tuple[str, dict[str, str]]] = []
        self.cables: list[tuple[str, str, dict[str, float]]] = []

    def add_node(self, node: int, kind: str) -> None:
        self._nodes.append((str(node), {"kind": kind}))

    def add_edge(self, a: int, b: int, gbps: float, latency_s: float) -> None:
        self.cables.append((str(a), str(b), {"gbps": gbps, "latency_s": latency_s}))

    def nodes(self, *, data: bool) -> list[tuple[str, dict[str, str]]]:
        return self._nodes

    def edges(self, *, data: bool) -> list[tuple[str, str, dict[str, float]]]:
        return self.cables

    def is_directed(self) -> bool:
        return False


def _short(value: float) -> str:
    """The shortest text that reads as the same number."""
    return str(int(value)) if value.is_integer() else repr(value)


def _rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of the lines that are not blank."""
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if fields := line.split():
                yield number, fields


def _whole(path: str | Path, line: int, fields: list[str], k: int) -> int:
    text: Any = fields[k] if k < len(fields) else None
    if text is None or not text.isdigit():
        raise ValueError(f"{path}, line {line}, field {k + 1}: expected a whole number >= 0, got {text!r}")
    return int(text)


def _quantity(path: str | Path, line: int, text: str, units: dict[str, float]) -> float:
    match = re.fullmatch(r"([0-9.eE+-]+)([A-Za-z]+)", text)
    try:
        if match is None or match[2] not in units:
            raise ValueError
        return float(match[1]) * units[match[2]]
    except ValueError:
        raise ValueError(f"{path}, line {line}: expected a number of {', '.join(units)}, got {text!r}") from None
