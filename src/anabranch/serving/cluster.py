"""A cluster that serves a language model: pools of machines, continuous batching, phases apart or together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float64, Int64

from anabranch.serving import _kernels_lists as kernels
from anabranch.serving._kernels_events import new_heap, push
from anabranch.serving._kernels_simulation import run
from anabranch.serving.performance import Curve, PerformanceModel
from anabranch.serving.requests import RequestTable
from anabranch.simulation import Machine

ROLES = ("prompt", "mixed", "token")  # in the order of the kernels


@dataclass(frozen=True)
class Pool:
    """``count`` machines of one kind for one role: "prompt", "token", or "mixed" (both phases)."""

    machine: Machine
    count: int
    role: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {self.role!r}")
        if self.count < 1:
            raise ValueError(f"count of the {self.role} pool must be >= 1, got {self.count}")


@dataclass(frozen=True)
class Batching:
    """Limits of an iteration (512 requests, 2,048 tokens), and how often an item may be passed over before it comes first.

    Args:
        chunk_tokens: prompts in pieces, as in Sarathi-Serve (2403.02310, section 4): an iteration decodes every running answer
            and fills up to so many tokens with pieces of prompts, first come first; nothing is preempted, and ``max_tokens`` is
            not asked. Its time is that of a prompt of so many tokens (with decodes, times the mixed factor): reading the cache
            of earlier pieces again is not charged. None: a prompt runs whole.
    """

    max_requests: int = 512
    max_tokens: int = 2048
    max_preemptions: int = 4
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_tokens", "max_preemptions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be >= 1 or None, got {self.chunk_tokens}")


@dataclass(frozen=True)
class Transfers:
    """How a cache goes from the prompt machine to the token machine.

    Args:
        overlap: "layerwise" sends each layer when it is computed (prompts of ``serial_below`` tokens or more), "serialized"
            sends all when the prompt has ended.
        shared_links: transfers of a machine follow each other on its link; else each has a link of its own.
        bytes_per_s: of every link; None takes the slower machine's interface.
        layers: of the model, for "layerwise".
        retry_s: how long to wait when the destination has no room.
    """

    overlap: str = "layerwise"
    shared_links: bool = True
    bytes_per_s: float | None = None
    layers: int = 1
    serial_below: int = 512
    retry_s: float = 1.0

    def __post_init__(self) -> None:
        if self.overlap not in ("layerwise", "serialized"):
            raise ValueError(f"overlap must be 'layerwise' or 'serialized', got {self.overlap!r}")
        if self.layers < 1 or self.serial_below < 0 or not self.retry_s > 0:
            raise ValueError(
                f"layers={self.layers}, serial_below={self.serial_below}, retry_s={self.retry_s}: expected >= 1, >= 0, > 0"
            )
        if self.bytes_per_s is not None and not self.bytes_per_s > 0:
            raise ValueError(f"bytes_per_s must be > 0, got {self.bytes_per_s}")


@dataclass(frozen=True)
class Cluster:
    """Pools of machines that serve one model.

    Args:
        performance: of every machine's kind, by its name.
        kv_bytes_per_token: of the model's cache.
        weight_bytes: of the model, on every machine.
        scheduler: "mixed_pool" sends prompts and decodes to their pools, and lends machines between them under load (needs a
            prompt and a token pool); "join_shortest_queue" sends both phases to the machine with the least work (one mixed pool).
        pending_limit: prompt tokens that may wait at a machine before another pool is asked.

    Raises:
        ValueError: pools that do not fit the scheduler, a kind without performance, weights larger than a machine's memory.
    """

    pools: Sequence[Pool]
    performance: Mapping[str, PerformanceModel]
    kv_bytes_per_token: int
    weight_bytes: int
    scheduler: str = "mixed_pool"
    batching: Batching = field(default_factory=Batching)
    transfers: Transfers = field(default_factory=Transfers)
    pending_limit: int = 8192

    def __post_init__(self) -> None:
        roles = [pool.role for pool in self.pools]
        if self.scheduler == "join_shortest_queue":
            if set(roles) != {"mixed"}:
                raise ValueError(f"scheduler='join_shortest_queue' takes mixed pools, got {', '.join(roles) or 'none'}")
        elif self.scheduler != "mixed_pool":
            raise ValueError(f"scheduler must be 'mixed_pool' or 'join_shortest_queue', got {self.scheduler!r}")
        elif not {"prompt", "token"} <= set(roles):
            raise ValueError(
                f"scheduler='mixed_pool' needs a prompt and a token pool, got {', '.join(roles) or 'none'}"
            )
        if self.kv_bytes_per_token < 1 or self.weight_bytes < 0:
            raise ValueError(
                f"kv_bytes_per_token={self.kv_bytes_per_token}, weight_bytes={self.weight_bytes}: expected > 0 and >= 0"
            )
        ways = {model.by for model in self.performance.values()}
        if len(ways) > 1:
            raise ValueError(f"performance mixes decoding times by {' and '.join(sorted(ways))}: take one of them")
        for pool in self.pools:
            if pool.machine.name not in self.performance:
                raise ValueError(f"performance has no {pool.machine.name!r}: it has {', '.join(self.performance)}")
            if self.weight_bytes >= pool.machine.memory_bytes:
                raise ValueError(
                    f"weight_bytes={self.weight_bytes} do not fit in the {pool.machine.memory_bytes} of {pool.machine.name}"
                )

    @property
    def machines(self) -> list[Machine]:
        return [pool.machine for pool in self.pools for _ in range(pool.count)]

    @property
    def provisioned_w(self) -> float:
        return sum(pool.count * pool.machine.provisioned_w for pool in self.pools)

    @property
    def cost_per_hour(self) -> float:
        return sum(pool.count * pool.machine.cost_per_hour for pool in self.pools)


@dataclass(frozen=True, eq=False)
class ServingResult:
    """What became of every request, and of every machine.

    Attributes:
        ttft_s: time to the first token. e2e_s: to the last one; NaN for requests that were not finished, whose other times are
            those of as far as they came, and NaN from there.
        second_token_gap_s: from the first token to the start of decoding: transfer and waiting; 0 for answers of one token.
        queue_s: from arrival to the start of the prompt.
        source, target: machines of the two phases.
        busy_s, energy_j, iterations: of every machine. kv_peak_bytes: the most memory in use, weights included.
        end_s: time of the last event, or ``max_time_s`` where that came first. What runs then is in ``busy_s`` and ``energy_j``
            up to then, its iterations that had ended in ``iterations``.
        preemptions, moves, retries: of decodes, of machines between pools, of transfers without room.
        restarts: of every request, because of machines that failed; None in results of simulators without failures.
    """

    ttft_s: Float64[np.ndarray, " requests"]
    e2e_s: Float64[np.ndarray, " requests"]
    second_token_gap_s: Float64[np.ndarray, " requests"]
    queue_s: Float64[np.ndarray, " requests"]
    source: Int64[np.ndarray, " requests"]
    target: Int64[np.ndarray, " requests"]
    busy_s: Float64[np.ndarray, " machines"]
    energy_j: Float64[np.ndarray, " machines"]
    iterations: Int64[np.ndarray, " machines"]
    kv_peak_bytes: Int64[np.ndarray, " machines"]
    end_s: float
    preemptions: int
    moves: int
    retries: int
    output_tokens: Int64[np.ndarray, " requests"]
    restarts: Int64[np.ndarray, " requests"] | None = None

    @property
    def finished(self) -> Bool[np.ndarray, " requests"]:
        found: np.ndarray = np.isfinite(self.e2e_s)
        return found

    @property
    def tbt_s(self) -> Float64[np.ndarray, " requests"]:
        """Mean time between tokens after the first one; NaN for answers of one token."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.output_tokens > 1, (self.e2e_s - self.ttft_s) / (self.output_tokens - 1), np.nan)


def simulate_cluster(
    cluster: Cluster, requests: RequestTable, *, max_time_s: float = np.inf, on_oversize: str = "raise",
    failures: Sequence[tuple[float, int]] = (),
) -> ServingResult:  # fmt: skip
    """Serve ``requests`` and give the times of each. O((requests + cut blocks) log events), plus the batches that are built.

    With serialized transfers on links of their own and decoding by requests it is the released simulator of Splitwise, to the
    rounding of its files.

    Args:
        max_time_s: when to stop; requests that are not finished then have no ``e2e_s`` (NaN).
        on_oversize: a request whose cache alone is larger than a machine that may have to hold it: an error, or left out (NaN).
        failures: time and machine (index into ``cluster.machines``); the machine does not come back. Requests that lose their
            prompt or cache start again elsewhere with the tokens they were given as part of the prompt (those count once), and
            caches on their way to the machine go to another one. Without any machine left requests stay unfinished (NaN).
            O(requests) each. A cache whose transfer is not begun at the end of its prompt (no room, or sent once more) goes
            whole: nothing of it has gone ahead.

    Raises:
        ValueError: such a request, a negative ``max_time_s``, a failure before 0 s, at no finite
            time, or of a machine that is not there or has failed before.
    """
    if not max_time_s >= 0:
        raise ValueError(f"max_time_s must be >= 0, got {max_time_s}")
    kinds = list(dict.fromkeys(machine.name for machine in cluster.machines))
    machines, kv = cluster.machines, cluster.kv_bytes_per_token
    room = min(machine.memory_bytes for machine in machines) - cluster.weight_bytes
    too_large = (requests.prompt_tokens + requests.output_tokens) * kv > room
    if too_large.any():
        if on_oversize == "raise":
            worst = np.flatnonzero(too_large)[:5].tolist()
            raise ValueError(
                f"requests {worst} need more than the {room} bytes a machine has for caches: on_oversize='drop'"
            )
        kept = np.flatnonzero(~too_large)
        part = simulate_cluster(
            cluster,
            RequestTable(requests.arrival_s[kept], requests.prompt_tokens[kept], requests.output_tokens[kept]),
            max_time_s=max_time_s,
            failures=failures,
        )
        return _spread(part, kept, requests)
    check_failures(failures, len(machines))
    models = [cluster.performance[kind] for kind in kinds]
    c, q, fleet = _state(cluster, requests, kinds, 1 + len(failures))
    rules = kernels.Rules(
        cluster.batching.max_requests, cluster.batching.max_tokens, cluster.batching.max_preemptions, cluster.pending_limit,
        cluster.scheduler == "join_shortest_queue", kv, cluster.transfers.layers,
        cluster.transfers.overlap == "serialized", not cluster.transfers.shared_links, cluster.transfers.serial_below,
        models[0].by == "context", cluster.transfers.retry_s, models[0].mixed_factor, float(max_time_s),
        cluster.batching.chunk_tokens or 0,
    )  # fmt: skip
    prompt, decode, power = (
        _padded([getattr(model, name) for model in models]) for name in ("prompt", "decode", "prompt_power")
    )
    perf = kernels.Perf(*prompt, *decode, *power, np.array([model.decode_power for model in models]))
    n, m = len(requests), len(machines)
    heap = new_heap((16 * n + 16 * m + 16) * (1 + len(failures)))
    for at, machine in failures:
        push(heap, float(at), kernels.FAILURE, machine)
    end = run(c, q, rules, perf, fleet, heap)
    decoded = np.where(requests.output_tokens > 1, q.decoded - q.first, np.where(np.isnan(q.first), np.nan, 0.0))
    return ServingResult(
        q.first - q.arrival, q.ended - q.arrival, decoded, q.started - q.arrival, q.source, q.target, c.busy_s, c.energy_j,
        c.iterations, c.kv_peak, float(end), int(c.counts[1]), int(c.counts[2]), int(c.counts[3]), requests.output_tokens,
        q.restarts,
    )  # fmt: skip


def check_failures(failures: Sequence[tuple[float, int]], machines: int) -> None:
    """
    Raises:
        ValueError: a time that is not finite or below 0, a machine that is not there or is named twice.
    """
    seen: set[int] = set()
    for at, machine in failures:
        if not 0 <= at < np.inf or not 0 <= machine < machines:
            raise ValueError(f"failures has machine {machine} at {at} s: expected 0 to {machines - 1}, at 0 s or later")
        if machine in seen:
            raise ValueError(f"failures has machine {machine} twice: it does not come back")
        seen.add(machine)


def _padded(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    most = max(len(curve.x) for curve in curves)
    x, y = np.zeros((2, len(curves), most))
    for i, curve in enumerate(curves):
        x[i, : len(curve.x)], y[i, : len(curve.y)] = curve.x, curve.y
    return x, y, np.array([len(curve.x) for curve in curves])


def _state(
    cluster: Cluster, requests: RequestTable, kinds: Sequence[str], lives: int
) -> tuple[kernels.Cluster, kernels.Requests, kernels.Fleet]:
    machines, n = cluster.machines, len(requests)
    m, most = len(machines), cluster.batching.max_requests + 1
    home = np.array([ROLES.index(pool.role) for pool in cluster.pools for _ in range(pool.count)])
    rate = cluster.transfers.bytes_per_s
    fleet = kernels.Fleet(
        np.array([kinds.index(machine.name) for machine in machines]), home,
        np.array([machine.memory_bytes for machine in machines]), np.full(m, cluster.weight_bytes),
        np.array([machine.nic_bytes_per_s if rate is None else rate for machine in machines], np.float64),
        np.array([machine.device_power_w for machine in machines], np.float64),
    )  # fmt: skip

    def integers(*shape: int, fill: int = 0) -> np.ndarray:
        return np.full(shape, fill, np.int64)

    def numbers(size: int, fill: float = 0.0) -> np.ndarray:
        return np.full(size, fill, np.float64)

    tokens, room = np.ones(2 * n, np.int64), np.empty(2 * n, np.int64)  # of items: prompts and decodes in turn
    tokens[::2] = requests.prompt_tokens
    room[::2] = (requests.prompt_tokens + 1) * cluster.kv_bytes_per_token
    room[1::2] = (requests.output_tokens - 1) * cluster.kv_bytes_per_token
    q = kernels.Requests(
        requests.arrival_s, requests.prompt_tokens.copy(), requests.output_tokens.copy(), integers(n, fill=-1),
        integers(n, fill=-1),
        numbers(n, np.nan), numbers(n, np.nan), numbers(n, np.nan), numbers(n, np.nan), integers(2 * n),
        np.zeros(2 * n, np.bool_), integers(2 * n), np.zeros(n, np.bool_), requests.output_tokens - 1, integers(2 * n),
        integers(2 * n), integers(2 * n), integers(n), integers(n), np.zeros(n, np.bool_), numbers(n),
        tokens, room, integers(n), integers(n), numbers(n), integers(n), integers(n), integers(n),
    )  # fmt: skip
    lists, sizes = integers(3, m, fill=-1), integers(3)
    for pool in range(3):
        members = np.flatnonzero(home == pool)
        lists[pool, : len(members)], sizes[pool] = members, len(members)
    c = kernels.Cluster(
        fleet.weights.copy(), fleet.weights.copy(), integers(m), home.copy(), lists, sizes, integers(m, most), integers(m),
        integers(m), numbers(m), numbers(m), integers(m), integers(m), integers(m), integers(m), np.zeros(m, np.bool_),
        integers(m), integers(m), integers(m), integers(m), integers((16 * n + 64 * m) * lives), integers(1),
        integers(2, m, fill=-1),
        integers(2, m, fill=-1), integers(m, fill=-1), integers(m, fill=-1), numbers(m), numbers(m), numbers(m), integers(m),
        fleet.weights.copy(), integers(most), integers(m, most), integers(8),
    )  # fmt: skip
    return c, q, fleet


def _spread(part: ServingResult, kept: np.ndarray, requests: RequestTable) -> ServingResult:
    """The result of some of the requests as one of all, NaN and -1 for the others."""
    values = dict(vars(part))
    for name in ("ttft_s", "e2e_s", "second_token_gap_s", "queue_s", "source", "target", "restarts"):
        whole = np.full(
            len(requests), np.nan if name.endswith("_s") else 0 if name == "restarts" else -1, values[name].dtype
        )
        whole[kept] = values[name]
        values[name] = whole
    return ServingResult(**{**values, "output_tokens": requests.output_tokens})
