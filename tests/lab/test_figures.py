"""Figures that more than one paper draws."""

from __future__ import annotations

import pytest

from anabranch.lab.figures import COLORS, Bar, new_figure, plot_bars, plot_gantt, plot_heat, render


def test_bars_stand_where_and_when_they_belong() -> None:
    bars = [Bar("one", 0.0, 0.002, "forward", "1"), ("two", 0.002, 0.005, "backward"), ("one", 0.004, 0.004, "forward")]
    figure = plot_gantt(bars, title="A step", x="ms", unit=1e-3, lanes=["two", "one", "three"])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["two", "one", "three"]
    drawn = sorted((p.get_x(), p.get_width(), p.get_y() + p.get_height() / 2) for p in axes.patches)
    assert drawn == [pytest.approx(x) for x in [(0, 2, 1), (2, 3, 0), (4, 0, 1)]]
    assert axes.get_legend_handles_labels()[1] == ["forward", "backward"]
    assert len({patch.get_facecolor() for patch in axes.patches}) == 2 <= len(COLORS)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first lane is on top
    assert b"<svg" in render(figure)["svg"]


def test_lanes_follow_their_first_bar_and_a_figure_may_be_given() -> None:
    first = plot_gantt([("b", 0, 1, "x"), ("a", 0, 1, "x")], title="t")
    assert [text.get_text() for text in first.axes[0].get_yticklabels()] == ["b", "a"]
    assert plot_gantt([("a", 1, 2, "x")], title="t", axes=first.axes[0]) is first


def test_wrong_bars_are_refused() -> None:
    with pytest.raises(ValueError, match="lane 'b': expected one of"):
        plot_gantt([("b", 0, 1, "x")], title="t", lanes=["a"])
    with pytest.raises(ValueError, match="ends at 1, before it begins at 2"):
        plot_gantt([("b", 2, 1, "x")], title="t")


def test_groups_of_bars_stand_around_their_row() -> None:
    _, axes = new_figure()
    plot_bars(
        [{"x": 1.0, "y": 2.0, "n": "a"}, {"x": 3.0, "y": 4.0, "n": "b"}], {"x": "first", "y": "second"}, "n", axes=axes
    )
    bars = [(p.get_x() + p.get_width() / 2, p.get_height()) for p in axes.patches]
    assert bars == [pytest.approx(one) for one in [(-0.2, 1), (0.8, 3), (0.2, 2), (1.2, 4)]]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b"]
    assert axes.get_legend_handles_labels()[1] == ["first", "second"]


def test_cells_and_their_texts() -> None:
    _, axes = new_figure()
    image = plot_heat([[0.0, 1.0, -1.0]], ["row"], ["a", "b", "c"], texts=[["", "N", 3]], most=2.0, axes=axes)
    assert image.get_clim() == (-2.0, 2.0)
    assert [(text.get_text(), text.get_position()) for text in axes.texts] == [("N", (1, 0)), ("3", (2, 0))]
    with pytest.raises(ValueError, match="expected 2 rows of 3"):
        plot_heat([[0.0, 1.0, -1.0]], ["row", "two"], ["a", "b", "c"], most=2.0, axes=axes)
