"""Plans: which piece of which flow takes which path, and the load that this puts on the links.

Steps run one after the other, so loads of different steps never meet on a link: the maximum congestion of a plan is the
maximum over steps and links, and the sum over steps of each step's maximum is a lower bound of the completion time when
steps are separated by barriers.
"""

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int32, Int64

from anabranch.fabric._checks import ArrayLike, choice, frozen, integers
from anabranch.fabric.topology import Topology
from anabranch.fabric.traffic import Traffic, _csv_rows, _number

_COLUMNS = ("flow", "step", "src", "dst", "path", "bytes")


class _Loads(ABC):
    """Link loads; a subclass lists them as sparse (step, link, bytes) without repetition."""

    topology: Topology
    traffic: Traffic

    @abstractmethod
    def step_loads(self) -> tuple[Int32[np.ndarray, "n"], Int32[np.ndarray, "n"], np.ndarray]:
        """Non-zero loads as (step, link, bytes), sorted by step then link, each pair once."""

    def loads_bytes(self, step: int | None = None) -> np.ndarray:
        """Bytes per link [n_links], of one step or of all steps together."""
        steps, links, loads = self.step_loads()
        chosen = slice(None) if step is None else slice(*np.searchsorted(steps, [step, step + 1]))
        total = np.zeros(self.topology.n_links, dtype=loads.dtype)
        np.add.at(total, links[chosen], loads[chosen])
        return total

    def congestion_s(self, step: int | None = None) -> Float64[np.ndarray, "links"]:
        """Load over capacity per link, in seconds; infinite where bytes are sent over a failed link."""
        loads = self.loads_bytes(step)
        return np.where(self.topology.is_failed & (loads > 0), np.inf, loads / self.topology.capacity_bytes_per_s)

    def step_congestion_s(self, fabric_only: bool = True) -> Float64[np.ndarray, "steps"]:
        """Highest congestion of any link in each step [n_steps]; 0 for a step without flows."""
        steps, links, loads = self.step_loads()
        if fabric_only:
            inside = self.topology.is_fabric_link[links]
            steps, links, loads = steps[inside], links[inside], loads[inside]
        seconds = loads / self.topology.capacity_bytes_per_s[links]
        seconds = np.where(self.topology.is_failed[links], np.inf, seconds)
        worst = np.zeros(self.traffic.n_steps)
        np.maximum.at(worst, steps, seconds)
        return worst

    def max_congestion_s(self, fabric_only: bool = True) -> float:
        """Highest congestion of any link in any step, in seconds: no step with this load ends earlier. 0 without flows."""
        return float(self.step_congestion_s(fabric_only).max(initial=0.0))

    def bottleneck_s(self, fabric_only: bool = False) -> float:
        """Sum over steps of the highest congestion: a lower bound of the completion time with barriers, in seconds."""
        return float(self.step_congestion_s(fabric_only).sum())


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Plan(_Loads):
    """Every flow cut into pieces, each on one path. Read-only arrays; pieces of a flow add up to its size, to the byte.

    Args:
        topology, traffic: what the plan is for.
        parent: the flow of each piece, ascending.
        path: the path of each piece, numbered as in ``topology.paths``.
        size_bytes: whole bytes of each piece, > 0.

    Raises:
        ValueError, TypeError: lengths differ, a flow out of range, a flow whose pieces do not add up to its size.
    """

    topology: Topology
    traffic: Traffic
    parent: Int64[np.ndarray, "pieces"]
    path: Int32[np.ndarray, "pieces"]
    size_bytes: Int64[np.ndarray, "pieces"]

    def __init__(
        self, topology: Topology, traffic: Traffic, parent: ArrayLike, path: ArrayLike, size_bytes: ArrayLike
    ) -> None:
        flows = traffic.n_flows
        parent = integers("parent", parent, low=0, high=flows)
        path = integers("path", path, low=0, dtype=np.int32)
        size = integers("size_bytes", size_bytes, low=1)
        if not len(parent) == len(path) == len(size):
            raise ValueError(
                f"parent, path, size_bytes must have one length, got {len(parent)}, {len(path)}, {len(size)}"
            )
        if (parent[1:] < parent[:-1]).any():
            order = np.argsort(parent, kind="stable")
            parent, path, size = parent[order], path[order], size[order]
        starts = np.flatnonzero(np.diff(parent, prepend=-1))
        sums = np.zeros(flows, dtype=np.int64)
        sums[parent[starts]] = np.add.reduceat(size, starts) if len(starts) else 0
        wrong = sums != traffic.size_bytes
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(
                f"size_bytes of the pieces of flow {i} must add up to {int(traffic.size_bytes[i])}, got {int(sums[i])}"
            )
        object.__setattr__(self, "topology", topology)
        object.__setattr__(self, "traffic", traffic)
        for name, array in (("parent", parent), ("path", path), ("size_bytes", size)):
            object.__setattr__(self, name, frozen(array))

    def __repr__(self) -> str:
        return f"Plan({self.n_pieces} pieces of {self.traffic.n_flows} flows on {self.topology!r})"

    @property
    def n_pieces(self) -> int:
        """Number of pieces."""
        return len(self.parent)

    @property
    def extra_queue_pairs(self) -> int:
        """Pieces beyond one per flow."""
        return self.n_pieces - self.traffic.n_flows

    def piece_links(self) -> tuple[Int64[np.ndarray, "pieces_plus_1"], Int32[np.ndarray, "hops"]]:
        """Links of every piece in travel order: piece ``i`` uses ``links[indptr[i]:indptr[i + 1]]``."""
        return self.topology.paths(self.traffic.src[self.parent], self.traffic.dst[self.parent], self.path)

    def step_loads(self) -> tuple[Int32[np.ndarray, "n"], Int32[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
        """Non-zero loads as (step, link, whole bytes), sorted by step then link, each pair once. O(hops log hops)."""
        indptr, links = self.piece_links()
        step = np.repeat(self.traffic.step[self.parent], np.diff(indptr))
        size = np.repeat(self.size_bytes, np.diff(indptr))
        return sum_loads(step, links, size, self.topology.n_links)

    def queue_pairs_per_nic(self, direction: str = "both") -> Int64[np.ndarray, "nics"]:
        """Queue pairs that each NIC holds: one per piece at both of its ends.

        A queue pair serves one (source, destination, path) and is used again in later steps; pieces that run in the same
        step need one each.

        Args:
            direction: count pieces that the NIC sends ("send"), receives ("receive"), or both.
        """
        choice("direction", direction, ("both", "send", "receive"))
        src, dst = self.traffic.src[self.parent], self.traffic.dst[self.parent]
        order = np.lexsort((self.traffic.step[self.parent], self.path, dst, src))
        keys = np.stack([src[order], dst[order], self.path[order], self.traffic.step[self.parent][order]])
        counts = np.zeros(self.topology.n_nics, dtype=np.int64)
        if not keys.size:
            return counts
        changes = (np.diff(keys, axis=1) != 0).any(axis=0)
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
        at_once = np.diff(starts, append=keys.shape[1])
        connection = np.diff(keys[:3, starts], axis=1, prepend=-1).any(axis=0)
        heads = np.flatnonzero(connection)
        needed = np.maximum.reduceat(at_once, heads)
        for wanted, row in (("send", 0), ("receive", 1)):
            if direction in ("both", wanted):
                np.add.at(counts, keys[row, starts][heads], needed)
        return counts

    def to_csv(self, path: str | Path) -> None:
        """Writes one line a piece: ``flow,step,src,dst,path,bytes``, and ``start_s`` where flows have start times."""
        columns = np.stack(
            [
                self.parent,
                self.traffic.step[self.parent],
                self.traffic.src[self.parent],
                self.traffic.dst[self.parent],
                self.path,
                self.size_bytes,
            ],
            axis=1,
        )
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            start_s = self.traffic.start_s
            if start_s is None:
                writer.writerow(_COLUMNS)
                writer.writerows(columns.tolist())
            else:
                writer.writerow((*_COLUMNS, "start_s"))
                writer.writerows(
                    [*row, start] for row, start in zip(columns.tolist(), start_s[self.parent].tolist(), strict=True)
                )

    @classmethod
    def from_csv(cls, path: str | Path, topology: Topology, traffic: Traffic | None = None) -> "Plan":
        """Reads what :meth:`to_csv` wrote. O(pieces log pieces), about 5 us a piece.

        Args:
            path: the file; its lines may be in any order.
            topology: the fabric of the plan; links may have failed since (see :func:`anabranch.fabric.replan`).
            traffic: what the plan is for. Without it the flows are those of the file, which knows no groups.

        Raises:
            ValueError: with the line, for a wrong header, a value that is not a number in range, a NIC or path that the
                fabric does not have, a piece that is not of its flow; for flows without a piece or with other bytes.
        """
        lines, rows, starts = [], [], []
        for line, row in _csv_rows(Path(path), (_COLUMNS, (*_COLUMNS, "start_s"))):
            lines.append(line)
            rows.append([_number(path, line, name, row[name], int(name == "bytes")) for name in _COLUMNS])
            if "start_s" in row:
                starts.append(_number(path, line, "start_s", row["start_s"], 0.0))
        table = np.array(rows, dtype=np.int64).reshape(-1, len(_COLUMNS))
        flow, step, src, dst, number, size = table.T

        def refuse(wrong: np.ndarray, what: Callable[[int], str]) -> None:
            if wrong.any():
                i = int(np.argmax(wrong))
                raise ValueError(f"{path}, line {lines[i]}: {what(i)}")

        n_nics, most = topology.n_nics, 2**31 - 1
        refuse(step > most, lambda i: f"step must be <= {most}, got {step[i]}")
        refuse(src >= n_nics, lambda i: f"src must be < {n_nics}, the NICs of the fabric, got {src[i]}")
        refuse(dst >= n_nics, lambda i: f"dst must be < {n_nics}, the NICs of the fabric, got {dst[i]}")
        refuse(src == dst, lambda i: f"dst must differ from src, got {dst[i]} for both")
        paths = topology.n_paths(src, dst)
        refuse(number >= paths, lambda i: f"path must be < {paths[i]} from NIC {src[i]} to {dst[i]}, got {number[i]}")
        if traffic is None:
            found, first = np.unique(flow, return_index=True)
            gap = np.flatnonzero(found != np.arange(len(found)))
            if len(gap):
                raise ValueError(f"{path}: flows must be numbered from 0 without gaps, flow {gap[0]} is missing")
            sums = np.zeros(len(found), dtype=np.int64)
            np.add.at(sums, flow, size)
            begin = np.array(starts)[first] if starts else None
            traffic = Traffic(src[first], dst[first], sums, step[first], start_s=begin)
            if begin is not None:
                refuse(
                    begin[flow] != starts, lambda i: f"start_s must be {begin[flow[i]]} as elsewhere, got {starts[i]}"
                )
        flows = traffic.n_flows
        refuse(flow >= flows, lambda i: f"flow must be < {flows}, the flows of the traffic, got {flow[i]}")
        own = np.stack([traffic.step, traffic.src, traffic.dst], axis=1)[flow]
        refuse(
            (own != table[:, 1:4]).any(axis=1),
            lambda i: f"step, src, dst of flow {flow[i]} must be {own[i].tolist()}, got {table[i, 1:4].tolist()}",
        )
        try:
            return cls(topology, traffic, flow, number.astype(np.int32), size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True, eq=False)
class SprayPlan(_Loads):
    """Ideal packet spraying: every flow spread evenly over its living paths, as loads; there are no pieces to list.

    Args:
        topology, traffic: what the plan is for.
        step, link, load_bytes: non-zero loads, sorted by step then link, each pair once; fractions of bytes allowed.
    """

    topology: Topology
    traffic: Traffic
    step: Int32[np.ndarray, "n"]
    link: Int32[np.ndarray, "n"]
    load_bytes: Float64[np.ndarray, "n"]

    def step_loads(self) -> tuple[Int32[np.ndarray, "n"], Int32[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
        """Non-zero loads as (step, link, bytes), sorted by step then link, each pair once."""
        return self.step, self.link, self.load_bytes


def sum_loads(
    step: np.ndarray, link: np.ndarray, size: np.ndarray, n_links: int
) -> tuple[Int32[np.ndarray, "n"], Int32[np.ndarray, "n"], np.ndarray]:
    """Sums of ``size`` over equal (step, link): by counting where the table is small and the sums are exact, else sorted."""
    key = step.astype(np.int64) * n_links + link
    cells = int(key.max(initial=-1)) + 1
    if cells <= 4 * len(key) + (1 << 16) and float(size.sum(dtype=np.float64)) < 2**53:
        table = np.bincount(key, weights=size, minlength=cells)
        heads = np.flatnonzero(table)
        return (heads // n_links).astype(np.int32), (heads % n_links).astype(np.int32), table[heads].astype(size.dtype)
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    heads = key[order][starts]
    sums = np.add.reduceat(size[order], starts) if len(starts) else size[:0]
    return (heads // n_links).astype(np.int32), (heads % n_links).astype(np.int32), sums
