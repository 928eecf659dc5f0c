"""Plots are files that open, and text of the width that was asked for."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from verl_rlkd.report.plots import (
    COLOURS,
    Curve,
    Point,
    counts_figure,
    curves_figure,
    points_figure,
    save_figure,
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
