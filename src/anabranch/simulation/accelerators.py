"""Thirteen accelerators by their data sheets, and accelerators from a file of one's own."""

import json
from dataclasses import fields
from pathlib import Path

from anabranch.simulation.machines import Device

# As NanoFlow (2408.12757, table 1) prints them, from reading notes: GB, GB/s, GB/s both ways, GFLOP/s in half precision. The
# memory of an H200 is really 141 GB and that of B100 and B200 192 GB. Watts are from general knowledge.
_PUBLISHED = {
    "V100": (16, 900, 300, 125_000, 300),
    "A100-40": (40, 1555, 600, 312_000, 400),
    "A100-80": (80, 2000, 600, 312_000, 400),
    "H100": (80, 3352, 900, 989_000, 700),
    "H200": (96, 4800, 900, 989_000, 700),
    "B100": (120, 8000, 1800, 1_800_000, 700),
    "B200": (120, 8000, 1800, 2_250_000, 1000),
    "MI250": (128, 3352, 800, 362_000, 560),
    "MI300": (192, 5300, 1024, 1_307_000, 750),
    "MI325X": (256, 6000, 1024, 1_307_000, 1000),
    "Gaudi2": (96, 2400, 600, 1_000_000, 600),
    "Gaudi3": (128, 3700, 1200, 1_800_000, 900),
    "Ada6000": (48, 960, 64, 182_000, 300),
}
ACCELERATORS: dict[str, Device] = {
    name: Device(
        name=name, memory_bytes=memory * 10**9, memory_bytes_per_s=bandwidth * 1e9, flops_per_s=flops * 1e9,
        link_bytes_per_s=links * 1e9 / 2, power_w=float(power),
    )
    for name, (memory, bandwidth, links, flops, power) in _PUBLISHED.items()
}  # fmt: skip


def read_device(source: str | Path) -> Device:
    """One of :data:`ACCELERATORS` by its name, or a JSON file with the fields of :class:`Device` (``power_w`` may be left out).

    Raises:
        ValueError: neither, a field that is missing, unknown or no number. FileNotFoundError: a ``.json`` that is not there.
    """
    if str(source) in ACCELERATORS:
        return ACCELERATORS[str(source)]
    path = Path(source)
    if path.suffix != ".json":
        raise ValueError(f"device {str(source)!r}: expected a .json file or one of {', '.join(ACCELERATORS)}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    names = [field.name for field in fields(Device)]
    if not isinstance(values, dict) or set(values) - set(names) or set(names) - {"power_w"} - set(values):
        found = ", ".join(values) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{path} has {found}: expected the fields {', '.join(names)} (power_w may be left out)")
    for name in names[1:]:
        if name in values and (isinstance(values[name], bool) or not isinstance(values[name], int | float)):
            raise ValueError(f"{path}: {name} must be a number, got {values[name]!r}")
    numbers = {name: float(values[name]) for name in names[1:] if name in values and name != "memory_bytes"}
    return Device(name=str(values["name"]), memory_bytes=int(values["memory_bytes"]), **numbers)
