"""Dependencies of nano-operations against token by token, and what cutting costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from anabranch.serving import (
    IterationCosts,
    LayerGraph,
    LayerOperation,
    NanoGraph,
    NanoOperation,
    Workload,
    insert_step,
    nano_lanes,
    published_layer,
    transformer_layer,
    weight_seconds,
)
from anabranch.simulation import ACCELERATORS, LLAMA2_70B

COSTS = IterationCosts(LLAMA2_70B, ACCELERATORS["A100-80"], 8, Workload(512.0, 1024.0), 2048)
SECONDS = {"KQV": 2.0, "DecAttn": 3.0, "PfAttn": 1.0, "O": 1.0, "UG": 4.0, "D": 2.0, "Net": 4.0}


def by_token(graph: NanoGraph) -> set[tuple[int, int, int]]:
    """Node after node, token after token."""
    layer, found = graph.layer, set()
    for one in layer.operations:
        for lag, needs in ((0, one.needs), (1, one.needs_before)):
            for j, after in enumerate(graph.nodes):
                if after.operation != one.name:
                    continue
                tokens = set(range(after.start, after.end))
                if one.causal and layer.prompts:
                    for token in list(tokens):
                        begin = max(p for p in layer.prompts if p <= token)
                        tokens |= set(range(begin, token))
                for i, before in enumerate(graph.nodes):
                    if before.operation in needs and tokens & set(range(before.start, before.end)):
                        found.add((i, j, lag))
    return found


@pytest.mark.parametrize("block", range(10))
def test_edges_are_those_of_the_tokens(block: int) -> None:
    for seed in range(50 * block, 50 * block + 50):
        generator = np.random.default_rng(seed)
        decodes, prefill = (int(n) for n in generator.integers(1, 12, 2))
        batch = decodes + prefill
        prompts: tuple[int, ...] = ()
        if seed % 2:
            begins = decodes + np.flatnonzero(generator.random(prefill) < 0.3)
            prompts = tuple(sorted({decodes, *begins.tolist()}))
        layer = transformer_layer(SECONDS, decodes, prefill, prompts=prompts)
        if seed % 3 == 0:
            layer = layer.reduce_instead_of_gather()
        splits = {
            one.name: np.flatnonzero(generator.random(batch - 1) < 0.2).__add__(1).tolist() for one in layer.operations
        }
        graph = NanoGraph.split(layer, splits, granularity=None)
        assert set(graph.edges) == by_token(graph), seed
        assert len(set(graph.edges)) == len(graph.edges)


def test_cutting_costs_the_weights_that_are_read_again() -> None:
    layer = published_layer(COSTS)
    weights = sum(weight_seconds(COSTS).values())
    assert weights == pytest.approx(8.557e-3, rel=1e-3)
    assert NanoGraph.split(layer).sequential_s == pytest.approx(layer.sequential_s)
    assert NanoGraph.split(layer, [1024]).sequential_s == pytest.approx(layer.sequential_s + weights)
    assert NanoGraph.split(layer, [512, 1024, 1536]).sequential_s == pytest.approx(layer.sequential_s + 3 * weights)
    free = NanoGraph.split(layer, [1024], charge_rereads=False)
    assert free.sequential_s == pytest.approx(layer.sequential_s)
    assert sum(one.seconds for lane in nano_lanes(layer) for one in lane) == pytest.approx(layer.sequential_s)
    charged = nano_lanes(layer, (0.25, 0.75), charge_rereads=True)
    assert sum(one.seconds for lane in charged for one in lane) == pytest.approx(layer.sequential_s + weights)


def test_the_published_layer_is_the_measured_column() -> None:
    layer = published_layer(COSTS)
    found = {one.name: 1e3 * one.seconds for one in layer.operations}
    assert found == pytest.approx({
        "KQV": 16.08, "DecAttn": 35.6, "PfAttn": 4.56, "AttnAG": 11.98, "O": 16.01, "OAG": 11.98, "UG": 69.92, "D": 34.96,
        "UGDAR": 23.96,
    })  # fmt: skip
    prefill = published_layer(replace(COSTS, workload=Workload(512.0, 0.0)))
    assert prefill.sequential_s == pytest.approx(0.1986, abs=1e-4)
    assert "DecAttn" not in {one.name for one in prefill.operations}


def test_a_reduction_frees_the_projection_of_the_gather() -> None:
    layer = transformer_layer(SECONDS, 8, 8)
    changed = layer.reduce_instead_of_gather()
    by_name = {one.name: one for one in changed.operations}
    assert "AttnAG" not in by_name
    assert set(by_name["O"].needs) == {"KQV", "DecAttn", "PfAttn"}
    assert by_name["UG"].needs == ("OAR",)
    assert changed.sequential_s == pytest.approx(layer.sequential_s)
    with pytest.raises(ValueError, match="expected AttnAG, O and OAG"):
        changed.reduce_instead_of_gather()


def test_one_device_has_no_collectives() -> None:
    layer = transformer_layer({**SECONDS, "Net": 0.0}, 8, 8)
    by_name = {one.name: one for one in layer.operations}
    assert "network" not in {one.kind for one in layer.operations}
    assert by_name["KQV"].needs_before == ("D",)
    assert set(by_name["O"].needs) == {"KQV", "DecAttn", "PfAttn"}
    assert by_name["UG"].needs == ("O",)


def test_bad_input() -> None:
    layer = transformer_layer(SECONDS, 128, 128)
    with pytest.raises(ValueError, match="no multiple of 128"):
        NanoGraph.split(transformer_layer(SECONDS, 100, 100))
    with pytest.raises(ValueError, match="no multiple of 128"):
        NanoGraph.split(transformer_layer(SECONDS, 32, 32))
    with pytest.raises(ValueError, match="expected multiples of 128"):
        NanoGraph.split(layer, [100])
    with pytest.raises(ValueError, match="expected ascending inside 0 to 256"):
        NanoGraph.split(layer, [256])
    with pytest.raises(ValueError, match="splits has Softmax"):
        NanoGraph.split(layer, {"Softmax": [128]})
    with pytest.raises(ValueError, match="must have UG > 0"):
        transformer_layer({"KQV": 1.0, "O": 1.0}, 1, 1)
    with pytest.raises(ValueError, match="not both 0"):
        LayerGraph((), 0, 0)
    with pytest.raises(ValueError, match="A is there twice"):
        LayerGraph((LayerOperation("A", "gemm", 1.0), LayerOperation("A", "gemm", 1.0)), 1, 1)
    with pytest.raises(ValueError, match="does not come before it"):
        LayerGraph((LayerOperation("A", "gemm", 1.0, needs=("B",)),), 1, 1)
    with pytest.raises(ValueError, match="of the layer before, which is not there"):
        LayerGraph((LayerOperation("A", "gemm", 1.0, needs_before=("B",)),), 1, 1)
    with pytest.raises(ValueError, match=r"prompts=\(5, 4\)"):
        transformer_layer(SECONDS, 5, 8, prompts=(5, 4))
    with pytest.raises(ValueError, match="add up to 1"):
        nano_lanes(layer, (0.5, 0.6))
    chain = (NanoOperation("A", "gemm", 1.0), NanoOperation("B", "gemv", 2.0))
    step = NanoOperation("S", "network", 3.0)
    assert insert_step([chain, chain[::-1]], step, before="B") == ((chain[0], step, chain[1]), (step, *chain[::-1]))
    with pytest.raises(ValueError, match="before='C': the lane has A, B"):
        insert_step([chain], step, before="C")
