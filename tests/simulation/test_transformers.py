"""Shapes of models against their published sizes."""

import pytest

from anabranch.simulation import BLOOM_176B, DGX_H100, DGX_H100_CAPPED, LLAMA2_70B, MIXTRAL_8X7B, SMOLLM2_135M, Machine


@pytest.mark.parametrize(
    ("shape", "billions"), [(SMOLLM2_135M, 0.1345), (LLAMA2_70B, 68.98), (MIXTRAL_8X7B, 46.70), (BLOOM_176B, 176.2)]
)
def test_published_numbers_of_parameters(shape: object, billions: float) -> None:
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=2e-3)  # type: ignore[attr-defined]


def test_caches() -> None:
    assert BLOOM_176B.kv_bytes_per_token() == 4_014_080
    assert SMOLLM2_135M.kv_bytes_per_token(4) == 46_080
    assert LLAMA2_70B.kv_bytes_per_token() == 2 * 80 * 8 * 128 * 2


def test_machines() -> None:
    assert DGX_H100.memory_bytes == 8 * 85_899_345_920
    assert DGX_H100.provisioned_w / DGX_H100_CAPPED.provisioned_w == pytest.approx(10_200 / 7140)
    with pytest.raises(ValueError, match="power_cap must be in"):
        Machine(
            name="x",
            device=DGX_H100.device,
            count=1,
            nic_bytes_per_s=1.0,
            provisioned_w=1.0,
            cost_per_hour=1.0,
            power_cap=0.0,
        )
