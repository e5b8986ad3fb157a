"""Papers that misbehave, for tests of the lab. They are registered by the ``register`` fixture, never installed."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

from anabranch.lab import Claim, Lab, Paper


@dataclass(frozen=True)
class Settings:
    size: int = 1
    name: str = "a"


def make_paper(slug: str, claims: tuple[Claim, ...] = (), settings: Any = None, **facts: Any) -> Paper:
    return Paper(
        slug=slug,
        title=slug.replace("-", " ").title(),
        authors=("A. Nobody",),
        published=date(2020, 1, 2),
        summary="A paper for tests.",
        package="tests",
        scales={"smoke": settings or Settings(), "laptop": settings or Settings()},
        claims=claims,
        **facts,
    )


def make_modules(paper: Paper, experiment: Callable[[Lab, Any], None]) -> dict[str, types.ModuleType]:
    """The two modules of a paper, as if they lay in a folder."""
    package = types.ModuleType(f"paper_{paper.module}")
    package.PAPER = paper  # type: ignore[attr-defined]
    package.__path__ = []
    package.__spec__ = types.SimpleNamespace(submodule_search_locations=[], origin=None)  # type: ignore[assignment]
    inner = types.ModuleType(f"{package.__name__}.experiment")
    inner.experiment = experiment  # type: ignore[attr-defined]
    inner.__spec__ = types.SimpleNamespace(submodule_search_locations=None, origin=None)  # type: ignore[assignment]
    package.experiment = inner  # type: ignore[attr-defined]
    return {package.__name__: package, inner.__name__: inner}


def install(paper: Paper, experiment: Callable[[Lab, Any], None], known: dict[str, tuple[Paper, str]]) -> list[str]:
    modules = make_modules(paper, experiment)
    sys.modules.update(modules)
    known[paper.slug] = (paper, f"paper_{paper.module}")
    return list(modules)
