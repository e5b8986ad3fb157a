"""One style for all figures: colour-blind safe, readable in print and on a screen, saved as SVG and PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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


def curves_of(
    rows: Sequence[Mapping[str, Any]], x: str, names: Sequence[str], *, unit: float = 1.0
) -> dict[str, tuple[list[float], list[float]]]:
    """Columns ``names`` of a table over its column ``x``, for :func:`plot_curves`; rows without a value are left out.

    Args:
        unit: the values are divided by it, e.g. 1e-3 for milliseconds.
    """
    found = {name: [row for row in rows if row.get(name) is not None] for name in names}
    return {name: ([row[x] for row in having], [row[name] / unit for row in having]) for name, having in found.items()}
