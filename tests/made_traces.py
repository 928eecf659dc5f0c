"""Teacher traces as rows of a file, small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def row(n: int, **changes: Any) -> Row:
    problem = f"What is {n} + {n}?"
    prompt = [{"role": "user", "content": problem}]
    return {
        "prompt": prompt,
        "problem": problem,
        "trace": f"<think>\nso {n}\n</think>\n{2 * n}",
        "domain": "math",
    } | changes


def write_jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path
