"""Which of our code a result depends on, and its hash.

The hash covers a module and every module of the same top-level package (and of ``anabranch``) that it imports,
transitively, read from the source without importing anything. A package's ``__init__`` is a face: a name taken from it leads
to the module that defines it and to no other, so a package may grow without making every result stale. Comments, blank
lines and docstrings do not count; the lab, the hub, the command line and packages' commands do not either: they measure and
show, they are not what is measured.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import math
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from anabranch.lab.places import cache_folder

_NOT_MEASURED = ("anabranch.lab", "anabranch.hub", "anabranch.cli")


@dataclass(frozen=True)
class _Facts:
    """What the source of one module says, and the hash of its code.

    Args:
        imports: what it imports, each as "module|name|attributes": ``from module import name`` (name empty: the module
            itself), and which attributes of that are used, "*" where it is used otherwise.
        exports: the names that its imports bind, as "name|module|name there".
    """

    imports: tuple[str, ...]
    exports: tuple[str, ...]
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


class CodeWatch:
    """Tells a process that outlives the code, such as a server, that the code has changed; hashes are then found anew.

    A look costs one ``stat`` for each source file and folder (300 of them take half a millisecond), at most once in
    ``every_s``. Only for processes that run no experiment themselves: what they have imported stays as it was.

    Args:
        modules: what is watched, with all they import.
        every_s: the least time between two looks.
    """

    def __init__(self, modules: Iterable[str], *, every_s: float = 1.0) -> None:
        self._modules, self._every_s = tuple(modules), every_s
        self._edition, self._looked = 0, -math.inf
        self._lock = threading.Lock()
        self._places: tuple[Path, ...] = ()
        self._stamps: tuple[tuple[int, int], ...] = ()

    def edition(self) -> int:
        """Changes when a source file was changed, added or removed since the last look."""
        if time.monotonic() - self._looked < self._every_s:
            return self._edition
        with self._lock:
            if self._stamps_now() != self._stamps or not self._places:
                for function in (code_hash, imported_modules, _source):
                    function.cache_clear()
                known = _Known()
                for module in self._modules:
                    with suppress(OSError, SyntaxError):  # half written: looked at again when it is whole
                        _closure(module, known)
                known.save()
                # Folders, too: a new module takes the place of what a name led to before.
                places = known.read | {path.parent for path in known.read}
                self._places = tuple(sorted(places))
                self._stamps = self._stamps_now()
                self._edition += 1
            self._looked = time.monotonic()
            return self._edition

    def _stamps_now(self) -> tuple[tuple[int, int], ...]:
        return tuple(map(_stamp, self._places))


def _stamp(place: Path) -> tuple[int, int]:
    try:
        stat = place.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


def _closure(module: str, known: _Known) -> dict[str, Path]:
    roots = {module.partition(".")[0], "anabranch"}
    found: dict[str, Path] = {}
    seen: set[tuple[str, str]] = set()
    queue: list[tuple[str, str]] = [(module, "*")]
    own = _source(module)
    if own is not None and own.name == "__init__.py":
        # A paper's folder counts whole: its experiment is not imported by its __init__.
        queue += [(f"{module}.{file.stem}", "*") for file in sorted(own.parent.glob("*.py")) if file.stem != "__init__"]
    while queue:
        name, wanted = queue.pop()
        if (name, wanted) in seen or name.startswith(_NOT_MEASURED) or name.endswith(".commands"):
            continue
        seen.add((name, wanted))
        path = _source(name)
        if path is None or name.partition(".")[0] not in roots:
            continue
        facts = known.facts(path)
        is_package = path.name == "__init__.py"
        if is_package and wanted != "*":
            queue.append(_through(name, wanted, facts))
            continue
        found[name] = path
        package = name if is_package else name.rpartition(".")[0]
        for entry in facts.imports:
            source, taken, attributes = entry.split("|")
            target = _absolute(source, package)
            if taken and _source(f"{target}.{taken}") is not None:  # `from package import module`
                target, taken = f"{target}.{taken}", ""
            queue += [(target, taken)] if taken else [(target, attribute) for attribute in attributes.split(",")]
    return found


def _through(package: str, name: str, facts: _Facts) -> tuple[str, str]:
    """Where a name taken from a package leads: its submodule, what its ``__init__`` takes from elsewhere, or itself."""
    if _source(f"{package}.{name}") is not None and not any(e.startswith(f"{name}|") for e in facts.exports):
        return f"{package}.{name}", "*"
    for entry in facts.exports:
        bound, source, there = entry.split("|")
        if bound == name:
            target = _absolute(source, package)
            inner = f"{target}.{there}"
            return (inner, "*") if there and _source(inner) is not None else (target, there or "*")
    return package, "*"


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
        self.read: set[Path] = set()  # in this process
        with suppress(OSError, ValueError):
            entries = json.loads(self._path.read_bytes())
            self._entries = entries if isinstance(entries, dict) else {}

    def facts(self, path: Path) -> _Facts:
        self.read.add(path)
        stat = path.stat()
        stamp = f"{stat.st_mtime_ns}-{stat.st_size}"
        entry = self._entries.get(str(path))
        if isinstance(entry, list) and len(entry) == 4 and entry[0] == stamp:
            imports, exports = (tuple(map(str, part)) if isinstance(part, list) else () for part in entry[1:3])
            return _Facts(imports, exports, str(entry[3]))
        facts = read_facts(path)
        self._entries[str(path)] = [stamp, list(facts.imports), list(facts.exports), facts.digest]
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
    bound: list[tuple[str, str, str]] = []  # name here, module, name there
    whole: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            # `import a.b` binds a and makes a.b there; who uses it says a.b.c: what of it cannot be told apart simply
            whole.update(alias.name for alias in node.names if not alias.asname)
            bound += [(alias.asname, alias.name, "") for alias in node.names if alias.asname]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            bound += [(alias.asname or alias.name, base, alias.name) for alias in node.names if alias.name != "*"]
            whole.update(base for alias in node.names if alias.name == "*")
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                for number in range(first.lineno - 1, first.end_lineno or first.lineno):
                    lines[number] = ""
    used = _attributes(tree, {name for name, _, _ in bound})
    imports = {f"{module}||*" for module in whole}
    imports |= {f"{module}|{there}|{','.join(sorted(used.get(name, {'*'})))}" for name, module, there in bound}
    kept = (line.rstrip() for line in lines)
    code = "\n".join(line for line in kept if line and not line.lstrip().startswith("#"))
    exports = sorted({f"{name}|{module}|{there}" for name, module, there in bound})
    return _Facts(tuple(sorted(imports)), tuple(exports), hashlib.sha256(code.encode()).hexdigest())


def _attributes(tree: ast.AST, names: set[str]) -> dict[str, set[str]]:
    """The attributes taken of each name; "*" is among them where the name is used in another way."""
    used: dict[str, set[str]] = {}
    taken = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            used.setdefault(node.value.id, set()).add(node.attr)
            taken.add(id(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in names and id(node) not in taken:
            used.setdefault(node.id, set()).add("*")
    return used
