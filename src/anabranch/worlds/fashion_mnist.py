"""Fashion-MNIST: 70,000 grey 28 x 28 pictures of clothes in ten classes (Xiao, Rasul and Vollgraf, 2017)."""

from __future__ import annotations

import gzip
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from anabranch.worlds.cards import Card, File, Note, Way

_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def load_fashion_mnist(
    root: Path, split: Literal["train", "test"] = "train"
) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
    """Pictures (0 is black) and classes of a split: 60,000 to train, 10,000 to test.

    Args:
        root: the data folder.

    Raises:
        DataMissing: it is not there; the message says how to get it.
        ValueError: an unknown split, or a damaged file.
    """
    prefix = {"train": "train", "test": "t10k"}.get(split)
    if prefix is None:
        raise ValueError(f"split={split!r}: expected 'train' or 'test'")
    images = np.frombuffer(FASHION_MNIST.read(f"{prefix}-images-idx3-ubyte", root), np.uint8, offset=16)
    labels = np.frombuffer(FASHION_MNIST.read(f"{prefix}-labels-idx1-ubyte", root), np.uint8, offset=8)
    return images.reshape(len(labels), 28, 28).copy(), labels.copy()


def _accepts(folder: Path) -> dict[str, Path] | None:
    found = {}
    for file in FASHION_MNIST.files:
        path = next((p for p in (folder / file.name, folder / f"{file.name}.gz") if p.is_file()), None)
        if path is None:
            inner = folder / _DEBIAN_FOLDER
            return _accepts(inner) if inner.is_dir() else None
        found[file.name] = path
    return found


def _content(path: Path) -> bytes:
    raw = path.read_bytes()
    try:
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _installed(folder: Path, note: Note) -> None:
    source = Path("/") / _DEBIAN_FOLDER
    if not source.is_dir():
        raise OSError(f"the Debian package {_DEBIAN_PACKAGE} is not installed")
    _copy(source, folder)


def _downloaded(folder: Path, note: Note) -> None:
    """The Debian package, unpacked without being installed: needs no rights."""
    with tempfile.TemporaryDirectory() as place:
        for command in (
            ["apt-get", "download", _DEBIAN_PACKAGE],
            ["sh", "-c", f"dpkg-deb -x {_DEBIAN_PACKAGE}*.deb out"],
        ):
            note(" ".join(command[:2]))
            done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600)
            if done.returncode != 0:
                raise OSError((done.stderr.strip().splitlines() or ["it failed"])[-1])
        _copy(Path(place) / "out" / _DEBIAN_FOLDER, folder)


def _by_torchvision(folder: Path, note: Note) -> None:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(folder), download=True)
    _copy(folder / "FashionMNIST" / "raw", folder)


def _copy(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


FASHION_MNIST = Card(
    name="fashion-mnist",
    title="Fashion-MNIST: 70,000 grey 28 x 28 pictures of clothes in ten classes",
    licence="MIT",
    origin="Zalando SE, github.com/zalandoresearch/fashion-mnist",
    files=(
        File("train-images-idx3-ubyte", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", 47_040_016),
        File("train-labels-idx1-ubyte", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", 60_008),
        File("t10k-images-idx3-ubyte", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", 7_840_016),
        File("t10k-labels-idx1-ubyte", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", 10_008),
    ),
    accepts=_accepts,
    content=_content,
    ways=(
        Way("the installed Debian package", _installed),
        Way("apt-get download", _downloaded),
        Way("torchvision's download", _by_torchvision),
    ),
)
