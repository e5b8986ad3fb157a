"""NanoFlow's published operation table and optima, recomputed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anabranch.serving import IterationCosts, Workload, iteration_limits
from anabranch.simulation import ACCELERATORS, LLAMA2_70B, LLAMA3_8B, MIXTRAL_8X7B, Device

A100 = Device(
    name="A100-80",
    memory_bytes=80 * 10**9,
    memory_bytes_per_s=2e12,
    flops_per_s=312e12,
    link_bytes_per_s=300e9,
    power_w=400.0,
)
COSTS = IterationCosts(LLAMA2_70B, A100, 8, Workload(512.0, 1024.0), 2048)
TABLE = {  # GFLOP, GB of memory, GB of network; ms of each; relative tolerance of FLOP and memory
    "KQV": (27487.8, 19.5, 0, 11.01, 1.22, 0),
    "O": (21990.2, 16.1, 0, 8.81, 1.01, 0),
    "UG": (153931.6, 96.6, 0, 61.67, 6.04, 0),
    "D": (76965.8, 49.7, 0, 30.84, 3.11, 0),
    "DecAttn": (3665.9, 462.2, 0, 1.47, 28.89, 0),
    "PfAttn": (916.3, 2.1, 0, 0.37, 0.13, 0),
    "Net": (18.8, 75.2, 75.2, 0.01, 4.70, 31.33),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_published_operation_table(name: str) -> None:
    found = next(one for one in COSTS.operations if one.name == name)
    gflop, memory, network, *times = TABLE[name]
    assert found.flops / 1e9 == pytest.approx(gflop, rel=6e-4 if name == "Net" else 3e-4)
    assert found.memory_bytes / 1e9 == pytest.approx(memory, rel=0.07 if name == "PfAttn" else 7e-3)
    assert found.network_bytes / 1e9 == pytest.approx(network, rel=1e-3)
    assert [1e3 * found.compute_s, 1e3 * found.memory_s, 1e3 * found.network_s] == pytest.approx(times, abs=0.02)


def test_the_published_totals() -> None:
    totals = [
        sum(getattr(one, name) for one in COSTS.operations) * 1e3 for name in ("compute_s", "memory_s", "network_s")
    ]
    assert totals == pytest.approx([114.17, 45.09, 31.33], abs=0.1)
    assert {one.name: one.bound for one in COSTS.operations} == {
        "KQV": "compute", "O": "compute", "UG": "compute", "D": "compute", "DecAttn": "memory", "PfAttn": "compute",
        "Net": "network",
    }  # fmt: skip


def test_the_published_optimum_needs_260_tflops() -> None:
    measured = replace(COSTS, flops_per_s=260e12)
    assert measured.optimal_tokens_per_s == pytest.approx(
        1857, rel=0.02
    )  # of 70.0 B parameters; ours are counted: 69.0 B
    assert measured.optimal_tokens_per_s == pytest.approx(260e12 / (2 * LLAMA2_70B.parameters))


@pytest.mark.parametrize(
    ("billions", "published", "within"),
    [(70.0, 1857, 1e-3), (72.1, 1803, 1e-3), (66.9, 1944, 2e-3), (8.0, 16236, 1e-3)],
)
def test_the_published_optima_follow_from_the_parameters(billions: float, published: float, within: float) -> None:
    assert 260e12 / (2e9 * billions) == pytest.approx(published, rel=within)


def test_how_many_requests_fit() -> None:
    free = 8 * 80e9 - 2 * LLAMA2_70B.parameters
    assert COSTS.max_requests == int(free / (327_680 * 1024))
    assert COSTS.max_batch == pytest.approx(COSTS.max_requests * 1.5)
    assert replace(COSTS, workload=Workload(512.0, 0.0)).max_batch == float("inf")
    assert COSTS.operation("UG") in COSTS.operations
    with pytest.raises(ValueError, match="no operation 'Softmax'"):
        COSTS.operation("Softmax")


def test_the_ratio_is_memory_over_compute() -> None:
    assert COSTS.ratio == pytest.approx(COSTS.memory_s / COSTS.compute_s)
    assert COSTS.memory_s == pytest.approx(0.04)
    assert COSTS.bound == "compute"
    small = replace(COSTS, batch=256)
    assert small.ratio == pytest.approx(8 * COSTS.ratio)
    assert small.bound == "memory"
    assert (
        replace(COSTS, count=8, workload=Workload(512.0, 0.0)).operations[4].flops == 0
    )  # prefill alone decodes nothing


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"larger than the memory of 1 A100-80"):
        replace(COSTS, count=1)
    with pytest.raises(ValueError, match="has no link_bytes_per_s"):
        replace(COSTS, device=replace(A100, link_bytes_per_s=0.0))
    with pytest.raises(ValueError, match=r"input_mean=0\.0"):
        Workload(0.0, 10.0)
    with pytest.raises(ValueError, match="top_k=9 of experts=8"):
        replace(COSTS, shape=replace(MIXTRAL_8X7B, top_k=9))
    with pytest.raises(ValueError, match="batch must be >= 1"):
        replace(COSTS, batch=0)


WORKLOADS = {"even": Workload(512.0, 512.0), "long answers": Workload(512.0, 1024.0)}


def test_limits_of_every_setting_follow_from_the_three_times() -> None:
    models = {"70B": (LLAMA2_70B, 8), "8B": (LLAMA3_8B, 1), "8x7B": (MIXTRAL_8X7B, 8)}
    found = iteration_limits(ACCELERATORS.values(), models, WORKLOADS)
    assert found.limits.shape == found.over_compute.shape == (13, 3, 2)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert min(found.shares.values()) > 0
    for i, device in enumerate(ACCELERATORS.values()):
        for j, (name, (shape, least)) in enumerate(models.items()):
            row = found.rows[3 * i + j]
            count = row["devices"]
            assert (row["device"], row["model"]) == (device.name, name)
            free = count * device.memory_bytes - 2 * shape.parameters
            assert free > 0
            assert count == least or count // 2 * device.memory_bytes - 2 * shape.parameters < 1e9  # half do not do
            for k, workload in enumerate(WORKLOADS.values()):
                cache = 4 * shape.layers * shape.kv_heads * shape.head_size * (512 + workload.output_mean / 2)
                batch = round((free // cache) / workload.decode_share)
                active = shape.parameters - shape.expert_parameters * (1 - shape.top_k / shape.experts)
                compute = 2 * batch * active / (count * device.flops_per_s)
                others = {
                    "memory": device.memory_bytes / device.memory_bytes_per_s,
                    "network": 8 * batch * shape.hidden * shape.layers / device.link_bytes_per_s if count > 1 else 0.0,
                }
                longest = max(others, key=lambda one: others[one])
                assert found.over_compute[i, j, k] == pytest.approx(others[longest] / compute)
                assert found.limits[i, j, k] == ("compute" if compute >= others[longest] else longest)
    assert found.rows[0]["devices"] == 16  # V100s of 16 GB: 8 do not hold 138 GB
    assert found.rows[0]["even"].startswith("compute ")


def test_limits_refuse_what_has_no_largest_batch() -> None:
    models, devices = {"8B": (LLAMA3_8B, 1)}, [ACCELERATORS["H100"]]
    with pytest.raises(ValueError, match="workload prompts has output_mean"):
        iteration_limits(devices, models, {"prompts": Workload(512.0, 0.0)})
    with pytest.raises(ValueError, match="devices is empty"):
        iteration_limits([], models, WORKLOADS)
    with pytest.raises(ValueError, match="the largest batch has inf tokens"):
        _ = replace(COSTS, workload=Workload(512.0, 0.0)).at_largest_batch
    assert COSTS.at_largest_batch.batch == round(COSTS.max_batch)
