"""Reading what verl's file logger and dumps leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The file's rows."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_steps(metrics: Path) -> dict[int, dict[str, float]]:
    """Step -> logged metrics; a step's line also holds its validation."""
    return {line["step"]: line["data"] for line in json_lines(metrics) if "critic/score/mean" in line["data"]}
