"""Prompts in pieces and machines that fail, in the cluster simulator: closed forms, invariants, bad input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anabranch.serving import (
    Batching,
    Cluster,
    Curve,
    PerformanceModel,
    Pool,
    RequestTable,
    ServingResult,
    Transfers,
    simulate_cluster,
)
from anabranch.simulation import BLOOM_176B, DGX_H100

KV = BLOOM_176B.kv_bytes_per_token()
WEIGHTS = 329 * 10**9
FLAT = Curve(np.array([0.0]), np.array([1.0]))
MODEL = PerformanceModel(
    Curve(np.array([0.0, 1000.0]), np.array([0.02, 0.12])), Curve(np.array([0.0, 64.0]), np.array([0.03, 0.05])), FLAT,
    by="requests",
)  # fmt: skip
STEP = float(MODEL.decode_seconds(1, 0))
RATE = 1e10
ONE_BY_ONE = Transfers(overlap="serialized", shared_links=False, bytes_per_s=RATE)
CHUNKS = Batching(chunk_tokens=512)


def split(prompt: int, token: int, **options: Any) -> Cluster:
    settings: dict[str, Any] = {"transfers": ONE_BY_ONE, **options}
    pools = (Pool(DGX_H100, prompt, "prompt"), Pool(DGX_H100, token, "token"))
    return Cluster(pools, {DGX_H100.name: settings.pop("model", MODEL)}, KV, WEIGHTS, **settings)


def together(count: int, **options: Any) -> Cluster:
    settings: dict[str, Any] = {"transfers": ONE_BY_ONE, **options}
    pools, model = (Pool(DGX_H100, count, "mixed"),), settings.pop("model", MODEL)
    return Cluster(pools, {DGX_H100.name: model}, KV, WEIGHTS, "join_shortest_queue", **settings)


def some_requests(n: int = 300, rate: float = 8.0, seed: int = 0, longest: int = 3000) -> RequestTable:
    generator = np.random.default_rng(seed)
    return RequestTable(
        np.cumsum(generator.exponential(1 / rate, n)), generator.integers(1, longest, n), generator.integers(1, 200, n)
    )


def seconds(*tokens: int) -> float:
    return float(sum(MODEL.prompt_seconds(n) for n in tokens))


def assert_served(found: ServingResult, requests: RequestTable) -> None:
    assert found.finished.all()
    assert (found.queue_s >= -1e-12).all()
    assert (found.ttft_s >= found.queue_s).all()
    assert (found.e2e_s >= found.ttft_s).all()
    assert (found.second_token_gap_s >= 0).all()
    assert (found.kv_peak_bytes <= DGX_H100.memory_bytes).all()
    assert (found.busy_s <= found.end_s + 1e-9).all()
    assert found.end_s == pytest.approx((requests.arrival_s + found.e2e_s).max())


# Prompts in pieces.


@pytest.mark.parametrize(("prompt", "pieces"), [(300, (300,)), (512, (512,)), (1300, (512, 512, 276))])
@pytest.mark.parametrize("tokens", [1, 2, 30])
def test_a_request_alone_takes_the_sum_of_its_pieces(prompt: int, pieces: tuple[int, ...], tokens: int) -> None:
    request = RequestTable.of([2.0], [prompt], [tokens])
    for cluster, sent in ((together(1, batching=CHUNKS), 0.0), (split(1, 1, batching=CHUNKS), prompt * KV / RATE)):
        found = simulate_cluster(cluster, request)
        gap = sent if tokens > 1 else 0.0
        assert found.ttft_s[0] == pytest.approx(seconds(*pieces), rel=1e-12)
        assert found.second_token_gap_s[0] == pytest.approx(gap, rel=1e-9, abs=1e-12)
        assert found.e2e_s[0] == pytest.approx(seconds(*pieces) + gap + (tokens - 1) * STEP, rel=1e-12)
        assert found.iterations.sum() == len(pieces) + tokens - 1


def test_a_prompt_is_read_in_what_the_decodes_leave() -> None:
    """The second request comes while the first decodes: its pieces are of 511 tokens, its iterations mixed ones."""
    requests = RequestTable.of([0.0, seconds(100) + 0.5 * STEP], [100, 1200], [50, 2])
    found = simulate_cluster(together(1, batching=CHUNKS), requests)
    mixed = [MODEL.mixed_factor * seconds(n) for n in (512, 512, 1200 - 2 * 511 + 1)]
    assert found.queue_s[1] == pytest.approx(0.5 * STEP)
    assert found.ttft_s[1] == pytest.approx(0.5 * STEP + sum(mixed))
    both = float(MODEL.decode_seconds(2, 0))
    assert found.e2e_s[1] == pytest.approx(0.5 * STEP + sum(mixed) + both)
    rest = 49 - 1 - 3 - 1  # tokens of the first after those beside the second
    assert found.e2e_s[0] == pytest.approx(seconds(100) + STEP + sum(mixed) + both + rest * STEP)


@pytest.mark.parametrize("chunk", [1, 64, 512, 4096])
@pytest.mark.parametrize("rate", [4.0, 40.0])
def test_every_request_is_served_and_no_mean_gap_is_longer_than_a_mixed_iteration(chunk: int, rate: float) -> None:
    requests = some_requests(150, rate, longest=3000 if chunk > 1 else 100)
    for cluster in (together(2), split(1, 2), split(2, 1)):
        found = simulate_cluster(replace(cluster, batching=Batching(chunk_tokens=chunk)), requests)
        assert_served(found, requests)
        longest = MODEL.mixed_factor * seconds(chunk)
        if cluster.scheduler == "join_shortest_queue":  # (elsewhere a decode may wait for room)
            assert np.nanmax(found.tbt_s) <= max(longest, float(MODEL.decode_seconds(150, 0))) + 1e-9
            assert found.preemptions == 0


@pytest.mark.parametrize("chunk", [64, 512])
def test_requests_of_two_tokens_show_every_gap(chunk: int) -> None:
    """Whole prompts keep a token waiting for the longest of them, pieces for one mixed iteration."""
    lengths = some_requests(200, 30.0)
    requests = replace(lengths, output_tokens=np.full(200, 2))
    limit = max(MODEL.mixed_factor * seconds(chunk), float(MODEL.decode_seconds(200, 0)))  # or a batch of decodes alone
    pieces = simulate_cluster(together(2, batching=Batching(chunk_tokens=chunk)), requests)
    whole = simulate_cluster(together(2), requests)
    assert pieces.tbt_s.max() <= limit + 1e-9
    assert whole.tbt_s.max() > 2 * limit


def test_memory_is_kept_for_whole_requests() -> None:
    """Room for two requests at once: the third starts when the first has ended, and nothing is stuck."""
    room = (2 * 1100 + 500) * KV
    cluster = replace(together(1, batching=CHUNKS), weight_bytes=DGX_H100.memory_bytes - room)
    found = simulate_cluster(cluster, RequestTable.of([0.0, 0.0, 0.0], [1000, 1000, 1000], [50, 100, 100]))
    assert found.finished.all()
    assert found.queue_s[2] >= found.e2e_s[0] - 1e-12
    assert found.kv_peak_bytes[0] == cluster.weight_bytes + 2 * 1100 * KV


@pytest.mark.parametrize("layers", [1, 8, 70])
@pytest.mark.parametrize("rate", [2e9, 1e10, 1e11])
def test_pieces_are_sent_layer_by_layer(layers: int, rate: float) -> None:
    end = done = 0.0
    for tokens in (512, 512, 276):
        for layer in range(1, layers + 1):
            end = max(end, done + layer / layers * seconds(tokens)) + tokens * KV / (layers * rate)
        done += seconds(tokens)
    transfers = Transfers(layers=layers, bytes_per_s=rate, shared_links=False)
    found = simulate_cluster(split(1, 1, batching=CHUNKS, transfers=transfers), RequestTable.of([0.0], [1300], [5]))
    assert found.second_token_gap_s[0] == pytest.approx(end - done, rel=1e-9)


# Machines that fail.


def test_a_prompt_that_is_lost_is_read_again_elsewhere() -> None:
    request, lost_at = RequestTable.of([0.0], [800], [10]), 0.06
    found = simulate_cluster(split(2, 1), request, failures=[(lost_at, 0)])
    assert found.ttft_s[0] == pytest.approx(lost_at + seconds(800))
    assert found.e2e_s[0] == pytest.approx(lost_at + seconds(800) + 800 * KV / RATE + 9 * STEP)
    assert found.restarts.tolist() == [1]
    assert found.source.tolist() == [1]
    assert found.queue_s[0] == 0  # it was begun at once


def test_tokens_that_were_given_count_once() -> None:
    """Half through the fourth decode: four tokens are out, and become part of the prompt."""
    request, sent = RequestTable.of([0.0], [800], [10]), 800 * KV / RATE
    lost_at = seconds(800) + sent + 3.5 * STEP
    found = simulate_cluster(split(1, 2), request, failures=[(lost_at, 1)])
    assert found.ttft_s[0] == pytest.approx(seconds(800))
    assert found.second_token_gap_s[0] == pytest.approx(sent)
    assert found.e2e_s[0] == pytest.approx(lost_at + seconds(804) + 804 * KV / RATE + 5 * STEP)
    assert found.target.tolist() == [2]
    at_home = simulate_cluster(together(2), request, failures=[(seconds(800) + 3.5 * STEP, 0)])
    assert at_home.e2e_s[0] == pytest.approx(seconds(800) + 3.5 * STEP + seconds(804) + 5 * STEP)


def test_a_cache_on_its_way() -> None:
    """Sent again to another machine where its target fails; computed again, with the first token, where its source does."""
    request, sent = RequestTable.of([0.0], [800], [10]), 800 * KV / RATE
    lost_at = seconds(800) + 0.4 * sent
    other = simulate_cluster(split(1, 2), request, failures=[(lost_at, 1)])
    assert other.restarts.tolist() == [0]
    assert other.e2e_s[0] == pytest.approx(lost_at + sent + 9 * STEP)
    again = simulate_cluster(split(2, 1), request, failures=[(lost_at, 0)])
    assert again.restarts.tolist() == [1]
    assert again.e2e_s[0] == pytest.approx(lost_at + seconds(801) + 801 * KV / RATE + 8 * STEP)
    here = simulate_cluster(
        split(1, 1), request, failures=[(lost_at, 1)]
    )  # no other: decodes where its prompt was read
    assert here.e2e_s[0] == pytest.approx(lost_at + 9 * STEP)
    earlier = simulate_cluster(split(1, 1), request, failures=[(0.01, 1)])
    assert earlier.e2e_s[0] == pytest.approx(seconds(800) + 9 * STEP)
    pieces = simulate_cluster(split(1, 1, batching=CHUNKS), request, failures=[(0.01, 1)])
    assert pieces.e2e_s[0] == pytest.approx(seconds(512, 288) + 9 * STEP)


@pytest.mark.parametrize("layers", [1, 4, 70])
@pytest.mark.parametrize("rate", [2e9, 1e10, 1e11])
def test_layers_that_went_to_a_lost_machine_go_once_more(layers: int, rate: float) -> None:
    """To the next target the whole cache, or, while the prompt still runs, what was computed by then at once."""
    request, prompt, whole = RequestTable.of([0.0], [800], [10]), seconds(800), 800 * KV / rate
    cluster = split(1, 2, transfers=Transfers(layers=layers, bytes_per_s=rate, shared_links=False))
    calm = simulate_cluster(cluster, request)
    lost_at = prompt + 0.5 * calm.second_token_gap_s[0]
    found = simulate_cluster(cluster, request, failures=[(lost_at, 1)])
    assert found.second_token_gap_s[0] == pytest.approx(lost_at - prompt + whole, rel=1e-9)
    for share in (0.01, 0.6, 0.99):  # of the prompt
        end = share * prompt
        for layer in range(1, layers + 1):
            end = max(end, layer / layers * prompt) + whole / layers
        found = simulate_cluster(cluster, request, failures=[(share * prompt, 1)])
        assert found.second_token_gap_s[0] == pytest.approx(end - prompt, rel=1e-9)


@pytest.mark.parametrize("layers", [1, 4, 70])
@pytest.mark.parametrize("rate", [2e9, 1e10, 1e11])
def test_pieces_that_went_to_a_lost_machine_go_once_more(layers: int, rate: float) -> None:
    pieces = (512, 512, 276)
    lost_at = seconds(512) + 0.6 * seconds(512)
    end, done = lost_at + 512 * KV / rate, seconds(512)
    for tokens in pieces[1:]:
        for layer in range(1, layers + 1):
            end = max(end, done + layer / layers * seconds(tokens)) + tokens * KV / (layers * rate)
        done += seconds(tokens)
    transfers = Transfers(layers=layers, bytes_per_s=rate, shared_links=False)
    request = RequestTable.of([0.0], [1300], [5])
    cluster = split(1, 2, batching=CHUNKS, transfers=transfers)
    found = simulate_cluster(cluster, request, failures=[(lost_at, 1)])
    assert found.second_token_gap_s[0] == pytest.approx(end - done, rel=1e-9)


def test_layers_do_not_go_ahead_to_a_machine_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """One transfer by hand: refused at the prompt's end and tried again, all layers go from then on."""
    from anabranch.serving import cluster as module
    from anabranch.serving._kernels_events import drop_first
    from anabranch.serving._kernels_lists import RETRY, TRANSFER_END
    from anabranch.serving._kernels_transfers import begin_transfer

    states: list[Any] = []
    monkeypatch.setattr(module, "run", lambda *state: (states.append(state), 0.0)[1])
    transfers = Transfers(layers=70, bytes_per_s=RATE, shared_links=False, retry_s=0.25)
    simulate_cluster(split(1, 1, transfers=transfers), RequestTable.of([0.0], [900], [40]))
    c, q, rules, _, fleet, heap = states[0]
    q.source[0], q.target[0], q.prompt_s[0] = 0, 1, seconds(900)
    whole = 900 * KV / RATE
    c.used[1] = fleet.capacity[1]
    begin_transfer(0, True, 5.0, c, q, rules, fleet, heap)
    assert (heap.time[0], heap.kind[0]) == (5.25, RETRY)
    drop_first(heap)
    c.used[1] = fleet.weights[1]
    begin_transfer(0, False, 5.25, c, q, rules, fleet, heap)
    assert (heap.time[0], heap.kind[0]) == (5.25 + whole, TRANSFER_END)
    drop_first(heap)
    begin_transfer(0, True, 5.0, c, q, rules, fleet, heap)
    assert heap.time[0] == pytest.approx(5 + max(whole / 70, whole - seconds(900) * 69 / 70), rel=1e-12)
    assert heap.time[0] < 5 + whole


def test_a_block_that_a_failure_ends_is_within_the_time() -> None:
    """The last machine fails in a long decode: it was busy until then, and so long it went on."""
    request, sent = RequestTable.of([0.0], [800], [1000]), 800 * KV / RATE
    lost_at = seconds(800) + sent + 10.5 * STEP
    found = simulate_cluster(split(1, 1), request, failures=[(lost_at / 2, 0), (lost_at, 1)])
    alone = simulate_cluster(together(1), request, failures=[(lost_at, 0)])
    for one in (found, alone):
        assert one.end_s == pytest.approx(lost_at, rel=1e-12)
        assert (one.busy_s <= one.end_s).all()
    assert alone.busy_s[0] == pytest.approx(lost_at, rel=1e-12)
    assert alone.iterations[0] == 1 + int((lost_at - seconds(800)) / STEP)


def test_what_a_dead_machine_would_have_done_is_no_event() -> None:
    request = RequestTable.of([0.0, 0.0], [800, 10], [1, 1])
    found = simulate_cluster(together(2), request, failures=[(0.5 * seconds(10), 0)])
    assert found.end_s == pytest.approx((request.arrival_s + found.e2e_s).max(), rel=1e-12)
    slow = replace(MODEL, prompt=Curve(np.array([0.0, 1000.0]), np.array([0.02, 50.0])))
    stopped = simulate_cluster(together(1, model=slow), RequestTable.of([0.0], [800], [1]), failures=[(1.0, 0)])
    assert stopped.end_s == 1.0


@pytest.mark.parametrize("chunk", [None, 256])
@pytest.mark.parametrize("limit", [0.03, 1.0, 5.0, 9.7])
def test_the_limit_ends_what_runs(limit: float, chunk: int | None) -> None:
    requests = some_requests(100, 20.0)
    for cluster in (split(1, 2), together(2)):
        cluster = replace(cluster, batching=Batching(chunk_tokens=chunk))
        for failures in ((), [(0.7 * limit, 1)], [(1e9, 1)]):
            found = simulate_cluster(cluster, requests, max_time_s=limit, failures=failures)
            assert found.end_s == limit
            assert (found.busy_s <= limit + 1e-9).all()
            more = simulate_cluster(cluster, requests, max_time_s=1.3 * limit, failures=failures)
            assert (found.busy_s <= more.busy_s + 1e-9).all()
            assert (more.busy_s - found.busy_s <= 0.3 * limit + 1e-9).all()
            assert (found.iterations <= more.iterations).all()
    calm = simulate_cluster(split(1, 2), requests)
    assert simulate_cluster(split(1, 2), requests, max_time_s=1e6).end_s == calm.end_s
    assert simulate_cluster(split(1, 2), requests, max_time_s=1e6, failures=[(2e6, 0)]).end_s == calm.end_s


def test_the_limit_books_what_runs_until_then() -> None:
    request = RequestTable.of([0.0], [800], [1000])
    limit = seconds(800) + 10.5 * STEP
    found = simulate_cluster(together(1), request, max_time_s=limit)
    assert found.busy_s[0] == pytest.approx(limit, rel=1e-12)
    assert found.energy_j[0] == pytest.approx(
        (seconds(800) + MODEL.decode_power * 10.5 * STEP) * DGX_H100.device_power_w, rel=1e-12
    )
    assert found.iterations[0] == 11
    before = simulate_cluster(together(1), RequestTable.of([5.0], [800], [1000]), max_time_s=2.0)
    assert (before.end_s, before.busy_s[0]) == (2.0, 0.0)
    with pytest.raises(ValueError, match=r"max_time_s must be >= 0, got -1"):
        simulate_cluster(together(1), request, max_time_s=-1.0)


def test_a_failure_elsewhere_changes_nothing() -> None:
    requests = RequestTable.of([0.0], [800], [10])
    calm = simulate_cluster(split(1, 1), requests)
    source = simulate_cluster(split(1, 1), requests, failures=[(seconds(800) + 800 * KV / RATE + STEP, 0)])
    late = simulate_cluster(split(1, 1), requests, failures=[(1e6, 0), (1e6, 1)])
    for found in (source, late):
        assert found.e2e_s[0] == calm.e2e_s[0]
        assert found.end_s == calm.end_s


@pytest.mark.parametrize("chunk", [None, 256])
@pytest.mark.parametrize("overlap", ["serialized", "layerwise"])
@pytest.mark.parametrize("seed", range(3))
def test_every_request_ends_once_while_machines_fail(
    chunk: int | None, overlap: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At random times under load, with links so fast that a cache hardly waits; all that was booked is given back."""
    from anabranch.serving import cluster as module

    states: list[Any] = []
    run = module.run
    monkeypatch.setattr(module, "run", lambda c, *rest: (states.append(c), run(c, *rest))[1])
    generator, requests = np.random.default_rng(seed), some_requests(200, 20.0, seed)
    for cluster in (split(3, 3), together(5)):
        chosen = replace(
            cluster, batching=Batching(chunk_tokens=chunk), transfers=Transfers(overlap, layers=4, bytes_per_s=1e12)
        )
        failed = generator.permutation(len(chosen.machines))[:3]
        failures = [(float(at), int(m)) for at, m in zip(generator.uniform(1, 12, 3), failed, strict=True)]
        found = simulate_cluster(chosen, requests, failures=failures)
        assert_served(found, requests)
        for name in ("used", "scheduled"):
            assert (getattr(states[-1], name) == WEIGHTS).all()
        assert not states[-1].pending.any()
        assert 0 < found.restarts.sum() < 3 * len(requests)
        calm = simulate_cluster(chosen, requests)
        assert found.e2e_s.mean() > calm.e2e_s.mean()
        assert not calm.restarts.any()
        before = requests.arrival_s + calm.e2e_s < min(at for at, _ in failures)
        assert np.array_equal(found.e2e_s[before], calm.e2e_s[before])
        for at, machine in failures:
            assert found.busy_s[machine] <= at + 1e-9


def test_a_late_failure_is_not_waited_for_second_by_second() -> None:
    """Caches that find no room are stuck until a machine fails in a day: what then goes on ends after it."""
    day = 86_400.0
    cluster = replace(split(1, 2), weight_bytes=DGX_H100.memory_bytes - 2000 * KV, pending_limit=10**9)
    requests = RequestTable(np.linspace(0.0, 0.1, 30), np.full(30, 900), np.full(30, 1000))
    stuck = simulate_cluster(cluster, requests, failures=[(0.2, 1)])
    late = simulate_cluster(cluster, requests, failures=[(0.2, 1), (day, 2)])
    assert not stuck.finished.all()
    assert late.retries < stuck.retries + 1000
    assert np.array_equal(late.e2e_s[stuck.finished], stuck.e2e_s[stuck.finished])
    assert (requests.arrival_s + late.e2e_s)[late.finished & ~stuck.finished].min(initial=np.inf) > day


def test_no_machine_is_left() -> None:
    lengths = some_requests(100, 10.0, longest=300)
    requests = replace(lengths, output_tokens=np.minimum(lengths.output_tokens, 10))
    for cluster in (split(1, 1), together(2)):
        found = simulate_cluster(cluster, requests, failures=[(2.0, 0), (4.0, 1)])
        ended = requests.arrival_s + found.e2e_s
        assert found.finished.any()
        assert not found.finished.all()
        assert (ended[found.finished] <= 4.0).all()
        assert found.source[requests.arrival_s > 4.0].max() == -1


def test_caches_that_never_find_room_do_not_run_for_ever() -> None:
    """One large answer fails over to a machine that is full of caches which wait for the rest of their own room."""
    room = 2000 * KV
    cluster = replace(split(1, 2), weight_bytes=DGX_H100.memory_bytes - room, pending_limit=10**9)
    requests = RequestTable(np.linspace(0.0, 0.1, 30), np.full(30, 900), np.full(30, 1000))
    found = simulate_cluster(cluster, requests, failures=[(0.2, 1)])
    assert found.end_s < 1e5


@pytest.mark.parametrize(
    ("failures", "words"),
    [
        ([(1.0, 2)], "failures has machine 2 at 1.0 s: expected 0 to 1"),
        ([(-1.0, 0)], "at 0 s or later"),
        ([(float("nan"), 0)], "at 0 s or later"),
        ([(float("inf"), 0)], "failures has machine 0 at inf s"),
        ([(1.0, 0), (2.0, 0)], "failures has machine 0 twice"),
    ],
)
def test_bad_failures(failures: list[tuple[float, int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        simulate_cluster(split(1, 1), some_requests(3), failures=failures)


def test_bad_chunks() -> None:
    with pytest.raises(ValueError, match="chunk_tokens must be >= 1 or None, got 0"):
        Batching(chunk_tokens=0)
