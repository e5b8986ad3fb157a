"""What must have ended before a flow may start, as the simulators ask for it."""

import numpy as np

from anabranch.fabric._checks import choice
from anabranch.fabric._kernels_fluid import Waits
from anabranch.fabric.traffic import Traffic

MODES = ("barrier", "per_rank")


def waits_of(traffic: Traffic, dependencies: str) -> Waits:
    """The gates of a traffic, in the order (group, NIC, step) for "per_rank", by step for "barrier". O(F log F).

    "barrier": a flow starts when all flows of all earlier steps have ended, in every group. "per_rank": when all flows of its
    group's earlier steps that begin or end at its source NIC have ended; a flow has ended when its last byte has arrived.
    """
    choice("dependencies", dependencies, MODES)
    if dependencies == "barrier":
        steps, gate = np.unique(traffic.step, return_inverse=True)
        feeds = gate.reshape(-1, 1)
        wait = gate - 1
        group = np.zeros(len(steps), dtype=np.int64)
    else:
        nics = int(max(traffic.src.max(initial=0), traffic.dst.max(initial=0))) + 1
        base = traffic.group.astype(np.int64) * nics
        key = np.stack([base + traffic.src, base + traffic.dst])
        key = key * max(traffic.n_steps, 1) + traffic.step
        keys, gate = np.unique(key, return_inverse=True)
        feeds = gate.reshape(2, -1).T
        group = keys // max(traffic.n_steps, 1)
        wait = np.where(np.diff(group, prepend=-1) == 0, np.arange(len(keys)) - 1, -1)[feeds[:, 0]]
    same = np.append(group[1:] == group[:-1], np.zeros(min(1, len(group)), dtype=bool))
    gate_next = np.where(same, np.arange(1, len(group) + 1), -1)
    return build_waits(wait, np.arange(len(feeds) + 1) * feeds.shape[1], feeds.ravel(), gate_next)


def build_waits(wait: np.ndarray, feed_indptr: np.ndarray, feed: np.ndarray, gate_next: np.ndarray) -> Waits:
    """Gates from the gate that each flow waits for, the gates that flow f feeds, and the gate after each gate."""
    n_gates = len(gate_next)
    count = np.bincount(feed, minlength=n_gates) + np.bincount(gate_next[gate_next >= 0], minlength=n_gates)
    waiting = np.flatnonzero(wait >= 0)
    columns = (
        wait,
        feed_indptr,
        feed,
        count,
        gate_next,
        np.concatenate([[0], np.cumsum(np.bincount(wait[waiting], minlength=n_gates))]),
        waiting[np.argsort(wait[waiting], kind="stable")],
    )
    return Waits(*(np.ascontiguousarray(column, dtype=np.int64) for column in columns))


def no_waits(n_flows: int) -> Waits:
    """No flow waits."""
    none = np.zeros(0, dtype=np.int64)
    return build_waits(np.full(n_flows, -1), np.zeros(n_flows + 1), none, none)
