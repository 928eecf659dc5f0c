"""What was compared with what: one JSON line per scored response, for people to read.

{"problem", "response", "training", "score", "components": {...}, "teacher": [[meta, sub, answer], ...],
 "student": [...] or null, "verdicts": [[true, true, false], ...]}
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from verl_rlkd.gsrm.scorer import ScoredResponse, ScoringRequest
from verl_rlkd.types import Structure

logger = logging.getLogger(__name__)


class Record:
    """Appends to ``<folder>/<process id>.jsonl``: each reward worker has its own file.

    It is for people to read, so a full disk ends the record and not the run.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{os.getpid()}.jsonl"
        self._works = True

    def write(self, request: ScoringRequest, scored: ScoredResponse) -> None:
        """Append one line; whole, whatever happens to the process afterwards."""
        if not self._works:
            return
        line = {
            "problem": request.problem,
            "response": request.response,
            "training": request.training,
            "score": scored.score,
            "components": scored.components.as_extra_info(),
            "teacher": steps_as_lists(request.teacher),
            "student": steps_as_lists(scored.student),
            "verdicts": [[v.meta_reasoning, v.sub_problem, v.answer] for v in scored.verdicts],
        }
        try:
            # A lone surrogate is no UTF-8, but a backslash escape of JSON.
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            logger.warning("rlkd.record_dir: %s; going on without it, see that the disk has room", error)
            self._works = False


def steps_as_lists(structure: Structure | None) -> list[list[str | None]] | None:
    """[[meta-reasoning, sub-problem, answer], ...], for JSON."""
    if structure is None:
        return None
    return [[step.meta_reasoning, step.sub_problem, step.answer] for step in structure.steps]
