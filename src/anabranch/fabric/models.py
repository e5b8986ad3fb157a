"""Traffic of one training iteration of a transformer, from its true shape."""

from dataclasses import dataclass

import numpy as np

from anabranch.fabric._checks import ArrayLike, positive_int
from anabranch.fabric.collectives import collective, moe_traffic
from anabranch.fabric.traffic import Traffic, check_placement
from anabranch.simulation import TransformerShape


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
