"""What was compared with what: one JSON line per scored response, for people to read.

{"step", "response_id", "problem", "response", "training", "score", "components": {...},
 "teacher": [[meta, sub, answer], ...], "student": [...] or null, "verdicts": [[true, true, false], ...]}
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from verl_rlkd.gsrm.scorer import ScoredResponse, ScoringRequest
from verl_rlkd.types import Structure

logger = logging.getLogger(__name__)


class Record:
    """Appends to ``<folder>/<process id>.jsonl``: each reward worker has its own file, which nobody wrote before.

    So half a line, of a process that was killed, is always a file's last. It is for people to read, so a full disk ends
    the record and not the run.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._path: Path | None = None
        self._works = True

    def write(self, request: ScoringRequest, scored: ScoredResponse, *, step: int = 0, response_id: str = "") -> None:
        """Append one line; whole, whatever happens to the process afterwards.

        Args:
            request: What was scored.
            scored: What became of it.
            step: Training step that it is part of.
            response_id: Two lines with one name are one response, whose worker died before it could answer.
        """
        if not self._works:
            return
        line = {
            "step": step,
            "response_id": response_id,
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
            self._path = self._path or _new_file(self._folder)
            # A lone surrogate is no UTF-8, but a backslash escape of JSON.
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            logger.warning("rlkd.record_dir: %s; going on without it, see that the disk has room", error)
            self._works = False


def cut_record(folder: Path, step: int, *, again: Collection[str] = (), validates: bool = False) -> None:
    """Take out of the record what a run that goes on after ``step`` will score again, and half lines.

    A run from step 0 has nothing to go on from: files of an earlier start move to ``<folder>/earlier-<n>``.

    Args:
        folder: The record.
        step: The checkpoint's; 0 = none.
        again: Prompts that the checkpoint holds as not finished: all their responses are sampled again.
        validates: Whether the validation of ``step`` is done again.
    """
    if not step:
        _set_aside(folder)
        return
    seen: set[str] = set()

    def stays(line: dict[str, Any]) -> bool:
        its_step, name = line.get("step", 0), line.get("response_id", "")
        if its_step > step or name.rsplit("_", 1)[0] in again or (name and name in seen):
            return False
        seen.add(name)
        return line["training"] or its_step < step or not validates

    for path in sorted(folder.glob("*.jsonl")):
        keep_lines(path, stays)


def keep_lines(path: Path, stays: Callable[[dict[str, Any]], bool]) -> None:
    """Leave only these lines of a JSONL file, at once: whoever is killed meanwhile leaves the file as it was.

    What is no JSON is half a line, and goes.
    """
    new = path.with_name(f"{path.name}.new")
    left_out = False
    with path.open(encoding="utf-8") as old, new.open("w", encoding="utf-8") as file:
        for text in old:
            try:
                stay = text.endswith("\n") and stays(json.loads(text))
            except ValueError:
                stay = False
            if stay:
                file.write(text)
            left_out = left_out or not stay
    if left_out:
        new.replace(path)
    else:
        new.unlink()


def steps_as_lists(structure: Structure | None) -> list[list[str | None]] | None:
    """[[meta-reasoning, sub-problem, answer], ...], for JSON."""
    if structure is None:
        return None
    return [[step.meta_reasoning, step.sub_problem, step.answer] for step in structure.steps]


def _new_file(folder: Path) -> Path:
    """An empty file; another node, or a start before this one, may have had a process of the same number."""
    for n in itertools.count():
        path = folder / (f"{os.getpid()}-{n}.jsonl" if n else f"{os.getpid()}.jsonl")
        try:
            path.open("x").close()
        except FileExistsError:
            continue
        return path
    raise AssertionError("count() does not end")


def _set_aside(folder: Path) -> None:
    files = list(folder.glob("*.jsonl"))
    if not files:
        return
    aside = next(path for n in itertools.count(1) if not (path := folder / f"earlier-{n}").exists())
    aside.mkdir()
    for path in files:
        path.rename(aside / path.name)
