"""Which of our code a result depends on, and its hash.

The hash covers a module and every module of the same top-level package (and of ``anabranch``) that it imports,
transitively, read from the source without importing anything. Comments, blank lines and docstrings do not count; the lab,
the hub, the command line and packages' commands do not either: they measure and show, they are not what is measured.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from anabranch.lab.places import cache_folder

_NOT_MEASURED = ("anabranch.lab", "anabranch.hub", "anabranch.cli")


@dataclass(frozen=True)
class _Facts:
    """What the source of one module says: absolute or relative names it imports, and the hash of its code."""

    imports: tuple[str, ...]
    digest: str


@cache
def code_hash(module: str) -> str:
    """SHA-256 (first 16 hex digits) of the code that ``module`` runs.

    Cost: one parse of each source file, kept between processes by path, size and time of change.
    """
    known = _Known()
    digest = hashlib.sha256()
    for name, path in sorted(_closure(module, known).items()):
        digest.update(f"{name}\0{known.facts(path).digest}\0".encode())
    known.save()
    return digest.hexdigest()[:16]


@cache
def imported_modules(module: str) -> dict[str, Path]:
    """Modules of ours that ``module`` imports, transitively, itself included, with their files."""
    return _closure(module, _Known())


def _closure(module: str, known: _Known) -> dict[str, Path]:
    roots = {module.partition(".")[0], "anabranch"}
    found: dict[str, Path] = {}
    queue = [module]
    own = _source(module)
    if own is not None and own.name == "__init__.py":
        # A paper's folder counts whole: its experiment is not imported by its __init__.
        queue += [f"{module}.{file.stem}" for file in sorted(own.parent.glob("*.py")) if file.stem != "__init__"]
    while queue:
        name = queue.pop()
        if name in found or name.startswith(_NOT_MEASURED) or name.endswith(".commands"):
            continue
        if name.partition(".")[0] not in roots:
            continue
        path = _source(name)
        if path is None:
            continue
        found[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        if "." in name:
            queue.append(name.rpartition(".")[0])
        queue += [_absolute(imported, package) for imported in known.facts(path).imports]
    return found


def _absolute(name: str, package: str) -> str:
    level = len(name) - len(name.lstrip("."))
    if not level:
        return name
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - level + 1], *filter(None, [name.lstrip(".")])])


@cache
def _root(package: str) -> Path | None:
    # Only the top level is looked up: looking up a submodule would import its parents.
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    return Path(places[0]) if places else None


@cache
def _source(name: str) -> Path | None:
    top, _, rest = name.partition(".")
    root = _root(top)
    if root is None:
        return None
    base = root.joinpath(*rest.split(".")) if rest else root
    for path in (base / "__init__.py", base.with_name(f"{base.name}.py")):
        if path.is_file() and (rest or path.name == "__init__.py"):
            return path
    return None


class _Known:
    """Facts by file, kept in the cache folder; where that cannot be read or written they are found anew."""

    def __init__(self) -> None:
        self._path = cache_folder() / "code.json"
        self._entries: dict[str, list[object]] = {}
        self._new = False
        with suppress(OSError, ValueError):
            entries = json.loads(self._path.read_bytes())
            self._entries = entries if isinstance(entries, dict) else {}

    def facts(self, path: Path) -> _Facts:
        stat = path.stat()
        stamp = f"{stat.st_mtime_ns}-{stat.st_size}"
        entry = self._entries.get(str(path))
        if isinstance(entry, list) and len(entry) == 3 and entry[0] == stamp:
            return _Facts(tuple(map(str, entry[1])) if isinstance(entry[1], list) else (), str(entry[2]))
        facts = read_facts(path)
        self._entries[str(path)] = [stamp, list(facts.imports), facts.digest]
        self._new = True
        return facts

    def save(self) -> None:
        from anabranch.lab.runs import write_atomically

        if self._new:
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._path, json.dumps(self._entries).encode())


def read_facts(path: Path) -> _Facts:
    """The imports and the hash of one source file."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.splitlines()
    imports: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            joined = base if base.endswith(".") or not base else f"{base}."
            imports.add(base)
            imports.update(f"{joined}{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                for number in range(first.lineno - 1, first.end_lineno or first.lineno):
                    lines[number] = ""
    kept = (line.rstrip() for line in lines)
    code = "\n".join(line for line in kept if line and not line.lstrip().startswith("#"))
    return _Facts(tuple(sorted(imports)), hashlib.sha256(code.encode()).hexdigest())
