"""Plots are files that open, and text of the width that was asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image

from verl_rlkd.report.plots import (
    COLOURS,
    Curve,
    Point,
    bars_figure,
    counts_figure,
    curves_figure,
    plane_figure,
    points_figure,
    save_figure,
    stack_figure,
    svg,
    terminal_curves,
)

STEPS = list(range(1, 31))
CURVES = [
    Curve("accuracy", STEPS, [step / 30 for step in STEPS]),
    Curve("structure", STEPS, [0.5] * 30, low=[0.4] * 30, high=[0.6] * 30),
]


def test_a_png_shows_every_curve_in_its_colour(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    figure = curves_figure(CURVES, title="t", x_label="step", y_label="mean", y_range=(0, 1))
    save_figure(figure, path)
    with Image.open(path) as image:
        assert image.size == (960, 540)
        found = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=2**24) or ()}
    for colour in COLOURS[: len(CURVES)]:
        assert tuple(bytes.fromhex(colour[1:])) in found


def test_the_terminal_plot_has_its_size_and_names() -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal_curves(CURVES, title="learning", width=80, height=15))
    lines = text.rstrip("\n").split("\n")
    assert len(lines) == 15
    assert max(map(len, lines)) <= 80
    assert all(word in text for word in ("learning", "accuracy", "structure"))


def test_an_svg_holds_what_it_shows_and_is_the_same_each_time() -> None:
    groups = {"math": {"parse rate": Point(0.9, 0.8, 0.95)}, "code": {"parse rate": Point(0.7, 0.6, 0.8)}}
    texts = [svg(points_figure(groups, title="quality", x_label="share"), "a") for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("<svg")
    assert all(word in texts[0] for word in ("quality", "parse rate", "math", "code"))


def test_counts_are_bars_of_shares() -> None:
    figure = counts_figure({"written": [2, 2, 3, 4], "reference": [2]}, title="steps", x_label="steps of a structure")
    heights = [bar.get_height() for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert heights == [0.5, 0.25, 0.25, 1.0]


def test_points_lie_beside_a_line_at_the_mark() -> None:
    point = Point(0.5, 0.4, 0.7)
    figure = points_figure({"rlkd": {"a": point}, "sft": {"a": point, "b": point}}, title="t", x_label="x", mark=0)
    axes = figure.axes[0]
    (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert line.get_xydata().tolist() == [[0, 0], [0, 1]]  # type: ignore[union-attr]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]


def test_bars_of_a_group_stand_beside_those_of_the_next() -> None:
    point = Point(0.5, 0.4, 0.7)
    figure = bars_figure({"val": {"grpo": point, "rlkd": point}, "shifted": {"rlkd": point}}, title="t", y_label="y")
    bars = [(round(bar.get_x() + bar.get_width() / 2, 6), bar.get_height()) for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert bars == [(-0.2, 0.5), (0.8, 0.5), (1.2, 0.5)]


def test_more_curves_than_colours_are_told_apart() -> None:
    curves = [Curve(f"run {number}", [0, 1], [number, number]) for number in range(9)]
    lines = curves_figure(curves, title="t", x_label="x", y_label="y").axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9


def drawn(line: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def test_events_are_marked_on_the_axis() -> None:
    events = {"alarm: collapse": [3.0, 7.0], "alarm: length": [3.0]}
    figure = curves_figure(CURVES, title="t", x_label="step", y_label="mean", events=events)
    collapse, length = figure.axes[0].lines[-2:]
    assert [x for x, _ in drawn(collapse)] == [3.0, 7.0]
    assert [x for x, _ in drawn(length)] == [3.0]
    assert collapse.get_marker() != length.get_marker()


def test_areas_reach_from_nothing_to_everything() -> None:
    figure: Any = stack_figure([1, 2], {"at step 1": [0.25, 0.5], "never": [0.75, 0.5]}, title="t", x_label="step")
    assert [area.get_paths()[0].vertices[:, 1].max() for area in figure.axes[0].collections] == [0.5, 1.0]


def test_a_frontier_is_joined_in_the_order_given() -> None:
    points = {name: (Point(x, x, x), Point(y, y, y)) for name, x, y in (("b", 0.3, 0.4), ("a", 0.1, 0.6))}
    for joined in (True, False):
        first, *_ = plane_figure(points, title="t", x_label="x", y_label="y", joined=joined).axes[0].lines
        assert (drawn(first) == [(0.3, 0.4), (0.1, 0.6)]) == joined
