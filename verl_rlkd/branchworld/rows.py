"""Rows for training and evaluation, drawn from a seed without end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from verl_rlkd.branchworld.problems import FAMILIES, SHIFTED_FAMILIES, Family, Problem, draw_problem
from verl_rlkd.branchworld.reasoning import NO_FAULTS, Faults, Move, draw_path, teacher_path
from verl_rlkd.branchworld.wording import (
    SHIFTED_WORDINGS,
    WORDINGS,
    Wording,
    problem_text,
    response_of,
    structure_of,
    trace_of,
)
from verl_rlkd.matching import Field
from verl_rlkd.types import Structure

DOMAIN = "branchworld"
PROMPTS = Path(__file__).parent / "prompts"
"""What models trained on this world are asked: ``prompt_dir`` of generator and matcher."""


@dataclass(frozen=True)
class Split:
    """Where problems and their wording come from."""

    families: Mapping[str, Family]
    wordings: Sequence[Wording]
    steps: tuple[int, int]
    """Fewest and most steps."""


IN_DOMAIN = Split(FAMILIES, WORDINGS, (2, 6))
SHIFTED = Split(SHIFTED_FAMILIES, SHIFTED_WORDINGS, (5, 8))
"""Other families, other wording, longer chains."""


@dataclass(frozen=True)
class Row:
    """A problem and somebody's reasoning about it."""

    problem: Problem
    path: tuple[Move, ...]
    teacher: tuple[Move, ...]
    trace: str
    structure: Structure

    @property
    def problem_text(self) -> str:
        """What is asked."""
        return problem_text(self.problem)

    @property
    def response(self) -> str:
        """The trace and its answer, in the format that is rewarded."""
        return response_of(self.trace, self.path[-1].value)


def draw_row(random: Random, split: Split = IN_DOMAIN, *, faults: Faults = NO_FAULTS, steps: int | None = None) -> Row:
    """One row; without faults the reasoning is the teacher's.

    Args:
        random: Source of all choices.
        split: Families, wordings and steps to draw from.
        faults: How often the reasoning errs.
        steps: Steps of the teacher, instead of the split's.
    """
    family = random.choice(list(split.families.values()))
    problem = draw_problem(random, family, steps=steps or random.randint(*split.steps))
    teacher = teacher_path(problem)
    path = teacher if faults == NO_FAULTS else draw_path(problem, random, faults)
    wording = random.choice(split.wordings)
    trace = trace_of(problem, path, wording, random)
    return Row(problem, path, teacher, trace, structure_of(problem, path, wording))


def draw_pair(random: Random, split: Split = IN_DOMAIN) -> tuple[Field, str, str, bool]:
    """(part of a step, teacher's text, student's text, whether they say the same), about one problem.

    The student's step is the teacher's in the same or another wording, with a fault half of the time. It may have
    weighed fewer candidates: what it takes decides.
    """
    row = draw_row(random, split)
    at = random.randrange(len(row.teacher))
    move = row.teacher[at]
    field: Field = random.choice(("meta_reasoning", "sub_problem", "answer"))
    same = random.random() < 0.5
    if not same:
        move = _changed(random, row, at, field)
    elif random.random() < 0.3:
        left_out = random.choice([None, *(one for one in move.candidates if one != move.taken)])
        move = dataclasses.replace(move, candidates=tuple(one for one in move.candidates if one != left_out))
    texts = []
    for one in (row.teacher[at], move):
        step = structure_of(row.problem, (one,), random.choice(split.wordings)).steps[0]
        texts.append(str(getattr(step, field)))
    return field, texts[0], texts[1], same


def _changed(random: Random, row: Row, at: int, field: Field) -> Move:
    move = row.teacher[at]
    if field == "answer":
        while True:
            # The same numbers with a slip, or another step's calculation.
            path = draw_path(row.problem, random, Faults(wrong_branch=0.3, wrong_answer=0.5))
            other = random.choice(path)
            if other.value != move.value:
                return other
    others = [owner for owner in row.problem.derived if owner != move.taken]
    owner = random.choice([one for one in move.candidates if one != move.taken] or others)
    if field == "sub_problem":
        return dataclasses.replace(move, asked=random.choice(others))
    candidates = move.candidates if owner in move.candidates else (*move.candidates[:-1], owner)
    return dataclasses.replace(move, candidates=candidates, taken=owner)
