"""Labelled series of any number of channels and any lengths, from the files people keep them in: .ts, .csv and .npz."""

import csv
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from anabranch.attention._checks import nearest


@dataclass(frozen=True)
class LabelledSeries:
    """Series padded at the end to one length.

    Attributes:
        values: ``[N, n, channels]``, 0 where padded.
        mask: True where there is a value.
        labels: class of each series, an index into ``classes``.
        classes: names of the classes, in order.
    """

    values: Float32[Tensor, "series n channels"]
    mask: Bool[Tensor, "series n"]
    labels: Int64[Tensor, " series"]
    classes: tuple[str, ...]

    def normalized(self, like: "LabelledSeries | None" = None) -> "LabelledSeries":
        """Each channel with mean 0 and variance 1 over the values of ``like`` (default: its own)."""
        of = self if like is None else like
        real = of.values[of.mask]
        mean, std = real.mean(0), real.std(0).clamp(min=1e-8)
        values = torch.where(self.mask.unsqueeze(-1), (self.values - mean) / std, 0.0)
        return LabelledSeries(values, self.mask, self.labels, self.classes)

    def rows(self, index: Tensor) -> "LabelledSeries":
        """Some of the series."""
        return LabelledSeries(self.values[index], self.mask[index], self.labels[index], self.classes)


def pad_series(
    series: Sequence[np.ndarray], labels: Sequence[str], classes: Sequence[str] | None = None
) -> LabelledSeries:
    """Series ``[length, channels]`` of any lengths, padded.

    Args:
        classes: the classes in order; default the labels that occur, sorted.

    Raises:
        ValueError: no series, an empty one, numbers of channels that differ, a value that is not finite, an unknown label.
    """
    if not series or len(series) != len(labels):
        raise ValueError(f"{len(series)} series and {len(labels)} labels: expected at least one, and as many")
    names = tuple(sorted(set(labels)) if classes is None else classes)
    channels, longest = series[0].shape[1], max(len(x) for x in series)
    values = np.zeros((len(series), longest, channels), np.float32)
    mask = np.zeros((len(series), longest), bool)
    for i, x in enumerate(series):
        if not len(x) or x.shape[1] != channels:
            raise ValueError(f"series {i} has shape {x.shape}: expected values in {channels} channels")
        if not np.isfinite(x).all():
            raise ValueError(f"series {i} holds a value that is missing or not finite: fill it in first")
        values[i, : len(x)], mask[i, : len(x)] = x, True
    index = [names.index(nearest(f"label of series {i}", label, list(names))) for i, label in enumerate(labels)]
    return LabelledSeries(torch.from_numpy(values), torch.from_numpy(mask), torch.tensor(index), names)


def tone_series(n: int, *, seed: int) -> LabelledSeries:
    """``n`` generated series of two channels and 12 to 29 values: noisy tones; one of three frequencies is the class."""
    draw = np.random.default_rng(seed)
    labels = [str(i % 3) for i in range(n)]
    tones = [np.sin(np.outer(np.arange(draw.integers(12, 30)), [1 + int(label), 0.5])) for label in labels]
    return pad_series([x + 0.2 * draw.standard_normal(x.shape) for x in tones], labels)


def read_uea(name: str, split: str, folder: Path, classes: Sequence[str] | None = None) -> LabelledSeries:
    """A set of the UEA archive: ``name_SPLIT.ts`` in ``folder/name``, ``folder/its-name`` or ``folder``, else in aeon.

    ``anabranch data japanese-vowels`` puts JapaneseVowels there. aeon has a few more; it is looked into, not imported.

    Args:
        split: "TRAIN" or "TEST".

    Raises:
        FileNotFoundError: neither has it; says how to get it.
    """
    file = f"{name}_{split}.ts"
    dashed = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
    places = [folder / name / file, folder / dashed / file, folder / file]
    if found := importlib.util.find_spec("aeon"):
        places += [Path(place) / "datasets" / "data" / name / file for place in found.submodule_search_locations or ()]
    for place in places:
        if place.is_file():
            return read_series(place, classes)
    raise FileNotFoundError(
        f"{file} is not in {folder / name}: put it there (timeseriesclassification.com has the archive); JapaneseVowels and "
        "BasicMotions come by `anabranch data japanese-vowels` and `anabranch data basic-motions`"
    )


def read_series(path: str | Path, classes: Sequence[str] | None = None) -> LabelledSeries:
    """Read a file by its ending.

    ``.ts``: the format of sktime and aeon, channels and label separated by colons, any lengths. ``.csv``: long, with the columns
    ``series,time,channel,value,label``. ``.npz``: ``X [N, channels, n]``, ``y [N]``, optional ``lengths [N]``.

    Args:
        classes: the classes in order, for a test file beside its training file.

    Raises:
        ValueError: another ending, a file that does not hold such series; names the line. FileNotFoundError: no file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    readers = {".ts": _read_ts, ".csv": _read_csv, ".npz": _read_npz}
    reader = readers[nearest("ending", path.suffix, list(readers))]
    series, labels = reader(path)
    return pad_series(series, labels, classes)


def _read_ts(path: Path) -> tuple[list[np.ndarray], list[str]]:
    series, labels, data = [], [], False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not data:
            words = line.lower().split()
            if words[0] == "@timestamps" and words[1:2] == ["true"]:
                raise ValueError(f"{path}:{number}: series with time stamps are not read: expected equal steps")
            if words[0] == "@classlabel" and words[1:2] == ["false"]:
                raise ValueError(f"{path}:{number}: the series have no labels")
            data = words[0] == "@data"
            continue
        *parts, label = line.split(":")
        try:
            rows = [
                np.array([float("nan") if x.strip() == "?" else float(x) for x in part.split(",")]) for part in parts
            ]
            series.append(np.stack(rows, 1))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
        labels.append(label.strip())
    if not data:
        raise ValueError(f"{path}: there is no line @data")
    return series, labels


def _read_csv(path: Path) -> tuple[list[np.ndarray], list[str]]:
    columns = ("series", "time", "channel", "value", "label")
    found: dict[str, dict[str, dict[float, float]]] = {}
    label_of: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: no column {', '.join(missing)}; expected {','.join(columns)}")
        for row in reader:
            name = row["series"]
            try:
                time, value = float(row["time"]), float(row["value"])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}:{reader.line_num}: {error}") from None
            if label_of.setdefault(name, row["label"]) != row["label"]:
                raise ValueError(f"{path}:{reader.line_num}: series {name} has two labels")
            found.setdefault(name, {}).setdefault(row["channel"], {})[time] = value
    channels = sorted({channel for of in found.values() for channel in of})
    series = []
    for name, of in found.items():
        times = sorted({time for values in of.values() for time in values})
        for channel in channels:
            if set(of.get(channel, {})) != set(times):
                raise ValueError(f"{path}: series {name} has no value of channel {channel} at some of its times")
        series.append(np.array([[of[channel][time] for channel in channels] for time in times]))
    return series, [label_of[name] for name in found]


def _read_npz(path: Path) -> tuple[list[np.ndarray], list[str]]:
    with np.load(path, allow_pickle=False) as file:
        if missing := [name for name in ("X", "y") if name not in file]:
            raise ValueError(
                f"{path}: no array {', '.join(missing)}; expected X [N, channels, n], y [N], optional lengths"
            )
        x, y = file["X"], file["y"]
        lengths = file["lengths"] if "lengths" in file else np.full(len(x), x.shape[-1])
    if x.ndim != 3 or len(y) != len(x) or len(lengths) != len(x):
        raise ValueError(
            f"{path}: X {x.shape}, y {y.shape}, lengths {lengths.shape}: expected [N, channels, n], [N], [N]"
        )
    return [x[i, :, : int(lengths[i])].T for i in range(len(x))], [str(label) for label in y]
