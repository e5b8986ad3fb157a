"""The cluster simulator: reference answers of the released one, closed forms, invariants, bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anabranch.serving import (
    Batching,
    Cluster,
    Curve,
    PerformanceModel,
    Pool,
    ProfileTable,
    RequestTable,
    Transfers,
    poisson_requests,
    read_requests,
    simulate_cluster,
)
from anabranch.simulation import BLOOM_176B, DGX_A100, DGX_H100, GIB

KV = BLOOM_176B.kv_bytes_per_token()
RELEASED = Transfers(overlap="serialized", shared_links=False, bytes_per_s=200.0 * GIB)


def constant(value: float) -> Curve:
    return Curve(np.array([0.0]), np.array([value]))


LINEAR = PerformanceModel(
    Curve(np.array([0.0, 1000.0]), np.array([0.02, 0.12])), Curve(np.array([0.0, 64.0]), np.array([0.03, 0.05])), constant(1.0),
    by="requests",
)  # fmt: skip


def split(prompt: int, token: int, model: PerformanceModel = LINEAR, **options: Any) -> Cluster:
    settings: dict[str, Any] = {"transfers": RELEASED, **options}
    return Cluster(
        (Pool(DGX_H100, prompt, "prompt"), Pool(DGX_H100, token, "token")), {DGX_H100.name: model}, KV, 329 * 10**9, **settings
    )  # fmt: skip


def together(count: int, model: PerformanceModel = LINEAR, **options: Any) -> Cluster:
    return Cluster(
        (Pool(DGX_H100, count, "mixed"),), {DGX_H100.name: model}, KV, 329 * 10**9, "join_shortest_queue",
        **{"transfers": RELEASED, **options},
    )  # fmt: skip


def some_requests(n: int = 300, rate: float = 8.0, seed: int = 0) -> RequestTable:
    generator = np.random.default_rng(seed)
    return RequestTable(
        np.cumsum(generator.exponential(1 / rate, n)), generator.integers(1, 3000, n), generator.integers(1, 200, n)
    )


# The released simulator.


@pytest.fixture(scope="module")
def profiles(shared_data: Path) -> PerformanceModel:
    table = ProfileTable.read(shared_data / "splitwise-profiles" / "perf_model.csv")
    return table.model("bloom-176b", "h100-80gb", 8, by="requests")


@pytest.mark.parametrize(("name", "split_pools"), [("hh10_conv20", True), ("base10_conv20", False)])
def test_is_the_released_simulator_on_every_request(
    name: str, split_pools: bool, profiles: PerformanceModel, shared_data: Path
) -> None:
    golden: Any = np.genfromtxt(shared_data / "splitwise-profiles" / f"golden_{name}.csv", delimiter=",", names=True)
    requests = RequestTable.of(golden["arrival_s"], golden["prompt_tokens"], golden["output_tokens"])
    cluster = split(6, 4, profiles) if split_pools else together(10, profiles)
    found = simulate_cluster(cluster, requests)
    for ours, theirs in (
        (found.ttft_s, "ttft_s"), (found.e2e_s, "e2e_s"), (found.second_token_gap_s, "second_token_gap_s"),
        (found.queue_s, "queue_s"),
    ):  # fmt: skip
        assert np.abs(ours - golden[theirs]).max() < 1e-8


OVERLOAD = [  # mean, 99th percentile and largest of TTFT and end to end; mean and largest of the second-token gap
    ("conv", 400, 4, (2, 1), (1.755244, 11.249286, 12.410803, 15.674418, 28.334315, 31.301431, 0.215768, 3.723168)),
    ("conv", 400, 4, (2,), (7.695356, 21.012106, 24.156893, 23.444995, 40.993383, 46.914233, 0.210481, 7.122032)),
    ("code", 300, 2, (1, 2), (4.380004, 10.514157, 11.131187, 11.226792, 24.469094, 42.181111, 0.465851, 3.360183)),
    ("code", 300, 2, (2,), (9.043632, 22.074022, 23.434950, 17.016859, 35.859817, 53.642495, 0.694173, 16.851976)),
]


@pytest.mark.parametrize(("service", "n", "speed", "machines", "wanted"), OVERLOAD)
def test_is_the_released_simulator_under_overload(
    service: str, n: int, speed: int, machines: tuple[int, ...], wanted: tuple[float, ...], profiles: PerformanceModel,
    shared_data: Path,
) -> None:  # fmt: skip
    trace = read_requests(shared_data / "azure-llm-2023" / f"AzureLLMInferenceTrace_{service}.csv").head(n)
    requests = replace(trace, output_tokens=np.maximum(2, trace.output_tokens)).at_speed(float(speed), start_s=1.0)
    cluster = split(*machines, profiles) if len(machines) == 2 else together(*machines, profiles)
    found = simulate_cluster(cluster, requests)
    values = [f(x) for x in (found.ttft_s, found.e2e_s) for f in (np.mean, lambda x: np.percentile(x, 99), np.max)] + [
        found.second_token_gap_s.mean(),
        found.second_token_gap_s.max(),
    ]
    np.testing.assert_allclose(values, wanted, rtol=0, atol=2e-6)


# Closed forms.


@pytest.mark.parametrize("tokens", [1, 2, 57])
def test_a_request_alone(tokens: int) -> None:
    found = simulate_cluster(split(1, 1), RequestTable.of([3.0], [700], [tokens]))
    prompt, step = float(LINEAR.prompt_seconds(700)), float(LINEAR.decode_seconds(1, 0))
    transfer = 700 * KV / (200 * GIB) if tokens > 1 else 0.0
    assert found.ttft_s[0] == pytest.approx(prompt, rel=1e-12)
    assert found.second_token_gap_s[0] == pytest.approx(transfer, rel=1e-12)
    assert found.e2e_s[0] == pytest.approx(prompt + transfer + (tokens - 1) * step, rel=1e-12)


def test_decoding_by_context_grows_with_every_token() -> None:
    model = replace(LINEAR, decode=Curve(np.array([0.0, 500.0, 4000.0]), np.array([0.03, 0.031, 0.06])), by="context")
    found = simulate_cluster(split(1, 1, model), RequestTable.of([0.0], [450], [120]))
    steps = model.decode_seconds(1, 450 + np.arange(1, 120))
    assert found.e2e_s[0] - found.ttft_s[0] - found.second_token_gap_s[0] == pytest.approx(steps.sum(), rel=1e-12)


def test_waiting_of_a_single_server_queue() -> None:
    """M/D/1: mean wait rho s / (2 (1 - rho))."""
    generator, service, load = np.random.default_rng(0), 0.1, 0.7
    n = 200_000
    requests = RequestTable(np.cumsum(generator.exponential(service / load, n)), np.full(n, 10), np.ones(n, np.int64))
    model = PerformanceModel(constant(service), constant(1.0), constant(1.0), by="requests")
    found = simulate_cluster(together(1, model, batching=Batching(max_requests=1)), requests)
    assert found.queue_s.mean() == pytest.approx(load * service / (2 * (1 - load)), rel=0.02)


@pytest.mark.parametrize(("layers", "rate"), [(1, 1e9), (70, 50e9), (70, 1e10), (8, 1e11)])
def test_layers_that_are_sent_as_they_are_computed(layers: int, rate: float) -> None:
    prompt = float(LINEAR.prompt_seconds(1500))
    end = 0.0
    for layer in range(1, layers + 1):
        end = max(end, layer / layers * prompt) + 1500 * KV / (layers * rate)
    transfers = Transfers(layers=layers, bytes_per_s=rate, shared_links=False)
    found = simulate_cluster(split(1, 1, transfers=transfers), RequestTable.of([0.0], [1500], [5]))
    assert found.second_token_gap_s[0] == pytest.approx(end - prompt, rel=1e-9)
    serialized = simulate_cluster(
        split(1, 1, transfers=replace(transfers, overlap="serialized")), RequestTable.of([0.0], [1500], [5])
    )
    assert serialized.second_token_gap_s[0] == pytest.approx(1500 * KV / rate, rel=1e-12)
    assert found.second_token_gap_s[0] <= serialized.second_token_gap_s[0] * (1 + 1e-12)


def test_transfers_share_a_link() -> None:
    model = PerformanceModel(constant(0.1), constant(0.01), constant(1.0), by="requests")
    requests = RequestTable.of([0.0, 0.0], [800, 800], [3, 3])
    one = 800 * KV / 1e9
    for shared, last in ((False, one), (True, 2 * one - 0.1)):  # the second prompt ends 0.1 s later
        transfers = Transfers(overlap="serialized", bytes_per_s=1e9, shared_links=shared)
        found = simulate_cluster(split(1, 2, model, transfers=transfers), requests)
        np.testing.assert_allclose(np.sort(found.second_token_gap_s), [one, last], rtol=1e-9)


# Invariants.


@pytest.mark.parametrize("cluster", [split(2, 1), split(1, 3), together(3)], ids=["2+1", "1+3", "3"])
def test_everything_is_served_and_given_back(cluster: Cluster) -> None:
    requests = some_requests()
    found = simulate_cluster(cluster, requests)
    assert found.finished.all()
    assert (found.queue_s >= -1e-12).all()
    assert (found.e2e_s >= found.ttft_s).all()
    assert (found.second_token_gap_s >= 0).all()
    assert (found.kv_peak_bytes <= DGX_H100.memory_bytes).all()
    assert (found.busy_s <= found.end_s + 1e-9).all()
    assert ((found.energy_j > 0) == (found.busy_s > 0)).all()


def test_prompts_of_a_machine_start_in_order_of_arrival() -> None:
    """Unless items starve: those come first then, the released rules say, and the latest of them before the others."""
    requests = some_requests(rate=8.0)
    found = simulate_cluster(split(2, 2), requests)
    for machine in range(2):
        starts = (requests.arrival_s + found.queue_s)[found.source == machine]
        assert (np.diff(starts) >= -1e-12).all()


@pytest.mark.parametrize("chunk", [None, 512])
@pytest.mark.parametrize("broken", [0, 2])
def test_the_same_twice_and_without_compilation(chunk: int | None, broken: int) -> None:
    from anabranch.serving import (
        _kernels_chunks,
        _kernels_cluster,
        _kernels_events,
        _kernels_failures,
        _kernels_lists,
        _kernels_placing,
        _kernels_simulation,
        _kernels_transfers,
    )

    requests = some_requests(60, rate=40.0)
    cluster, failures = (replace(split(2, 2), batching=Batching(chunk_tokens=chunk)), [(0.7, 0), (1.4, 3)][:broken])
    first, second = (simulate_cluster(cluster, requests, failures=failures) for _ in range(2))
    assert np.array_equal(first.e2e_s, second.e2e_s)
    plain: dict[str, Any] = {}
    for module in (
        _kernels_events, _kernels_lists, _kernels_chunks, _kernels_cluster, _kernels_placing, _kernels_transfers,
        _kernels_failures, _kernels_simulation,
    ):  # fmt: skip
        # each function over the plain ones before it
        for name, value in vars(module).items():
            if hasattr(value, "py_func"):
                plain.setdefault(name, value.py_func)
            elif name.isupper():
                plain[name] = value
    import types

    from anabranch.serving import cluster as module

    functions: dict[str, Any] = {"np": np, **plain}
    for name, function in list(plain.items()):
        if isinstance(function, types.FunctionType):
            functions[name] = types.FunctionType(function.__code__, functions, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run", functions["run"])
        slow = simulate_cluster(cluster, requests, failures=failures)
    assert np.array_equal(first.e2e_s, slow.e2e_s)
    assert np.array_equal(first.kv_peak_bytes, slow.kv_peak_bytes)


def test_time_may_run_out() -> None:
    requests = some_requests()
    found = simulate_cluster(split(1, 1), requests, max_time_s=5.0)
    assert not found.finished.all()
    assert found.end_s == 5.0
    assert (found.busy_s <= 5.0).all()
    assert np.isnan(found.e2e_s[requests.arrival_s > 5.0]).all()


def test_a_request_that_no_machine_can_hold() -> None:
    requests = RequestTable.of([0.0, 1.0, 2.0], [10, 10**6, 10], [5, 5, 5])
    with pytest.raises(ValueError, match=r"requests \[1\] need more"):
        simulate_cluster(split(1, 1), requests)
    found = simulate_cluster(split(1, 1), requests, on_oversize="drop")
    assert found.finished.tolist() == [True, False, True]
    assert found.source.tolist() == [0, -1, 0]


def test_a_slower_link_or_fewer_machines_do_not_help() -> None:
    requests = poisson_requests(some_requests(), 20.0, 30.0, generator=np.random.default_rng(1))
    mean = [simulate_cluster(split(p, t), requests).e2e_s.mean() for p, t in ((1, 1), (2, 1), (2, 2), (4, 4))]
    assert mean == sorted(mean, reverse=True)


# Bad input.


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Pool(DGX_H100, 0, "prompt"), "count of the prompt pool"),
        (lambda: Pool(DGX_H100, 1, "decode"), "role must be one of prompt, mixed, token"),  # type: ignore[arg-type]
        (lambda: replace(split(1, 1), pools=(Pool(DGX_H100, 1, "prompt"),)), "needs a prompt and a token pool"),
        (lambda: replace(split(1, 1), scheduler="join_shortest_queue"), "takes mixed pools"),
        (
            lambda: replace(split(1, 1), pools=(Pool(DGX_A100, 1, "prompt"), Pool(DGX_A100, 1, "token"))),
            "has no 'dgx-a100'",
        ),
        (lambda: replace(split(1, 1), weight_bytes=10**13), "do not fit"),
        (lambda: Batching(max_tokens=0), "max_tokens must be >= 1"),
        (lambda: Transfers(overlap="eager"), "overlap must be"),  # type: ignore[arg-type]
        (lambda: Transfers(bytes_per_s=0.0), "bytes_per_s must be > 0"),
    ],
)
def test_bad_clusters(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
