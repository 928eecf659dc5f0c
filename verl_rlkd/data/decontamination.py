"""Which training problems are also in a benchmark: 13 words in a row in common, as is usual since arXiv:2005.14165."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_rlkd.data.files import read_rows
from verl_rlkd.errors import DataError

N = 13
"""Words that must follow each other in both texts."""
COLUMNS = ("problem", "question", "prompt")
"""Where a benchmark has its problem, in this order; a prompt may be chat messages."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Hit:
    """A training problem that is in a benchmark."""

    benchmark: Path
    row: int
    """1-based, in the benchmark."""
    words: str
    """What both have in common."""


class Benchmarks:
    """The n-grams of some benchmark files."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Read the files.

        Raises:
            DataError: A file cannot be read, or a row has no problem.
        """
        self._known: dict[str, tuple[Path, int]] = {}
        for path in files:
            for row, fields in read_rows(path, COLUMNS):
                for gram in _grams(_problem(fields, f"{path}: row {row}")):
                    self._known.setdefault(gram, (path, row))

    def find(self, problem: str) -> Hit | None:
        """The benchmark problem that shares N words in a row with this one, or is the same and shorter."""
        if self._known:
            for gram in _grams(problem):
                if gram in self._known:
                    return Hit(*self._known[gram], gram)
        return None


def _grams(text: str) -> Iterator[str]:
    """Every N words in a row, lower-case and without punctuation; the whole text if it has fewer, nothing if none."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    for i in range(max(1, len(words) - N + 1) if words else 0):
        yield " ".join(words[i : i + N])


def _problem(fields: Any, where: str) -> str:
    for name in COLUMNS:
        value = fields.get(name)
        if isinstance(value, list):
            value = next((m.get("content") for m in reversed(value) if m.get("role") == "user"), None)
        if isinstance(value, str) and value.strip():
            return value
    raise DataError(f"{where}: no problem; a benchmark has it in a column {', '.join(COLUMNS)}")
