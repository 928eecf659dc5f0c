"""How a student's steps compare with its teacher's, beyond the score: which steps it takes, and how they begin.

Structures that were left at their first mismatch are known up to there only; what is counted over them is a lower
bound, and what is distributed is compared with the teacher's steps of the same positions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from verl_rlkd.matching import normalise
from verl_rlkd.types import Step, StepVerdict

_WORD = re.compile(r"[^\W_][\w'-]*")
Pair = tuple[Sequence[Step], Sequence[Step]]
"""(the student's steps, the teacher's)."""


def pattern(step: Step) -> str:
    """What a step is counted as: the first word of its meta-reasoning, "" where there is none.

    A rule that any text has a value for, and no more: "Check the sum" and "Check by listing" are one pattern, "Verify
    it" is another.
    """
    found = _WORD.search(normalise(step.meta_reasoning))
    return found[0] if found else ""


def pattern_counts(pairs: Iterable[Pair]) -> tuple[Counter[str], Counter[str]]:
    """Patterns of the students' steps and of their teachers', at the positions that both have."""
    ours: Counter[str] = Counter()
    theirs: Counter[str] = Counter()
    for student, teacher in pairs:
        both = min(len(student), len(teacher))
        ours.update(pattern(step) for step in student[:both])
        theirs.update(pattern(step) for step in teacher[:both])
    return ours, theirs


def pattern_distance(ours: Counter[str], theirs: Counter[str]) -> float:
    """Total variation distance of two distributions: the share of steps whose pattern would have to change.

    Returns:
        In [0, 1].

    Raises:
        ValueError: One of them is empty.
    """
    if not ours or not theirs:
        raise ValueError("no step to compare")
    names = {*ours, *theirs}
    return sum(abs(ours[name] / ours.total() - theirs[name] / theirs.total()) for name in names) / 2


def steps_taken(
    student: Sequence[Step], teacher: Sequence[Step], verdicts: Sequence[StepVerdict]
) -> tuple[float, float]:
    """Shares of the teacher's steps that the student takes: (in the teacher's order, in any order).

    Args:
        student: Its steps, as far as they are known.
        teacher: At least one step.
        verdicts: The matcher's, up to the first mismatch: what is in order is its say. Elsewhere a step is taken if
            some step of the student's has the same meta-reasoning, once normalised.

    Returns:
        Both in [0, 1]; the second is never below the first.
    """
    in_order = sum(verdict.meta_reasoning for verdict in verdicts)
    said = {normalise(step.meta_reasoning) for step in student} - {""}
    anywhere = sum(normalise(step.meta_reasoning) in said for step in teacher[in_order:])
    return in_order / len(teacher), (in_order + anywhere) / len(teacher)
