"""What the built-in papers say of themselves, and that it agrees with the page they were found on."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anabranch.papers
from anabranch.hub import Entry, normalize_title, parse_saved_page
from anabranch.lab import Paper

PAPERS: list[Paper] = [
    importlib.import_module(f"anabranch.papers.{info.name}").PAPER
    for info in pkgutil.iter_modules(anabranch.papers.__path__)
]
PACKAGES = {"attention", "audio", "distributed", "editing", "fabric", "generative", "motion", "optimization"} | {
    "reasoning",
    "scenes",
    "serving",
}
every_paper = pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.slug)


@pytest.fixture(scope="module")
def page(shared_data: Path) -> list[Entry]:
    return parse_saved_page((shared_data / "daily-papers-flow-splitting.txt").read_text(encoding="utf-8"))


def own_texts(paper: Paper) -> Iterator[str]:
    yield paper.summary
    for claim in paper.claims:
        yield claim.says


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_there_are_28() -> None:
    assert len(PAPERS) == 28
    assert len({paper.slug for paper in PAPERS}) == 28
    assert len({paper.arxiv for paper in PAPERS}) == 28


def test_folders_carry_the_slugs() -> None:
    folders = {info.name for info in pkgutil.iter_modules(anabranch.papers.__path__)}
    assert folders == {paper.module for paper in PAPERS}


@every_paper
def test_paper_is_described(paper: Paper) -> None:
    assert paper.package in PACKAGES
    assert paper.extra in ("", paper.package)
    assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv or "")
    assert paper.repository is None or re.fullmatch(r"[\w.-]+/[\w.-]+", paper.repository)
    assert len(paper.authors) == paper.n_authors, "every author is named"
    assert all(len(name.split()) >= 2 for name in paper.authors)
    assert 40 <= len(paper.summary.split()) <= 110
    assert 2 <= len(re.findall(r"\.(?: |$)", paper.summary)) <= 4


@every_paper
def test_claims_tell_where_their_values_stand(paper: Paper) -> None:
    assert 4 <= len(paper.claims) <= 8
    for claim in paper.claims:
        assert claim.says.endswith("."), claim.name
        if claim.origin == "paper":
            assert claim.where, claim.name
            assert claim.published_setting, claim.name
        if not claim.checked:
            assert claim.origin == "paper", claim.name


@every_paper
def test_a_number_that_was_not_found_is_not_given(paper: Paper) -> None:
    for claim in paper.claims:
        if re.search(r"not found|not available|no number|sign only|without a figure|not quantified", claim.where):
            unknown_part = re.search(r"curve|setting itself|list of sets|unit of time|by length", claim.where)
            assert claim.published is None or unknown_part, claim.name


def test_papers_agree_with_the_page(page: list[Entry]) -> None:
    ours = {normalize_title(paper.title): paper for paper in PAPERS}
    assert {normalize_title(entry.title) for entry in page} == set(ours)
    for entry in page:
        paper = ours[normalize_title(entry.title)]
        assert (paper.title, paper.published, paper.n_authors) == (entry.title, entry.published, entry.n_authors)


def test_no_text_is_taken_from_an_abstract(page: list[Entry]) -> None:
    theirs = {run for entry in page for run in runs(entry.abstract, 8)}
    for paper in PAPERS:
        for text in own_texts(paper):
            assert not runs(text, 8) & theirs, paper.slug


def test_listing_papers_loads_nothing_heavy() -> None:
    program = """
import importlib, json, pkgutil, sys, time
import anabranch.lab, anabranch.papers
names = ["anabranch.papers." + info.name for info in pkgutil.iter_modules(anabranch.papers.__path__)]
start = time.perf_counter()
for name in names:
    importlib.import_module(name)
print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))
"""
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        took, modules = json.loads(done.stdout)
        seconds.append(took)
        assert not {"numpy", "scipy", "numba", "matplotlib", "torch"} & set(modules)
        assert not [name for name in modules if name.endswith(".experiment")]
    assert min(seconds) < 0.05
