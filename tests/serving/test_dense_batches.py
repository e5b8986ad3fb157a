"""Dense batches against a token-by-token account of every request, and their simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anabranch.serving import (
    BatchFormer,
    BatchSeconds,
    Curve,
    IterationCosts,
    RequestTable,
    Workload,
    published_layer,
    simulate_dense_batches,
)
from anabranch.simulation import ACCELERATORS, LLAMA2_70B

COSTS = IterationCosts(LLAMA2_70B, ACCELERATORS["A100-80"], 8, Workload(512.0, 1024.0), 2048)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_every_token_is_accounted_for(seed: int, asynchronous: bool) -> None:
    """A second book: each request by itself, its cache, its tokens, through evictions."""
    generator = np.random.default_rng(seed)
    dense, memory = int(generator.integers(3, 20)), int(generator.integers(40, 90))
    lengths = {r: (int(generator.integers(1, 18)), int(generator.integers(1, 18))) for r in range(15)}
    former = BatchFormer(dense, memory, 2.0, asynchronous=asynchronous)
    for request, (prompt, output) in lengths.items():
        former.add(request, prompt, output)
    cache = dict.fromkeys(lengths, 0)
    given = dict.fromkeys(lengths, 0)
    decoding: set[int] = set()
    done: list[int] = []
    ghosts: set[int] = set()
    for _ in range(2000):
        if former.idle:
            break
        batch = former.form()
        for request in batch.evicted:
            cache[request] = 0
            decoding.discard(request)
            ghosts.discard(request)
        assert batch.decodes == len(decoding) + len(ghosts)
        assert batch.context_tokens == sum(cache[r] for r in decoding | ghosts)
        assert batch.wasted == len(ghosts)
        assert batch.tokens <= max(dense, batch.decodes)
        for request in decoding:
            given[request] += 1
            cache[request] += 1
        for request in ghosts:
            cache[request] = 0
        ghosts = set()
        for chunk in batch.chunks:
            assert chunk.start == cache[chunk.request] < chunk.end
            cache[chunk.request] = chunk.end
        for request in batch.first:
            given[request] += 1
            decoding.add(request)
        assert {r for r in decoding if given[r] == lengths[r][1]} == set(batch.ended)
        for request in batch.ended:
            decoding.discard(request)
            done.append(request)
            if asynchronous:
                ghosts.add(request)
            else:
                cache[request] = 0
        assert former.held_tokens == sum(cache.values())
        assert former.held_tokens <= memory
    assert sorted(done) == sorted(lengths)
    assert former.idle


def test_some_of_these_evict() -> None:
    former = BatchFormer(8, 30, 0.1)
    for request in range(6):
        former.add(request, 4, 12)
    seen = 0
    while not former.idle:
        seen += len(former.form().evicted)
    assert seen > 0


def test_batches_stay_full_and_one_token_is_wasted() -> None:
    generator = np.random.default_rng(0)
    n = 3000
    requests = RequestTable.of(np.zeros(n), generator.integers(200, 900, n), generator.integers(50, 300, n))
    served = simulate_dense_batches(
        BatchFormer(2048, 1_500_000, 175.0), requests, BatchSeconds(COSTS), kv_bytes_per_token=1
    )
    assert served.result.finished.all()
    assert served.wasted_tokens == n
    answers = int(requests.output_tokens.sum())
    assert served.tokens == int(requests.prompt_tokens.sum()) + answers - n + n  # the first token comes with the prompt
    assert served.fill > 0.5
    assert (served.result.ttft_s <= served.result.e2e_s).all()
    assert (served.result.queue_s <= served.result.ttft_s).all()
    assert served.wasted_tokens / answers < 0.01


def test_seconds_of_the_mean_batch_are_those_of_the_layer() -> None:
    layer = published_layer(COSTS)
    former = BatchFormer(2048, 1_500_000, 1024.0)
    seconds = BatchSeconds(COSTS)
    from anabranch.serving import Chunk, DenseBatch

    batch = DenseBatch(
        layer.decode_tokens, round(layer.decode_tokens * 1024.0), 0, (Chunk(0, 0, 512), Chunk(1, 341, 512)), (), (), ()
    )
    assert batch.tokens == 2048
    assert seconds(batch) == pytest.approx(layer.sequential_s, rel=1e-9)
    faster = replace(seconds, overlapped=Curve(np.array([0.1, 0.3]), np.array([0.8, 0.8])))
    assert faster(batch) == pytest.approx(0.8 * layer.sequential_s, rel=1e-9)
    assert former.idle


def test_overhead_hides_behind_an_asynchronous_batch() -> None:
    requests = RequestTable.of(np.zeros(4), [8] * 4, [4] * 4)

    def run(asynchronous: bool) -> float:
        former = BatchFormer(64, 1000, 4.0, asynchronous=asynchronous)
        return simulate_dense_batches(
            former, requests, lambda batch: 1.0, kv_bytes_per_token=1, overhead_s=0.5
        ).result.end_s

    assert run(False) == pytest.approx(4 * 1.5)
    assert run(True) == pytest.approx(5.0)  # one iteration more, nothing waits


def test_requests_that_come_later_are_waited_for() -> None:
    requests = RequestTable.of([0.0, 100.0], [8, 8], [2, 2])
    served = simulate_dense_batches(BatchFormer(64, 1000, 4.0), requests, lambda batch: 1.0, kv_bytes_per_token=1)
    assert served.result.e2e_s == pytest.approx([2.0, 2.0])
    assert served.result.iterations[0] == 6


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="dense_batch must be > 0"):
        BatchFormer(0, 10, 1.0)
    former = BatchFormer(8, 20, 1.0)
    with pytest.raises(ValueError, match="needs 31 of 20 tokens"):
        former.add(0, 20, 10)
    with pytest.raises(ValueError, match="expected at least 1"):
        former.add(0, 0, 1)
    former.add(0, 2, 2)
    with pytest.raises(ValueError, match="here already"):
        former.add(0, 2, 2)
    with pytest.raises(ValueError, match="take a new one"):
        simulate_dense_batches(former, RequestTable.of([0.0], [1], [1]), lambda b: 1.0, kv_bytes_per_token=1)
