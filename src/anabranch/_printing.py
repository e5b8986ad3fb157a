"""How the commands print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer


def near(path: Path) -> str:
    """``path`` as seen from the current folder where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def console(*, stderr: bool = False) -> Any:
    from anabranch.lab.terminal import make_console

    return make_console(stderr=stderr)


def print_json(value: Any) -> None:
    from anabranch.lab.events import to_jsonable

    typer.echo(json.dumps(to_jsonable(value), indent=1, ensure_ascii=False))
