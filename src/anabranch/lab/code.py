"""Which of our code a result depends on, and its hash.

The hash covers a module and every module of the same top-level packages (and of ``anabranch``) that it imports,
transitively, read from the source without importing anything. Comments, blank lines and docstrings do not count; the lab,
the hub and the command line do not either: they measure and show, they are not what is measured.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

_NOT_MEASURED = ("anabranch.lab", "anabranch.hub", "anabranch.cli")


@cache
def code_hash(module: str) -> str:
    """SHA-256 (first 16 hex digits) of the code that ``module`` runs. Cost: one parse of each source file, then cached."""
    digest = hashlib.sha256()
    for name, path in sorted(imported_modules(module).items()):
        digest.update(name.encode() + b"\0" + _normalised(path) + b"\0")
    return digest.hexdigest()[:16]


@cache
def imported_modules(module: str) -> dict[str, Path]:
    """Modules of ours that ``module`` imports, transitively, itself included, with their files."""
    roots = {module.partition(".")[0], "anabranch"}
    found: dict[str, Path] = {}
    queue = [module]
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.submodule_search_locations:
        # A paper's folder counts whole: its experiment is not imported by its __init__.
        queue += [
            f"{module}.{file.stem}"
            for place in spec.submodule_search_locations
            for file in sorted(Path(place).glob("*.py"))
            if file.stem != "__init__"
        ]
    while queue:
        name = queue.pop()
        if name in found or name.startswith(_NOT_MEASURED) or name.partition(".")[0] not in roots:
            continue
        path = _source(name)
        if path is None:
            continue
        found[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        if "." in name:
            queue.append(name.rpartition(".")[0])
        queue += sorted(_imports(path, package))
    return found


def _imports(path: Path, package: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([base] if base else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def _source(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes())


def _normalised(path: Path) -> bytes:
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                for number in range(first.lineno - 1, first.end_lineno or first.lineno):
                    lines[number] = ""
    kept = (line.rstrip() for line in lines)
    return "\n".join(line for line in kept if line and not line.lstrip().startswith("#")).encode()
