"""Max-min rates against closed forms, the bottleneck property and a sequence of linear programs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from anabranch.fabric import max_min_rates
from anabranch.fabric._kernels_max_min import choose, choose_stopped_by, repair
from anabranch.fabric._kernels_rates import activate, deactivate, make_network, make_rates, make_scratch


def csr(pieces: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).astype(np.int64)
    return indptr, np.array([link for p in pieces for link in p], dtype=np.int32)


def incidence(n_links: int, indptr: np.ndarray, links: np.ndarray, weight: np.ndarray) -> np.ndarray:
    matrix = np.zeros((n_links, len(indptr) - 1))
    np.add.at(matrix, (links, np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))), weight)
    return matrix


def has_bottlenecks(capacity: np.ndarray, matrix: np.ndarray, rate: np.ndarray) -> bool:
    """Every piece has a full link on which no piece is faster; no link is overfull."""
    load = matrix @ rate
    full = load >= capacity * (1 - 1e-9)
    fastest = (np.where(matrix > 0, rate, 0)).max(axis=1, initial=0)
    bottleneck = (matrix > 0) & full[:, None] & (rate >= fastest[:, None] * (1 - 1e-9))
    return bool((load <= capacity * (1 + 1e-9)).all() and bottleneck.any(axis=0).all())


def sequential_lp(capacity: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Maximize the smallest rate, fix the pieces that cannot have more (positive dual), repeat."""
    n = matrix.shape[1]
    rate, free = np.zeros(n), np.ones(n, dtype=bool)
    scale = capacity.max()
    while free.any():
        room = (capacity - matrix[:, ~free] @ rate[~free]) / scale
        columns = matrix[:, free]
        k = columns.shape[1]
        # Variables: rates of the free pieces and the smallest of them.
        a = np.block([[columns, np.zeros((len(capacity), 1))], [-np.eye(k), np.ones((k, 1))]])
        b = np.concatenate([room, np.zeros(k)])
        cost = np.zeros(k + 1)
        cost[-1] = -1
        answer = linprog(cost, A_ub=a, b_ub=b, bounds=[(0, None)] * (k + 1), method="highs")
        tight = answer.ineqlin.marginals[len(capacity) :] < -1e-9
        assert tight.any()
        chosen = np.flatnonzero(free)[tight]
        rate[chosen] = answer.x[-1] * scale
        free[chosen] = False
    return rate


@st.composite
def instances(draw: st.DrawFn, most_pieces: int = 30, weighted: bool = False):
    n_links = draw(st.integers(1, 12))
    n_pieces = draw(st.integers(1, most_pieces))
    paths = st.lists(st.integers(0, n_links - 1), min_size=1, max_size=min(5, n_links), unique=True)
    pieces = draw(st.lists(paths, min_size=n_pieces, max_size=n_pieces))
    capacity = np.array(draw(st.lists(st.sampled_from([1.0, 2.0, 3.0, 7.0, 50e9]), min_size=n_links, max_size=n_links)))
    indptr, links = csr(pieces)
    weight = np.ones(len(links))
    if weighted:
        weight = np.array(
            draw(st.lists(st.sampled_from([0.25, 1 / 3, 1.0, 5.0]), min_size=len(links), max_size=len(links)))
        )
    return capacity, indptr, links, weight


def change(network, rates, scratch, n_active: int, going: list[int], coming: list[int]) -> int:
    """Pieces leave and come at one moment, as the fluid simulation does it. Returns the number of active pieces."""
    tables = (rates.rate, rates.bottleneck, rates.n_stopped, scratch.chosen, scratch.state, scratch.old_rate)
    n_chosen = 0
    for p in going:
        n_active = deactivate(p, n_active, network, rates)
    for p in going:
        for link in network.links[network.indptr[p] : network.indptr[p + 1]]:
            first = network.start[link]
            n_chosen = choose_stopped_by(link, first, first + rates.n_members[link], n_chosen, rates.piece, *tables)
    for p in coming:
        n_active = activate(p, n_active, network, rates)
        n_chosen = choose(p, n_chosen, *tables)
    repair(n_chosen, n_active, network, rates, scratch)
    return n_active


def test_line_where_all_get_half():
    assert max_min_rates(np.ones(2), *csr([[0, 1], [0], [1]])).tolist() == [0.5, 0.5, 0.5]


def test_line_where_the_second_link_has_room_left():
    rates = max_min_rates(np.ones(2), *csr([[0, 1], [0], [0], [1]]))
    np.testing.assert_allclose(rates, [1 / 3, 1 / 3, 1 / 3, 2 / 3], rtol=1e-15)


def test_one_long_flow_over_a_line_of_unequal_links():
    # The long flow is stopped by the smallest link; each of the others takes what it leaves.
    capacity = np.array([1.0, 0.5, 4.0])
    rates = max_min_rates(capacity, *csr([[0, 1, 2], [0], [1], [2]]))
    np.testing.assert_allclose(rates, [0.25, 0.75, 0.25, 3.75], rtol=1e-15)


def test_a_spray_over_two_paths_gets_the_sum():
    # Half of the rate on each of links 1 and 2; link 0 is not the bottleneck.
    rates = max_min_rates(np.array([10.0, 1.0, 1.0]), *csr([[0, 1, 2]]), np.array([1.0, 0.5, 0.5]))
    np.testing.assert_allclose(rates, [2.0])


def test_a_multiplicity_is_as_many_pieces():
    capacity = np.array([1.0, 2.0, 0.7])
    one_by_one = max_min_rates(capacity, *csr([[0, 1], [0, 1], [0, 1], [1, 2], [2]]))
    merged = max_min_rates(capacity, *csr([[0, 1], [1, 2], [2]]), np.array([3.0, 3.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose(merged, one_by_one[[0, 3, 4]], rtol=1e-14)


def test_pieces_without_links_and_no_pieces():
    assert max_min_rates([1.0], [0, 0, 1, 1], [0]).tolist() == [np.inf, 1.0, np.inf]
    assert max_min_rates(np.ones(3), np.array([0]), np.zeros(0, dtype=np.int32)).shape == (0,)


@settings(max_examples=300, deadline=None)
@given(instances())
def test_every_piece_has_a_bottleneck(instance):
    capacity, indptr, links, weight = instance
    assert has_bottlenecks(
        capacity, incidence(len(capacity), indptr, links, weight), max_min_rates(capacity, indptr, links)
    )


@settings(max_examples=200, deadline=None)
@given(instances(weighted=True))
def test_every_weighted_piece_has_a_bottleneck(instance):
    capacity, indptr, links, weight = instance
    rate = max_min_rates(capacity, indptr, links, weight)
    assert has_bottlenecks(capacity, incidence(len(capacity), indptr, links, weight), rate)


@settings(max_examples=60, deadline=None)
@given(instances(weighted=True))
def test_equals_a_sequence_of_linear_programs(instance):
    capacity, indptr, links, weight = instance
    if capacity.max() / capacity.min() > 1e3:  # the LP solver's own tolerance is absolute
        capacity = np.where(capacity > 1e3, 11.0, capacity)
    expected = sequential_lp(capacity, incidence(len(capacity), indptr, links, weight))
    np.testing.assert_allclose(max_min_rates(capacity, indptr, links, weight), expected, rtol=1e-8)


@settings(max_examples=300, deadline=None)
@given(instances(most_pieces=40, weighted=True), st.data())
def test_repair_finds_the_rates_of_a_fresh_filling(instance, data):
    """Pieces come and go in any order; after every change the rates are those of the active pieces alone."""
    capacity, indptr, links, weight = instance
    network = make_network(capacity, indptr, links, weight)
    rates, scratch = make_rates(network), make_scratch(network)
    n_pieces, n_active = len(indptr) - 1, 0
    active: set[int] = set()
    for _ in range(8):
        coming = data.draw(st.sets(st.integers(0, n_pieces - 1), max_size=6)) - active
        going = data.draw(st.sets(st.sampled_from(sorted(active)), max_size=4)) if active else set()
        n_active = change(network, rates, scratch, n_active, sorted(going), sorted(coming))
        active = (active - going) | coming
        now = sorted(active)
        assert n_active == len(now)
        touches = [np.arange(indptr[p], indptr[p + 1]) for p in now]
        if now:
            some = np.concatenate(touches)
            starts = np.concatenate([[0], np.cumsum([len(t) for t in touches])])
            fresh = max_min_rates(capacity, starts, links[some], weight[some])
            np.testing.assert_allclose(rates.rate[now], fresh, rtol=1e-10)


def test_repair_on_a_large_instance():
    """Ten thousand pieces on a leaf-spine, leaving in random batches."""
    generator = np.random.default_rng(5)
    n, hosts, spines = 512, 16, 8
    src = np.tile(np.arange(n), 20)
    dst = generator.integers(0, n, len(src))
    spine = generator.integers(0, spines, len(src))
    fabric = 2 * n + (src // hosts) * spines + spine, 2 * n + (n // hosts + dst // hosts) * spines + spine
    links = np.stack([src, *fabric, n + dst], axis=1).ravel().astype(np.int32)
    indptr = np.arange(0, len(links) + 1, 4)
    capacity = generator.choice([1.0, 2.0, 4.0], 2 * n + 2 * (n // hosts) * spines)
    network = make_network(capacity, indptr, links, np.ones(len(links)))
    rates, scratch = make_rates(network), make_scratch(network)
    n_active = change(network, rates, scratch, 0, [], list(range(len(src))))
    left = generator.permutation(len(src))
    for batch in range(30):
        going, left = left[:50], left[50:]
        n_active = change(network, rates, scratch, n_active, going.tolist(), [])
        if batch % 10 == 9:
            now = np.sort(left)
            fresh = max_min_rates(capacity, np.arange(0, 4 * len(now) + 1, 4), links.reshape(-1, 4)[now].ravel())
            np.testing.assert_allclose(rates.rate[now], fresh, rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.array([1.0, 0.0]), *csr([[0]])), r"capacity_bytes_per_s\[1\] must be finite and > 0, got 0"),
        ((np.array([1.0, np.nan]), *csr([[0]])), r"capacity_bytes_per_s\[1\] must be finite and > 0, got nan"),
        ((np.ones((2, 2)), *csr([[0]])), r"capacity_bytes_per_s must have one dimension, got shape \(2, 2\)"),
        ((np.ones(2), np.array([0, 2]), np.array([0])), "indptr must rise from 0 to the 1 entries of links"),
        ((np.ones(2), np.array([0, 1]), np.array([2])), r"links\[0\] must be >= 0 and < 2, got 2"),
        ((np.ones(2), *csr([[0]]), np.array([-1.0])), r"weight\[0\] must be finite and > 0, got -1"),
        ((np.ones(2), *csr([[0]]), np.ones(2)), "weight must have one entry for each of the 1 entries of links, got 2"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        max_min_rates(*arguments)
