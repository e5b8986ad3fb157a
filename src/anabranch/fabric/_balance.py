"""Dealing flows of any sizes to parallel spines so that no leaf link carries more than its share."""

import numpy as np

from anabranch.fabric import _kernels_balance


def deal(
    a: np.ndarray, b: np.ndarray, size: np.ndarray, spines: int, share_out: np.ndarray, share_in: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces (flow, spine, bytes), ascending by flow: each spine gets at most its share of every leaf's bytes (ours).

    Args:
        a, b: source and destination leaf of each flow.
        size: bytes of each flow.
        spines: number of parallel spines with equal rates.
        share_out, share_in: most bytes per leaf that one spine may get (real numbers [leaves]); ``spines`` times the share
            must cover what the leaf sends and receives.

    The spines are halved again and again. In each halving every flow starts in proportion in both halves, which balances
    all leaves; then weight moves round the cycles of divided flows, which changes no leaf's sum, until the divided flows
    are a forest: at most 2 leaves + 1 cuts a halving, (S - 1)(2L + 1) in all, against E (S - 1) for spraying. A leaf that
    may have less is tied to a virtual one by a flow that fills it up and that costs nothing to cut. Cuts are rounded to
    whole bytes: a share is exceeded by at most half a byte per cut and halving.

    Cost: O(E log S x depth of the forest).
    """
    n = len(share_out)
    none = np.zeros(0, dtype=np.int64)
    results = [(none, none, none)]
    jobs = [(np.arange(len(a)), size.astype(np.int64), 0, spines)]
    while jobs:
        flow, bytes_, first, parts = jobs.pop()
        if not len(flow):
            continue
        if parts == 1:
            results.append((flow, np.full(len(flow), first), bytes_))
            continue
        ahead = parts // 2
        taken = _halve(a[flow], b[flow], bytes_, ahead, parts, share_out, share_in, n)
        for mine, low, many in ((taken, first, ahead), (bytes_ - taken, first + ahead, parts - ahead)):
            some = mine > 0
            jobs.append((flow[some], mine[some], low, many))
    flow, spine, bytes_ = (np.concatenate(column) for column in zip(*results, strict=True))
    order = np.lexsort((spine, flow))
    return flow[order], spine[order], bytes_[order]


def _halve(
    a: np.ndarray,
    b: np.ndarray,
    size: np.ndarray,
    ahead: int,
    parts: int,
    share_out: np.ndarray,
    share_in: np.ndarray,
    n: int,
) -> np.ndarray:
    """Whole bytes of each flow that go to the first ``ahead`` of ``parts`` spines."""
    weight = size.astype(np.float64)
    part = weight * (ahead / parts)
    # Vertices: sending leaves, receiving leaves, a virtual receiver and a virtual sender for what leaves have to spare.
    leaves, receiver, sender = np.arange(n), 2 * n, 2 * n + 1
    spare, spare_part = [], []
    for leaf, share in ((a, share_out), (b, share_in)):
        spare.append(np.maximum(parts * share - np.bincount(leaf, weight, n), 0.0))
        spare_part.append(np.clip(ahead * share - np.bincount(leaf, part, n), 0.0, spare[-1]))
    wide = 2.0 * (spare[0].sum() + spare[1].sum() + 1.0)
    left = np.concatenate([[sender], leaves, np.full(n, sender), a]).astype(np.int64)
    right = np.concatenate([[receiver], np.full(n, receiver), n + leaves, n + b]).astype(np.int64)
    all_weight = np.concatenate([[wide], *spare, weight])
    all_part = np.concatenate([[wide / 2], *spare_part, part])
    _kernels_balance.cancel_cycles(left, right, all_weight, all_part, 2 * n + 2)
    return np.asarray(np.clip(np.rint(all_part[2 * n + 1 :]), 0, size).astype(np.int64))
