"""Series from files: the three formats agree, errors name the line, normalization uses real values only."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from anabranch.attention import LabelledSeries, pad_series, read_series, read_uea, tone_series

from .samples import gap

SERIES = [np.array([[1.0, 10], [2, 20], [3, 30]]), np.array([[4.0, 40], [5, 50]])]
TS = "#a comment\n@problemName x\n@univariate false\n@classLabel true b a\n@data\n1,2,3:10,20,30:b\n4.0,5:40,50:a\n"


def test_three_formats_agree(tmp_path: Path) -> None:
    (tmp_path / "x.ts").write_text(TS)
    lines = ["series,time,channel,value,label"]
    for name, x, label in zip("pq", SERIES, "ba", strict=True):
        lines += [f"{name},{t},{c},{x[t, c]},{label}" for t in range(len(x)) for c in range(2)]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    cube = np.zeros((2, 2, 3))
    for i, x in enumerate(SERIES):
        cube[i, :, : len(x)] = x.T
    np.savez(tmp_path / "x.npz", X=cube, y=np.array(["b", "a"]), lengths=np.array([3, 2]))
    for ending in ("ts", "csv", "npz"):
        found = read_series(tmp_path / f"x.{ending}")
        assert found.classes == ("a", "b")
        assert found.labels.tolist() == [1, 0]
        assert found.mask.tolist() == [[True] * 3, [True, True, False]]
        assert found.values[0].tolist() == SERIES[0].tolist()
        assert found.values[1].tolist() == [*SERIES[1].tolist(), [0, 0]]
    assert read_series(tmp_path / "x.ts", classes=("b", "a", "c")).labels.tolist() == [0, 1]


def test_normalization_takes_real_values_only() -> None:
    data = pad_series(SERIES, ["b", "a"])
    found = data.normalized()
    real = found.values[found.mask]
    assert gap(real.mean(0), torch.zeros(2)) <= 1e-6
    assert gap(real.std(0), torch.ones(2)) <= 1e-6
    assert float(found.values[~found.mask].abs().sum()) == 0
    assert isinstance(found.rows(torch.tensor([1])), LabelledSeries)
    assert gap(data.rows(torch.tensor([1])).normalized(data).values, found.values[1:]) == 0


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.txt", "", "unknown ending '.txt': there are .ts, .csv, .npz"),
        ("x.ts", "@problemName x\n", "no line @data"),
        ("x.ts", TS.replace("4.0", "four"), "x.ts:7: could not convert"),
        ("x.ts", TS.replace("4.0", "?"), "series 1 holds a value that is missing"),
        ("x.ts", TS.replace("40,50:", ""), "series 1 has shape"),
        ("x.ts", "@timestamps true\n" + TS, "time stamps"),
        ("x.csv", "series,time,value,label\n", "no column channel"),
        ("x.csv", "series,time,channel,value,label\na,0,c,1,x\na,1,c,1,y\n", "x.csv:3: series a has two labels"),
        ("x.csv", "series,time,channel,value,label\na,0,c,1,x\na,1,d,1,x\n", "no value of channel"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        read_series(tmp_path / name)


def test_a_label_that_the_training_file_has_not(tmp_path: Path) -> None:
    (tmp_path / "x.ts").write_text(TS)
    with pytest.raises(ValueError, match="unknown label of series 0 'b': there are a"):
        read_series(tmp_path / "x.ts", classes=("a",))


def test_a_set_of_the_archive_is_found_in_the_data_folder_first(tmp_path: Path) -> None:
    (tmp_path / "JapaneseVowels").mkdir()
    (tmp_path / "JapaneseVowels" / "JapaneseVowels_TRAIN.ts").write_text(TS)
    assert read_uea("JapaneseVowels", "TRAIN", tmp_path).labels.tolist() == [1, 0]
    with pytest.raises(FileNotFoundError, match="anabranch data japanese-vowels"):
        read_uea("NoSuchSet", "TEST", tmp_path)


def test_the_set_inside_aeon(tmp_path: Path) -> None:
    if importlib.util.find_spec("aeon") is None:
        pytest.skip("aeon is not installed")
    train, test = (read_uea("JapaneseVowels", split, tmp_path) for split in ("TRAIN", "TEST"))
    assert train.values.shape == (270, 26, 12)
    assert test.values.shape == (370, 29, 12)
    assert len(train.classes) == 9
    assert train.labels.bincount().tolist() == [30] * 9


def test_tones_are_told_apart_by_their_frequency() -> None:
    data = tone_series(60, seed=0)
    assert data.labels.bincount().tolist() == [20] * 3
    assert data.values.shape[2] == 2
    crossings = []
    for x, mask in zip(data.values[..., 0], data.mask, strict=True):
        real = x[mask]
        crossings.append(float((real[1:].sign() != real[:-1].sign()).float().mean()))
    means = [np.mean([c for c, label in zip(crossings, data.labels, strict=True) if label == i]) for i in range(3)]
    assert means[0] < means[1] < means[2]
    assert torch.equal(data.values, tone_series(60, seed=0).values)
