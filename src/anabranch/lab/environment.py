"""Where a run took place: machine, packages, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import anabranch
from anabranch.lab.places import checkout

_SHOWN = ("numpy", "scipy", "numba", "torch", "highspy", "transformers", "ray")


@cache
def describe_environment() -> dict[str, Any]:
    """Machine, operating system, Python and package versions."""
    packages = {}
    for name in _SHOWN:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "anabranch": anabranch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "packages": packages,
    }


def cores() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def commit() -> tuple[str | None, bool]:
    """Commit of the checkout and whether tracked source differs from it; ``(None, False)`` outside a checkout."""
    root = checkout()
    if root is None:
        return None, False
    head = _git(root, "rev-parse", "HEAD")
    if head is None:
        return None, False
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "src", "pyproject.toml")
    return head, bool(changed)


def command_line() -> str:
    """The command as typed, without the folder of the program."""
    import shlex

    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _git(root: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _processor() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1).strip() if match else platform.processor() or "unknown"


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError):
        return None
