"""Two sets of the UEA archive of multivariate time series (Bagnall et al., 2018), as the package aeon carries them."""

from __future__ import annotations

from pathlib import Path

from anabranch.worlds.cards import Card, File
from anabranch.worlds.python_packages import package_ways


def _card(name: str, problem: str, title: str, licence: str, origin: str, *hashes: tuple[str, int]) -> Card:
    names = [f"{problem}_{split}.ts" for split in ("TRAIN", "TEST")]

    def accepts(folder: Path) -> dict[str, Path] | None:
        for place in (folder, folder / problem):
            if all((place / file).is_file() for file in names):
                return {file: place / file for file in names}
        return None

    return Card(
        name=name,
        title=title,
        licence=licence,
        origin=origin,
        files=tuple(File(file, *of) for file, of in zip(names, hashes, strict=True)),
        accepts=accepts,
        content=Path.read_bytes,
        ways=package_ways("aeon", "aeon==1.6.0", f"datasets/data/{problem}", names),
    )


JAPANESE_VOWELS = _card(
    "japanese-vowels",
    "JapaneseVowels",
    "JapaneseVowels: 640 utterances of 9 speakers, 12 channels of 7 to 29 steps",
    "CC BY 4.0 (UCI Machine Learning Repository)",
    "Kudo, Toyama and Shimbo, 1999; UEA archive, timeseriesclassification.com",
    ("68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd", 487_971),
    ("b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462", 649_132),
)
BASIC_MOTIONS = _card(
    "basic-motions",
    "BasicMotions",
    "BasicMotions: 80 recordings of a smart watch in 4 activities, 6 channels of 100 steps",
    "not stated by the archive; shipped with aeon, whose code is BSD-3-Clause",
    "J. Clements, University of East Anglia, 2016; UEA archive, timeseriesclassification.com",
    ("8dc43cc6306cb679c888c01e26f91772ac4441a916da43bac8b79734a538b9d6", 227_790),
    ("79213102bc6fca1a398ad98ce1185dff0208fa3d1465e687f48288946b0ff8dc", 227_713),
)
