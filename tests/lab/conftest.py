from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from papers_for_tests import install, make_paper

from anabranch.lab import Claim, Lab, Paper, discover


@pytest.fixture
def register() -> Iterator[Callable[..., Paper]]:
    """``register(experiment, slug=..., claims=..., ...)``: a paper of this test alone."""
    known = discover._modules()
    added: list[str] = []
    slugs: list[str] = []

    def add(
        experiment: Callable[[Lab, Any], None], slug: str = "test-paper", claims: tuple[Claim, ...] = (), **facts: Any
    ) -> Paper:
        paper = make_paper(slug, claims, **facts)
        added.extend(install(paper, experiment, known))
        slugs.append(slug)
        return paper

    yield add
    for name in added:
        sys.modules.pop(name, None)
    for slug in slugs:
        known.pop(slug, None)
