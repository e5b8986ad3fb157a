"""What is left of an operation's speed when it gets a share of the machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = ("gemm", "gemv", "network")


@dataclass(frozen=True)
class Interference:
    """Performance P against the share R of the machine, by kind of operation; straight lines between the points.

    A share is measured by what it takes from matrix products: one that runs at 1 - x leaves x to the others (NanoFlow,
    2408.12757, section 4.1.1).

    Args:
        points: for each kind the pairs (R, P), from (0, 0) to (1, 1), not decreasing.

    Raises:
        ValueError: pairs that do not start at (0, 0), end at (1, 1) or fall; says which. :meth:`monotone` repairs measured ones.
    """

    points: Mapping[str, Sequence[tuple[float, float]]]

    def __post_init__(self) -> None:
        for kind, pairs in self.points.items():
            share, speed = (np.array(x, float) for x in zip(*pairs, strict=True))
            if (share[0], speed[0]) != (0, 0) or (share[-1], speed[-1]) != (1, 1):
                raise ValueError(
                    f"points of {kind} go from {pairs[0]} to {pairs[-1]}: expected (0.0, 0.0) to (1.0, 1.0)"
                )
            if (np.diff(share) <= 0).any() or (np.diff(speed) < 0).any():
                raise ValueError(f"points of {kind} fall or repeat a share: Interference.monotone fits them")

    def __call__(self, kind: str, share: Any) -> Any:
        """P of ``kind`` at shares in [0, 1].

        Raises:
            ValueError: an unknown kind.
        """
        if kind not in self.points:
            raise ValueError(f"no interference of kind {kind!r}: there are {', '.join(self.points)}")
        at, speed = zip(*self.points[kind], strict=True)
        return np.interp(share, at, speed)

    def cheapest(self, kind: str) -> float:
        """``min R / P(R)``: the least of the machine's time that a second of this kind costs. At a point of the table."""
        return min(share / speed for share, speed in self.points[kind] if speed > 0)

    @classmethod
    def published(cls) -> "Interference":
        """NanoFlow's on an A100: one anchor is published (gemv 0.3 at R = 0.2), the rest is from general knowledge."""
        return cls({
            "gemm": [(0.0, 0.0), (1.0, 1.0)],
            "gemv": [(0.0, 0.0), (0.1, 0.2), (0.2, 0.3), (0.8, 0.85), (0.9, 0.95), (1.0, 1.0)],
            "network": [(0.0, 0.0), (0.1, 0.3), (0.2, 0.5), (0.8, 0.9), (0.9, 1.0), (1.0, 1.0)],
        })  # fmt: skip

    @classmethod
    def monotone(cls, measured: Mapping[str, Sequence[tuple[float, float]]]) -> "Interference":
        """The nearest table that does not fall (isotonic regression by pooling), with the ends put at (0, 0) and (1, 1)."""
        fitted = {}
        for kind, pairs in measured.items():
            inner = sorted((share, speed) for share, speed in pairs if 0 < share < 1)
            pools: list[list[float]] = []
            for _, speed in inner:
                pools.append([min(max(speed, 0.0), 1.0), 1.0])
                while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
                    (a, n), (b, m) = pools[-2:]
                    pools[-2:] = [[(a * n + b * m) / (n + m), n + m]]
            level = [value for value, count in pools for _ in range(int(count))]
            fitted[kind] = [
                (0.0, 0.0),
                *((share, value) for (share, _), value in zip(inner, level, strict=True)),
                (1.0, 1.0),
            ]
        return cls(fitted)
