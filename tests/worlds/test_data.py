"""Cards of data sets, and every way to get Fashion-MNIST: from a folder, damaged, missing."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anabranch.worlds import CARDS, FASHION_CLASSES, FASHION_MNIST, Card, DataMissing, Way, load_fashion_mnist
from support import CommandLine


def test_every_card_says_what_it_must() -> None:
    for name, card in CARDS.items():
        assert name == card.name
        assert card.licence
        assert card.origin
        assert card.size_bytes > 0
        if isinstance(card, Card):
            assert all(len(file.sha256) == 64 and file.size_bytes > 0 for file in card.files)


def test_missing_data_name_every_way(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="anabranch data fashion-mnist") as error:
        load_fashion_mnist(tmp_path)
    for way in ("installed Debian package", "apt-get download", "torchvision", "--from DIR"):
        assert way in str(error.value)


def fail(folder: Path, note: object) -> None:
    raise OSError("not today")


def test_when_no_way_works_each_reason_is_told(tmp_path: Path) -> None:
    card = replace(FASHION_MNIST, ways=(Way("one way", fail), Way("another", fail)))
    with pytest.raises(DataMissing, match="one way: not today; another: not today"):
        card.get(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_it_is_refused(tmp_path: Path, anabranch: CommandLine) -> None:
    done = anabranch("data", "fashion-mnist", "--from", str(tmp_path))
    assert done.returncode == 2
    assert "does not hold fashion-mnist: expected train-images-idx3-ubyte" in done.stderr
    done = anabranch("data", "fashion-mnst")
    assert (done.returncode, "did you mean fashion-mnist" in done.stderr) == (2, True)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in FASHION_MNIST.files:
        (source / f"{file.name}.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged or another version"):
        FASHION_MNIST.get(tmp_path / "data", source=source)
    (source / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(ValueError, match="is damaged"):
        FASHION_MNIST.get(tmp_path / "data", source=source)
    assert not (tmp_path / "data").exists()


def test_the_list(anabranch: CommandLine) -> None:
    assert "fashion-mnist" in anabranch("data").stdout
    (card,) = json.loads(anabranch("data", "fashion-mnist", "--json").stdout)
    assert (card["licence"], card["here"]) == ("MIT", False)


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    try:
        FASHION_MNIST.get(root)
    except DataMissing as error:
        pytest.skip(f"Fashion-MNIST cannot be had here: {error}")
    return root


def test_the_real_data_set(fashion: Path) -> None:
    images, labels = load_fashion_mnist(fashion, "train")
    assert images.shape == (60_000, 28, 28)
    assert Counter(labels.tolist()) == dict.fromkeys(range(len(FASHION_CLASSES)), 6_000)
    assert images.mean() / 255 == pytest.approx(0.2860, abs=1e-4)  # the usual normalisation constants
    assert images.std() / 255 == pytest.approx(0.3530, abs=1e-4)
    test_images, test_labels = load_fashion_mnist(fashion, "test")
    assert (len(test_images), np.bincount(test_labels).tolist()) == (10_000, [1_000] * 10)
    with pytest.raises(ValueError, match="split='all'"):
        load_fashion_mnist(fashion, "all")  # type: ignore[arg-type]


def test_it_is_taken_from_a_folder_and_a_changed_byte_is_found(
    fashion: Path, tmp_path: Path, anabranch: CommandLine
) -> None:
    done = anabranch(
        "data", "fashion-mnist", "--from", str(fashion / "fashion-mnist"), env={"ANABRANCH_DATA": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    path = tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte is damaged"):
        load_fashion_mnist(tmp_path, "test")
