"""What keeps the house from becoming a zoo."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from anabranch.lab import papers
from support import ROOT

SRC = ROOT / "src" / "anabranch"
PAPERS = sorted(path for path in (SRC / "papers").iterdir() if path.is_dir() and path.name != "__pycache__")
PACKAGES = sorted(
    path.parent.name
    for path in SRC.glob("*/__init__.py")
    if path.parent.name not in ("papers", "lab", "hub", "_results")
)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILT_IN = [paper for paper in papers() if (SRC / "papers" / paper.module).is_dir()]


@pytest.mark.xdist_group("named")
def test_tests_of_a_group_go_to_one_worker(request: pytest.FixtureRequest) -> None:
    """Some versions of pytest and pytest-xdist do not know each other's groups, and say nothing."""
    if hasattr(request.config, "workerinput") and request.config.getvalue("loadgroup"):
        assert request.node.nodeid.endswith("@named")


@pytest.mark.parametrize("folder", PAPERS, ids=lambda p: p.name)
def test_a_paper_folder_holds_only_its_two_files(folder: Path) -> None:
    names = {path.name for path in folder.iterdir() if path.name != "__pycache__"}
    assert names <= {"__init__.py", "experiment.py"}
    assert "__init__.py" in names


@pytest.mark.parametrize("paper", BUILT_IN, ids=lambda p: p.slug)
def test_a_paper_is_data_and_its_experiment_is_there_when_it_says_so(paper: object) -> None:
    folder = SRC / "papers" / paper.module  # type: ignore[attr-defined]
    assert (folder / "experiment.py").exists() == paper.runnable  # type: ignore[attr-defined]
    for node in ast.walk(ast.parse((folder / "__init__.py").read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert module in ("__future__", "dataclasses", "datetime", "typing", "anabranch.lab"), (
                f"heavy import {module}"
            )


EXPERIMENTS = [path for folder in PAPERS if (path := folder / "experiment.py").exists()]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.parent.name)
def test_an_experiment_defines_no_method(path: Path) -> None:
    """No network, solver or loss: all that is the method lives in the library (a function that times a step may call one)."""
    tree = ast.parse(path.read_text())
    timed = {
        id(inner)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("cost_of_")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            assert not any("Module" in base or "Solver" in base or "Loss" in base for base in bases), node.name
        if isinstance(node, ast.FunctionDef) and id(node) not in timed:
            assert not re.search(r"(^|_)(solve|step|loss)(_|$)", node.name), f"{node.name} belongs to the library"


AWAITING_A_CHECK: set[str] = set()  # they run, and their claims say "not checked" until a result is committed


@pytest.mark.parametrize("paper", [p for p in BUILT_IN if p.runnable], ids=lambda p: p.slug)
def test_a_runnable_paper_is_complete(paper: object) -> None:
    slug = paper.slug  # type: ignore[attr-defined]
    assert (ROOT / "results" / f"{slug}.json").exists() != (slug in AWAITING_A_CHECK), "check it and commit the result"
    assert (ROOT / "docs" / "papers" / f"{slug}.md").exists()
    assert {"smoke", "laptop"} <= set(paper.scales)  # type: ignore[attr-defined]
    assert paper.seconds["smoke"] <= 10  # type: ignore[attr-defined]
    assert paper.seconds["laptop"] <= 600  # type: ignore[attr-defined]
    assert list((ROOT / "benchmarks").glob("*.py"))
    assert paper.claims  # type: ignore[attr-defined]
    # what is not checked is the paper's own, about systems that we do not have
    assert all(claim.checked or claim.origin == "paper" for claim in paper.claims)  # type: ignore[attr-defined]
    assert sum(claim.checked for claim in paper.claims) >= 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("paper", [p for p in BUILT_IN if p.parts], ids=lambda p: p.slug)
def test_every_part_is_there(paper: object) -> None:
    for part in paper.parts:  # type: ignore[attr-defined]
        module, _, name = part.partition(":")
        assert hasattr(importlib.import_module(module), name), part


@pytest.mark.parametrize("paper", [p for p in BUILT_IN if p.example], ids=lambda p: p.slug)
def test_every_example_runs(paper: object, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", paper.example],  # type: ignore[attr-defined]
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_no_two_packages_export_one_name_for_different_things() -> None:
    seen: dict[str, dict[int, str]] = defaultdict(dict)
    for package in [*PACKAGES, "lab", "hub"]:
        module = importlib.import_module(f"anabranch.{package}")
        for name in module.__all__:
            seen[name][id(getattr(module, name))] = package
    clashes = {name: sorted(found.values()) for name, found in seen.items() if len(found) > 1}
    assert not clashes


@pytest.mark.parametrize("package", [*PACKAGES, "lab", "hub"])
def test_every_public_name_is_documented(package: str) -> None:
    module = importlib.import_module(f"anabranch.{package}")
    assert module.__doc__
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert (value.__doc__ or "").strip(), f"{package}.{name} has no docstring"
            assert not (value.__doc__ or "").startswith(f"{name}("), f"{package}.{name}: write a sentence"


def test_no_package_is_empty() -> None:
    for package in PACKAGES:
        assert importlib.import_module(f"anabranch.{package}").__all__, package


def test_every_concept_has_its_row() -> None:
    """Every package's public names stand in the concept table, or in the list of parts of a paper's page."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    missing = [
        f"{package}.{name}"
        for package in PACKAGES
        for name in importlib.import_module(f"anabranch.{package}").__all__
        if not re.search(rf"`(anabranch\.)?({package}\.)?{re.escape(name)}[`(]", text)
    ]
    assert not missing, f"docs/architecture.md lacks {missing}"


def test_a_dependency_names_its_users_or_its_reason() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = PYPROJECT["project"]["dependencies"] + [
        requirement for extra in PYPROJECT["project"]["optional-dependencies"].values() for requirement in extra
    ]
    for requirement in listed:
        name = re.match(r"[A-Za-z0-9_.-]+", requirement)
        assert name is not None
        if name.group() == "anabranch":  # an extra made of extras
            continue
        assert f"`{name.group()}`" in text, f"docs/architecture.md gives no reason for {name.group()}"


def test_every_dependency_is_pinned_for_the_suite() -> None:
    pinned = {re.split(r"[=<>!]", pin)[0].lower() for pin in PYPROJECT["tool"]["uv"]["constraint-dependencies"]}
    wanted = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["dependency-groups"]["dev"]]
    for requirement in wanted:
        name = re.split(r"[\[<>=;]", requirement)[0].lower()
        if name == "anabranch":
            continue
        assert name in pinned, f"{name} has no pin"


def test_modules_are_read_in_a_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in SRC.rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_test_modules_have_names_of_their_own() -> None:
    """Folders without ``__init__.py`` share one name space: of two modules of one name pytest reads only the first."""
    places = defaultdict(list)
    for path in (ROOT / "tests").rglob("*.py"):
        if not (path.parent / "__init__.py").exists() and path.name != "conftest.py":
            places[path.name].append(str(path.relative_to(ROOT)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_library_packages_do_not_print() -> None:
    for package in PACKAGES:
        for path in (SRC / package).rglob("*.py"):
            if path.name == "commands.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                assert not (isinstance(node, ast.Call) and ast.unparse(node.func) == "print"), path


def test_nothing_names_a_place_of_one_machine() -> None:
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True).stdout.split()
    hosts = r"pypi\.org|pythonhosted\.org|registry\.npmjs|deb\.debian\.org"
    pattern = re.compile(rf"{hosts}|(^|[^\w.])/(root|home/\w+)/", re.MULTILINE)
    for name in tracked:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".json", ".yml", ".cff", ".j2", ".csv", "") and path.is_file():
            if path == Path(__file__):
                continue
            assert not pattern.search(path.read_text(errors="replace")), name
    assert "uv.lock" not in tracked


def test_the_readme_table_is_the_catalogue() -> None:
    from anabranch.hub import catalogue_table

    readme = (ROOT / "README.md").read_text()
    begin, end = "<!-- catalogue -->\n", "<!-- end of catalogue -->"
    assert readme[readme.index(begin) + len(begin) : readme.index(end)].strip() == catalogue_table(BUILT_IN).strip()


def test_the_readme_has_exactly_two_set_up_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## Set up") :].split("\n## ")[1 if readme.startswith("## Set up") else 0]
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert block.startswith("python -m pip install uv")
        assert len(block.strip().splitlines()) == 1
    assert blocks[1].strip().split("&& ")[-1] in (ROOT / ".ci" / "run").read_text()
