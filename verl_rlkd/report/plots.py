"""Every plot of this project: as PNG (or any format of matplotlib), as SVG for a page, and in the terminal.

curves = [Curve("accuracy", steps, means, low=lows, high=highs)]
save_figure(curves_figure(curves, title="...", x_label="step", y_label="mean of the responses"), Path("learning.png"))
print(terminal_curves(curves, title="..."))
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind people can tell apart."""
_TERMINAL_COLOURS = ("blue+", "orange+", "green+", "magenta+", "gold", "cyan+", "gray")


@dataclass(frozen=True)
class Curve:
    """One line, and where there is one, the band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Point:
    """A mean and its interval."""

    mean: float
    low: float
    high: float


def curves_figure(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    x_marks: Mapping[str, float] | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Lines with bands.

    Args:
        curves: At most as many as there are COLOURS.
        title: Above the plot.
        x_label: Below it.
        y_label: Beside it.
        y_range: (lowest, highest) value shown; None = as needed.
        x_marks: Name -> place of a dashed vertical line.
        logarithmic: Whether both axes are, and points are marked.
    """
    figure, axes = _figure(title, x_label, y_label)
    for curve, colour in zip(curves, COLOURS, strict=False):
        axes.plot(curve.x, curve.y, label=curve.name, color=colour, linewidth=1.8, marker="o" if logarithmic else None)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    for name, place in (x_marks or {}).items():
        axes.axvline(place, color="#666666", linestyle="--", linewidth=1, label=name)
    if logarithmic:
        axes.set(xscale="log", yscale="log")
    if y_range is not None:
        axes.set_ylim(*y_range)
    _legend(axes)
    return figure


def points_figure(groups: Mapping[str, Mapping[str, Point]], *, title: str, x_label: str) -> Figure:
    """One row per name, one dot with its interval per group.

    Args:
        groups: Group -> name -> mean and interval; at most as many groups as COLOURS.
        title: Above the plot.
        x_label: Below it.
    """
    names = list(dict.fromkeys(name for points in groups.values() for name in points))
    figure, axes = _figure(title, x_label, "", height=1.6 + 0.35 * len(names))
    for number, ((group, points), colour) in enumerate(zip(groups.items(), COLOURS, strict=False)):
        shift = 0.5 * ((number + 0.5) / len(groups) - 0.5)
        shown = [(names.index(name) + shift, point) for name, point in points.items()]
        means = [point.mean for _, point in shown]
        errors = [[p.mean - p.low for _, p in shown], [p.high - p.mean for _, p in shown]]
        axes.errorbar(
            means, [y for y, _ in shown], xerr=errors, fmt="o", color=colour, label=group, markersize=5, capsize=2
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    if len(groups) > 1:
        _legend(axes)
    return figure


def counts_figure(groups: Mapping[str, Sequence[int]], *, title: str, x_label: str) -> Figure:
    """How many of each group have which whole number: bars side by side."""
    figure, axes = _figure(title, x_label, "share")
    width = 0.8 / max(len(groups), 1)
    for number, ((group, values), colour) in enumerate(zip(groups.items(), COLOURS, strict=False)):
        places = sorted(set(values))
        shares = [list(values).count(place) / len(values) for place in places]
        shift = width * (number - (len(groups) - 1) / 2)
        axes.bar([place + shift for place in places], shares, width=width, color=colour, label=group)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(axes)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path``; its suffix (.png, .svg, .pdf) decides the format."""
    figure.savefig(path, dpi=120)


def svg(figure: Figure, name: str) -> str:
    """``figure`` as an element of a page.

    Args:
        figure: What to draw.
        name: Other for each figure of a page: ids within the element begin with it.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def terminal_curves(curves: Sequence[Curve], *, title: str, width: int = 100, height: int = 20) -> str:
    """``curves`` as text of ``width`` x ``height`` characters, with terminal colours."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(width, height)
    plotext.title(title)
    for curve, colour in zip(curves, _TERMINAL_COLOURS, strict=False):
        plotext.plot(list(curve.x), list(curve.y), label=curve.name, color=colour)
    return str(plotext.build())


def _figure(title: str, x_label: str, y_label: str, *, height: float = 4.5) -> tuple[Figure, Any]:
    # Not pyplot: it keeps figures and picks a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _legend(axes: Any) -> None:
    columns = min(len(axes.get_legend_handles_labels()[1]), 5)
    axes.figure.legend(frameon=False, ncols=columns, loc="outside lower center")
