"""Traffic of one training iteration of a transformer, from its true shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anabranch.fabric._checks import ArrayLike, positive_int
from anabranch.fabric.collectives import collective, moe_traffic
from anabranch.fabric.traffic import Traffic, check_placement


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """A decoder with grouped-query attention and gated feed-forward layers, as its public configuration says.

    Attributes:
        layers, hidden, heads, kv_heads, intermediate, vocabulary: the usual numbers; heads have hidden / heads elements.
        tied_embeddings: input and output embeddings are one matrix.
        experts, top_k: experts per layer and per token; 1 and 1 for a dense model.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied_embeddings: bool = False
    experts: int = 1
    top_k: int = 1

    @classmethod
    def from_config(cls, name: str, config: Mapping[str, Any]) -> "TransformerShape":
        """From a model's ``config.json`` (Llama, Mistral, Mixtral keys).

        Raises:
            ValueError: a number that is not there.
        """
        keys = {
            "layers": "num_hidden_layers",
            "hidden": "hidden_size",
            "heads": "num_attention_heads",
            "intermediate": "intermediate_size",
            "vocabulary": "vocab_size",
        }
        for key in keys.values():
            if key not in config:
                raise ValueError(f"config must have {key}, got {sorted(config)}")
        return cls(
            name=name,
            kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            experts=config.get("num_local_experts", 1),
            top_k=config.get("num_experts_per_tok", 1),
            **{field: config[key] for field, key in keys.items()},
        )

    @property
    def expert_parameters(self) -> int:
        """Parameters inside experts; 0 for a dense model."""
        return 3 * self.hidden * self.intermediate * self.experts * self.layers if self.experts > 1 else 0

    @property
    def parameters(self) -> int:
        """All parameters: attention, feed-forward, router, norms, embeddings."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_heads * (self.hidden // self.heads)
        feed_forward = 3 * self.hidden * self.intermediate * self.experts
        router = self.hidden * self.experts if self.experts > 1 else 0
        embeddings = self.vocabulary * self.hidden * (1 if self.tied_embeddings else 2)
        return self.layers * (attention + feed_forward + router + 2 * self.hidden) + self.hidden + embeddings


SMOLLM2_135M = TransformerShape(
    name="SmolLM2-135M",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    intermediate=1536,
    vocabulary=49152,
    tied_embeddings=True,
)
LLAMA2_70B = TransformerShape(
    name="Llama-2-70B", layers=80, hidden=8192, heads=64, kv_heads=8, intermediate=28672, vocabulary=32000
)
MIXTRAL_8X7B = TransformerShape(
    name="Mixtral-8x7B",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    intermediate=14336,
    vocabulary=32000,
    experts=8,
    top_k=2,
)


@dataclass(frozen=True, eq=False)
class TrafficPhase:
    """Part of an iteration: ``traffic`` happens ``repeats`` times, one after the other."""

    name: str
    traffic: Traffic
    repeats: int


def model_traffic(
    shape: TransformerShape,
    *,
    tensor_parallel: int,
    pipeline: int,
    data: int,
    sequence: int,
    micro_batches: int,
    micro_batch: int = 1,
    expert_parallel: int = 1,
    algorithm: str = "ring",
    dtype_bytes: int = 2,
    skew: float = 0.0,
    generator: np.random.Generator | None = None,
    placement: ArrayLike | None = None,
) -> tuple[TrafficPhase, ...]:
    """Fabric traffic of one iteration of a GPT-like model (ours, standard shapes).

    Ranks are numbered tensor-parallel first, then data, then pipeline: rank = t + T (d + D p). Tensor parallelism stays
    inside the host and sends nothing. Phases:

    - "pipeline" (P > 1): one beat of the steady state of 1F1B: each stage sends the activations of a micro-batch forward
      and gradients backward, micro_batch x sequence x hidden x dtype_bytes per stage boundary, shared by its T ranks;
      once per micro-batch.
    - "experts" (expert_parallel > 1): dispatch and combine of one layer of one micro-batch in all groups of E ranks; twice
      (forward, backward) per layer of a stage and micro-batch.
    - "gradients" (D > 1): all-reduce of the parameters of a rank, outside experts, among its D data-parallel ranks.
    - "expert gradients" (D > E > 1): the same for experts, among the D/E ranks with the same experts.

    Args:
        shape: the model.
        tensor_parallel, pipeline, data: T, P, D.
        sequence: tokens of a sequence.
        micro_batches: micro-batches of an iteration, per data-parallel rank.
        micro_batch: sequences of a micro-batch.
        expert_parallel: E, a divisor of D and of ``shape.experts``.
        algorithm: of the all-reduces, as in :func:`collective`.
        dtype_bytes: bytes of an activation and of a gradient.
        skew, generator: routing of tokens, as in :func:`moe_traffic`; a generator is needed when E > 1.
        placement: NIC of every rank.

    Raises:
        ValueError, TypeError: counts below 1, divisions with a remainder (layers by P, E), no generator for E > 1.
    """
    T, P = positive_int("tensor_parallel", tensor_parallel), positive_int("pipeline", pipeline)
    D, E = positive_int("data", data), positive_int("expert_parallel", expert_parallel)
    batches, dtype_bytes = positive_int("micro_batches", micro_batches), positive_int("dtype_bytes", dtype_bytes)
    tokens = positive_int("micro_batch", micro_batch) * positive_int("sequence", sequence)
    if shape.layers % P:
        raise ValueError(f"pipeline must divide layers = {shape.layers}, got {P}")
    if D % E or shape.experts % E:
        raise ValueError(f"expert_parallel must divide data = {D} and experts = {shape.experts}, got {E}")
    if tokens % T:
        raise ValueError(f"tensor_parallel must divide the {tokens} tokens of a micro-batch, got {T}")
    ranks = T * D * P
    nics = np.arange(ranks) if placement is None else check_placement(placement)
    if len(nics) < ranks:
        raise ValueError(f"placement must have a NIC for each of the {ranks} ranks, got {len(nics)}")
    rank = np.arange(ranks).reshape(P, D, T)
    phases = []
    if P > 1:
        ends = rank[:-1].ravel(), rank[1:].ravel()
        src, dst = np.concatenate(ends), np.concatenate(ends[::-1])
        size = tokens // T * shape.hidden * dtype_bytes
        phases.append(TrafficPhase("pipeline", Traffic(nics[src], nics[dst], size, group=src % (T * D)), batches))
    if E > 1:
        if generator is None:
            raise ValueError("generator must be given with expert_parallel > 1, got None")
        groups = rank.reshape(P, D // E, E, T).transpose(0, 1, 3, 2)
        layer = moe_traffic(
            ranks=ranks,
            tokens=tokens // T,
            experts=shape.experts,
            top_k=shape.top_k,
            hidden=shape.hidden,
            expert_parallel=E,
            generator=generator,
            skew=skew,
            dtype_bytes=dtype_bytes,
            placement=nics[groups.ravel()],
        )
        phases.append(TrafficPhase("experts", layer, 2 * batches * shape.layers // P))
    shared = shape.parameters - (shape.expert_parameters if E > 1 else 0)
    if D > 1:
        size = -(-shared // (T * P)) * dtype_bytes
        replicas = rank.transpose(0, 2, 1).reshape(-1, D)
        phases.append(TrafficPhase("gradients", _all_reduces(replicas, size, algorithm, nics), 1))
    if E > 1 and D > E:
        size = -(-shape.expert_parameters // (T * P * E)) * dtype_bytes
        replicas = rank.reshape(P, D // E, E, T).transpose(0, 2, 3, 1).reshape(-1, D // E)
        phases.append(TrafficPhase("expert gradients", _all_reduces(replicas, size, algorithm, nics), 1))
    return tuple(phases)


def _all_reduces(groups: np.ndarray, message_bytes: int, algorithm: str, nics: np.ndarray) -> Traffic:
    """The same all-reduce in every row of ranks, side by side."""
    one = collective("all-reduce", ranks=groups.shape[1], message_bytes=message_bytes, algorithm=algorithm)
    n = len(groups)
    return Traffic(
        nics[groups[:, one.src]].ravel(),
        nics[groups[:, one.dst]].ravel(),
        np.tile(one.size_bytes, n),
        np.tile(one.step, n),
        np.repeat(np.arange(n), one.n_flows),
    )
