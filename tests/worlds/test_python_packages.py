"""Files out of Python packages: installed ones, wheels, and the sets that come so."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest

from anabranch.worlds import BASIC_MOTIONS, JAPANESE_VOWELS, DataMissing
from anabranch.worlds.python_packages import package_ways

INSIDE, NAMES = "data/set", ("a.txt", "b.txt")


def put(place: Path) -> None:
    (place / INSIDE).mkdir(parents=True)
    for name in NAMES:
        (place / INSIDE / name).write_text(name)


def quiet(text: str) -> None:
    pass


def test_an_installed_package_is_looked_into_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "carrier_of_data")
    (tmp_path / "carrier_of_data" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    installed, _ = package_ways("carrier_of_data", "carrier-of-data==1.0", INSIDE, NAMES)
    (tmp_path / "out").mkdir()
    installed.fetch(tmp_path / "out", quiet)
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {name: name for name in NAMES}


def test_a_wheel_is_unpacked_and_nothing_stays_installed(tmp_path: Path) -> None:
    wheel = tmp_path / "wheel_of_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        for name in NAMES:
            made.writestr(f"wheel_of_data/{INSIDE}/{name}", name)
        made.writestr("wheel_of_data/__init__.py", "")
        meta = "wheel_of_data-1.0.dist-info"
        made.writestr(f"{meta}/METADATA", "Metadata-Version: 2.1\nName: wheel-of-data\nVersion: 1.0\n")
        made.writestr(
            f"{meta}/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        made.writestr(f"{meta}/RECORD", "")
    _, way = package_ways("wheel_of_data", str(wheel), INSIDE, NAMES)
    (tmp_path / "out").mkdir()
    try:
        way.fetch(tmp_path / "out", quiet)
    except OSError as error:
        if "neither pip nor uv" in str(error):
            pytest.skip(str(error))
        raise
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list(NAMES)
    assert importlib.util.find_spec("wheel_of_data") is None


def test_reasons_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent, unknown = package_ways("no_such_package_here", str(tmp_path / "no.whl"), INSIDE, NAMES)
    with pytest.raises(OSError, match="no_such_package_here is not installed"):
        absent.fetch(tmp_path, quiet)
    with pytest.raises(OSError, match=r"no\.whl"):
        unknown.fetch(tmp_path, quiet)
    (tmp_path / "carrier_without").mkdir()
    (tmp_path / "carrier_without" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OSError, match=r"does not hold a\.txt, b\.txt: another version\?"):
        package_ways("carrier_without", "x", INSIDE, NAMES)[0].fetch(tmp_path, quiet)


@pytest.mark.parametrize("card", [JAPANESE_VOWELS, BASIC_MOTIONS], ids=lambda card: card.name)
def test_series_of_the_archive_come_with_their_checksums(card: object, tmp_path: Path) -> None:
    if importlib.util.find_spec("aeon") is None:
        pytest.skip("aeon is not installed: its wheel holds the series")
    folder = card.get(tmp_path)  # type: ignore[attr-defined]
    assert sorted(path.name for path in folder.iterdir()) == sorted(file.name for file in card.files)  # type: ignore[attr-defined]
    (folder / card.files[0].name).write_text("@data\n")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="damaged or another version"):
        card.get(tmp_path)  # type: ignore[attr-defined]


def test_missing_series_name_their_command(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="anabranch data japanese-vowels"):
        JAPANESE_VOWELS.read("JapaneseVowels_TRAIN.ts", tmp_path)
