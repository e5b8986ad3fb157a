"""What simulated systems are made of: models, accelerators and machines as data."""

from anabranch.simulation.accelerators import ACCELERATORS, read_device
from anabranch.simulation.balancing import balance
from anabranch.simulation.machines import A100, DGX_A100, DGX_H100, DGX_H100_CAPPED, GIB, H100, Device, Machine
from anabranch.simulation.transformers import (
    BLOOM_176B,
    DEEPSEEK_67B,
    LLAMA2_70B,
    LLAMA3_8B,
    LLAMA3_70B,
    MIXTRAL_8X7B,
    QWEN2_72B,
    SMOLLM2_135M,
    TransformerShape,
)

__all__ = [
    "A100",
    "ACCELERATORS",
    "BLOOM_176B",
    "DEEPSEEK_67B",
    "DGX_A100",
    "DGX_H100",
    "DGX_H100_CAPPED",
    "GIB",
    "H100",
    "LLAMA2_70B",
    "LLAMA3_8B",
    "LLAMA3_70B",
    "MIXTRAL_8X7B",
    "QWEN2_72B",
    "SMOLLM2_135M",
    "Device",
    "Machine",
    "TransformerShape",
    "balance",
    "read_device",
]
