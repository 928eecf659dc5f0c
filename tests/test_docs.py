"""The documents say what the code does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_configuration_reference_is_current() -> None:
    made = subprocess.run([sys.executable, "docs/reference.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert made.stdout == written, "run `make docs`"


def messages() -> list[str]:
    """Every text in the package, with "..." where a value is put in."""
    found = []
    for path in (ROOT / "verl_rlkd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(p.value) if isinstance(p, ast.Constant) else "..." for p in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(headings) > 15
    texts = "\n".join(messages()).replace("%s", "...")
    for heading in headings:
        for part in re.split(r"\.\.\.+", heading):
            assert part.strip(" :;,.?") in texts, f"{part!r} of {heading!r}"
