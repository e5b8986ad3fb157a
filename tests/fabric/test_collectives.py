"""Collectives: replayed on real vectors, bytes against the table, refusals."""

import numpy as np
import pytest

from anabranch.fabric import collective, moe_traffic, permutation
from anabranch.fabric._algorithms import binary_trees
from anabranch.fabric.collectives import find_algorithm

DEFAULTS = {"chunks": 5, "ranks_per_host": 4, "rail_algorithm": "ring", "fold": False}


def replay(name, algorithm, ranks, vectors, **options):
    """Runs the moves on ``vectors`` [rank, chunk]; a step reads what was there before it."""
    plan = find_algorithm(name, algorithm, ranks, **(DEFAULTS | options))
    state = vectors.copy()
    for t in range(plan.n_steps):
        before = vectors if plan.two_buffers else state.copy()
        replaced = np.zeros(state.shape, dtype=bool)
        for m in plan.step(t):
            for src, dst, low, count, into in zip(m.src, m.dst, m.low, m.count, m.into, strict=True):
                sent = before[src, low : low + count]
                if m.reduce:
                    state[dst, into : into + count] += sent
                else:
                    assert not replaced[dst, into : into + count].any(), "a chunk arrives twice"
                    replaced[dst, into : into + count] = True
                    state[dst, into : into + count] = sent
    return state


def vectors_for(name, algorithm, ranks, **options):
    chunks = find_algorithm(name, algorithm, ranks, **(DEFAULTS | options)).n_chunks
    return np.random.default_rng(ranks).integers(-(10**6), 10**6, (ranks, chunks))


@pytest.mark.parametrize("ranks", [2, 3, 5, 8, 13])
def test_ring_halves(ranks):
    data = vectors_for("reduce-scatter", "ring", ranks)
    rank = np.arange(ranks)
    scattered = replay("reduce-scatter", "ring", ranks, data)
    assert np.array_equal(scattered[rank, rank], data.sum(axis=0))
    gathered = replay("all-gather", "ring", ranks, data)
    assert np.array_equal(gathered, np.tile(data[rank, rank], (ranks, 1)))


ALL_REDUCES = [
    ("ring", {}, [2, 3, 7, 8]),
    ("halving-doubling", {}, [2, 4, 8, 32]),
    ("halving-doubling", {"fold": True}, [2, 3, 5, 6, 7, 12]),
    ("recursive-doubling", {}, [2, 4, 16]),
    ("recursive-doubling", {"fold": True}, [3, 5, 11, 12]),
    ("double-binary-tree", {}, [2, 3, 4, 5, 7, 8, 12, 16, 17]),
    ("double-binary-tree", {"chunks": 1}, [2, 9, 10]),
    ("hierarchical", {}, [8, 12, 16]),
    ("hierarchical", {"rail_algorithm": "halving-doubling"}, [8, 16, 32]),
    ("hierarchical", {"rail_algorithm": "double-binary-tree", "ranks_per_host": 2}, [6, 14]),
]


@pytest.mark.parametrize(("algorithm", "options", "sizes"), ALL_REDUCES)
def test_all_reduce_gives_the_sum_everywhere(algorithm, options, sizes):
    for ranks in sizes:
        data = vectors_for("all-reduce", algorithm, ranks, **options)
        result = replay("all-reduce", algorithm, ranks, data, **options)
        assert np.array_equal(result, np.tile(data.sum(axis=0), (ranks, 1)))


@pytest.mark.parametrize("algorithm", ["direct", "linear-shift"])
@pytest.mark.parametrize("ranks", [2, 3, 8, 9])
def test_all_to_all_transposes(algorithm, ranks):
    data = vectors_for("all-to-all", algorithm, ranks)
    assert np.array_equal(replay("all-to-all", algorithm, ranks, data), data.T)


def test_pipeline_hands_every_micro_batch_on():
    data = vectors_for("pipeline", "point-to-point", 5, chunks=7)
    result = replay("pipeline", "point-to-point", 5, data, chunks=7)
    assert np.array_equal(result, np.tile(data[0], (5, 1)))


def sent(traffic, ranks):
    return np.bincount(traffic.src, traffic.size_bytes, ranks)


@pytest.mark.parametrize("n", [4, 8, 16])
def test_bytes_per_rank_equal_the_table(n):
    B = 2**20
    log = n.bit_length() - 1
    ring = 2 * (n - 1) * B // n
    expected = {
        ("reduce-scatter", "ring"): (n - 1, ring // 2),
        ("all-gather", "ring"): (n - 1, ring // 2),
        ("all-reduce", "ring"): (2 * (n - 1), ring),
        ("all-reduce", "halving-doubling"): (2 * log, ring),
        ("all-reduce", "recursive-doubling"): (log, B * log),
        ("all-to-all", "direct"): (1, (n - 1) * B // n),
        ("all-to-all", "linear-shift"): (n - 1, (n - 1) * B // n),
    }
    for (name, algorithm), (steps, per_rank) in expected.items():
        traffic = collective(name, ranks=n, message_bytes=B, algorithm=algorithm)
        assert traffic.n_steps == steps
        assert (sent(traffic, n) == per_rank).all()
        assert (np.bincount(traffic.dst, traffic.size_bytes, n) == per_rank).all()


def test_halving_doubling_sizes_and_partners():
    traffic = collective("all_reduce", ranks=8, message_bytes=8000, algorithm="halving-doubling")
    for step, (size, distance) in enumerate(zip((4000, 2000, 1000, 1000, 2000, 4000), (1, 2, 4, 4, 2, 1), strict=True)):
        now = traffic.step == step
        assert set(traffic.size_bytes[now].tolist()) == {size}
        assert np.array_equal(traffic.src[now] ^ distance, traffic.dst[now])


@pytest.mark.parametrize("n", [2, 3, 4, 6, 9, 16, 31, 32])
def test_double_binary_trees(n):
    inner = []
    for parent in binary_trees(n):
        assert (parent < 0).sum() == 1
        children = np.bincount(parent[parent >= 0], minlength=n)
        assert children.max() <= 2
        at, steps = np.arange(n), 0
        while (at >= 0).any():
            at = np.where(at >= 0, parent[np.maximum(at, 0)], -1)
            steps += 1
        assert steps <= np.ceil(np.log2(n)) + 2, "not a balanced tree"
        inner.append(children > 0)
    if n % 2 == 0:
        assert not (inner[0] & inner[1]).any(), "a rank is inner in both trees"


def test_double_binary_tree_moves_the_message_twice_over_every_edge():
    n, B = 16, 16000
    traffic = collective("all-reduce", ranks=n, message_bytes=B, algorithm="double-binary-tree", chunks=4)
    assert traffic.total_bytes == 2 * (n - 1) * B
    assert set(traffic.size_bytes.tolist()) == {B // 8}


def test_hierarchical_sends_a_share_per_rail_between_hosts():
    n, G, B = 32, 8, 2**20
    traffic = collective("all-reduce", ranks=n, message_bytes=B, algorithm="hierarchical", ranks_per_host=G)
    hosts = n // G
    assert (traffic.src % G == traffic.dst % G).all()
    assert np.array_equal(traffic.group, traffic.src % G)
    assert (sent(traffic, n) == 2 * (hosts - 1) * B // G // hosts).all()
    assert traffic.n_steps == 2 * (hosts - 1)
    whole = collective(
        "all-reduce", ranks=n, message_bytes=B, algorithm="hierarchical", ranks_per_host=G, include_in_host=True
    )
    assert whole.n_steps == traffic.n_steps + 2
    for step in (0, whole.n_steps - 1):
        now = whole.step == step
        assert (whole.src[now] // G == whole.dst[now] // G).all()
        assert (np.bincount(whole.src[now], whole.size_bytes[now], n) == B * (G - 1) // G).all()


def test_steps_can_be_picked():
    whole = collective("all-reduce", ranks=6, message_bytes=600)
    some = collective("all-reduce", ranks=6, message_bytes=600, steps=[9, 2])
    assert some.n_flows == 12
    for step in (2, 9):
        assert np.array_equal(whole.dst[whole.step == step], some.dst[some.step == step])
    assert set(some.step.tolist()) == {2, 9}


def test_placement_and_padding():
    traffic = collective("reduce-scatter", ranks=3, message_bytes=100, placement=[7, 5, 9, 1])
    assert traffic.src[:3].tolist() == [7, 5, 9]
    assert traffic.dst[:3].tolist() == [5, 9, 7]
    assert set(traffic.size_bytes.tolist()) == {34}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "gossip"}, "name must be one of 'reduce-scatter', .*, got 'gossip'"),
        ({"algorithm": "direct"}, "algorithm must be one of 'ring', .*, got 'direct'"),
        ({"ranks": 1}, "ranks must be >= 2, got 1"),
        ({"message_bytes": 0}, "message_bytes must be >= 1, got 0"),
        (
            {"algorithm": "halving-doubling", "ranks": 6},
            r"ranks must be a power of two for halving-doubling \(or fold=True\), got 6",
        ),
        (
            {"algorithm": "hierarchical", "ranks_per_host": 3},
            "ranks_per_host must divide ranks = 8 into 2 hosts or more, got 3",
        ),
        (
            {"algorithm": "hierarchical", "ranks_per_host": 8},
            "ranks_per_host must divide ranks = 8 into 2 hosts or more, got 8",
        ),
        ({"algorithm": "hierarchical", "rail_algorithm": "hierarchical"}, "rail_algorithm must be one of"),
        ({"placement": [0, 1, 2]}, "placement must have a NIC for each of the 8 ranks, got 3"),
        (
            {"placement": [0, 1, 2, 3, 4, 5, 6, 0]},
            "placement must put every rank on its own NIC, got NIC 0 for ranks 0 and 7",
        ),
        ({"steps": [14]}, r"steps\[0\] must be >= 0 and < 14, got 14"),
    ],
)
def test_bad_collectives_are_refused(change, message):
    arguments = {"name": "all-reduce", "ranks": 8, "message_bytes": 800, "ranks_per_host": 4} | change
    with pytest.raises(ValueError, match=message):
        collective(arguments.pop("name"), **arguments)


def test_permutation_is_one():
    traffic = permutation(ranks=50, message_bytes=7, generator=np.random.default_rng(0))
    assert traffic.n_flows + traffic.n_self_flows == 50
    assert len(set(traffic.src.tolist())) == len(set(traffic.dst.tolist())) == traffic.n_flows
    again = permutation(ranks=50, message_bytes=7, generator=np.random.default_rng(0))
    assert np.array_equal(traffic.dst, again.dst)


def moe(**change):
    arguments = {
        "ranks": 4,
        "tokens": 100,
        "experts": 8,
        "top_k": 2,
        "hidden": 16,
        "generator": np.random.default_rng(0),
    }
    return moe_traffic(**(arguments | change))


def test_moe_counts_every_routed_token():
    routing = np.random.default_rng(1).permuted(np.tile(np.arange(8), (400, 1)), axis=1)[:, :2]
    traffic = moe(routing=routing)
    expected = np.zeros((4, 4), dtype=np.int64)
    for token, chosen in enumerate(routing):
        for expert in chosen:
            expected[token // 100, expert // 2] += 16 * 2
    for step, matrix in ((0, expected), (1, expected.T)):
        found = np.zeros((4, 4), dtype=np.int64)
        now = traffic.step == step
        found[traffic.src[now], traffic.dst[now]] = traffic.size_bytes[now]
        np.fill_diagonal(matrix := matrix.copy(), 0)
        assert np.array_equal(found, matrix)


def test_moe_groups_keep_to_themselves():
    traffic = moe(ranks=8, experts=4, expert_parallel=2)
    assert (traffic.src // 2 == traffic.dst // 2).all()
    assert np.array_equal(traffic.group, traffic.src // 2)


def test_moe_draws_follow_the_popularity():
    from anabranch.fabric.collectives import _draw_experts

    popularity = np.array([4.0, 2.0, 1.0, 1.0])
    chosen = _draw_experts(200_000, 2, popularity, np.random.default_rng(2))
    assert (chosen[:, 0] != chosen[:, 1]).all()
    p = popularity / 8
    first = np.bincount(chosen[:, 0], minlength=4) / 200_000
    second = np.bincount(chosen[:, 1], minlength=4) / 200_000
    exact = np.array([sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)])
    assert np.abs(first - p).max() < 0.005
    assert np.abs(second - exact).max() < 0.005


def test_moe_skew_makes_some_ranks_hot():
    def heat(skew):
        traffic = moe(ranks=16, experts=16, tokens=500, skew=skew)
        received = np.bincount(traffic.dst[traffic.step == 0], traffic.size_bytes[traffic.step == 0], 16)
        return received.max() / received.mean()

    assert heat(0.0) < 1.3 < 2.0 < heat(1.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 9}, "top_k must be <= experts = 8, got 9"),
        ({"ranks": 3}, "expert_parallel must divide ranks = 3 and experts = 8, got 3"),
        ({"skew": -0.5}, "skew must be finite and >= 0, got -0.5"),
        ({"routing": np.zeros((400, 3), np.int64)}, r"routing must have shape \(400, 2\), got \(400, 3\)"),
        ({"routing": np.full((400, 2), 8)}, r"routing\[0, 0\] must be >= 0 and < 8, got 8"),
        ({"tokens": 0}, "tokens must be >= 1, got 0"),
    ],
)
def test_bad_moe_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        moe(**change)
