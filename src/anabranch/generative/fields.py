"""Velocity fields: the protocol and the counter of network calls.

A field is any callable ``v(x, t, **condition)`` with ``x`` ``[B, ...]`` and ``t`` a number, a 0-d tensor or ``[B]``; it
gives back a tensor of ``x``'s shape and dtype. Wrappers nest: a guided, counted field is again a field.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class VelocityField(Protocol):
    """``dx/dt`` along the flow from the source (t = 0) to the data (t = 1)."""

    def __call__(self, *x_t: Any, **condition: Any) -> Tensor:
        """``field(x, t, **condition)``: velocity at ``x`` ``[B, ...]`` and ``t`` (a number, 0-d or ``[B]``), like ``x``."""


def calls_per_evaluation(field: Any, t: float | Tensor) -> int:
    """Network calls per sample that one evaluation of ``field`` makes at ``t``: 1 unless the field says otherwise.

    A wrapper says it by a method ``calls_at(t)``.
    """
    count = getattr(field, "calls_at", None)
    return 1 if count is None else count(t)


@dataclass
class Counted:
    """Counts the network calls per sample that a field makes; guidance counts 2 per evaluation.

    ``calls`` is per sample (one evaluation of a batch is one call); ``rows`` is the number of samples evaluated, summed
    over the calls. ``path`` and the like are read through to the field.
    """

    field: VelocityField
    calls: int = dataclasses.field(default=0, init=False)
    rows: int = dataclasses.field(default=0, init=False)

    def __call__(self, x: Tensor, t: float | Tensor, /, **condition: Any) -> Tensor:
        calls = calls_per_evaluation(self.field, t)
        self.calls += calls
        self.rows += calls * len(x)
        return self.field(x, t, **condition)

    def calls_at(self, t: float | Tensor) -> int:
        return calls_per_evaluation(self.field, t)

    def reset(self) -> None:
        """Sets both counters to 0."""
        self.calls = self.rows = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "field":
            raise AttributeError(name)
        return getattr(self.field, name)
