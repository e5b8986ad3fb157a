"""One style for all figures: colour-blind safe, readable in print and on a screen, saved as SVG and PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, dark enough on white and without its yellow; markers carry the same distinction.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#4D4D4D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: Any = {  # matplotlib types its keys as one literal of hundreds
    "figure.figsize": (7.2, 4.2),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9dde3",
    "grid.linewidth": 0.7,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "anabranch",
}


def new_figure(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """``matplotlib`` figure and axes in the house style, without a display or global state."""
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "axes.prop_cycle": cycler(color=COLORS)}):
        options.setdefault("figsize", (STYLE["figure.figsize"][0] * min(columns, 2) ** 0.6, 4.2 * rows**0.8))
        figure = Figure(**{k: options.pop(k) for k in ("figsize",)})
        axes = figure.subplots(rows, columns, **options)
    return figure, axes


def render(figure: Figure) -> dict[str, bytes]:
    """The figure as ``{"svg": ..., "png": ...}``."""
    import matplotlib as mpl

    rendered = {}
    with mpl.rc_context(STYLE):
        for kind in ("svg", "png"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else {}
            figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
            rendered[kind] = buffer.getvalue()
    return rendered


def plot_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str,
    log: str = "",
    lines: bool = True,
    from_zero: bool = False,
    axes: Any = None,
) -> Figure:
    """A figure of named curves ``name -> (xs, ys)``; names keep their color and marker by their order.

    Args:
        log: the axes on a logarithmic scale, ``""``, ``"x"``, ``"y"`` or ``"xy"``.
        lines: join the points.
        from_zero: let the y axis begin at zero.
        axes: draw there instead of in a figure of its own.
    """
    figure = None
    if axes is None:
        figure, axes = new_figure()
    for index, (name, (xs, ys)) in enumerate(curves.items()):
        style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "alpha": 0.9}
        axes.plot(xs, ys, linestyle="-" if lines else "none", label=name, **style)
    axes.set(xlabel=x, ylabel=y, **{f"{axis}scale": "log" for axis in log})
    # Texts take their style when they are made, not from the style of the figure.
    axes.set_title(title, loc="left", fontweight="bold", fontsize=STYLE["axes.titlesize"])
    places = sorted({value for xs, _ in curves.values() for value in xs})
    if "x" in log and lines and len(places) <= 8:
        axes.set_xticks(places, [f"{value:,g}" for value in places])
        axes.minorticks_off()
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure if figure is not None else axes.figure


def plot_bars(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], labels: str, *, axes: Any) -> None:
    """A group of bars for each row: ``names`` maps columns to what the legend calls them, ``labels`` is the column of names."""
    width = 0.8 / len(names)
    for k, (column, name) in enumerate(names.items()):
        places = [place + width * (k - (len(names) - 1) / 2) for place in range(len(rows))]
        axes.bar(places, [row[column] for row in rows], 0.92 * width, color=COLORS[k % len(COLORS)], label=name)
    axes.set_xticks(range(len(rows)), [row[labels] for row in rows])
    axes.legend(frameon=False, fontsize=8)


def plot_heat(
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    most: float,
    axes: Any,
    texts: Any = None,
    rotation: float = 0.0,
) -> Any:
    """Cells from blue (``-most``) over white (0) to red (``most``), with texts; gives what a color bar is made of.

    Args:
        values: ``[rows, columns]``. texts: the same, written where not empty. rotation: of the columns' names, degrees.

    Raises:
        ValueError: other numbers of rows or columns.
    """
    if len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise ValueError(f"values: expected {len(rows)} rows of {len(columns)}")
    image = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    axes.set_xticks(range(len(columns)), list(columns), rotation=rotation, fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.grid(visible=False)
    for i, row in enumerate([] if texts is None else texts):
        for j, text in enumerate(row):
            if str(text):
                axes.text(j, i, str(text), ha="center", va="center", fontsize=7)
    return image


class Bar(NamedTuple):
    """What a lane does from ``begin_s`` to ``end_s``; bars of one ``kind`` share a color, ``label`` is written inside."""

    lane: str
    begin_s: float
    end_s: float
    kind: str
    label: str = ""


def plot_gantt(
    bars: Sequence[Bar | tuple[Any, ...]],
    *,
    title: str,
    x: str = "seconds",
    unit: float = 1.0,
    lanes: Sequence[str] | None = None,
    axes: Any = None,
) -> Figure:
    """Who does what when: a row of bars for every lane, the first lane on top.

    Args:
        bars: each a :class:`Bar`, or a tuple with its fields in order.
        x: what the axis of time is called.
        unit: times are divided by it, e.g. 1e-3 for milliseconds.
        lanes: all lanes from top to bottom; as they first appear if not given.
        axes: draw there instead of in a figure of its own.

    Raises:
        ValueError: a bar of an unknown lane, or one that ends before it begins.
    """
    figure = None
    if axes is None:
        figure, axes = new_figure()
    rows = [Bar(*bar) for bar in bars]
    order = list(dict.fromkeys(bar.lane for bar in rows)) if lanes is None else list(lanes)
    kinds = list(dict.fromkeys(bar.kind for bar in rows))
    for bar in rows:
        if bar.lane not in order:
            raise ValueError(f"bars have the lane {bar.lane!r}: expected one of {order}")
        if not bar.end_s >= bar.begin_s:
            raise ValueError(f"a bar of {bar.lane!r} ends at {bar.end_s}, before it begins at {bar.begin_s}")
    for index, kind in enumerate(kinds):
        mine = [bar for bar in rows if bar.kind == kind]
        axes.barh(
            [order.index(bar.lane) for bar in mine],
            [(bar.end_s - bar.begin_s) / unit for bar in mine],
            left=[bar.begin_s / unit for bar in mine],
            height=0.8, color=COLORS[index % len(COLORS)], edgecolor="white", linewidth=0.4, label=kind,
        )  # fmt: skip
    for bar in rows:
        if bar.label:
            middle = (bar.begin_s + bar.end_s) / 2 / unit
            axes.text(
                middle, order.index(bar.lane), bar.label, ha="center", va="center", fontsize=7, color="white", clip_on=True
            )  # fmt: skip
    axes.set_yticks(range(len(order)), order)
    axes.set(xlabel=x, ylim=(len(order) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    axes.set_title(title, loc="left", fontweight="bold", fontsize=STYLE["axes.titlesize"])
    if kinds:
        axes.legend(frameon=False, ncols=min(4, len(kinds)), loc="upper left", bbox_to_anchor=(0, -0.18), fontsize=9)
    return figure if figure is not None else axes.figure


def curves_of(
    rows: Sequence[Mapping[str, Any]], x: str, names: Sequence[str], *, unit: float = 1.0
) -> dict[str, tuple[list[float], list[float]]]:
    """Columns ``names`` of a table over its column ``x``, for :func:`plot_curves`; rows without a value are left out.

    Args:
        unit: the values are divided by it, e.g. 1e-3 for milliseconds.
    """
    found = {name: [row for row in rows if row.get(name) is not None] for name in names}
    return {name: ([row[x] for row in having], [row[name] / unit for row in having]) for name, having in found.items()}
