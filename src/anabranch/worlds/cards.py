"""Data sets and shared weights: a card each, and how each is got. Nothing is fetched without being asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Note = Callable[[str], None]


class DataMissing(ValueError):
    """A data set is not here; the message names every way to get it."""


@dataclass(frozen=True)
class File:
    """A file of a data set.

    Args:
        name: its name in the data set's folder.
        sha256: of its content after unpacking, which is the same however it was packed.
        size_bytes: of that content.
    """

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Way:
    """A way to get a data set: ``fetch(folder, note)`` puts the files into ``folder`` or raises ``OSError``."""

    name: str
    fetch: Callable[[Path, Note], None]


@dataclass(frozen=True)
class Card:
    """What a data set or shared weights are, and where they come from.

    Args:
        name: its name on the command line.
        title: what it is, in one line.
        licence: its licence.
        origin: who made it, and where it is published.
        files: what lies in its folder.
        accepts: given a folder of the user's, the paths of the files in it, or None.
        content: content of a file as it lies on the disk (unpacked where it is packed).
        ways: ways to get it, tried in order.
        recipe: how it is built, for shared weights and generated sets.
    """

    name: str
    title: str
    licence: str
    origin: str
    files: tuple[File, ...]
    accepts: Callable[[Path], dict[str, Path] | None]
    content: Callable[[Path], bytes]
    ways: Sequence[Way] = ()
    recipe: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def folder(self, root: Path) -> Path:
        return root / self.name

    def here(self, root: Path) -> bool:
        """Whether its files are in ``root``; their content is checked when they are read."""
        return self.accepts(self.folder(root)) is not None

    def read(self, name: str, root: Path) -> bytes:
        """Content of one file.

        Raises:
            DataMissing: the data set is not in ``root``.
            ValueError: the content is not what the card says.
        """
        paths = self.accepts(self.folder(root))
        if paths is None:
            raise DataMissing(f"{self.name} is not in {root}; {self.how()}")
        return self._checked(name, paths[name])

    def get(self, root: Path, *, source: Path | None = None, note: Note = lambda text: None) -> Path:
        """Put the data set into ``root``, from the folder ``source`` or by the first way that works, and give its folder back.

        Raises:
            ValueError: ``source`` does not hold it, or its content is not what the card says.
            DataMissing: no way worked; each is named with its reason.
        """
        folder = self.folder(root)
        if source is not None:
            self._take(source, folder)
            return folder
        if self.here(root):
            for file in self.files:
                self.read(file.name, root)
            return folder
        reasons = []
        for way in self.ways:
            note(f"trying {way.name}")
            place = folder.with_name(f".{folder.name}.part")
            try:
                place.mkdir(parents=True, exist_ok=True)
                way.fetch(place, note)
                self._take(place, folder)
                return folder
            except (OSError, ValueError, ImportError) as error:
                reasons.append(f"{way.name}: {error}")
            finally:
                _remove(place)
        raise DataMissing(f"{self.name} could not be had ({'; '.join(reasons)}); {self.how()}")

    def how(self) -> str:
        """Every way to get it, in one line."""
        ways = ", ".join(way.name for way in self.ways)
        return f"get it with `anabranch data {self.name}` ({ways}) or `anabranch data {self.name} --from DIR`"

    def _take(self, source: Path, folder: Path) -> None:
        paths = self.accepts(source)
        if paths is None:
            names = ", ".join(file.name for file in self.files)
            raise ValueError(f"{source} does not hold {self.name}: expected {names} (also with .gz)")
        contents = {file.name: self._checked(file.name, paths[file.name]) for file in self.files}
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            part = folder / f".{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)

    def _checked(self, name: str, path: Path) -> bytes:
        file = next(file for file in self.files if file.name == name)
        content = self.content(path)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise ValueError(
                f"{path} is damaged or another version: its checksum is not that of the card of {self.name}"
            )
        return content


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
