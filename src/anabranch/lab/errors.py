"""Errors that a user can act on: one line that says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher


class LabError(ValueError):
    """Bad input or a bad surrounding; the message is one line and names what to change."""


def _nearest(name: str, names: list[str]) -> list[str]:
    """The name most like ``name``, and others almost as like it."""
    likeness = {known: SequenceMatcher(None, name.lower(), known).ratio() for known in names}
    best = max(likeness.values(), default=0.0)
    return sorted((n for n in names if likeness[n] >= max(0.55, best - 0.08)), key=lambda n: -likeness[n])[:3]


class UnknownName(LabError):
    """A name that is not there, with the nearest ones that are.

    Args:
        what: what was looked for, e.g. ``"paper"``.
        name: the name given.
        known: the names there are.
        hint: how to list them.
    """

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = _nearest(name, names)
        message = f"unknown {what} {name!r}"
        if near:
            message += f"; did you mean {' or '.join(near)}?"
        elif names and len(names) <= 12:
            message += f"; there are: {', '.join(names)}"
        if hint:
            message += f" ({hint})"
        super().__init__(message)
        self.name, self.near = name, near
