"""Finds papers: the built-in ones and those of other packages (entry-point group ``anabranch.papers``)."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from anabranch.lab.contract import Paper
from anabranch.lab.errors import LabError, UnknownName

ENTRY_POINTS = "anabranch.papers"
_BUILT_IN = "anabranch.papers"


@cache
def _modules() -> dict[str, tuple[Paper, str]]:
    """Every paper with the name of its package, by slug; a plug-in that does not load is left out with a warning."""
    found: dict[str, tuple[Paper, str]] = {}
    root = importlib.import_module(_BUILT_IN)
    for info in pkgutil.iter_modules(root.__path__):
        name = f"{_BUILT_IN}.{info.name}"
        paper = _paper_of(importlib.import_module(name))
        found[paper.slug] = (paper, name)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            module = point.load()
            paper = _paper_of(module)
            if paper.slug in found:
                raise LabError(f"its slug {paper.slug!r} is taken by {found[paper.slug][1]}")
            found[paper.slug] = (paper, module.__name__)
        except Exception as error:
            warnings.warn(f"paper plug-in {point.name!r} ({point.value}) left out: {error}", stacklevel=2)
    return found


def _paper_of(module: Any) -> Paper:
    paper = getattr(module, "PAPER", None)
    if not isinstance(module, ModuleType) or not isinstance(paper, Paper):
        raise LabError(f"{getattr(module, '__name__', module)!r} is not a package with a PAPER = Paper(...)")
    return paper


def papers() -> list[Paper]:
    """All papers, newest first."""
    found = sorted((paper for paper, _ in _modules().values()), key=lambda paper: paper.slug)
    return sorted(found, key=lambda paper: paper.published, reverse=True)


def find_paper(slug: str) -> Paper:
    """The paper with this slug.

    Raises:
        UnknownName: no such paper; the nearest slugs are suggested.
    """
    return _entry(slug)[0]


def module_of(slug: str) -> str:
    """Dotted name of the paper's package."""
    return _entry(slug)[1]


def load_experiment(slug: str) -> ModuleType:
    """The paper's ``experiment`` module.

    Raises:
        LabError: the paper has no experiment yet, or the extra it needs is not installed.
    """
    paper, name = _entry(slug)
    if not paper.runnable or importlib.util.find_spec(f"{name}.experiment") is None:
        raise LabError(f"{slug} has no experiment yet; `anabranch papers --runnable` lists those that run")
    try:
        return importlib.import_module(f"{name}.experiment")
    except ModuleNotFoundError as error:
        if paper.extra and not (error.name or "").startswith("anabranch"):
            raise LabError(
                f"{slug} needs {error.name!r}: install the extra with `pip install 'anabranch[{paper.extra}]'`"
            ) from error
        raise


def experiment_of(slug: str) -> Callable[..., None]:
    """The paper's ``experiment(lab, settings)``."""
    function: Callable[..., None] = load_experiment(slug).experiment
    return function


def _entry(slug: str) -> tuple[Paper, str]:
    known = _modules()
    if slug not in known:
        raise UnknownName("paper", slug, known, "`anabranch papers` lists all")
    return known[slug]
