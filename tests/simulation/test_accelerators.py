"""Published accelerators, and accelerators from files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from anabranch.serving import IterationCosts, Workload
from anabranch.simulation import ACCELERATORS, LLAMA2_70B, Device, read_device

MEMORY_S = {
    "V100": 0.018,
    "A100-40": 0.026,
    "A100-80": 0.040,
    "H100": 0.024,
    "H200": 0.020,
    "B100": 0.015,
    "B200": 0.015,
}
FLOP_PER_BYTE = {"V100": 139, "A100-40": 201, "A100-80": 156, "H100": 295, "H200": 206, "B100": 225, "B200": 281}


def test_there_are_thirteen_with_the_published_ratios() -> None:
    assert len(ACCELERATORS) == 13
    for name, seconds in MEMORY_S.items():
        device = ACCELERATORS[name]
        assert device.memory_bytes / device.memory_bytes_per_s == pytest.approx(seconds, abs=6e-4)
        assert device.flops_per_s / device.memory_bytes_per_s == pytest.approx(FLOP_PER_BYTE[name], abs=1)


@pytest.mark.parametrize("name", ACCELERATORS)
def test_the_ratio_is_memory_over_compute_time(name: str) -> None:
    costs = IterationCosts(LLAMA2_70B, ACCELERATORS[name], 16, Workload(512.0, 512.0), 2048)
    device = costs.device
    expected = (device.flops_per_s / device.memory_bytes_per_s) * (16 * device.memory_bytes / LLAMA2_70B.parameters)
    assert costs.ratio == pytest.approx(costs.memory_s / costs.compute_s)
    assert costs.ratio == pytest.approx(expected / (2 * 2048))


def test_a_device_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    fields = {
        "name": "mine", "memory_bytes": 24e9, "memory_bytes_per_s": 1e12, "flops_per_s": 1.6e14, "link_bytes_per_s": 0,
    }  # fmt: skip
    file.write_text(json.dumps(fields))
    device = read_device(file)
    assert device.memory_bytes == 24_000_000_000
    assert device.link_bytes_per_s == 0
    assert math.isnan(device.power_w)
    assert read_device("H100") is ACCELERATORS["H100"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is no JSON"),
        ("[1]", "has list: expected the fields name"),
        ('{"name": "x"}', "has name: expected the fields"),
        (
            '{"name": "x", "memory_bytes": "big", "memory_bytes_per_s": 1, "flops_per_s": 1, "link_bytes_per_s": 1}',
            "must be a n",
        ),
        (
            '{"name": "x", "memory_bytes": 1, "memory_bytes_per_s": 0, "flops_per_s": 1, "link_bytes_per_s": 1}',
            "must be > 0",
        ),
        (
            '{"name": "x", "memory_bytes": 1, "memory_bytes_per_s": 1, "flops_per_s": 1, "link_bytes_per_s": 1, "k": 1}',
            "has name",
        ),
    ],
)
def test_files_with_errors(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "device.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_device(file)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"expected a \.json file or one of V100"):
        read_device("A1000")
    with pytest.raises(FileNotFoundError):
        read_device("nowhere.json")
    with pytest.raises(ValueError, match="power_w must be > 0"):
        Device(name="x", memory_bytes=1, memory_bytes_per_s=1.0, flops_per_s=1.0, link_bytes_per_s=0.0, power_w=0.0)
