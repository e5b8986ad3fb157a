"""Times of iterations: interpolation as SciPy's, the published profiles, the roofline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import interp1d

from anabranch.serving import Curve, ProfileTable, roofline
from anabranch.serving._kernels_events import interpolate
from anabranch.simulation import BLOOM_176B, DGX_A100, DGX_H100, LLAMA2_70B

ROW = {
    "model": "m", "hardware": "h", "tensor_parallel": "8", "prompt_size": "128", "batch_size": "2", "prompt_time": "10",
    "token_time": "2",
}  # fmt: skip


def test_interpolation_is_scipys_also_outside() -> None:
    generator = np.random.default_rng(0)
    x, y = np.cumsum(generator.random(9) + 0.1), generator.random(9) + 0.1
    at = generator.uniform(-2, 9, 1000)
    wanted = interp1d(x, y, fill_value="extrapolate")(at)
    np.testing.assert_allclose(Curve(x, y)(at), wanted, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose([interpolate(x, y, 9, value) for value in at], wanted, rtol=1e-12, atol=1e-12)
    assert Curve(np.array([3.0]), np.array([2.0]))([0.0, 9.0]).tolist() == [2.0, 2.0]


def test_the_published_profiles(shared_data: Path) -> None:
    table = ProfileTable.read(shared_data / "splitwise-profiles" / "perf_model.csv")
    model = table.model("bloom-176b", "h100-80gb", 8)
    assert float(model.prompt_seconds(1024)) == pytest.approx(0.132216997, abs=1e-9)
    assert float(model.decode_seconds(1, 1024)) == pytest.approx(0.03633388, abs=1e-8)
    assert len(table.entries) == 12
    with pytest.raises(ValueError, match=r"no profile of gpt on h100-80gb, .*there are bloom-176b on a100-80gb"):
        table.model("gpt", "h100-80gb", 8)


def test_medians_of_repetitions() -> None:
    rows = [{**ROW, "prompt_time": t} for t in ("10", "30", "11")]
    assert float(ProfileTable(rows).model("m", "h", 8).prompt_seconds(256)) == pytest.approx(0.011)


def test_bad_profiles() -> None:
    with pytest.raises(ValueError, match="no measurements"):
        ProfileTable([])
    with pytest.raises(ValueError, match="no column token_time"):
        ProfileTable([{k: v for k, v in ROW.items() if k != "token_time"}])
    with pytest.raises(ValueError, match="x must increase"):
        Curve(np.array([1.0, 1.0]), np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="by must be"):
        replace(ProfileTable([ROW]).model("m", "h", 8), by="tokens")


def test_the_roofline_is_the_larger_of_computing_and_reading() -> None:
    model = roofline(LLAMA2_70B, DGX_A100, compute_efficiency=1.0, memory_efficiency=1.0)
    weights = LLAMA2_70B.parameters * 2
    rate, flops = 8 * 2039e9, 8 * 312e12
    many = 65_536
    assert float(model.prompt_seconds(many)) == pytest.approx(2 * LLAMA2_70B.parameters * many / flops, rel=1e-9)
    assert float(model.prompt_seconds(1)) == pytest.approx(weights / rate, rel=1e-3)
    context = 50_000
    wanted = (weights + context * LLAMA2_70B.kv_bytes_per_token()) / rate
    assert float(model.decode_seconds(4, context)) == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(ValueError, match="larger than the memory"):
        roofline(BLOOM_176B, replace(DGX_H100, count=2))
    with pytest.raises(ValueError, match="memory_efficiency"):
        roofline(LLAMA2_70B, DGX_H100, memory_efficiency=1.5)
