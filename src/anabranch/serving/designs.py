"""The designs that Splitwise compares, with its authors' weights of machines and its simulator's settings."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from anabranch.serving.cluster import Batching, Cluster, Transfers
from anabranch.serving.performance import PerformanceModel
from anabranch.serving.provisioning import Design
from anabranch.simulation import BLOOM_176B, DGX_A100, DGX_H100, DGX_H100_CAPPED, GIB, Machine

# Power and cost of a machine as the authors weigh them at equal budgets (the GPUs decide, not the whole machine).
_WEIGHTS = ((DGX_A100, 24.8, 2.21), (DGX_H100, 44.0, 4.76), (DGX_H100_CAPPED, 30.8, 4.76))
_A, _H, _C = (replace(one, provisioned_w=power, cost_per_hour=cost) for one, power, cost in _WEIGHTS)

SPLITWISE_DESIGNS: dict[str, tuple[Machine, Machine | None]] = {
    "AA": (_A, _A),
    "HH": (_H, _H),
    "HA": (_H, _A),
    "HHcap": (_H, _C),
    "Baseline-A100": (_A, None),
    "Baseline-H100": (_H, None),
}
# Not in the paper: a baseline whose prompts are read in chunks beside the answers under way (Sarathi-Serve).
CHUNKED_BASELINES: dict[str, tuple[Machine, Machine | None]] = {"Chunked-A100": (_A, None), "Chunked-H100": (_H, None)}
RELEASED_TRANSFERS = Transfers(overlap="serialized", shared_links=False, bytes_per_s=200.0 * GIB)
BLOOM_WEIGHT_BYTES = 329 * 10**9  # the authors' number, not parameters x 2


def splitwise_design(
    name: str,
    performance: Callable[[str], PerformanceModel],
    *,
    transfers: Transfers = RELEASED_TRANSFERS,
    chunk_tokens: int = 512,
) -> Design:
    """A design by its name in the paper, or a chunked baseline, serving BLOOM-176B; baselines send requests to the machine with
    the least work.

    Args:
        chunk_tokens: of an iteration of a chunked baseline.
        performance: times by the name of a device ("a100-80gb", "h100-80gb", "h100-80gb-pcap").

    Raises:
        ValueError: another name.
    """
    known = SPLITWISE_DESIGNS | CHUNKED_BASELINES
    if name not in known:
        raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")
    prompt, token = known[name]
    batching = Batching(chunk_tokens=chunk_tokens if name in CHUNKED_BASELINES else None)
    times = {one.name: performance(one.device.name) for one in (prompt, token) if one is not None}
    scheduler = "mixed_pool" if token is not None else "join_shortest_queue"

    cluster = partial(
        Cluster, performance=times, kv_bytes_per_token=BLOOM_176B.kv_bytes_per_token(), weight_bytes=BLOOM_WEIGHT_BYTES,
        scheduler=scheduler, batching=batching, transfers=transfers,
    )  # fmt: skip
    return Design(name, prompt, token, cluster)
