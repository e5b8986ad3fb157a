"""Accelerators and the machines they stand in, as data."""

import math
from dataclasses import dataclass, replace

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Device:
    """An accelerator by its data sheet.

    Attributes:
        flops_per_s: dense half precision.
        link_bytes_per_s: to its neighbours in the machine, one way.
        power_w: thermal design power; NaN where it is not known.
    """

    name: str
    memory_bytes: int
    memory_bytes_per_s: float
    flops_per_s: float
    link_bytes_per_s: float
    power_w: float = math.nan

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "memory_bytes_per_s", "flops_per_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.power_w <= 0:
            raise ValueError(f"power_w must be > 0, got {self.power_w}")
        if self.link_bytes_per_s < 0:
            raise ValueError(f"link_bytes_per_s must be >= 0, got {self.link_bytes_per_s}")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Several accelerators behind one network interface.

    Attributes:
        nic_bytes_per_s: one way, of the machine.
        provisioned_w: power that has to be there for it.
        cost_per_hour: in dollars, or in whatever unit costs are compared.
        power_cap: share of the devices' power that they may draw.
    """

    name: str
    device: Device
    count: int
    nic_bytes_per_s: float
    provisioned_w: float
    cost_per_hour: float
    power_cap: float = 1.0

    def __post_init__(self) -> None:
        for name in ("count", "nic_bytes_per_s", "provisioned_w", "cost_per_hour"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if not 0 < self.power_cap <= 1:
            raise ValueError(f"power_cap must be in (0, 1], got {self.power_cap}")

    @property
    def memory_bytes(self) -> int:
        return self.count * self.device.memory_bytes

    @property
    def device_power_w(self) -> float:
        """Of all its devices, uncapped."""
        return self.count * self.device.power_w


A100 = Device(
    name="a100-80gb", memory_bytes=80 * GIB, memory_bytes_per_s=2039e9, flops_per_s=312e12, link_bytes_per_s=300e9,
    power_w=400.0,
)  # fmt: skip
H100 = Device(
    name="h100-80gb", memory_bytes=80 * GIB, memory_bytes_per_s=3352e9, flops_per_s=989e12, link_bytes_per_s=450e9,
    power_w=700.0,
)  # fmt: skip
DGX_A100 = Machine(
    name="dgx-a100", device=A100, count=8, nic_bytes_per_s=25e9, provisioned_w=6500.0, cost_per_hour=17.6
)
DGX_H100 = Machine(
    name="dgx-h100", device=H100, count=8, nic_bytes_per_s=50e9, provisioned_w=10_200.0, cost_per_hour=38.0
)
DGX_H100_CAPPED = replace(
    DGX_H100, name="dgx-h100-capped", device=replace(H100, name="h100-80gb-pcap"), provisioned_w=7140.0, power_cap=0.5
)
