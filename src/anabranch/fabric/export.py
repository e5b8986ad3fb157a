"""Plans for real machines: NCCL variables, UDP source ports for a switch's hash, path tables for source routing."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt16

from anabranch.fabric import _kernels_planners
from anabranch.fabric._checks import integers
from anabranch.fabric.plan import Plan
from anabranch.fabric.planners import connection_numbers
from anabranch.fabric.topology import Topology

PathHash = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(src NIC, dst NIC, UDP source port) -> path number, on arrays of one length."""


@dataclass(frozen=True)
class NcclSettings:
    """How NCCL has to cut messages for a plan.

    Attributes:
        queue_pairs_per_connection: most pieces of a flow.
        split_data: whether flows are cut at all.
        is_exact: NCCL cuts every message in equal parts, one per queue pair of its connection. True if the plan does so
            too: all flows in as many pieces, equal up to a byte. Otherwise the settings only come near it, and the path
            table is what carries out the plan.
    """

    queue_pairs_per_connection: int
    split_data: bool
    is_exact: bool

    def environment(self) -> dict[str, str]:
        """The variables to set (names from NCCL's documentation)."""
        return {
            "NCCL_IB_QPS_PER_CONNECTION": str(self.queue_pairs_per_connection),
            "NCCL_IB_SPLIT_DATA_ON_QPS": str(int(self.split_data)),
        }


def nccl_settings(plan: Plan) -> NcclSettings:
    """Queue pairs per connection and the split-data flag of a plan. O(pieces)."""
    pieces = np.bincount(plan.parent, minlength=plan.traffic.n_flows)
    most = int(pieces.max(initial=1))
    starts = np.flatnonzero(np.diff(plan.parent, prepend=-1))
    spread = np.zeros(1, dtype=np.int64)
    if len(starts):
        spread = np.maximum.reduceat(plan.size_bytes, starts) - np.minimum.reduceat(plan.size_bytes, starts)
    return NcclSettings(most, most > 1, bool((pieces == most).all() and (spread <= 1).all()))


def ecmp_hash(topology: Topology, *, seed: int) -> PathHash:
    """The hash of :func:`plan_ecmp` on a fabric without failed links, as a :data:`PathHash`."""
    word = np.uint64(integers("seed", seed, low=0))

    def path_of(src: np.ndarray, dst: np.ndarray, port: np.ndarray) -> np.ndarray:
        mixed = _kernels_planners.hash_flows(src, dst, port, word)
        return np.asarray(mixed % topology.n_paths(src, dst).astype(np.uint64)).astype(np.int64)

    return path_of


def udp_source_ports(
    plan: Plan, path_hash: PathHash, *, first_port: int = 0xC000, last_port: int = 0xFFFF
) -> UInt16[np.ndarray, "pieces"]:
    """The lowest UDP source port of each piece that the switches' hash sends over the piece's path (RoCE v2).

    Pieces between the same NICs over the same path in one step get different ports; later steps use them again.

    Args:
        plan: whose pieces.
        path_hash: what the switches do, e.g. :func:`ecmp_hash`.
        first_port, last_port: range to look in, 49152 to 65535 for RoCE v2.

    Raises:
        ValueError: a wrong range; the pieces whose path no port in it leads to.

    Cost: O(pieces x ports tried), about as many ports as a pair has paths.
    """
    first_port = int(integers("first_port", first_port, low=0, high=2**16))
    last_port = int(integers("last_port", last_port, low=first_port, high=2**16))
    src, dst = plan.traffic.src[plan.parent], plan.traffic.dst[plan.parent]
    # How many ports that lead to the same path have to be left to other pieces of the step.
    skip = _rank_on_path(plan)
    ports = np.zeros(plan.n_pieces, dtype=np.uint16)
    open_ = np.arange(plan.n_pieces)
    for port in range(first_port, last_port + 1):
        if not len(open_):
            break
        path = np.asarray(path_hash(src[open_], dst[open_], np.full(len(open_), port, dtype=np.int64)))
        hit = path == plan.path[open_]
        skip[open_[hit]] -= 1
        done = hit & (skip[open_] < 0)
        ports[open_[done]] = port
        open_ = open_[~done]
    if len(open_):
        i = int(open_[0])
        where = f"path {int(plan.path[i])} from NIC {int(src[i])} to NIC {int(dst[i])}"
        span = f"{first_port} to {last_port}"
        missing = f"none for {len(open_)} pieces, the first on {where}"
        raise ValueError(f"path_hash must lead to every path for some port in {span}, got {missing}")
    return ports


def _rank_on_path(plan: Plan) -> Int64[np.ndarray, "pieces"]:
    traffic = plan.traffic
    keys = [plan.path, traffic.dst[plan.parent], traffic.src[plan.parent], traffic.step[plan.parent]]
    order = np.lexsort(keys)
    sorted_keys = np.stack([key[order] for key in keys])
    heads = np.flatnonzero((np.diff(sorted_keys, axis=1, prepend=-1) != 0).any(axis=0))
    rank = np.empty(plan.n_pieces, dtype=np.int64)
    rank[order] = np.arange(plan.n_pieces) - np.repeat(heads, np.diff(heads, append=plan.n_pieces))
    return rank


def path_table(plan: Plan) -> dict[str, Any]:
    """The plan as JSON for source routing: ``{"links": names, "pieces": [...]}``.

    A piece has flow, connection, step, src, dst, bytes, path, links.
    ``links`` of a piece are indices into the names, in travel order; ``connection`` numbers the flows of a step that have
    the same ends. O(hops).
    """
    indptr, links = plan.piece_links()
    used, index = np.unique(links, return_inverse=True)
    traffic = plan.traffic
    columns = {
        "flow": plan.parent,
        "connection": connection_numbers(traffic)[plan.parent],
        "step": traffic.step[plan.parent],
        "src": traffic.src[plan.parent],
        "dst": traffic.dst[plan.parent],
        "bytes": plan.size_bytes,
        "path": plan.path,
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    hops, ends = index.tolist(), indptr.tolist()
    return {
        "links": [plan.topology.link_name(int(link)) for link in used],
        "pieces": [
            dict(zip(columns, row, strict=True)) | {"links": hops[ends[i] : ends[i + 1]]} for i, row in enumerate(rows)
        ],
    }


def write_path_table(plan: Plan, path: str | Path) -> None:
    """Writes :func:`path_table` as a JSON file."""
    Path(path).write_text(json.dumps(path_table(plan)), encoding="utf-8")
