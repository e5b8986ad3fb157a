"""What one iteration of a large batch costs on each resource, operation by operation, and the throughput that compute allows.

NanoFlow (Zhu et al., 2408.12757), section 3: a dense batch of decoding requests and prompt chunks, continuous batching.
Bytes and FLOP are totals over all layers and devices.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from anabranch.simulation import Device, TransformerShape

COMPUTE, MEMORY, NETWORK = "compute", "memory", "network"


@dataclass(frozen=True)
class Workload:
    """Mean lengths of prompts and answers, tokens. An answer of 0 is prefill alone."""

    input_mean: float
    output_mean: float

    def __post_init__(self) -> None:
        if not self.input_mean > 0 or self.output_mean < 0:
            raise ValueError(
                f"input_mean={self.input_mean}, output_mean={self.output_mean}: expected above 0, and 0 or more"
            )

    @property
    def decode_share(self) -> float:
        """Of the tokens of a batch."""
        return self.output_mean / (self.input_mean + self.output_mean)

    @property
    def context(self) -> float:
        """Mean tokens before a decoded one."""
        return self.input_mean + self.output_mean / 2


@dataclass(frozen=True)
class Operation:
    """One kind of work of an iteration, and its time on each resource if nothing else ran."""

    name: str
    flops: float
    memory_bytes: float
    network_bytes: float
    compute_s: float
    memory_s: float
    network_s: float

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        times = {COMPUTE: self.compute_s, MEMORY: self.memory_s, NETWORK: self.network_s}
        return max(times, key=lambda name: times[name])

    @property
    def seconds(self) -> float:
        return max(self.compute_s, self.memory_s, self.network_s)


@dataclass(frozen=True)
class IterationCosts:
    """A model with tensor parallelism over ``count`` devices, running batches of ``batch`` tokens.

    Args:
        flops_per_s: of one device in practice; None takes the data sheet. (The paper's published optimum of 1,857 tokens a second
            and device for Llama-2-70B on A100s needs 260e12, while its operation table divides by 312e12.)

    Raises:
        ValueError: a count or batch below 1, no network between several devices, weights larger than the memory.
    """

    shape: TransformerShape
    device: Device
    count: int
    workload: Workload
    batch: int
    dtype_bytes: int = 2
    flops_per_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("count", "batch", "dtype_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.count > 1 and not self.device.link_bytes_per_s > 0:
            raise ValueError(f"{self.device.name} has no link_bytes_per_s, and count={self.count} devices need one")
        if self.shape.top_k > self.shape.experts:
            raise ValueError(
                f"{self.shape.name} has top_k={self.shape.top_k} of experts={self.shape.experts}: expected at most as many"
            )
        short = self.weight_bytes - self.count * self.device.memory_bytes
        if short > 0:
            raise ValueError(
                f"the weights of {self.shape.name} are {short / 1e9:.1f} GB larger than the memory of {self.count} "
                f"{self.device.name}"
            )

    @property
    def active_parameters(self) -> float:
        """Parameters that a token meets."""
        shape = self.shape
        return shape.parameters - shape.expert_parameters * (1 - shape.top_k / shape.experts)

    @property
    def weight_bytes(self) -> int:
        return self.shape.parameters * self.dtype_bytes

    @property
    def max_requests(self) -> int:
        """Requests whose mean caches fit beside the weights."""
        free = self.count * self.device.memory_bytes - self.weight_bytes
        return int(free / (self.shape.kv_bytes_per_token(self.dtype_bytes) * self.workload.context))

    @property
    def max_batch(self) -> float:
        """Tokens of a batch in which so many requests decode and prompts fill the rest; infinite without answers."""
        share = self.workload.decode_share
        return self.max_requests / share if share else float("inf")

    @property
    def at_largest_batch(self) -> "IterationCosts":
        """The same with :attr:`max_batch` tokens.

        Raises:
            ValueError: a workload without answers, which no cache bounds, or no request that fits.
        """
        if not 1 <= self.max_batch < float("inf"):
            raise ValueError(f"the largest batch has {self.max_batch} tokens: expected a number of at least 1")
        return replace(self, batch=round(self.max_batch))

    @property
    def memory_s(self) -> float:
        """All memory read once: weights and as many caches as fit (equation 1)."""
        return self.device.memory_bytes / self.device.memory_bytes_per_s

    @property
    def compute_s(self) -> float:
        """Equation 2."""
        return 2 * self.batch * self.active_parameters / (self.count * self._flops)

    @property
    def network_s(self) -> float:
        """Two all-gathers and an all-reduce a layer (equation 3); 0 on one device."""
        if self.count == 1:
            return 0.0
        moved = 4 * self.count * self.batch * self.shape.hidden * self.dtype_bytes * self.shape.layers
        return moved / (self.count * self.device.link_bytes_per_s)

    @property
    def ratio(self) -> float:
        """Memory over compute time (equation 4): below 1 the iteration is bound by compute."""
        return self.memory_s / self.compute_s

    @property
    def bound(self) -> str:
        times = {COMPUTE: self.compute_s, MEMORY: self.memory_s, NETWORK: self.network_s}
        return max(times, key=lambda name: times[name])

    @property
    def optimal_tokens_per_s(self) -> float:
        """Per device, if compute never waited (equation 5)."""
        return self._flops / (2 * self.active_parameters)

    @property
    def _flops(self) -> float:
        return self.device.flops_per_s if self.flops_per_s is None else self.flops_per_s

    def operation(self, name: str) -> Operation:
        """One row of the table.

        Raises:
            ValueError: another name.
        """
        for one in self.operations:
            if one.name == name:
                return one
        raise ValueError(f"no operation {name!r}: there are {', '.join(one.name for one in self.operations)}")

    @cached_property
    def operations(self) -> tuple[Operation, ...]:
        """The operation table (the paper's table 2): projections, attention of both phases, collectives."""
        s, b, n = self.shape, self.batch, self.dtype_bytes
        d, f, layers, kv = s.hidden, s.intermediate, s.layers, s.kv_heads * s.head_size
        up = 2 if s.gated else 1  # gate and up, or up alone
        decodes = b * self.workload.decode_share
        prompts, context = b - decodes, self.workload.context
        rows = [
            ("KQV", 2 * b * d * (d + 2 * kv), n * (d * (d + 2 * kv) + b * d + b * (d + 2 * kv)), 0.0),
            ("O", 2 * b * d * d, n * (d * d + 2 * b * d), 0.0),
            ("UG", 2 * b * d * up * f * s.top_k, n * (up * d * f * s.experts + b * d + up * b * f * s.top_k), 0.0),
            ("D", 2 * b * f * d * s.top_k, n * (d * f * s.experts + b * f * s.top_k + b * d), 0.0),
            (
                "DecAttn", 4 * decodes * context * d, n * (2 * kv * decodes * context + 2 * decodes * d + 2 * kv * decodes), 0.0,
            ),
            ("PfAttn", 4 * prompts * self.workload.input_mean * d, n * (2 * prompts * d + 2 * kv * prompts), 0.0),
            ("Net", 2 * (self.count - 1) * b * d, 0.0, 4 * (self.count - 1) * b * d * n),
        ]  # fmt: skip
        found = []
        for name, flops, memory, network in rows:
            flops, memory, network = (float(value * layers) for value in (flops, memory or network, network))
            found.append(
                Operation(
                    name, flops, memory, network, flops / (self.count * self.device.flops_per_s),
                    memory / (self.count * self.device.memory_bytes_per_s),
                    network / (self.count * self.device.link_bytes_per_s) if network else 0.0,
                )
            )  # fmt: skip
        return tuple(found)
