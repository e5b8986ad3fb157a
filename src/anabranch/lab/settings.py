"""Settings of a run: the paper's dataclass at a scale, with ``--set KEY=VALUE`` laid over it."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from anabranch.lab.contract import Paper
from anabranch.lab.errors import LabError, UnknownName

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def settings_for(paper: Paper, scale: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """The settings of ``paper`` at ``scale`` with ``overrides`` (texts are converted by the field's type).

    Raises:
        UnknownName: the scale or a key is unknown (nearest suggested).
        LabError: a value does not fit its field.
    """
    if not paper.runnable:
        raise LabError(f"{paper.slug} has no experiment yet; `anabranch papers --runnable` lists those that run")
    if scale not in paper.scales:
        raise UnknownName("scale", scale, paper.scales)
    settings = paper.scales[scale]
    hints = get_type_hints(type(settings))
    changes = {}
    for key, value in (overrides or {}).items():
        if key not in hints:
            raise UnknownName("setting", key, hints, f"`anabranch show {paper.slug}` lists them")
        changes[key] = convert(key, value, hints[key])
    try:
        return replace(settings, **changes)
    except (ValueError, TypeError) as error:
        raise LabError(str(error)) from error


def parse_assignments(texts: Sequence[str]) -> dict[str, str]:
    """``["a=1", "b=x"]`` as a mapping; a text without ``=`` or a key given twice is refused."""
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise LabError(f"--set {text!r}: expected KEY=VALUE")
        if key in pairs:
            raise LabError(f"--set {key}: given twice")
        pairs[key] = value.strip()
    return pairs


def convert(key: str, value: Any, kind: Any) -> Any:
    """``value`` as ``kind`` (bool, int, float, str, Literal, Optional, tuple of those).

    Raises:
        LabError: it does not fit; the message names the setting, the value and what was expected.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and (value is None or str(value).lower() in ("none", "")):
            return None
        last: LabError | None = None
        for option in arguments:
            if option is not type(None):
                try:
                    return convert(key, value, option)
                except LabError as error:
                    last = error
        assert last is not None
        raise last
    if origin is Literal:
        for option in arguments:
            if value == option or str(value) == str(option):
                return option
        raise LabError(f"{key}={value!r}: expected one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        items = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
        return tuple(convert(key, item.strip() if isinstance(item, str) else item, arguments[0]) for item in items)
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in _TRUE + _FALSE:
            return str(value).lower() in _TRUE
        raise LabError(f"{key}={value!r}: expected true or false")
    if kind in (int, float):
        try:
            if kind is int and isinstance(value, float) and value != int(value):
                raise ValueError
            number = kind(value.replace("_", "") if isinstance(value, str) else value)
            if number != number or number in (float("inf"), float("-inf")):
                raise ValueError
            return number
        except (ValueError, OverflowError) as error:
            expected = "a whole number" if kind is int else "a number"
            raise LabError(f"{key}={value!r}: expected {expected}") from error
    if kind is str:
        return str(value)
    raise LabError(f"{key}: settings of type {kind} cannot be set from the command line")


def describe_settings(settings: Any) -> list[tuple[str, str, Any]]:
    """``(name, type, value)`` of every field."""
    hints = get_type_hints(type(settings))
    return [(f.name, _type_name(hints[f.name]), getattr(settings, f.name)) for f in fields(settings)]


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is not None:
        return str(kind).replace("typing.", "")
    return getattr(kind, "__name__", str(kind))
