"""Traffic of collectives, of permutations and of mixture-of-experts layers."""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from jaxtyping import Int

from anabranch.fabric import _algorithms
from anabranch.fabric._algorithms import Algorithm
from anabranch.fabric._checks import ArrayLike, choice, integers, positive_int
from anabranch.fabric.traffic import Traffic, check_placement

ALGORITHMS = {
    "reduce-scatter": ("ring",),
    "all-gather": ("ring",),
    "all-reduce": ("ring", "halving-doubling", "recursive-doubling", "double-binary-tree", "hierarchical"),
    "all-to-all": ("direct", "linear-shift"),
    "pipeline": ("point-to-point",),
}
"""Algorithms of every collective, the one that is taken when none is named first."""


def collective(
    name: str,
    *,
    ranks: int,
    message_bytes: int,
    algorithm: str | None = None,
    placement: ArrayLike | None = None,
    chunks: int = 8,
    ranks_per_host: int = 8,
    rail_algorithm: str = "ring",
    include_in_host: bool = False,
    fold: bool = False,
    steps: Iterable[int] | None = None,
) -> Traffic:
    """Flows of one collective of N ranks on messages of B bytes.

    =============== ==================== ============================== ================================================
    name            algorithm            steps                          bytes per flow
    =============== ==================== ============================== ================================================
    reduce-scatter  ring                 N - 1                          B/N to the next rank
    all-gather      ring                 N - 1                          B/N to the next rank
    all-reduce      ring                 2 (N - 1)                      B/N to the next rank
    all-reduce      halving-doubling     2 log2 N                       B/2, B/4, ..., B/N, B/N, ..., B/2 to rank xor 2^k
    all-reduce      recursive-doubling   log2 N                         B to rank xor 2^k
    all-reduce      double-binary-tree   heights + depths + chunks      B / (2 chunks) to parents and children
    all-reduce      hierarchical         those of the rails (+ 2)       B/G per rail, by ``rail_algorithm``
    all-to-all      direct               1                              B/N to every other rank
    all-to-all      linear-shift         N - 1                          B/N to rank + k
    pipeline        point-to-point       N - 2 + ``chunks``             B / chunks to the next rank
    =============== ==================== ============================== ================================================

    Messages are padded to whole equal chunks: B is rounded up where it does not divide.

    Args:
        name: see the table; "all_reduce" is as good as "all-reduce".
        ranks: N.
        message_bytes: B, the vector of one rank.
        algorithm: one of the table; the first of its name if not given.
        placement: NIC of every rank; rank r on NIC r if not given.
        chunks: chunks per tree, or micro-batches of a pipeline.
        ranks_per_host: G of a hierarchical all-reduce; a divisor of N. The group of a flow is its rail.
        rail_algorithm: all-reduce algorithm between hosts.
        include_in_host: list the two steps inside the hosts too, as flows between NICs; else they are left out, since they
            run on links of their own.
        fold: let halving-doubling and recursive-doubling run with any N: those beyond a power of two give their message to
            a neighbour first and get the result last, B each.
        steps: only these steps, which keep their numbers; all if not given. A ring of N ranks has N flows in each of
            2 (N - 1) alike steps.

    Raises:
        ValueError, TypeError: an unknown name or algorithm, ranks < 2, bytes < 1, N not a power of two without ``fold``,
            G that does not divide N, a placement with too few NICs or two ranks on one, a step that does not exist.

    Cost: O(flows).
    """
    name = choice("name", name.replace("_", "-"), tuple(ALGORITHMS))
    algorithm = choice("algorithm", algorithm or ALGORITHMS[name][0], ALGORITHMS[name])
    ranks, message_bytes = positive_int("ranks", ranks), positive_int("message_bytes", message_bytes)
    if ranks < 2:
        raise ValueError(f"ranks must be >= 2, got {ranks}")
    nics = _nics(ranks, placement)
    plan = find_algorithm(
        name, algorithm, ranks, chunks=chunks, ranks_per_host=ranks_per_host, rail_algorithm=rail_algorithm, fold=fold
    )
    chunk_bytes = -(-message_bytes // plan.n_chunks)
    chosen = range(plan.n_steps) if steps is None else integers("steps", list(steps), low=0, high=plan.n_steps).tolist()
    parts: list[tuple[np.ndarray, ...]] = [(np.zeros(0, np.int64),) * 5]
    skipped = 0 if include_in_host or algorithm != "hierarchical" else 1
    for t in chosen:
        for m in plan.step(t):
            if skipped and m.in_host:
                continue
            parts.append((nics[m.src], nics[m.dst], m.count * chunk_bytes, np.full(len(m.src), t - skipped), m.group))
    return Traffic(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def find_algorithm(
    name: str, algorithm: str, ranks: int, *, chunks: int, ranks_per_host: int, rail_algorithm: str, fold: bool
) -> Algorithm:
    """The moves of a collective; arguments as in :func:`collective`."""
    if name == "reduce-scatter":
        return _algorithms.ring_reduce_scatter(ranks)
    if name == "all-gather":
        return _algorithms.ring_all_gather(ranks)
    if name == "all-to-all":
        return (_algorithms.all_to_all_direct if algorithm == "direct" else _algorithms.all_to_all_shift)(ranks)
    if name == "pipeline":
        return _algorithms.pipeline(ranks, positive_int("chunks", chunks))
    if algorithm == "ring":
        return _algorithms.then(_algorithms.ring_reduce_scatter(ranks), _algorithms.ring_all_gather(ranks))
    if algorithm == "double-binary-tree":
        return _algorithms.double_binary_tree(ranks, positive_int("chunks", chunks))
    if algorithm == "hierarchical":
        per_host = positive_int("ranks_per_host", ranks_per_host)
        if ranks % per_host or ranks == per_host:
            raise ValueError(f"ranks_per_host must divide ranks = {ranks} into 2 hosts or more, got {per_host}")
        allowed = tuple(a for a in ALGORITHMS["all-reduce"] if a != "hierarchical")
        choice("rail_algorithm", rail_algorithm, allowed)
        inner = partial(
            find_algorithm,
            name,
            rail_algorithm,
            chunks=chunks,
            ranks_per_host=1,
            rail_algorithm=rail_algorithm,
            fold=fold,
        )
        return _algorithms.hierarchical(ranks, per_host, inner)
    power_of_two: dict[str, Callable[[int], Algorithm]] = {
        "halving-doubling": _algorithms.halving_doubling,
        "recursive-doubling": _algorithms.recursive_doubling,
    }
    if ranks & (ranks - 1) == 0:
        return power_of_two[algorithm](ranks)
    if not fold:
        raise ValueError(f"ranks must be a power of two for {algorithm} (or fold=True), got {ranks}")
    return _algorithms.folded(ranks, power_of_two[algorithm])


def permutation(
    *, ranks: int, message_bytes: int, generator: np.random.Generator, placement: ArrayLike | None = None
) -> Traffic:
    """Every rank sends ``message_bytes`` to one random rank and receives from one; who meets himself sends nothing."""
    ranks = positive_int("ranks", ranks)
    nics = _nics(ranks, placement)
    return Traffic(nics, nics[generator.permutation(ranks)], positive_int("message_bytes", message_bytes))


def moe_traffic(
    *,
    ranks: int,
    tokens: int,
    experts: int,
    top_k: int,
    hidden: int,
    generator: np.random.Generator,
    expert_parallel: int | None = None,
    skew: float = 0.0,
    dtype_bytes: int = 2,
    routing: Int[np.ndarray, "all_tokens top_k"] | None = None,
    placement: ArrayLike | None = None,
) -> Traffic:
    """Dispatch (step 0) and combine (step 1) of one mixture-of-experts layer.

    Every token goes, hidden x dtype_bytes bytes, from its rank to the rank of each of its experts and back. Ranks form
    groups of ``expert_parallel`` consecutive ones; each group has all experts, dealt to its ranks in blocks, for its own
    tokens.

    Args:
        ranks: N.
        tokens: tokens of each rank.
        experts, top_k: experts in the layer, and experts of each token.
        hidden: elements of a token's vector.
        generator: draws the popularity order of the experts and the experts of every token.
        expert_parallel: ranks of a group, a divisor of N and of ``experts``; the smaller of the two if not given.
        skew: Zipf exponent: the i-th most popular expert is chosen in proportion to i^-skew; 0 for uniform.
        dtype_bytes: bytes of an element.
        routing: experts of every token of all ranks, in rank order, instead of drawn ones.
        placement: NIC of every rank.

    Raises:
        ValueError, TypeError: counts below 1, top_k > experts, groups that do not divide, a negative skew, a routing of
            another shape or with other experts.

    Cost: O(N tokens top_k log experts), expected.
    """
    ranks, tokens, experts = (
        positive_int(n, v) for n, v in (("ranks", ranks), ("tokens", tokens), ("experts", experts))
    )
    top_k, hidden = positive_int("top_k", top_k), positive_int("hidden", hidden)
    token_bytes = hidden * positive_int("dtype_bytes", dtype_bytes)
    if top_k > experts:
        raise ValueError(f"top_k must be <= experts = {experts}, got {top_k}")
    group_size = positive_int("expert_parallel", min(ranks, experts) if expert_parallel is None else expert_parallel)
    if experts % group_size or ranks % group_size:
        raise ValueError(f"expert_parallel must divide ranks = {ranks} and experts = {experts}, got {group_size}")
    if not (np.isfinite(skew) and skew >= 0):
        raise ValueError(f"skew must be finite and >= 0, got {skew}")
    nics = _nics(ranks, placement)
    if routing is None:
        popularity = generator.permutation(np.arange(1.0, experts + 1) ** -skew)
        chosen = _draw_experts(ranks * tokens, top_k, popularity, generator)
    else:
        chosen = integers("routing", routing, low=0, high=experts)
        if chosen.shape != (ranks * tokens, top_k):
            raise ValueError(f"routing must have shape {(ranks * tokens, top_k)}, got {chosen.shape}")
    src = np.repeat(np.arange(ranks), tokens * top_k)
    dst = src // group_size * group_size + chosen.ravel() // (experts // group_size)
    pair, count = np.unique(src * ranks + dst, return_counts=True)
    src, dst = np.divmod(pair, ranks)
    return Traffic(
        nics[np.concatenate([src, dst])],
        nics[np.concatenate([dst, src])],
        np.tile(count * token_bytes, 2),
        step=np.repeat([0, 1], len(pair)),
        group=np.tile(src // group_size, 2),
    )


def _draw_experts(tokens: int, top_k: int, popularity: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Distinct experts per token, one after the other in proportion to their popularity among those left.

    Drawing from all and drawing again while it is one the token has gives that distribution.
    """
    edges = np.cumsum(popularity / popularity.sum())
    edges[-1] = 1.0
    chosen = np.empty((tokens, top_k), dtype=np.int64)
    for k in range(top_k):
        open_ = np.arange(tokens)
        while len(open_):
            drawn = np.searchsorted(edges, generator.random(len(open_)), side="right")
            chosen[open_, k] = drawn
            open_ = open_[(chosen[open_, :k] == drawn[:, None]).any(axis=1)]
    return chosen


def _nics(ranks: int, placement: ArrayLike | None) -> np.ndarray:
    if placement is None:
        return np.arange(ranks, dtype=np.int64)
    nics = check_placement(placement)
    if len(nics) < ranks:
        raise ValueError(f"placement must have a NIC for each of the {ranks} ranks, got {len(nics)}")
    return nics[:ranks].astype(np.int64)
