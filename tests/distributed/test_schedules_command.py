"""``anabranch distributed schedules`` through the real command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from anabranch import cli
from anabranch.distributed import compare_schedules
from anabranch.distributed.commands import play_schedule
from support import CommandLine

COMMAND = ("distributed", "schedules")


@pytest.mark.parametrize(
    ("stages", "micro_batches", "seconds"),
    [(4, 8, (1.0, 1.0, 1.0)), (3, 7, (1.0, 1.5, 0.75)), (1, 2, (0.5, 0.25, 0.0))],
)
def test_numbers_are_those_of_the_library_and_of_the_formulas(
    anabranch: CommandLine, stages: int, micro_batches: int, seconds: tuple[float, float, float]
) -> None:
    names = ("forward_s", "inputs_s", "weights_s")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in zip(names, seconds, strict=True)]
    done = anabranch(*COMMAND, "--stages", str(stages), "--micro-batches", str(micro_batches), *options, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    times = dict(zip(names, seconds, strict=True))
    rows = compare_schedules(stages, micro_batches, **times)
    assert (found["stages"], found["micro_batches"], found["written"]) == (stages, micro_batches, [])
    assert {name: found[name] for name in names} == times
    assert [tuple(one.values()) for one in found["schedules"]] == [
        (row["schedule"], row["seconds"], row["bubble"], row["in flight"]) for row in rows
    ]
    k, m, whole = stages, micro_batches, sum(seconds)
    step = {one["schedule"]: one["step_s"] for one in found["schedules"]}
    idle = {one["schedule"]: one["bubble_fraction"] for one in found["schedules"]}
    for name in ("gpipe", "1f1b"):
        assert idle[name] == pytest.approx((k - 1) / (m + k - 1), abs=1e-12)
        assert step[name] == pytest.approx((m + k - 1) * whole, rel=1e-12)
    assert ("interleaved" in step) == (m % k == 0)
    assert found["left_out"] == ("" if m % k == 0 else f"interleaved: {m} is no multiple of {k}")
    if m % k == 0:
        assert step["interleaved"] == pytest.approx((m + (k - 1) / 2) * whole, rel=1e-12)
    forward, inputs, weights = seconds
    assert step["zero-bubble"] == pytest.approx(m * whole + (k - 1) * (forward + inputs - weights), rel=1e-12)


def test_what_is_drawn_is_what_the_table_tells() -> None:
    seconds = {"forward_s": 1.0, "inputs_s": 1.25, "weights_s": 0.5}
    rows = compare_schedules(4, 8, **seconds)
    assert [row["schedule"] for row in rows] == ["gpipe", "1f1b", "interleaved", "zero-bubble"]
    for row in rows:
        played = play_schedule(str(row["schedule"]), 4, 8, **seconds)
        assert (played.step_s, played.bubble_fraction) == (row["seconds"], row["bubble"])
        assert sum(end - begin for _, begin, end, *_ in played.bars()) == pytest.approx(4 * 8 * 2.75)


def test_a_table_and_a_figure(anabranch: CommandLine, tmp_path: Path) -> None:
    figure = tmp_path / "schedules.svg"
    done = anabranch(*COMMAND, "--stages", "4", "--micro-batches", "8", "--out", str(figure))
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["GPipe", "33", "s", "27.3%", "8"] in lines
    assert ["interleaved", "1F1B", "28.5", "s", "15.8%", "5.5"] in lines
    assert ["ZB-H1", "27", "s", "11.1%", "4"] in lines
    assert lines[-1] == ["wrote", str(figure)]
    drawn = figure.read_text()
    assert drawn.startswith("<?xml")
    # One bar for every action of the four schedules, by their colours; the legend has one more of each.
    of_each, micro = 4 * 8, {"#0072b2": 5, "#d55e00": 5, "#009e73": 1}  # forwards, backwards, weights of a micro-batch
    assert {color: drawn.count(f"fill: {color}") for color in micro} == {c: of_each * n + 1 for c, n in micro.items()}
    assert drawn.count("fill: #d0d4da") == 4 * 4 + 1  # what is idle, behind every stage of every schedule
    assert drawn.count("opacity: 0.35") == 2 * of_each  # paler: forwards and backwards of the second chunks
    picture = tmp_path / "odd.png"
    done = anabranch(
        *COMMAND, "--stages", "3", "--micro-batches", "4", "--weights-s", "0", "--out", str(picture), "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == [str(picture)]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--forward-s", "-1"), "--forward-s -1.0: expected seconds, 0 or more"),
        (("--inputs-s", "nan"), "--inputs-s nan: expected seconds, 0 or more"),
        (("--weights-s", "inf"), "--weights-s inf: expected seconds, 0 or more"),
        (("--forward-s", "0", "--inputs-s", "0", "--weights-s", "0"), "have a sum of 0.0: expected > 0"),
        (("--out", "steps.pdf"), "--out steps.pdf: expected .svg or .png"),
        (("--out", "no/where.svg"), "--out no/where.svg: there is no folder no"),
        (("--stages", "64", "--micro-batches", "256", "--out", "steps.svg"), "180,224 bars are too many"),
        (("--stages", "0"), "--stages"),
        (("--micro-batches", "0"), "--micro-batches"),
    ],
)
def test_bad_input_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["anabranch", *COMMAND, *options])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert message in err
    assert err.startswith("anabranch: error: ") == (
        options[0] not in ("--stages", "--micro-batches") or len(options) > 2
    )
