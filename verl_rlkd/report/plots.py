"""Every plot of this project: curves with bands, as PNG (or any format of matplotlib), and in the terminal.

curves = [Curve("accuracy", steps, means, low=lows, high=highs)]
save_curves(curves, Path("learning.png"), title="...", x_label="step", y_label="mean of the responses")
print(terminal_curves(curves, title="..."))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


def save_curves(
    curves: Sequence[Curve], path: Path, *, title: str, x_label: str, y_label: str, y_range: tuple[float, float] | None
) -> None:
    """Draw ``curves`` to ``path``; its suffix decides the format.

    Args:
        curves: At most as many as there are COLOURS.
        path: .png, .svg or .pdf.
        title: Above the plot.
        x_label: Below it.
        y_label: Beside it.
        y_range: (lowest, highest) value shown; None = as needed.
    """
    # Not pyplot: it keeps figures and picks a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve, colour in zip(curves, COLOURS, strict=False):
        axes.plot(curve.x, curve.y, label=curve.name, color=colour, linewidth=1.8)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    if y_range is not None:
        axes.set_ylim(*y_range)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, ncols=len(curves), loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(path, dpi=120)


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
