"""The cluster simulator held to a SimPy model of the same rules, request by request."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from anabranch.serving import (
    Batching,
    Cluster,
    Pool,
    RequestTable,
    Transfers,
    published_performance,
    simulate_cluster,
)
from anabranch.simulation import BLOOM_176B, DGX_A100, DGX_H100, DGX_H100_CAPPED, GIB
from support import ROOT

SMALL = replace(
    DGX_H100, name="small", device=replace(DGX_H100.device, memory_bytes=45 * GIB)
)  # little room for caches
KINDS = (SMALL, DGX_A100, DGX_H100, DGX_H100_CAPPED)
TIMES = {kind.name: published_performance("bloom-176b", kind.device.name, by="requests") for kind in KINDS}
RELEASED = Transfers(overlap="serialized", shared_links=False, bytes_per_s=200.0 * GIB)


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simpy_cluster", ROOT / "benchmarks" / "simpy_cluster.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["simpy_cluster"] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def some_cluster(generator: np.random.Generator, apart: bool) -> Cluster:
    def pool(role: str) -> Pool:
        return Pool(KINDS[int(generator.integers(len(KINDS)))], int(generator.integers(1, 4)), role)

    roles = ["prompt", *(["mixed"] if generator.random() < 0.5 else []), "token"] if apart else ["mixed"]
    batching = Batching(
        int(generator.integers(2, 60)), int(generator.integers(500, 4000)), int(generator.integers(1, 6))
    )
    return Cluster(
        tuple(map(pool, roles)), TIMES, BLOOM_176B.kv_bytes_per_token(), 329 * 10**9,
        "mixed_pool" if apart else "join_shortest_queue", batching, RELEASED,
        pending_limit=int(generator.integers(500, 8192)),
    )  # fmt: skip


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "mixed"])
def test_every_request_has_the_times_of_the_simpy_model(peer: ModuleType, apart: bool) -> None:
    """Random clusters and loads, most of them overloaded: preempted decodes, borrowed machines, transfers without room."""
    generator = np.random.default_rng(int(apart))
    preemptions = moves = retries = stuck = 0
    for _ in range(25):
        cluster, n = some_cluster(generator, apart), int(generator.integers(50, 300))
        requests = RequestTable(
            np.cumsum(generator.exponential(1 / generator.uniform(1, 40), n)), generator.integers(1, 3000, n),
            generator.integers(1, 300, n),
        )  # fmt: skip
        found = simulate_cluster(cluster, requests, max_time_s=1000.0)
        stuck += not found.finished.all()  # caches may leave no room to go on
        for name, theirs in peer.simulate(cluster, requests, until_s=1000.0).items():
            np.testing.assert_allclose(getattr(found, name), theirs, rtol=0, atol=1e-9)
        preemptions, moves, retries = (
            preemptions + found.preemptions, moves + found.moves, retries + found.retries
        )  # fmt: skip
    assert preemptions > 100  # so that the rules were really asked
    assert stuck < 12
    assert not apart or (moves > 10 and retries > 10)


def test_the_peer_is_sensitive_to_a_rule(peer: ModuleType) -> None:
    generator = np.random.default_rng(2)
    requests = RequestTable(
        np.cumsum(generator.exponential(0.05, 200)), generator.integers(1, 3000, 200), generator.integers(1, 300, 200)
    )
    cluster = Cluster(
        (Pool(DGX_H100, 3, "mixed"),), TIMES, BLOOM_176B.kv_bytes_per_token(), 329 * 10**9, "join_shortest_queue",
        transfers=RELEASED,
    )  # fmt: skip
    other = replace(cluster, batching=Batching(max_preemptions=3))
    theirs = peer.simulate(other, requests)["e2e_s"]
    assert np.abs(simulate_cluster(cluster, requests).e2e_s - theirs).max() > 1e-3
    np.testing.assert_allclose(simulate_cluster(other, requests).e2e_s, theirs, rtol=0, atol=1e-9)


def test_what_is_not_modelled_is_refused(peer: ModuleType) -> None:
    pools = (Pool(DGX_H100, 1, "prompt"), Pool(DGX_H100, 1, "token"))
    cluster = Cluster(pools, TIMES, BLOOM_176B.kv_bytes_per_token(), 329 * 10**9)  # layer by layer, on shared links
    requests = RequestTable(np.array([0.0]), np.array([10]), np.array([2]))
    with pytest.raises(ValueError, match="serialized transfers on links of their own only"):
        peer.simulate(cluster, requests)
    with pytest.raises(ValueError, match="whole prompts only"):
        peer.simulate(replace(cluster, transfers=RELEASED, batching=Batching(chunk_tokens=512)), requests)
