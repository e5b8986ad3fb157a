"""Schedules executed on cores: the same numbers as transformers' own layer, whatever the cuts, the order and the lanes."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from anabranch.language import CausalModel, tiny_causal
from anabranch.serving import (
    CpuLanes,
    CudaLanes,
    Interference,
    LayerWeights,
    LayerWork,
    MixedBatch,
    NanoGraph,
    Piece,
    even_pieces,
    graph_pieces,
    layer_works,
    measure_interference,
    measure_operations,
    overlap_pieces,
    run_in_sequence,
    search_overlap,
    transformer_layer,
)

SECONDS = {"KQV": 2.0, "DecAttn": 3.0, "PfAttn": 1.0, "O": 1.0, "UG": 4.0, "D": 2.0}
BATCH = MixedBatch(decodes=4, context=9, prompts=(5, 1, 7))


@pytest.fixture(scope="module")
def model() -> CausalModel:
    return tiny_causal(layers=3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lanes() -> Iterator[CpuLanes]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    with CpuLanes(cores[:2]) as found:
        yield found


def works_of(model: CausalModel, batch: MixedBatch = BATCH, layers: int = 3, seed: int = 1) -> list[LayerWork]:
    return layer_works(model.model, batch, layers=layers, generator=torch.Generator().manual_seed(seed))


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    """To 1e-5 of the largest entry."""
    assert float((one - other).abs().max()) <= 1e-5 * float(other.abs().max())


def reference(model: CausalModel, work: LayerWork, index: int) -> torch.Tensor:
    """The layer of transformers, request by request, on the same input, caches as its own module makes them."""
    from transformers import DynamicCache

    layer, rotary = model.model.model.layers[index], model.model.model.rotary_emb
    batch, rows = work.batch, []
    for r in range(batch.decodes):
        cache = DynamicCache()
        keys, values = (x[r, :, :, :-1].transpose(1, 2)[None].clone() for x in (work.keys, work.values))
        for _ in range(index):
            cache.update(keys[:, :, :0], values[:, :, :0], len(cache))
        cache.update(keys, values, index)
        x = work.hidden[r][None, None]
        position = torch.tensor([[batch.context]])
        out = layer(x, position_embeddings=rotary(x, position), past_key_values=cache, position_ids=position)
        rows.append((out[0] if isinstance(out, tuple) else out).reshape(1, -1))
    for begin, length in zip(batch.starts, batch.prompts, strict=True):
        x = work.hidden[begin : begin + length][None]
        position = torch.arange(length)[None]
        mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
        out = layer(x, position_embeddings=rotary(x, position), attention_mask=mask, position_ids=position)
        rows.append((out[0] if isinstance(out, tuple) else out).reshape(length, -1))
    return torch.cat(rows)


def test_the_whole_batch_is_transformers_own_layer(model: CausalModel) -> None:
    works = works_of(model)
    run_in_sequence(works)
    for index, work in enumerate(works):
        assert_same(work.output, reference(model, work, index))


@pytest.mark.parametrize("seed", range(12))
def test_any_split_gives_the_whole_batch(model: CausalModel, lanes: CpuLanes, seed: int) -> None:
    generator = np.random.default_rng(seed)
    whole = works_of(model)
    run_in_sequence(whole)
    works = works_of(model)
    layer = transformer_layer(SECONDS, BATCH.decodes, BATCH.prompt_tokens, prompts=BATCH.starts)
    splits = {
        one.name: (np.flatnonzero(generator.random(BATCH.tokens - 1) < 0.3) + 1).tolist() for one in layer.operations
    }
    graph = NanoGraph.split(layer, splits, granularity=None)
    rows = lanes.run(graph_pieces(graph, works, 2))
    assert len(rows) == 3 * len(graph.nodes)
    for one, other in zip(works, whole, strict=True):
        assert_same(one.output, other.output)


def test_a_searched_schedule_gives_the_whole_batch(model: CausalModel, lanes: CpuLanes) -> None:
    halves = MixedBatch(decodes=6, context=9, prompts=(5, 3, 7, 4)).halves()
    table = Interference({"gemm": [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)], "gemv": [(0.0, 0.0), (0.5, 0.9), (1.0, 1.0)]})
    both = [works_of(model, half, seed=2 + i) for i, half in enumerate(halves)]
    expected = [works_of(model, half, seed=2 + i) for i, half in enumerate(halves)]
    for works in expected:
        run_in_sequence(works)
    operations = [measure_operations(works, lanes, repeats=2) for works in both]
    for works in both:
        for work in works:
            work.output.zero_()
    schedule = search_overlap(*operations, table, levels=(0.0, 0.5, 1.0), gap=0.05, time_limit_s=20.0)
    rows = lanes.run(overlap_pieces(schedule, table, both[0], both[1], 2))
    for got, wanted in zip(both, expected, strict=True):
        for one, other in zip(got, wanted, strict=True):
            assert_same(one.output, other.output)
    for core in {row[0] for row in rows}:  # a lane does one thing at a time
        mine = sorted((a, b) for where, a, b, _ in rows if where == core)
        assert all(b <= c for (_, b), (c, _) in itertools.pairwise(mine))


def test_the_sequence_on_lanes_and_its_measures(model: CausalModel, lanes: CpuLanes) -> None:
    whole, works = works_of(model), works_of(model)
    run_in_sequence(whole)
    lanes.run(even_pieces(works, 2))
    assert_same(works[-1].output, whole[-1].output)
    found = measure_operations(works, lanes, repeats=2)
    assert [one.name for one in found] == ["KQV", "DecAttn", "PfAttn", "O", "UG", "D"]
    assert all(one.seconds > 0 for one in found)


def test_the_table_of_interference_is_what_was_measured(lanes: CpuLanes) -> None:
    import time

    measured = measure_interference(
        lanes, {kind: lambda a, b: time.sleep(0.02 * (b - a)) for kind in ("gemm", "gemv")}, repeats=3
    )
    for kind in ("gemm", "gemv"):
        wanted = min(1.0, measured.alone_s[kind][-1] / measured.beside_s[kind][0])
        assert float(measured.table(kind, 0.5)) == pytest.approx(wanted)
        assert len(measured.alone_s[kind]) == 2
        assert len(measured.beside_s[kind]) == 1
        assert min(*measured.alone_s[kind], *measured.beside_s[kind]) > 0
    with pytest.raises(ValueError, match="repeats=0"):
        measure_interference(lanes, {"gemm": lambda a, b: None, "gemv": lambda a, b: None}, repeats=0)


def test_lanes_are_pinned_and_alone(lanes: CpuLanes) -> None:
    threads = torch.get_num_threads()
    seen: dict[int, tuple[set[int], int, str]] = {}

    def look(lane: int) -> None:
        seen[lane] = os.sched_getaffinity(0), torch.get_num_threads(), threading.current_thread().name

    lanes.run([Piece(0, lambda: look(0)), Piece(1, lambda: look(1))])
    assert seen == {i: ({lanes.cores[i]}, 1, f"lane-{i}") for i in range(2)}
    assert torch.get_num_threads() == threads
    assert len(os.sched_getaffinity(0)) > 1 or lanes.count == 1


def test_pieces_wait_for_what_they_need(lanes: CpuLanes) -> None:
    import time

    done: list[str] = []
    pieces = [
        Piece(0, lambda: (time.sleep(0.02), done.append("a"))), Piece(1, lambda: done.append("b"), (0,)),
        Piece(0, lambda: done.append("c"), (1,)),
    ]  # fmt: skip
    rows = lanes.run(pieces)
    assert done == ["a", "b", "c"]
    assert rows[0][2] <= rows[1][1] <= rows[1][2] <= rows[2][1]


def test_an_error_in_a_piece_reaches_the_caller(lanes: CpuLanes) -> None:
    def fail() -> None:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        lanes.run([Piece(0, fail), Piece(1, lambda: None, (0,))])
    assert len(lanes.run([Piece(0, lambda: None)])) == 1  # and the lanes still work


def test_bad_input(model: CausalModel, lanes: CpuLanes) -> None:
    with pytest.raises(ValueError, match="expected different ones of"):
        CpuLanes([10_000])
    with pytest.raises(ValueError, match="there are 2"):
        lanes.run([Piece(2, lambda: None)])
    with pytest.raises(ValueError, match="expected pieces before it"):
        lanes.run([Piece(0, lambda: None, (0,))])
    with pytest.raises(ValueError, match="has no tokens"):
        MixedBatch(0, 4, ())
    with pytest.raises(ValueError, match="at least two of each"):
        MixedBatch(1, 4, (3, 3)).halves()
    with pytest.raises(ValueError, match=r"prompts=\(0,\)"):
        MixedBatch(1, 4, (0,))
    works = works_of(model)
    with pytest.raises(ValueError, match="operation must be one of"):
        works[0].run("Softmax", 0, 1)
    with pytest.raises(ValueError, match="DecAttn works on tokens 0 to 4, got 0 to 5"):
        works[0].run("DecAttn", 0, 5)
    with pytest.raises(ValueError, match="layers must be 1 to 3"):
        works_of(model, layers=4)
    with pytest.raises(ValueError, match="is no layer of a Llama"):
        LayerWeights(torch.nn.Linear(2, 2), None)
    with pytest.raises(ValueError, match="expected 17 tokens"):
        LayerWork(
            works[0].weights,
            BATCH,
            works[0].hidden[:3],
            works[0].keys,
            works[0].values,
            works[0].cos[:3],
            works[0].sin[:3],
        )
    graph = NanoGraph.split(transformer_layer({**SECONDS, "Net": 1.0}, 4, 13), granularity=None)
    with pytest.raises(ValueError, match="leave out collectives"):
        graph_pieces(graph, works, 2)
    with pytest.raises(ValueError, match="the graph is for 4 decoding of 9 tokens"):
        graph_pieces(NanoGraph.split(transformer_layer(SECONDS, 4, 5), granularity=None), works, 2)
    table = Interference.published()
    operations = measure_operations(works, lanes, repeats=1)
    schedule = search_overlap(operations, operations, table, gap=0.2, time_limit_s=10.0)
    with pytest.raises(ValueError, match="expected as many"):
        overlap_pieces(schedule, table, works, works[:1], 2)
    half = replace(schedule, segments=(replace(schedule.segments[0], shares=(0.5, 0.5)),))
    with pytest.raises(ValueError, match="whole numbers of 3 lanes"):
        overlap_pieces(half, table, works, works, 3)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="needs a GPU"):
            CudaLanes(2)
    with pytest.raises(ValueError, match="count must be >= 1"):
        CudaLanes(0)
