"""Collectives from a JSON list of communication nodes, as exported from Chakra traces."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anabranch.fabric._checks import ArrayLike
from anabranch.fabric.collectives import ALGORITHMS, collective
from anabranch.fabric.traffic import Traffic, check_placement, concatenate

_NAMES = {
    "ALL_REDUCE": "all-reduce",
    "ALL_GATHER": "all-gather",
    "ALL_TO_ALL": "all-to-all",
    "REDUCE_SCATTER": "reduce-scatter",
    "REDUCE_SCATTER_BLOCK": "reduce-scatter",
}


def read_chakra(
    path: str | Path,
    *,
    algorithms: Mapping[str, str] | None = None,
    placement: ArrayLike | None = None,
    **options: Any,
) -> Traffic:
    """Reads ``[{"comm_type", "comm_size", "group"}, ...]`` or ``{"nodes": [...]}``; nodes run one after the other.

    ``comm_type`` is ALL_REDUCE, ALL_GATHER, ALL_TO_ALL, REDUCE_SCATTER (a ``_BLOCK`` may follow) or SEND, in any case;
    ``comm_size`` the message in bytes (B of :func:`collective`); ``group`` the ranks that take part, in the order of the
    collective; for SEND instead ``comm_src`` and ``comm_dst``. A node is step by step what :func:`collective` makes of
    it; the flows of node i have group i.

    Args:
        algorithms: algorithm per collective, ``{"all-reduce": "halving-doubling"}``.
        placement: NIC of every rank.
        options: further arguments of :func:`collective` (``chunks``, ``ranks_per_host``, ``fold``, ...).

    Raises:
        ValueError: with the line of a JSON error or the entry (``nodes[3]``) that is wrong.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}") from error
    nodes = data.get("nodes") if isinstance(data, dict) else data
    if not isinstance(nodes, list):
        raise ValueError(f'{path}: expected a list of nodes or {{"nodes": [...]}}')
    chosen = dict(algorithms or {})
    for name, algorithm in chosen.items():
        if algorithm not in ALGORITHMS.get(name, ()):
            raise ValueError(
                f"algorithms must map {', '.join(ALGORITHMS)} to one of theirs, got {name!r}: {algorithm!r}"
            )
    parts = []
    for i, node in enumerate(nodes):
        try:
            part = _node_traffic(node, chosen, options)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: nodes[{i}]: {error}") from error
        parts.append(Traffic(part.src, part.dst, part.size_bytes, part.step, i))
    traffic = concatenate(*parts, one_after_the_other=True)
    return traffic if placement is None else traffic.placed(placement)


def _node_traffic(node: Any, algorithms: Mapping[str, str], options: Mapping[str, Any]) -> Traffic:
    if not isinstance(node, dict):
        raise ValueError(f"expected an object, got {node!r}")
    kind, size = str(node.get("comm_type")).upper(), node.get("comm_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"comm_size must be a whole number of bytes >= 1, got {size!r}")
    if kind == "SEND":
        ends = [node.get(key) for key in ("comm_src", "comm_dst")]
        if not all(isinstance(end, int) and end >= 0 for end in ends):
            raise ValueError(f"comm_src and comm_dst must be ranks >= 0, got {ends[0]!r} and {ends[1]!r}")
        return Traffic([ends[0]], [ends[1]], size)
    if kind not in _NAMES:
        raise ValueError(f"comm_type must be one of {', '.join(_NAMES)}, SEND, got {node.get('comm_type')!r}")
    group = node.get("group")
    if not isinstance(group, list):
        raise ValueError(f"group must be a list of ranks, got {group!r}")
    ranks = check_placement(group)
    name = _NAMES[kind]
    return collective(
        name, ranks=len(ranks), message_bytes=size, algorithm=algorithms.get(name), placement=ranks, **options
    )
