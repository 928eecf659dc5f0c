"""Algorithm 1: verdicts on a student's steps to a structure score.

Source: arXiv:2505.16142, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from verl_rlkd.types import StepVerdict, StructureScore


def score_structure(
    verdicts: Sequence[StepVerdict], *, num_teacher_steps: int, aggregate: Literal["mean", "sum"] = "mean"
) -> StructureScore:
    """Score of a student's structure against its teacher's.

    A step is worth 1; half if its sub-problems do not match, half again if its answers do not match; what was not
    asked (None) costs nothing. From the first meta-reasoning mismatch on, every step is worth 0.

    Args:
        verdicts: One per compared step, in order; at most ``num_teacher_steps``.
        num_teacher_steps: Steps in the teacher's structure, at least 1.
        aggregate: "mean" divides the steps' sum by ``num_teacher_steps``; "sum" does not.

    Returns:
        ``value`` in [0, 1] for "mean", in [0, len(verdicts)] for "sum"; ``per_step`` has one entry per verdict.

    Raises:
        ValueError: More verdicts than teacher steps, no teacher step, or an unknown ``aggregate``.

    Source: arXiv:2505.16142, Algorithm 1.
    Differs: the released code sums, so a longer teacher structure weighs more against accuracy; "mean" keeps their
        ratio what the weights say.
    """
    if num_teacher_steps < 1:
        raise ValueError(f"num_teacher_steps is {num_teacher_steps}; a teacher structure has at least 1 step")
    if len(verdicts) > num_teacher_steps:
        raise ValueError(f"{len(verdicts)} verdicts for {num_teacher_steps} teacher steps; give at most one per step")
    if aggregate not in ("mean", "sum"):
        raise ValueError(f"aggregate is {aggregate!r}; give 'mean' or 'sum'")

    per_step: list[float] = []
    exit_step: int | None = None
    for number, verdict in enumerate(verdicts, start=1):
        if exit_step is None and not verdict.meta_reasoning:
            exit_step = number
        per_step.append(0.0 if exit_step is not None else _step_score(verdict))
    total = sum(per_step)
    return StructureScore(total / num_teacher_steps if aggregate == "mean" else total, tuple(per_step), exit_step)


def _step_score(verdict: StepVerdict) -> float:
    score = 1.0
    if verdict.sub_problem is False:
        score *= 0.5
    if verdict.answer is False:
        score *= 0.5
    return score
