"""The corpus of hostile texts, for tests and the benchmark.

{"id": "class/name", "class": "...", "text": "..."}
{"id": ..., "class": "size", "before": "", "repeat": "...", "times": 1000000, "after": ""}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "tests" / "data" / "hostile.jsonl"


@dataclass(frozen=True)
class Attack:
    """One text of the corpus."""

    id: str
    kind: str
    """Its class: tags, instruction, conversation, control_tokens, invisible, terminal, invalid_unicode, delimiters,
    size."""
    text: str


def read_corpus() -> tuple[Attack, ...]:
    """Every attack, in the file's order."""
    attacks = []
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        repeated = case.get("before", "") + case.get("repeat", "") * case.get("times", 0) + case.get("after", "")
        attacks.append(Attack(case["id"], case["class"], case.get("text", repeated)))
    return tuple(attacks)
