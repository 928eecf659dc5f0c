"""The documents say what the code does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_configuration_reference_is_current() -> None:
    made = subprocess.run([sys.executable, "docs/reference.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert made.stdout == written, "run `make docs`"
