"""Traffic: who sends how many bytes to whom, when; and its reduction to leaves."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int32, Int64

from anabranch.fabric._checks import ArrayLike, frozen, integers, positive_int
from anabranch.fabric.topology import Topology


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Traffic:
    """Flows as a structure of arrays, read-only. Flow ``i`` sends ``size_bytes[i]`` from NIC ``src[i]`` to ``dst[i]``.

    All flows of a step start together, in every group; step t + 1 starts when step t has ended (a barrier), or NIC by
    NIC as its own flows of step t end, as the simulator is told. Inputs broadcast to one length; flows from a NIC to
    itself are dropped and counted in ``n_self_flows``. Planners take all flows of a step as simultaneous, whatever their
    start times.

    Args:
        src, dst: NIC ids, >= 0.
        size_bytes: whole bytes, > 0.
        step: number of the step, >= 0; steps without a flow are allowed.
        group: which communicator (which of several collectives that run side by side) the flow belongs to, >= 0.
        start_s: earliest start of each flow in seconds, >= 0, or None for 0.

    Raises:
        TypeError, ValueError: not integers, negative ids, sizes <= 0, shapes that do not broadcast.
    """

    src: Int32[np.ndarray, "flows"]
    dst: Int32[np.ndarray, "flows"]
    size_bytes: Int64[np.ndarray, "flows"]
    step: Int32[np.ndarray, "flows"]
    group: Int32[np.ndarray, "flows"]
    start_s: Float64[np.ndarray, "flows"] | None
    n_self_flows: int

    def __init__(
        self,
        src: ArrayLike,
        dst: ArrayLike,
        size_bytes: ArrayLike,
        step: ArrayLike = 0,
        group: ArrayLike = 0,
        start_s: ArrayLike | None = None,
    ) -> None:
        columns = [
            integers(name, value, low=1 if name == "size_bytes" else 0, high=high, dtype=dtype)
            for name, value, dtype, high in (
                ("src", src, np.int32, 2**31),
                ("dst", dst, np.int32, 2**31),
                ("size_bytes", size_bytes, np.int64, None),
                ("step", step, np.int32, 2**31),
                ("group", group, np.int32, 2**31),
            )
        ]
        if start_s is not None:
            start = np.asarray(start_s, dtype=np.float64)
            wrong = ~(np.isfinite(start) & (start >= 0))
            if wrong.any():
                raise ValueError(f"start_s must be finite and >= 0 s, got {start[wrong].flat[0]}")
            columns.append(start)
        try:
            columns = [np.atleast_1d(c) for c in np.broadcast_arrays(*columns)]
        except ValueError as error:
            shapes = ", ".join(str(c.shape) for c in columns)
            raise ValueError(
                f"src, dst, size_bytes, step, group, start_s must have one length, got {shapes}"
            ) from error
        if columns[0].ndim != 1:
            raise ValueError(f"src must have one dimension, got shape {columns[0].shape}")
        moves = columns[0] != columns[1]
        object.__setattr__(self, "n_self_flows", int(len(moves) - moves.sum()))
        object.__setattr__(self, "start_s", None)
        for name, column in zip(("src", "dst", "size_bytes", "step", "group", "start_s"), columns, strict=False):
            object.__setattr__(self, name, frozen(column[moves]))

    def __repr__(self) -> str:
        return f"Traffic({self.n_flows} flows, {self.total_bytes} bytes, {self.n_steps} steps)"

    @property
    def n_flows(self) -> int:
        """Number of flows."""
        return len(self.src)

    @property
    def total_bytes(self) -> int:
        """Sum of all flow sizes."""
        return int(self.size_bytes.sum())

    @property
    def n_steps(self) -> int:
        """One more than the highest step number; 0 without flows."""
        return int(self.step.max()) + 1 if self.n_flows else 0

    def check_fits(self, topology: Topology) -> None:
        """Raises ValueError if a NIC is not in the fabric."""
        for name, nics in (("src", self.src), ("dst", self.dst)):
            integers(f"traffic.{name}", nics, low=0, high=topology.n_nics)

    def flows_by_step(self) -> Iterator[tuple[int, Int64[np.ndarray, "flows_of_step"]]]:
        """(step, indices of its flows in their order), steps ascending, empty steps left out. O(F log F)."""
        if not self.n_flows:
            return
        order = np.argsort(self.step, kind="stable")
        starts = np.flatnonzero(np.diff(self.step[order], prepend=-1))
        for flows in np.split(order, starts[1:]):
            yield int(self.step[flows[0]]), flows

    def select(self, flows: ArrayLike) -> "Traffic":
        """The flows with the given indices or mask."""
        pick = np.asarray(flows)
        start = None if self.start_s is None else self.start_s[pick]
        return Traffic(self.src[pick], self.dst[pick], self.size_bytes[pick], self.step[pick], self.group[pick], start)

    def placed(self, placement: ArrayLike) -> "Traffic":
        """Ranks replaced by NICs: rank r sits on NIC ``placement[r]``.

        Raises:
            ValueError: a rank without a NIC, two ranks on one NIC.
        """
        nics = check_placement(placement)
        for name, ranks in (("src", self.src), ("dst", self.dst)):
            integers(f"{name} (rank)", ranks, low=0, high=len(nics))
        return Traffic(nics[self.src], nics[self.dst], self.size_bytes, self.step, self.group, self.start_s)


def concatenate(*traffics: Traffic, one_after_the_other: bool = False) -> Traffic:
    """Joins traffic; steps keep their numbers (side by side), or are renumbered to follow one another."""
    offset, steps = 0, []
    for traffic in traffics:
        steps.append(traffic.step + np.int32(offset))
        offset += traffic.n_steps if one_after_the_other else 0
    starts = [np.zeros(t.n_flows) if t.start_s is None else t.start_s for t in traffics]
    empty = np.zeros(0, dtype=np.int32)
    joined = {
        name: np.concatenate([empty, *(getattr(t, name) for t in traffics)])
        for name in ("src", "dst", "size_bytes", "group")
    }
    return Traffic(
        **joined,
        step=np.concatenate([empty, *steps]),
        start_s=None if all(t.start_s is None for t in traffics) else np.concatenate(starts),
    )


def check_placement(placement: ArrayLike, n_nics: int | None = None) -> Int32[np.ndarray, "ranks"]:
    """The placement as int32 NIC ids, one per rank.

    Raises:
        ValueError: a NIC is negative, outside a fabric of ``n_nics``, or taken twice.
    """
    nics = integers("placement", placement, low=0, high=2**31 if n_nics is None else n_nics, dtype=np.int32)
    order = np.argsort(nics, kind="stable")
    twice = np.flatnonzero(np.diff(nics[order]) == 0)
    if len(twice):
        first, second = sorted(int(r) for r in order[twice[0] : twice[0] + 2])
        raise ValueError(
            f"placement must put every rank on its own NIC, got NIC {nics[first]} for ranks {first} and {second}"
        )
    return nics


def read_traffic(path: str | Path) -> Traffic:
    """Reads a csv ``src,dst,bytes[,start_s]`` (with this header), bytes and seconds.

    Raises:
        ValueError: with the line number, for a wrong header, a missing or extra field, a value that is not of its kind,
            a size <= 0, a negative id or time.
    """
    rows = _csv_rows(Path(path), (("src", "dst", "bytes"), ("src", "dst", "bytes", "start_s")))
    columns: list[list[float]] = [[], [], [], []]
    for line, row in rows:
        for name, column in zip(row, columns, strict=False):
            low = {"bytes": 1, "start_s": 0.0}.get(name, 0)
            column.append(_number(path, line, name, row[name], low))
    src, dst, size = (np.array(c, dtype=np.int64) for c in columns[:3])
    return Traffic(src, dst, size, start_s=np.array(columns[3]) if columns[3] else None)


def read_placement(path: str | Path, *, n_nics: int | None = None) -> Int32[np.ndarray, "ranks"]:
    """Reads a csv ``rank,nic`` (with this header), in any order of ranks; returns the NIC of every rank.

    Raises:
        ValueError: with the line number, for a rank or NIC given twice, a NIC outside ``n_nics``, a value that is not a
            whole number >= 0; and for ranks that are missing from 0 to the highest.
    """
    rank_line: dict[int, int] = {}
    nic_line: dict[int, int] = {}
    nic_of: dict[int, int] = {}
    for line, row in _csv_rows(Path(path), (("rank", "nic"),)):
        rank, nic = (int(_number(path, line, name, row[name], 0)) for name in ("rank", "nic"))
        if n_nics is not None and nic >= n_nics:
            raise ValueError(f"{path}, line {line}: nic must be < {n_nics}, got {nic}")
        for what, value, seen in (("rank", rank, rank_line), ("nic", nic, nic_line)):
            if value in seen:
                raise ValueError(f"{path}, line {line}: {what} {value} was given on line {seen[value]} already")
            seen[value] = line
        nic_of[rank] = nic
    missing = [rank for rank in range(len(nic_of)) if rank not in nic_of]
    if missing:
        raise ValueError(f"{path}: ranks must run from 0 without gaps, rank {missing[0]} is missing")
    return np.array([nic_of[rank] for rank in range(len(nic_of))], dtype=np.int32)


def _csv_rows(path: Path, headers: tuple[tuple[str, ...], ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of the data lines; blank lines are skipped."""
    expected = " or ".join(",".join(header) for header in headers)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        names: tuple[str, ...] | None = None
        for fields in reader:
            stripped = tuple(value.strip() for value in fields)
            if not any(stripped):
                continue
            if names is None:
                names = stripped
                if names not in headers:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: header must be {expected}, got {','.join(names)}"
                    )
            elif len(stripped) != len(names):
                raise ValueError(
                    f"{path}, line {reader.line_num}: expected {len(names)} fields ({','.join(names)}), got {len(stripped)}"
                )
            else:
                yield reader.line_num, dict(zip(names, stripped, strict=True))
        if names is None:
            raise ValueError(f"{path}: header must be {expected}, got an empty file")


def _number(path: str | Path, line: int, name: str, text: str, low: int | float) -> int | float:
    kind = float if isinstance(low, float) else int
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value < 2**62:
        what = "number of seconds" if kind is float else "whole number"
        raise ValueError(f"{path}, line {line}: {name} must be a {what} >= {low:g}, got {text!r}")
    return value


@dataclass(frozen=True, eq=False, init=False)
class LeafDemand:
    """Many equal flows counted per pair of leaves, so that none of them is listed (all-to-all of 16,384 NICs: 267 M flows).

    Args:
        counts: number of flows from leaf a to leaf b, >= 0; the diagonal (flows inside a leaf) uses no spine.
        flow_bytes: size of each flow, > 0.

    Raises:
        ValueError, TypeError: not a square matrix of integers >= 0, a size <= 0.
    """

    counts: Int64[np.ndarray, "leaves leaves"]
    flow_bytes: int

    def __init__(self, counts: ArrayLike, flow_bytes: int) -> None:
        counts = integers("counts", counts, low=0)
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
            raise ValueError(f"counts must be a square matrix of leaf pairs, got shape {counts.shape}")
        object.__setattr__(self, "counts", frozen(counts.copy()))
        object.__setattr__(self, "flow_bytes", positive_int("flow_bytes", flow_bytes))

    @property
    def n_flows(self) -> int:
        """Number of flows, those inside a leaf included."""
        return int(self.counts.sum())

    @property
    def degree(self) -> int:
        """D: the most inter-leaf flows that one leaf sends or receives."""
        off = self.counts - np.diag(np.diag(self.counts))
        return int(max(off.sum(axis=0).max(), off.sum(axis=1).max()))

    @classmethod
    def from_traffic(cls, topology: Topology, traffic: Traffic) -> "LeafDemand":
        """Counts the flows of one step of equal flows. O(F + L^2).

        Raises:
            ValueError: no flow, different sizes, several steps, a NIC outside the fabric.
        """
        traffic.check_fits(topology)
        if not traffic.n_flows:
            raise ValueError("traffic must have at least one flow, got none")
        for name in ("size_bytes", "step"):
            values = getattr(traffic, name)
            if (values != values[0]).any():
                raise ValueError(f"traffic must have one {name}, got {int(values.min())} to {int(values.max())}")
        n = topology.n_leaves
        pair = topology.leaf_of(traffic.src).astype(np.int64) * n + topology.leaf_of(traffic.dst)
        return cls(np.bincount(pair, minlength=n * n).reshape(n, n), int(traffic.size_bytes[0]))

    @classmethod
    def all_to_all(cls, topology: Topology, flow_bytes: int) -> "LeafDemand":
        """Every NIC sends ``flow_bytes`` to every other NIC. O(N + L^2)."""
        hosts = np.bincount(topology.leaf_of(np.arange(topology.n_nics)), minlength=topology.n_leaves)
        return cls(np.outer(hosts, hosts) - np.diag(hosts), flow_bytes)
