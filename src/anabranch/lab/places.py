"""Where things are kept: one home folder, overridable by ``ANABRANCH_HOME``, and the committed results."""

from __future__ import annotations

import os
from pathlib import Path

from anabranch.lab.errors import LabError


def home() -> Path:
    """The data folder: ``$ANABRANCH_HOME``, else the platform's folder for user data."""
    given = os.environ.get("ANABRANCH_HOME")
    if given:
        return Path(given).expanduser().resolve()
    from platformdirs import user_data_path

    return user_data_path("anabranch")


def runs_folder() -> Path:
    return home() / "runs"


def cache_folder() -> Path:
    return home() / "cache"


def data_folder() -> Path:
    """Data sets: ``$ANABRANCH_DATA``, else ``data`` in :func:`home`."""
    given = os.environ.get("ANABRANCH_DATA")
    return Path(given).expanduser().resolve() if given else home() / "data"


def checkout() -> Path | None:
    """Root of the source checkout that this package runs from, if it does."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / "src" / "anabranch").is_dir() else None


def results_folder() -> Path:
    """Committed results: read in place in a checkout, from the package's data elsewhere."""
    root = checkout()
    return root / "results" if root else Path(__file__).resolve().parents[1] / "_results"


def ensure(folder: Path, purpose: str) -> Path:
    """Make ``folder``; a :class:`LabError` that says how to choose another where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LabError(
            f"cannot write {purpose} to {folder}: {reason}; set ANABRANCH_HOME to a folder you can write to"
        ) from error
    return folder
