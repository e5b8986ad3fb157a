"""What simulated systems are made of: models, accelerators and machines as data."""

from anabranch.simulation.balancing import balance
from anabranch.simulation.machines import A100, DGX_A100, DGX_H100, DGX_H100_CAPPED, GIB, H100, Device, Machine
from anabranch.simulation.transformers import (
    BLOOM_176B,
    LLAMA2_70B,
    MIXTRAL_8X7B,
    SMOLLM2_135M,
    TransformerShape,
)

__all__ = [
    "A100",
    "BLOOM_176B",
    "DGX_A100",
    "DGX_H100",
    "DGX_H100_CAPPED",
    "GIB",
    "H100",
    "LLAMA2_70B",
    "MIXTRAL_8X7B",
    "SMOLLM2_135M",
    "Device",
    "Machine",
    "TransformerShape",
    "balance",
]
