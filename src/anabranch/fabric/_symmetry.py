"""Merging equal pieces, links, flows and gates into classes that are simulated once."""

import numpy as np
from jaxtyping import Int64

from anabranch.fabric._dependencies import build_waits, no_waits
from anabranch.fabric._kernels_fluid import Waits
from anabranch.fabric._kernels_refine import label_pairs, quotient, refine
from anabranch.fabric._pieces import Pieces, offsets


def merge(
    pieces: Pieces, start_s: np.ndarray, flow_of: np.ndarray, waits: Waits
) -> tuple[Pieces, np.ndarray, np.ndarray, Waits, Int64[np.ndarray, "flows"]]:
    """The coarsest equitable partition of pieces, links, flows and gates, and what the classes are to each other.

    In an equitable partition all members of a class have the same number of neighbors in every other class, so that equal
    rates within classes satisfy the bottleneck condition on all links if they do on one of each class, and all members of a
    class start and end together (ours; by induction over events). O(touches) a round of refinement, a handful of rounds.

    Returns:
        Piece classes (with the capacity of the link classes, and the touches between classes), start of each flow class, flow
        class of each piece class, gate classes, and the class of each flow. Where less than half of the pieces would go,
        everything comes back as it is.
    """
    capacity = pieces.capacity
    n_pieces, n_links, n_flows, n_gates = len(flow_of), len(capacity), len(start_s), len(waits.gate_count)
    first_flow, first_gate = n_pieces + n_links, n_pieces + n_links + n_flows
    with_flows = n_gates > 0
    n_vertices = first_gate + n_gates if with_flows else first_flow
    size = np.concatenate([pieces.size_bytes, capacity, start_s, np.zeros(n_gates)])[:n_vertices]
    # Latencies are >= 0; the negative numbers tell links, flows and gates apart.
    kind = np.concatenate([pieces.latency_s, np.repeat([-1.0, -2.0, -3.0], [n_links, n_flows, n_gates])])[:n_vertices]
    color = label_pairs(size, kind)
    if not with_flows and start_s.any():
        color = label_pairs(color.astype(np.float64), np.concatenate([start_s[flow_of], np.full(n_links, -1.0)]))
    edges = _edges(flow_of, waits, first_flow, first_gate) if with_flows else [np.zeros(0, dtype=np.int64)] * 3
    _, n_classes = refine(pieces.indptr, pieces.links, pieces.weight, *edges, color, n_pieces // 2)
    if n_classes > n_pieces // 2:
        return pieces, start_s, flow_of, waits, np.arange(n_flows)
    link_classes = int(color[n_pieces:first_flow].max()) + 1 - n_classes
    indptr, links, weight, piece, _, link = quotient(
        pieces.indptr, pieces.links, pieces.weight, color[:first_flow], n_classes, link_classes
    )
    size_bytes, latency_s = pieces.size_bytes[piece], pieces.latency_s[piece]
    if not with_flows:
        merged = Pieces(capacity[link], None, indptr, links, weight, size_bytes, latency_s, np.arange(n_classes + 1))
        same = np.arange(n_classes)
        return merged, start_s[flow_of[piece]], same, no_waits(n_classes), color[:n_pieces]
    flow_class = color[first_flow:first_gate] - (n_classes + link_classes)
    flow = _first_of_each(flow_class)
    owner = flow_class[flow_of[piece]]
    flow_indptr = offsets(np.bincount(owner, minlength=len(flow)))
    merged = Pieces(capacity[link], None, indptr, links, weight, size_bytes, latency_s, flow_indptr)
    gate_class = color[first_gate:] - (n_classes + link_classes + len(flow))
    return merged, start_s[flow], owner, _merged_waits(waits, flow_class, flow, gate_class), flow_class


def _edges(flow_of: np.ndarray, waits: Waits, first_flow: int, first_gate: int) -> list[np.ndarray]:
    """(from, to, label) of every relation but the touches."""
    feeders = np.repeat(np.arange(len(waits.wait)), np.diff(waits.feed_indptr))
    waiting, linked = np.flatnonzero(waits.wait >= 0), np.flatnonzero(waits.gate_next >= 0)
    relations = [
        (np.arange(len(flow_of)), first_flow + flow_of),
        (first_flow + feeders, first_gate + waits.feed),
        (first_gate + waits.wait[waiting], first_flow + waiting),
        (first_gate + linked, first_gate + waits.gate_next[linked]),
    ]
    label = np.repeat(np.arange(len(relations)), [len(a) for a, _ in relations])
    return [np.concatenate(side) for side in zip(*relations, strict=True)] + [label]


def _merged_waits(waits: Waits, flow_class: np.ndarray, flow: np.ndarray, gate_class: np.ndarray) -> Waits:
    """The gates of the classes: a class of flows that feeds a class of gates counts as one, as it ends at one time."""
    gate = _first_of_each(gate_class)
    lookup = np.append(gate_class, -1)
    feeders = np.repeat(flow_class, np.diff(waits.feed_indptr))
    pairs = np.unique(np.stack([feeders, gate_class[waits.feed]], axis=1), axis=0)
    feed_indptr = offsets(np.bincount(pairs[:, 0], minlength=len(flow)))
    return build_waits(lookup[waits.wait[flow]], feed_indptr, pairs[:, 1], lookup[waits.gate_next[gate]])


def _first_of_each(labels: np.ndarray) -> np.ndarray:
    """Index of the first member of each class 0, 1, ..."""
    first = np.empty(int(labels.max()) + 1, dtype=np.int64)
    first[labels[::-1]] = np.arange(len(labels))[::-1]
    return first
