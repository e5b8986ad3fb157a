"""Iterations of real model shapes."""

import numpy as np
import pytest

from anabranch.fabric import model_traffic
from anabranch.simulation import LLAMA2_70B, MIXTRAL_8X7B, SMOLLM2_135M, TransformerShape


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [(SMOLLM2_135M, 134_515_008), (LLAMA2_70B, 68_976_648_192), (MIXTRAL_8X7B, 46_702_792_704)],
    ids=lambda x: getattr(x, "name", None),
)
def test_parameter_counts_are_the_published_ones(shape, parameters):
    assert shape.parameters == parameters


def test_from_config():
    config = {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }
    assert TransformerShape.from_config("Mixtral-8x7B", config) == MIXTRAL_8X7B
    with pytest.raises(ValueError, match="config must have hidden_size"):
        TransformerShape.from_config("x", {"num_hidden_layers": 1})


def phases(shape, **options):
    return {phase.name: phase for phase in model_traffic(shape, **options)}


def test_dense_iteration():
    T, P, D, sequence = 8, 4, 4, 4096
    found = phases(LLAMA2_70B, tensor_parallel=T, pipeline=P, data=D, sequence=sequence, micro_batches=16)
    assert set(found) == {"pipeline", "gradients"}
    beat = found["pipeline"]
    assert beat.repeats == 16
    rank = np.arange(T * P * D)
    stage, place = rank // (T * D), rank % (T * D)
    assert (place[beat.traffic.src] == place[beat.traffic.dst]).all()
    assert (abs(stage[beat.traffic.src] - stage[beat.traffic.dst]) == 1).all()
    # Activations of a micro-batch over each of the three boundaries, forth and back, for each of the D replicas.
    assert beat.traffic.total_bytes == 2 * (P - 1) * D * sequence * 8192 * 2
    gradients = found["gradients"].traffic
    assert (gradients.src % T == gradients.dst % T).all(), "same tensor-parallel place"
    assert (gradients.src // (T * D) == gradients.dst // (T * D)).all(), "same stage"
    share = 2 * 68_976_648_192 // (T * P)
    assert gradients.total_bytes == pytest.approx(T * P * 2 * (D - 1) * share, rel=1e-6)
    assert gradients.n_steps == 2 * (D - 1)


def test_expert_iteration():
    T, P, D, E = 2, 2, 8, 4
    found = phases(
        MIXTRAL_8X7B,
        tensor_parallel=T,
        pipeline=P,
        data=D,
        sequence=1024,
        micro_batches=3,
        expert_parallel=E,
        generator=np.random.default_rng(0),
    )
    assert set(found) == {"pipeline", "experts", "gradients", "expert gradients"}
    layer = found["experts"]
    assert layer.repeats == 2 * 3 * 32 // P
    replica = layer.traffic.src // T % D, layer.traffic.dst // T % D
    assert (replica[0] // E == replica[1] // E).all(), "inside an expert-parallel group"
    assert (layer.traffic.src % T == layer.traffic.dst % T).all()
    dispatched = layer.traffic.size_bytes[layer.traffic.step == 0].sum()
    routed = P * D * 1024 * 2 * 4096 * 2  # all tokens, two experts each; a quarter stays on its rank on average
    assert dispatched == pytest.approx(routed * (E - 1) / E, rel=0.02)
    experts = found["expert gradients"].traffic
    share = 2 * MIXTRAL_8X7B.expert_parameters // (T * P * E)
    copies = D // E
    assert experts.total_bytes == pytest.approx(T * P * E * 2 * (copies - 1) * share, rel=1e-6)
    replica = experts.src // T % D, experts.dst // T % D
    assert (replica[0] % E == replica[1] % E).all(), "ranks with the same experts"
    dense = found["gradients"].traffic
    share = 2 * (MIXTRAL_8X7B.parameters - MIXTRAL_8X7B.expert_parameters) // (T * P)
    assert dense.total_bytes == pytest.approx(T * P * 2 * (D - 1) * share, rel=1e-6)


def test_one_rank_sends_nothing():
    assert model_traffic(SMOLLM2_135M, tensor_parallel=1, pipeline=1, data=1, sequence=8, micro_batches=1) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pipeline": 3}, "pipeline must divide layers = 32, got 3"),
        ({"expert_parallel": 3}, "expert_parallel must divide data = 4 and experts = 8, got 3"),
        ({"expert_parallel": 2}, r"generator must be given with expert_parallel > 1, got None"),
        ({"tensor_parallel": 3}, "tensor_parallel must divide the 64 tokens of a micro-batch, got 3"),
        ({"placement": [0, 1]}, "placement must have a NIC for each of the 4 ranks, got 2"),
        ({"micro_batches": 0}, "micro_batches must be >= 1, got 0"),
    ],
)
def test_bad_iterations_are_refused(change, message):
    arguments = {"tensor_parallel": 1, "pipeline": 1, "data": 4, "sequence": 64, "micro_batches": 1} | change
    with pytest.raises(ValueError, match=message):
        model_traffic(MIXTRAL_8X7B, **arguments)
