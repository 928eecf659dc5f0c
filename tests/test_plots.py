"""Plots are files that open, and text of the width that was asked for."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from verl_rlkd.evaluation.plots import COLOURS, Curve, save_curves, terminal_curves

STEPS = list(range(1, 31))
CURVES = [
    Curve("accuracy", STEPS, [step / 30 for step in STEPS]),
    Curve("structure", STEPS, [0.5] * 30, low=[0.4] * 30, high=[0.6] * 30),
]


def test_a_png_shows_every_curve_in_its_colour(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    save_curves(CURVES, path, title="t", x_label="step", y_label="mean", y_range=(0, 1))
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
