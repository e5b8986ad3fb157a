"""Serving by dense batches of constant size, simulated iteration by iteration; a schedule of nano-batches changes their time."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anabranch.serving.batch_former import BatchFormer, DenseBatch
from anabranch.serving.cluster import ServingResult
from anabranch.serving.iteration_costs import IterationCosts
from anabranch.serving.layer_graph import published_layer
from anabranch.serving.performance import Curve
from anabranch.serving.requests import RequestTable


@dataclass(frozen=True)
class DenseServing:
    """What became of the requests (:class:`ServingResult`, of one group of devices) and how full the batches were.

    Attributes:
        tokens: computed in all: prompts, answers, wasted ones. wasted_tokens: decoded after an answer had ended.
        fill: mean tokens of an iteration over those that fit.
    """

    result: ServingResult
    tokens: int
    wasted_tokens: int
    fill: float

    @property
    def tokens_per_s(self) -> float:
        """Prompts and answers a second of busy time."""
        return (self.tokens - self.wasted_tokens) / float(self.result.busy_s.sum())


@dataclass(frozen=True)
class BatchSeconds:
    """Seconds of a dense batch: each operation in proportion to what it works on, taken from the mean batch of ``costs``.

    Projections and collectives go with the tokens, decode attention with the tokens behind the decoding requests, prefill
    attention with chunk times tokens so far. No batch is faster than reading the weights.

    Args:
        overlapped: period over sequence against the share of decode attention in the sequence; None runs in sequence.
    """

    costs: IterationCosts
    overlapped: Curve | None = None

    def __post_init__(self) -> None:
        layer = published_layer(self.costs)
        seconds = {one.name: one.seconds for one in layer.operations}
        decodes, prompts = layer.decode_tokens, layer.prefill_tokens
        decode, prefill = seconds.pop("DecAttn", 0.0), seconds.pop("PfAttn", 0.0)
        workload = self.costs.workload
        rates = {
            "token": sum(seconds.values()) / self.costs.batch,
            "context": decode / (decodes * workload.context) if decodes else 0.0,
            "prefill": prefill / (prompts * workload.input_mean) if prompts else 0.0,
            "least": self.costs.weight_bytes / (self.costs.count * self.costs.device.memory_bytes_per_s),
        }
        for name, value in rates.items():
            object.__setattr__(self, f"_{name}", value)

    def __call__(self, batch: DenseBatch) -> float:
        rates = vars(self)
        attention = rates["_context"] * batch.context_tokens
        prefill = rates["_prefill"] * sum((chunk.end - chunk.start) * chunk.end for chunk in batch.chunks)
        total = max(rates["_least"], rates["_token"] * batch.tokens) + attention + prefill
        if self.overlapped is None:
            return total
        knots = self.overlapped.x
        share = min(max(attention / total, knots[0]), knots[-1])
        return total * float(self.overlapped(share))


def simulate_dense_batches(
    former: BatchFormer,
    requests: RequestTable,
    seconds: Callable[[DenseBatch], float],
    *,
    kv_bytes_per_token: int,
    overhead_s: float = 0.0,
) -> DenseServing:
    """Serve ``requests`` on one group of devices until all are done. O(requests + iterations).

    Prompts are cut here, which :func:`simulate_cluster` (equal to a released simulator that does not cut them) never does.

    Args:
        overhead_s: of forming a batch; an asynchronous former hides it behind the batch before.

    Raises:
        ValueError: a former that is in use, or a request that does not fit in its memory.
    """
    if not former.idle:
        raise ValueError("former has requests already: take a new one")
    n, now, came = len(requests), 0.0, 0
    started, first, ended = (np.full(n, np.nan) for _ in range(3))
    busy, iterations, peak, tokens, wasted, evictions = 0.0, 0, 0, 0, 0, 0
    while came < n or not former.idle:
        if former.idle:
            now = max(now, float(requests.arrival_s[came]))
        while came < n and requests.arrival_s[came] <= now:
            former.add(came, int(requests.prompt_tokens[came]), int(requests.output_tokens[came]))
            came += 1
        batch = former.form()
        took = seconds(batch)
        took = max(took, overhead_s) if former.asynchronous else took + overhead_s
        for chunk in batch.chunks:
            if np.isnan(started[chunk.request]):
                started[chunk.request] = now
        now += took
        for request in batch.first:
            if np.isnan(first[request]):
                first[request] = now
        ended[list(batch.ended)] = now
        busy, iterations = busy + took, iterations + 1
        tokens, wasted = tokens + batch.tokens, wasted + batch.wasted
        evictions += len(batch.evicted)
        peak = max(peak, former.held_tokens)
    arrival = requests.arrival_s
    zeros = np.zeros(n, np.int64)
    result = ServingResult(
        first - arrival, ended - arrival, np.zeros(n), started - arrival, zeros, zeros, np.array([busy]), np.array([np.nan]),
        np.array([iterations]), np.array([peak * kv_bytes_per_token]), now, evictions, 0, 0, requests.output_tokens,
    )  # fmt: skip
    return DenseServing(result, tokens, wasted, tokens / (iterations * former.dense_batch))
