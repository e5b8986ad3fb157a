"""Max-min fair rates of pieces that share links."""

import numpy as np
from jaxtyping import Float64, Int32, Int64
from numpy.typing import ArrayLike

from anabranch.fabric._checks import integers
from anabranch.fabric._kernels_max_min import fill_all
from anabranch.fabric._kernels_rates import make_network, make_rates, make_scratch


def max_min_rates(
    capacity_bytes_per_s: ArrayLike,
    indptr: ArrayLike,
    links: ArrayLike,
    weight: ArrayLike | None = None,
) -> Float64[np.ndarray, "pieces"]:
    """Exact max-min fair rates by progressive filling (Bertsekas and Gallager, Data Networks, 6.5.2).

    All rates rise together; a link that is full stops its pieces; links that fill at the same rate, within 1e-12
    relatively, stop theirs together. O(touches log links); a link that is touched with weight w by a piece of rate r
    carries w r.

    Args:
        capacity_bytes_per_s: rate of each link, > 0 [links].
        indptr, links: whole numbers [pieces + 1], [touches], as ``Plan.piece_links()`` gives them: piece ``i`` uses
            ``links[indptr[i]:indptr[i + 1]]``. A link may stand twice in a piece. A piece without links has an infinite rate.
        weight: part of the piece's rate that each touch carries, > 0 [touches]; None for 1. A flow that sprays evenly over
            S paths puts 1 / S on each of their links; m equal pieces on the same links are one piece of weight m; fairness
            in proportion to a weight phi of the piece is rate phi times that of a piece whose touches weigh phi.

    Returns:
        Rate of each piece in bytes/s.

    Raises:
        ValueError, TypeError: a capacity or weight that is not finite and > 0, ``indptr`` that does not rise from 0 to the
            number of touches, a link out of range, wrong shapes.

    Example:
        >>> line = np.array([1.0, 1.0])  # piece 0 uses both links, pieces 1 and 2 one each
        >>> max_min_rates(line, np.array([0, 2, 3, 4]), np.array([0, 1, 0, 1]))
        array([0.5, 0.5, 0.5])
    """
    capacity = positive("capacity_bytes_per_s", capacity_bytes_per_s)
    indptr, links, weight = check_touches(indptr, links, weight, len(capacity))
    rate = np.full(len(indptr) - 1, np.inf)
    moves = np.diff(indptr) > 0
    if moves.any():
        # Pieces without links have no touches, so leaving them out of indptr leaves the touches as they are.
        kept = np.concatenate([indptr[:-1][moves], indptr[-1:]])
        network = make_network(capacity, kept, links, weight)
        rates = make_rates(network)
        fill_all(len(kept) - 1, network, rates, make_scratch(network))
        rate[moves] = rates.rate
    return rate


def positive(name: str, value: ArrayLike) -> Float64[np.ndarray, "n"]:
    """``value`` as a one-dimensional float64 array, finite and > 0."""
    array = np.array(value, dtype=np.float64, order="C")
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {array.shape}")
    bad = ~(np.isfinite(array) & (array > 0))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(f"{name}[{i}] must be finite and > 0, got {array[i]}")
    return array


def check_touches(
    indptr: ArrayLike, links: ArrayLike, weight: ArrayLike | None, n_links: int
) -> tuple[Int64[np.ndarray, "pieces_plus_1"], Int32[np.ndarray, "touches"], Float64[np.ndarray, "touches"]]:
    """The touches checked, in the kernels' types."""
    starts = np.array(integers("indptr", np.asarray(indptr), low=0), order="C")
    ids = np.array(integers("links", np.asarray(links), low=0, high=n_links, dtype=np.int32), order="C")
    if starts.ndim != 1 or ids.ndim != 1:
        raise ValueError(f"indptr and links must have one dimension, got shapes {starts.shape} and {ids.shape}")
    if not len(starts) or starts[0] != 0 or starts[-1] != len(ids) or (np.diff(starts) < 0).any():
        raise ValueError(f"indptr must rise from 0 to the {len(ids)} entries of links, got {_short(starts)}")
    if weight is None:
        return starts, ids, np.ones(len(ids))
    weights = positive("weight", weight)
    if len(weights) != len(ids):
        raise ValueError(f"weight must have one entry for each of the {len(ids)} entries of links, got {len(weights)}")
    return starts, ids, weights


def _short(array: np.ndarray) -> str:
    return np.array2string(array, threshold=8, edgeitems=3)
