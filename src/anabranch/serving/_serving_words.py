"""Plain text and numbers of the commands of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


def numbers(option: str, text: str) -> list[float]:
    """``"2,3,6"`` as numbers above 0.

    Raises:
        ValueError: anything else; names the option.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise ValueError(f"{option} {text}: expected numbers above 0, separated by commas")
    return found


_WATTS = {"w": 1.0, "kw": 1e3, "mw": 1e6}


def watts(option: str, text: str) -> float:
    """``"200kW"`` in watts.

    Raises:
        ValueError: no number, or another unit.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    unit = found.group(2).lower() or "w" if found else ""
    try:
        value = float(found.group(1)) if found else 0.0
    except ValueError:
        value = 0.0
    if unit not in _WATTS or value <= 0:
        raise ValueError(f"{option} {text}: expected a power such as 200kW, 1.5MW or 200000")
    return value * _WATTS[unit]


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as lines of columns, numbers to the right."""
    names = list(rows[0])
    cells = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines = []
    for line in cells:
        first, *rest = zip(line, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
