"""Every plot of this project: as PNG (or any format of matplotlib), as SVG for a page, and in the terminal.

curves = [Curve("accuracy", steps, means, low=lows, high=highs)]
save_figure(curves_figure(curves, title="...", x_label="step", y_label="mean of the responses"), Path("learning.png"))
print(terminal_curves(curves, title="..."))
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind people can tell apart."""
SHARES = (0.0, 1.03)
"""Range of an axis of shares, in which a line at 1 is drawn whole."""
_DASHES = ("-", "--", ":", "-.")
"""Of the first so many lines as there are colours, the next, ..."""
_EVENTS = "vs^DPXo*"
"""Markers of kinds of events."""
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
    events: Mapping[str, Sequence[float]] | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Lines with bands.

    Args:
        curves: Any number; from the eighth on they are dashed.
        title: Above the plot.
        x_label: Below it.
        y_label: Beside it.
        y_range: (lowest, highest) value shown; None = as needed.
        x_marks: Name -> place of a dashed vertical line.
        events: Name -> places of its markers on the axis.
        logarithmic: Whether both axes are, and points are marked.
    """
    figure, axes = _figure(title, x_label, y_label)
    for curve, (colour, dash) in zip(curves, _styles(), strict=False):
        # A single point has no line that one could see.
        marker = "o" if logarithmic or len(curve.x) < 10 else None
        axes.plot(curve.x, curve.y, dash, label=curve.name, color=colour, linewidth=1.8, marker=marker, markersize=4)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    for name, place in (x_marks or {}).items():
        axes.axvline(place, color="#666666", linestyle="--", linewidth=1, label=name)
    for row, (name, places) in enumerate((events or {}).items()):
        axes.plot(
            places, [0.02 + 0.04 * row] * len(places), _EVENTS[row % len(_EVENTS)], label=name, color="#b00020",
            markersize=5, linestyle="none", transform=axes.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
    if logarithmic:
        axes.set(xscale="log", yscale="log")
    if y_range is not None:
        axes.set_ylim(*y_range)
    _legend(axes)
    return figure


def points_figure(
    groups: Mapping[str, Mapping[str, Point]], *, title: str, x_label: str, mark: float | None = None
) -> Figure:
    """One row per name, one dot with its interval per group.

    Args:
        groups: Group -> name -> mean and interval.
        title: Above the plot.
        x_label: Below it.
        mark: Place of a dashed vertical line; None = none.
    """
    names = list(dict.fromkeys(name for points in groups.values() for name in points))
    figure, axes = _figure(title, x_label, "", height=1.4 + 0.3 * len(names))
    for number, ((group, points), (colour, _)) in enumerate(zip(groups.items(), _styles(), strict=False)):
        shift = 0.5 * ((number + 0.5) / len(groups) - 0.5)
        shown = [(names.index(name) + shift, point) for name, point in points.items()]
        means = [point.mean for _, point in shown]
        errors = [[p.mean - p.low for _, p in shown], [p.high - p.mean for _, p in shown]]
        axes.errorbar(
            means, [y for y, _ in shown], xerr=errors, fmt="o", color=colour, label=group, markersize=5, capsize=2
        )
    if mark is not None:
        axes.axvline(mark, color="#666666", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    if len(groups) > 1:
        _legend(axes)
    return figure


def counts_figure(groups: Mapping[str, Sequence[int]], *, title: str, x_label: str) -> Figure:
    """How many of each group have which whole number: bars side by side."""
    figure, axes = _figure(title, x_label, "share")
    width = 0.8 / max(len(groups), 1)
    for number, ((group, values), (colour, _)) in enumerate(zip(groups.items(), _styles(), strict=False)):
        places = sorted(set(values))
        shares = [list(values).count(place) / len(values) for place in places]
        shift = width * (number - (len(groups) - 1) / 2)
        axes.bar([place + shift for place in places], shares, width=width, color=colour, label=group)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(axes)
    return figure


def bars_figure(groups: Mapping[str, Mapping[str, Point]], *, title: str, y_label: str) -> Figure:
    """For each name, one bar with its interval per group, side by side.

    Args:
        groups: Group -> name -> mean and interval.
        title: Above the plot.
        y_label: Beside it.
    """
    names = list(dict.fromkeys(name for points in groups.values() for name in points))
    figure, axes = _figure(title, "", y_label)
    width = 0.8 / max(len(groups), 1)
    for number, ((group, points), (colour, _)) in enumerate(zip(groups.items(), _styles(), strict=False)):
        places = [names.index(name) + width * (number - (len(groups) - 1) / 2) for name in points]
        shown = points.values()
        errors = [[p.mean - p.low for p in shown], [p.high - p.mean for p in shown]]
        axes.bar(
            places, [p.mean for p in shown], width=0.9 * width, yerr=errors if any(map(any, errors)) else None,
            color=colour, label=group, capsize=3, error_kw={"elinewidth": 1},
        )  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def plane_figure(
    points: Mapping[str, tuple[Point, Point]], *, title: str, x_label: str, y_label: str, joined: bool
) -> Figure:
    """Each name at a place of the plane, with its interval in both directions.

    Args:
        points: Name -> (across, up).
        title: Above the plot.
        x_label: Below it.
        y_label: Beside it.
        joined: Whether a line goes from each to the next.
    """
    figure, axes = _figure(title, x_label, y_label)
    if joined:
        across, up = ([pair[at].mean for pair in points.values()] for at in (0, 1))
        axes.plot(across, up, color="#999999", linewidth=1, zorder=1)
    for (name, (x, y)), (colour, _) in zip(points.items(), _styles(), strict=False):
        axes.errorbar(
            x.mean, y.mean, xerr=[[x.mean - x.low], [x.high - x.mean]], yerr=[[y.mean - y.low], [y.high - y.mean]],
            fmt="o", color=colour, label=name, markersize=6, capsize=2, elinewidth=1,
        )  # fmt: skip
    _legend(axes)
    return figure


def stack_figure(x: Sequence[float], parts: Mapping[str, Sequence[float]], *, title: str, x_label: str) -> Figure:
    """Shares that sum to 1 over ``x``, one area above the other."""
    figure, axes = _figure(title, x_label, "share")
    colours = [colour for colour, _ in itertools.islice(_styles(), len(parts))]
    axes.stackplot(x, *parts.values(), labels=list(parts), colors=colours, alpha=0.8)
    axes.set_ylim(0, 1)
    if len(x) > 1:
        axes.set_xlim(x[0], x[-1])
    _legend(axes)
    return figure


def stacked_figure(
    bars: Mapping[str, Mapping[str, float]], *, title: str, x_label: str, limit: float | None = None
) -> Figure:
    """One horizontal bar per name, made of its parts; parts of the same name have the same colour.

    Args:
        bars: Name -> part -> length; at most as many different parts as COLOURS.
        title: Above the plot.
        x_label: Below it.
        limit: Place of a dashed vertical line that no bar should cross; None = none.
    """
    figure, axes = _figure(title, x_label, "", height=1.6 + 0.4 * len(bars))
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    left = [0.0] * len(bars)
    for part, colour in zip(parts, COLOURS, strict=False):
        lengths = [bar.get(part, 0.0) for bar in bars.values()]
        axes.barh(range(len(bars)), lengths, left=left, color=colour, label=part, height=0.7)
        left = [start + length for start, length in zip(left, lengths, strict=True)]
    if limit is not None:
        axes.axvline(limit, color="#666666", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(len(bars) - 0.5, -0.5)
    figure.legend(frameon=False, ncols=4, loc="outside lower center")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path``; its suffix (.png, .svg, .pdf) decides the format."""
    figure.savefig(path, dpi=150)


def svg(figure: Figure, name: str) -> str:
    """``figure`` as an element of a page.

    Args:
        figure: What to draw.
        name: Other for each figure of a page: ids within the element begin with it.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
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


def _styles() -> Iterator[tuple[str, str]]:
    """(colour, dash) without end; all colours before the next dash."""
    for dash in itertools.cycle(_DASHES):
        for colour in COLOURS:
            yield colour, dash


def _figure(title: str, x_label: str, y_label: str, *, height: float = 3.6) -> tuple[Figure, Any]:
    # Not pyplot: it keeps figures and picks a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _legend(axes: Any) -> None:
    columns = min(len(axes.get_legend_handles_labels()[1]), 4)
    axes.figure.legend(frameon=False, ncols=columns, loc="outside lower center")
